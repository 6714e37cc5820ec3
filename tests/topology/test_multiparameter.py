"""Two-parameter persistence: ranks by elimination, the forms of one measure, stability, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pullback import topology
from pullback.topology import Bifiltration


def _random(seed: int, levels: int | None = None) -> Bifiltration:
    """Cliques of a random graph; values raised to those of the faces."""
    g = torch.Generator().manual_seed(seed)
    adjacency = torch.rand(7, 7, generator=g) < 0.7
    tables = topology.flag_simplices(adjacency | adjacency.mT, max_dim=3)
    values = torch.rand(sum(map(len, tables)), 2, generator=g, dtype=torch.float64)
    values = values if levels is None else (levels * values).floor()
    raised: dict[tuple[int, ...], Tensor] = {}
    for simplex, value in zip([tuple(row) for table in tables for row in table.tolist()], values, strict=True):
        faces = [raised[face] for face in itertools.combinations(simplex, len(simplex) - 1) if face]
        raised[simplex] = torch.stack([value, *faces]).amax(0)
    return Bifiltration(tuple(tables), torch.stack([*raised.values()]))


def _rank(filtered: Bifiltration, x: float, y: float, degree: int) -> int:
    """Cycles less boundaries, by elimination over Z/2."""
    inside, at = [], 0
    for table in filtered.simplices:
        rows = filtered.values[at : at + len(table)]
        inside.append([tuple(r) for r, v in zip(table.tolist(), rows.tolist(), strict=True) if v[0] <= x and v[1] <= y])
        at += len(table)
    ranks = [0]
    for low, high in itertools.pairwise([*inside, []]):
        place, pivots = {simplex: i for i, simplex in enumerate(low)}, {}
        for simplex in high:
            column = sum(1 << place[face] for face in itertools.combinations(simplex, len(simplex) - 1))
            while column and column.bit_length() in pivots:
                column ^= pivots[column.bit_length()]
            if column:
                pivots[column.bit_length()] = column
        ranks.append(len(pivots))
    return len(inside[degree]) - ranks[degree] - ranks[degree + 1]


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("levels", [3, None])
def test_the_hilbert_function_is_the_rank_at_every_point_of_the_grid(degree: int, levels: int | None) -> None:
    for seed in range(3):
        filtered = _random(seed, levels)
        found = topology.hilbert_function(filtered, degree=degree)
        xs, ys = found.x[::3], found.y[::3]
        coarse = topology.hilbert_function(filtered, degree=degree, grid=(xs, ys))
        assert torch.equal(coarse.ranks, found.ranks[::3, ::3])
        for (i, x), (j, y) in itertools.product(enumerate(xs.tolist()), enumerate(ys.tolist())):
            assert coarse.ranks[i, j] == _rank(filtered, x, y, degree)


def test_a_coarse_measure_is_the_hilbert_function_on_its_lines() -> None:
    filtered = _random(4)
    measure = topology.signed_measure(filtered, degree=1, grid=(6, 5))
    exact = topology.hilbert_function(filtered, degree=1)
    assert len(measure.points[:, 0].unique()) <= 6
    assert len(measure.points[:, 1].unique()) <= 5
    attained = filtered.values
    for column, lines in ((0, 6), (1, 5)):
        values = attained[:, column].unique()
        kept = values[torch.linspace(0, len(values) - 1, lines).round().long()]
        assert set(measure.points[:, column].tolist()) <= set(kept.tolist())
    x, y = (attained[:, c].unique() for c in (0, 1))
    xs = x[torch.linspace(0, len(x) - 1, 6).round().long()]
    ys = y[torch.linspace(0, len(y) - 1, 5).round().long()]
    for a, b in itertools.product(xs, ys):
        total = measure.weights[(measure.points[:, 0] <= a) & (measure.points[:, 1] <= b)].sum()
        assert total == exact.ranks[(exact.x == a).nonzero(), (exact.y == b).nonzero()]


@pytest.mark.parametrize("max_edge", [None, 1.5])
def test_a_rips_complex_by_slices_is_that_of_its_listed_cliques(max_edge: float | None) -> None:
    g = torch.Generator().manual_seed(3)
    points, function = torch.randn(14, 2, generator=g).double(), torch.randn(14, generator=g).double()
    implied = topology.function_rips(points, function, max_edge=max_edge)
    near = torch.cdist(points, points) <= (torch.inf if max_edge is None else max_edge)
    tables = topology.flag_simplices(near, max_dim=2)
    distances = torch.cdist(points, points)
    values = [
        torch.tensor([[max(distances[i, j] for i in row for j in row), max(function[i] for i in row)] for row in table])
        for table in (t.tolist() for t in tables)
    ]
    listed = Bifiltration(tuple(tables), torch.cat([v.view(-1, 2).double() for v in values]))
    for degree in (0, 1):
        a, b = (topology.signed_measure(f, degree=degree) for f in (implied, listed))
        assert torch.equal(a.weights, b.weights)
        torch.testing.assert_close(a.points, b.points, rtol=1e-6, atol=1e-6)


def test_a_batch_of_graphs_is_the_graphs_one_by_one() -> None:
    g = torch.Generator().manual_seed(0)
    edges = [torch.tensor([[0, 1], [1, 2], [0, 2]]), torch.tensor([[0, 1]]), torch.tensor([[0, 3], [1, 3]])]
    values = [torch.rand(n, 2, generator=g) for n in (3, 2, 4)]
    batch = torch.tensor([0] * 3 + [1] * 2 + [2] * 4)
    joined = topology.graph_bifiltration(
        torch.cat(values), torch.cat([e + s for e, s in zip(edges, (0, 3, 5), strict=True)]), batch=batch
    )
    for degree, grid in itertools.product((0, 1), ("exact", (2, 2))):
        whole = topology.signed_measure(joined, degree=degree, grid=grid)
        for i in range(3):
            alone = topology.signed_measure(topology.graph_bifiltration(values[i], edges[i]), degree=degree, grid=grid)
            assert torch.equal(whole.points[whole.batch == i], alone.points)
            assert torch.equal(whole.weights[whole.batch == i], alone.weights)


def test_the_distance_of_measures_is_stable_symmetric_and_zero_on_equal_ones() -> None:
    for seed in range(20):
        one = _random(seed)
        noise = 0.2 * torch.rand(one.values.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        other = Bifiltration(one.simplices, one.values + noise.cumsum(0))
        a, b = topology.signed_measure(one), topology.signed_measure(other)
        for method in ("exact", "sliced"):
            apart = topology.signed_measure_distance(a, b, method=method)
            torch.testing.assert_close(apart, topology.signed_measure_distance(b, a, method=method))
            assert topology.signed_measure_distance(a, a, method=method).item() == pytest.approx(0, abs=1e-9)
            assert 0 < apart.item() <= 2 * (one.values - other.values).abs().sum()


def test_measures_of_different_mass_have_no_distance() -> None:
    zero = torch.tensor([0])
    a, b = (topology.SignedMeasure(torch.zeros(1, 2), torch.tensor([w]), zero, 1) for w in (1, 2))
    with pytest.raises(ValueError, match="a and b must have weights of the same sum, got 1 and 2 in element 0"):
        topology.signed_measure_distance(a, b)


_V, _E = torch.arange(3)[:, None], torch.tensor([[0, 1], [1, 2]])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Bifiltration((_V, _E), torch.zeros(4, 2)), r"values must have shape \(5, 2\)"),
        (lambda: Bifiltration((_V, _E), torch.full((5, 2), torch.nan)), "values must be finite"),
        (lambda: Bifiltration((_V, _E), torch.eye(5)[:, :2]), r"as at simplex \[0, 1\] \(place 3\)"),
        (lambda: Bifiltration((_V[:0],), torch.zeros(0, 2)), "at least one"),
        (lambda: Bifiltration((_V.flip(0), _E), torch.zeros(5, 2)), r"vertices 0, 1, ... in order"),
        (lambda: Bifiltration((_V, _E + 1), torch.zeros(5, 2)), r"simplices\[1\] must hold vertices below 3, got 3"),
        (lambda: Bifiltration((_V, _E), torch.zeros(5, 2), torch.tensor([0, 1, 1])), "must not join two complexes"),
        (lambda: Bifiltration((_V, _E), torch.zeros(5, 2), torch.zeros(2).long()), "batch must be int64 of shape"),
        (
            lambda: Bifiltration((_V, _E, torch.tensor([[0, 1, 2]])), torch.zeros(6, 2)),
            r"must hold all faces, one of \[0, 1, 2\] is missing",
        ),
        (lambda: topology.signed_measure(topology.function_rips(torch.zeros(3, 2), torch.zeros(3)), degree=2), "0..1"),
        (
            lambda: topology.hilbert_function(
                Bifiltration((_V, _E[:0]), torch.zeros(3, 2), torch.tensor([0, 0, 1])),
            ),
            "bifiltration must be one complex, got a batch of 2",
        ),
    ],
)
def test_what_is_no_bifiltration_is_refused_by_name(make, match, without_shape_checks) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=match):
        make()
