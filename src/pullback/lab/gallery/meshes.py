"""Meshes small enough for a page: read from the PLY files of runs, as the numbers that the viewer's script draws."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["preview"]

MOST_FACES = 4000
MOST_POINTS = 4000
LARGEST_FILE = 256 * 2**20

_TYPES = {"float": "<f4", "uchar": "u1"}


def preview(path: Path) -> dict[str, Any] | None:
    """Return the points, faces and colours of a mesh as :func:`pullback.lab.draw.files.mesh` writes it.

    Args:
        path: a binary little-endian PLY.

    Returns:
        ``points`` ``[V, 3]`` centred with radius 1, ``faces`` ``[F, 3]`` indices (none where there are more than
        ``MOST_FACES``: then ``points`` are a regular sample), ``colours`` ``[V, 3]`` in 0 to 255 or none; ``None``
        where the file has another layout, or more than ``LARGEST_FILE`` bytes.
    """
    if path.stat().st_size > LARGEST_FILE:
        return None
    content = path.read_bytes()
    head, mark, body = content.partition(b"end_header\n")
    counts = dict(re.findall(rb"^element (vertex|face) (\d{1,9})$", head, re.MULTILINE))
    properties = re.findall(rb"^property (float|uchar) (\w+)$", head, re.MULTILINE)
    names = [name for _, name in properties]
    colour = [name for kind, name in properties if kind == b"uchar" and name in (b"red", b"green", b"blue")]
    if len(set(names)) < len(names) or len(colour) not in (0, 3):
        return None
    rows = np.dtype([(name.decode(), _TYPES[kind.decode()]) for kind, name in properties])
    corners = np.dtype([("count", "u1"), ("index", "<i4", (3,))])
    vertices, triangles = int(counts.get(b"vertex", 0)), int(counts.get(b"face", 0))
    if not mark or b"format binary_little_endian 1.0" not in head or not {"x", "y", "z"} <= set(rows.names or ()):
        return None
    if vertices == 0 or len(body) != vertices * rows.itemsize + triangles * corners.itemsize:
        return None
    table = np.frombuffer(body, rows, vertices)
    faces = np.frombuffer(body, corners, triangles, vertices * rows.itemsize)["index"]
    points = np.stack([table[axis] for axis in "xyz"], 1).astype(np.float64)
    if not np.isfinite(points).all() or (triangles and not (faces.min() >= 0 and faces.max() < vertices)):
        return None
    points -= (points.min(0) + points.max(0)) / 2
    points /= np.linalg.norm(points, axis=1).max() or 1.0
    colours = np.stack([table[name] for name in ("red", "green", "blue")], 1) if colour else None
    if triangles > MOST_FACES or (triangles == 0 and vertices > MOST_POINTS) or vertices > 3 * MOST_FACES:
        chosen = np.linspace(0, vertices - 1, min(vertices, MOST_POINTS)).astype(int)
        points, colours, faces = points[chosen], None if colours is None else colours[chosen], faces[:0]
    return {
        "points": points.round(4).tolist(),
        "faces": faces.tolist(),
        "colours": [] if colours is None else colours.tolist(),
    }
