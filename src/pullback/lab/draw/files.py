"""Files of a run: figures, images, sound, meshes, animations, tables, in formats that a browser or a viewer opens."""

from __future__ import annotations

import csv
import io
import re
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pullback.core.files import write_atomically
from pullback.lab.draw.style import STYLE, make_readable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["animation", "audio", "figure", "file_name", "image", "mesh", "pixels", "table"]

_LARGEST_SVG = 200_000
_DOTS = 144  # an inch, of PNG


def file_name(name: str) -> str:
    """Return a file name for a human name.

    Example:
        >>> file_name("Exact match, n = 8")
        'exact-match-n-8'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"


def figure(directory: Path, stem: str, drawn: Figure) -> tuple[str, ...]:
    """Write a matplotlib figure as PNG, and as SVG where that is small."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    make_readable(drawn)
    drawn.set_facecolor("none")
    # The canvases draw once, laying out on the way; savefig does all of it twice for each format.
    with matplotlib.rc_context(STYLE):
        png, svg, dpi = io.BytesIO(), io.BytesIO(), drawn.dpi
        drawn.dpi = _DOTS
        FigureCanvasAgg(drawn).print_png(png)
        drawn.set_layout_engine("none")
        drawn.dpi = dpi
        FigureCanvasSVG(drawn).print_svg(svg, metadata={"Date": None})
    write_atomically(directory / f"{stem}.png", png.getvalue())
    if svg.tell() > _LARGEST_SVG:
        return (f"{stem}.png",)
    write_atomically(directory / f"{stem}.svg", svg.getvalue())
    return f"{stem}.png", f"{stem}.svg"


def _array(name: str, value: Any) -> np.ndarray:
    """A finite array on the CPU."""
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return array


def pixels(name: str, value: Any) -> np.ndarray:
    """Return ``[H, W]`` or ``[H, W, C]`` bytes of an image.

    Args:
        name: of it, for messages.
        value: ``[H, W]``, ``[C, H, W]`` or ``[H, W, C]``; floats in [0, 1] (clipped) or bytes. Where both could be
            meant, a tensor has its channels first and an array last.

    Raises:
        ValueError: another shape, or not finite.
        TypeError: neither floats nor bytes.
    """
    array = _array(name, value)
    first, last = (array.ndim == 3 and array.shape[axis] in (1, 3, 4) for axis in (0, -1))
    if first and (isinstance(value, torch.Tensor) or not last):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise ValueError(f"{name} must have shape [H, W] or [C, H, W] with C in 1, 3, 4, got {tuple(np.shape(value))}")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == bool:
        array = array.astype(np.float64)
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"{name} must be floats in [0, 1] or uint8, got {array.dtype}")
    return np.ascontiguousarray((array.clip(0, 1) * 255).round().astype(np.uint8))


def image(directory: Path, stem: str, content: Any) -> tuple[str, ...]:
    """Write an image as PNG; floats outside [0, 1] are clipped.

    Raises:
        ValueError: another shape, or not finite.
        TypeError: neither floats nor bytes.
    """
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(pixels("image", content)).save(png, format="png")
    write_atomically(directory / f"{stem}.png", png.getvalue())
    return (f"{stem}.png",)


def animation(directory: Path, stem: str, frames: Sequence[Any], *, rate: float) -> tuple[str, ...]:
    """Write frames (as for :func:`image`, all of one shape) as an animated PNG that repeats.

    Raises:
        ValueError: no frame, frames of different shapes, or a rate <= 0.
    """
    from PIL import Image

    pictures = [Image.fromarray(pixels(f"frame {index}", frame)) for index, frame in enumerate(frames)]
    if not pictures or len({picture.size for picture in pictures}) != 1:
        raise ValueError(f"frames must be at least one image, all of one shape, got {len(pictures)} frames")
    if rate <= 0:
        raise ValueError(f"rate must be > 0 frames a second, got {rate}")
    content = io.BytesIO()
    pictures[0].save(
        content,
        format="png",
        save_all=True,
        append_images=pictures[1:],
        duration=1000 / rate,
        loop=0,
        default_image=False,
    )
    write_atomically(directory / f"{stem}.png", content.getvalue())
    return (f"{stem}.png",)


def audio(directory: Path, stem: str, waveform: Any, *, rate: int) -> tuple[str, ...]:
    """Write ``[time]`` or ``[channels, time]`` samples in [-1, 1] as 16-bit WAV; louder sound is scaled down to fit.

    Raises:
        ValueError: another shape, not finite, or a rate < 1.
    """
    samples = np.atleast_2d(_array("waveform", waveform).astype(np.float64))
    if samples.ndim != 2 or samples.shape[0] > 8 or samples.shape[1] == 0:
        raise ValueError(f"waveform must have shape [time] or [channels <= 8, time], got {np.shape(waveform)}")
    if rate < 1:
        raise ValueError(f"rate must be >= 1 sample a second, got {rate}")
    samples = samples / max(1.0, float(np.abs(samples).max()))
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(int(rate))
        file.writeframes((samples.T * 32767).round().astype("<i2").tobytes())
    write_atomically(directory / f"{stem}.wav", content.getvalue())
    return (f"{stem}.wav",)


def mesh(directory: Path, stem: str, vertices: Any, faces: Any = None, colours: Any = None) -> tuple[str, ...]:
    """Write a triangle mesh (or points) as PLY.

    Args:
        directory: where to.
        stem: file name without the ending.
        vertices: ``[V, 3]`` positions.
        faces: ``[F, 3]`` indices of vertices; none for points.
        colours: ``[V, 3]`` in [0, 1].

    Returns:
        The file's name.

    Raises:
        ValueError: other shapes, indices out of range, not finite.
    """
    points = _array("vertices", vertices).astype(np.float32)
    triangles = np.zeros((0, 3), np.int64) if faces is None else _array("faces", faces).astype(np.int64)
    for name, array in (("vertices", points), ("faces", triangles)):
        if array.ndim != 2 or array.shape[1] != 3:
            raise ValueError(f"{name} must have shape [n, 3], got {array.shape}")
    if triangles.size and not (triangles.min() >= 0 and triangles.max() < len(points)):
        raise ValueError(f"faces must be in [0, {len(points) - 1}], got {triangles.min()} to {triangles.max()}")
    columns = [("<f4", name, "float") for name in "xyz"]
    if colours is not None:
        shades = _array("colours", colours)
        if shades.shape != points.shape:
            raise ValueError(f"colours must have the shape of vertices {points.shape}, got {shades.shape}")
        columns += [("u1", name, "uchar") for name in ("red", "green", "blue")]
    rows = np.zeros(len(points), dtype=[(name, kind) for kind, name, _ in columns])
    for axis, name in enumerate("xyz"):
        rows[name] = points[:, axis]
    if colours is not None:
        for axis, name in enumerate(("red", "green", "blue")):
            rows[name] = (shades[:, axis].clip(0, 1) * 255).round().astype(np.uint8)
    corners = np.zeros(len(triangles), dtype=[("count", "u1"), ("index", "<i4", (3,))])
    corners["count"], corners["index"] = 3, triangles
    properties = "\n".join(f"property {kind} {name}" for _, name, kind in columns)
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{properties}\n"
        f"element face {len(triangles)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    write_atomically(directory / f"{stem}.ply", header.encode() + rows.tobytes() + corners.tobytes())
    return (f"{stem}.ply",)


def table(directory: Path, stem: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> tuple[str, ...]:
    """Write a table as CSV.

    Raises:
        ValueError: a row has not one value a column.
    """
    for index, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(f"row {index} must have {len(columns)} values ({', '.join(columns)}), got {len(row)}")
    content = io.StringIO(newline="")
    csv.writer(content).writerows([columns, *rows])
    write_atomically(directory / f"{stem}.csv", content.getvalue().encode())
    return (f"{stem}.csv",)
