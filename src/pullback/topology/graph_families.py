"""Random graphs of six families as one batch of edge lists, exact labels of them, and a task of coloured hubs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_floating, check_integer, check_positive, check_range
from pullback.core.shapes import Float, Int
from pullback.topology.complexes import check_once
from pullback.topology.segments import segment_reduce

__all__ = [
    "GraphBatch",
    "HubColours",
    "batch_graphs",
    "hub_colours",
    "join_graphs",
    "max_degree",
    "random_graphs",
    "shortest_path_length",
]

KINDS = ("er", "ba", "ladder", "tree", "path", "complete")


class GraphBatch(NamedTuple):
    """Undirected graphs one after the other, as a list of edges.

    Attributes:
        edges: ``[2, arcs]`` int64, source and target in the numbering of the whole batch; each edge in both directions.
        index: ``[nodes]`` int64, ascending: the graph of each node.
        count: number of graphs.
    """

    edges: Int[Tensor, "2 arcs"]
    index: Int[Tensor, "nodes"]  # type: ignore[assignment]
    count: int  # type: ignore[assignment]


def batch_graphs(edges: Sequence[Int[Tensor, "_ 2"]], nodes: Sequence[int]) -> GraphBatch:
    """Put graphs side by side.

    Args:
        edges: of each graph, ``[edges, 2]``, nodes from 0, each edge once.
        nodes: number of nodes of each graph, >= 0.

    Returns:
        The batch; each edge stands in both directions, first all as given, then all reversed.

    Raises:
        TypeError: a list of edges is no integer tensor.
        ValueError: the lists differ in length, an edge has another shape, names a node that is not there or one node
            twice, or is there twice (in both directions, too).

    Example:
        >>> batch = batch_graphs([torch.tensor([[0, 1]]), torch.tensor([[0, 1], [1, 2]])], [2, 3])
        >>> batch.edges
        tensor([[0, 2, 3, 1, 3, 4],
                [1, 3, 4, 0, 2, 3]])
        >>> batch.index
        tensor([0, 0, 1, 1, 1])
    """
    if len(edges) != len(nodes):
        raise ValueError(f"edges and nodes must have one entry a graph, got {len(edges)} and {len(nodes)}")
    shifted, start = [torch.zeros(0, 2, dtype=torch.int64)], 0
    for number, (pairs, size) in enumerate(zip(edges, nodes, strict=True)):
        check_integer("nodes", size, 0)
        if not isinstance(pairs, Tensor) or pairs.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"edges of graph {number} must be an integer tensor")
        if pairs.ndim != 2 or pairs.shape[1] != 2:
            raise ValueError(f"edges of graph {number} must have shape (edges, 2), got {tuple(pairs.shape)}")
        if len(pairs) and not (int(pairs.min()) >= 0 and int(pairs.max()) < size):
            raise ValueError(f"edges of graph {number} must name nodes in 0..{size - 1}")
        shifted.append(pairs.long() + start)
        start += size
    ends = torch.cat(shifted)
    low, high = ends.aminmax(dim=1)
    if bool((low == high).any()) or len(torch.unique(low * start + high)) < len(ends):
        for number, pairs in enumerate(edges):
            check_once(f"edges of graph {number}", pairs)
    once = ends.T
    sizes = torch.tensor(list(nodes), dtype=torch.int64)
    return GraphBatch(torch.cat([once, once.flip(0)], 1), torch.arange(len(nodes)).repeat_interleave(sizes), len(nodes))


def join_graphs(batches: Sequence[GraphBatch]) -> GraphBatch:
    """Put batches one after the other into one.

    Args:
        batches: any number of them.

    Returns:
        The graphs of the first, then those of the second, and so on.

    Example:
        >>> pair = batch_graphs([torch.tensor([[0, 1]])], [2])
        >>> join_graphs([pair, pair]).edges
        tensor([[0, 1, 2, 3],
                [1, 0, 3, 2]])
    """
    edges, index, nodes, graphs = [torch.zeros(2, 0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)], 0, 0
    for batch in batches:
        edges.append(batch.edges + nodes)
        index.append(batch.index + graphs)
        nodes, graphs = nodes + len(batch.index), graphs + batch.count
    device = batches[0].edges.device if batches else None
    return GraphBatch(torch.cat([e.to(device) for e in edges], 1), torch.cat([i.to(device) for i in index]), graphs)


def random_graphs(
    kind: str,
    count: int,
    nodes: int | tuple[int, int],
    *,
    degree: float = 4.0,
    generator: torch.Generator,
) -> GraphBatch:
    """Draw graphs of one family.

    ============== ================================================================================================
    ``"er"``       Erdos-Renyi: each pair is joined independently, ``degree`` neighbours a node on average
    ``"ba"``       Barabasi-Albert: nodes come one by one and join ``degree / 2`` others, by their degree
    ``"ladder"``   two paths side by side, joined rung by rung; an odd node hangs at the end
    ``"tree"``     a uniform random labelled tree
    ``"path"``     a path
    ``"complete"`` every pair is joined
    ============== ================================================================================================

    Args:
        kind: the family, one of these six.
        count: number of graphs, >= 0.
        nodes: of each graph, >= 2, or the smallest and the largest number, between which it is drawn uniformly.
        degree: mean number of neighbours in ``"er"`` and ``"ba"``, > 0.
        generator: of every draw, on the CPU.

    Returns:
        The graphs, their nodes in random order, on the CPU.

    Raises:
        TypeError: a number is no integer.
        ValueError: ``kind`` is unknown, or a number is out of range.

    Example:
        >>> batch = random_graphs("path", 2, (3, 5), generator=torch.Generator().manual_seed(0))
        >>> batch.count, max_degree(batch)
        (2, tensor([2, 2]))

    References:
        Erdos, Renyi (1959), On random graphs; Barabasi, Albert (1999), Emergence of scaling in random networks; Pruefer
        (1918) for uniform trees.
    """
    check_choice("kind", kind, KINDS)
    check_integer("count", count, 0)
    low, high = (nodes, nodes) if not isinstance(nodes, tuple) else nodes
    check_integer("nodes", low, 2)
    check_integer("nodes", high, low)
    check_positive("degree", degree)
    sizes = torch.randint(low, high + 1, (count,), generator=generator).tolist()
    edges = []
    for size in sizes:
        pairs = _FAMILIES[kind](size, degree, generator)
        edges.append(torch.randperm(size, generator=generator)[pairs])
    return batch_graphs(edges, sizes)


def max_degree(graphs: GraphBatch) -> Int[Tensor, "count"]:
    """Return the largest number of neighbours in each graph; 0 where there is no edge.

    Example:
        >>> max_degree(batch_graphs([torch.tensor([[0, 1], [0, 2]])], [3]))
        tensor([2])
    """
    ones = torch.ones_like(graphs.edges[1])
    return segment_reduce(
        segment_reduce(ones, graphs.edges[1], len(graphs.index)), graphs.index, graphs.count, reduce="max"
    )


class HubColours(NamedTuple):
    """Graphs with coloured nodes, whose hubs tell their class: a task for attention, made by :func:`hub_colours`.

    Attributes:
        colours: ``[nodes]`` int64 of each node, in ``0..count-1``.
        degrees: ``[nodes]`` int64 its number of neighbours.
        labels: ``[graphs]`` int64 the class of each graph, a colour.
    """

    colours: Int[Tensor, "nodes"]
    degrees: Int[Tensor, "nodes"]
    labels: Int[Tensor, "graphs"]


def hub_colours(
    graphs: GraphBatch, count: int, *, degree: int = 6, share: float = 0.9, generator: torch.Generator
) -> HubColours:
    """Colour the nodes of graphs so that the class of a graph is the colour that its hubs mostly have.

    Hubs are the nodes of at least ``degree`` neighbours, or of the most where no node has so many. Each has the colour
    of its graph's class with probability ``share``; otherwise, as all other nodes, one drawn from all.

    Args:
        graphs: on the CPU.
        count: number of colours and classes, >= 2.
        degree: of a hub, >= 1.
        share: of hubs that surely tell the class, in [0, 1].
        generator: of every draw.

    Returns:
        Colours, degrees and labels.

    Raises:
        TypeError: ``count`` or ``degree`` is no integer.
        ValueError: a number is out of range.

    Example:
        >>> graphs = batch_graphs([torch.tensor([[0, 1], [0, 2], [0, 3]])], [4])
        >>> task = hub_colours(graphs, 4, share=1.0, generator=torch.Generator().manual_seed(0))
        >>> bool(task.colours[0] == task.labels[0])
        True
    """
    check_integer("count", count, 2)
    check_integer("degree", degree, 1)
    check_range("share", share, 0, 1)
    degrees = segment_reduce(torch.ones_like(graphs.edges[1]), graphs.edges[1], len(graphs.index))
    largest = segment_reduce(degrees, graphs.index, graphs.count, reduce="max")
    labels = torch.randint(count, (graphs.count,), generator=generator)
    tells = torch.rand(degrees.shape, generator=generator) < share
    chance = torch.randint(count, degrees.shape, generator=generator)
    hub = degrees >= largest.clamp(max=degree)[graphs.index]
    return HubColours(torch.where(tells & hub, labels[graphs.index], chance), degrees, labels)


def shortest_path_length(
    graphs: GraphBatch,
    source: Int[Tensor, "count"],
    target: Int[Tensor, "count"],
    *,
    lengths: Float[Tensor, "arcs"] | None = None,
) -> Float[Tensor, "count"]:
    """Return the length of the shortest path between two nodes of each graph, by the relaxation of Bellman and Ford.

    Differentiable in ``lengths``: the gradient is 1 at the arcs of a shortest path, shared where several tie at a node.

    Args:
        graphs: the batch.
        source: ``[count]`` a node of each graph, in the numbering of the batch.
        target: ``[count]`` another, or the same.
        lengths: ``[arcs]`` of each arc, >= 0; 1 each by default.

    Returns:
        ``[count]`` infinity where no path leads from the source to the target.

    Raises:
        TypeError: ``lengths`` is not floating.
        ValueError: a shape is wrong, a node out of range, a length negative.

    Example:
        >>> path = batch_graphs([torch.tensor([[0, 1], [1, 2]])], [3])
        >>> shortest_path_length(path, torch.tensor([0]), torch.tensor([2]))
        tensor([2.])
    """
    nodes = len(graphs.index)
    for name, value in (("source", source), ("target", target)):
        if tuple(value.shape) != (graphs.count,):
            raise ValueError(f"{name} must have shape ({graphs.count},), got {tuple(value.shape)}")
        if graphs.count and not (int(value.min()) >= 0 and int(value.max()) < nodes):
            raise ValueError(f"{name} must name nodes in 0..{nodes - 1}")
    if lengths is None:
        lengths = torch.ones(graphs.edges.shape[1], device=graphs.edges.device)
    check_floating("lengths", lengths)
    if lengths.shape != graphs.edges.shape[1:]:
        raise ValueError(f"lengths must have shape ({graphs.edges.shape[1]},), got {tuple(lengths.shape)}")
    if lengths.numel() and not bool((lengths.detach() >= 0).all()):
        raise ValueError(f"lengths must be >= 0, got {lengths.detach().min().item()}")
    start = torch.arange(nodes, device=lengths.device)
    # Each node also hears from itself, so that a minimum is over a set that is never empty.
    heard, hearing = torch.cat([graphs.edges[0], start]), torch.cat([graphs.edges[1], start])
    steps = torch.cat([lengths, lengths.new_zeros(nodes)])
    distance = lengths.new_full((nodes,), torch.inf).index_fill(0, source, 0.0)
    for _ in range(nodes):
        closer = segment_reduce(distance[heard] + steps, hearing, nodes, reduce="min")
        if torch.equal(closer, distance):
            break
        distance = closer
    return distance[target]


def _er(size: int, degree: float, generator: torch.Generator) -> Tensor:
    pairs = torch.triu_indices(size, size, 1).T
    return pairs[torch.rand(len(pairs), generator=generator) < degree / (size - 1)]


def _ba(size: int, degree: float, generator: torch.Generator) -> Tensor:
    each = min(max(round(degree / 2), 1), size - 1)
    pairs = [(node, each) for node in range(each)]  # a star to begin with
    ends = [node for pair in pairs for node in pair]
    for node in range(each + 1, size):
        chosen: set[int] = set()
        while len(chosen) < each:
            chosen.add(ends[int(torch.randint(len(ends), (), generator=generator))])
        for other in sorted(chosen):
            pairs.append((other, node))
            ends += [other, node]
    return torch.tensor(pairs)


def _ladder(size: int, degree: float, generator: torch.Generator) -> Tensor:
    start = torch.arange(size)
    rails = torch.stack([start[:-2], start[2:]], 1)
    rungs = torch.stack([start[0 : size - 1 : 2], start[1::2]], 1)
    return torch.cat([rails, rungs])


def _tree(size: int, degree: float, generator: torch.Generator) -> Tensor:
    code = torch.randint(size, (size - 2,), generator=generator).tolist()
    left = [1 + code.count(node) for node in range(size)]
    pairs = []
    for node in code:
        leaf = left.index(1)
        pairs.append((leaf, node))
        left[leaf] -= 1
        left[node] -= 1
    pairs.append(tuple(node for node in range(size) if left[node] == 1))  # type: ignore[arg-type]
    return torch.tensor(pairs)


def _path(size: int, degree: float, generator: torch.Generator) -> Tensor:
    start = torch.arange(size)
    return torch.stack([start[:-1], start[1:]], 1)


def _complete(size: int, degree: float, generator: torch.Generator) -> Tensor:
    return torch.triu_indices(size, size, 1).T


_FAMILIES = {"er": _er, "ba": _ba, "ladder": _ladder, "tree": _tree, "path": _path, "complete": _complete}
