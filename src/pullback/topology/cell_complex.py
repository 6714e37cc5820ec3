"""Two-dimensional cell complexes, nodes, edges and polygons, whose edges and polygons have weights with a gradient."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from pullback.core.checks import check_choice, check_floating, check_shape, check_tensor
from pullback.core.shapes import Float, Int, Tensor
from pullback.core.transforms import kept_property
from pullback.topology.cycles import check_edges

__all__ = ["CellComplex"]


@dataclass(frozen=True)
class CellComplex:
    r"""A regular cell complex of dimension 2 over ``nodes`` nodes: edges, and polygons bounded by cycles of them.

    An edge ``(i, j)`` is directed from ``i`` to ``j > i``, a polygon in the order of its nodes. Then

    .. math:: (B_1)_{ie} = -1,\ (B_1)_{je} = 1; \qquad (B_2)_{eP} = \pm 1 \text{ where P runs along or against } e;
              \qquad B_1 B_2 = 0.

    Args:
        nodes: their number.
        edges: ``[2, edges]`` int64, ``i < j``, each once, in ascending order; at least one.
        cycles: ``[cells, length]`` int64: nodes of each polygon in order, filled up with -1, as
            :func:`~pullback.topology.chordless_cycles` returns them.
        edge_weights: ``[edges]``, by default 1.
        cell_weights: ``[cells]``, by default 1.
        edge_log_prob: ``[edges]`` what a reward multiplies, by default the logarithm of the weights, 0 for those of 0.
        cell_log_prob: ``[cells]``, likewise.
        node_batch, edge_batch, cell_batch: the complex of a batch that each belongs to, by default 0.

    Raises:
        TypeError: ``edges`` or ``cycles`` is not int64, weights are not floating.
        ValueError: no edges, edges out of order, a cycle along what is no edge, or another number of weights.

    Example:
        >>> edges = torch.tensor([[0, 0, 1], [1, 2, 2]])
        >>> triangle = CellComplex(3, edges, torch.tensor([[0, 1, 2]]))
        >>> triangle.boundary_2().to_dense().mT
        tensor([[ 1., -1.,  1.]])
        >>> triangle.hodge_laplacian(1).to_dense().diagonal()
        tensor([3., 3., 3.])

    References:
        Battiloro, Spinelli, Telyatnikov, Bronstein, Scardapane, Di Lorenzo (2024), From latent graph to latent topology
        inference: differentiable cell complex module, section 2.
    """

    nodes: int
    edges: Int[Tensor, "2 edges"]
    cycles: Int[Tensor, "cells length"]
    edge_weights: Float[Tensor, "edges"] = None  # type: ignore[assignment]
    cell_weights: Float[Tensor, "cells"] = None  # type: ignore[assignment]
    edge_log_prob: Float[Tensor, "edges"] = None  # type: ignore[assignment]
    cell_log_prob: Float[Tensor, "cells"] = None  # type: ignore[assignment]
    node_batch: Int[Tensor, "nodes"] = None  # type: ignore[assignment]
    edge_batch: Int[Tensor, "edges"] = field(default=None, init=False)  # type: ignore[assignment]
    cell_batch: Int[Tensor, "cells"] = field(default=None, init=False)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        check_edges(self.edges, self.nodes)
        if not self.edges.numel():
            raise ValueError("edges must hold at least one edge, got none")
        keys = self.edges[0] * self.nodes + self.edges[1]
        if not bool((self.edges[0] < self.edges[1]).all()) or not bool((keys[1:] > keys[:-1]).all()):
            raise ValueError("edges must be pairs i < j, each once, in ascending order")
        check_shape("cycles", check_tensor("cycles", self.cycles), (None, None))
        if self.cycles.dtype != torch.int64:
            raise TypeError(f"cycles must be an int64 tensor, got {self.cycles.dtype}")
        one = torch.ones((), device=self.edges.device)
        like = next((w for w in (self.edge_weights, self.cell_weights) if w is not None), one)
        for name, count in (("edge", self.edges.shape[1]), ("cell", len(self.cycles))):
            weights = getattr(self, f"{name}_weights")
            weights = like.new_ones(count) if weights is None else check_floating(f"{name}_weights", weights)
            log_prob = getattr(self, f"{name}_log_prob")
            log_prob = _log(weights) if log_prob is None else check_floating(f"{name}_log_prob", log_prob)
            for kind, value in (("weights", weights), ("log_prob", log_prob)):
                if value.shape != (count,):
                    raise ValueError(f"{name}_{kind} must have shape ({count},), got {tuple(value.shape)}")
                object.__setattr__(self, f"{name}_{kind}", value)
        batch = self.edges.new_zeros(self.nodes) if self.node_batch is None else self.node_batch
        if batch.shape != (self.nodes,):
            raise ValueError(f"node_batch must have shape ({self.nodes},), got {tuple(batch.shape)}")
        object.__setattr__(self, "node_batch", batch)
        object.__setattr__(self, "edge_batch", batch[self.edges[0]])
        object.__setattr__(self, "cell_batch", batch[self.cycles[:, 0]] if self.cycles.numel() else self.cycles[:, 0])
        _ = self.sides  # a cycle along what is no edge is refused here

    @kept_property
    def sides(self) -> tuple[Tensor, Tensor, Tensor]:
        """The sides of all polygons in a list: ``[sides]`` its edge, its polygon, and +1 or -1 for its direction."""
        present = self.cycles >= 0
        follower = self.cycles.roll(-1, 1)
        ends = present & ~torch.cat([present[:, 1:], present.new_zeros(len(present), 1)], 1)
        follower = torch.where(ends, self.cycles[:, :1], follower)
        cell = present.nonzero()[:, 0]
        a, b = self.cycles[present], follower[present]
        keys = self.edges[0] * self.nodes + self.edges[1]
        wanted = torch.minimum(a, b) * self.nodes + torch.maximum(a, b)
        edge = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        wrong = (keys[edge] != wanted).nonzero()
        if len(wrong):
            i = int(wrong[0])
            raise ValueError(f"cycles must run along edges, got ({int(a[i])}, {int(b[i])}) in cycle {int(cell[i])}")
        return edge, cell, torch.where(a < b, 1, -1)

    def boundary_1(self) -> Tensor:
        """Return the sparse ``B1 [nodes, edges]``: -1 where an edge begins, 1 where it ends."""
        count = self.edges.shape[1]
        column = torch.arange(count, device=self.edges.device).repeat(2)
        values = self.edge_weights.new_ones(count)
        return _sparse(self.edges.flatten(), column, torch.cat([-values, values]), (self.nodes, count))

    def boundary_2(self) -> Tensor:
        """Return the sparse ``B2 [edges, cells]``: 1 where a polygon runs along an edge, -1 where against it."""
        edge, cell, sign = self.sides
        return _sparse(edge, cell, sign.to(self.edge_weights.dtype), (self.edges.shape[1], len(self.cycles)))

    def node_adjacency(self) -> Tensor:
        """Return the symmetric ``[nodes, nodes]``: the weight of the edge between two nodes. Dense."""
        index = torch.cat([self.edges, self.edges.flip(0)], 1)
        matrix = self.edge_weights.new_zeros(self.nodes, self.nodes)
        return matrix.index_put((index[0], index[1]), self.edge_weights.repeat(2))

    def lower_adjacency(self) -> Tensor:
        """Return the sparse ``[edges, edges]``: 1 for two different edges that share a node."""
        common = _product(self.boundary_1().mT, self.boundary_1()).coalesce()
        return _apart(common.indices(), common.values().abs().to(self.edge_weights.dtype), common.shape)

    def upper_adjacency(self) -> Tensor:
        """Return the sparse ``[edges, edges]``: for two edges, the sum of the weights of polygons that both bound."""
        edge, cell, _ = self.sides
        shape = (self.edges.shape[1], len(self.cycles))
        ones = _sparse(edge, cell, self.cell_weights.new_ones(len(edge)), shape)
        common = _product(_sparse(edge, cell, self.cell_weights[cell], shape), ones.mT).coalesce()
        return _apart(common.indices(), common.values().to(self.cell_weights.dtype), common.shape)

    def hodge_laplacian(self, k: int, *, weighted: bool = False) -> Tensor:
        r"""Return the sparse Hodge Laplacian :math:`L_k = B_k^T B_k + B_{k+1} B_{k+1}^T`, whose kernel are the holes.

        Args:
            k: 0 for nodes, 1 for edges, 2 for polygons.
            weighted: :math:`B_{k+1} W_{k+1} B_{k+1}^T` with the weights of the edges or polygons, which get a gradient.

        Returns:
            ``[n_k, n_k]``.

        Raises:
            ValueError: ``k`` is another number.
        """
        check_choice("k", str(k), ("0", "1", "2"))
        boundaries = (self.boundary_1(), self.boundary_2())
        parts = []
        if k > 0:
            parts.append(_product(boundaries[k - 1].mT, boundaries[k - 1]))
        if k < 2:
            scaled = boundaries[k]
            if weighted:
                row, column = scaled.indices()
                weights = (self.edge_weights, self.cell_weights)[k]
                scaled = _sparse(row, column, scaled.values() * weights[column], scaled.shape)
            parts.append(_product(scaled, boundaries[k].mT))
        return sum(parts[1:], parts[0]).to(self.edge_weights.dtype).coalesce()

    @staticmethod
    def batch(complexes: Sequence[CellComplex]) -> CellComplex:
        """Return the complexes side by side as one, block-diagonal, with the place of each in ``node_batch``.

        Raises:
            ValueError: there are none.
        """
        if not complexes:
            raise ValueError("complexes must hold at least one complex, got none")
        offsets = [0]
        for each in complexes:
            offsets.append(offsets[-1] + each.nodes)
        length = max(each.cycles.shape[1] for each in complexes)
        cycles = []
        for each, offset in zip(complexes, offsets, strict=False):
            moved = torch.where(each.cycles >= 0, each.cycles + offset, -1)
            cycles.append(torch.nn.functional.pad(moved, (0, length - each.cycles.shape[1]), value=-1))
        places = [each.edges.new_full((each.nodes,), i) for i, each in enumerate(complexes)]
        return CellComplex(
            offsets[-1],
            torch.cat([each.edges + offset for each, offset in zip(complexes, offsets, strict=False)], 1),
            torch.cat(cycles),
            torch.cat([each.edge_weights for each in complexes]),
            torch.cat([each.cell_weights for each in complexes]),
            torch.cat([each.edge_log_prob for each in complexes]),
            torch.cat([each.cell_log_prob for each in complexes]),
            torch.cat(places),
        )


def _log(weights: Tensor) -> Tensor:
    some = weights > 0
    return torch.where(some, torch.where(some, weights, 1.0).log(), 0.0)


def _sparse(row: Tensor, column: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    indices = torch.stack([row, column])
    return torch.sparse_coo_tensor(indices, values, tuple(shape), check_invariants=False).coalesce()


def _product(a: Tensor, b: Tensor) -> Tensor:
    with warnings.catch_warnings():  # torch goes through compressed rows, which it calls a beta
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        wide = torch.promote_types(a.dtype, torch.float32)  # torch has none of half precision
        return torch.sparse.mm(a.to(wide), b.to(wide))


def _apart(indices: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
    off = indices[0] != indices[1]
    return _sparse(indices[0, off], indices[1, off], values[off], shape)
