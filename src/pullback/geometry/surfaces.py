"""How far surfaces and clouds of points are apart, and where a surface crosses itself."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_broadcast, check_finite, check_floating, check_integer, check_same_dtype
from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.core.transforms import can_look
from pullback.geometry.meshes import check_mesh, draw_faces, draw_points, face_normals, safe_root

__all__ = ["SurfaceDistance", "chamfer", "self_intersections", "surface_distance"]

_PAIRS = 1 << 22
"""Of points or faces that are looked at together."""


class SurfaceDistance(NamedTuple):
    """How far two surfaces are apart, over points of both.

    Attributes:
        average: mean distance to the other surface (ASSD).
        percentile: distance within which 90 % of the points are, the larger one of both directions.
        normal_consistency: mean cosine between the normals of a point and of the nearest one on the other surface, in
            [-1, 1].
    """

    average: Float[Tensor, ""]
    percentile: Float[Tensor, ""]
    normal_consistency: Float[Tensor, ""]


def chamfer(
    x: Float[Tensor, "*#batch n d"], y: Float[Tensor, "*#batch m d"], *, squared: bool = True
) -> Float[Tensor, "*batch"]:
    r"""Return :math:`\frac1n\sum_i\min_j|x_i-y_j|^2+\frac1m\sum_j\min_i|x_i-y_j|^2`.

    O(n m d) by exact differences, in blocks: memory O(n + m). Each point looks for the nearest one alone, so nothing
    says how many points may share one, and it is no metric.

    Args:
        x: ``[*batch, n, d]`` points.
        y: ``[*batch, m, d]`` points.
        squared: whether distances are squared.

    Returns:
        ``[*batch]``; the derivative where two points agree is 0, which points are nearest is constant.

    Raises:
        TypeError: x or y is no floating tensor, or their dtypes differ.
        ValueError: there are no points, one is not finite, or the shapes do not fit.

    Example:
        >>> x, y = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> chamfer(x, y)  # (4 + 5) / 2 + 4
        tensor(8.5000)

    References:
        Fan, Su, Guibas (2017), A point set generation network for 3D object reconstruction, section 3.2.
    """
    check_same_dtype(x=check_floating("x", x), y=check_floating("y", y))
    for name, points in (("x", x), ("y", y)):
        if points.ndim < 2 or points.shape[-2] == 0:
            raise ValueError(f"{name} must have shape (..., points, dimensions), got {tuple(points.shape)}")
        if can_look(points):
            check_finite(name, points)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"x and y must have points of one dimension, got {x.shape[-1]} and {y.shape[-1]}")
    batch = check_broadcast(x=tuple(x.shape[:-2]), y=tuple(y.shape[:-2]))
    wide = torch.promote_types(x.dtype, torch.float32)
    x, y, dtype = (*(t.to(wide).expand(*batch, *t.shape[-2:]) for t in (x, y)), x.dtype)
    total = torch.zeros((), dtype=wide, device=x.device)
    for points, others in ((x, y), (y, x)):
        nearest = _nearest(points.detach(), others.detach()).unsqueeze(-1).expand_as(points)
        squares = (points - others.gather(-2, nearest)).square().sum(-1)
        total = total + (squares if squared else safe_root(squares)).mean(-1)
    return total.to(dtype)


def surface_distance(
    vertices: Float[Tensor, "v 3"],
    faces: Int[Tensor, "f 3"],
    other_vertices: Float[Tensor, "u 3"],
    other_faces: Int[Tensor, "g 3"],
    *,
    samples: int = 10_000,
    generator: torch.Generator | None = None,
) -> SurfaceDistance:
    """Return how far two surfaces are apart: exact distances from points drawn on each to the triangles of the other.

    Args:
        vertices, faces: a mesh.
        other_vertices, other_faces: the other one.
        samples: points drawn on each, >= 1.
        generator: of the draws.

    Returns:
        :class:`SurfaceDistance`, constant.

    Raises:
        TypeError: vertices are no floating tensors or of two dtypes, faces hold no integers.
        ValueError: shapes or numbers as for :func:`mesh_measure`, or ``samples`` < 1.

    Example:
        >>> square = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
        >>> faces = torch.tensor([[0, 1, 2], [2, 1, 3]])
        >>> found = surface_distance(square, faces, square + torch.tensor([0.0, 0.0, 0.5]), faces, samples=50)
        >>> [round(float(x), 3) for x in found]
        [0.5, 0.5, 1.0]
    """
    meshes = ((vertices, faces, "vertices", "faces"), (other_vertices, other_faces, "other_vertices", "other_faces"))
    for corners, triangles, *names in meshes:
        check_mesh(corners, triangles, *names)
        if corners.ndim != 2:
            raise ValueError(f"{names[0]} must have shape (v, 3), got {tuple(corners.shape)}")
    check_same_dtype(vertices=vertices, other_vertices=other_vertices)
    check_integer("samples", samples, 1)
    both = [corners.detach().double()[triangles] for corners, triangles, *_ in meshes]
    distances, cosines = [], []
    for this, other in (both, both[::-1]):
        ours, area = face_normals(this)
        chosen = draw_faces(area / area.sum(), samples, generator)
        points = draw_points(this, chosen, generator)
        distance, nearest = _to_triangles(points, other)
        theirs = face_normals(other)[0]
        distances.append(distance)
        cosines.append(torch.cosine_similarity(ours[chosen], theirs[nearest], -1))
    percentile = torch.stack([d.quantile(0.9) for d in distances]).max()
    found = torch.cat(distances).mean(), percentile, torch.cat(cosines).mean()
    return SurfaceDistance(*(x.to(vertices.dtype) for x in found))


def self_intersections(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"]) -> Bool[Tensor, "f"]:
    """Return which faces are crossed by another one.

    Two faces cross where an edge of one passes through the inside of the other; faces with a common edge do not, those
    with one common corner may. What only touches, or overlaps in one plane, is not counted. Pairs whose boxes are apart
    are left out by a sweep along the longest axis.

    Args:
        vertices: ``[v, 3]``.
        faces: ``[f, 3]``.

    Returns:
        ``[f]`` bool; its sum is the number of such faces.

    Raises:
        TypeError: ``vertices`` is no floating tensor, or ``faces`` holds no integers.
        ValueError: ``faces`` is not ``[f, 3]`` or out of range, a vertex is not finite.

    Example:
        >>> flat = torch.tensor([[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 2.0, 0.0]])
        >>> upright = torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, 1.0], [0.0, 5.0, 0.0]])
        >>> faces = torch.tensor([[0, 1, 2], [3, 4, 5]])
        >>> self_intersections(torch.cat([flat, upright]), faces)
        tensor([True, True])
        >>> self_intersections(torch.cat([flat, upright + 3]), faces)
        tensor([False, False])
    """
    check_mesh(vertices, faces)
    if vertices.ndim != 2:
        raise ValueError(f"vertices must have shape (v, 3), got {tuple(vertices.shape)}")
    corners = vertices.detach().double()[faces]
    low, high = corners.amin(1), corners.amax(1)
    axis = int((high.amax(0) - low.amin(0)).argmax())
    order = low[:, axis].argsort()
    end = torch.searchsorted(low[order, axis].contiguous(), high[order, axis].contiguous(), right=True)
    crossed = torch.zeros(len(faces), dtype=torch.bool, device=faces.device)
    place = torch.arange(len(faces), device=faces.device)
    for rows in place.split(max(1, _PAIRS // max(1, 8 * int((end - place).max())))):
        counts = end[rows] - rows - 1
        first = rows.repeat_interleave(counts)
        offset = torch.arange(len(first), device=faces.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        i, j = order[first], order[first + 1 + offset]
        near = ((low[i] <= high[j]) & (low[j] <= high[i])).all(-1)
        i, j = i[near], j[near]
        common = faces[i].unsqueeze(-1) == faces[j].unsqueeze(-2)  # [pairs, corner of i, corner of j]
        apart = common.flatten(1).sum(-1) < 2
        i, j, common = i[apart], j[apart], common[apart]
        hit = _pierced(corners[i], corners[j], common.any(-1)) | _pierced(corners[j], corners[i], common.any(-2))
        crossed[i[hit]] = True
        crossed[j[hit]] = True
    return crossed


def _nearest(points: Tensor, others: Tensor) -> Tensor:
    """Return the index ``[*batch, n]`` of the nearest other point."""
    blocks = points.split(max(1, _PAIRS // others.shape[-2]), -2)
    exact = "donot_use_mm_for_euclid_dist"  # products lose what near points differ by
    return torch.cat([torch.cdist(rows, others, compute_mode=exact).argmin(-1) for rows in blocks], -1)


def _to_triangles(points: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance ``[n]`` to the nearest of the triangles ``[f, 3, 3]``, and which one that is.

    A triangle lies within its radius of its middle, which is a point of it: few can be nearest.
    """
    middle = corners.mean(1)
    radius = (corners - middle.unsqueeze(1)).square().sum(-1).amax(-1).sqrt()
    found = []
    for rows in points.split(max(1, _PAIRS // len(corners))):
        far = torch.cdist(rows, middle)
        bound = far.amin(-1, keepdim=True)
        point, face = (far - radius <= bound * (1 + 1e-6) + 1e-6 * radius.max()).nonzero().unbind(-1)
        distance = _to_triangle(rows[point], corners[face])
        least = torch.full_like(bound.squeeze(-1), torch.inf).scatter_reduce(0, point, distance, "amin")
        best = distance == least[point]
        nearest = point.new_zeros(len(rows))
        nearest[point[best]] = face[best]
        found.append((least, nearest))
    distances, faces = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(faces)


def _to_triangle(points: Tensor, corners: Tensor) -> Tensor:
    """Return distances ``[k]`` of points ``[k, 3]`` to triangles ``[k, 3, 3]``: to a plane, or an edge."""
    starts, edges = corners, corners.roll(-1, 1) - corners
    offsets = points.unsqueeze(1) - starts
    share = ((offsets * edges).sum(-1) / edges.square().sum(-1).clamp(min=1e-300)).clamp(0, 1)
    to_edge = (offsets - share.unsqueeze(-1) * edges).square().sum(-1).amin(-1).sqrt()
    normal = torch.linalg.cross(edges[:, 0], edges[:, 1])
    length = normal.square().sum(-1).sqrt()
    left = (torch.linalg.cross(edges, offsets) * normal.unsqueeze(1)).sum(-1) >= 0
    to_plane = (offsets[:, 0] * normal).sum(-1).abs() / length.clamp(min=1e-300)
    return torch.where(left.all(-1) & (length > 0), to_plane, to_edge)


def _pierced(corners: Tensor, by: Tensor, common: Tensor) -> Tensor:
    """Return which triangles ``by [k, 3, 3]`` are pierced by an edge of ``corners [k, 3, 3]``, of no common corner."""
    hit = torch.zeros(len(corners), dtype=torch.bool, device=corners.device)
    a, b, c = by.unbind(1)
    normal = torch.linalg.cross(b - a, c - a)
    for k in range(3):
        p, q = corners[:, k], corners[:, (k + 1) % 3]
        above, below = ((p - a) * normal).sum(-1), ((q - a) * normal).sum(-1)
        edge = q - p
        turns = [(edge * torch.linalg.cross(s - p, t - p)).sum(-1) for s, t in ((a, b), (b, c), (c, a))]
        inside = torch.stack(turns, -1)
        through = (inside > 0).all(-1) | (inside < 0).all(-1)
        free = ~(common[:, k] | common[:, (k + 1) % 3])
        hit |= free & (above * below < 0) & through
    return hit
