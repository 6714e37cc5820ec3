"""What only cell complexes, and their inference, promise."""

from __future__ import annotations

import itertools

import networkx
import pytest
import torch
from torch import Tensor

from pullback import topology
from pullback.kernels.cycles import chordless_cycles as search


def _edges(graph: networkx.Graph) -> Tensor:
    pairs = sorted(tuple(sorted(edge)) for edge in graph.edges())
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T


def _random_graphs(count: int) -> list[networkx.Graph]:
    draws = torch.rand(count, generator=torch.Generator().manual_seed(0)).tolist()
    return [networkx.gnp_random_graph(3 + seed % 7, p, seed=seed) for seed, p in enumerate(draws)]


def test_chordless_cycles_are_those_of_all_subsets() -> None:
    for seed, graph in enumerate(_random_graphs(200)):
        longest = 3 + seed % 5
        wanted = set()
        for size in range(3, longest + 1):
            for nodes in itertools.combinations(graph, size):
                part = graph.subgraph(nodes)
                if (
                    part.number_of_edges() == size
                    and networkx.is_connected(part)
                    and set(dict(part.degree).values()) == {2}
                ):
                    wanted.add(nodes)
        found = topology.chordless_cycles(_edges(graph), len(graph), max_length=longest).tolist()
        sets = [tuple(sorted(v for v in row if v >= 0)) for row in found]
        assert len(sets) == len(set(sets))
        assert set(sets) == wanted


def test_the_loop_is_the_same_without_a_compiler() -> None:
    graph = networkx.les_miserables_graph()
    adjacency = networkx.to_scipy_sparse_array(graph, weight=None, format="csr")
    adjacency.sort_indices()
    arrays = (adjacency.indptr.astype("int64"), adjacency.indices.astype("int64"))
    fast, plain = (search(*arrays, 5, plain=plain) for plain in (False, True))
    assert (fast == plain).all()
    triangles = sum(networkx.triangles(graph).values()) // 3
    assert ((fast >= 0).sum(1) == 3).sum() == triangles == 467
    assert len(fast) > triangles


def test_boundaries_compose_to_zero_and_laplacians_count_holes() -> None:
    checked = 0
    for graph in _random_graphs(40):
        edges = _edges(graph)
        if not edges.numel():
            continue
        cycles = topology.chordless_cycles(edges, len(graph), max_length=4)
        cells = topology.CellComplex(len(graph), edges, cycles, torch.ones(edges.shape[1]).double())
        first, second = cells.boundary_1().to_dense(), cells.boundary_2().to_dense()
        assert not (first @ second).any()
        pieces = networkx.number_connected_components(graph)
        for k, holes in enumerate(
            (
                pieces,
                edges.shape[1] - len(graph) + pieces - (int(torch.linalg.matrix_rank(second)) if len(cycles) else 0),
            )
        ):
            values = torch.linalg.eigvalsh(cells.hodge_laplacian(k).to_dense())
            assert int((values < 1e-9).sum()) == holes
        lower = cells.lower_adjacency().to_dense()
        shared = (edges[:, None, :, None] == edges[None, :, None, :]).any(0).any(0)
        assert torch.equal(lower.bool(), shared & ~torch.eye(edges.shape[1], dtype=torch.bool))
        checked += len(cycles) > 1
    assert checked > 10


def test_a_batch_is_block_diagonal_and_convolves_as_its_parts() -> None:
    parts = []
    for graph, length in ((networkx.karate_club_graph(), 3), (networkx.cycle_graph(5), 5), (networkx.path_graph(3), 3)):
        edges = _edges(graph)
        cycles = topology.chordless_cycles(edges, len(graph), max_length=length)
        weights = torch.rand(edges.shape[1] + len(cycles), generator=torch.Generator().manual_seed(0)) + 0.1
        sides = (weights[: edges.shape[1]], weights[edges.shape[1] :])
        parts.append(topology.CellComplex(len(graph), edges, cycles, *sides))
    whole = topology.CellComplex.batch(parts)
    for name in ("boundary_1", "boundary_2", "lower_adjacency", "upper_adjacency"):
        blocks = torch.block_diag(*[getattr(part, name)().to_dense() for part in parts])
        assert torch.equal(getattr(whole, name)().to_dense(), blocks)
    sizes = [part.edges.shape[1] for part in parts]
    assert torch.equal(whole.edge_batch, torch.arange(3).repeat_interleave(torch.tensor(sizes)))
    assert torch.equal(whole.cell_batch.bincount(minlength=3), torch.tensor([len(part.cycles) for part in parts]))
    layer = topology.CellConvolution(2, 4, generator=torch.Generator().manual_seed(0))
    x = torch.randn(sum(sizes), 2, generator=torch.Generator().manual_seed(1))
    expected = torch.cat([layer(piece, part) for piece, part in zip(x.split(sizes), parts, strict=True)])
    assert torch.allclose(layer(x, whole), expected, atol=1e-6)
    with pytest.raises(ValueError, match="complexes must hold"):
        topology.CellComplex.batch([])


@pytest.mark.parametrize(
    ("edges", "cycles", "message"),
    [
        (torch.empty(2, 0, dtype=torch.int64), torch.empty(0, 3, dtype=torch.int64), "at least one edge"),
        (torch.tensor([[1], [0]]), torch.empty(0, 3, dtype=torch.int64), "pairs i < j"),
        (torch.tensor([[0, 0], [2, 1]]), torch.empty(0, 3, dtype=torch.int64), "ascending order"),
        (torch.tensor([[0, 0], [1, 2]]), torch.tensor([[0, 1, 2]]), r"along edges, got \(1, 2\) in cycle 0"),
    ],
)
def test_what_is_no_complex_is_refused(edges: Tensor, cycles: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        topology.CellComplex(3, edges, cycles)


def _gradient(gradient: str) -> float:
    """The gradient at the embedding, of a loss that uses the weights and the reward."""
    generator = torch.Generator().manual_seed(0)
    module = topology.DifferentiableCellComplex(2, 8, scale=2.0, limit=50, gradient=gradient, generator=generator)
    x = torch.randn(30, 2, generator=generator)
    cells = module(x)
    assert cells.edge_weights.shape[0] < 30 * 29 // 2
    layer = topology.CellConvolution(2, 2, generator=generator)
    loss = layer(x[cells.edges[0]] + x[cells.edges[1]], cells).square().mean()
    loss = loss + topology.topology_reward(cells, torch.arange(30) < 10, torch.full((30,), 0.5))
    loss.backward()
    return sum(0.0 if p.grad is None else float(p.grad.abs().sum()) for p in module.parameters())


def test_whole_numbers_pass_no_gradient_to_the_embedding() -> None:
    assert _gradient("integer") == 0
    assert _gradient("weights") > 0
    assert _gradient("reward") > 0


def test_too_many_polygons_are_told_and_the_strongest_looked_at() -> None:
    generator = torch.Generator().manual_seed(0)
    module = topology.DifferentiableCellComplex(2, 8, scale=0.5, limit=1, generator=generator)
    with pytest.warns(RuntimeWarning, match=r"polygons, 20 of which"):
        cells = module(torch.randn(20, 2, generator=generator))
    assert len(cells.cycles) <= 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 1}, "max_length must be an integer >= 2"),
        ({"scale": 0.0}, "scale must be > 0"),
        ({"alpha": 1.0}, "alpha must be > 1"),
        ({"gradient": "weight"}, "did you mean 'weights'"),
        ({"limit": 0}, "limit must be an integer >= 1"),
        ({"embedding": "linear"}, "hidden must be features for a linear embedding, 3, got 4"),
        ({"embedding": "none"}, "embedding must be one of"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        topology.DifferentiableCellComplex(3, 4, **options)


def test_a_linear_embedding_starts_as_the_features() -> None:
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    module = topology.DifferentiableCellComplex(3, 3, max_length=2, scale=4.0, embedding="linear")
    graph = topology.latent_graph_entmax(x, scale=4.0)
    assert torch.allclose(module(x).node_adjacency(), graph.weights, atol=1e-6)
