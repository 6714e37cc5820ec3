"""Dead-ends: states from which every treatment leads to the bad end, learned from recorded treatments."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import smooth_l1_loss

from pullback.core.checks import (
    check_broadcast,
    check_floating,
    check_integer,
    check_positive,
    check_range,
    check_same_dtype,
    check_scalar,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.dynamics.decision_process import Transitions

__all__ = ["DeadEndValues", "SecurityGap", "avoid_dead_ends", "double_q_target", "security_gap"]


def double_q_target(
    reward: Float[Tensor, "*batch"],
    next_q: Float[Tensor, "*batch actions"],
    next_q_target: Float[Tensor, "*batch actions"],
    done: Bool[Tensor, "*batch"],
    *,
    discount: Scalar = 1.0,
    bounds: tuple[float, float] | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Return what a double Q network is to predict: :math:`r+\gamma\,\bar Q(s',\arg\max_aQ(s',a))`, 0 after an end.

    The action is chosen by one network and valued by its older copy. With ``bounds`` (low, high) reward and bootstrap
    are cut to them: where values are known to lie there, errors of the copy cannot grow by being bootstrapped.

    Args:
        reward: r, ``[*batch]``.
        next_q: Q in the next state, ``[*batch, actions]``, which chooses.
        next_q_target: its older copy, ``[*batch, actions]``, which values.
        done: ``[*batch]`` whether the episode ended.
        discount: gamma in [0, 1].
        bounds: of reward and value, or ``None``.

    Returns:
        ``[*batch]``, without gradient for the choice.

    Raises:
        TypeError: a tensor of another kind.
        ValueError: shapes that do not fit, a discount out of range, bounds the wrong way round.

    Example:
        >>> choosing, valuing = torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, 3.0]])
        >>> never = torch.tensor([False])
        >>> double_q_target(torch.tensor([0.5]), choosing, valuing, never, discount=0.5).tolist()
        [2.0]
        >>> double_q_target(torch.tensor([0.0]), choosing, valuing, never, bounds=(0.0, 1.0)).tolist()
        [1.0]

    References:
        van Hasselt, Guez, Silver (2016), Deep reinforcement learning with double Q-learning; Fatemi et al. (2021),
        arXiv 2110.04186, section 4.
    """
    check_same_dtype(reward=check_floating("reward", reward), next_q=check_floating("next_q", next_q))
    check_same_dtype(reward=reward, next_q_target=check_floating("next_q_target", next_q_target))
    for name, value in (("next_q", next_q), ("next_q_target", next_q_target)):
        if value.ndim < 1 or not value.shape[-1] or value.shape != next_q.shape:
            raise ValueError(f"{name} must have shape {(*reward.shape, next_q.shape[-1:])}, got {tuple(value.shape)}")
    if done.dtype != torch.bool:
        raise TypeError(f"done must be a tensor of torch.bool, got {done.dtype}")
    check_broadcast(reward=reward.shape, next_q=next_q.shape[:-1], done=done.shape)
    number = check_scalar("discount", discount, zero=True)
    if number is not None and number > 1:
        raise ValueError(f"discount must be in [0, 1], got {number}")
    following = next_q_target.gather(-1, next_q.argmax(-1, keepdim=True))[..., 0]
    if bounds is not None:
        low, high = bounds
        if not low < high:
            raise ValueError(f"bounds must be (low, high) with low < high, got {bounds}")
        reward, following = reward.clamp(low, high), following.clamp(low, high)
    return reward + discount * following.masked_fill(done, 0.0)


class DeadEndValues(nn.Module):
    r"""Two Q networks on the same records: how probable is the bad end at least, the good end at most?

    With discount 1, a reward of -1 for the bad end gives :math:`Q_D\in[-1,0]`, minus the least probability of that end
    after a treatment; a reward of +1 for the good end gives :math:`Q_R\in[0,1]`, the best probability of it. A state is
    a dead-end where both say so for all treatments. Values of the best treatment bound from above what was done, so no
    constraint to the recorded behaviour is needed; targets are those of :func:`double_q_target`, cut to these ranges.

    Args:
        states: features of a state, >= 1.
        actions: treatments, >= 1.
        hidden: units of the one hidden layer of each network; 0 for none, as for one-hot states.
        clip: cut targets to the ranges.
        generator: source of the initial weights, uniform in ``+-1 / sqrt(inputs)``.

    Raises:
        TypeError: an option of another kind.
        ValueError: an option out of range.

    Example:
        >>> values = DeadEndValues(4, 3, generator=torch.Generator().manual_seed(0))
        >>> values.q_death(torch.ones(7, 4)).shape, values.flags(torch.ones(7, 4)).dtype
        (torch.Size([7, 3]), torch.bool)

    References:
        Fatemi, Killian, Subramanian, Ghassemi (2021), Medical dead-ends and learning to identify high-risk states and
        treatments, arXiv 2110.04186.
    """

    def __init__(
        self,
        states: int,
        actions: int,
        *,
        hidden: int = 64,
        clip: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("states", states, 1)
        check_integer("actions", actions, 1)
        check_integer("hidden", hidden, 0)
        self.states, self.actions, self.clip = states, actions, clip
        sizes = (states, hidden, actions) if hidden else (states, actions)
        self.networks = nn.ModuleList([_network(sizes, generator) for _ in ("death", "recovery")])
        self.copies = nn.ModuleList([_network(sizes, None) for _ in ("death", "recovery")]).requires_grad_(False)
        self.update_copies()

    def q_death(self, states: Float[Tensor, "*batch states"]) -> Float[Tensor, "*batch actions"]:
        """Return minus the least probability of the bad end after each treatment."""
        return self._values(0, states)

    def q_recovery(self, states: Float[Tensor, "*batch states"]) -> Float[Tensor, "*batch actions"]:
        """Return the best probability of the good end after each treatment."""
        return self._values(1, states)

    def flags(
        self, states: Float[Tensor, "*batch states"], *, death: float = -0.25, recovery: float = 0.75
    ) -> Bool[Tensor, "*batch"]:
        """Return which states are at risk: the medians over treatments are at most ``death`` and ``recovery``.

        The defaults are the red flag of the paper; its yellow one is -0.15 and 0.85.

        Raises:
            ValueError: a threshold outside of [-1, 0] or [0, 1].
        """
        check_range("death", death, -1.0, 0.0)
        check_range("recovery", recovery, 0.0, 1.0)
        return (_median(self.q_death(states)) <= death) & (_median(self.q_recovery(states)) <= recovery)

    def loss(self, seen: Transitions) -> Float[Tensor, ""]:
        """Return the smooth L1 loss of both networks on transitions whose rewards are ``[n, 2]``: (-1 | 0, 1 | 0).

        Raises:
            ValueError: rewards of another shape or value, or where the episode goes on; an action that is not there.
        """
        actions = self.actions
        if seen.reward.shape != (*seen.action.shape, 2):
            raise ValueError(f"reward must have shape {(*seen.action.shape, 2)}, got {tuple(seen.reward.shape)}")
        if can_look(seen.reward):
            bad, good = seen.reward.detach().unbind(-1)
            if bool(((bad != 0) & (bad != -1) | (good != 0) & (good != 1)).any()):
                raise ValueError("reward must be -1 or 0 for the bad end and 1 or 0 for the good one")
            if bool((((bad != 0) | (good != 0)) & seen.done.logical_not()).any()):
                raise ValueError("reward must be 0 where done is False: -1 and 1 are ends")
            if bool(((seen.action < 0) | (seen.action >= actions)).any()):
                raise ValueError(f"action must be in 0..{actions - 1}, got {seen.action.min()}..{seen.action.max()}")
        total = seen.reward.new_zeros(())
        for side, bounds in enumerate(((-1.0, 0.0), (0.0, 1.0))):
            found = self._values(side, seen.state).gather(-1, seen.action[..., None])[..., 0]
            with torch.no_grad():
                choosing, valuing = self.networks[side](seen.next_state), self.copies[side](seen.next_state)
                target = double_q_target(
                    seen.reward[..., side], choosing, valuing, seen.done, bounds=bounds if self.clip else None
                )
            total = total + smooth_l1_loss(found, target)
        return total

    @torch.no_grad()
    def update_copies(self) -> None:
        """Let the older copies be what the networks are now."""
        self.copies.load_state_dict(self.networks.state_dict())

    def _values(self, side: int, states: Tensor) -> Tensor:
        if check_floating("states", states).shape[-1:] != (self.states,):
            raise ValueError(f"states must have shape (..., {self.states}), got {tuple(states.shape)}")
        found: Tensor = self.networks[side](states)
        return found


def _network(sizes: tuple[int, ...], generator: torch.Generator | None) -> nn.Sequential:
    layers: list[nn.Module] = []
    device = drawing_device(generator, torch.device("cpu"))
    for inputs, outputs in pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
        for p in layer.parameters():
            drawn = torch.rand(p.shape, generator=generator, device=device)
            p.data = ((2 * drawn - 1) * inputs**-0.5).cpu()
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _median(values: Tensor) -> Tensor:
    """The mean of the two middle ones where their number is even."""
    ordered, count = values.sort(-1).values, values.shape[-1]
    return ordered[..., (count - 1) // 2 : count // 2 + 1].mean(-1)


def avoid_dead_ends(
    policy: Float[Tensor, "*#batch actions"], q_death: Float[Tensor, "*#batch actions"], *, slack: float = 0.02
) -> Float[Tensor, "*batch actions"]:
    r"""Keep of a policy the treatments with nearly the least risk: :math:`Q_D(s,a)\ge\max_bQ_D(s,b)-\text{slack}`.

    What is left is scaled to a law; where nothing is left, the treatments that may stay get equal parts. To cap a
    policy at 1 + Q_D and spread the rest satisfies the theorem of security and can raise the risk; this lowers it.

    Args:
        policy: ``[*batch, actions]`` laws.
        q_death: ``[*batch, actions]``, minus the least probability of the bad end.
        slack: >= 0, how much risk more than the least is accepted.

    Returns:
        ``[*batch, actions]`` laws, differentiable in the policy.

    Raises:
        TypeError: a tensor of another kind.
        ValueError: shapes that do not fit, a slack < 0.

    Example:
        >>> risk = torch.tensor([[-0.9, -0.1, -0.11]])
        >>> avoid_dead_ends(torch.tensor([[0.5, 0.25, 0.25]]), risk).tolist()
        [[0.0, 0.5, 0.5]]

    References:
        Fatemi et al. (2021), arXiv 2110.04186, theorem 1 (security); Fatemi, Sharma, van Seijen, Kahou (2019),
        Dead-ends and secure exploration in reinforcement learning.
    """
    _check_pair(policy, q_death)
    check_positive("slack", slack, zero=True)
    allowed = q_death >= q_death.amax(-1, keepdim=True) - slack
    kept = torch.where(allowed, policy, 0.0)
    total = kept.sum(-1, keepdim=True)
    some = total > 0
    equal = allowed.to(policy.dtype) / allowed.sum(-1, keepdim=True)
    return torch.where(some, kept / torch.where(some, total, 1.0), equal)


class SecurityGap(NamedTuple):
    """What :func:`security_gap` returns.

    Attributes:
        gap: ``[*batch]`` by how much a treatment is chosen more often than allowed; at most 0 where a policy is secure.
        infeasible: ``[*batch]`` whether no policy is secure in that state.
    """

    gap: Float[Tensor, "*batch"]
    infeasible: Bool[Tensor, "*batch"]


def security_gap(policy: Float[Tensor, "*#batch actions"], q_death: Float[Tensor, "*#batch actions"]) -> SecurityGap:
    r"""Return how far a policy is from being secure: :math:`\max_a\,\pi(a|s)-(1+Q_D(s,a))`.

    A policy is secure if a treatment that leads to a dead-end or to death with probability at least :math:`\lambda` is
    chosen with probability at most :math:`1-\lambda`; any with :math:`\pi(a|s)\le1+Q_D(s,a)` is. Where these caps sum
    to less than 1 there is no such law.

    Args:
        policy: ``[*batch, actions]`` laws.
        q_death: ``[*batch, actions]`` in [-1, 0].

    Returns:
        :class:`SecurityGap`.

    Raises:
        TypeError: a tensor of another kind.
        ValueError: shapes that do not fit.

    Example:
        >>> found = security_gap(torch.tensor([[0.75, 0.25]]), torch.tensor([[-0.5, 0.0]]))
        >>> found.gap.tolist(), found.infeasible.tolist()
        ([0.25], [False])

    References:
        Fatemi et al. (2021), arXiv 2110.04186, theorem 1.
    """
    _check_pair(policy, q_death)
    caps = 1 + q_death
    return SecurityGap((policy - caps).amax(-1), caps.sum(-1) < 1)


def _check_pair(policy: Tensor, q_death: Tensor) -> None:
    check_same_dtype(policy=check_floating("policy", policy), q_death=check_floating("q_death", q_death))
    if policy.ndim < 1 or q_death.ndim < 1 or policy.shape[-1] != q_death.shape[-1] or not policy.shape[-1]:
        raise ValueError(
            f"q_death must have as many actions as policy, {tuple(policy.shape)}, got {tuple(q_death.shape)}"
        )
    check_broadcast(policy=policy.shape, q_death=q_death.shape)
