"""Pruning weights while they are trained, with regrowth."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_integer, check_range

__all__ = ["GradualMagnitudePruner"]


class GradualMagnitudePruner:
    r"""Zero the smallest weights step by step along a cubic schedule, and let some grow again where the gradient is
    large.

    .. math:: s_t = s_f + (s_0 - s_f) \left(1 - \frac{t - t_0}{t_1 - t_0}\right)^3

    At an update the smallest ``|w|`` are dropped until the share :math:`s_t` is zero; then a share :math:`r_t` of
    what is left is dropped too, the smallest again, and as many zeros with the largest ``|gradient|`` are let in,
    starting from 0. :math:`r_t` falls from ``regrow`` to 0 by half a cosine. Between updates the masks stay, and
    :meth:`step` puts masked weights back to 0.

    Args:
        parameters: the weights that are pruned, trained by any optimizer.
        initial: share of zeros at ``start``, in [0, 1).
        final: share of zeros from ``end`` on, in [``initial``, 1).
        start: the first step with an update, >= 0; steps are counted by :meth:`step`.
        end: the last one, > ``start``.
        every: steps from one update to the next, >= 1.
        regrow: :math:`r_0`, in [0, 1); 0 is gradual magnitude pruning.
        scope: ``"global"`` compares weights of all tensors, ``"layer"`` prunes each to the same share.

    Raises:
        TypeError: a step is no integer, a parameter no tensor.
        ValueError: a number is out of range, ``final`` < ``initial``, no parameter is given, ``scope`` is unknown.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0, 0.5]))
        >>> pruner = GradualMagnitudePruner([weight], initial=0, final=0.5, start=0, end=2, every=1, regrow=0)
        >>> for _ in range(3):
        ...     pruner.step()
        >>> weight.data
        tensor([ 0., -2.,  3.,  0.])

    References:
        Zhu, Gupta (2017), To prune, or not to prune, equation 1. Liu et al. (2021), Sparse training via boosting
        pruning plasticity with neuroregeneration.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        initial: float,
        final: float,
        start: int,
        end: int,
        every: int,
        regrow: float = 0.5,
        scope: str = "global",
    ) -> None:
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError("parameters must hold at least one tensor")
        for number, parameter in enumerate(self.parameters):
            if not isinstance(parameter, Tensor):
                raise TypeError(f"parameters must be tensors, number {number} is {type(parameter).__name__}")
        for name, value in (("initial", initial), ("final", final), ("regrow", regrow)):
            check_range(name, value, 0, 1)
            if value == 1:
                raise ValueError(f"{name} must be below 1, got {value}")
        if final < initial:
            raise ValueError(f"final must be at least initial, got {final} < {initial}")
        check_integer("start", start, 0)
        check_integer("end", end, start + 1)
        check_integer("every", every, 1)
        check_choice("scope", scope, ("global", "layer"))
        self.initial, self.final, self.regrow, self.scope = initial, final, regrow, scope
        self.start, self.end, self.every = start, end, every
        self.steps = 0
        self.masks = [torch.ones_like(p, dtype=torch.bool) for p in self.parameters]
        self.regrown = 0
        """How many weights the last update let in, which is how many it dropped beyond the schedule."""

    def scheduled(self, step: int) -> float:
        """Return the share of zeros that the schedule asks for at ``step``."""
        if step < self.start:
            return 0.0
        left = 1 - min((step - self.start) / (self.end - self.start), 1)
        return self.final + (self.initial - self.final) * left**3

    @property
    def sparsity(self) -> float:
        """The share of zeros, of all weights together."""
        kept, total = sum(int(m.sum()) for m in self.masks), sum(m.numel() for m in self.masks)
        return 1 - kept / total

    @torch.no_grad()
    def step(self) -> None:
        """Count one step, after that of the optimizer: update the masks where it is time, then apply them."""
        now = self.steps
        if self.start <= now <= self.end and ((now - self.start) % self.every == 0 or now == self.end):
            groups = [range(len(self.masks))] if self.scope == "global" else [[i] for i in range(len(self.masks))]
            self.regrown = sum(self._update(list(group), now) for group in groups)
        for parameter, mask in zip(self.parameters, self.masks, strict=True):
            parameter.mul_(mask)
        self.steps += 1

    def _update(self, group: list[int], now: int) -> int:
        sizes = [self.masks[i].numel() for i in group]
        active = torch.cat([self.masks[i].flatten() for i in group])
        magnitudes = torch.cat([self.parameters[i].detach().abs().flatten() for i in group])
        left = min(int(active.sum()), sum(sizes) - round(sum(sizes) * self.scheduled(now)))
        share = self.regrow * (1 + math.cos(math.pi * (now - self.start) / (self.end - self.start))) / 2
        grown = min(int(share * left), sum(sizes) - left)
        if any(self.parameters[i].grad is None for i in group):
            grown = 0  # nothing says what should grow
        kept = torch.zeros_like(active)
        kept[magnitudes.masked_fill(~active, -1).topk(left - grown).indices] = True
        survivors = kept.clone()
        if grown:
            gradients = torch.cat([self.parameters[i].grad.abs().flatten() for i in group])  # type: ignore[union-attr]
            kept[gradients.masked_fill(kept, -1).topk(grown).indices] = True
        for i, mask, old in zip(group, kept.split(sizes), survivors.split(sizes), strict=True):
            self.masks[i].copy_(mask.view_as(self.masks[i]))
            self.parameters[i].mul_(old.view_as(self.masks[i]))
        return grown

    def state_dict(self) -> dict[str, Any]:
        """Return the steps done and the masks."""
        return {"steps": self.steps, "regrown": self.regrown, "masks": [mask.clone() for mask in self.masks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: it has masks of other shapes.
        """
        if [m.shape for m in state["masks"]] != [m.shape for m in self.masks]:
            raise ValueError("the state's masks are those of other parameters")
        self.steps, self.regrown = int(state["steps"]), int(state["regrown"])
        for mask, saved in zip(self.masks, state["masks"], strict=True):
            mask.copy_(saved)
