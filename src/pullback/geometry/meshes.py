r"""Triangle meshes as measures: points with masses, differentiable in the vertices.

A mesh is ``vertices [*batch, v, 3]`` in any unit of length, and ``faces [f, 3]`` that name the corners of each
triangle, in the order that turns its normal outwards.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_choice, check_finite, check_floating, check_integer, check_scalar, check_tensor
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.core.transforms import can_look

__all__ = [
    "Measure",
    "check_mesh",
    "draw_faces",
    "draw_points",
    "face_normals",
    "laplacian_energy",
    "mesh_measure",
    "safe_root",
]


class Measure(NamedTuple):
    """Points with masses.

    Attributes:
        points: ``[*batch, n, d]``.
        weights: ``[*batch, n]`` of sum 1.
    """

    points: Float[Tensor, "*batch n d"]
    weights: Float[Tensor, "*batch n"]


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
    check_mesh(vertices, faces)
    check_choice("kind", kind, ("samples", "barycentres", "varifold"))
    for name, value, owner in (("count", count, "samples"), ("normal_weight", normal_weight, "varifold")):
        if (value is None) == (kind == owner):
            raise ValueError(f"{name} must be given for kind={owner!r}, and for no other, got {value} for {kind!r}")
    corners = vertices.to(torch.promote_types(vertices.dtype, torch.float32))[..., faces, :]
    scaled, area = face_normals(corners)
    shares = area / area.sum(-1, keepdim=True)
    if count is not None:
        check_integer("count", count, 1)
        chosen = draw_faces(shares.detach(), count, generator)
        points = draw_points(corners, chosen, generator)
        weights = torch.full_like(points[..., 0], 1 / count)
        return Measure(points.to(vertices.dtype), weights.to(vertices.dtype))
    points = corners.mean(-2)
    if normal_weight is not None:
        check_scalar("normal_weight", normal_weight)
        if can_look(area) and bool((empty := area == 0).any()):
            raise ValueError(f"faces must have an area, got none at {_first_few(empty)}")
        points = torch.cat([points, normal_weight * (scaled / area.unsqueeze(-1))], -1)
    return Measure(points.to(vertices.dtype), shares.to(vertices.dtype))


def laplacian_energy(vertices: Float[Tensor, "*batch v 3"], faces: Int[Tensor, "f 3"]) -> Float[Tensor, "*batch"]:
    r"""Return :math:`\frac1v\sum_i\bigl|x_i-\frac{1}{|N_i|}\sum_{j\in N_i}x_j\bigr|^2`.

    How far vertices are from the mean of their neighbours N: a term that keeps a mesh smooth and its triangles alike.
    Vertices that no face names are left out.

    Args:
        vertices: ``[*batch, v, 3]``.
        faces: ``[f, 3]``.

    Returns:
        ``[*batch]`` in the square of the unit of the vertices.

    Raises:
        TypeError: ``vertices`` is no floating tensor, or ``faces`` holds no integers.
        ValueError: ``faces`` is not ``[f, 3]`` or out of range, or a vertex is not finite.

    Example:
        >>> corners = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        >>> laplacian_energy(corners, torch.tensor([[0, 1, 2]]))  # (2 + 5 + 5) / 3
        tensor(4.)

    References:
        Desbrun, Meyer, Schroeder, Barr (1999), Implicit fairing of irregular meshes using diffusion and curvature flow.
    """
    check_mesh(vertices, faces)
    wide = vertices.to(torch.promote_types(vertices.dtype, torch.float32))
    size = vertices.shape[-2]
    ahead = (faces * size + faces.roll(-1, -1)).long().unique()  # an edge as one number
    first, second = ahead // size, ahead % size
    both = torch.cat([ahead, second * size + first]).unique()
    first, second = both // size, both % size
    sums = torch.zeros_like(wide).index_add(-2, first, wide.index_select(-2, second))
    degree = torch.zeros(size, dtype=wide.dtype, device=wide.device).index_add(
        0, first, torch.ones_like(first).to(wide)
    )
    off = torch.where(degree.unsqueeze(-1) > 0, wide - sums / degree.clamp(min=1).unsqueeze(-1), 0)
    return (off.square().sum(-1).sum(-1) / (degree > 0).sum()).to(vertices.dtype)


def check_mesh(vertices: Tensor, faces: Tensor, name: str = "vertices", of_faces: str = "faces") -> None:
    """Raise unless these are finite points ``[..., v, 3]`` and triangles ``[f, 3]`` over them, one with an area.

    Example:
        >>> check_mesh(torch.zeros(3, 3), torch.tensor([[0, 1, 3]]))
        Traceback (most recent call last):
        ValueError: faces must be in 0..2, got 0..3
    """
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
        if bool((face_normals(corners)[1].sum(-1) == 0).any()):
            raise ValueError(f"{of_faces} must have an area, got none of {len(faces)} with any")


def _first_few(where: Tensor) -> str:
    found = where.nonzero()[:, -1].unique()
    return ", ".join(map(str, found[:8].tolist())) + (", ..." if len(found) > 8 else "")


def face_normals(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Return normals as long as the areas ``[..., f, 3]`` and areas ``[..., f]``, both in one unit of their own."""
    first, second = corners[..., 1, :] - corners[..., 0, :], corners[..., 2, :] - corners[..., 0, :]
    unit = torch.maximum(first.detach().abs().amax((-2, -1)), second.detach().abs().amax((-2, -1)))
    unit = torch.where(unit > 0, unit, 1)[..., None, None]  # squares of areas stay in range
    normal = torch.linalg.cross(first / unit, second / unit)
    return normal, safe_root(normal.square().sum(-1))


def safe_root(squares: Tensor) -> Tensor:
    """Return roots, whose derivative at 0 is 0.

    Example:
        >>> safe_root(torch.tensor([4.0, 0.0]))
        tensor([2., 0.])
    """
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)


def draw_faces(shares: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Draw faces ``[*batch, count]`` by their shares of area, one in each of ``count`` equal strata."""
    ends = shares.double().cumsum(-1)
    device = drawing_device(generator, shares)
    jitter = torch.rand(*shares.shape[:-1], count, dtype=torch.float64, device=device, generator=generator)
    level = (torch.arange(count, device=shares.device) + jitter.to(shares.device)) / count
    last = (shares > 0).long().mul(torch.arange(shares.shape[-1], device=shares.device)).amax(-1, keepdim=True)
    return torch.minimum(torch.searchsorted(ends, level * ends[..., -1:], right=True), last)


def draw_points(corners: Tensor, chosen: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw a point of each of the chosen faces."""
    device = drawing_device(generator, corners)
    r, s = torch.rand(2, *chosen.shape, dtype=torch.float64, device=device, generator=generator).to(corners)
    root = r.sqrt()
    weights = torch.stack([1 - root, root * (1 - s), root * s], -1)
    index = chosen[..., None, None].expand(*chosen.shape, 3, 3)
    return (weights.unsqueeze(-1) * corners.gather(-3, index)).sum(-2)
