"""Random graphs are of their family, and batches are disjoint."""

from __future__ import annotations

from collections import Counter

import networkx
import pytest
import torch

from pullback import topology


def _split(batch: topology.GraphBatch) -> list[networkx.Graph]:
    graphs = []
    for number in range(batch.count):
        graph = networkx.Graph()
        graph.add_nodes_from((batch.index == number).nonzero().flatten().tolist())
        graphs.append(graph)
    for source, target in batch.edges.T.tolist():
        assert batch.index[source] == batch.index[target]
        graphs[int(batch.index[source])].add_edge(source, target)
    return graphs


def _draw(kind: str, count: int, nodes: int | tuple[int, int], seed: int = 0, **options: float) -> topology.GraphBatch:
    return topology.random_graphs(kind, count, nodes, generator=torch.Generator().manual_seed(seed), **options)  # type: ignore[arg-type]


def test_each_family_is_what_it_is_called() -> None:
    for nodes in (2, 3, 8, 9):
        assert all(networkx.is_tree(g) for g in _split(_draw("tree", 20, nodes)))
        for graph in _split(_draw("path", 3, nodes)):
            assert networkx.is_isomorphic(graph, networkx.path_graph(nodes))
        for graph in _split(_draw("complete", 3, nodes)):
            assert networkx.is_isomorphic(graph, networkx.complete_graph(nodes))
    for graph in _split(_draw("ladder", 3, 8)):
        assert networkx.is_isomorphic(graph, networkx.ladder_graph(4))
    for graph in _split(_draw("ladder", 3, 9)):
        assert networkx.is_connected(graph)
        assert sorted(degree for _, degree in graph.degree) == [1, 2, 2, 2, *[3] * 5]
    for graph in _split(_draw("ba", 5, 30)):
        assert networkx.is_connected(graph)
        assert graph.number_of_edges() == 2 * 28  # a star of two edges, then two for each of 27 nodes
        assert min(degree for _, degree in graph.degree) >= 1


def test_er_edges_are_independent_and_as_many_as_asked() -> None:
    batch = _draw("er", 2000, 6, degree=2.0)
    edges = batch.edges.shape[1] / 2 / 2000
    assert abs(edges - 6) < 0.15  # of 15 pairs with probability .4: standard error .042
    spread = torch.tensor([float(g.number_of_edges()) for g in _split(batch)]).var()
    assert abs(spread - 3.6) < 0.45


def test_attachment_prefers_hubs() -> None:
    hubs = topology.max_degree(_draw("ba", 40, 60)).double().mean()
    plain = topology.max_degree(_draw("er", 40, 60, degree=4.0)).double().mean()
    assert hubs > plain + 4


def test_trees_are_uniform() -> None:
    """Cayley: sixteen labelled trees on four nodes, four of them stars."""
    seen = Counter(frozenset(map(tuple, map(sorted, g.edges))) for g in _split(_draw("tree", 4000, 4)))
    shapes = Counter(frozenset(tuple(sorted((a % 4, b % 4))) for a, b in edges) for edges in seen.elements())
    assert len(shapes) == 16
    assert max(shapes.values()) < 330  # 250 expected, standard deviation 15
    assert min(shapes.values()) > 170


def test_sizes_lie_in_their_range_and_seeds_decide() -> None:
    batch = _draw("er", 200, (3, 5))
    assert set(batch.index.bincount().tolist()) == {3, 4, 5}
    assert torch.equal(batch.edges, _draw("er", 200, (3, 5)).edges)
    assert _draw("er", 0, 4).count == 0
    for kind, count, nodes, options, message in [
        ("grid", 1, 3, {}, "kind must be one of"),
        ("er", -1, 3, {}, "count must be an integer >= 0"),
        ("er", 1, 1, {}, "nodes must be an integer >= 2"),
        ("er", 1, (4, 3), {}, "nodes must be an integer >= 4"),
        ("er", 1, 3, {"degree": 0.0}, "degree must be > 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            _draw(kind, count, nodes, **options)  # type: ignore[arg-type]


def test_batches_refuse_edges_that_are_not_there() -> None:
    edge = torch.tensor([[0, 1]])
    for edges, nodes, error, message in [
        ([edge], [2, 3], ValueError, "one entry a graph, got 1 and 2"),
        ([edge], [1], ValueError, r"edges of graph 0 must name nodes in 0\.\.0"),
        ([edge, -edge], [2, 2], ValueError, "edges of graph 1 must name nodes"),
        ([edge, torch.cat([edge, edge.flip(1)])], [2, 2], ValueError, "edges of graph 1 must hold each cell once"),
        ([edge * 0], [2], ValueError, "edges of graph 0 must have different vertices"),
        ([edge.float()], [2], TypeError, "edges"),
    ]:
        with pytest.raises(error, match=message):
            topology.batch_graphs(edges, nodes)  # type: ignore[arg-type]


def test_joined_batches_are_one_batch_of_all_graphs() -> None:
    graphs = [torch.tensor([[0, 1], [1, 2]]), torch.zeros(0, 2, dtype=torch.int64), torch.tensor([[0, 3]])]
    whole = topology.batch_graphs(graphs, [3, 2, 4])
    joined = topology.join_graphs([topology.batch_graphs(graphs[:1], [3]), topology.batch_graphs(graphs[1:], [2, 4])])
    assert sorted(joined.edges.T.tolist()) == sorted(whole.edges.T.tolist())
    assert torch.equal(joined.index, whole.index)
    assert joined.count == whole.count
    nothing = topology.join_graphs([])
    assert (nothing.edges.shape, len(nothing.index), nothing.count) == ((2, 0), 0, 0)


def test_paths_are_those_of_networkx() -> None:
    batch = _draw("er", 30, (5, 20), degree=2.5, seed=3)
    generator = torch.Generator().manual_seed(0)
    sizes = batch.index.bincount()
    starts = sizes.cumsum(0) - sizes
    source, target = (starts + (torch.rand(30, generator=generator) * sizes).long() for _ in range(2))
    found = topology.shortest_path_length(batch, source, target)
    for graph, a, b, length in zip(_split(batch), source.tolist(), target.tolist(), found.tolist(), strict=True):
        expected = networkx.shortest_path_length(graph, a, b) if networkx.has_path(graph, a, b) else float("inf")
        assert length == expected


def test_hubs_tell_the_class_and_the_other_nodes_do_not() -> None:
    batch = _draw("ba", 400, (16, 24), degree=3.0)
    task = topology.hub_colours(batch, 4, share=0.9, generator=torch.Generator().manual_seed(0))
    hubs, others = [], []
    for number, graph in enumerate(_split(batch)):
        most = max(degree for _, degree in graph.degree)
        for node, degree in graph.degree:
            assert task.degrees[node] == degree
            same = bool(task.colours[node] == task.labels[number])
            (hubs if degree >= min(most, 6) else others).append(same)
    assert abs(sum(hubs) / len(hubs) - (0.9 + 0.1 / 4)) < 0.04  # about 700 of them: standard error .01
    assert abs(sum(others) / len(others) - 1 / 4) < 0.03
    assert set(task.labels.tolist()) == {0, 1, 2, 3}
    for options, message in (({"degree": 0}, "degree must be"), ({"share": 1.5}, "share must be")):
        with pytest.raises(ValueError, match=message):
            topology.hub_colours(batch, 4, generator=torch.Generator(), **options)  # type: ignore[arg-type]
