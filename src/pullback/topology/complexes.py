"""Shapes as complexes with coordinates: meshes, images, graphs, point clouds, in ragged batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_floating, check_integer, check_positive, check_shape, check_tensor
from pullback.core.shapes import Bool, Float, Int
from pullback.topology.gudhi_backend import delaunay
from pullback.topology.segments import segment_reduce

__all__ = ["Complex", "check_once", "flag_simplices"]


@dataclass(frozen=True)
class Complex:
    r"""A batch of complexes embedded in :math:`\mathbb R^d`: points, and cells given by their corners.

    Its Euler characteristic is the alternating sum of cells, :math:`\chi = V - E + F - \dots`, one a shape.

    Args:
        vertices: ``[v, d]`` coordinates of the vertices of all shapes.
        cells: the cells of dimension 1, 2, ...: ``[e, 2]`` edges, ``[f, 3]`` triangles (or ``[f, corners]`` polygons,
            of any order of corners), ``[s, 4]`` solids, int64 indices of vertices.
        batch: ``[v]`` int64: the shape that each vertex belongs to; all to one by default.
        count: number of shapes; by default that of the last vertex.

    Raises:
        TypeError: ``vertices`` are not floating, indices not int64.
        ValueError: a shape is wrong, an index is out of range, the corners of a cell are not different vertices of one
            shape, or a cell is there twice.

    Example:
        >>> triangle = Complex.from_mesh(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0, 1, 2]]))
        >>> triangle.edges.tolist(), triangle.euler_characteristic().tolist()
        ([[0, 1], [0, 2], [1, 2]], [1])
        >>> Complex.collate([triangle, triangle]).euler_characteristic().tolist()
        [1, 1]
    """

    vertices: Float[Tensor, "v d"]
    cells: tuple[Int[Tensor, "_ _"], ...] = ()
    batch: Int[Tensor, "v"] = None  # type: ignore[assignment]
    count: int = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        _check_coordinates(self.vertices)
        v, device = len(self.vertices), self.vertices.device
        batch = torch.zeros(v, dtype=torch.int64, device=device) if self.batch is None else self.batch
        _check_indices("batch", batch, (v,), None)
        if self.count is None:
            object.__setattr__(self, "count", int(batch.max()) + 1 if self.batch is not None and v else 1)
        check_integer("count", self.count, 1)
        _check_indices("batch", batch, (v,), self.count)
        object.__setattr__(self, "batch", batch)
        if isinstance(self.cells, Tensor) or not isinstance(self.cells, Sequence):
            raise TypeError("cells must be a sequence of index tensors, one a dimension")
        object.__setattr__(self, "cells", tuple(self.cells))
        for k, corners in enumerate(self.cells):
            _check_indices(f"cells[{k}]", corners, (None, None), v)
            if corners.shape[1] < k + 2 or (k == 0 and corners.shape[1] != 2):
                raise ValueError(f"cells[{k}] must have {k + 2} corners a row, got shape {tuple(corners.shape)}")
            mixed = (batch[corners] != batch[corners[:, :1]]).any(1)
            if bool(mixed.any()):
                at = int(mixed.nonzero()[0])
                raise ValueError(f"cells[{k}] must not join different shapes of the batch, as in row {at}")
            check_once(f"cells[{k}]", corners)

    @classmethod
    def _of(cls, vertices: Tensor, cells: Sequence[Tensor], batch: Tensor, count: int) -> Complex:
        """Return a complex of parts that have been checked."""
        made = object.__new__(cls)
        for name, value in (("vertices", vertices), ("cells", tuple(cells)), ("batch", batch), ("count", count)):
            object.__setattr__(made, name, value)
        return made

    @property
    def edges(self) -> Int[Tensor, "e 2"]:
        """``[e, 2]`` edges, none for points."""
        return self.cells[0] if self.cells else self.batch.new_zeros(0, 2)

    @property
    def faces(self) -> Int[Tensor, "f corners"]:
        """``[f, corners]`` cells of dimension 2."""
        return self.cells[1] if len(self.cells) > 1 else self.batch.new_zeros(0, 3)

    @classmethod
    def from_mesh(
        cls,
        vertices: Float[Tensor, "v d"],
        faces: Int[Tensor, "f corners"],
        *,
        batch: Int[Tensor, "v"] | None = None,
        count: int | None = None,
    ) -> Complex:
        """Return the complex of a mesh: its faces, and each of their sides once.

        Args:
            vertices: ``[v, d]``.
            faces: ``[f, 3]`` triangles, or ``[f, 4]`` and more: polygons, in the order around them.
            batch: ``[v]`` as in the class.
            count: likewise.
        """
        _check_indices("faces", faces, (None, None), len(_check_coordinates(vertices)))
        sides = torch.stack([faces, faces.roll(-1, 1)], -1).flatten(0, 1).sort(-1).values
        keys = torch.unique(sides[:, 0] * max(1, len(vertices)) + sides[:, 1])
        edges = torch.stack([keys // max(1, len(vertices)), keys % max(1, len(vertices))], -1)
        return cls(vertices, (edges, faces), **_given(batch=batch, count=count))

    @classmethod
    def from_image(cls, mask: Bool[Tensor, "*batch h w"], *, dtype: torch.dtype = torch.float32) -> Complex:
        r"""Return the complexes of black and white images: bright pixels, their 4-neighbours, and full 2 x 2 squares.

        Pixel (row r, column c) of an ``h`` x ``w`` image is the point ``((2 c + 1 - w), (h - 1 - 2 r)) / max(h, w)``:
        x to the right and y upwards, all within [-1, 1].

        Args:
            mask: ``[*batch, h, w]`` bool, one shape an image; at most one batch dimension.
            dtype: of the vertices.
        """
        if check_tensor("mask", mask).dtype != torch.bool or mask.ndim not in (2, 3):
            raise ValueError(f"mask must be bool of shape (b, h, w) or (h, w), got {mask.dtype} {tuple(mask.shape)}")
        mask = mask if mask.ndim == 3 else mask[None]
        h, w = mask.shape[1:]
        image, row, column = mask.nonzero(as_tuple=True)
        points = torch.stack([2 * column + 1 - w, h - 1 - 2 * row], -1).to(dtype) / max(h, w)
        at = torch.full(mask.shape, -1, device=mask.device)
        at[image, row, column] = torch.arange(len(points), device=mask.device)
        right = torch.stack([at[:, :, :-1], at[:, :, 1:]], -1).flatten(0, 2)
        down = torch.stack([at[:, :-1], at[:, 1:]], -1).flatten(0, 2)
        squares = torch.stack([at[:, :-1, :-1], at[:, :-1, 1:], at[:, 1:, 1:], at[:, 1:, :-1]], -1).flatten(0, 2)
        edges = torch.cat([right, down])
        full = (edges[(edges >= 0).all(1)], squares[(squares >= 0).all(1)])
        return cls._of(points, full, image, len(mask))

    @classmethod
    def from_graph(
        cls,
        vertices: Float[Tensor, "v d"],
        edges: Int[Tensor, "e 2"],
        *,
        batch: Int[Tensor, "v"] | None = None,
        count: int | None = None,
    ) -> Complex:
        """Return a graph with coordinates.

        Args:
            vertices: ``[v, d]``.
            edges: ``[e, 2]`` int64, each once (not once a direction: that is refused).
            batch: ``[v]`` as in the class.
            count: likewise.
        """
        return cls(vertices, (edges,), **_given(batch=batch, count=count))

    @classmethod
    def from_points(
        cls, points: Float[Tensor, "v d"], kind: str = "points", *, radius: float | None = None, max_dim: int = 2
    ) -> Complex:
        r"""Return a complex on a point cloud.

        Args:
            points: ``[v, d]``, finite.
            kind: ``"points"`` (no cells), ``"rips"`` (all cliques of points at most ``radius`` apart, up to dimension
                ``max_dim``), ``"delaunay"`` (Delaunay triangulation, of dimension d; needs gudhi).
            radius: of ``"rips"``, a distance.
            max_dim: of ``"rips"``, >= 1.
        """
        check_choice("kind", kind, ("points", "rips", "delaunay"))
        check_shape("points", check_floating("points", points), (None, None))
        if kind == "points":
            return cls(points)
        if kind == "delaunay":
            tables = delaunay(points.detach().cpu().double().numpy())
            return cls(points, tuple(torch.from_numpy(table).to(points.device) for table in tables[1:]))
        check_positive("radius", radius, zero=True)
        assert radius is not None
        near = torch.cdist(points.detach(), points.detach(), compute_mode="donot_use_mm_for_euclid_dist") <= radius
        return cls(points, tuple(flag_simplices(near, max_dim=max_dim)[1:]))

    @classmethod
    def collate(cls, shapes: Sequence[Complex]) -> Complex:
        """Return several complexes of one dimension of space as one batch, in order.

        Args:
            shapes: at least one.
        """
        if not shapes:
            raise ValueError("shapes must hold at least one complex, got none")
        at, first, vertices, batches = 0, 0, [], []
        height = max(len(shape.cells) for shape in shapes)
        cells: list[list[Tensor]] = [[] for _ in range(height)]
        for shape in shapes:
            vertices.append(shape.vertices)
            batches.append(shape.batch + first)
            for k, corners in enumerate(shape.cells):
                cells[k].append(corners + at)
            at, first = at + len(shape.vertices), first + shape.count
        widths = {k: {corners.shape[1] for corners in tables} for k, tables in enumerate(cells)}
        for k, wide in widths.items():
            if len(wide) > 1:
                raise ValueError(f"shapes must have cells[{k}] with one number of corners, got {sorted(wide)}")
        return cls._of(_check_coordinates(torch.cat(vertices)), list(map(torch.cat, cells)), torch.cat(batches), first)

    def select(self, shapes: Int[Tensor, "n"]) -> Complex:
        """Return some of the shapes, such as a mini-batch, in the order given.

        Args:
            shapes: ``[n]`` int64, different numbers in ``0..count-1``.
        """
        _check_indices("shapes", shapes, (None,), self.count)
        place = torch.full((self.count,), -1, device=self.batch.device)
        place[shapes] = torch.arange(len(shapes), device=place.device)
        if int((place >= 0).sum()) != len(shapes):
            raise ValueError("shapes must be different from each other")
        batch = place[self.batch]
        kept = batch >= 0
        new = kept.cumsum(0) - 1
        cells = [new[corners[kept[corners[:, 0]]]] for corners in self.cells]
        return Complex._of(self.vertices[kept], cells, batch[kept], max(1, len(shapes)))

    def with_vertices(self, vertices: Float[Tensor, "v d"]) -> Complex:
        """Return the same cells on other coordinates, such as ones that want a gradient.

        Args:
            vertices: ``[v, d]``, as many as there are.
        """
        if len(_check_coordinates(vertices)) != len(self.vertices):
            raise ValueError(f"vertices must be {len(self.vertices)} as before, got shape {tuple(vertices.shape)}")
        return Complex._of(vertices, self.cells, self.batch, self.count)

    def to_unit_ball(self, radius: float = 1.0) -> Complex:
        """Return each shape with the mean of its vertices at the origin, scaled so that the farthest is at ``radius``.

        Args:
            radius: > 0. A shape of one point stays at the origin. Differentiable in the vertices.
        """
        check_positive("radius", radius)
        centre = segment_reduce(self.vertices, self.batch, self.count, reduce="mean")
        moved = self.vertices - centre[self.batch]
        far = segment_reduce(moved.square().sum(-1), self.batch, self.count, reduce="max")
        far = torch.where(far > 0, far, 1).sqrt()
        return self.with_vertices(radius * moved / far[self.batch, None])

    def euler_characteristic(self) -> Int[Tensor, "count"]:
        """Return ``[count]`` int64: the alternating number of cells of each shape."""
        total = torch.bincount(self.batch, minlength=self.count)
        for dimension, corners in enumerate(self.cells, start=1):
            total = total + (-1) ** dimension * torch.bincount(self.batch[corners[:, 0]], minlength=self.count)
        return total


def flag_simplices(adjacency: Bool[Tensor, "n n"], *, max_dim: int = 2) -> list[Int[Tensor, "_ _"]]:
    r"""Return the simplices of the flag complex of a graph: its cliques, by dimension.

    Args:
        adjacency: ``[n, n]`` bool, symmetric; the diagonal is ignored.
        max_dim: highest dimension of a simplex, >= 0; cliques of ``max_dim + 1`` nodes.

    Returns:
        Dimension 0 to ``max_dim``: ``[m_k, k + 1]`` int64, ascending in each row and from row to row.

    Raises:
        TypeError: ``adjacency`` is not bool.
        ValueError: it is not square or not symmetric, or ``max_dim`` < 0.

    Example:
        >>> [table.tolist() for table in flag_simplices(torch.ones(3, 3, dtype=torch.bool))]
        [[[0], [1], [2]], [[0, 1], [0, 2], [1, 2]], [[0, 1, 2]]]

    References:
        Zomorodian (2010), Fast construction of the Vietoris-Rips complex, section 4 (incremental expansion).
    """
    if check_tensor("adjacency", adjacency).dtype != torch.bool:
        raise TypeError(f"adjacency must be bool, got {adjacency.dtype}")
    if adjacency.ndim != 2 or adjacency.shape[0] != adjacency.shape[1]:
        raise ValueError(f"adjacency must have shape (n, n), got {tuple(adjacency.shape)}")
    if not bool((adjacency == adjacency.mT).all()):
        raise ValueError("adjacency must be symmetric")
    check_integer("max_dim", max_dim, 0)
    later = adjacency.triu(1)  # neighbours with a larger number
    tables = [torch.arange(len(adjacency), device=adjacency.device)[:, None]]
    rows = max(1, (1 << 24) // max(1, len(adjacency)))
    for _ in range(max_dim):
        parts = []
        for table in tables[-1].split(rows):
            common = later[table].all(1)  # neighbours of every node of the clique
            clique, new = common.nonzero(as_tuple=True)
            parts.append(torch.cat([table[clique], new[:, None]], 1))
        tables.append(torch.cat(parts) if parts else tables[-1].new_zeros(0, tables[-1].shape[1] + 1))
    return tables


def _check_coordinates(vertices: Tensor) -> Tensor:
    check_floating("vertices", vertices)
    if vertices.ndim != 2 or not vertices.shape[1]:
        raise ValueError(f"vertices must have shape (v, d) with d >= 1, got {tuple(vertices.shape)}")
    return vertices


def check_once(name: str, cells: Tensor) -> None:
    """Refuse cells that name a vertex twice, and cells that are there twice: they would be counted."""
    if not len(cells):
        return
    ordered = cells.sort(-1).values
    again = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    if bool(again.any()):
        at = int(again.nonzero()[0])
        raise ValueError(f"{name} must have different vertices in each row, got {cells[at].tolist()} in row {at}")
    kind = ordered[:, 0]
    for column in ordered[:, 1:].unbind(1):
        kinds, kind = torch.unique(kind * (int(cells.max()) + 1) + column, return_inverse=True)
    if len(kinds) < len(cells):
        order = kind.argsort(stable=True)
        at = int((kind[order][1:] == kind[order][:-1]).nonzero()[0])
        one, other = order[at : at + 2].tolist()
        raise ValueError(
            f"{name} must hold each cell once (edges not once a direction), got {cells[one].tolist()} in rows {one} "
            f"and {other}"
        )


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _check_indices(name: str, value: Tensor, shape: tuple[int | None, ...], limit: int | None) -> None:
    if check_tensor(name, value).dtype != torch.int64:
        raise TypeError(f"{name} must be an int64 tensor, got {value.dtype}")
    if value.ndim != len(shape) or any(s is not None and s != n for s, n in zip(shape, value.shape, strict=True)):
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(value.shape)}")
    if limit is not None and value.numel() and not 0 <= int(value.min()) <= int(value.max()) < limit:
        raise ValueError(f"{name} must be in 0..{limit - 1}, got {int(value.min())} to {int(value.max())}")
