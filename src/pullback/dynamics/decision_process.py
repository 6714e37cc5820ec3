"""Decision processes that fit in a table: the truth beside which value learning is measured."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from pullback.core.checks import check_broadcast, check_floating, check_integer, check_positive, check_same_dtype
from pullback.core.errors import ConvergenceError
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Int, Scalar, Shaped, Tensor
from pullback.core.transforms import can_look
from pullback.dynamics.markov import MarkovChain, check_discount, check_laws

__all__ = ["MarkovDecisionProcess", "OptimalValues", "Transitions", "empirical_process"]


class Transitions(NamedTuple):
    """What was seen of a decision process: one entry a step, any leading dimensions.

    Attributes:
        state: ``[*n]`` numbers of states, or ``[*n, d]`` features of them.
        action: ``[*n]`` numbers of actions.
        reward: ``[*n]``, or ``[*n, h]`` of several tasks.
        next_state: as ``state``.
        done: ``[*n]`` whether the episode ended with this step: nothing comes after ``next_state``.
    """

    state: Shaped[Tensor, "..."]
    action: Int[Tensor, "*n"]
    reward: Float[Tensor, "..."]
    next_state: Shaped[Tensor, "..."]
    done: Bool[Tensor, "*n"]


class OptimalValues(NamedTuple):
    """What :meth:`MarkovDecisionProcess.optimal` returns.

    Attributes:
        values: ``[*batch, states]``, of the best policy.
        action_values: ``[*batch, states, actions]``, of an action with the best policy after it.
        policy: ``[*batch, states]`` a best action in each state.
        iterations: sweeps over all states.
    """

    values: Float[Tensor, "*batch states"]
    action_values: Float[Tensor, "*batch states actions"]
    policy: Int[Tensor, "*batch states"]
    iterations: int


@dataclass(frozen=True)
class MarkovDecisionProcess:
    r"""Finitely many states and actions: the truth beside which value learning is measured.

    Args:
        transition: ``[*batch, states, actions, states]``, laws of the next state.
        reward: ``[*batch, states, actions]``, expected on taking an action.
        discount: gamma in [0, 1]; with 1 every policy has to end where nothing is earned, or its value there is 0.

    A policy is a law ``[*batch, states, actions]``, or the number of an action in each state ``[*batch, states]``.

    Raises:
        TypeError: a tensor of another kind, a discount that is no number.
        ValueError: shapes that do not fit, a row that is no law, a discount out of range.

    Example:
        >>> transition = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])  # stay or change
        >>> process = MarkovDecisionProcess(transition, torch.tensor([[0.0, 0.0], [0.0, 1.0]]), 0.5)
        >>> best = process.optimal()
        >>> best.values.tolist(), best.policy.tolist()
        ([1.0, 2.0], [1, 1])
        >>> process.evaluate(torch.full((2, 2), 0.5)).tolist()
        [0.25, 0.75]

    References:
        Puterman (1994), Markov decision processes, chapters 6 and 7.
    """

    transition: Float[Tensor, "*#batch states actions states"]
    reward: Float[Tensor, "*#batch states actions"]
    discount: Scalar = 0.9

    def __post_init__(self) -> None:
        p, r = check_floating("transition", self.transition), check_floating("reward", self.reward)
        check_same_dtype(transition=p, reward=r)
        if p.ndim < 3 or p.shape[-1] != p.shape[-3] or not p.shape[-1] or not p.shape[-2]:
            raise ValueError(f"transition must have shape (..., states, actions, states), got {tuple(p.shape)}")
        if r.ndim < 2 or r.shape[-2:] != p.shape[-3:-1]:
            raise ValueError(f"reward must have shape (..., {p.shape[-3]}, {p.shape[-2]}), got {tuple(r.shape)}")
        check_broadcast(transition=p.shape[:-3], reward=r.shape[:-2])
        check_laws("transition", p)
        check_discount(self.discount)

    def chain(self, policy: Shaped[Tensor, "..."]) -> MarkovChain:
        """Return the chain of states under a policy.

        Raises:
            ValueError: ``policy`` has another shape, or is no law.
        """
        return MarkovChain(torch.einsum("...sa,...sat->...st", self.laws(policy), self.transition), self.discount)

    def evaluate(self, policy: Shaped[Tensor, "..."]) -> Float[Tensor, "*batch states"]:
        """Return the values of a policy, exactly: a linear solve, with a gradient for all it depends on.

        Raises:
            ValueError: ``policy`` has another shape, or is no law; the discount is 1 and the policy earns for ever.
        """
        rewards = (self.laws(policy) * self.reward).sum(-1, keepdim=True)
        return self.chain(policy).values(rewards)[..., 0]

    def action_values(self, values: Float[Tensor, "*#batch states"]) -> Float[Tensor, "*batch states actions"]:
        """Return ``Q(s, a) = R(s, a) + gamma sum_t P(t | s, a) V(t)``."""
        return self.reward + self.discount * torch.einsum("...sat,...t->...sa", self.transition, values)

    def stationary(self, policy: Shaped[Tensor, "..."]) -> Float[Tensor, "*batch states"]:
        """Return how often each state is visited in the long run.

        Raises:
            ValueError: that depends on the start.
        """
        return self.chain(policy).stationary()

    def is_reversible(self, policy: Shaped[Tensor, "..."]) -> Bool[Tensor, "*batch"]:
        """Return whether the chain of a policy is reversible."""
        return self.chain(policy).is_reversible()

    def optimal(self, *, tolerance: float = 1e-10, max_iterations: int = 100_000) -> OptimalValues:
        r"""Return the best values and a policy that has them.

        Value iteration from 0 finds the policy; its values are then solved for, and carry the gradient (that of the
        best policy is the gradient of the best value). With a discount of 1 rewards of one sign have the limit of
        value iteration from 0 as their answer: the most that is earned, the least that is paid.

        Args:
            tolerance: of the policy's values, as a part of the largest one; in single precision 1e-5 is enough.
            max_iterations: >= 1.

        Raises:
            ConvergenceError: it takes more iterations, or the policy does not have the values that were found.
            ValueError: an option is out of range.
        """
        check_positive("tolerance", tolerance)
        check_integer("max_iterations", max_iterations, 1)
        fixed = MarkovDecisionProcess(self.transition.detach(), self.reward.detach(), _detached(self.discount))
        batch = torch.broadcast_shapes(fixed.transition.shape[:-3], fixed.reward.shape[:-2])
        values = fixed.reward.new_zeros(*batch, fixed.reward.shape[-2])
        policy = torch.zeros_like(values, dtype=torch.int64)
        rounding = 10 * torch.finfo(values.dtype).eps
        for iterations in itertools.count(1):
            action_values = fixed.action_values(values)
            best, greedy = action_values.max(-1)
            scale = best.abs().amax().clamp_min(torch.finfo(values.dtype).tiny)
            # an action is taken up where it earns more: staying for ever never does, at a discount of 1
            policy = torch.where(best > values + rounding * scale, greedy, policy)
            change, values = float((best - values).abs().amax()), best
            if change <= max(0.01 * tolerance, rounding) * float(scale):
                break
            if iterations == max_iterations:
                raise ConvergenceError(
                    f"value iteration still changes by {change:.3g} after {max_iterations} iterations",
                    OptimalValues(values, action_values, greedy, iterations),
                )
        for candidate in (greedy, policy):
            found = self.evaluate(candidate)
            if bool(((found - values).abs() <= max(100 * tolerance, 1e3 * rounding) * scale).all()):
                return OptimalValues(found, self.action_values(found), candidate, iterations)
        raise ConvergenceError(
            "no single policy has the values of value iteration: at a discount of 1 rewards need one sign",
            OptimalValues(values, action_values, greedy, iterations),
        )

    def sample(
        self,
        policy: Shaped[Tensor, "..."],
        episodes: int,
        *,
        steps: int,
        start: Float[Tensor, "states"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Transitions:
        """Return the transitions of episodes, which end in a state that cannot be left, or after ``steps``.

        Args:
            policy: whose actions are taken.
            episodes: >= 1.
            steps: the most of an episode, >= 1.
            start: law of the first state; by default equal for all states that can be left.
            generator: source of the draws.

        Returns:
            :class:`Transitions` of numbers of states, step by step: first the first ones of all episodes. ``done``
            where the next state cannot be left.

        Raises:
            ValueError: the process has batch dimensions, no state can be left, an option is out of range.
        """
        p = self.transition.detach()
        if p.ndim != 3:
            raise ValueError(f"transition must have no batch dimensions to sample from it, got {tuple(p.shape)}")
        check_integer("episodes", episodes, 1)
        check_integer("steps", steps, 1)
        states = len(p)
        ends = (torch.diagonal(p.amin(1)) == 1).to(p.device)
        law = (~ends).to(p.dtype) if start is None else check_floating("start", start)
        if law.shape != (states,) or not bool((law >= 0).all()) or not float(law.sum()) > 0:
            raise ValueError(f"start must be a law over {states} states, some of which can be left")
        choose, move = self.laws(policy).detach().cumsum(-1), p.cumsum(-1)
        device = drawing_device(generator, p)

        def draw(cumulated: Tensor) -> Tensor:
            u = torch.rand(len(cumulated), 1, generator=generator, device=device, dtype=p.dtype).to(p.device)
            found = torch.searchsorted(cumulated, u * cumulated[:, -1:], right=True)[:, 0]
            return found.minimum(
                (cumulated < cumulated[:, -1:]).sum(-1)
            )  # the last with a chance, if rounding passes it

        state = draw(law.cumsum(0).expand(episodes, -1).contiguous())
        seen: list[tuple[Tensor, ...]] = []
        for _ in range(steps):
            state = state[~ends[state]]
            if not len(state):
                break
            action = draw(choose[state])
            there = draw(move[state, action])
            seen.append((state, action, self.reward[state, action], there, ends[there]))
            state = there
        if not seen:
            raise ValueError("start must have a state that can be left")
        return Transitions(*(torch.cat(parts) for parts in zip(*seen, strict=True)))

    def laws(self, policy: Any) -> Float[Tensor, "*batch states actions"]:
        """Return the laws of a policy, one that is numbers of actions too.

        Raises:
            TypeError: ``policy`` is no tensor.
            ValueError: it has another shape, an action that is not there, or is no law.
        """
        if not isinstance(policy, Tensor):
            raise TypeError(f"policy must be a torch.Tensor, got {type(policy).__name__}")
        states, actions = self.reward.shape[-2:]
        if not policy.is_floating_point():
            if policy.ndim < 1 or policy.shape[-1] != states:
                raise ValueError(f"policy must have shape (..., {states}) of actions, got {tuple(policy.shape)}")
            if can_look(policy) and bool(((policy < 0) | (policy >= actions)).any()):
                raise ValueError(f"policy must hold actions in 0..{actions - 1}, got {policy.min()}..{policy.max()}")
            return torch.nn.functional.one_hot(policy.long(), actions).to(self.reward.dtype)
        if policy.ndim < 2 or policy.shape[-2:] != (states, actions):
            raise ValueError(f"policy must have shape (..., {states}, {actions}), got {tuple(policy.shape)}")
        check_same_dtype(transition=self.transition, policy=policy)
        check_broadcast(policy=policy.shape[:-2], reward=self.reward.shape[:-2])
        check_laws("policy", policy)
        return policy


def empirical_process(
    seen: Transitions, states: int, actions: int, *, discount: Scalar = 1.0, dtype: torch.dtype = torch.float64
) -> MarkovDecisionProcess:
    """Return the process in which everything happens as often as it was seen.

    Args:
        seen: transitions between numbers of states, with one reward each, any leading shape.
        states: number of states, >= 1.
        actions: number of actions, >= 1.
        discount: in [0, 1].
        dtype: floating type of the process.

    Returns:
        :class:`MarkovDecisionProcess`, with the mean rewards. What was never tried stays where it is and earns 0.

    Raises:
        TypeError: states that are no numbers, an option of another kind.
        ValueError: a state or action that is not there, several rewards, an option out of range.

    Example:
        >>> one = torch.tensor([0, 0])
        >>> seen = Transitions(one, one, torch.tensor([1.0, 3.0]), torch.tensor([1, 0]), torch.tensor([True, False]))
        >>> process = empirical_process(seen, 2, 1)
        >>> process.transition[0, 0].tolist(), process.reward.flatten().tolist()
        ([0.5, 0.5], [2.0, 0.0])
    """
    check_integer("states", states, 1)
    check_integer("actions", actions, 1)
    for name, value, count in (
        ("state", seen.state, states),
        ("action", seen.action, actions),
        ("next_state", seen.next_state, states),
    ):
        if value.is_floating_point():
            raise TypeError(f"{name} must hold numbers of states or actions, got {value.dtype}")
        if value.shape != seen.action.shape:
            raise ValueError(f"{name} must have shape {tuple(seen.action.shape)}, got {tuple(value.shape)}")
        if value.numel() and bool(((value < 0) | (value >= count)).any()):
            raise ValueError(f"{name} must be in 0..{count - 1}, got {value.min()}..{value.max()}")
    if seen.reward.shape != seen.action.shape:
        raise ValueError(f"reward must have shape {tuple(seen.action.shape)}, got {tuple(seen.reward.shape)}")
    state, action, following = (x.flatten().long() for x in (seen.state, seen.action, seen.next_state))
    counts = torch.zeros(states, actions, states, dtype=dtype, device=state.device)
    counts.index_put_((state, action, following), counts.new_ones(()), accumulate=True)
    earned = torch.zeros(states, actions, dtype=dtype, device=state.device)
    earned.index_put_((state, action), seen.reward.flatten().to(dtype), accumulate=True)
    total = counts.sum(-1)
    stay = torch.eye(states, dtype=dtype, device=state.device)[:, None].expand_as(counts)
    transition = torch.where(total[..., None] > 0, counts / total.clamp_min(1)[..., None], stay)
    return MarkovDecisionProcess(transition, earned / total.clamp_min(1), discount)


def _detached(discount: Scalar) -> Scalar:
    return discount.detach() if isinstance(discount, Tensor) else discount
