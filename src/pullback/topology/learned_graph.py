"""A graph whose edges were learned: the weights carry the gradient, the indices stand beside them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_floating
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Int, Tensor

__all__ = ["Edges", "LearnedGraph", "kept_log_prob"]


class Edges(NamedTuple):
    """Edges in a list, graphs of a batch one after the other.

    Attributes:
        index: ``[2, edges]`` the nodes ``(i, j)``; node ``i`` of graph ``b`` is ``b * nodes + i``.
        weights: ``[edges]`` of node ``j`` for node ``i``, with gradient.
        batch: ``[edges]`` the graph that an edge belongs to.
    """

    index: Int[Tensor, "2 edges"]  # type: ignore[assignment]
    weights: Float[Tensor, "edges"]
    batch: Int[Tensor, "edges"]


class LearnedGraph(NamedTuple):
    """A graph as a list of ``m`` neighbours a node, any number of which may have weight 0; dense where ``m = n``.

    Indices have no gradient; the weights do, and so do the degree and the log-probability where they depend on what is
    learned. All that a graph is multiplied with goes through ``weights``.

    Attributes:
        weights: ``[*batch, n, m]`` of the edges from node ``i`` to its ``m`` neighbours.
        index: ``[*batch, n, m]`` int64, the neighbours; no neighbour stands twice in a row.
        degree: ``[*batch, n]`` how many neighbours a node keeps: the real number that cut them off, or a count.
        log_prob: ``[*batch, n]`` the sum of ``log weight`` over the neighbours that a node keeps: what a reward
            multiplies, so that it raises or lowers their weights.

    Example:
        >>> weights = torch.tensor([[0.9, 0.0], [0.4, 0.2]])
        >>> graph = LearnedGraph(weights, torch.tensor([[1, 0], [0, 1]]), torch.tensor([1.0, 2.0]), torch.zeros(2))
        >>> graph.to_dense()
        tensor([[0.0000, 0.9000],
                [0.4000, 0.2000]])
        >>> graph.to_edges().index
        tensor([[0, 1, 1],
                [1, 0, 1]])
    """

    weights: Float[Tensor, "*batch n m"]
    index: Int[Tensor, "*batch n m"]  # type: ignore[assignment]
    degree: Float[Tensor, "*batch n"]
    log_prob: Float[Tensor, "*batch n"]

    def to_dense(self) -> Float[Tensor, "*batch n n"]:
        """Return the adjacency ``A``: ``A[i, j]`` is the weight of node ``j`` for node ``i``, 0 without an edge."""
        n = self.weights.shape[-2]
        return self.weights.new_zeros((*self.weights.shape[:-1], n)).scatter_add(-1, self.index, self.weights)

    def to_edges(self) -> Edges:
        """Return the edges of positive weight, row by row."""
        place = self.weights.detach().gt(0).nonzero(as_tuple=True)
        return self._edges(place, self.index[place], self.weights[place])

    def to_undirected(self) -> Edges:
        """Return each pair ``i < j`` that has an edge in either direction once, with ``(A[i, j] + A[j, i]) / 2``."""
        directed = self.to_edges()
        nodes = self.weights[..., 0].numel()
        low, high = directed.index.amin(0), directed.index.amax(0)
        apart = low != high
        pairs, member = torch.unique((low * nodes + high)[apart], return_inverse=True)
        halves = directed.weights[apart] / 2
        weights = halves.new_zeros(len(pairs)).index_add(0, member, halves)
        index = torch.stack([pairs // max(nodes, 1), pairs % max(nodes, 1)])
        return Edges(index, weights, index[0] // max(self.weights.shape[-2], 1))

    def hard(self, threshold: float = 0.5) -> LearnedGraph:
        """Return the graph with weights 1 above the threshold and 0 elsewhere, with the gradient of the soft weights.

        Args:
            threshold: an edge of a larger weight exists.
        """
        exact = self.weights.detach().gt(threshold).to(self.weights.dtype)
        degree = replace_gradient(exact.sum(-1), self.degree)
        return self._replace(weights=replace_gradient(exact, self.weights), degree=degree)

    def _edges(self, place: tuple[Tensor, ...], target: Tensor, weights: Tensor) -> Edges:
        n, batch = self.weights.shape[-2], torch.zeros_like(target)
        for size, position in zip(self.weights.shape[:-2], place[:-2], strict=True):
            batch = batch * size + position
        return Edges(torch.stack([batch * n + place[-2], batch * n + target]), weights, batch)


def kept_log_prob(weights: Float[Tensor, "*batch n m"], kept: Tensor) -> Float[Tensor, "*batch n"]:
    """Return the sum of ``log weight`` over the kept neighbours of positive weight.

    Example:
        >>> kept_log_prob(torch.tensor([[1.0, 0.5, 0.0]]), torch.tensor([[True, True, True]]))
        tensor([-0.6931])
    """
    chosen = kept & (check_floating("weights", weights).detach() > 0)
    return torch.where(chosen, torch.where(chosen, weights, 1.0).log(), 0.0).sum(-1)
