"""Triangles that fill a domain of the plane: their edges, their refinement, and which of them holds a point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

from pullback.core.checks import (
    check_callable,
    check_finite,
    check_floating,
    check_integer,
    check_same_dtype,
    check_shape,
    check_tensor,
)
from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.core.transforms import kept_property

__all__ = ["Located", "Mesh", "grid_mesh"]

_CORNERS = ((1, 2), (2, 0), (0, 1))
"""The ends of the edge opposite each corner."""


class Located(NamedTuple):
    """Where points lie in a mesh.

    Attributes:
        cells: ``[p]`` int64, the triangle of each point; -1 outside of the domain.
        barycentric: ``[p, 3]`` its coordinates there, of sum 1; zeros outside.
    """

    cells: Int[Tensor, "p"]
    barycentric: Float[Tensor, "p 3"]


@dataclass(frozen=True, eq=False)
class Mesh:
    r"""A conforming triangulation: two triangles have an edge, a corner or nothing in common.

    Attributes:
        vertices: ``[n, 2]`` in any unit of length; assembled matrices are differentiable in them.
        cells: ``[m, 3]`` int64, the corners of each triangle, counterclockwise.
        coarse: the mesh that this one refines, ``None`` for a first one.

    Raises:
        TypeError: ``vertices`` is no floating tensor, ``cells`` no int64 tensor.
        ValueError: a shape or a number is wrong, a vertex is in no cell, cells are flat or clockwise (they are
            listed), three cells share an edge, or a vertex hangs inside of an edge of another cell.

    Example:
        >>> mesh = Mesh(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0, 1, 2]]))
        >>> fine = mesh.refine()
        >>> len(fine.vertices), len(fine.cells), float(fine.areas.sum())
        (6, 4, 0.5)
        >>> fine.locate(torch.tensor([[0.9, 0.05], [0.9, 0.9]])).cells.tolist()
        [1, -1]
    """

    vertices: Float[Tensor, "n 2"]
    cells: Int[Tensor, "m 3"]
    coarse: Mesh | None = None

    def __post_init__(self) -> None:
        if check_floating("vertices", self.vertices).ndim != 2 or self.vertices.shape[1] != 2:
            raise ValueError(f"vertices must have shape (n, 2), got {tuple(self.vertices.shape)}")
        check_finite("vertices", self.vertices)
        if check_tensor("cells", self.cells).dtype != torch.int64:
            raise TypeError(f"cells must hold integers of type int64, got {self.cells.dtype}")
        if self.cells.ndim != 2 or self.cells.shape[1] != 3 or not len(self.cells):
            raise ValueError(f"cells must have shape (m, 3) with m >= 1, got {tuple(self.cells.shape)}")
        count = len(self.vertices)
        if int(self.cells.min()) < 0 or int(self.cells.max()) >= count:
            raise ValueError(f"cells must be in 0..{count - 1}, got {int(self.cells.min())}..{int(self.cells.max())}")
        unused = (torch.bincount(self.cells.flatten(), minlength=count) == 0).nonzero()[:, 0]
        if len(unused):
            raise ValueError(f"vertices must each be in a cell, got {len(unused)} in none: {_shown(unused)}")
        corners = self.vertices.detach()[self.cells]
        sides = torch.stack([corners[:, b] - corners[:, a] for a, b in _CORNERS])
        longest = sides.square().sum(-1).amax(0)
        flat = (self.areas.detach() <= 8 * torch.finfo(self.vertices.dtype).eps * longest).nonzero()[:, 0]
        if len(flat):
            raise ValueError(
                f"cells must be counterclockwise and have an area, got {len(flat)} that do not: {_shown(flat)}"
            )
        uses = torch.bincount(self.cell_edges.flatten(), minlength=len(self.edges))
        if int(uses.max()) > 2:
            crowded = self.edges[(uses > 2).nonzero()[0, 0]].tolist()
            raise ValueError(f"cells must share an edge by twos, got {int(uses.max())} at the edge {crowded}")
        self._check_hanging()

    def _check_hanging(self) -> None:
        """An edge with a vertex inside lies in one cell alone: it and the vertex look like a part of the boundary."""
        points = self.vertices.detach()
        ends = points[self.edges[self.boundary_edges]]
        ring = self.boundary.nonzero()[:, 0]
        along = ends[:, 1] - ends[:, 0]
        length = along.norm(dim=1)
        for some in ring.split(max(1, 4_000_000 // len(ends))):
            off = points[some, None] - ends[:, 0]
            share = (off * along).sum(-1) / length**2
            aside = (off[..., 0] * along[:, 1] - off[..., 1] * along[:, 0]).abs() / length**2
            slack = torch.finfo(points.dtype).eps ** 0.5
            inside = (aside < slack) & (share > slack) & (share < 1 - slack)
            if bool(inside.any()):
                at, edge = inside.nonzero()[0].tolist()
                whole = self.edges[self.boundary_edges[edge]].tolist()
                raise ValueError(
                    f"cells must have no hanging vertices, got vertex {int(some[at])} inside the edge {whole}"
                )

    @kept_property
    def _all_edges(self) -> tuple[Tensor, Tensor]:
        pairs = torch.stack([self.cells[:, list(ends)] for ends in _CORNERS], 1).sort(-1).values
        edges, places = pairs.flatten(0, 1).unique(dim=0, return_inverse=True)
        return edges, places.view(-1, 3)

    @property
    def edges(self) -> Int[Tensor, "e 2"]:
        """``[e, 2]`` int64, the ends of every edge, the lower number first."""
        return self._all_edges[0]

    @property
    def cell_edges(self) -> Int[Tensor, "m 3"]:
        """``[m, 3]`` int64, of each cell the edges opposite its corners."""
        return self._all_edges[1]

    @kept_property
    def boundary_edges(self) -> Int[Tensor, "b"]:
        """``[b]`` int64, the edges that lie in one cell alone."""
        return (torch.bincount(self.cell_edges.flatten(), minlength=len(self.edges)) == 1).nonzero()[:, 0]

    @kept_property
    def boundary(self) -> Bool[Tensor, "n"]:
        """``[n]`` bool, whether a vertex lies on the boundary."""
        on = torch.zeros(len(self.vertices), dtype=torch.bool, device=self.vertices.device)
        on[self.edges[self.boundary_edges].flatten()] = True
        return on

    @property
    def areas(self) -> Float[Tensor, "m"]:
        """``[m]``, of the cells."""
        a, b, c = self.vertices[self.cells].unbind(1)
        return ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2

    @property
    def slopes(self) -> Float[Tensor, "m 3 2"]:
        """``[m, 3, 2]``, the gradients of the barycentric coordinates in each cell."""
        corners = self.vertices[self.cells]
        sides = torch.stack([corners[:, b] - corners[:, a] for a, b in _CORNERS], 1)
        turned = torch.stack([-sides[..., 1], sides[..., 0]], -1)
        return turned / (2 * self.areas[:, None, None])

    def refine(self) -> Mesh:
        """Return the mesh in which every triangle is cut into four by the middles of its edges.

        Vertices keep their numbers; cell c becomes the cells 4 c to 4 c + 3, the last of them in its middle.
        """
        middles = self.vertices[self.edges].mean(1)
        a, b, c = self.cells.unbind(1)
        p, q, r = (len(self.vertices) + self.cell_edges).unbind(1)
        parts = [(a, r, q), (r, b, p), (q, p, c), (p, q, r)]
        cells = torch.stack([torch.stack(part, 1) for part in parts], 1).flatten(0, 1)
        return Mesh(torch.cat([self.vertices, middles]), cells, self)

    def depth_below(self, coarse: Mesh) -> int:
        """Return how many refinements lie between ``coarse`` and this mesh.

        Raises:
            ValueError: this mesh does not come from ``coarse`` by :meth:`refine`.
        """
        mesh: Mesh | None = self
        depth = 0
        while mesh is not None and mesh is not coarse:
            mesh, depth = mesh.coarse, depth + 1
        if mesh is None:
            raise ValueError(
                "meshes must be nested: the fine one must come from the coarse one by refine() (project across others)"
            )
        return depth

    def barycentric(self, cells: Int[Tensor, "p"], points: Float[Tensor, "p 2"]) -> Float[Tensor, "p 3"]:
        """Return the coordinates of points with respect to the corners of given cells, negative outside of them."""
        first = self.vertices[self.cells[cells, 0]]
        others = ((points - first)[:, None] * self.slopes[cells, 1:]).sum(-1)
        return torch.cat([1 - others.sum(-1, keepdim=True), others], -1)

    def locate(self, points: Float[Tensor, "p 2"]) -> Located:
        """Return the cell of each point and its coordinates there; on an edge, one of the two.

        Cells are looked up in a grid of about as many boxes as there are cells, so that the work grows with the points.

        Args:
            points: ``[p, 2]``.

        Raises:
            TypeError: ``points`` is no floating tensor of the dtype of the vertices.
            ValueError: its shape is another one, or a number is not finite.
        """
        check_same_dtype(points=check_floating("points", points), vertices=self.vertices)
        check_shape("points", points, (2,))
        if points.ndim != 2:
            raise ValueError(f"points must have shape (p, 2), got {tuple(points.shape)}")
        check_finite("points", points)
        with torch.no_grad():
            found, held = self._searched(points.detach())
        inside = self.barycentric(held.clamp(min=0), points)
        return Located(torch.where(found, held, -1), torch.where(found[:, None], inside, 0))

    def _searched(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Of each point whether a cell holds it, and which candidate holds it best."""
        corners = self.vertices.detach()[self.cells]
        low, high = self.vertices.detach().amin(0), self.vertices.detach().amax(0)
        side = max(1, int(len(self.cells) ** 0.5))
        width = (high - low) / side

        def boxes(x: Tensor) -> Tensor:
            return ((x - low) / width).floor().long().clamp(0, side - 1)

        first, last = boxes(corners.amin(1)), boxes(corners.amax(1))
        spans = last - first + 1
        counts = spans.prod(1)
        cell = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
        step = torch.arange(len(cell), device=counts.device) - (counts.cumsum(0) - counts)[cell]
        box = (first[cell, 0] + step // spans[cell, 1]) * side + first[cell, 1] + step % spans[cell, 1]
        order = box.argsort(stable=True)
        listed = cell[order]
        held = torch.bincount(box, minlength=side**2)
        starts = held.cumsum(0) - held
        place = boxes(points)
        place = place[:, 0] * side + place[:, 1]
        best = points.new_full((len(points),), -torch.inf)
        found = torch.full_like(place, -1)
        for k in range(int(held[place].max()) if len(place) else 0):
            some = (held[place] > k).nonzero()[:, 0]
            candidate = listed[starts[place[some]] + k]
            least = self.barycentric(candidate, points[some]).amin(1)
            better = least > best[some]
            best[some[better]] = least[better]
            found[some[better]] = candidate[better]
        return best >= -(torch.finfo(points.dtype).eps ** 0.5), found


def grid_mesh(
    shape: tuple[int, int],
    *,
    low: tuple[float, float] = (0.0, 0.0),
    high: tuple[float, float] = (1.0, 1.0),
    keep: Callable[[Float[Tensor, "squares 2"]], Bool[Tensor, "squares"]] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Mesh:
    """Return the triangles of a grid of rectangles, each cut along its rising diagonal.

    Args:
        shape: rectangles along x and along y, each >= 1.
        low: the lower left corner.
        high: the upper right corner, above and to the right of ``low``.
        keep: which rectangles belong to the domain, by their middles ``[squares, 2]``; all by default.
        dtype: of the vertices.

    Raises:
        TypeError: a number is no integer, ``keep`` cannot be called.
        ValueError: a number is out of range, or ``keep`` keeps nothing.

    Example:
        >>> corner = grid_mesh((4, 4), keep=lambda x: (x < 0.5).any(1))  # an L
        >>> len(corner.vertices), len(corner.cells), float(corner.areas.sum())
        (21, 24, 0.75)
    """
    if len(shape) != 2:
        raise ValueError(f"shape must be two numbers, got {shape}")
    for size in shape:
        check_integer("shape", size, 1)
    if not all(-torch.inf < a < b < torch.inf for a, b in zip(low, high, strict=True)):
        raise ValueError(f"high must be above low, and both finite, got low {low} and high {high}")
    lines = [torch.linspace(a, b, n + 1, dtype=dtype) for a, b, n in zip(low, high, shape, strict=True)]
    vertices = torch.cartesian_prod(*lines)
    index = torch.arange(len(vertices)).view(shape[0] + 1, shape[1] + 1)
    a, b, c, d = (index[i : i + shape[0], j : j + shape[1]].flatten() for i, j in ((0, 0), (1, 0), (1, 1), (0, 1)))
    if keep is not None:
        check_callable("keep", keep)
        kept = keep((vertices[a] + vertices[c]) / 2)
        if kept.dtype != torch.bool or kept.shape != a.shape:
            raise ValueError(f"keep must return {len(a)} booleans, got {kept.dtype} of shape {tuple(kept.shape)}")
        if not bool(kept.any()):
            raise ValueError("keep must keep at least one square, got none")
        a, b, c, d = a[kept], b[kept], c[kept], d[kept]
    cells = torch.stack([torch.stack([a, b, c], 1), torch.stack([a, c, d], 1)], 1).flatten(0, 1)
    used, cells = cells.unique(return_inverse=True)
    return Mesh(vertices[used], cells)


def _shown(numbers: Tensor) -> str:
    first = ", ".join(str(n) for n in numbers[:8].tolist())
    return f"{first}, ..." if len(numbers) > 8 else first
