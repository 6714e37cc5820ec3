"""What every ordering starts from: the input sorted, scaled and freed of infinities, and the five methods on top of it.

All methods work on the ascending points ``y = (x - min x) / (temperature * spread)``. Infinite entries become points so
far outside that every weight between them and the finite ones is exactly 0; their places are filled in at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_dim, check_floating, check_positive
from pullback.discrete.isotonic import increasing_regression
from pullback.discrete.networks import sorting_network
from pullback.discrete.optimal_transport import Transport
from pullback.discrete.result import Sorted
from pullback.discrete.softness import is_hard, widen
from pullback.discrete.softsort import NeuralSort, SoftSort
from pullback.discrete.value_state import value_state

__all__ = ["ALL", "WITH_MATRIX", "SortedInput", "hard_requested", "has_infinities", "place_last"]

_KERNELS: dict[str, Any] = {"softsort": SoftSort, "neuralsort": NeuralSort, "sinkhorn": Transport}
ALL = ("softsort", "neuralsort", "sinkhorn", "network", "isotonic")
"""The methods of values and ranks."""
WITH_MATRIX = ("softsort", "neuralsort", "sinkhorn", "network")
"""The methods that have a permutation matrix."""


@dataclass(frozen=True)
class SortedInput:
    """The sorted input of one call.

    Attributes:
        x: ``[*batch, n]`` the input, sorted dimension last, at least single precision.
        order: ``[*batch, n]`` int64: the item at each place, ascending, ties in the order of the items.
        finite: ``[*batch, n]`` the sorted values, 0 where they are infinite.
        below, above: ``[*batch, n]`` places that hold -inf and +inf, or ``None`` where the input is known to be finite.
        low: ``[*batch, 1]`` smallest finite value, detached.
        spread: ``[*batch, 1]`` standard deviation of the finite entries, or ``None`` for ``scale=None``.
        temperature: as given.
    """

    x: Tensor
    order: Tensor
    finite: Tensor
    below: Tensor | None
    above: Tensor | None
    low: Tensor
    spread: Tensor | None
    temperature: float

    @classmethod
    def of(
        cls, x: Tensor, dim: int, *, method: str, allowed: tuple[str, ...], temperature: float, scale: str | None
    ) -> SortedInput:
        """Check the arguments of a front door and sort.

        Raises:
            TypeError: ``x`` is not a floating tensor.
            IndexError: ``dim`` is out of range.
            ValueError: a NaN in ``x``, an unknown ``method`` or ``scale``, a temperature < 0.
        """
        check_choice("method", method, allowed)
        check_scale(scale)
        x = place_last(x, dim, temperature)
        infinite = has_infinities(x)
        ordered, order = torch.sort(x, dim=-1, stable=True)
        below = above = None
        if infinite:
            below, above = ordered == -torch.inf, ordered == torch.inf
            ordered = torch.where(below | above, 0.0, ordered)
        low, spread = _spread(ordered, below, above, scale)
        return cls(x, order, ordered, below, above, low, spread, temperature)

    def points(self, far: float | None = None) -> Tensor:
        """Return ``y [*batch, n]``: ascending, in units of the temperature, infinities ``far`` outside."""
        width = self.temperature if self.spread is None else self.temperature * self.spread
        y = (self.finite - self.low) / width
        if self.below is None or self.above is None:
            return y
        if far is None:
            far = 800.0 if y.dtype == torch.float64 else 120.0
        y = torch.where(self.below, -far, y)
        top = y.detach().masked_fill(self.above, 0.0).amax(-1, keepdim=True).clamp_min(0.0) if y.numel() else self.low
        return torch.where(self.above, top + far, y)

    def values(self, method: str) -> Tensor:
        """Return ``[*batch, n]``: the soft-sorted values, ascending."""
        if method == "network":
            return self._network().values
        if method == "isotonic":
            soft = self._isotonic_values()
        else:
            soft = _KERNELS[method].mean(self.points(), self.finite.unsqueeze(-2)).squeeze(-2)
        if self.below is None or self.above is None:
            return soft
        return soft.masked_fill(self.below, -torch.inf).masked_fill(self.above, torch.inf)

    def carried(self, payload: Tensor, method: str) -> Tensor:
        """Return ``payload [*batch, c, n]``, given by item, in the soft order of the places."""
        if method == "network":
            return payload @ self._network().permutation.transpose(-1, -2)
        by_place = payload.gather(-1, self.order.unsqueeze(-2).expand_as(payload))
        result: Tensor = _KERNELS[method].mean(self.points(), by_place)
        return result

    def matrix(self, method: str) -> Tensor:
        """Return ``[*batch, n, n]``, rows places ascending, columns items."""
        if method == "network":
            return self._network().permutation
        by_place = _KERNELS[method].matrix(self.points())
        return by_place.gather(-1, _inverse(self.order).unsqueeze(-2).expand_as(by_place))

    def ranks(self, method: str) -> Tensor:
        """Return ``[*batch, n]``: the soft place of each item, ascending from 0."""
        if method == "network":
            p = self._network().permutation
            return (p * torch.arange(p.shape[-1], dtype=p.dtype, device=p.device).unsqueeze(-1)).sum(-2)
        if method == "isotonic":
            z = self._isotonic_points()
            by_place = (z - increasing_regression(z, _places(z))).to(self.x.dtype)
        else:
            by_place = _KERNELS[method].ranks(self.points())
        return self.to_items(by_place)

    def to_items(self, by_place: Tensor) -> Tensor:
        """Return ``[*batch, n]`` values given by place in the order of the items."""
        return torch.gather(by_place, -1, _inverse(self.order))

    def _isotonic_points(self) -> Tensor:
        # A gap of n between scaled points keeps them in different blocks; the unit is at least 1/2.
        far = 4.0 * self.x.shape[-1] + 4.0
        unit = 1.0 if self.spread is None else self._spread_of_places()
        return self.points(far).double() * unit

    def _isotonic_values(self) -> Tensor:
        slope: Any = 1 / self.temperature
        if self.spread is not None:
            slope = self.spread.double() / (self.temperature * self._spread_of_places())
        w = self.finite.double()
        z = _places(w) * slope
        if self.below is None or self.above is None:
            return (z - increasing_regression(z, w)).to(self.x.dtype)
        # The infinite places differ so much from the finite ones that they are never pooled with them.
        w = torch.where(self.below, 1e300, torch.where(self.above, -1e300, w))
        soft = z - increasing_regression(z, w)
        return soft.masked_fill(self.below | self.above, 0.0).to(self.x.dtype)

    def _spread_of_places(self) -> Any:
        """Return the standard deviation of ``0 .. m - 1`` for the m finite entries, 1 for m <= 1."""
        if self.below is None or self.above is None:
            m = self.x.shape[-1]
            return math.sqrt((m * m - 1) / 12) if m > 1 else 1.0
        count = (~(self.below | self.above)).sum(-1, keepdim=True).double()
        return torch.where(count > 1, ((count * count - 1) / 12).clamp_min(0.25).sqrt(), 1.0)

    def _network(self) -> Sorted:
        if self.x.shape[-1] == 0:
            return Sorted(self.x, self.order, self.x.unsqueeze(-1).expand(*self.x.shape, 0))
        finite = torch.isfinite(self.x)
        unit: Any = 1.0 if self.spread is None else self.spread
        scaled = torch.where(finite, torch.where(finite, self.x, 0.0) / unit, self.x.detach())
        result = sorting_network(scaled, steepness=1 / self.temperature)
        known = torch.isfinite(result.values)
        values = torch.where(known, torch.where(known, result.values, 0.0) * unit, result.values)
        return Sorted(values, lambda: self.order, lambda: result.permutation)


def place_last(x: Tensor, dim: int, temperature: float) -> Tensor:
    """Check ``x``, ``dim`` and ``temperature``; return ``x`` with ``dim`` last, in single precision or better.

    Example:
        >>> place_last(torch.zeros(2, 3), 0, 1.0).shape
        torch.Size([3, 2])
    """
    check_floating("x", x)
    check_positive("temperature", temperature, zero=True)
    dim = check_dim(x, dim)
    wide = widen(x)
    if x.ndim == 0:
        return wide.unsqueeze(0)
    return wide if dim == x.ndim - 1 else wide.movedim(dim, -1)


def check_scale(scale: str | None) -> None:
    """Raise ``ValueError`` unless ``scale`` is ``"std"`` or ``None``.

    Example:
        >>> check_scale("range")
        Traceback (most recent call last):
        ValueError: scale must be 'std' or None, got 'range'
    """
    if scale not in ("std", None):
        raise ValueError(f"scale must be 'std' or None, got {scale!r}")


def has_infinities(x: Tensor) -> bool:
    """Return whether ``x`` may hold infinities and refuse NaN. While a graph is compiled values are unknown: it may.

    Raises:
        ValueError: ``x`` holds a NaN.

    Example:
        >>> has_infinities(torch.tensor([0.0, float("inf")]))
        True
    """
    state = value_state(x)
    if state.nan:
        raise ValueError("x must not hold NaN: it has no place in an order")
    return state.infinite


def hard_requested(temperature: float, dtype: torch.dtype) -> bool:
    """Return whether ``temperature`` is 0 for a computation in ``dtype``.

    Example:
        >>> hard_requested(0.0, torch.float16)
        True
    """
    return is_hard(temperature, torch.promote_types(dtype, torch.float32))


def _spread(
    ordered: Tensor, below: Tensor | None, above: Tensor | None, scale: str | None
) -> tuple[Tensor, Tensor | None]:
    detached = ordered.detach()
    if ordered.shape[-1] == 0:
        zero = detached.sum(-1, keepdim=True)
        return zero, (torch.ones_like(zero) if scale == "std" else None)
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
    if scale is None:
        return low, None
    # In units of the range, so that neither squares of large values overflow nor those of small ones vanish.
    unit = high - low
    equal = unit == 0
    unit = unit.masked_fill(equal, 1.0)
    c = (ordered - low) / unit
    if weight is None:
        c = c - c.mean(-1, keepdim=True)
    else:
        c = (c - (c * weight).sum(-1, keepdim=True) / count) * weight
    variance = (c * c).sum(-1, keepdim=True) / count
    return low, torch.where(equal, 1.0, torch.where(equal, 1.0, variance).sqrt() * unit)


def _places(z: Tensor) -> Tensor:
    return torch.arange(z.shape[-1], dtype=z.dtype, device=z.device).expand_as(z)


def _inverse(order: Tensor) -> Tensor:
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.zeros_like(order).scatter(-1, order, places)
