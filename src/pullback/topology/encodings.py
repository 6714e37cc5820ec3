"""Places in a graph as features: eigenvectors of the Laplacian, returns of random walks; and batches padded for
attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_integer, check_tensor
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Int, Num
from pullback.topology.graph_families import GraphBatch
from pullback.topology.segments import segment_reduce

__all__ = ["PaddedNodes", "laplacian_encoding", "pad_nodes", "random_walk_encoding"]


class PaddedNodes(NamedTuple):
    """Nodes of several graphs as one rectangle.

    Attributes:
        values: ``[count, most, *features]``, 0 in the padding.
        mask: ``[count, most]`` true at nodes.
        place: ``[nodes]`` of each node in the flattened rectangle ``[count * most]``.
    """

    values: Num[Tensor, "count most *features"]
    mask: Bool[Tensor, "count most"]
    place: Int[Tensor, "nodes"]


def pad_nodes(values: Num[Tensor, "nodes *features"], index: Int[Tensor, "nodes"], count: int) -> PaddedNodes:
    """Lay the nodes of each graph in a row of its own, padded to the largest graph.

    Args:
        values: ``[nodes, *features]``.
        index: ``[nodes]`` the graph of each, ascending.
        count: number of graphs.

    Returns:
        The rectangle; ``values.flatten(0, 1)[place]`` are the nodes again.

    Raises:
        TypeError: an argument is no tensor, ``index`` not of integers.
        ValueError: ``index`` is out of range, decreases or has another length than ``values``.

    Example:
        >>> pad_nodes(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 1]), 2).values
        tensor([[1, 0],
                [2, 3]])
    """
    check_tensor("values", values)
    sizes = segment_reduce(torch.ones_like(index), index, count, sorted=True)
    if values.shape[:1] != index.shape:
        raise ValueError(f"index must have one entry a row of values, got {tuple(index.shape)}")
    most = int(sizes.max()) if count else 0
    starts = sizes.cumsum(0) - sizes
    place = index * most + torch.arange(len(index), device=index.device) - starts[index]
    padded = values.new_zeros(count * most, *values.shape[1:]).index_copy(0, place, values)
    mask = torch.zeros(count * most, dtype=torch.bool, device=index.device).index_fill(0, place, True)
    return PaddedNodes(padded.unflatten(0, (count, most)), mask.unflatten(0, (count, most)), place)


def laplacian_encoding(
    graphs: GraphBatch, count: int, *, generator: torch.Generator | None = None
) -> Float[Tensor, "nodes count"]:
    r"""Return the first eigenvectors of each graph's normalised Laplacian :math:`I - D^{-1/2} A D^{-1/2}`, after the
    constant one.

    An eigenvector is one up to its sign (and where eigenvalues are equal up to a rotation), so signs are drawn anew at
    every call: a network that trains on them cannot lean on a sign.

    Args:
        graphs: the batch.
        count: how many, >= 1; graphs with too few nodes get zeros.
        generator: of the signs; without one the largest entry of each eigenvector is positive.

    Returns:
        ``[nodes, count]`` each of norm 1 in its graph, by rising eigenvalue.

    Raises:
        TypeError: ``count`` is no integer.
        ValueError: ``count`` < 1.

    Example:
        >>> from pullback.topology import batch_graphs
        >>> path = batch_graphs([torch.tensor([[0, 1], [1, 2]])], [3])
        >>> laplacian_encoding(path, 1).abs().round(decimals=4).flatten()
        tensor([0.7071, 0.0000, 0.7071])

    References:
        Dwivedi, Joshi, Laurent, Bengio, Bresson (2020), Benchmarking graph neural networks, section 4.2.
    """
    check_integer("count", count, 1)
    adjacency, padded = _adjacency(graphs)
    scale = adjacency.sum(-1).clamp(min=1).rsqrt()
    laplacian = torch.diag_embed((adjacency.sum(-1) > 0).double()) - scale[..., None] * adjacency * scale[..., None, :]
    # Padding is put behind all eigenvalues, which are at most 2.
    values, vectors = torch.linalg.eigh(laplacian + torch.diag_embed(3.0 * ~padded.mask))
    wanted = torch.zeros(*adjacency.shape[:2], count, dtype=torch.float64, device=adjacency.device)
    have = min(count, max(adjacency.shape[1] - 1, 0))
    real = (values[:, 1 : have + 1] < 2.5)[:, None]
    wanted[..., :have] = vectors[..., 1 : have + 1] * real
    largest = (
        wanted.gather(1, wanted.abs().round(decimals=6).argmax(1, keepdim=True)) if wanted.shape[1] else wanted[:, :1]
    )
    wanted = torch.where(largest < 0, -wanted, wanted)
    if generator is not None:
        device = drawing_device(generator, wanted)
        signs = 2 * torch.randint(2, (graphs.count, 1, count), generator=generator, device=device) - 1
        wanted = wanted * signs.to(wanted.device)
    return wanted.flatten(0, 1)[padded.place].float()


def random_walk_encoding(graphs: GraphBatch, steps: int) -> Float[Tensor, "nodes steps"]:
    r"""Return for each node the probability that a random walk is back after 1, ..., ``steps`` steps: :math:`(A
    D^{-1})^k_{vv}`.

    Args:
        graphs: the batch.
        steps: how many, >= 1.

    Returns:
        ``[nodes, steps]``; 0 for a node without edges.

    Raises:
        TypeError: ``steps`` is no integer.
        ValueError: ``steps`` < 1.

    Example:
        >>> from pullback.topology import batch_graphs
        >>> random_walk_encoding(batch_graphs([torch.tensor([[0, 1], [1, 2]])], [3]), 2)
        tensor([[0.0000, 0.5000],
                [0.0000, 1.0000],
                [0.0000, 0.5000]])

    References:
        Dwivedi, Luu, Laurent, Bengio, Bresson (2022), Graph neural networks with learnable structural and positional
        representations, equation 16.
    """
    check_integer("steps", steps, 1)
    adjacency, padded = _adjacency(graphs)
    walk = adjacency / adjacency.sum(-1, keepdim=True).clamp(min=1)
    power, returns = walk, []
    for _ in range(steps):
        returns.append(power.diagonal(dim1=-2, dim2=-1))
        power = power @ walk
    return torch.stack(returns, -1).flatten(0, 1)[padded.place].float()


def _adjacency(graphs: GraphBatch) -> tuple[Tensor, PaddedNodes]:
    """Dense, in float64, each graph in its own square."""
    padded = pad_nodes(torch.zeros_like(graphs.index), graphs.index, graphs.count)
    count, most = padded.mask.shape
    source, target = padded.place[graphs.edges]
    flat = torch.zeros(count * most * most, dtype=torch.float64, device=graphs.index.device)
    flat[source * most + target % max(most, 1)] = 1
    return flat.view(count, most, most), padded
