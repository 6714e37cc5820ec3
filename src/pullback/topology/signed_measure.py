"""Signed measures of two-parameter persistence: where the Hilbert function jumps, with a gradient."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_floating, check_integer, check_same_dtype, check_scalar
from pullback.core.shapes import Float, Int, Scalar
from pullback.core.transforms import below_transforms
from pullback.kernels.components import slice_components
from pullback.kernels.persistence import pair_cells, rips_cycles
from pullback.topology.bifiltration import Bifiltration
from pullback.topology.complexes import flag_simplices
from pullback.topology.pairing import as_array
from pullback.topology.reduction import boundary
from pullback.topology.segments import segment_reduce
from pullback.transport import assignment, wasserstein_1d

__all__ = [
    "HilbertFunction",
    "SignedMeasure",
    "convolve_signed_measure",
    "hilbert_function",
    "signed_measure",
    "signed_measure_distance",
]


class SignedMeasure(NamedTuple):
    r"""Point masses :math:`\mu = \sum_k w_k \delta_{p_k}` of a batch, one element after the other.

    Attributes:
        points: ``[n, 2]``, each coordinate the value of one simplex, with its gradient.
        weights: ``[n]`` int64, not 0.
        batch: ``[n]`` int64 the element of each.
        count: number of elements.
    """

    points: Float[Tensor, "n 2"]
    weights: Int[Tensor, "n"]
    batch: Int[Tensor, "n"]
    count: int  # type: ignore[assignment]  # a field, not tuple.count


class HilbertFunction(NamedTuple):
    """Ranks of homology on a grid.

    Attributes:
        ranks: ``[nx, ny]`` int64, the rank of ``K_p`` at ``p = (x_i, y_j)``.
        x: ``[nx]`` first coordinates.
        y: ``[ny]`` second coordinates.
    """

    ranks: Int[Tensor, "nx ny"]
    x: Float[Tensor, "nx"]
    y: Float[Tensor, "ny"]


def hilbert_function(
    bifiltration: Bifiltration,
    *,
    degree: int = 0,
    grid: tuple[Float[Tensor, "nx"], Float[Tensor, "ny"]] | None = None,
) -> HilbertFunction:
    r"""Return the ranks of homology over Z/2: :math:`H(p) = \mathrm{rank}\, H_k(K_p)`.

    Args:
        bifiltration: one complex.
        degree: ``k`` of homology.
        grid: coordinates at which to evaluate, any numbers; by default all that are attained, ascending.

    Returns:
        :class:`HilbertFunction`, without gradient (see :func:`signed_measure`).

    Raises:
        TypeError: an argument has another type.
        ValueError: ``bifiltration`` is a batch, or ``degree`` is out of range.

    Example:
        >>> from pullback.topology import graph_bifiltration
        >>> path = graph_bifiltration(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0, 1]]))
        >>> hilbert_function(path).ranks
        tensor([[0, 1],
                [1, 1]])

    References:
        Carlsson, Zomorodian (2009), The theory of multidimensional persistence.
    """
    measure = signed_measure(bifiltration, degree=degree)
    if bifiltration.count != 1:
        raise ValueError(f"bifiltration must be one complex, got a batch of {bifiltration.count}")
    values = bifiltration.values.detach()
    x, y = grid if grid is not None else (values[:, 0].unique(), values[:, 1].unique())
    for name, axis in (("grid[0]", x), ("grid[1]", y)):
        check_floating(name, axis)
        if axis.ndim != 1:
            raise ValueError(f"{name} must have one dimension, got shape {tuple(axis.shape)}")
    left, below = (measure.points.detach()[:, i, None] <= axis for i, axis in enumerate((x, y)))
    weighted = left.double() * measure.weights[:, None]
    return HilbertFunction((weighted.mT @ below.double()).round().long(), x, y)


def signed_measure(
    bifiltration: Bifiltration, *, degree: int = 0, grid: str | tuple[int, int] = "exact"
) -> SignedMeasure:
    r"""Return the signed measure whose cumulative sums are the Hilbert function (its signed barcode).

    .. math:: \mathrm{rank}\, H_k(K_p) = \sum_{p_i \le p} w_i

    For each value of the second coordinate, ordinary persistence of the sublevel complex along the first gives bars;
    births count +1, deaths -1, and differences between consecutive levels are the weights. Which simplices carry the
    coordinates, and the weights, depend on the *order* of the values alone: they are found without gradient, and the
    points are gathered from ``bifiltration.values``. So the measure is affine in the values while their order stays,
    with the gradient of that piece; where values are equal, it is that of one of the pieces.

    Args:
        bifiltration: one complex or a batch.
        degree: ``k`` of homology, >= 0; below the ``flag_dim`` of a Rips complex.
        grid: ``"exact"``, or numbers of grid lines ``(nx, ny)``: so many of the attained values, evenly spread by rank,
            the first and last among them; each simplex then enters at the next line. The work grows with ``ny``.

    Returns:
        :class:`SignedMeasure`, sorted by element, first and second coordinate. Its weights sum to the rank of the whole
        complex.

    Raises:
        TypeError: an argument has another type.
        ValueError: ``degree`` or ``grid`` is out of range.

    Example:
        >>> from pullback.topology import graph_bifiltration
        >>> path = graph_bifiltration(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0, 1]]))
        >>> measure = signed_measure(path)
        >>> measure.points.tolist(), measure.weights.tolist()
        ([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]], [1, 1, -1])

    References:
        Scoccola, Setlur, Loiseaux, Carriere, Oudot (2024), Differentiability and optimization of multiparameter
        persistent homology, sections 3 and 4.
        Botnan, Oppermann, Oudot (2024), Signed barcodes for multi-parameter persistence via rank decompositions.
    """
    if not isinstance(bifiltration, Bifiltration):
        raise TypeError(f"bifiltration must be a Bifiltration, got {type(bifiltration).__name__}")
    top = len(bifiltration.simplices) - 1 if bifiltration.flag_dim is None else bifiltration.flag_dim - 1
    check_integer("degree", degree, 0, top)
    if grid != "exact" and (not isinstance(grid, tuple) or len(grid) != 2):
        raise ValueError(f"grid must be 'exact' or numbers of lines (nx, ny), got {grid!r}")
    lines = (None, None) if grid == "exact" else tuple(check_integer("grid", n, 1) for n in grid)
    numbers = as_array(bifiltration.values)
    with below_transforms():
        first, second, weights, element = _combinatorics(bifiltration, numbers, degree, lines)
    device = bifiltration.values.device
    at = [torch.from_numpy(places).to(device) for places in (first, second)]
    points = torch.stack([bifiltration.values[at[0], 0], bifiltration.values[at[1], 1]], 1)
    weight, batch = (torch.from_numpy(numbers).to(device) for numbers in (weights, element))
    return SignedMeasure(points, weight, batch, bifiltration.count)


def signed_measure_distance(
    a: SignedMeasure, b: SignedMeasure, *, method: str = "exact", lines: int = 50
) -> Float[Tensor, "count"]:
    r"""Return the transport distance of signed measures: :math:`\mathrm{OT}_1(a^+ + b^-,\ b^+ + a^-)`.

    Args:
        a, b: batches of as many elements, whose weights have the same sums.
        method: ``"exact"``: ground cost :math:`\lVert p - q \rVert_1`, by assignment, O(n^3). ``"sliced"``: the mean,
            over evenly spread lines through the origin, of the distances of the projections, O(lines n log n).
        lines: of ``"sliced"``, >= 1.

    Returns:
        ``[count]``, differentiable in the points.

    Raises:
        TypeError: ``a`` or ``b`` is no signed measure, or the dtypes differ.
        ValueError: the numbers of elements or the sums of weights differ, or ``method`` is unknown.

    Example:
        >>> zero, one = torch.tensor([0]), torch.tensor([1])
        >>> a, b = (SignedMeasure(torch.tensor([p]), one, zero, 1) for p in ([0.0, 0.0], [1.0, 2.0]))
        >>> signed_measure_distance(a, b)
        tensor([3.])

    References:
        Scoccola, Setlur, Loiseaux, Carriere, Oudot (2024), section 3.
        Loiseaux, Scoccola, Carriere, Botnan, Oudot (2023), Stable vectorization of multiparameter persistent homology
        using signed barcodes as measures.
    """
    for name, measure in (("a", a), ("b", b)):
        _check_measure(name, measure)
    check_choice("method", method, ("exact", "sliced"))
    check_integer("lines", lines, 1)
    check_same_dtype(a=a.points, b=b.points)
    if a.count != b.count:
        raise ValueError(f"a and b must have as many elements, got {a.count} and {b.count}")
    totals = [segment_reduce(m.weights, m.batch, m.count) for m in (a, b)]
    if not bool((totals[0] == totals[1]).all()):
        at = int((totals[0] != totals[1]).nonzero()[0])
        came = " and ".join(str(int(total[at])) for total in totals)
        raise ValueError(f"a and b must have weights of the same sum, got {came} in element {at}")
    distances = []
    for element in range(a.count):
        left: list[tuple[Tensor, Tensor]] = []
        right: list[tuple[Tensor, Tensor]] = []
        for measure, (up, down) in ((a, (left, right)), (b, (right, left))):
            mine = measure.batch == element
            points, weights = measure.points[mine], measure.weights[mine]
            up.append((points[weights > 0], weights[weights > 0]))
            down.append((points[weights < 0], -weights[weights < 0]))
        (p, p_mass), (q, q_mass) = (tuple(map(torch.cat, zip(*side, strict=True))) for side in (left, right))
        distances.append(_transport(p, p_mass, q, q_mass, method, lines))
    return torch.stack(distances)


def convolve_signed_measure(
    measure: SignedMeasure, queries: Float[Tensor, "q 2"], *, bandwidth: Scalar
) -> Float[Tensor, "count q"]:
    r"""Return a Gaussian convolution of signed measures: :math:`\sum_k w_k \exp(-\lVert q - p_k \rVert^2 / 2 s^2)`.

    Args:
        measure: a batch.
        queries: ``[q, 2]`` where to evaluate; differentiable.
        bandwidth: s > 0, in the units of the points.

    Returns:
        ``[count, q]`` features of each element, of any sign.

    Raises:
        TypeError: ``measure`` is no signed measure, ``queries`` are not floating, or the dtypes differ.
        ValueError: ``queries`` have another shape, or ``bandwidth`` <= 0.

    Example:
        >>> zero = torch.tensor([0])
        >>> one = SignedMeasure(torch.zeros(1, 2), torch.tensor([2]), zero, 1)
        >>> convolve_signed_measure(one, torch.zeros(1, 2), bandwidth=1.0)
        tensor([[2.]])

    References:
        Loiseaux, Scoccola, Carriere, Botnan, Oudot (2023), Stable vectorization of multiparameter persistent homology
        using signed barcodes as measures, section 3.
    """
    _check_measure("measure", measure)
    check_floating("queries", queries)
    check_same_dtype(measure=measure.points, queries=queries)
    if queries.ndim != 2 or queries.shape[1] != 2:
        raise ValueError(f"queries must have shape (q, 2), got {tuple(queries.shape)}")
    check_scalar("bandwidth", bandwidth)
    away = (measure.points[:, None] - queries) / bandwidth
    kernels = torch.exp(-0.5 * away.clamp(-1e3, 1e3).square().sum(-1))
    return segment_reduce(kernels * measure.weights[:, None].to(kernels.dtype), measure.batch, measure.count)


class _Axis:
    """The grid lines of one coordinate, element after element, and the one at which each simplex enters."""

    def __init__(self, values: np.ndarray, element: np.ndarray, count: int, lines: int | None) -> None:
        order = np.lexsort((values, element))
        new = np.ones(len(order), bool)
        new[1:] = (np.diff(values[order]) != 0) | (np.diff(element[order]) != 0)
        rank = np.cumsum(new) - 1
        places = order[new]
        starts = np.searchsorted(element[places], np.arange(count + 1))
        if lines is not None:
            sizes = np.diff(starts)
            kept = [
                begin + np.unique(np.linspace(0, n - 1, min(lines, n)).round().astype(int) if lines > 1 else [n - 1])
                for begin, n in zip(starts[:-1], sizes, strict=True)
                if n
            ]
            chosen = np.concatenate(kept)
            rank = np.searchsorted(chosen, rank)  # up to the next line; the last value is one
            places = places[chosen]
            starts = np.searchsorted(element[places], np.arange(count + 1))
        self.places, self.starts = places, starts
        self.line = np.empty(len(order), np.int64)
        self.line[order] = rank


def _combinatorics(b: Bifiltration, numbers: np.ndarray, degree: int, lines: Any) -> tuple[np.ndarray, ...]:
    """Places of the simplices whose values are the coordinates of the points, weights, and elements."""
    element = b.of_simplex.cpu().numpy()
    x, y = (_Axis(numbers[:, i], element, b.count, lines[i]) for i in range(2))
    if degree == 0 or (degree == 1 and b.flag_dim is None and len(b.simplices) == 2):
        born, died, level = _components(b, numbers, element, y)
    elif degree == 1 and b.flag_dim is not None:
        born, died, level = _rips_slices(b, numbers, element, y)
    else:
        born, died, level = _reduced_slices(b, numbers, element, y, degree)
    ends = died >= 0
    followed = level + 1 < y.starts[element[born] + 1]
    terms = [
        (x.line[born], level, 1),
        (x.line[died[ends]], level[ends], -1),
        (x.line[born[followed]], level[followed] + 1, -1),
        (x.line[died[ends & followed]], level[ends & followed] + 1, 1),
    ]
    if degree == 1 and b.flag_dim is None and len(b.simplices) == 2:
        # Of a graph: vertices - edges = components - cycles.
        vertices = len(b.simplices[0])
        terms += [(x.line[:vertices], y.line[:vertices], -1), (x.line[vertices:], y.line[vertices:], 1)]
    keys = np.concatenate([first * len(y.places) + second for first, second, _ in terms])
    signs = np.concatenate([np.full(len(first), sign) for first, _, sign in terms])
    keys, group = np.unique(keys, return_inverse=True)
    weights = np.bincount(group.ravel(), signs, len(keys)).round().astype(np.int64)
    kept = weights != 0
    first, second = np.divmod(keys[kept], len(y.places))
    places = x.places[first], y.places[second]
    return *places, weights[kept], element[places[0]]


def _components(b: Bifiltration, numbers: np.ndarray, element: np.ndarray, y: _Axis) -> Any:
    """Pairs of degree 0: places of simplices that bear and end a class, and the level (index of a line)."""
    vertices = len(b.simplices[0])
    edges = b.simplices[1].cpu().numpy() if len(b.simplices) > 1 else np.empty((0, 2), np.int64)
    listed = vertices + len(edges)
    order = np.lexsort((np.arange(listed) >= vertices, numbers[:listed, 0], element[:listed]))
    position = np.empty(listed, np.int64)
    position[order] = np.arange(listed)
    ends = np.concatenate([np.repeat(np.arange(vertices)[:, None], 2, 1), edges])[order]
    starts = np.searchsorted(element[order], np.arange(b.count + 1))
    levels = numbers[y.places, 1]
    born, died, level = slice_components(position[ends], numbers[order, 1], starts, levels, y.starts)
    return order[born], np.where(died >= 0, order[died], -1), level


def _rips_slices(b: Bifiltration, numbers: np.ndarray, element: np.ndarray, y: _Axis) -> Any:
    """Pairs of degree 1 of a Rips complex: its slices are those of fewer points."""
    born, died, at = [], [], []
    edges, vertices = b.simplices[1].cpu().numpy(), len(b.simplices[0])
    lengths = numbers[vertices:, 0]
    place, distances = np.full((vertices, vertices), -1), np.full((vertices, vertices), 1 + 2 * lengths.max(initial=0))
    np.fill_diagonal(distances, 0)  # edges that were left out are longer than all others
    for i, j in ((0, 1), (1, 0)):
        place[edges[:, i], edges[:, j]] = np.arange(vertices, vertices + len(edges))
        distances[edges[:, i], edges[:, j]] = lengths
    for level in range(len(y.places)):
        mine = element[:vertices] == element[y.places[level]]
        inside = np.flatnonzero(mine & (numbers[:vertices, 1] <= numbers[y.places[level], 1]))
        found, _ = rips_cycles(distances[np.ix_(inside, inside)])
        first, last = (place[inside[found[:, i]], inside[found[:, i + 1]]] for i in (0, 2))
        there = first >= 0  # an edge that was left out for its length begins nothing
        born.append(first[there])
        died.append(last[there])
        at.append(np.full(there.sum(), level))
    return np.concatenate(born), np.concatenate(died), np.concatenate(at)


def _reduced_slices(b: Bifiltration, numbers: np.ndarray, element: np.ndarray, y: _Axis, degree: int) -> Any:
    """Pairs of any degree by reduction of every slice; a clique is named by the edge that it enters with."""
    tables, carrier, values = _listed(b, numbers)
    of_all = element[carrier]
    pairs = []
    for e in range(b.count):
        mine = np.flatnonzero(of_all == e)
        sizes = np.cumsum([0, *map(len, tables)])
        inside = [table[of_all[sizes[k] : sizes[k + 1]] == e] for k, table in enumerate(tables)]
        local = [np.sort(np.searchsorted(inside[0].ravel(), table), 1) for table in inside]
        of_dimension = np.cumsum([0, *map(len, local)])
        levels = np.arange(y.starts[e], y.starts[e + 1])
        entered = values[mine, 1] <= numbers[y.places[levels], 1][:, None]
        slices = np.where(entered, values[mine, 0], np.inf)
        partner = pair_cells(*boundary(local), np.argsort(slices, -1, kind="stable"))
        low, high = of_dimension[degree], of_dimension[degree + 1]
        own = partner[:, low:high]
        born = entered[:, low:high] & ((own < 0) | (own >= high))
        level, column = np.nonzero(born)
        last = own[level, column]
        died = np.where((last >= 0) & entered[level, last], carrier[mine[last]], -1)
        pairs.append((carrier[mine[low + column]], died, levels[level]))
    return tuple(map(np.concatenate, zip(*pairs, strict=True)))


def _listed(b: Bifiltration, numbers: np.ndarray) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """All simplices, cliques too: tables, the listed simplex whose first value each has, and both values."""
    tables = [table.cpu().numpy() for table in b.simplices]
    carrier, values = np.arange(len(numbers)), numbers
    if b.flag_dim is None:
        return tables, carrier, values
    vertices, ends = len(tables[0]), tables[1].T
    place = np.full((vertices, vertices), -1)
    place[ends[0], ends[1]] = place[ends[1], ends[0]] = vertices + np.arange(len(tables[1]))
    cliques = [t.numpy() for t in flag_simplices(torch.from_numpy(place >= 0), max_dim=b.flag_dim)[2:]]
    for table in cliques:
        sides = np.stack([place[table[:, i], table[:, j]] for i in range(table.shape[1]) for j in range(i)], 1)
        longest = sides[np.arange(len(sides)), numbers[sides, 0].argmax(1)]
        carrier = np.concatenate([carrier, longest])
        values = np.concatenate([values, np.stack([numbers[longest, 0], numbers[sides, 1].max(1)], 1)])
    return [*tables, *cliques], carrier, values


def _transport(p: Tensor, p_mass: Tensor, q: Tensor, q_mass: Tensor, method: str, lines: int) -> Tensor:
    if not len(p):
        return p.sum()
    if method == "exact":
        left, right = p.repeat_interleave(p_mass, 0), q.repeat_interleave(q_mass, 0)
        return assignment((left[:, None] - right).abs().sum(-1)).value
    angles = (torch.arange(lines, dtype=torch.float64, device=p.device) + 0.5) * (math.pi / lines)
    directions = torch.stack([angles.cos(), angles.sin()]).to(p.dtype)
    projected = ((x @ directions).mT for x in (p, q))
    masses = (mass.to(p.dtype).expand(lines, -1) for mass in (p_mass, q_mass))
    return wasserstein_1d(*projected, *masses, p=1).mean()


def _check_measure(name: str, measure: Any) -> None:
    if not isinstance(measure, SignedMeasure):
        raise TypeError(f"{name} must be a SignedMeasure, got {type(measure).__name__}")
    check_floating(f"{name}.points", measure.points)
    n = len(measure.points) if measure.points.ndim else 0
    if tuple(measure.points.shape) != (n, 2):
        raise ValueError(f"{name}.points must have shape (n, 2), got {tuple(measure.points.shape)}")
    for field in ("weights", "batch"):
        value = getattr(measure, field)
        if value.dtype != torch.int64 or tuple(value.shape) != (n,):
            raise ValueError(f"{name}.{field} must be int64 of shape ({n},), got {value.dtype} {tuple(value.shape)}")
