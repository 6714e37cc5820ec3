"""Persistence beyond the laws: every path of the loops, ragged batches, ties, what never ends, what is missing."""

from __future__ import annotations

import sys
from collections.abc import Callable

import gudhi
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from sklearn.manifold import trustworthiness as trustworthiness_of_sklearn
from torch import Tensor

from pullback import topology
from pullback.kernels import persistence as kernels


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _circle(n: int) -> Tensor:
    angles = torch.rand(n, generator=_generator(), dtype=torch.float64) * 2 * torch.pi
    return torch.stack([angles.cos(), angles.sin()], -1)


def _clouds() -> dict[str, Tensor]:
    g = _generator()
    square = torch.rand(40, 2, generator=g, dtype=torch.float64)
    return {
        "square": square,
        "cube": torch.rand(40, 3, generator=g, dtype=torch.float64),
        "far clusters": torch.cat([square[:20], square[20:] + 30]),
        "a loop that dies late": 10 * _circle(30),
        "loops of two sizes": torch.cat([_circle(25), 12 * _circle(35) + 40]),
        "ten dimensions": torch.randn(35, 10, generator=g, dtype=torch.float64),
        "one line": torch.cat([square[:, :1], torch.zeros_like(square[:, :1])], 1),
    }


def _intervals(distances: Tensor, degree: int) -> Tensor:
    tree = gudhi.SimplexTree.create_from_array(distances.numpy())
    tree.expansion(degree + 1)
    tree.compute_persistence()
    found = tree.persistence_intervals_in_dimension(degree).reshape(-1, 2)
    return torch.from_numpy(found[np.lexsort((found[:, 1], found[:, 0]))])


@pytest.mark.parametrize("name", _clouds())
@pytest.mark.parametrize("degree", [0, 1])
def test_rips_diagrams_equal_those_of_gudhi(name: str, degree: int) -> None:
    distances = topology.pairwise_distances(_clouds()[name])
    (bars,) = topology.persistence(distances, degrees=(degree,), essential=True)
    assert torch.equal(torch.stack([bars.birth, bars.death], -1), _intervals(distances, degree))


@pytest.mark.parametrize("name", _clouds())
def test_simplices_carry_their_values(name: str) -> None:
    distances = topology.pairwise_distances(_clouds()[name])
    for bars in topology.persistence(distances, degrees=(0, 1)):
        for simplices, values in ((bars.birth_simplex, bars.birth), (bars.death_simplex, bars.death)):
            longest = distances[simplices[:, :, None], simplices[:, None, :]].amax((1, 2))
            assert torch.equal(longest, values)


def test_loops_without_numba_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    clouds = torch.rand(3, 15, 2, generator=_generator(), dtype=torch.float64)
    distances = topology.pairwise_distances(clouds)
    heights = torch.rand(2, 15, generator=_generator(), dtype=torch.float64)
    triangles = [torch.combinations(torch.arange(15), 3)[::7]]

    def everything() -> list[Tensor]:
        found = topology.persistence(distances, degrees=(0, 1))
        found += topology.persistence(heights, degrees=(0, 1), kind="lower_star", simplices=triangles, essential=True)
        found += (topology.bottleneck_distance(found[0], topology.persistence(2 * distances)[0]),)
        return [t for each in found for t in ([each] if isinstance(each, Tensor) else list(each))]

    compiled = everything()
    loops = (kernels._prim, kernels._cycles, kernels._pair, kernels._begins_above)
    monkeypatch.setattr(kernels, "_loops", lambda: loops)
    monkeypatch.setattr(kernels, "compiled", lambda: None)
    for plain, other in zip(everything(), compiled, strict=True):
        assert torch.equal(plain, other)


def test_the_tree_of_torch_is_that_of_the_loops() -> None:
    distances = topology.pairwise_distances(torch.rand(5, 20, 2, generator=_generator()))
    for got, expected in zip(
        kernels.spanning_tree(distances, True), kernels.spanning_tree_reference(distances, True), strict=True
    ):
        assert torch.equal(got, expected)
    whole = distances.mul(5).round()  # ties
    trees = [f(whole, True) for f in (kernels.spanning_tree, kernels.spanning_tree_reference)]
    lengths = [whole[torch.arange(5)[:, None], e[..., 0], e[..., 1]].sum(-1) for e, _ in trees]
    assert torch.equal(*lengths)
    assert torch.equal(trees[0][1], trees[1][1])


@pytest.mark.parametrize(
    ("points", "degenerate"),
    [
        ([0.0, 1.0, 3.0], False),
        ([0.0, 1.0, 2.0], False),  # two edges as long, both in the only tree
        ([0.0, 0.0, 0.0], True),
    ],
)
def test_components_are_degenerate_where_another_tree_is_as_short(points: list[float], degenerate: bool) -> None:
    line = torch.tensor(points)
    (bars,) = topology.persistence((line[:, None] - line).abs())
    assert bars.degenerate.item() is degenerate


def test_degenerate_agrees_with_all_trees() -> None:
    """Distances of whole numbers: another tree is as short where shifting one edge out of the tree changes nothing."""
    g = _generator()
    for _ in range(40):
        upper = torch.randint(1, 8, (5, 5), generator=g).double().triu(1)
        distances = upper + upper.T
        (bars,) = topology.persistence(distances)
        pairs = topology.rips_pairs(distances)
        total = distances[pairs[:, 0], pairs[:, 1]].sum()
        others = []
        for i, j in pairs.tolist():
            without = distances.clone()
            without[i, j] = without[j, i] = 100
            again = topology.rips_pairs(without)
            others.append(without[again[:, 0], again[:, 1]].sum() == total)
        assert bars.degenerate.item() == any(others)


def test_loops_are_degenerate_where_edges_are_as_long() -> None:
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    moved = square + 0.01 * torch.rand(4, 2, generator=_generator())
    (bars,) = topology.persistence(topology.pairwise_distances(torch.stack([square, moved])), degrees=(1,))
    assert bars.degenerate.tolist() == [True, False]


def test_a_ragged_batch_is_its_elements() -> None:
    g = _generator()
    clouds = [topology.pairwise_distances(torch.rand(n, 2, generator=g)).requires_grad_() for n in (5, 12, 30)]
    for degree, bars in enumerate(topology.persistence(clouds, degrees=(0, 1))):
        assert bars.degenerate.shape == (3,)
        for i, cloud in enumerate(clouds):
            (own,) = topology.persistence(cloud, degrees=(degree,))
            assert torch.equal(bars.death[bars.batch == i], own.death)
            assert torch.equal(bars.birth_simplex[bars.batch == i], own.birth_simplex)
    valleys = [torch.tensor([0.0, 2.0, 1.0]), torch.tensor([0.0, 3.0, 1.0, 4.0, 2.0])]
    paths = [[torch.stack([torch.arange(len(v) - 1), torch.arange(1, len(v))], 1)] for v in valleys]
    (bars,) = topology.persistence(valleys, kind="lower_star", simplices=paths)
    assert bars.batch.tolist() == [0, 1, 1]
    assert bars.death.tolist() == [2, 3, 4]


def test_the_gradient_moves_the_vertices_that_carry_a_bar() -> None:
    x = torch.tensor([0.0, 2.0, 1.0], requires_grad=True)
    (bars,) = topology.persistence(x, kind="lower_star", simplices=[torch.tensor([[0, 1], [1, 2]])])
    (bars.death - bars.birth).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, -1]


def test_alpha_diagrams_equal_those_of_gudhi_squared() -> None:
    for shape in ((30, 2), (15, 3), (2, 2), (1, 2)):
        points = torch.rand(shape, generator=_generator(), dtype=torch.float64)
        tree = gudhi.AlphaComplex(points=points.numpy()).create_simplex_tree()
        tree.compute_persistence(persistence_dim_max=True)
        for degree, bars in enumerate(topology.persistence(points, degrees=(0, 1, 2), kind="alpha", essential=True)):
            found = tree.persistence_intervals_in_dimension(degree).reshape(-1, 2)
            expected = torch.from_numpy(found[np.lexsort((found[:, 1], found[:, 0]))])
            torch.testing.assert_close(torch.stack([bars.birth, bars.death], -1), expected, rtol=1e-9, atol=1e-12)


def test_infinite_bars_are_matched_with_each_other() -> None:
    inf = torch.inf
    a, b = torch.tensor([[0.0, inf], [0.0, 1.0]]), torch.tensor([[0.3, inf]])
    assert topology.bottleneck_distance(a, b).item() == 0.5
    assert topology.bottleneck_distance(a, b[:0]).item() == inf
    assert topology.diagram_wasserstein(a, b, p=1.0).item() == pytest.approx(0.3 + 0.5**0.5)
    with pytest.raises(ValueError, match="finite deaths"):
        topology.diagram_wasserstein(a, b, method="sliced")


@pytest.mark.parametrize("backend", ["gudhi", "reference"])
def test_what_is_infinite_never_enters(backend: str) -> None:
    inf, draw = torch.inf, _generator(3)
    masked = torch.rand(6, 5, 5, generator=draw).where(torch.rand(6, 5, 5, generator=draw) < 0.6, inf)
    images = [torch.tensor([[inf, 0, 0], [0, 1, 0], [0, 0, 0]]), torch.full((2, 2), inf), *masked]  # gudhi's, ...
    for image in images:
        bars = topology.persistence(image, degrees=(0, 1), kind="cubical", essential=True, backend=backend)
        found = sorted((k, *bar) for k in range(2) for bar in zip(bars[k].birth.tolist(), bars[k].death.tolist()))
        official = gudhi.CubicalComplex(top_dimensional_cells=image.numpy()).persistence()
        assert found == sorted((k, *bar) for k, bar in official if bar[0] < inf)
        assert all(((bars[k].death_simplex < 0).all(1) == bars[k].death.isinf()).all() for k in range(2))
        ended = topology.persistence(image, degrees=(0, 1), kind="cubical", backend=backend)
        assert all(bars.death.isfinite().all() for bars in ended)
    values = torch.tensor([0.0, inf, 1.0, 0.5], requires_grad=True)  # a cycle of four, of which one is missing
    cycle = [torch.tensor([[0, 1], [1, 2], [2, 3], [0, 3]])]
    components, loops = topology.persistence(
        values, degrees=(0, 1), kind="lower_star", simplices=cycle, essential=True, backend=backend
    )
    assert components.death.tolist() == [inf]
    assert not len(loops.birth)
    for bad in (-inf, torch.nan):
        with pytest.raises(ValueError, match="x must be finite"):
            topology.persistence(torch.tensor([0.0, bad]), kind="lower_star", simplices=cycle[:0])


def test_the_bottleneck_is_the_least_bound_with_a_perfect_matching() -> None:
    """Small diagrams, half of them with ties, and larger ones: every threshold is tried by scipy's matching."""
    draw = np.random.default_rng(0)
    for trial in range(150):
        sizes = draw.integers(0, 9 if trial < 140 else 60, 2)
        births, lengths = ([draw.random(n).round(1 + 11 * (trial % 2)) for n in sizes] for _ in range(2))
        x, y = (np.stack([3 * b, 3 * b + length**2], 1) for b, length in zip(births, lengths, strict=True))
        m, k = sizes
        costs = np.zeros((m + k, m + k))
        costs[:m, :k] = np.abs(x[:, None] - y).max(-1)
        costs[:m, k:] = (x[:, 1:] - x[:, :1]) / 2
        costs[m:, :k] = (y[:, 1] - y[:, 0]) / 2
        thresholds = np.unique(np.append(costs, 0.0))
        low, high = 0, len(thresholds) - 1
        while low < high:
            middle = (low + high) // 2
            graph = csr_array(costs <= thresholds[middle])
            whole = (maximum_bipartite_matching(graph, perm_type="column") >= 0).all()
            low, high = (low, middle) if whole else (middle + 1, high)
        a, b = (torch.from_numpy(bars).requires_grad_() for bars in (x, y))
        distance = topology.bottleneck_distance(a, b)
        assert distance.item() == pytest.approx(thresholds[low], abs=1e-15)
        if distance > 0:  # one bar, or two, move it
            distance.backward()
            moved = [bars.grad.abs().sum().item() for bars in (a, b) if bars.grad is not None]
            assert sum(moved) == pytest.approx(1 if 0 in moved or len(moved) < 2 else 2)


@pytest.mark.parametrize("distance", [topology.bottleneck_distance, topology.diagram_wasserstein])
def test_distances_of_diagrams_under_vmap_ask_for_the_batch(distance: Callable[[Tensor, Tensor], Tensor]) -> None:
    bars = torch.rand(2, 3, 2, generator=_generator()).sort(-1).values
    with pytest.raises(ValueError, match="a must not be mapped over by vmap"):
        torch.func.vmap(distance)(bars, bars)


def test_a_distance_of_zero_has_gradient_zero() -> None:
    a = torch.tensor([[0.0, 1.0], [2.0, 5.0]], requires_grad=True)
    for distance in (topology.bottleneck_distance, topology.diagram_wasserstein):
        (gradient,) = torch.autograd.grad(distance(a, a.detach()), a)
        assert gradient.tolist() == [[0, 0], [0, 0]]


def test_sliced_distances_bound_exact_ones() -> None:
    """Theorem 3.4 of Carriere, Cuturi, Oudot (2017): at most 2 sqrt(2) times the 1-Wasserstein distance."""
    g = _generator()
    for _ in range(20):
        births = torch.rand(2, 6, generator=g)
        a, b = torch.stack([births, births + torch.rand(2, 6, generator=g)], -1)
        exact = topology.diagram_wasserstein(a, b, p=1.0, q=torch.inf)
        assert 0 < topology.diagram_wasserstein(a, b, p=1.0, method="sliced") <= 2 * 2**0.5 * exact


def test_trustworthiness_equals_that_of_scikit_learn() -> None:
    x = torch.randn(40, 6, generator=_generator(), dtype=torch.float64)
    z = x[:, :2] + 0.3 * torch.randn(40, 2, generator=_generator(1), dtype=torch.float64)
    for k in (1, 5, 19):
        assert topology.trustworthiness(x, z, k=k).item() == pytest.approx(
            trustworthiness_of_sklearn(x.numpy(), z.numpy(), n_neighbors=k), abs=1e-12
        )


def test_without_gudhi_small_complexes_are_reduced_and_others_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gudhi", None)
    points = torch.rand(8, 3, generator=_generator())
    distances = topology.pairwise_distances(points)
    assert topology.persistence(distances, degrees=(2,))[0].birth_simplex.shape[1] == 3
    with pytest.raises(ImportError, match=r"pip install 'pullback\[topology\]'"):
        topology.persistence(points, kind="alpha")
    with pytest.raises(ValueError, match="at most"):
        topology.persistence(torch.ones(200, 200), degrees=(1,), backend="reference")


def test_simplices_are_refused_by_name(without_shape_checks: None) -> None:
    vertices, edges = torch.arange(3)[:, None], torch.tensor([[0, 1], [1, 2]])
    values = torch.zeros(5)
    with pytest.raises(ValueError, match=r"one of \[0, 3\] is missing"):
        topology.pair_simplices([vertices, torch.tensor([[0, 3], [1, 2]])], values)
    with pytest.raises(ValueError, match="twice"):
        topology.pair_simplices([vertices, edges[[0, 0]]], values)
    with pytest.raises(ValueError, match=r"at simplex \[0, 1\]"):
        topology.pair_simplices([vertices, edges], torch.tensor([0.0, 2, 0, 1, 2]))
    with pytest.raises(TypeError, match=r"simplices\[1\] must hold integers"):
        topology.pair_simplices([vertices, edges.float()], values)
    with pytest.raises(ValueError, match="vmap"):
        torch.func.vmap(lambda v: topology.persistence(v, kind="lower_star", simplices=[edges])[0].death)(values[None])


@pytest.mark.parametrize("kind", ["rips", "lower_star", "cubical", "alpha"])
def test_a_batch_without_elements_has_no_bars(kind: str) -> None:
    options = {"simplices": [torch.tensor([[0, 1]])]} if kind == "lower_star" else {}
    shape = (0, 3) if kind == "lower_star" else (0, 3, 3)
    if kind == "alpha":
        with pytest.raises(ValueError, match="at least one element"):
            topology.persistence(torch.zeros(shape), kind=kind)
        return
    (bars,) = topology.persistence(torch.zeros(shape), kind=kind, **options)
    assert bars.birth.shape == (0,)
    assert bars.degenerate.shape == (0,)
