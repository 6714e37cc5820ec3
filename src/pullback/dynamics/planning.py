"""Planning: sequences of actions that a model predicts to be good, by sampling or by the gradient of its return.

A model is a function ``step(state, action)`` that returns the next state and the reward: a learned one, or
``Environment.step`` itself. ``value(state)`` closes a short horizon.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive, check_range
from pullback.core.errors import ConvergenceError
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int
from pullback.core.transforms import can_look

__all__ = ["Plan", "imagined_return", "plan_cem", "plan_gradient", "plan_mppi", "plan_random_shooting"]

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Plan(NamedTuple):
    """What a planner found.

    Attributes:
        actions: ``[H, *batch, m]``; the first is to be executed.
        mean: ``[H, *batch, m]`` of the proposal at the end: ``previous=plan.mean`` of the next call starts from it.
        std: ``[H, *batch, m]`` of the proposal.
        value: ``[*batch]`` predicted return of ``actions``.
        history: ``[iterations, *batch]`` predicted return of the best sequence of each iteration.
        dropped: ``[*batch]`` candidates that :func:`plan_gradient` left where return or gradient was not finite.
    """

    actions: Float[Tensor, "H *batch m"]
    mean: Float[Tensor, "H *batch m"]
    std: Float[Tensor, "H *batch m"]
    value: Float[Tensor, "*batch"]
    history: Float[Tensor, "iterations *batch"]
    dropped: Int[Tensor, "*batch"]


def imagined_return(
    step: Step,
    state: Float[Tensor, "*batch n"],
    actions: Float[Tensor, "H *batch m"],
    *,
    discount: float = 1.0,
    value: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Return :math:`\sum_{t<H}\gamma^t r_t + \gamma^H V(s_H)` with :math:`s_{t+1}, r_t = \mathrm{step}(s_t, a_t)`.

    Args:
        step: ``step(state, action)``, gives next state and reward.
        state: s_0, ``[*batch, n]``.
        actions: ``[H, *batch, m]``, H >= 1.
        discount: gamma in [0, 1].
        value: V, ``value(state)`` gives ``[*batch]``; 0 without it.

    Returns:
        ``[*batch]``, with derivatives in state and actions where the model has them.

    Raises:
        TypeError: ``step`` or ``value`` cannot be called, or a tensor is not floating.
        ValueError: there are no actions, a discount is out of range, or rewards or values are not one a state.

    Example:
        >>> imagined_return(lambda s, a: (s + a, s[..., 0]), torch.zeros(1), torch.ones(3, 1), discount=0.5)
        tensor(1.)

    References:
        Hansen, Wang, Su (2022), Temporal difference learning for model predictive control, equation 3.
    """
    check_callable("step", step)
    if value is not None:
        check_callable("value", value)
    check_floating("state", state)
    if check_floating("actions", actions).ndim < 2 or not len(actions):
        raise ValueError(f"actions must have shape [H, *batch, m] with H >= 1, got {tuple(actions.shape)}")
    check_range("discount", discount, 0, 1)
    total, weight = torch.zeros((), dtype=state.dtype, device=state.device), 1.0
    for action in actions:
        state, reward = step(state, action)
        total, weight = torch.add(total, reward, alpha=weight), weight * discount
    total = total if value is None else torch.add(total, value(state), alpha=weight)
    if total.shape != actions.shape[1:-1]:
        raise ValueError(
            f"step and value must give one number a state, {tuple(actions.shape[1:-1])}, got {tuple(total.shape)}"
        )
    return total


def plan_mppi(
    step: Step,
    state: Float[Tensor, "*batch n"],
    *,
    actions: int,
    horizon: int = 5,
    samples: int = 512,
    elites: int = 64,
    iterations: int = 6,
    temperature: float = 2.0,
    momentum: float = 0.1,
    discount: float = 1.0,
    value: Callable[[Tensor], Tensor] | None = None,
    policy: Callable[[Tensor], Tensor] | None = None,
    policy_samples: int = 0,
    previous: Float[Tensor, "H *batch m"] | None = None,
    std: float = 2.0,
    noise_floor: float = 0.05,
    limit: float | None = 1.0,
    generator: torch.Generator | None = None,
) -> Plan:
    r"""Plan by model predictive path integrals: a Gaussian over sequences, moved to the weighted mean of its elites.

    Each iteration draws sequences from :math:`N(\mu, \sigma^2)`, adds some of the policy, and keeps the ``elites`` of
    the largest :func:`imagined_return` R, with weights :math:`w \propto \exp((R - \max R) / T)`:

    .. math:: \mu \leftarrow \eta\,\mu + (1 - \eta) \sum_i w_i a_i, \qquad
              \sigma^2 \leftarrow \sum_i w_i (a_i - \textstyle\sum_j w_j a_j)^2 .

    The sequence to act on is an elite, drawn by its weight.

    Args:
        step: the model, ``step(state, action)``, gives next state and reward.
        state: ``[*batch, n]``; the problems of a batch are planned side by side.
        actions: m, size of an action.
        horizon: H >= 1.
        samples: sequences an iteration.
        elites: of them and of the policy's that count.
        iterations: >= 1.
        temperature: T > 0, in units of return.
        momentum: eta in [0, 1).
        discount: gamma in [0, 1].
        value: of the last state; 0 without it.
        policy: ``policy(state)`` gives an action, possibly a random one.
        policy_samples: sequences of the policy, drawn once.
        previous: mean of the last plan: shifted by one action it is the first mean.
        std: first standard deviation, and its bound.
        noise_floor: least standard deviation, in [0, std].
        limit: bound of every action; ``None`` for no bound.
        generator: of the draws.

    Returns:
        A :class:`Plan`, without gradient.

    Raises:
        TypeError: a function cannot be called, or the state is not floating.
        ValueError: a number or shape out of range, more elites than sequences, policy samples without a policy, or a
            return that is not finite (the iteration is named).

    Example:
        >>> plan = plan_mppi(lambda s, a: (s + a, -(s + a).square().sum(-1)), torch.full((1,), 0.5), actions=1,
        ...                  horizon=2, noise_floor=0.0, generator=torch.Generator().manual_seed(0))
        >>> bool((plan.mean[0] + 0.5).abs() < 0.1)
        True

    References:
        Williams, Aldrich, Theodorou (2017), Model predictive path integral control; Hansen, Wang, Su (2022), arXiv
        2203.04955, algorithm 1, whose "temperature" 0.5 is 1 / T.
    """
    check_positive("temperature", temperature)
    _below_one("momentum", momentum)
    search = _Search(step, state, actions, horizon, discount, value, limit, generator)
    total = samples + policy_samples
    check_integer("elites", elites, 1, total)
    start = search.start(previous)
    proposals = search.follow(policy, policy_samples)
    return search.refine(start, proposals, samples, elites, iterations, temperature, momentum, std, noise_floor)


def plan_cem(
    step: Step,
    state: Float[Tensor, "*batch n"],
    *,
    actions: int,
    horizon: int = 12,
    samples: int = 512,
    elites: int = 50,
    iterations: int = 6,
    momentum: float = 0.0,
    discount: float = 1.0,
    value: Callable[[Tensor], Tensor] | None = None,
    previous: Float[Tensor, "H *batch m"] | None = None,
    std: float = 1.0,
    noise_floor: float = 0.0,
    limit: float | None = 1.0,
    generator: torch.Generator | None = None,
) -> Plan:
    r"""Plan by the cross-entropy method: a Gaussian over sequences, refitted to its best samples.

    As :func:`plan_mppi` with equal weights; the sequence to act on is the mean.

    Args:
        step: the model, ``step(state, action)``, gives next state and reward.
        state: ``[*batch, n]``.
        actions: m, size of an action.
        horizon: H >= 1.
        samples: sequences an iteration.
        elites: of them that the Gaussian is fitted to.
        iterations: >= 1.
        momentum: part of the old mean that is kept, in [0, 1).
        discount: gamma in [0, 1].
        value: of the last state; 0 without it.
        previous: mean of the last plan: shifted by one action it is the first mean.
        std: first standard deviation, and its bound.
        noise_floor: least standard deviation, in [0, std].
        limit: bound of every action; ``None`` for no bound.
        generator: of the draws.

    Returns:
        A :class:`Plan`, without gradient.

    Raises:
        TypeError: a function cannot be called, or the state is not floating.
        ValueError: a number or shape out of range, more elites than samples, or a return that is not finite.

    Example:
        >>> plan = plan_cem(lambda s, a: (s + a, -(s + a).square().sum(-1)), torch.full((1,), 0.5), actions=1,
        ...                 horizon=2, generator=torch.Generator().manual_seed(0))
        >>> bool((plan.actions[0] + 0.5).abs() < 0.05)
        True

    References:
        Rubinstein (1999), The cross-entropy method for combinatorial and continuous optimization; Hafner et al.
        (2019), Learning latent dynamics for planning from pixels, algorithm 2.
    """
    _below_one("momentum", momentum)
    search = _Search(step, state, actions, horizon, discount, value, limit, generator)
    check_integer("elites", elites, 1, samples)
    start = search.start(previous)
    return search.refine(start, None, samples, elites, iterations, None, momentum, std, noise_floor)


def plan_random_shooting(
    step: Step,
    state: Float[Tensor, "*batch n"],
    *,
    actions: int,
    horizon: int = 12,
    samples: int = 512,
    discount: float = 1.0,
    value: Callable[[Tensor], Tensor] | None = None,
    limit: float = 1.0,
    generator: torch.Generator | None = None,
) -> Plan:
    """Plan by taking the best of random sequences, uniform between the bounds.

    Args:
        step: the model, ``step(state, action)``, gives next state and reward.
        state: ``[*batch, n]``.
        actions: m, size of an action.
        horizon: H >= 1.
        samples: sequences.
        discount: gamma in [0, 1].
        value: of the last state; 0 without it.
        limit: bound of every action, > 0.
        generator: of the draws.

    Returns:
        A :class:`Plan`, without gradient; its mean is the sequence, its standard deviation 0.

    Raises:
        TypeError: a function cannot be called, or the state is not floating.
        ValueError: a number or shape out of range, or a return that is not finite.

    Example:
        >>> plan = plan_random_shooting(lambda s, a: (s + a, -(s + a).square().sum(-1)), torch.full((1,), 0.5),
        ...                             actions=1, horizon=1, generator=torch.Generator().manual_seed(0))
        >>> bool((plan.actions[0] + 0.5).abs() < 0.05)
        True

    References:
        Nagabandi et al. (2018), Neural network dynamics for model-based deep reinforcement learning with model-free
        fine-tuning, section IV.B.
    """
    check_positive("limit", limit)
    check_integer("samples", samples, 1)
    search = _Search(step, state, actions, horizon, discount, value, limit, generator)
    with torch.no_grad():
        drawn = limit * (2 * search.draw(torch.rand, samples) - 1)
        returns = search.score(drawn, 0)
        best, index = returns.max(0)
        chosen = _take(drawn, index[None])[:, 0]
    return Plan(chosen, chosen, torch.zeros_like(chosen), best, best[None], _none(best))


def plan_gradient(
    step: Step,
    state: Float[Tensor, "*batch n"],
    *,
    actions: int,
    horizon: int = 12,
    candidates: int = 10,
    iterations: int = 10,
    lr: float = 0.3,
    clip: float | None = None,
    discount: float = 1.0,
    value: Callable[[Tensor], Tensor] | None = None,
    policy: Callable[[Tensor], Tensor] | None = None,
    previous: Float[Tensor, "H *batch m"] | None = None,
    std: float = 0.5,
    limit: float | None = 1.0,
    generator: torch.Generator | None = None,
) -> Plan:
    r"""Plan by the gradient of the return: Adam ascends :func:`imagined_return` in the actions, from several starts.

    With a limit L the actions are :math:`a = L \tanh u` and u is what moves. The best sequence that was met wins. A
    candidate whose return or gradient is not finite stays where it was, and is counted.

    Args:
        step: the model, ``step(state, action)``, differentiable, gives next state and reward.
        state: ``[*batch, n]``.
        actions: m, size of an action.
        horizon: H >= 1.
        candidates: sequences that are refined side by side; the first starts at the mean itself.
        iterations: steps of Adam, >= 1. Each costs about three predictions.
        lr: step size of Adam, > 0, in units of u.
        clip: bound of the norm of the gradient of each sequence.
        discount: gamma in [0, 1].
        value: of the last state; 0 without it.
        policy: ``policy(state)`` gives the action of the first mean instead of 0.
        previous: mean of the last plan: shifted by one action it is the first mean.
        std: of the starts around the mean, >= 0.
        limit: bound of every action; ``None`` for no bound.
        generator: of the starts.

    Returns:
        A :class:`Plan`, without gradient; its mean is the sequence, its ``std`` that of the candidates at the end.

    Raises:
        TypeError: a function cannot be called, or the state is not floating.
        ValueError: a number or shape out of range, both a policy and a previous plan, or a return that has no gradient
            in the actions.
        ConvergenceError: no candidate has a finite return; it carries the plan.

    Example:
        >>> plan = plan_gradient(lambda s, a: (s + a, -(s + a).square().sum(-1)), torch.full((1,), 0.5), actions=1,
        ...                      horizon=2, iterations=50, generator=torch.Generator().manual_seed(0))
        >>> bool((plan.actions[0] + 0.5).abs() < 0.05)
        True

    References:
        Jyothir, Jalagam, LeCun, Sobal (2023), Gradient-based planning with world models, arXiv 2312.17227.
    """
    check_positive("lr", lr)
    check_positive("std", std, zero=True)
    check_integer("candidates", candidates, 1)
    check_integer("iterations", iterations, 1)
    if clip is not None:
        check_positive("clip", clip)
    if policy is not None and previous is not None:
        raise ValueError("give either a policy or the previous plan to start from, got both")
    search = _Search(step, state, actions, horizon, discount, value, limit, generator)
    mean = search.start(previous) if policy is None else search.follow(policy, 1)[:, 0]
    noise = search.draw(torch.randn, candidates)
    with torch.no_grad():
        noise[:, 0] = 0
        free = search.free(mean[:, None]) + std * noise
    first, second = torch.zeros_like(free), torch.zeros_like(free)
    alive = torch.ones(free.shape[1:-1], dtype=torch.bool, device=free.device)
    best, chosen, history = torch.full(mean.shape[1:-1], -torch.inf).to(mean), mean, []
    for k in range(iterations + 1):
        with torch.set_grad_enabled(k < iterations):
            leaf = free.detach().requires_grad_()
            sequences = search.bounded(leaf)
            returns = search.returns(sequences)
            if k < iterations and not returns.requires_grad:
                raise ValueError("the return must depend on the actions by a gradient: step detaches them (audit it)")
            slope = None if k == iterations else torch.autograd.grad(returns.sum(), leaf)[0]
        with torch.no_grad():
            alive = alive & returns.isfinite()
            top, index = returns.detach().where(alive, -torch.inf).max(0)
            found = _take(sequences.detach(), index[None])[:, 0]
            better = top > best
            best, chosen = torch.where(better, top, best), torch.where(better[..., None], found, chosen)
            history.append(top)
            if slope is None:
                break
            alive = alive & slope.isfinite().all(-1).all(0)
            slope = slope.where(alive[..., None], 0.0)  # it stays where it is from now on
            if clip is not None:
                norm = slope.square().sum((0, -1), keepdim=True).sqrt()
                slope = slope * (clip / norm.clamp_min(clip))
            first = 0.9 * first + 0.1 * slope
            second = 0.999 * second + 0.001 * slope.square()
            moved = (first / (1 - 0.9 ** (k + 1))) / ((second / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
            free = free + lr * moved.where(alive[..., None], 0.0)
    spread = sequences.detach().std(1, correction=0)
    plan = Plan(chosen, chosen, spread, best, torch.stack(history[1:]), (~alive).sum(0))
    if can_look(best) and not bool(best.isfinite().all()):
        raise ConvergenceError(f"no candidate of {candidates} has a finite return, for some state of the batch", plan)
    return plan


class _Search:
    """One call of a planner: what it needs to draw, score and bound sequences ``[H, samples, *batch, m]``."""

    def __init__(
        self,
        step: Step,
        state: Tensor,
        actions: int,
        horizon: int,
        discount: float,
        value: Callable[[Tensor], Tensor] | None,
        limit: float | None,
        generator: torch.Generator | None,
    ) -> None:
        check_callable("step", step)
        if value is not None:
            check_callable("value", value)
        if check_floating("state", state).ndim < 1:
            raise ValueError("state must have shape [*batch, n], got a number")
        check_integer("actions", actions, 1)
        check_integer("horizon", horizon, 1)
        check_range("discount", discount, 0, 1)
        if limit is not None:
            check_positive("limit", limit)
        self.step, self.state, self.discount, self.value = step, state.detach(), discount, value
        self.limit, self.generator = limit, generator
        self.shape = (horizon, *state.shape[:-1], actions)

    def draw(self, kind: Callable[..., Tensor], samples: int) -> Tensor:
        horizon, *rest = self.shape
        device = drawing_device(self.generator, self.state)
        drawn = kind(horizon, samples, *rest, generator=self.generator, device=device, dtype=self.state.dtype)
        return drawn.to(self.state.device)

    def start(self, previous: Tensor | None) -> Tensor:
        if previous is None:
            return torch.zeros(self.shape, dtype=self.state.dtype, device=self.state.device)
        if check_floating("previous", previous).shape[1:] != self.shape[1:] or not len(previous):
            raise ValueError(f"previous must have shape {self.shape}, got {tuple(previous.shape)}")
        shifted = previous.detach()[1 : self.shape[0] + 1]
        missing = self.shape[0] - len(shifted)  # a longer horizon than before ends in zeros
        return torch.cat([shifted, shifted.new_zeros(missing, *self.shape[1:])]) if missing else shifted

    @torch.no_grad()
    def follow(self, policy: Callable[[Tensor], Tensor] | None, samples: int) -> Tensor:
        """Sequences of the policy in the model, ``[H, samples, *batch, m]``."""
        check_integer("policy_samples", samples, 0)
        if samples and policy is None:
            raise ValueError("policy_samples needs a policy")
        if not samples or policy is None:
            return self.state.new_zeros((self.shape[0], 0, *self.shape[1:]))
        check_callable("policy", policy)
        state, taken = self.state.expand(samples, *self.state.shape), []
        for _ in range(self.shape[0]):
            taken.append(self.clamped(policy(state)))
            state = self.step(state, taken[-1])[0]
        return torch.stack(taken)

    def returns(self, sequences: Tensor) -> Tensor:
        state = self.state.expand(sequences.shape[1], *self.state.shape)
        return imagined_return(self.step, state, sequences, discount=self.discount, value=self.value)

    def score(self, sequences: Tensor, iteration: int) -> Tensor:
        returns = self.returns(sequences)
        if can_look(returns) and not bool(returns.isfinite().all()):
            raise ValueError(f"the predicted return is not finite in iteration {iteration}")
        return returns

    def clamped(self, x: Tensor) -> Tensor:
        return x if self.limit is None else x.clamp(-self.limit, self.limit)

    def bounded(self, u: Tensor) -> Tensor:
        return u if self.limit is None else self.limit * u.tanh()

    def free(self, x: Tensor) -> Tensor:
        return x if self.limit is None else (x / self.limit).clamp(-0.999, 0.999).atanh()

    @torch.no_grad()
    def refine(
        self,
        mean: Tensor,
        proposals: Tensor | None,
        samples: int,
        elites: int,
        iterations: int,
        temperature: float | None,
        momentum: float,
        widest: float,
        floor: float,
    ) -> Plan:
        """Elites of samples, weighted; without a temperature they count the same and the mean is the plan."""
        check_integer("samples", samples, 1)
        check_integer("iterations", iterations, 1)
        check_positive("std", widest)
        check_range("noise_floor", floor, 0, widest)
        std, history = torch.full_like(mean, widest), []
        for k in range(iterations):
            drawn = self.clamped(mean[:, None] + std[:, None] * self.draw(torch.randn, samples))
            if proposals is not None and proposals.shape[1]:
                drawn = torch.cat([drawn, proposals], 1)
            top, index = self.score(drawn, k).topk(elites, 0)
            best = _take(drawn, index)  # [H, elites, *batch, m]
            share = torch.full_like(top, 1 / elites)
            if temperature is not None:
                share = ((top - top[:1]) / temperature).softmax(0)
            center = (share[..., None] * best).sum(1)
            std = (share[..., None] * (best - center[:, None]).square()).sum(1).sqrt().clamp(floor, widest)
            mean = momentum * mean + (1 - momentum) * center
            history.append(top[0])
        if temperature is None:
            chosen = self.clamped(mean)
            value = self.score(chosen[:, None], iterations)[0]
            return Plan(chosen, mean, std, value, torch.stack(history), _none(value))
        device = drawing_device(self.generator, self.state)
        flat = share.flatten(1).T.to(device) if share.ndim > 1 else share[None].to(device)
        drawn_index = torch.multinomial(flat, 1, generator=self.generator).to(self.state.device)
        index = drawn_index.view(1, *share.shape[1:])
        value = top.gather(0, index)[0]
        return Plan(_take(best, index)[:, 0], mean, std, value, torch.stack(history), _none(value))


def _take(sequences: Tensor, index: Tensor) -> Tensor:
    """``[H, k, *batch, m]`` of ``[H, samples, *batch, m]`` by ``[k, *batch]``."""
    return sequences.gather(1, index[None, ..., None].expand(len(sequences), *index.shape, sequences.shape[-1]))


def _none(value: Tensor) -> Tensor:
    return torch.zeros_like(value, dtype=torch.long)


def _below_one(name: str, value: float) -> None:
    check_range(name, value, 0, 1)
    if value == 1:
        raise ValueError(f"{name} must be below 1, got {value}")
