"""What every ordering method works on: the input sorted, scaled and freed of infinities.

The ascending points are ``y = (x - min x) / (temperature * spread)``. Infinite entries become points so far outside
that every weight between them and the finite ones is exactly 0; their places are filled in at the end. Large values are
sorted in double precision, and where the points would overflow even so, gaps beyond which weights are 0 are shortened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import check_scalar
from pullback.core.shapes import Scalar
from pullback.discrete.softness import quotient
from pullback.discrete.value_state import ValueState, value_state

__all__ = ["SortedInput", "look"]


@dataclass(frozen=True)
class SortedInput:
    """The sorted input of one call.

    Attributes:
        x: ``[*batch, n]`` the input, sorted dimension last, at least single precision (double if it is large).
        order: ``[*batch, n]`` int64: the item at each place, ascending, ties in the order of the items.
        finite: ``[*batch, n]`` the sorted values, 0 where they are infinite.
        below, above: ``[*batch, n]`` places that hold -inf and +inf, or ``None`` where the input is known to be finite.
        low: ``[*batch, 1]`` smallest finite value, detached.
        spread: ``[*batch, 1]`` standard deviation of the finite entries, or ``None`` for an absolute temperature.
        temperature: a number, or a tensor like ``x`` without dimensions.
        large: whether the points may overflow.
    """

    x: Tensor
    order: Tensor
    finite: Tensor
    below: Tensor | None
    above: Tensor | None
    low: Tensor
    spread: Tensor | None
    temperature: Scalar
    large: bool

    @classmethod
    def of(cls, x: Tensor, temperature: Scalar, relative: bool) -> SortedInput:
        """Sort the last dimension of ``x``.

        Args:
            x: ``[*batch, n]`` of single or double precision.
            temperature: > 0.
            relative: the temperature is in units of the standard deviation.

        Raises:
            ValueError: a NaN in ``x``.
        """
        number = check_scalar("temperature", temperature)
        state = _look_for_room(x, number)
        if state.large and x.dtype == torch.float32:
            # Sums, and the derivative of the values in the points, may be as large as the values themselves.
            x = x.double()
            state = _look_for_room(x, number)
        ordered, order = torch.sort(x, dim=-1, stable=True)
        below = above = None
        if state.infinite:
            below, above = ordered == -torch.inf, ordered == torch.inf
            ordered = torch.where(below | above, 0.0, ordered)
        low, spread = _spread(ordered, below, above, relative)
        if isinstance(temperature, Tensor):
            temperature = temperature.to(x)
        return cls(x, order, ordered, below, above, low, spread, temperature, state.large)

    def points(self, far: float | None = None) -> Tensor:
        """Return ``y [*batch, n]``: ascending, in units of the temperature, infinities ``far`` outside."""
        if far is None:
            far = 800.0 if self.x.dtype == torch.float64 else 120.0
        y = self._shortened(far) if self.large else self._scaled(self.finite - self.low)
        if self.below is None or self.above is None:
            return y
        y = torch.where(self.below, -far, y)
        top = y.detach().masked_fill(self.above, 0.0).amax(-1, keepdim=True).clamp_min(0.0) if y.numel() else self.low
        return torch.where(self.above, top + far, y)

    def _scaled(self, distance: Tensor) -> Tensor:
        return quotient(distance if self.spread is None else distance / self.spread, self.temperature)

    def _shortened(self, far: float) -> Tensor:
        """The points with gaps of at most ``far``."""
        filled = self.finite
        if self.below is not None and self.above is not None:
            # No gap beside the infinite places.
            high = filled.detach().masked_fill(self.below | self.above, -torch.inf).amax(-1, keepdim=True)
            filled = torch.where(self.below, self.low, torch.where(self.above, high, filled))
        # Halves, as the difference of two large numbers may overflow.
        half = (filled / 2).diff(dim=-1)
        near = self._scaled(half.detach()) < far / 2
        gaps = torch.where(near, 2 * self._scaled(torch.where(near, half, 0.0)), far)
        return torch.nn.functional.pad(gaps.cumsum(-1), (1, 0))

    def with_infinities(self, by_place: Tensor) -> Tensor:
        """Return values ``[*batch, n]`` by place with the infinite ones filled in."""
        if self.below is None or self.above is None:
            return by_place
        return by_place.masked_fill(self.below, -torch.inf).masked_fill(self.above, torch.inf)

    def to_items(self, by_place: Tensor) -> Tensor:
        """Return what is given by place ``[*batch, n]`` in the order of the items."""
        return torch.gather(by_place, -1, _inverse(self.order))

    def to_places(self, by_item: Tensor) -> Tensor:
        """Return channels ``[*batch, c, n]`` that are given by item in the order of the places."""
        return by_item.gather(-1, self.order.unsqueeze(-2).expand_as(by_item))

    def columns_to_items(self, by_place: Tensor) -> Tensor:
        """Return a matrix ``[*batch, n, n]``, its columns in the order of the items."""
        return by_place.gather(-1, _inverse(self.order).unsqueeze(-2).expand_as(by_place))

    def spread_of_places(self) -> Any:
        """Return the standard deviation of ``0 .. m - 1`` for the m finite entries, 1 for m <= 1."""
        if self.below is None or self.above is None:
            m = self.x.shape[-1]
            return math.sqrt((m * m - 1) / 12) if m > 1 else 1.0
        count = (~(self.below | self.above)).sum(-1, keepdim=True).double()
        return torch.where(count > 1, ((count * count - 1) / 12).clamp_min(0.25).sqrt(), 1.0)


def look(x: Tensor, bound: float | None = None) -> ValueState:
    """Return the state of the values of ``x`` (see :func:`value_state`) and refuse NaN.

    Raises:
        ValueError: ``x`` holds a NaN.

    Example:
        >>> look(torch.tensor([0.0, float("inf")])).infinite
        True
    """
    state = value_state(x, bound)
    if state.nan:
        raise ValueError("x must not hold NaN: it has no place in an order")
    return state


def _look_for_room(x: Tensor, temperature: float | None) -> ValueState:
    """The state of ``x``; values are large where sums over the points may overflow (at an unknown temperature, all)."""
    room = torch.finfo(x.dtype).max / (8 * max(1, x.shape[-1]))
    return look(x, 0.0 if temperature is None else room * min(1.0, temperature))


def _spread(
    ordered: Tensor, below: Tensor | None, above: Tensor | None, relative: bool
) -> tuple[Tensor, Tensor | None]:
    detached = ordered.detach()
    if ordered.shape[-1] == 0:
        zero = detached.sum(-1, keepdim=True)
        return zero, (torch.ones_like(zero) if relative else None)
    if below is None or above is None:
        low, high = detached[..., :1], detached[..., -1:]
        count: Any = float(ordered.shape[-1])
        weight = None
    else:
        infinite = below | above
        weight = (~infinite).to(ordered.dtype)
        count = weight.sum(-1, keepdim=True).clamp_min(1.0)
        low = detached.masked_fill(infinite, torch.inf).amin(-1, keepdim=True)
        high = detached.masked_fill(infinite, -torch.inf).amax(-1, keepdim=True)
        none = low > high
        low, high = low.masked_fill(none, 0.0), high.masked_fill(none, 0.0)
    if not relative:
        return low, None
    # In units of half the range, so that neither squares nor differences of large values overflow, nor small vanish.
    unit = high / 2 - low / 2
    equal = unit == 0
    unit = unit.masked_fill(equal, 1.0)
    c = (ordered / 2 - low / 2) / unit
    if weight is None:
        c = c - c.mean(-1, keepdim=True)
    else:
        c = (c - (c * weight).sum(-1, keepdim=True) / count) * weight
    variance = (c * c).sum(-1, keepdim=True) / count
    return low, torch.where(equal, 1.0, torch.where(equal, 1.0, variance).sqrt() * 2 * unit)


def _inverse(order: Tensor) -> Tensor:
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.zeros_like(order).scatter(-1, order, places)
