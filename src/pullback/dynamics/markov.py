"""Markov chains and decision processes that fit in a table, with their exact values."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from pullback.core.checks import (
    check_broadcast,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_scalar,
)
from pullback.core.errors import ConvergenceError
from pullback.core.numerics import solve
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Int, Scalar, Shaped, Tensor
from pullback.core.transforms import can_look

__all__ = ["MarkovChain", "MarkovDecisionProcess", "OptimalValues", "Transitions", "metropolis_walk"]


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
class MarkovChain:
    r"""A chain of finitely many states, ``P[i, j]`` the probability of going from i to j, and a discount.

    Args:
        transition: P, ``[*batch, states, states]``, rows of numbers >= 0 that sum to 1.
        discount: gamma in [0, 1], a number or a tensor without dimensions.

    Raises:
        TypeError: ``transition`` is no floating tensor, ``discount`` no number.
        ValueError: ``transition`` is not square, a row is no law, ``discount`` is out of range.

    Example:
        >>> chain = MarkovChain(torch.tensor([[0.5, 0.5], [0.25, 0.75]]), 0.5)
        >>> [round(p, 4) for p in chain.stationary().tolist()]
        [0.3333, 0.6667]
        >>> chain.values(torch.ones(2, 1)).flatten().tolist()  # 1 + 1/2 + 1/4 + ...
        [2.0, 2.0]

    References:
        Puterman (1994), Markov decision processes, chapter 5 and appendix A.
    """

    transition: Float[Tensor, "*batch states states"]
    discount: Scalar = 0.9

    def __post_init__(self) -> None:
        p = check_floating("transition", self.transition)
        if p.ndim < 2 or p.shape[-1] != p.shape[-2] or not p.shape[-1]:
            raise ValueError(f"transition must have shape (..., states, states), got {tuple(p.shape)}")
        _check_laws("transition", p)
        _check_discount(self.discount)

    def values(self, rewards: Float[Tensor, "*#batch states h"]) -> Float[Tensor, "*batch states h"]:
        r"""Return the expected discounted sums of rewards: the solution of :math:`V = R + \gamma P V`.

        With a discount of 1 the states that are returned to for ever have the value 0.

        Args:
            rewards: R, ``[*batch, states, h]``, on leaving a state, of h tasks.

        Raises:
            ValueError: ``rewards`` has another shape; the discount is 1 and a state that is returned to for ever has
                a reward.
        """
        p = self.transition
        check_same_dtype(transition=p, rewards=check_floating("rewards", rewards))
        if rewards.ndim < 2 or rewards.shape[-2] != p.shape[-1]:
            raise ValueError(f"rewards must have shape (..., {p.shape[-1]}, h), got {tuple(rewards.shape)}")
        check_broadcast(transition=p.shape[:-2], rewards=rewards.shape[:-2])
        if not _is_one(self.discount):
            return solve(torch.eye(p.shape[-1], dtype=p.dtype, device=p.device) - self.discount * p, rewards)
        for_ever = self._recurrent()
        if can_look(rewards) and bool((for_ever[..., None] & (rewards != 0)).any()):
            raise ValueError("rewards must be 0 in states that are returned to for ever where the discount is 1")
        passed = (~for_ever)[..., None]
        matrix = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device) - p * passed * passed.mT
        return solve(matrix, rewards * passed)

    def stationary(self) -> Float[Tensor, "*batch states"]:
        """Return the law d with ``d P = d``.

        Raises:
            ValueError: there are several: the chain has states that do not lead to each other for ever.
        """
        p = self.transition
        if can_look(p):
            reach, for_ever = _reach(p.detach()), self._recurrent()
            apart = for_ever[..., :, None] & for_ever[..., None, :] & ~reach
            if bool(apart.any()):
                *_, i, j = apart.nonzero()[0].tolist()
                raise ValueError(f"the chain has several stationary laws: state {i} never leads to state {j}")
        size = p.shape[-1]
        matrix = torch.eye(size, dtype=p.dtype, device=p.device) - p.mT + 1 / size
        law = solve(matrix, p.new_full((size, 1), 1 / size))[..., 0]
        return law + (law.clamp_min(0) - law).detach()  # what rounding leaves below 0 still has its gradient

    def is_reversible(self, tolerance: float = 1e-6) -> Bool[Tensor, "*batch"]:
        """Return whether ``d_i P_ij = d_j P_ji``, up to a part ``tolerance`` of the largest flow.

        Raises:
            ValueError: the stationary law is not unique.
        """
        check_positive("tolerance", tolerance)
        wide = self.transition.detach().double()
        flow = MarkovChain(wide, 0.0).stationary()[..., :, None] * wide
        return (flow - flow.mT).abs().amax((-1, -2)) <= tolerance * flow.abs().amax((-1, -2))

    def _recurrent(self) -> Tensor:
        """``[*batch, states]`` whether a state is returned to for ever: all that it leads to leads back."""
        reach = _reach(self.transition.detach())
        return (~reach | reach.mT).all(-1)


def metropolis_walk(weights: Float[Tensor, "*batch n n"], discount: Scalar = 0.9) -> MarkovChain:
    r"""Return a walk along the edges of a graph that visits all its nodes equally often.

    :math:`P_{ij}=W_{ij}/\max(\sum_kW_{ik},\sum_kW_{jk})` for i other than j, and the rest is to stay: symmetric, so
    reversible with a uniform law.

    Args:
        weights: W, ``[*batch, n, n]`` >= 0 and symmetric; what stands on the diagonal is not used.
        discount: of the chain.

    Raises:
        TypeError: ``weights`` is no floating tensor.
        ValueError: ``weights`` is not square, not symmetric, negative somewhere, or a discount is out of range.

    Example:
        >>> star = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        >>> metropolis_walk(star).transition.tolist()
        [[0.0, 0.5, 0.5], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5]]

    References:
        Boyd, Diaconis, Xiao (2004), Fastest mixing Markov chain on a graph, section 1.2.
    """
    w = check_floating("weights", weights)
    if w.ndim < 2 or w.shape[-1] != w.shape[-2] or not w.shape[-1]:
        raise ValueError(f"weights must have shape (..., n, n), got {tuple(w.shape)}")
    if can_look(w):
        check_positive("weights", w.detach(), zero=True)
        if not bool(((w - w.mT).detach().abs() <= 1e-5 * w.detach().abs()).all()):
            raise ValueError("weights must be symmetric")
    eye = torch.eye(w.shape[-1], dtype=torch.bool, device=w.device)
    moves = w.masked_fill(eye, 0.0)
    degree = moves.sum(-1)
    most = torch.maximum(degree[..., :, None], degree[..., None, :])
    moves = moves / torch.where(most > 0, most, 1.0)  # a node without edges stays where it is
    return MarkovChain(moves + torch.diag_embed(1 - moves.sum(-1)).clamp_min(0.0), discount)


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
        _check_laws("transition", p)
        _check_discount(self.discount)

    def chain(self, policy: Shaped[Tensor, "..."]) -> MarkovChain:
        """Return the chain of states under a policy.

        Raises:
            ValueError: ``policy`` has another shape, or is no law.
        """
        return MarkovChain(torch.einsum("...sa,...sat->...st", self._laws(policy), self.transition), self.discount)

    def evaluate(self, policy: Shaped[Tensor, "..."]) -> Float[Tensor, "*batch states"]:
        """Return the values of a policy, exactly: a linear solve, with a gradient for all it depends on.

        Raises:
            ValueError: ``policy`` has another shape, or is no law; the discount is 1 and the policy earns for ever.
        """
        rewards = (self._laws(policy) * self.reward).sum(-1, keepdim=True)
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
        choose, move = self._laws(policy).detach().cumsum(-1), p.cumsum(-1)
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

    def _laws(self, policy: Any) -> Tensor:
        """The policy as ``[*batch, states, actions]``."""
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
        _check_laws("policy", policy)
        return policy


def _check_laws(name: str, rows: Tensor) -> None:
    if not can_look(rows):
        return
    slack = 8 * rows.shape[-1] ** 0.5 * torch.finfo(rows.dtype).eps
    plain = rows.detach()
    if not bool((plain >= 0).all()):
        raise ValueError(f"{name} must be >= 0 everywhere, got {plain.min().item()}")
    off = (plain.sum(-1, dtype=torch.promote_types(plain.dtype, torch.float32)) - 1).abs()
    if not bool((off <= slack + 1e-6).all()):
        raise ValueError(f"{name} must have rows that sum to 1, got one that is off by {off.max().item():.3g}")


def _check_discount(discount: Any) -> None:
    number = check_scalar("discount", discount, zero=True)
    if number is not None and number > 1:
        raise ValueError(f"discount must be in [0, 1], got {number}")


def _is_one(discount: Scalar) -> bool:
    return check_scalar("discount", discount, zero=True) == 1


def _detached(discount: Scalar) -> Scalar:
    return discount.detach() if isinstance(discount, Tensor) else discount


def _reach(transition: Tensor) -> Tensor:
    """``[*batch, states, states]`` whether a state leads to another in any number of steps, 0 included."""
    size = transition.shape[-1]
    reach = (transition > 0) | torch.eye(size, dtype=torch.bool, device=transition.device)
    for _ in range(math.ceil(math.log2(max(size, 2)))):
        reach = reach.float() @ reach.float() > 0
    return reach
