"""Complexes filtered by two numbers at once: scale and density of points, two channels of a graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.core.checks import (
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_scalar,
    check_shape,
    check_tensor,
)
from pullback.core.shapes import Float, Int, Scalar
from pullback.core.transforms import below_transforms, can_look, physical
from pullback.topology.distances import pairwise_distances
from pullback.topology.pairing import as_array
from pullback.topology.reduction import boundary, check_simplices

__all__ = ["Bifiltration", "codensity", "function_rips", "graph_bifiltration"]


@dataclass(frozen=True)
class Bifiltration:
    r"""Simplices, each with two values at which it enters: :math:`K_p = \{\sigma : f(\sigma) \le p\}`.

    Args:
        simplices: by dimension: ``[m_0, 1]`` vertices 0 to m_0 - 1 in order, ``[m_1, 2]`` edges, ``[m_2, 3]``
            triangles, int64. Every face of a simplex is listed.
        values: ``[m_0 + m_1 + ..., 2]`` finite, in the order of the simplices, each at least those of its faces.
        batch: ``[m_0]`` int64: the complex of a batch that each vertex belongs to; all to one by default.
        count: number of complexes; by default that of the last vertex.
        flag_dim: of a Rips complex: cliques of edges up to this dimension are simplices too, which are not listed. They
            enter with the highest of their edges, in each coordinate; edges, in the second, with the later end.

    Raises:
        TypeError: ``values`` are not floating, indices not int64.
        ValueError: there is no vertex, a shape is wrong, an index is out of range, a face is missing, a value is NaN
            or below that of a face (the first such simplex is named), or a simplex joins two complexes.

    Example:
        >>> vertices, edges = torch.tensor([[0], [1]]), torch.tensor([[0, 1]])
        >>> values = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 2.0]])
        >>> Bifiltration((vertices, edges), values).values[2]
        tensor([1., 2.])

    References:
        Carlsson, Zomorodian (2009), The theory of multidimensional persistence.
    """

    simplices: tuple[Int[Tensor, "_ _"], ...]
    values: Float[Tensor, "s 2"]
    batch: Int[Tensor, "vertices"] = None  # type: ignore[assignment]
    count: int = None  # type: ignore[assignment]
    flag_dim: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.simplices, Sequence):  # indices have no derivative, and are read as arrays
            bare = tuple(physical(table) if isinstance(table, Tensor) else table for table in self.simplices)
            object.__setattr__(self, "simplices", bare)
        tables = check_simplices(self.simplices)
        values, sizes = check_floating("values", self.values), [len(table) for table in tables]
        if tuple(values.shape) != (sum(sizes), 2):
            raise ValueError(f"values must have shape ({sum(sizes)}, 2), one row a simplex, got {tuple(values.shape)}")
        if not sizes[0] or (tables[0].ravel() != range(sizes[0])).any():
            raise ValueError("simplices[0] must be the vertices 0, 1, ... in order, at least one")
        for k, table in enumerate(tables):
            check_shape(f"simplices[{k}]", self.simplices[k], (None, k + 1))
            if len(table) and table.max() >= sizes[0]:
                raise ValueError(f"simplices[{k}] must hold vertices below {sizes[0]}, got {table.max()}")
        if can_look(values):
            check_finite("values", values)
        batch = torch.zeros(sizes[0], dtype=torch.int64) if self.batch is None else self.batch
        if check_tensor("batch", batch).dtype != torch.int64 or tuple(batch.shape) != (sizes[0],):
            raise ValueError(f"batch must be int64 of shape ({sizes[0]},), got {batch.dtype} {tuple(batch.shape)}")
        object.__setattr__(self, "batch", physical(batch))
        if self.count is None:
            object.__setattr__(self, "count", int(batch.max()) + 1)
        check_integer("count", self.count, 1)
        if not 0 <= int(batch.min()) <= int(batch.max()) < self.count:
            raise ValueError(f"batch must be in 0..{self.count - 1}, got {int(batch.min())} to {int(batch.max())}")
        numbers = as_array(values)
        with below_transforms():
            of_vertex = self.batch.cpu().numpy()
        if self.flag_dim is not None:
            check_integer("flag_dim", self.flag_dim, 1)
            if len(sizes) > 2:
                raise ValueError(
                    "simplices must be vertices and edges alone where flag_dim says that cliques are implied"
                )
        at = sizes[0]
        for table in tables[1:]:
            mixed = (of_vertex[table] != of_vertex[table[:, :1]]).any(1)
            if mixed.any():
                raise ValueError(f"simplices must not join two complexes, as {table[mixed.argmax()].tolist()} does")
        if len(sizes) > 2:
            starts, faces, _ = boundary(tables)
            of_coface = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        elif len(sizes) == 2:
            of_coface, faces = np.arange(2 * sizes[1]) // 2 + at, tables[1].ravel()
        if len(sizes) > 1:
            low = (numbers[of_coface] < numbers[faces]).any(1)
            if low.any():
                place = int(of_coface[low.argmax()])
                named = [row for table in tables for row in table.tolist()][place]
                raise ValueError(f"values must not be below those of a face, as at simplex {named} (place {place})")
            if self.flag_dim is not None:
                later = numbers[tables[1], 1].max(1)
                if (numbers[at:, 1] != later).any():
                    raise ValueError("values of an edge must be those of its later end in the second coordinate")

    @property
    def of_simplex(self) -> Int[Tensor, "s"]:
        """``[s]`` the complex of the batch that each simplex belongs to."""
        return torch.cat([self.batch[table[:, 0].to(self.batch.device)] for table in self.simplices])


def function_rips(
    points: Float[Tensor, "n d"], function: Float[Tensor, "n"], *, max_dim: int = 2, max_edge: float | None = None
) -> Bifiltration:
    r"""Filter the Rips complex of points by scale and by a function on them.

    A vertex enters at :math:`(0, c_i)`, an edge at :math:`(\lVert x_i - x_j \rVert, \max(c_i, c_j))`, a clique with its
    highest edge in each coordinate. With ``c`` the codensity, outliers enter last, whatever the scale.

    Args:
        points: ``[n, d]``, finite, at least one.
        function: ``[n]``, finite.
        max_dim: highest dimension of a simplex, >= 1; homology below it is that of the Rips complex.
        max_edge: longest edge, in the units of the points; none by default.

    Returns:
        A :class:`Bifiltration`, differentiable in points and function. Its cliques are implied and cost no memory.

    Raises:
        TypeError: ``points`` or ``function`` is not floating, or their dtypes differ.
        ValueError: a shape does not fit, a number is not finite, ``max_dim`` < 1, or ``max_edge`` < 0.

    Example:
        >>> pair = function_rips(torch.tensor([[0.0], [2.0]]), torch.tensor([0.5, 0.1]))
        >>> pair.values.tolist()
        [[0.0, 0.5], [0.0, 0.10000000149011612], [2.0, 0.5]]

    References:
        Carlsson, Zomorodian (2009), The theory of multidimensional persistence, section 1.
        Loiseaux, Carriere, Blumberg (2023), A framework for fast and stable representations of multiparameter
        persistent homology decompositions.
    """
    _check_points(points)
    check_floating("function", function)
    check_same_dtype(points=points, function=function)
    if function.shape != points.shape[:1]:
        raise ValueError(f"function must have shape ({len(points)},), got {tuple(function.shape)}")
    if can_look(function):
        check_finite("function", function)
    check_integer("max_dim", max_dim, 1)
    distances = pairwise_distances(points)
    first, second = torch.triu_indices(len(points), len(points), 1, device=points.device)
    lengths = distances[first, second]
    if max_edge is not None:
        check_positive("max_edge", max_edge, zero=True)
        near = lengths.detach() <= max_edge
        first, second, lengths = first[near], second[near], lengths[near]
    vertices = torch.stack([torch.zeros_like(function), function], 1)
    edges = torch.stack([lengths, torch.maximum(function[first], function[second])], 1)
    tables = (torch.arange(len(points), device=points.device)[:, None], torch.stack([first, second], 1))
    return Bifiltration(tables, torch.cat([vertices, edges]), flag_dim=max_dim)


def graph_bifiltration(
    node_values: Float[Tensor, "n 2"],
    edges: Int[Tensor, "e 2"],
    *,
    batch: Int[Tensor, "n"] | None = None,
    count: int | None = None,
) -> Bifiltration:
    r"""Filter graphs by two numbers a node: an edge enters with the later of its ends, in each coordinate.

    Args:
        node_values: ``[n, 2]`` finite, at least one node.
        edges: ``[e, 2]`` int64, each once.
        batch: ``[n]`` int64: the graph of each node; by default there is one.
        count: number of graphs; by default that of the last node.

    Returns:
        A :class:`Bifiltration` with homology of degree 0 (components) and 1 (cycles), differentiable in the values.

    Raises:
        TypeError: ``node_values`` is not floating, ``edges`` are not int64.
        ValueError: a shape does not fit, a value is not finite, or an edge is a loop or names no node.

    Example:
        >>> path = graph_bifiltration(torch.tensor([[0.0, 3.0], [1.0, 2.0]]), torch.tensor([[0, 1]]))
        >>> path.values[-1]
        tensor([1., 3.])

    References:
        Scoccola, Setlur, Loiseaux, Carriere, Oudot (2024), Differentiability and optimization of multiparameter
        persistent homology, section 5.
    """
    check_shape("node_values", check_floating("node_values", node_values), (None, 2))
    if node_values.ndim != 2:
        raise ValueError(f"node_values must have shape (n, 2), got {tuple(node_values.shape)}")
    if check_tensor("edges", edges).dtype != torch.int64:
        raise TypeError(f"edges must be an int64 tensor, got {edges.dtype}")
    if edges.ndim != 2 or edges.shape[1] != 2:
        raise ValueError(f"edges must have shape (e, 2), got {tuple(edges.shape)}")
    n = len(node_values)
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < n:
        raise ValueError(f"edges must name nodes in 0..{n - 1}, got {int(edges.min())} to {int(edges.max())}")
    later = torch.maximum(node_values[edges[:, 0]], node_values[edges[:, 1]])
    vertices = torch.arange(n, device=edges.device)[:, None]
    given: dict[str, Any] = {"batch": batch, "count": count}
    words = {name: value for name, value in given.items() if value is not None}
    return Bifiltration((vertices, edges), torch.cat([node_values, later]), **words)


def codensity(points: Float[Tensor, "n d"], *, bandwidth: Scalar, log: bool = False) -> Float[Tensor, "n"]:
    r"""Return minus the Gaussian kernel density at the points themselves: low where they are dense.

    .. math:: c_i = -\frac{1}{n (2 \pi h^2)^{d/2}} \sum_j \exp\left(-\frac{\lVert x_i - x_j \rVert^2}{2 h^2}\right)

    Args:
        points: ``[n, d]`` finite, at least one.
        bandwidth: h > 0, in the units of the points.
        log: return minus the logarithm of the density, which does not underflow.

    Returns:
        ``[n]``, negative (of any sign with ``log``). The point itself counts: a lone one has density
        ``1 / (n (2 pi h^2)^(d/2))``.

    Raises:
        TypeError: ``points`` is not floating.
        ValueError: ``points`` has another shape, a number is not finite, or ``bandwidth`` <= 0.

    Example:
        >>> codensity(torch.tensor([[0.0], [0.1], [5.0]]), bandwidth=1.0).round(decimals=2)
        tensor([-0.2700, -0.2700, -0.1300])

    References:
        Parzen (1962), On estimation of a probability density function and mode.
    """
    _check_points(points)
    check_scalar("bandwidth", bandwidth)
    n, d = points.shape
    wide = points.to(torch.promote_types(points.dtype, torch.float32))
    exponents = -0.5 * (pairwise_distances(wide) / bandwidth).clamp(max=1e4).square()  # beyond, the kernel is 0
    width = bandwidth.log() if isinstance(bandwidth, Tensor) else math.log(bandwidth)
    logarithm = exponents.logsumexp(-1) - math.log(n) - d * (0.5 * math.log(2 * math.pi) + width)
    return (-logarithm if log else -logarithm.exp()).to(points.dtype)


def _check_points(points: Tensor) -> None:
    check_floating("points", points)
    if points.ndim != 2 or not points.shape[0] or not points.shape[1]:
        raise ValueError(f"points must have shape (n, d) with n, d >= 1, got {tuple(points.shape)}")
    if can_look(points):
        check_finite("points", points)
