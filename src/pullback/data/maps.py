"""Maps: outlines of real buildings, tiles composed of them, a network of roads."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pullback.core.checks import check_choice, check_integer, check_positive
from pullback.core.shapes import Float, Int, Tensor
from pullback.data.cache import load
from pullback.data.text_formats import split_arrays
from pullback.geometry import rasterize_polygon

__all__ = ["BuildingTiles", "Roads", "building_tiles", "buildings", "roads"]


class BuildingTiles(NamedTuple):
    """Tiles with one building each.

    Attributes:
        images: ``[count, size, size]`` grey, about [0, 1].
        outlines: of each building its corners ``[n, 2]``, rows and columns in pixels, one way round from the uppermost.
    """

    images: Float[Tensor, "count size size"]
    outlines: list[Tensor]


class Roads(NamedTuple):
    """A network of roads.

    Attributes:
        positions: ``[n, 2]`` longitude and latitude of each junction, in degrees.
        edges: ``[m, 2]`` the numbers of the two ends of each road, once, the lower one first.
    """

    positions: Float[Tensor, "n 2"]
    edges: Int[Tensor, "m 2"]


def roads() -> Roads:
    """Return the roads of Minnesota: 2 642 junctions and towns in two parts, one of which has but two.

    Raises:
        DataMissingError: the set was not fetched.
    """
    stored = load("roads")
    return Roads(torch.from_numpy(stored["positions"]), torch.from_numpy(stored["edges"]))


def buildings() -> list[Float[Tensor, "_ 2"]]:
    """Return the outlines of 144 buildings of a quarter of Prague, as they were mapped.

    Returns:
        For each its corners ``[n, 2]`` in order, east and north in metres from the middle of the quarter; the last
        corner is joined with the first. A courtyard is left out.

    Raises:
        DataMissingError: the set was not fetched.
    """
    return [torch.from_numpy(outline) for outline in split_arrays(load("buildings"), "outlines")]


def building_tiles(
    split: str,
    count: int,
    *,
    size: int = 32,
    most: int = 8,
    noise: float = 0.05,
    generator: torch.Generator,
) -> BuildingTiles:
    """Return tiles of real buildings, composed: turned, scaled, placed, roof and ground of two greys, with noise.

    Buildings are simplified at 1 m; those with 4 to ``most`` corners are taken, houses of one build once. With 8 at
    most they are 105: 20 for the test, 27 to validate, 58 to fit; train on the last two. A building fills 45 to 80 % of
    the side of a tile; its corners are in different pixels.

    Args:
        split: ``"train"`` or ``"test"``; to choose options of a method, ``"fit"`` and ``"validation"``, which together
            are ``"train"``.
        count: tiles, >= 1.
        size: pixels of a side, >= 16.
        most: corners at most, >= 4.
        noise: standard deviation, >= 0.
        generator: of the draws.

    Returns:
        :class:`BuildingTiles`.

    Raises:
        TypeError: a count is no integer.
        ValueError: an argument is out of range.
        DataMissingError: the buildings were not fetched.

    Example:
        >>> tiles = building_tiles("test", 3, generator=torch.Generator().manual_seed(0))
        >>> tiles.images.shape, all(4 <= len(outline) <= 8 for outline in tiles.outlines)
        (torch.Size([3, 32, 32]), True)
    """
    check_choice("split", split, ("train", "test", "fit", "validation"))
    check_integer("count", count, 1)
    check_integer("size", size, 16)
    check_integer("most", most, 4)
    check_positive("noise", noise, zero=True)
    parts = ("fit", "validation") if split == "train" else (split,)
    shapes = [shape for shape, part in _simple(most) if part in parts]
    images: list[Tensor] = []
    outlines: list[Tensor] = []
    while len(outlines) < count:
        draw = torch.rand(7, generator=generator)
        angle, scale = 2 * math.pi * draw[0], size * (0.45 + 0.35 * draw[1])
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
        corners = shapes[int(draw[2] * len(shapes))] @ turn
        low, high = corners.amin(0), corners.amax(0)
        corners = (corners - low) * (scale / (high - low).max())
        corners = corners + (size - 0.01 - corners.amax(0)) * draw[3:5]
        row, column = corners.T
        if (row * column.roll(-1) - column * row.roll(-1)).sum() < 0:
            corners = corners.flip(0)
        corners = corners.roll(-int(corners[:, 0].argmin()), 0)
        ground, roof = draw[5:]
        if abs(ground - roof) < 0.25 or len(corners.floor().unique(dim=0)) < len(corners):
            continue
        outlines.append(corners)
        images.append(ground + (roof - ground) * rasterize_polygon(corners, size))
    painted = torch.stack(images)
    return BuildingTiles(painted + noise * torch.randn(painted.shape, generator=generator), outlines)


def _simple(most: int) -> list[tuple[Tensor, str]]:
    """Outlines of 4 to ``most`` corners after simplification, and their split; houses built twice are there once."""
    from skimage.measure import approximate_polygon

    found: list[tuple[Tensor, str]] = []
    seen, candidates = set(), 0
    for outline in buildings():
        simple = torch.from_numpy(approximate_polygon(torch.cat([outline, outline[:1]]).numpy(), 1.0)[:-1])
        edges = (simple - simple.roll(-1, 0)).square().sum(-1).sqrt()
        build = tuple((2 * edges).round().sort().values.tolist())  # to half a metre
        if not 4 <= len(simple) <= most:
            continue
        if build not in seen:
            # Every fourth of all was held out when systems here were first tuned: none of those is in the test.
            place, clean = len(found) % 4, candidates % 4 > 0
            part = "validation" if place == 0 else "test" if place == 2 and clean else "fit"
            found.append((simple - simple.mean(0), part))
            seen.add(build)
        candidates += 1
    return found
