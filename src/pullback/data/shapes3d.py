"""Meshes, scans, an articulated body and cortical surfaces."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_choice, check_integer
from pullback.core.shapes import Float, Int, Tensor
from pullback.data.cache import load

__all__ = ["Body", "Mesh", "Scan", "body", "cortex", "mesh", "scan"]


class Mesh(NamedTuple):
    """A triangle mesh.

    Attributes:
        vertices: ``[v, 3]`` float32, in the units of its file.
        faces: ``[f, 3]`` int64 vertex indices.
    """

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 3"]


class Scan(NamedTuple):
    """Points of a surface seen from one side.

    Attributes:
        points: ``[n, 3]`` float32.
        normals: ``[n, 3]`` float32.
    """

    points: Float[Tensor, "n 3"]
    normals: Float[Tensor, "n 3"]


class Body(NamedTuple):
    """A human body in its rest pose, to be posed by linear blend skinning.

    Attributes:
        vertices: ``[19158, 3]`` float32 decimetres, y up (with the helper geometry of the modelling tool).
        faces: ``[f, 4]`` int64 quadrilaterals of the skin.
        bones: names of the ``b`` bones.
        heads: ``[b, 3]`` float32 where each bone starts, in the coordinates of the rig: metres, z up.
        tails: ``[b, 3]`` float32 where it ends.
        parents: ``[b]`` int64 index of the parent bone, -1 for the root.
        skin: ``[19158, b]`` float32 weight of each bone at each vertex; rows of skin vertices sum to 1.
    """

    vertices: Float[Tensor, "v 3"]
    faces: Int[Tensor, "f 4"]
    bones: tuple[str, ...]
    heads: Float[Tensor, "b 3"]
    tails: Float[Tensor, "b 3"]
    parents: Int[Tensor, "b"]
    skin: Float[Tensor, "v b"]


def mesh(name: str) -> Mesh:
    """Return a mesh: ``"bunny00"``, ``"armadillo"``, ``"camel"``, ``"elephant"``, ``"cow"``, ``"man"``, ...

    Raises:
        DataMissingError: the set ``meshes`` was not fetched.
        ValueError: ``name`` is unknown.
    """
    stored = load("meshes")
    check_choice("name", name, sorted({key.partition("/")[0] for key in stored}))
    return Mesh(torch.from_numpy(stored[f"{name}/vertices"]), torch.from_numpy(stored[f"{name}/faces"]).long())


def scan(name: str) -> Scan:
    """Return one of two scans of a scene, ``"rs1"`` or ``"rs22"``.

    Raises:
        DataMissingError: the set ``scans`` was not fetched.
        ValueError: ``name`` is unknown.
    """
    check_choice("name", name, ("rs1", "rs22"))
    stored = load("scans")
    return Scan(torch.from_numpy(stored[f"{name}/points"]), torch.from_numpy(stored[f"{name}/normals"]))


def body() -> Body:
    """Return the human body.

    Raises:
        DataMissingError: the set was not fetched.
    """
    stored = load("body")
    return Body(
        torch.from_numpy(stored["vertices"]),
        torch.from_numpy(stored["faces"]).long(),
        tuple(str(bone) for bone in stored["bones"]),
        torch.from_numpy(stored["heads"]),
        torch.from_numpy(stored["tails"]),
        torch.from_numpy(stored["parents"]),
        torch.from_numpy(stored["skin"]),
    )


def cortex(surface: str = "pial", hemisphere: str = "left", *, level: int = 5) -> Mesh:
    """Return a cortical surface of an average brain: a sphere that was divided, and folded into the sheet.

    Vertex i is the same place on all surfaces of a hemisphere, and triangles turn outwards. At a lower level stand the
    first vertices and the triangles of the icosahedron that was divided less often.

    Args:
        surface: ``"pial"`` (the outer one), ``"white"`` (the inner one, where grey matter meets white), ``"inflated"``
            or ``"sphere"``.
        hemisphere: ``"left"`` or ``"right"``.
        level: how often the icosahedron is divided, 0 to 5: 10 * 4**level + 2 vertices.

    Returns:
        :class:`Mesh` in millimetres, x to the right, y to the front, z up.

    Raises:
        DataMissingError: the set was not fetched.
        TypeError: ``level`` is no integer.
        ValueError: an argument is out of range.
    """
    check_choice("surface", surface, ("pial", "white", "inflated", "sphere"))
    check_choice("hemisphere", hemisphere, ("left", "right"))
    check_integer("level", level, 0, 5)
    stored = load("cortex")
    vertices, faces = (torch.from_numpy(stored[f"{name}_{hemisphere}"]) for name in (surface, "faces"))
    faces = faces.long()
    for coarse in range(4, level - 1, -1):
        faces = _undivided(faces, 10 * 4**coarse + 2)
    return Mesh(vertices[: 10 * 4**level + 2], faces)


def _undivided(faces: Tensor, count: int) -> Tensor:
    """Return the triangles over the first ``count`` vertices, each divided into four by the middles of its edges."""
    inner = faces[(faces >= count).all(-1)]  # one of every four has no corner
    corners = torch.where(faces < count, faces, 0).sum(-1, keepdim=True).expand_as(faces)
    outer = (faces >= count) & (faces < count).any(-1, keepdim=True)
    ends = torch.zeros(2, int(faces.max()) + 1, dtype=torch.int64)
    ends[0].scatter_reduce_(0, faces[outer], corners[outer], "amin", include_self=False)
    ends[1].scatter_reduce_(0, faces[outer], corners[outer], "amax", include_self=False)
    low, high = ends[:, inner]  # of the edge that each middle divides
    before = inner.roll(1, -1)
    shared = (low == ends[0, before]) | (low == ends[1, before])
    return torch.where(shared, low, high)
