"""Counting by value, places among boundaries, running extremes: soft counts of what an entry could have been.

A soft index adds to every class the probability that it is there: the counts are sums over the atoms, O(n k) for
n indices of k atoms, and no matrix of n times the number of classes is formed. Floats are counted by the soft steps at
the edges of :func:`pullback.discrete.histc`, or, where they only jump, by their atoms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from pullback.kernels.prefix_counts import prefix_counts
from pullback.relax.image import convolved
from pullback.relax.law import distribution_of, law_of, only_jumps
from pullback.relax.ordering import Ordering, permutation_rows
from pullback.relax.rules import PASS, Dropped, Integer, lazy, relaxes, soft_value
from pullback.relax.settings import Settings
from pullback.relax.soft_tensors import Distribution, Lazy, SoftBool, SoftIndex, plain

__all__ = ["positions_of_true"]

MAX_PREFIXES = 2**26
"""Elements of the largest distribution over the positions of running extremes."""


@relaxes("bincount", group="counting", only_soft=True)
def _bincount(settings: Settings, hard: Tensor, input: Tensor, weights: Any = None, minlength: int = 0) -> Any:
    classes = len(hard)
    if not isinstance(input, SoftIndex):
        if hard.is_floating_point():  # soft weights
            return hard.new_zeros(classes).index_add(0, plain(input), soft_value(weights).to(hard.dtype))
        raise Dropped("counts of truth values")
    if hard.is_floating_point():
        return _occurrences(input, classes, weights)
    expected = lazy(lambda input: _occurrences(input, classes), input)
    # One entry more or less: the count is known to be far from what it is compared with, whatever others are.
    return Integer(Lazy(lambda: _one_more_or_less(plain(hard), expected()), [expected]), expected)


def _occurrences(index: SoftIndex, classes: int, weights: Any = None) -> Tensor:
    """``[classes]``: the expected number (or weight) of the indices at each of ``0 .. classes - 1``."""
    distribution = index.distribution or _neighbours(index)
    p, values = distribution.probability, distribution.values
    p = p.expand(*index.shape, p.shape[-1])
    if weights is not None:
        p = p * soft_value(weights).unsqueeze(-1)
    values = values.expand(p.shape).clamp(0, classes - 1)
    return p.new_zeros(classes).index_add(0, values.reshape(-1), p.reshape(-1))


def _neighbours(index: SoftIndex) -> Distribution:
    return _one_more_or_less(plain(index).long(), index.expected)


def _one_more_or_less(hard: Tensor, expected: Tensor) -> Distribution:
    """Of a number of which the mean alone is known: the values beside it, with the slope of a central difference."""
    half = (expected - expected.detach()) / 2
    probability = torch.stack([-half, torch.ones_like(half), half], -1)
    return Distribution(probability, torch.stack([hard - 1, hard, hard + 1], -1))


@relaxes("histc", group="counting")
def _histc(settings: Settings, hard: Tensor, input: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Any:
    atoms = _atoms(input)
    if atoms is not None and not min == max == 0:
        member = atoms.values.expand(atoms.probability.shape)
        place = ((member - min) * (bins / (max - min))).floor().clamp(0, bins - 1).long()
        inside = atoms.probability * ((member >= min) & (member <= max))
        return inside.new_zeros(bins).index_add(0, place.reshape(-1), inside.reshape(-1))
    return discrete.histc(input, bins, min, max, temperature=settings.width(input), **settings.method("histc"))


@relaxes("histogram", group="counting", operation="histc")
def _histogram(settings: Settings, hard: Any, input: Tensor, bins: Any, **options: Any) -> Any:
    width = settings.width(input)
    soft = discrete.histogram(input, bins, temperature=width, **options, **settings.method("histc"))
    return soft.hist, soft.bin_edges


def _atoms(input: Tensor) -> Distribution | None:
    """The atoms of a float tensor that only jumps, one choice an entry."""
    law = law_of(input)
    known = distribution_of(input)
    atoms = None if known is None or law is None or not law.pure else known()
    if atoms is None or not only_jumps(atoms):
        return None
    p = atoms.probability
    return Distribution(p.expand(*input.shape, p.shape[-1]), atoms.values)


@relaxes("unique", group="counting")
def _unique(
    settings: Settings,
    hard: Any,
    input: Tensor,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: int | None = None,
) -> Any:
    if dim is not None:
        raise Dropped("unique slices: its shape depends on the data")
    if isinstance(input, SoftIndex):
        if not input.has_distribution or not return_counts or return_inverse:
            raise Dropped("its shape depends on the data; return_counts=True has soft counts of the values that occur")
        return _values(hard), Integer(expected=lazy(lambda input: _counts_at(hard[0], input), input))
    if isinstance(input, SoftBool) or not input.is_floating_point() or not return_inverse:
        raise Dropped("its shape depends on the data; its values are those of sort, its inverse is a rank")
    return _ranks(settings, hard, input)


def _values(hard: Any) -> Integer:
    known = hard[0].to(torch.get_default_dtype())
    return Integer(expected=Lazy(lambda: known))


def _counts_at(support: Tensor, index: SoftIndex) -> Tensor:
    """The counts of the values that occur; what an entry could have been and nothing is has no place among them."""
    distribution = index.distribution or _neighbours(index)
    p = distribution.probability.expand(*index.shape, distribution.probability.shape[-1])
    values = distribution.values.expand(p.shape).reshape(-1).contiguous()
    place = torch.searchsorted(support, values).clamp(max=len(support) - 1)
    known = p.reshape(-1) * (support[place] == values)
    return known.new_zeros(len(support)).index_add(0, place, known)


def _ranks(settings: Settings, hard: Any, input: Tensor) -> Any:
    """Unique floats: their values in order, and for each entry the (soft) place of its value: a rank.

    Ties share a place, and keep sharing it: the number of entries of each value does not move.
    """
    values, inverse = hard[0], hard[1]
    flat = input.reshape(-1)
    sizes = torch.bincount(inverse.reshape(-1), minlength=len(values))
    first = sizes.cumsum(0) - sizes
    ordered = discrete.sort(flat, **settings.ordering(flat, "sort")).values[first]
    options = settings.ordering(flat, "argsort")
    group = torch.repeat_interleave(torch.arange(len(values), device=flat.device), sizes)

    def places(input: Tensor) -> Any:
        if input.ndim == 1 and Ordering.applies(options):
            return Ordering(input, 0, False, options, inverted=True, group=(group, len(values)))
        matrix = permutation_rows(options, input.reshape(-1), 0, False).mT  # [item, place]
        merged = matrix.new_zeros(len(matrix), len(values)).index_add(1, group, matrix)
        return Distribution(merged.reshape(*inverse.shape, len(values)), tied=True)

    return ordered, Integer(lazy(places, input)), *([PASS] if len(hard) > 2 else [])


@relaxes("searchsorted", group="counting")
def _searchsorted(
    settings: Settings,
    hard: Tensor,
    sorted_sequence: Tensor,
    input: Any,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Any:
    if sorter is not None:
        raise Dropped("a sorter")
    return _place(settings, sorted_sequence, input)


@relaxes("bucketize", group="counting", operation="searchsorted")
def _bucketize(
    settings: Settings, hard: Tensor, input: Any, boundaries: Tensor, *, out_int32: bool = False, right: bool = False
) -> Any:
    return _place(settings, boundaries, input)


def _place(settings: Settings, boundaries: Tensor, input: Any) -> Integer:
    """``sum_b [x > b]`` with the distribution over buckets that the steps between the boundaries give."""
    bounds, x = soft_value(boundaries), soft_value(input)
    x = x if isinstance(x, Tensor) else torch.as_tensor(x, dtype=bounds.dtype, device=bounds.device)
    if not x.is_floating_point() or not bounds.is_floating_point():
        raise Dropped("the order of plain integers")
    options = {"temperature": settings.width(x.detach()), **settings.method("searchsorted")}

    def distribution(bounds: Tensor, x: Tensor) -> Distribution:
        edges = bounds.unsqueeze(-2) if bounds.ndim > 1 else bounds
        step = {"temperature": options["temperature"], **settings.method("gt")}
        above = discrete.greater(x.unsqueeze(-1), edges.to(x.dtype), **step)
        one = torch.ones_like(above[..., :1])
        return Distribution(torch.cat([one, above], -1) - torch.cat([above, 0 * one], -1))

    def expected(bounds: Tensor, x: Tensor) -> Tensor:
        if not x.ndim:
            return discrete.searchsorted(bounds.to(x.dtype), x.unsqueeze(0), **options).squeeze(0)
        return discrete.searchsorted(bounds.to(x.dtype), x, **options)

    return Integer(lazy(distribution, bounds, x), lazy(expected, bounds, x))


def _running(largest: bool) -> Any:
    block = discrete.cummax if largest else discrete.cummin

    def soft(settings: Settings, hard: Any, input: Tensor, dim: int) -> Any:
        if isinstance(input, SoftBool) or not soft_value(input).is_floating_point():
            raise Dropped("running extremes of truth values or plain integers")
        x = soft_value(input)
        noise = settings.temperature * settings.spread(x)
        # The weights exp(4 x / t) of the block are those of softsort, exp(x / noise), at four times its temperature.
        values = block(x, dim, temperature=4 * noise).values

        def positions(x: Tensor) -> Distribution:
            n = x.shape[dim] if x.ndim else 1
            if x.numel() * n > MAX_PREFIXES:
                raise Dropped(f"the distribution behind {n} running extremes has {x.numel() * n:.1e} elements")
            row = (x.movedim(dim, -1) if x.ndim else x.reshape(1)) / (noise if largest else -noise)
            seen = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
            weights = torch.softmax(row.unsqueeze(-2).masked_fill(~seen, -torch.inf), -1)
            return Distribution(weights.movedim(-2, dim % x.ndim) if x.ndim else weights.squeeze(0))

        first: Any = values if hard[0].is_floating_point() else Integer(expected=Lazy(lambda: values))
        return first, Integer(lazy(positions, x))

    return soft


relaxes("cummax", group="counting")(_running(True))
relaxes("cummin", group="counting")(_running(False))


@relaxes("masked_select", group="counting", only_soft=True)
def _masked_select(settings: Settings, hard: Tensor, input: Tensor, mask: Any) -> Any:
    """Selected truth values or integers: their sum is ``sum_i P(i is selected) x_i``, whatever is selected.

    What may be selected and is not is shared out among the elements that are. So it is the sum that has a derivative.
    """
    if hard.is_floating_point() or not isinstance(mask, SoftBool) or not len(hard):
        raise Dropped("its shape depends on the data; (x * mask).sum() / mask.sum() has not")

    def expected(input: Tensor, mask: SoftBool) -> Tensor:
        x, p = torch.broadcast_tensors(soft_value(input), mask.probability)
        weighed, selected = (x * p).reshape(-1), plain(mask).expand(x.shape).reshape(-1)
        rest = torch.where(selected, 0, weighed).sum() / selected.sum()
        return weighed[selected] + rest

    late = lazy(expected, input, mask)
    return late if hard.dtype == torch.bool else Integer(expected=late)


@relaxes("nonzero", group="counting", only_soft=True)
def _nonzero(settings: Settings, hard: Any, input: Tensor, *, as_tuple: bool = False) -> Any:
    """The positions of the true elements of a row: of the first, the second, ..., each a distribution over the row.

    The k-th is at ``i`` where ``i`` is true and ``k - 1`` before it are, all being independent; what is short of k true
    elements in all counts as the last position.
    """
    if as_tuple or input.ndim != 1:
        raise Dropped("its shape depends on the data")
    mask = _truth(input) if isinstance(input, SoftIndex) else input
    assert isinstance(mask, SoftBool)
    return Integer(positions_of_true(mask, len(hard)))


def _truth(index: SoftIndex) -> SoftBool:
    def probability(index: SoftIndex) -> Tensor:
        distribution = index.distribution
        if distribution is None:
            return index.expected.clamp(0, 1)
        return ((distribution.values != 0) * distribution.probability).sum(-1).expand(index.shape)

    return SoftBool.make(plain(index) != 0, lazy(probability, index))


def positions_of_true(mask: SoftBool, found: int) -> Lazy[Any]:
    """The distributions ``[found, 1, n]`` of the positions of the first ``found`` true elements of ``mask [n]``."""
    if len(mask) * found > MAX_PREFIXES:
        raise Dropped(f"the distribution of {found} positions among {len(mask)} has too many elements")

    tossed = mask._current().coin

    def distribution(mask: SoftBool) -> Distribution:
        known = None if tossed is None else tossed()
        if known is not None and known.tied and known.values.ndim == 1 and known.probability.ndim == 2:
            return Distribution(_places_in_order(known, found).unsqueeze(1), tied=True)
        p = mask.probability
        rows = (p.unsqueeze(1) * prefix_counts(p, found)).mT
        return Distribution(_complete(rows).unsqueeze(1), tied=True)

    late = lazy(distribution, mask)
    return late if tossed is None else Lazy(lambda: late, [tossed])


def _places_in_order(d: Distribution, found: int) -> Tensor:
    """``[found, places]``: where in an ordering the first, second, ... true entry is: ``labels[order].nonzero()``.

    The entries, not the places, are independent: up to each place there are as many as have come by then.
    """
    come = d.probability[:, d.values].cumsum(0).clamp(0, 1)  # [places, true entries]
    number = convolved(torch.stack([1 - come, come], -1))
    at_least = number.flip(-1).cumsum(-1).flip(-1)[:, 1 : found + 1]
    return _complete(at_least.diff(dim=0, prepend=torch.zeros_like(at_least[:1])).mT)


def _complete(rows: Tensor) -> Tensor:
    """What is short of probability 1 counts as the last position."""
    short = (1 - rows.sum(-1, keepdim=True)).clamp_min(0)
    return torch.cat([rows[:, :-1], rows[:, -1:] + short], -1)
