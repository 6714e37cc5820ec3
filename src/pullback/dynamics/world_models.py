"""Latent models of a task, learned for reward and value alone, and what their training takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.core.checks import (
    check_choice,
    check_floating,
    check_integer,
    check_positive,
    check_range,
    check_same_dtype,
    check_shape,
)
from pullback.core.gradients import replace_gradient
from pullback.core.random import drawing_device
from pullback.core.shapes import Float
from pullback.dynamics.dead_ends import double_q_target

__all__ = [
    "ConsistencyLoss",
    "LatentWorldModel",
    "latent_consistency_loss",
    "latent_policy_loss",
    "truncated_normal",
    "update_average",
]

_HEADS = ("reward", "value", "policy")


class LatentWorldModel(nn.Module):
    r"""Five perceptrons in a latent space: what a planner needs to know of a task, and nothing of what it looks like.

    .. math:: z = h(s), \quad z' = d(z, a), \quad r = R(z, a), \quad Q_1, Q_2(z, a), \quad \pi(z) = \tanh(\cdot)

    ``model.step`` is the model of every planner of this family, ``model.state_value`` closes its horizon. Each
    perceptron but the encoder has two hidden layers with ELU. Weights start orthogonal and biases at zero, the last
    layers of R and Q all at zero.

    Args:
        observation: o, size of an observation s.
        action: m, size of an action.
        latent: size of z.
        hidden: size of every hidden layer.
        heads: those of ``"reward"``, ``"value"`` and ``"policy"`` that the model has.
        replicates: how many such models with weights of their own to hold side by side, in batched products. They are
            the last batch dimension of all that is given and returned: ``[*batch, replicates, n]``.

    Raises:
        ValueError: a size below 1, an unknown head, a method is called whose head is missing, or the last batch
            dimension is not that of the replicates.

    Example:
        >>> model = LatentWorldModel(3, 1, latent=8, hidden=16)
        >>> z = model.encode(torch.zeros(5, 3))
        >>> after, reward = model.step(z, model.act(z))
        >>> after.shape, reward.tolist(), model.values(z, torch.zeros(5, 1)).shape
        (torch.Size([5, 8]), [0.0, 0.0, 0.0, 0.0, 0.0], torch.Size([5, 2]))

    References:
        Hansen, Wang, Su (2022), Temporal difference learning for model predictive control, arXiv 2203.04955, equation
        7.
    """

    def __init__(
        self,
        observation: int,
        action: int,
        *,
        latent: int = 50,
        hidden: int = 512,
        heads: Sequence[str] = _HEADS,
        replicates: int | None = None,
    ) -> None:
        super().__init__()
        for name, size in (("observation", observation), ("action", action), ("latent", latent), ("hidden", hidden)):
            check_integer(name, size, 1)
        for head in heads:
            check_choice("heads", head, _HEADS)
        self.sizes, self.replicates = (observation, action, latent), replicates
        self._copies = () if replicates is None else (check_integer("replicates", replicates, 1),)
        both, hid = latent + action, (hidden, hidden)
        self.encoder = _perceptron(replicates, observation, hidden, latent)
        self.transition = _perceptron(replicates, both, *hid, latent)
        self.reward = _perceptron(replicates, both, *hid, 1, zero=True) if "reward" in heads else None
        self.twins = _Stacked(replicates, 2, (both, *hid, 1), zero=True) if "value" in heads else None
        self.policy = _perceptron(replicates, latent, *hid, action) if "policy" in heads else None

    def encode(self, observation: Float[Tensor, "*batch o"]) -> Float[Tensor, "*batch latent"]:
        """Return z of an observation."""
        check_shape("observation", check_floating("observation", observation), (*self._copies, self.sizes[0]))
        z: Tensor = self.encoder(observation)
        return z

    def step(
        self, z: Float[Tensor, "*batch latent"], action: Float[Tensor, "*batch m"]
    ) -> tuple[Float[Tensor, "*batch latent"], Float[Tensor, "*batch"]]:
        """Return the next z and the reward of an action."""
        both = self._joined(z, action)
        return self.transition(both), _present(self.reward, "reward")(both)[..., 0]

    def values(
        self, z: Float[Tensor, "*batch latent"], action: Float[Tensor, "*batch m"], *, frozen: bool = False
    ) -> Float[Tensor, "*batch two"]:
        """Return Q1 and Q2 of an action; ``frozen`` lets no gradient into their weights."""
        found: Tensor = _present(self.twins, "value")(self._joined(z, action), frozen)[..., 0]
        return found

    def act(
        self, z: Float[Tensor, "*batch latent"], std: float = 0.0, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch m"]:
        """Return the action of the policy, with noise as :func:`truncated_normal` draws it where ``std`` > 0."""
        check_shape("z", check_floating("z", z), (*self._copies, self.sizes[2]))
        mean = _present(self.policy, "policy")(z).tanh()
        return truncated_normal(mean, std, generator=generator) if std else mean

    def state_value(
        self, z: Float[Tensor, "*batch latent"], std: float = 0.0, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch"]:
        """Return the smaller Q of the policy's action, with noise as :meth:`act` adds it."""
        return self.values(z, self.act(z, std, generator=generator)).amin(-1)

    def _joined(self, z: Tensor, action: Tensor) -> Tensor:
        check_shape("z", check_floating("z", z), (*self._copies, self.sizes[2]))
        check_shape("action", check_floating("action", action), (*self._copies, self.sizes[1]))
        check_same_dtype(z=z, action=action)
        if z.shape[:-1] != action.shape[:-1]:
            raise ValueError(f"action must have the batch of z, {tuple(z.shape[:-1])}, got {tuple(action.shape[:-1])}")
        return torch.cat([z, action], -1)


class ConsistencyLoss(NamedTuple):
    """What the unrolled model gets wrong.

    Attributes:
        total: mean of ``each``, weighted where weights were given; of replicates side by side the sum of their means,
            so that each has the gradient that it would have alone.
        each: ``[*batch]`` loss of every sequence.
        priority: ``[*batch]`` sum of the sizes of the errors of both Q over the steps, without gradient; 0 where values
            have no weight.
        latents: ``[H + 1, *batch, latent]`` that the model predicts from the first observation.
    """

    total: Float[Tensor, ""]
    each: Float[Tensor, "*batch"]
    priority: Float[Tensor, "*batch"]
    latents: Float[Tensor, "steps_plus_1 *batch latent"]


def latent_consistency_loss(
    model: LatentWorldModel,
    target: LatentWorldModel,
    observations: Float[Tensor, "*batch steps_plus_1 o"],
    actions: Float[Tensor, "*batch steps m"],
    rewards: Float[Tensor, "*batch steps"],
    *,
    decay: float = 0.5,
    weights: tuple[float, float, float] = (2.0, 0.5, 0.1),
    discount: float = 0.99,
    importance: Float[Tensor, "*batch"] | None = None,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> ConsistencyLoss:
    r"""Return how far a model that sees the first observation alone goes astray in the H steps of a sequence.

    .. math::
        \sum_{t < H} \rho^t \Big[ c_1 \overline{(d(z_t, a_t) - \bar h(s_{t+1}))^2} + c_2 (R(z_t, a_t) - r_t)^2
        + c_3 \sum_{j=1,2} (Q_j(z_t, a_t) - y_t)^2 \Big], \qquad z_0 = h(s_0), \quad z_{t+1} = d(z_t, a_t)

    with :math:`y_t = r_t + \gamma \min_j \bar Q_j(z', \pi(z'))` at :math:`z' = h(s_{t+1})`. A bar marks the target
    network; the first term is a mean over the latent coordinates. No gradient flows into targets.

    Args:
        model: what is trained.
        target: a slowly following copy (:func:`update_average`).
        observations: s, ``[*batch, H + 1, o]``.
        actions: a, ``[*batch, H, m]``.
        rewards: r, ``[*batch, H]``.
        decay: rho in (0, 1].
        weights: c >= 0 of latent, reward and value; the head of a term whose weight is 0 is not asked, nor needed.
        discount: gamma in [0, 1].
        importance: ``[*batch]`` weight of each sequence in ``total``.
        noise: standard deviation >= 0 of what is added to the policy's actions in targets, as
            :func:`truncated_normal` draws it: a value then holds around an action, and not at it alone.
        generator: of this noise.

    Returns:
        The loss, and with it what a prioritised memory and :func:`latent_policy_loss` need.

    Raises:
        TypeError: a tensor is not floating.
        ValueError: shapes do not fit, a number is out of range, or a head is missing.

    Example:
        >>> model = LatentWorldModel(3, 1, latent=4, hidden=8)
        >>> s, a, r = torch.zeros(2, 6, 3), torch.zeros(2, 5, 1), torch.ones(2, 5)
        >>> loss = latent_consistency_loss(model, model, s, a, r, weights=(0.0, 1.0, 0.0))
        >>> loss.total.item()  # 1 + 1/2 + 1/4 + 1/8 + 1/16: rewards are predicted as 0
        1.9375

    References:
        Hansen, Wang, Su (2022), arXiv 2203.04955, equations 8 to 11; the mean over coordinates and
        the noise are those of their code.
    """
    check_floating("rewards", rewards)
    check_shape("observations", check_floating("observations", observations), (None, model.sizes[0]))
    check_shape("actions", check_floating("actions", actions), (None, model.sizes[1]))
    check_same_dtype(observations=observations, actions=actions, rewards=rewards)
    if rewards.ndim < 1 or not rewards.shape[-1]:
        raise ValueError(f"rewards must have shape [*batch, steps] with a step or more, got {tuple(rewards.shape)}")
    *batch, steps = rewards.shape
    for name, value, length in (("observations", observations, steps + 1), ("actions", actions, steps)):
        if value.shape[:-1] != (*batch, length):
            raise ValueError(f"{name} must have shape {(*batch, length, value.shape[-1])}, got {tuple(value.shape)}")
    check_positive("decay", decay)
    check_range("decay", decay, 0, 1)
    check_range("discount", discount, 0, 1)
    check_positive("noise", noise, zero=True)
    if len(weights) != 3:
        raise ValueError(f"weights must be three numbers, of latent, reward and value, got {weights}")
    for weight in weights:
        check_positive("weights", weight, zero=True)
    if importance is not None and check_floating("importance", importance).shape != rewards.shape[:-1]:
        raise ValueError(f"importance must have shape {tuple(batch)}, got {tuple(importance.shape)}")

    observed, acted, rewards = observations.movedim(-2, 0), actions.movedim(-2, 0), rewards.movedim(-1, 0)
    later, rewards = observed[1:].detach(), rewards.detach()
    unrolled = [model.encode(observed[0])]
    for action in acted:
        unrolled.append(model.transition(torch.cat([unrolled[-1], action], -1)))
    latents = torch.stack(unrolled)
    each, priority = torch.zeros_like(latents[1:, ..., 0]), torch.zeros_like(latents[0, ..., 0]).detach()
    if weights[0]:
        with torch.no_grad():
            wanted = target.encode(later)
        each = each + weights[0] * (latents[1:] - wanted.detach()).square().mean(-1)
    if weights[1]:
        predicted = _present(model.reward, "reward")(torch.cat([latents[:-1], acted], -1))[..., 0]
        each = each + weights[1] * (predicted - rewards).square()
    if weights[2]:
        with torch.no_grad():
            seen = model.encode(later)
            bootstrap = target.values(seen, model.act(seen, noise, generator=generator))
            going = torch.zeros_like(rewards, dtype=torch.bool)
            returns = double_q_target(rewards, -bootstrap, bootstrap, going, discount=discount)  # the smaller one's
        errors = model.values(latents[:-1], acted) - returns.detach()[..., None]
        each, priority = each + weights[2] * errors.square().sum(-1), errors.detach().abs().sum((0, -1))
    fading = decay ** torch.arange(steps, dtype=each.dtype, device=each.device)
    each = (fading.view(-1, *[1] * len(batch)) * each).sum(0)
    total = (each if importance is None else importance * each).mean() * (model.replicates or 1)
    return ConsistencyLoss(total, each, priority, latents)


def latent_policy_loss(
    model: LatentWorldModel,
    latents: Float[Tensor, "steps *batch latent"],
    *,
    decay: float = 0.5,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Return :math:`-\sum_t \rho^t \min_j Q_j(z_t, \pi(z_t))`: its gradient moves the policy alone.

    Args:
        model: with value and policy.
        latents: z, ``[steps, *batch, latent]``, such as those of :func:`latent_consistency_loss`; they are held fixed.
        decay: rho in (0, 1].
        noise: standard deviation >= 0 of what is added to its actions, as :func:`truncated_normal` draws it.
        generator: of this noise.

    Returns:
        ``[*batch]``.

    Raises:
        ValueError: shapes do not fit, a number is out of range, or a head is missing.

    Example:
        >>> model = LatentWorldModel(3, 1, latent=4, hidden=8)
        >>> latent_policy_loss(model, torch.randn(6, 2, 4)).mean().backward()
        >>> [name for name, p in model.named_parameters() if p.grad is not None][:1]
        ['policy.0.weight']

    References:
        Hansen, Wang, Su (2022), arXiv 2203.04955, equation 12.
    """
    if check_floating("latents", latents).ndim < 2 or not len(latents):
        raise ValueError(f"latents must have shape [steps, *batch, latent], got {tuple(latents.shape)}")
    check_positive("decay", decay)
    check_range("decay", decay, 0, 1)
    check_positive("noise", noise, zero=True)
    z = latents.detach()
    values = model.values(z, model.act(z, noise, generator=generator), frozen=True).amin(-1)
    fading = decay ** torch.arange(len(z), dtype=z.dtype, device=z.device)
    return -(fading.view(-1, *[1] * (values.ndim - 1)) * values).sum(0)


@torch.no_grad()
def update_average(target: nn.Module, source: nn.Module, *, decay: float) -> None:
    r"""Let a copy of a module follow it: :math:`\bar\theta \leftarrow \tau\bar\theta + (1 - \tau)\theta`.

    Buffers are copied as they are. Beside an optimizer, :class:`pullback.optim.IterateAverage` keeps an average of
    parameters to put in their place; this one lives in a module that is called at every step.

    Args:
        target: changed in place.
        source: of the same structure.
        decay: tau in [0, 1]: 0 copies.

    Raises:
        ValueError: a decay out of range, or modules of different structure.

    Example:
        >>> fast, slow = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = fast.weight.data.fill_(1.0), slow.weight.data.fill_(0.0)
        >>> update_average(slow, fast, decay=0.9)
        >>> round(slow.weight.item(), 6)
        0.1

    References:
        Polyak, Juditsky (1992), Acceleration of stochastic approximation by averaging; Lillicrap et al. (2016),
        Continuous control with deep reinforcement learning, arXiv 1509.02971, algorithm 1.
    """
    check_range("decay", decay, 0, 1)
    slow, fast = dict(target.named_parameters()), dict(source.named_parameters())
    kept, given = dict(target.named_buffers()), dict(source.named_buffers())
    held, found = ({n: value.shape for n, value in m.state_dict(keep_vars=True).items()} for m in (target, source))
    if held != found:
        raise ValueError("target and source must have parameters and buffers of the same names and shapes")
    if slow and decay == 0:  # zero times what is not finite would stay
        torch._foreach_copy_(list(slow.values()), list(fast.values()))
    elif slow:  # not torch._foreach_lerp_: it rounds the weight to single precision
        torch._foreach_mul_(list(slow.values()), decay)
        torch._foreach_add_(list(slow.values()), list(fast.values()), alpha=1 - decay)
    for name, buffer in kept.items():
        buffer.copy_(given[name])


def truncated_normal(
    mean: Float[Tensor, "*batch m"],
    std: float,
    clip: float | None = 0.3,
    *,
    limit: float = 1.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch m"]:
    r"""Draw actions around a mean: noise cut to ``clip``, the sum cut to the bounds, and the gradient of neither cut.

    .. math:: a = \mathrm{clamp}(\mu + \mathrm{clamp}(\sigma\epsilon, -c, c), -L, L), \qquad
              \frac{\partial a}{\partial\mu} := 1

    Args:
        mean: mu.
        std: sigma >= 0.
        clip: c > 0, or ``None`` for no bound of the noise.
        limit: L > 0.
        generator: of the noise.

    Returns:
        In the shape of ``mean``; the derivative by it is the identity.

    Raises:
        TypeError: the mean is not floating.
        ValueError: a number out of range.

    Example:
        >>> mean = torch.tensor([0.0, 0.9], requires_grad=True)
        >>> drawn = truncated_normal(mean, 5.0, generator=torch.Generator().manual_seed(0))
        >>> drawn.sum().backward()
        >>> drawn.tolist(), mean.grad.tolist()
        ([0.30000001192092896, 0.5999999642372131], [1.0, 1.0])

    References:
        Yarats, Fergus, Lazaric, Pinto (2021), Mastering visual continuous control, arXiv 2107.09645, section 3.1.
    """
    check_floating("mean", mean)
    check_positive("std", std, zero=True)
    check_positive("limit", limit)
    device = drawing_device(generator, mean)
    noise = std * torch.randn(mean.shape, generator=generator, device=device, dtype=torch.float32).to(mean)
    if clip is not None:
        check_positive("clip", clip)
        noise = noise.clamp(-clip, clip)
    moved = mean + noise
    return replace_gradient(moved.clamp(-limit, limit), moved)


class _Stacked(nn.Module):
    """Perceptrons of one shape side by side: ``heads`` of them for every input, of each replicate."""

    def __init__(self, replicates: int | None, heads: int, sizes: tuple[int, ...], *, zero: bool = False) -> None:
        super().__init__()
        self.replicates, self.heads, count = replicates, heads, heads * (replicates or 1)
        pairs = list(pairwise(sizes))
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairs:
            drawn = torch.stack([nn.init.orthogonal_(torch.empty(inputs, outputs)) for _ in range(count)])
            self.weights.append(drawn)
            self.biases.append(torch.zeros(count, 1, outputs))
        if zero:
            nn.init.zeros_(self.weights[-1])

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """``[*batch, heads, outputs]``; with replicates ``[*batch, replicates, heads, outputs]``."""
        *batch, inputs = x.shape
        own = self.replicates or 1
        rows = math.prod(batch) // own
        found = x.reshape(rows, own, inputs).transpose(0, 1)
        found = found[:, None].expand(own, self.heads, rows, inputs).reshape(own * self.heads, rows, inputs)
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            found = F.elu(found) if place else found
            found = (
                torch.baddbmm(bias.detach(), found, weight.detach()) if frozen else torch.baddbmm(bias, found, weight)
            )
        outputs = found.shape[-1]
        return found.view(own, self.heads, rows, outputs).permute(2, 0, 1, 3).reshape(*batch, self.heads, outputs)


class _Side(_Stacked):
    """One perceptron for each replicate."""

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """``[*batch, replicates, outputs]``."""
        return super().forward(x, frozen)[..., 0, :]


def _perceptron(replicates: int | None, *sizes: int, zero: bool = False) -> nn.Module:
    """ELU between linear layers that start orthogonal, the last at zero where that is asked for."""
    if replicates is not None:
        return _Side(replicates, 1, sizes, zero=zero)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layer = nn.Linear(inputs, outputs)
        nn.init.orthogonal_(layer.weight)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ELU()]
    if zero:
        nn.init.zeros_(layer.weight)
    return nn.Sequential(*layers[:-1])


def _present(head: nn.Module | None, name: str) -> nn.Module:
    if head is None:
        raise ValueError(f"this model has no {name}: heads must hold {name!r}")
    return head
