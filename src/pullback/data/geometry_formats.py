"""From the bytes of a member to geometry: OFF, OBJ and GIFTI meshes, ASCII PLY scans, polygons of maps, images."""

from __future__ import annotations

import base64
import io
import sqlite3
import struct
import zlib
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

__all__ = ["geopackage", "gifti", "image", "obj", "off", "ply"]


def off(content: bytes) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Read a triangle mesh in the ASCII OFF format: vertices ``[v, 3]`` and faces ``[f, 3]``.

    Raises:
        ValueError: not an OFF file, or a face is no triangle.

    Example:
        >>> vertices, faces = off(b"OFF\\n3 1 0\\n0 0 0\\n1 0 0\\n0 1 0\\n3 0 1 2\\n")
        >>> vertices.shape, faces.tolist()
        ((3, 3), [[0, 1, 2]])
    """
    words = b" ".join(line.split(b"#")[0] for line in content.splitlines()).split()
    if not words or words[0] != b"OFF":
        raise ValueError(f"not an OFF file: it starts with {content[:12]!r}")
    v, f = int(words[1]), int(words[2])
    end = 4 + 3 * v
    faces = np.array(words[end : end + 4 * f], dtype=np.int32).reshape(f, 4)
    if (faces[:, 0] != 3).any():
        raise ValueError("OFF: every face must be a triangle")
    return np.array(words[4:end], dtype=np.float32).reshape(v, 3), faces[:, 1:]


def obj(content: bytes, groups: tuple[str, ...]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Read the vertices ``[v, 3]`` of a Wavefront OBJ and the quadrilaterals ``[f, 4]`` of some of its groups."""
    vertices, faces, group = [], [], ""
    for line in content.decode("utf-8").splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "v":
            vertices.append([float(x) for x in rest.split()[:3]])
        elif kind == "g":
            group = rest.strip()
        elif kind == "f" and group in groups:
            faces.append([int(corner.split("/")[0]) - 1 for corner in rest.split()])
    return np.array(vertices, dtype=np.float32), np.array(faces, dtype=np.int32)


def geopackage(content: bytes, table: str) -> list[list[NDArray[np.float64]]]:
    """Read the polygons of a table of a GeoPackage: the rings ``[n, 2]`` of each, the outer one first, all closed.

    Raises:
        ValueError: a geometry is no polygon.
    """
    polygons = []
    with sqlite3.connect(":memory:") as database:
        database.deserialize(content)
        rows = database.execute(f'SELECT geom FROM "{table}" ORDER BY fid').fetchall()
    database.close()
    for (blob,) in rows:
        start = 8 + (0, 32, 48, 48, 64)[blob[3] >> 1 & 7]  # a header with an envelope, then well-known binary
        order = "<" if blob[start] else ">"
        kind, count = struct.unpack_from(f"{order}II", blob, start + 1)
        if kind != 3:
            raise ValueError(f"GeoPackage: every geometry must be a polygon, got type {kind}")
        start, rings = start + 9, []
        for _ in range(count):
            (points,) = struct.unpack_from(f"{order}I", blob, start)
            rings.append(np.frombuffer(blob, f"{order}f8", 2 * points, start + 4).reshape(points, 2).astype(np.float64))
            start += 4 + 16 * points
        polygons.append(rings)
    return polygons


def ply(content: bytes) -> dict[str, NDArray[np.float32]]:
    """Read the vertices of an ASCII PLY file, a column ``[v]`` a property.

    Raises:
        ValueError: not an ASCII PLY file.

    Example:
        >>> head = b"ply\\nformat ascii 1.0\\nelement vertex 1\\nproperty float x\\nproperty float y\\nend_header\\n"
        >>> text = head + b"1 2\\n"
        >>> sorted((k, v.tolist()) for k, v in ply(text).items())
        [('x', [1.0]), ('y', [2.0])]
    """
    header, _, body = content.partition(b"end_header")
    lines = header.decode("ascii").split("\n")
    if not lines[0].startswith("ply") or "ascii" not in lines[1]:
        raise ValueError(f"not an ASCII PLY file: it starts with {content[:30]!r}")
    names: list[str] = []
    count, inside = 0, False
    for line in lines:
        words = line.split()
        if words[:1] == ["element"]:
            inside = words[1] == "vertex"
            count = int(words[2]) if inside else count
        elif words[:1] == ["property"] and inside:
            names.append(words[-1])
    rows = np.loadtxt(io.BytesIO(body.lstrip()), max_rows=count, dtype=np.float32, ndmin=2)
    return {name: rows[:, i] for i, name in enumerate(names)}


def gifti(content: bytes) -> list[NDArray[np.generic]]:
    """Read the arrays of a GIFTI file whose data is compressed and in base 64; of a surface, vertices and triangles.

    Raises:
        ValueError: not a GIFTI file, or an array is stored in another way.
    """
    root = ElementTree.fromstring(content)
    if root.tag != "GIFTI":
        raise ValueError(f"not a GIFTI file: its root is {root.tag!r}")
    kinds = {"NIFTI_TYPE_FLOAT32": "<f4", "NIFTI_TYPE_INT32": "<i4", "NIFTI_TYPE_UINT8": "|u1"}
    arrays: list[NDArray[np.generic]] = []
    for part in root.iter("DataArray"):
        how = [part.get(key, "") for key in ("Encoding", "Endian", "ArrayIndexingOrder")]
        if how != ["GZipBase64Binary", "LittleEndian", "RowMajorOrder"] or part.get("DataType") not in kinds:
            raise ValueError(f"GIFTI: an array is stored as {', '.join([part.get('DataType', ''), *how])}")
        shape = [int(part.get(f"Dim{i}", 0)) for i in range(int(part.get("Dimensionality", 0)))]
        raw = zlib.decompress(base64.b64decode(part.findtext("Data") or ""))
        arrays.append(np.frombuffer(raw, kinds[part.get("DataType", "")]).reshape(shape))
    return arrays


def image(content: bytes) -> NDArray[np.uint8]:
    """Decode a PNG or JPEG: ``[height, width]`` grey or ``[height, width, 3]`` RGB (needs Pillow)."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as opened:
        grey = opened.mode in ("L", "1", "I;16")
        return np.asarray(opened.convert("L" if grey else "RGB"))
