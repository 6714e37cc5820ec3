r"""Triangle meshes as measures, and how far two surfaces are apart.

A mesh is ``vertices [*batch, v, 3]`` in any unit of length and ``faces [f, 3]``, which name the corners of each triangle
in the order that turns its normal outwards.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import (
    check_broadcast,
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_same_dtype,
    check_scalar,
    check_tensor,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Int, Scalar, Tensor
from pullback.core.transforms import can_look

__all__ = ["Measure", "SurfaceDistance", "chamfer", "mesh_measure", "self_intersections", "surface_distance"]

_PAIRS = 1 << 22
"""Of points or faces that are looked at together."""


class Measure(NamedTuple):
    """Points with masses.

    Attributes:
        points: ``[*batch, n, d]``.
        weights: ``[*batch, n]`` of sum 1.
    """

    points: Float[Tensor, "*batch n d"]
    weights: Float[Tensor, "*batch n"]


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


def mesh_measure(
    vertices: Float[Tensor, "*batch v 3"],
    faces: Int[Tensor, "f 3"],
    *,
    kind: str = "samples",
    count: int | None = None,
    normal_weight: Scalar | None = None,
    generator: torch.Generator | None = None,
) -> Measure:
    r"""Return a mesh as a probability measure.

    * ``"samples"``: points :math:`x=(1-\sqrt{r})\,v_0+\sqrt{r}(1-s)\,v_1+\sqrt{r}\,s\,v_2` of faces that are drawn by
      area, r and s uniform in [0, 1], one mass for all. The faces are drawn in equal strata of area (each point alone
      is uniform on the surface, together they lie more evenly), and are constant in derivatives.
    * ``"barycentres"``: :math:`\sum_i\frac{A_i}{A}\,\delta_{c_i}` with the middles c and the areas A of the faces.
    * ``"varifold"``: :math:`\sum_i\frac{A_i}{A}\,\delta_{(c_i,\,w\,n_i)}` in six dimensions, with unit normals n, so
      that sheets that face each other are told apart.

    Args:
        vertices: ``[*batch, v, 3]``.
        faces: ``[f, 3]``.
        kind: one of these.
        count: points to draw, >= 1: of ``"samples"`` alone.
        normal_weight: w > 0 in the unit of the vertices: of ``"varifold"`` alone; a tenth of the diameter is a start.
        generator: of the draws.

    Returns:
        :class:`Measure`, differentiable in the vertices, areas and normals included.

    Raises:
        TypeError: ``vertices`` is no floating tensor, ``faces`` holds no integers, ``count`` is none.
        ValueError: ``faces`` is not ``[f, 3]`` or out of range, a vertex is not finite, a face has no area
            (``"varifold"``: it has no normal; else: no face has any), an option of another kind is given or missing.

    Example:
        >>> corner = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
        >>> middle = mesh_measure(corner, torch.tensor([[0, 1, 2]]), kind="varifold", normal_weight=2.0)
        >>> middle.points, middle.weights
        (tensor([[1., 1., 0., 0., 0., 2.]]), tensor([1.]))

    References:
        Le, Nguyen, Sun, Han, Ho, Xie (2024), Diffeomorphic mesh deformation via efficient optimal transport, section 4.
        Charon, Trouve (2013), The varifold representation of nonoriented shapes.
    """
    _check_mesh(vertices, faces)
    check_choice("kind", kind, ("samples", "barycentres", "varifold"))
    for name, value, owner in (("count", count, "samples"), ("normal_weight", normal_weight, "varifold")):
        if (value is None) == (kind == owner):
            raise ValueError(f"{name} must be given for kind={owner!r}, and for no other, got {value} for {kind!r}")
    corners = vertices.to(torch.promote_types(vertices.dtype, torch.float32))[..., faces, :]
    scaled, area = _normals(corners)
    shares = area / area.sum(-1, keepdim=True)
    if kind == "samples":
        check_integer("count", count, 1)
        points = _drawn(corners, shares.detach(), count, generator)  # type: ignore[arg-type]
        weights = torch.full_like(points[..., 0], 1 / count)  # type: ignore[operator]
        return Measure(points.to(vertices.dtype), weights.to(vertices.dtype))
    points = corners.mean(-2)
    if kind == "varifold":
        check_scalar("normal_weight", normal_weight)
        if can_look(area) and bool((empty := area == 0).any()):
            raise ValueError(f"faces must have an area, got none at {_first_few(empty)}")
        points = torch.cat([points, normal_weight * (scaled / area.unsqueeze(-1))], -1)
    return Measure(points.to(vertices.dtype), shares.to(vertices.dtype))


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
        total = total + (squares if squared else _root(squares)).mean(-1)
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
        _check_mesh(corners, triangles, *names)
        if corners.ndim != 2:
            raise ValueError(f"{names[0]} must have shape (v, 3), got {tuple(corners.shape)}")
    check_same_dtype(vertices=vertices, other_vertices=other_vertices)
    check_integer("samples", samples, 1)
    both = [corners.detach().double()[triangles] for corners, triangles, *_ in meshes]
    distances, cosines = [], []
    for this, other in (both, both[::-1]):
        ours, area = _normals(this)
        chosen = _chosen(area / area.sum(), samples, generator)
        points = _inside(this, chosen, generator)
        distance, nearest = _to_triangles(points, other)
        theirs = _normals(other)[0]
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
    _check_mesh(vertices, faces)
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


def _check_mesh(vertices: Tensor, faces: Tensor, name: str = "vertices", of_faces: str = "faces") -> None:
    if check_floating(name, vertices).ndim < 2 or vertices.shape[-1] != 3:
        raise ValueError(f"{name} must have shape (..., v, 3), got {tuple(vertices.shape)}")
    if check_tensor(of_faces, faces).is_floating_point() or faces.is_complex() or faces.dtype == torch.bool:
        raise TypeError(f"{of_faces} must hold integers, got {faces.dtype}")
    if faces.ndim != 2 or faces.shape[1] != 3 or len(faces) == 0:
        raise ValueError(f"{of_faces} must be triangles of shape (f, 3), f >= 1, got {tuple(faces.shape)}")
    if can_look(faces) and not (int(faces.min()) >= 0 and int(faces.max()) < vertices.shape[-2]):
        low, high = int(faces.min()), int(faces.max())
        raise ValueError(f"{of_faces} must be in 0..{vertices.shape[-2] - 1}, got {low}..{high}")
    if can_look(vertices):
        check_finite(name, vertices)
        corners = vertices.detach()[..., faces, :].double()
        if bool((_normals(corners)[1].sum(-1) == 0).any()):
            raise ValueError(f"{of_faces} must have an area, got none of {len(faces)} with any")


def _first_few(where: Tensor) -> str:
    found = where.nonzero()[:, -1].unique()
    return ", ".join(map(str, found[:8].tolist())) + (", ..." if len(found) > 8 else "")


def _normals(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Return normals as long as the areas ``[..., f, 3]`` and areas ``[..., f]``, both in one unit of their own."""
    first, second = corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :]
    unit = torch.maximum(first.detach().abs().amax((-2, -1)), second.detach().abs().amax((-2, -1)))
    unit = torch.where(unit > 0, unit, 1)[..., None, None]  # squares of areas stay in range
    normal = torch.linalg.cross(first / unit, second / unit)
    return normal, _root(normal.square().sum(-1))


def _root(squares: Tensor) -> Tensor:
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)


def _chosen(shares: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Draw faces ``[*batch, count]`` by their shares of area, one in each of ``count`` equal strata."""
    ends = shares.double().cumsum(-1)
    device = drawing_device(generator, shares)
    jitter = torch.rand(*shares.shape[:-1], count, dtype=torch.float64, device=device, generator=generator)
    level = (torch.arange(count, device=shares.device) + jitter.to(shares.device)) / count
    last = (shares > 0).long().mul(torch.arange(shares.shape[-1], device=shares.device)).amax(-1, keepdim=True)
    return torch.minimum(torch.searchsorted(ends, level * ends[..., -1:], right=True), last)


def _inside(corners: Tensor, chosen: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw a point of each of the chosen faces."""
    device = drawing_device(generator, corners)
    r, s = torch.rand(2, *chosen.shape, dtype=torch.float64, device=device, generator=generator).to(corners)
    root = r.sqrt()
    weights = torch.stack([1 - root, root * (1 - s), root * s], -1)
    index = chosen[..., None, None].expand(*chosen.shape, 3, 3)
    return (weights.unsqueeze(-1) * corners.gather(-3, index)).sum(-2)


def _drawn(corners: Tensor, shares: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    return _inside(corners, _chosen(shares, count, generator), generator)


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
    distances, nearest = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(nearest)


def _to_triangle(points: Tensor, corners: Tensor) -> Tensor:
    """Return distances ``[k]`` of points ``[k, 3]`` to triangles ``[k, 3, 3]``: to the plane inside, else to an edge."""
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
