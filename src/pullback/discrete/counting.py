"""Counting by value with a gradient: histograms, counts of classes and of known values.

An entry belongs to the bin between two edges by the difference of the soft steps at them,
``F((x - e_k) / t) - F((x - e_{k+1}) / t)``, so that the memberships of an entry sum to 1 over all bins, those beyond
the outer edges included. With the logistic step an entry meets only the edges within about 10 temperatures of it (5 in
single precision): time and memory are O(n (w + log m) + m) for n entries and m edges, at most w of them within reach of
one entry. The other steps have heavy tails, and a compiled graph knows no w: they take O(n m). All take the ``method``,
``temperature`` and ``hard`` of :func:`histc`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pullback.core.checks import check_choice, check_floating, check_integer
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import physical
from pullback.discrete.bins import check_entries, check_increasing, constant, count_regions
from pullback.discrete.softness import is_hard, widen
from pullback.discrete.steps import STEP_ERRORS
from pullback.discrete.value_state import value_state

__all__ = ["Histogram", "Unique", "bincount", "histc", "histogram", "unique"]


def histc(
    x: Float[Tensor, "*shape"],
    bins: int = 100,
    min: float = 0,
    max: float = 0,
    *,
    method: str = "logistic",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "bins"]:
    r"""Return how many entries lie in each of ``bins`` equal bins of ``[min, max]``.

    .. math::
        c_k = \sum_i F\Big(\frac{x_i - e_k}{t}\Big) - F\Big(\frac{x_i - e_{k+1}}{t}\Big), \qquad
        e_k = \min + \frac k{\text{bins}} (\max - \min)

    with the step ``F`` of :func:`~pullback.discrete.soft_step`. Entries outside ``[min, max]`` do not count. Where both
    are 0 the range is that of the data (and its edges move with the data); then every entry counts, as the outer bins
    have no outer edge.

    Args:
        x: ``[*shape]`` floating, flattened; infinities lie outside.
        bins: >= 1.
        min, max: the range in units of ``x``, ``min <= max``; equal ones are widened by 1 to both sides, as in torch.
        method: the step, one of those of :func:`~pullback.discrete.soft_step`.
        temperature: width of the step at an edge in units of ``x``, >= 0, a number or a differentiable tensor without
            dimensions; 0 is ``torch.histc``, with gradient 0.
        hard: return the counts of ``torch.histc``, bit for bit, with the gradient of the relaxation.

    Returns:
        ``[bins]`` of the dtype of ``x``.

    Raises:
        TypeError: ``x`` is not a floating tensor, ``bins`` no integer.
        ValueError: NaN in ``x``, ``bins`` < 1, ``min`` > ``max`` or not finite, infinities where the range is that of
            the data, ``temperature`` is negative, not finite or has dimensions, ``method`` is unknown.

    Example:
        >>> x = torch.tensor([0.1, 0.9, 1.0, 2.5])
        >>> histc(x, 3, 0, 3, temperature=0.1)
        tensor([2.4640, 0.5180, 1.0000])
        >>> histc(x, 3, 0, 3, hard=True)
        tensor([2., 1., 1.])

    References:
        Ustinova, Lempitsky (2016), Learning deep embeddings with histogram loss, eq. 3, for linear bins.
    """
    check_floating("x", x)
    check_integer("bins", bins, 1)
    check_choice("method", method, STEP_ERRORS)
    low, high = _range("min", "max", min, max)
    flat = widen(x).reshape(1, -1)
    check_entries("x", flat)
    frozen = is_hard(temperature, flat.dtype)
    by_data = low == high == 0
    edges = _equal_bins(flat, bins, None if by_data else (low, high))
    exact = torch.histc(flat.detach(), bins, low, high).to(x.dtype) if hard or frozen else None
    if exact is not None and frozen:
        return constant(exact, x)
    soft = _between(flat, edges, by_data, temperature, method).squeeze(0).to(x.dtype)
    return soft if exact is None else replace_gradient(exact, soft)


class Histogram(NamedTuple):
    """Counts, and the edges of the bins.

    Attributes:
        hist: ``[bins]`` the soft counts, or their density.
        bin_edges: ``[bins + 1]``.
    """

    hist: Tensor
    bin_edges: Tensor


def histogram(
    x: Float[Tensor, "*shape"],
    bins: int | Float[Tensor, "edges"],
    *,
    range: tuple[float, float] | None = None,
    weight: Float[Tensor, "*shape"] | None = None,
    density: bool = False,
    method: str = "logistic",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Histogram:
    """Return the weighted counts of the entries between edges (as a density, over total and width), and the edges.

    Args:
        x: ``[*shape]`` floating, flattened.
        bins: how many equal bins, >= 1, or their edges, at least 2, which must not decrease; differentiable too.
        range: of equal bins; that of the data by default, as in :func:`histc`.
        weight: ``[*shape]`` what each entry counts, differentiable too; 1 by default.
        density: divide by the total and by the width of each bin; edges must then increase strictly, and without any
            entry between them the density is NaN, as in torch.
        method, temperature, hard: as in :func:`histc`, the hard function being ``torch.histogram`` (on any device).

    Returns:
        :class:`Histogram`: ``hist``, ``bin_edges``.

    Raises:
        TypeError, ValueError: as :func:`histc`, edges that are not finite or decrease, ``weight`` of another shape, a
            ``range`` beside edges.

    Example:
        >>> x = torch.tensor([0.1, 0.9, 2.5])
        >>> histogram(x, torch.tensor([0.0, 1.0, 3.0]), hard=True).hist
        tensor([2., 1.])
        >>> histogram(x, 2, range=(0.0, 4.0), temperature=1e-6, density=True).hist
        tensor([0.3333, 0.1667])
    """
    check_floating("x", x)
    check_choice("method", method, STEP_ERRORS)
    flat = widen(x).reshape(1, -1)
    check_entries("x", flat)
    frozen = is_hard(temperature, flat.dtype)
    weights = None
    if weight is not None:
        if check_floating("weight", weight).shape != x.shape:
            raise ValueError(f"weight must have the shape of x {tuple(x.shape)}, got {tuple(weight.shape)}")
        weights = widen(weight).to(flat.dtype).reshape(1, -1)
    if isinstance(bins, Tensor):
        if check_floating("bins", bins).ndim != 1 or len(bins) < 2:
            raise ValueError(f"bins must be one dimension of at least 2 edges, got shape {tuple(bins.shape)}")
        if range is not None:
            raise ValueError("range must be None where bins are edges")
        edges, open_ends = widen(bins).to(flat.dtype), False
        check_increasing("bins", edges, strictly=density)
    else:
        check_integer("bins", bins, 1)
        bounds = None
        if range is not None:
            if not isinstance(range, tuple | list) or len(range) != 2:
                raise ValueError(f"range must be two numbers, got {range!r}")
            bounds = _range("range[0]", "range[1]", *range)
        edges, open_ends = _equal_bins(flat, bins, bounds), range is None

    def shaped(counts: Tensor) -> Tensor:
        counts = counts.squeeze(0)
        if density:
            counts = counts / (counts.sum() * edges.diff())
        return counts.to(x.dtype)

    exact = shaped(_exact_between(flat, edges.detach(), weights)) if hard or frozen else None
    if exact is not None and frozen:
        return Histogram(constant(exact, x, weight), edges.to(x.dtype))
    soft = shaped(_between(flat, edges, open_ends, temperature, method, weights))
    return Histogram(soft if exact is None else replace_gradient(exact, soft), edges.to(x.dtype))


def bincount(
    index: Float[Tensor, "*batch n"],
    weights: Float[Tensor, "*batch n"] | None = None,
    minlength: int = 0,
    *,
    method: str = "logistic",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Float[Tensor, "*batch classes"]:
    """Return how often each class ``0, 1, ...`` occurs among fractional indices: soft counts of the nearest class.

    An index belongs to class k between the edges ``k - 1/2`` and ``k + 1/2``; the first and the last class have no
    outer edge. For distributions over the classes (a softmax, :func:`~pullback.discrete.argmax`) the counts are their
    sum, which needs no block.

    Args:
        index: ``[*batch, n]`` floating; ``torch.bincount`` takes one dimension, here each row has its counts.
        weights: ``[*batch, n]`` what each entry counts, differentiable too; 1 by default.
        minlength: least number of classes, >= 0. As in torch there are at least ``max(round(index)) + 1``.
        method, temperature: as in :func:`histc`, in units of the index.
        hard: return the counts of the nearest classes with the gradient of the relaxation.

    Returns:
        ``[*batch, classes]``; each row sums to ``n`` (to the sum of its weights).

    Raises:
        TypeError: ``index`` or ``weights`` is not a floating tensor (for integers there is ``torch.bincount``).
        ValueError: no dimension, NaN, infinity or less than -1/2 in ``index``, or over 2^31 classes; ``weights`` of
            another shape, ``minlength`` < 0; ``temperature`` and ``method`` as in :func:`histc`.

    Example:
        >>> index = torch.tensor([0.0, 2.0, 1.9])
        >>> bincount(index, hard=True).tolist()
        [1.0, 0.0, 2.0]
        >>> bincount(index, minlength=4, temperature=1.0)
        tensor([0.8870, 0.3978, 1.5129, 0.2024])
    """
    check_floating("index", index)
    check_choice("method", method, STEP_ERRORS)
    check_integer("minlength", minlength, 0, _MOST_CLASSES)
    if not index.ndim:
        raise ValueError("index must have at least one dimension")
    wide = widen(index)
    check_entries("index", wide)
    frozen = is_hard(temperature, wide.dtype)
    scaled = None
    if weights is not None:
        if check_floating("weights", weights).shape != index.shape:
            raise ValueError(f"weights must have the shape of index {tuple(index.shape)}, got {tuple(weights.shape)}")
        scaled = widen(weights).to(wide.dtype)
    nearest = wide.detach().round()
    values = physical(nearest)
    low, high = (float(values.min()), float(values.max())) if values.numel() else (0.0, -1.0)
    if low < 0 or high >= _MOST_CLASSES:
        raise ValueError(f"index must be in [-1/2, {_MOST_CLASSES}), got values from {low} to {high}")
    classes = max(int(high) + 1, minlength)
    exact = None
    if hard or frozen:
        ones = torch.ones_like(nearest) if scaled is None else scaled.detach()
        exact = nearest.new_zeros(*index.shape[:-1], classes).scatter_add(-1, nearest.long(), ones).to(index.dtype)
        if frozen:
            return constant(exact, index, weights)
    if not classes:
        return constant(wide.new_zeros(*index.shape[:-1], 0).to(index.dtype), index, weights)
    edges = torch.arange(classes - 1, dtype=wide.dtype, device=index.device) + 0.5
    soft = count_regions(wide, edges, temperature, method, scaled).to(index.dtype)
    return soft if exact is None else replace_gradient(exact, soft)


class Unique(NamedTuple):
    """The known values, and how often each occurs.

    Attributes:
        values: ``[m]`` the support.
        counts: ``[*batch, m]`` the soft counts.
    """

    values: Tensor
    counts: Tensor


def unique(
    x: Float[Tensor, "*batch n"],
    support: Float[Tensor, "m"],
    *,
    method: str = "logistic",
    temperature: Scalar = 0.1,
    hard: bool = False,
) -> Unique:
    """Count how often each of the known values of ``support`` occurs: ``torch.unique(x, return_counts=True)``.

    An entry belongs to the nearest value, by soft steps half way between the neighbours. Values that do not occur have
    count 0 (torch leaves them out, so that its shape depends on the data).

    Args:
        x: ``[*batch, n]`` floating; each row has its counts.
        support: ``[m]`` strictly increasing and finite, differentiable too.
        method, temperature: as in :func:`histc`.
        hard: return the counts of the nearest values with the gradient of the relaxation.

    Returns:
        :class:`Unique`: ``values`` (the support), ``counts``; each row of them sums to ``n``.

    Raises:
        TypeError: ``x`` or ``support`` is not a floating tensor.
        ValueError: NaN in ``x`` or no dimension, ``support`` is empty, not finite or does not increase; else as in
            :func:`histc`.

    Example:
        >>> unique(torch.tensor([3.0, 1.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]), hard=True).counts.tolist()
        [1.0, 0.0, 2.0]
    """
    check_floating("x", x)
    check_choice("method", method, STEP_ERRORS)
    if check_floating("support", support).ndim != 1 or not len(support):
        raise ValueError(f"support must be one dimension of at least one value, got shape {tuple(support.shape)}")
    if not x.ndim:
        raise ValueError("x must have at least one dimension")
    wide = widen(x)
    check_entries("x", wide)
    check_increasing("support", support, strictly=True)
    frozen = is_hard(temperature, wide.dtype)
    known = widen(support).to(wide.dtype)
    edges = known[:-1] / 2 + known[1:] / 2  # not the half of a sum, which may overflow
    exact = None
    if hard or frozen:
        place = torch.bucketize(wide.detach().contiguous(), edges.detach())
        none = wide.new_zeros(*x.shape[:-1], len(support))
        exact = none.detach().scatter_add(-1, place, torch.ones_like(wide.detach())).to(x.dtype)
        if frozen:
            return Unique(support, constant(exact, x, support))
    soft = count_regions(wide, edges, temperature, method).to(x.dtype)
    return Unique(support, soft if exact is None else replace_gradient(exact, soft))


_MOST_CLASSES = 2**31


def _range(low_name: str, high_name: str, low: float, high: float) -> tuple[float, float]:
    """Return the bounds as numbers, in order and finite."""
    for name, value in ((low_name, low), (high_name, high)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    if low > high:
        raise ValueError(f"{low_name} must be at most {high_name}, got {low} and {high}")
    return float(low), float(high)


def _equal_bins(flat: Tensor, bins: int, bounds: tuple[float, float] | None) -> Tensor:
    """Return the ``bins + 1`` edges of equal bins, ``[bins + 1]``; without bounds of the range of the data."""
    if bounds is not None:
        low, high = (torch.full((), bound, dtype=torch.float64, device=flat.device) for bound in bounds)
    elif flat.numel():
        if not torch.compiler.is_compiling() and value_state(flat).infinite:
            raise ValueError("x must be finite where the range of the bins is that of the data")
        low, high = flat.amin().double(), flat.amax().double()
    else:
        low, high = torch.zeros(2, dtype=torch.float64, device=flat.device)
    equal = (low == high).double()
    low, high = low - equal, high + equal
    steps = torch.arange(bins + 1, dtype=torch.float64, device=flat.device)
    return (low + (high - low) * steps / bins).to(flat.dtype)


def _between(
    flat: Tensor, edges: Tensor, open_ends: bool, temperature: Scalar, method: str, weights: Tensor | None = None
) -> Tensor:
    """Return the soft counts ``[1, bins]`` between neighbouring edges, the outer ones infinite with ``open_ends``."""
    if open_ends:
        return count_regions(flat, edges[1:-1], temperature, method, weights)
    return count_regions(flat, edges, temperature, method, weights)[..., 1:-1]


def _exact_between(flat: Tensor, edges: Tensor, weights: Tensor | None) -> Tensor:
    """Return the counts ``[1, bins]`` of the half-open bins; the last one holds its right edge."""
    x, bins = flat.detach().contiguous(), edges.shape[-1] - 1
    place = torch.searchsorted(edges.contiguous(), x, right=True) - 1
    inside = (x >= edges[0]) & (x <= edges[-1])
    counted = inside.to(x.dtype) if weights is None else torch.where(inside, weights.detach(), 0.0)
    return x.new_zeros(1, bins).scatter_add(-1, place.clamp(0, bins - 1), counted)
