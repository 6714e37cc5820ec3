"""Meshes, scans and an articulated body."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_choice
from pullback.core.shapes import Float, Int, Tensor
from pullback.data.cache import load

__all__ = ["Body", "Mesh", "Scan", "body", "mesh", "scan"]


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
