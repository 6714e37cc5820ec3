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
from pullback.relax.law import distribution_of, law_of, only_jumps
from pullback.relax.rules import Dropped, Integer, lazy, relaxes, soft_value
from pullback.relax.settings import Settings
from pullback.relax.soft_tensors import Distribution, Lazy, SoftBool, SoftIndex, plain

__all__: list[str] = []

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
    return Integer(expected=lazy(lambda input: _occurrences(input, classes), input))


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
    """Of an index of which the mean alone is known: the values beside it, with the slope of a central difference."""
    expected, hard = index.expected, plain(index).long()
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
    if dim is not None or not return_counts or return_inverse or not isinstance(input, SoftIndex):
        raise Dropped("its shape depends on the data; return_counts=True has soft counts of the values that occur")
    if not input.has_distribution:
        raise Dropped("counts of a number of which only the mean is known")

    def counts(input: SoftIndex) -> Tensor:
        # What an entry could have been and nothing is has no place in the result.
        distribution = input.distribution or _neighbours(input)
        p = distribution.probability.expand(*input.shape, distribution.probability.shape[-1])
        values = distribution.values.expand(p.shape).reshape(-1).contiguous()
        support = hard[0]
        place = torch.searchsorted(support, values).clamp(max=len(support) - 1)
        known = p.reshape(-1) * (support[place] == values)
        return known.new_zeros(len(support)).index_add(0, place, known)

    return Integer(expected=Lazy(lambda: hard[0].to(torch.get_default_dtype()))), Integer(expected=lazy(counts, input))


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
