"""The ordering methods: each one object, all in one table.

``sort``, ``rank``, the selections, the compiled forms and ``relaxed`` read :data:`ORDERINGS`; nothing else names a
method. A further one is a file with its mathematics and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pullback.core.checks import check_choice
from pullback.discrete import direct
from pullback.discrete.isotonic import capped, project_ascending
from pullback.discrete.networks import sorting_network
from pullback.discrete.optimal_transport import Transport, soft_mask
from pullback.discrete.result import Sorted
from pullback.discrete.softsort import NeuralSort, SoftSort
from pullback.discrete.sorted_input import SortedInput
from pullback.discrete.sparse_rows import SMOOTHNESS, SparseRows
from pullback.kernels.neuralsort import distance_sums, neuralsort_logits

__all__ = ["ORDERINGS", "OrderingMethod", "ordering_method"]


@dataclass(frozen=True)
class OrderingMethod:
    """What a method makes of a :class:`SortedInput`; ``None`` where it has no such thing.

    Attributes:
        values: ``[*batch, n]`` the soft-sorted values, ascending.
        ranks: ``[*batch, n]`` the soft place of every item, ascending from 0.
        largest: ``[*batch, n]`` a distribution over the items: which is the largest.
        matrix: ``[*batch, places, n]``, rows places ascending (those of the slice alone), columns items.
        carried: a payload ``[*batch, c, n]``, given by item, in the order of the places.
        mask: for ``0 < k < n`` membership of the items in the k largest, which sums to k.
        compiled_values: the common case of ``values`` as one compiled operation.
        compiled_ranks: that of ``ranks``.
    """

    values: Callable[[SortedInput], Tensor]
    ranks: Callable[[SortedInput], Tensor]
    largest: Callable[[SortedInput], Tensor]
    matrix: Callable[[SortedInput, slice], Tensor] | None = None
    carried: Callable[[SortedInput, Tensor], Tensor] | None = None
    mask: Callable[[SortedInput, int], Tensor] | None = None
    compiled_values: direct.Compiled | None = None
    compiled_ranks: direct.Compiled | None = None


@runtime_checkable
class _Kernel(Protocol):
    """A weighting of ascending, scaled points: see ``softsort.py``."""

    @staticmethod
    def mean(y: Tensor, v: Tensor) -> Tensor: ...
    @staticmethod
    def ranks(y: Tensor) -> Tensor: ...
    @staticmethod
    def matrix(y: Tensor, places: slice = ...) -> Tensor: ...


def _weighting(
    kernel: type[_Kernel] | SparseRows,
    row: Callable[[Tensor], Tensor],
    mask: Callable[[Tensor, int], Tensor] | None = None,
    compiled_values: direct.Compiled | None = None,
    compiled_ranks: direct.Compiled | None = None,
) -> OrderingMethod:
    """A method that averages with the weights of a kernel; ``row`` and ``mask`` are given by place."""
    return OrderingMethod(
        values=lambda o: o.with_infinities(kernel.mean(o.points(), o.finite.unsqueeze(-2)).squeeze(-2)),
        ranks=lambda o: o.to_items(kernel.ranks(o.points())),
        largest=lambda o: o.to_items(row(o.points())),
        matrix=lambda o, places: o.columns_to_items(kernel.matrix(o.points(), places)),
        carried=lambda o, payload: kernel.mean(o.points(), o.to_places(payload)),
        mask=None if mask is None else lambda o, k: o.to_items(mask(o.points(), k)),
        compiled_values=compiled_values,
        compiled_ranks=compiled_ranks,
    )


def _distances(y: Tensor, places: slice) -> Tensor:
    return -(y[..., places].unsqueeze(-1) - y.unsqueeze(-2)).abs()


def _softsort_of(smoothness: str) -> OrderingMethod:
    """SoftSort with sparse rows. Its matrix is no longer normalised by column for ranks: rows of places are as rows of
    items."""
    rows = SparseRows(_distances, SMOOTHNESS[smoothness])
    return replace(_weighting(rows, rows.row), ranks=lambda o: o.to_items(_places_of_rows(rows.matrix(o.points()))))


def _neuralsort_of(smoothness: str) -> OrderingMethod:
    rows = SparseRows(neuralsort_logits, SMOOTHNESS[smoothness])
    return _weighting(rows, lambda y: rows.row(_neuralsort_scores(y)))


def _places_of_rows(matrix: Tensor) -> Tensor:
    return matrix @ torch.arange(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)


def _neuralsort_scores(y: Tensor) -> Tensor:
    return (y.shape[-1] - 1) * y - distance_sums(y)


def _network(o: SortedInput, step: str) -> Sorted:
    if o.x.shape[-1] == 0:
        return Sorted(o.x, o.order, o.x.unsqueeze(-1).expand(*o.x.shape, 0))
    # In units of the spread, infinities as they are.
    finite = torch.isfinite(o.x)
    unit = torch.ones_like(o.low) if o.spread is None else o.spread
    scaled = torch.where(finite, torch.where(finite, o.x, 0.0) / unit, o.x.detach())
    result = sorting_network(scaled, steepness=1 / o.temperature, distribution=step)
    known = torch.isfinite(result.values)
    values = torch.where(known, torch.where(known, result.values, 0.0) * unit, result.values)
    return Sorted(values, o.order, lambda: result.permutation)


def _network_of(step: str) -> OrderingMethod:
    def ranks(o: SortedInput) -> Tensor:
        p = _network(o, step).permutation
        return (p * torch.arange(p.shape[-1], dtype=p.dtype, device=p.device).unsqueeze(-1)).sum(-2)

    return OrderingMethod(
        values=lambda o: _network(o, step).values,
        ranks=ranks,
        largest=lambda o: _network(o, step).permutation[..., -1, :],
        matrix=lambda o, places: _network(o, step).permutation[..., places, :],
        carried=lambda o, payload: payload @ _network(o, step).permutation.transpose(-1, -2),
        mask=lambda o, k: _network(o, step).permutation[..., o.x.shape[-1] - k :, :].sum(-2),
    )


def _isotonic_values(o: SortedInput, *, entropic: bool = False) -> Tensor:
    temperature = o.temperature.double() if isinstance(o.temperature, Tensor) else o.temperature
    slope = 1 / temperature
    if o.spread is not None:
        slope = o.spread.double() / (temperature * o.spread_of_places())
    slope = slope.clamp(max=1e200) if isinstance(slope, Tensor) else min(slope, 1e200)
    w, unit = o.finite.double(), o.low.new_ones(()).double()
    if entropic and o.spread is not None:  # exponentials are taken in units of the spread
        unit = o.spread.double()
        w, slope = w / unit, slope / unit
    z = _places(w) * slope
    project = _project_negated if entropic else project_ascending
    if o.below is None or o.above is None:
        return (unit * project(z, w)).to(o.x.dtype)
    # The infinite places differ so much from the finite ones that they are never pooled with them.
    infinite = o.below | o.above
    w = torch.where(o.below, 1e300, torch.where(o.above, -1e300, w))
    return o.with_infinities((unit * project(z, w).masked_fill(infinite, 0.0)).to(o.x.dtype))


def _project_negated(z: Tensor, w: Tensor) -> Tensor:
    """The entropic projection of the negated values, negated: it is not symmetric, and torchsort sorts so."""
    return -project_ascending(z, -w.flip(-1), entropic=True).flip(-1)


def _isotonic_ranks(o: SortedInput) -> Tensor:
    # A gap of n between scaled points keeps them in different blocks; the unit is at least 1/2.
    unit = 1.0 if o.spread is None else o.spread_of_places()
    z = o.points(far=4.0 * o.x.shape[-1] + 4.0).double() * unit
    return o.to_items(project_ascending(z, _places(z)).to(o.x.dtype))


def _entropic_ranks(o: SortedInput) -> Tensor:
    # Places are counted from 1 while they are projected: 0 has no logarithm.
    unit = 1.0 if o.spread is None else o.spread_of_places()
    z = o.points(far=4.0 * o.x.shape[-1] + 4.0).double() * unit
    return o.to_items(project_ascending(z, (_places(z) + 1).log(), entropic=True).expm1().to(o.x.dtype))


def _places(z: Tensor) -> Tensor:
    return torch.arange(z.shape[-1], dtype=z.dtype, device=z.device).expand_as(z)


ORDERINGS: dict[str, OrderingMethod] = {
    "softsort": _weighting(
        SoftSort,
        lambda y: torch.softmax(y, dim=-1),
        compiled_values=direct.SOFTSORT_VALUES,
        compiled_ranks=direct.SOFTSORT_RANKS,
    ),
    "neuralsort": _weighting(
        NeuralSort,
        lambda y: torch.softmax(_neuralsort_scores(y), dim=-1),
        compiled_values=direct.NEURALSORT_VALUES,
        compiled_ranks=direct.NEURALSORT_RANKS,
    ),
    "sinkhorn": _weighting(
        Transport,
        lambda y: Transport.row(y, -1),
        soft_mask,
        compiled_values=direct.SINKHORN_VALUES,
        compiled_ranks=direct.SINKHORN_RANKS,
    ),
    "network": _network_of("cauchy"),
    "isotonic": OrderingMethod(
        values=_isotonic_values,
        ranks=_isotonic_ranks,
        largest=lambda o: o.to_items(capped(o.points(), 1)),
        mask=lambda o, k: o.to_items(capped(o.points(), k)),
        compiled_values=direct.ISOTONIC_VALUES,
        compiled_ranks=direct.ISOTONIC_RANKS,
    ),
    "isotonic_kl": OrderingMethod(
        values=partial(_isotonic_values, entropic=True),
        ranks=_entropic_ranks,
        largest=lambda o: o.to_items(torch.softmax(o.points(), dim=-1)),
    ),
    **{f"softsort_{smoothness}": _softsort_of(smoothness) for smoothness in SMOOTHNESS},
    **{f"neuralsort_{smoothness}": _neuralsort_of(smoothness) for smoothness in SMOOTHNESS},
    "network_c0": _network_of("linear"),
    "network_c1": _network_of("cubic"),
    "network_c2": _network_of("quintic"),
}
"""Name -> method, in the order of the documentation."""


def ordering_method(name: str, needed: str = "values") -> OrderingMethod:
    """Return the method of that name, which must have what is needed.

    Args:
        name: a key of :data:`ORDERINGS`.
        needed: a field of :class:`OrderingMethod`.

    Raises:
        ValueError: there is none, or it lacks what is needed; lists those that have it.

    Example:
        >>> ordering_method("isotonic", needed="matrix")
        Traceback (most recent call last):
        ValueError: method must be one of 'softsort', 'neuralsort', 'sinkhorn', 'network', 'softsort_c0', ...
    """
    check_choice("method", name, [n for n, method in ORDERINGS.items() if getattr(method, needed) is not None])
    return ORDERINGS[name]
