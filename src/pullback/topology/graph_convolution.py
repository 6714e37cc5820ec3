"""Graph convolution over a learned graph: the weights of its edges are multiplied in, so that they get a gradient."""

from __future__ import annotations

import torch

from pullback.core.checks import check_choice, check_floating, check_shape, check_tensor
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.topology.learned_graph import LearnedGraph

__all__ = ["graph_convolution"]


def graph_convolution(
    x: Float[Tensor, "*batch n features"],
    graph: LearnedGraph | Float[Tensor, "..."],
    weight: Float[Tensor, "features out"],
    bias: Float[Tensor, "out"] | None = None,
    *,
    normalize: str | None = "row",
    self_loop: bool = True,
) -> Float[Tensor, "..."]:
    r"""Return ``N(A + I) X W + b``: every node's mean over its neighbours, linearly mapped.

    Args:
        x: ``[*batch, n, features]``, whose batch broadcasts with that of the graph.
        graph: a :class:`LearnedGraph`, whose lists are walked (``n * m * out`` operations) or, where they hold a
            quarter of all nodes or more, multiplied as a matrix; or the adjacency ``[*batch, n, n]``, >= 0.
        weight: ``[features, out]``.
        bias: ``[out]``.
        normalize: ``"row"`` (``D^-1 A``, a mean), ``"symmetric"`` (``D^-1/2 A D'^-1/2`` with the sums of the rows
            ``D`` and of the columns ``D'``) or ``None`` (a sum).
        self_loop: add the identity to ``A``.

    Returns:
        ``[*batch, n, out]``.

    Raises:
        TypeError: an argument is not floating, or dtypes differ.
        ValueError: shapes do not agree, ``normalize`` is unknown, or it is given and a node has no edge.

    Example:
        >>> adjacency = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
        >>> graph_convolution(torch.tensor([[1.0], [3.0]]), adjacency, torch.ones(1, 1))
        tensor([[2.],
                [3.]])

    References:
        Kipf, Welling (2017), Semi-supervised classification with graph convolutional networks, equation 2.
    """
    if normalize is not None:
        check_choice("normalize", normalize, ("row", "symmetric"))
    check_shape("x", check_floating("x", x), (None, None))
    check_shape("weight", check_floating("weight", weight), (x.shape[-1], None))
    weights = check_floating(
        "graph", graph.weights if isinstance(graph, LearnedGraph) else check_tensor("graph", graph)
    )
    n = x.shape[-2]
    check_shape("graph", weights, (n, None if isinstance(graph, LearnedGraph) else n))
    if bias is not None:
        check_shape("bias", check_floating("bias", bias), (weight.shape[-1],))
    if not x.dtype == weights.dtype == weight.dtype:
        raise TypeError(
            f"x, graph and weight must have the same dtype, got {x.dtype}, {weights.dtype} and {weight.dtype}"
        )
    if isinstance(graph, LearnedGraph) and 4 * weights.shape[-1] >= n:
        graph = weights = graph.to_dense()
    values = x @ weight
    loop = 1.0 if self_loop else 0.0
    rows = weights.sum(-1, keepdim=True) + loop
    if normalize is not None and can_look(rows) and not bool((rows > 0).all()):
        raise ValueError("graph has a node without an edge of positive weight, which has no mean: set self_loop=True")
    if normalize == "symmetric":
        columns = _column_sums(graph, weights).unsqueeze(-1) + loop
        values = values * torch.where(columns > 0, torch.where(columns > 0, columns, 1.0).rsqrt(), 0.0)
    gathered = _gathered(graph, weights, values) + loop * values
    if normalize is not None:
        safe = torch.where(rows > 0, rows, 1.0)
        gathered = gathered / safe if normalize == "row" else gathered * safe.rsqrt()
    return gathered if bias is None else gathered + bias


def _gathered(graph: LearnedGraph | Tensor, weights: Tensor, values: Tensor) -> Tensor:
    if not isinstance(graph, LearnedGraph):
        return weights @ values
    batch = torch.broadcast_shapes(weights.shape[:-2], values.shape[:-2])
    index = graph.index.flatten(-2).unsqueeze(-1).expand(*batch, -1, values.shape[-1])
    taken = values.expand(*batch, *values.shape[-2:]).gather(-2, index).unflatten(-2, weights.shape[-2:])
    return (weights.unsqueeze(-2) @ taken).squeeze(-2)


def _column_sums(graph: LearnedGraph | Tensor, weights: Tensor) -> Tensor:
    if not isinstance(graph, LearnedGraph):
        return weights.sum(-2)
    flat = weights.flatten(-2)
    return flat.new_zeros((*flat.shape[:-1], weights.shape[-2])).scatter_add(-1, graph.index.flatten(-2), flat)
