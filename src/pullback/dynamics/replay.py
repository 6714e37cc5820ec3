"""A memory of episodes from which short sequences are drawn, evenly or by how much there is to learn from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_finite, check_floating, check_integer, check_positive, check_range
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int

__all__ = ["ReplayBuffer", "Sequences"]


class Sequences(NamedTuple):
    """Sequences of L steps that were drawn.

    Attributes:
        observations: ``[batch, L + 1, o]``, before each step and after the last.
        actions: ``[batch, L, m]``.
        rewards: ``[batch, L]``.
        indices: ``[batch]`` where they start in the memory, as :meth:`ReplayBuffer.update` takes them.
        weights: ``[batch]`` of the loss of each, 1 for the rarest and where all are drawn evenly.
    """

    observations: Float[Tensor, "batch steps_plus_1 o"]
    actions: Float[Tensor, "batch steps m"]
    rewards: Float[Tensor, "batch steps"]
    indices: Int[Tensor, " batch"]
    weights: Float[Tensor, " batch"]


class ReplayBuffer:
    r"""Keeps the latest episodes and draws sequences of L steps that lie inside of one.

    With ``prioritized`` a sequence is drawn with probability :math:`P_i \propto p_i^\alpha`, and
    :math:`w_i = (N P_i)^{-\beta} / \max_j (N P_j)^{-\beta}` over the N that can be drawn corrects the loss for it. New
    ones have the largest priority that is known, so that each is soon seen.

    Args:
        capacity: observations kept, those after the last step of each episode included; the oldest make room.
        sequence: L >= 1.
        prioritized: draw by priority instead of evenly.
        alpha: how much priority counts, in [0, 1].
        beta: how much of the bias is corrected, in [0, 1].

    Raises:
        ValueError: a number out of range, or no room for one sequence.

    Example:
        >>> memory = ReplayBuffer(100, sequence=2)
        >>> time = torch.arange(5.0)
        >>> memory.add(time[:, None], torch.zeros(4, 1), time[1:])
        >>> drawn = memory.sample(2, generator=torch.Generator().manual_seed(0))
        >>> drawn.observations.diff(dim=1).unique(), bool((drawn.rewards == drawn.observations[:, 1:, 0]).all())
        (tensor([1.]), True)

    References:
        Schaul, Quan, Antonoglou, Silver (2016), Prioritized experience replay, arXiv 1511.05952, equations 1 and 2 of
        section 3; Hansen, Wang, Su (2022), arXiv 2203.04955, for sequences.
    """

    def __init__(
        self, capacity: int, *, sequence: int, prioritized: bool = False, alpha: float = 0.6, beta: float = 0.4
    ) -> None:
        self.sequence = check_integer("sequence", sequence, 1)
        self.capacity = check_integer("capacity", capacity, sequence + 1)
        check_range("alpha", alpha, 0, 1)
        check_range("beta", beta, 0, 1)
        self.prioritized, self.alpha, self.beta = prioritized, alpha, beta
        self._rows: dict[str, Tensor] = {}
        self._next = 0

    def __len__(self) -> int:
        """Return the number of sequences that can be drawn."""
        return int((self._rows["priority"] > 0).sum()) if self._rows else 0

    @torch.no_grad()
    def add(
        self,
        observations: Float[Tensor, "*batch steps_plus_1 o"],
        actions: Float[Tensor, "*batch steps m"],
        rewards: Float[Tensor, "*batch steps"],
    ) -> None:
        """Keep episodes of T steps.

        Args:
            observations: ``[*batch, T + 1, o]``, before each step and after the last.
            actions: ``[*batch, T, m]``.
            rewards: ``[*batch, T]``.

        Raises:
            TypeError: a tensor is not floating.
            ValueError: shapes do not fit, a number is not finite, or an episode is shorter than a sequence or longer
                than the memory.
        """
        given = {"observations": observations, "actions": actions, "rewards": rewards}
        for name, value in given.items():
            check_finite(name, check_floating(name, value))
        if rewards.ndim < 1:
            raise ValueError("rewards must have shape [*batch, steps], got a number")
        *batch, steps = rewards.shape
        if observations.shape[:-1] != (*batch, steps + 1) or actions.shape[:-1] != (*batch, steps):
            raise ValueError(
                f"observations and actions must have {steps + 1} and {steps} steps as rewards of shape "
                f"{tuple(rewards.shape)} ask for, got {tuple(observations.shape)} and {tuple(actions.shape)}"
            )
        if not self.sequence <= steps < self.capacity:
            raise ValueError(f"episodes must have {self.sequence} to {self.capacity - 1} steps, got {steps}")
        if not self._rows:
            self._make(observations, actions)
        for name, size in (("observations", observations.shape[-1]), ("actions", actions.shape[-1])):
            if size != self._rows[name].shape[-1]:
                raise ValueError(f"{name} must have size {self._rows[name].shape[-1]} as those before, got {size}")
        priority = self._rows["priority"]
        newest = max(float(priority.max()), 0.0) or 1.0
        flat = (value.reshape(-1, *value.shape[len(batch) :]) for value in (observations, actions, rewards))
        for seen, acted, earned in zip(*flat, strict=True):
            if self._next + steps + 1 > self.capacity:  # what lies behind is older than all else, and whole
                self._next = 0
            here = slice(self._next, self._next + steps)
            self._rows["observations"][self._next : self._next + steps + 1] = seen
            self._rows["actions"][here], self._rows["rewards"][here] = acted, earned
            priority[self._next : self._next + steps + 1] = 0.0  # no sequence starts so near to the end
            priority[self._next : self._next + steps + 1 - self.sequence] = newest
            self._next += steps + 1

    def sample(self, batch: int, *, generator: torch.Generator | None = None) -> Sequences:
        """Draw sequences, with replacement.

        Raises:
            ValueError: ``batch`` < 1, or nothing was added.
        """
        check_integer("batch", batch, 1)
        if not self._rows:
            raise ValueError("the replay buffer is empty: add episodes before sampling")
        priority = self._rows["priority"]
        chance = (priority > 0).double() if not self.prioritized else priority.double() ** self.alpha * (priority > 0)
        chance = chance / chance.sum()
        device = drawing_device(generator, priority)
        drawn = torch.multinomial(chance.to(device), batch, replacement=True, generator=generator).to(priority.device)
        weights = torch.ones(batch, dtype=self._rows["rewards"].dtype, device=priority.device)
        if self.prioritized:
            least = chance[chance > 0].min()
            weights = ((chance[drawn] / least) ** -self.beta).to(weights)
        at = drawn[:, None] + torch.arange(self.sequence + 1, device=priority.device)
        rows = self._rows
        return Sequences(
            rows["observations"][at], rows["actions"][at[:, :-1]], rows["rewards"][at[:, :-1]], drawn, weights
        )

    @torch.no_grad()
    def update(self, indices: Int[Tensor, " batch"], priority: Float[Tensor, " batch"]) -> None:
        """Give sequences that were drawn a new priority.

        Args:
            indices: of :class:`Sequences`.
            priority: > 0, such as the size of the error; what is smaller than 1e-6 counts as that.

        Raises:
            ValueError: shapes differ, a priority is negative or not finite, or no sequence starts at an index.
        """
        if indices.shape != check_floating("priority", priority).shape:
            raise ValueError(
                f"priority must have the shape of indices, {tuple(indices.shape)}, got {tuple(priority.shape)}"
            )
        check_positive("priority", priority, zero=True)
        held = self._rows.get("priority")
        if held is None or not bool(((indices >= 0) & (indices < self.capacity)).all()) or not held[indices].all():
            raise ValueError("indices must be those of sequences that were sampled")
        held[indices] = priority.to(held).clamp_min(1e-6)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is kept, as :meth:`load_state_dict` takes it."""
        return {"next": self._next, "rows": {name: value.clone() for name, value in self._rows.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved memory of the same capacity.

        Raises:
            ValueError: the capacity was another one.
        """
        rows = {name: value.clone() for name, value in state["rows"].items()}
        if rows and len(rows["priority"]) != self.capacity:
            raise ValueError(f"capacity must be that of the saved memory, {len(rows['priority'])}, got {self.capacity}")
        self._rows, self._next = rows, int(state["next"])

    def _make(self, observations: Tensor, actions: Tensor) -> None:
        self._rows = {
            "observations": observations.new_zeros(self.capacity, observations.shape[-1]),
            "actions": actions.new_zeros(self.capacity, actions.shape[-1]),
            "rewards": observations.new_zeros(self.capacity),
            "priority": observations.new_zeros(self.capacity),
        }
