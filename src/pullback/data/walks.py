"""Walks through real streets, told in words: what a follower of instructions has to find on a map."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_choice, check_integer
from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.data.maps import buildings
from pullback.data.photographs import picture
from pullback.geometry import rasterize_polygon

__all__ = ["WALK_WORDS", "Walks", "instructed_walks"]

WALK_WORDS = (
    *("", "walk", "go", "move", "ahead", "straight", "to", "the", "then", "and", "turn", "left", "right", "at", "stop"),
    *("red", "white", "green", "yellow", "grey", "blue", "bricks", "grass", "gravel"),
)
"""The words of the instructions by their number; the empty one fills up."""

_LANDMARKS = (
    ("red", "bricks", (0.9, 0.25, 0.2)),
    ("white", "bricks", (1.0, 1.0, 1.0)),
    ("green", "grass", (0.2, 0.8, 0.2)),
    ("yellow", "grass", (0.95, 0.9, 0.2)),
    ("grey", "gravel", (0.45, 0.45, 0.45)),
    ("blue", "gravel", (0.25, 0.35, 0.95)),
)
_CELL = 6.0
"""Metres."""
_SIDE = 16
_STEPS = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""Rows and columns of a step north, east, south, west."""
_LONGEST = 30
"""Words of an instruction."""


class Walks(NamedTuple):
    """Walks on maps of 16 x 16 cells.

    Attributes:
        maps: ``[n, 3, 32, 32]`` colours seen from above, 2 x 2 pixels a cell: buildings dark, streets light, six kinds
            of landmarks with the texture of photographs.
        occupied: ``[n, 16, 16]`` cells of buildings.
        words: ``[n, 30]`` the instruction, as numbers of :data:`WALK_WORDS`.
        poses: ``[n, 7, 3]`` heading (0 north, 1 east, 2 south, 3 west), row and column at the start and after each of
            six steps of 0 to 3 cells.
    """

    maps: Float[Tensor, "n 3 32 32"]
    occupied: Bool[Tensor, "n 16 16"]
    words: Int[Tensor, "n 30"]
    poses: Int[Tensor, "n 7 3"]


def instructed_walks(split: str, count: int, *, generator: torch.Generator) -> Walks:
    """Return walks of two or three straight legs through the streets of a quarter of Prague.

    Each leg ends at a landmark, which the instruction names, with a turn to the left or right between legs; up to six
    more landmarks of the same kinds lie off the way, so that it takes the way to tell them apart. The west of the
    quarter is for training, its east for testing; windows of 96 m are turned and mirrored at random. How many cells a
    step covers is not told.

    Args:
        split: ``"train"`` or ``"test"``.
        count: of walks, >= 1.
        generator: of the draws.

    Raises:
        TypeError, ValueError: an argument is out of range.
        DataMissingError: the buildings were not fetched.
    """
    check_choice("split", split, ("train", "test"))
    check_integer("count", count, 1)
    quarter = _quarter()
    west = 43
    columns = (0, west - _SIDE) if split == "train" else (west, quarter.shape[1] - _SIDE)
    found: list[tuple[Tensor, list[tuple[int, int, int]], list[int], list[tuple[int, int, int]]]] = []
    while len(found) < count:
        draws = iter(torch.rand(48, generator=generator).tolist())

        def draw(low: int, high: int, draws: object = draws) -> int:
            return low + int(next(draws) * (high - low + 1))  # type: ignore[call-overload]

        row, column = draw(0, quarter.shape[0] - _SIDE), draw(*columns)
        window = torch.rot90(quarter[row : row + _SIDE, column : column + _SIDE], draw(0, 3))
        window = window.flip(0) if draw(0, 1) else window
        walk = _walk(window.tolist(), draw)
        if walk is not None:
            found.append((window, *walk))
    occupied = torch.stack([window for window, *_ in found])
    words = torch.zeros(count, _LONGEST, dtype=torch.long)
    for k, (_, _, spoken, _) in enumerate(found):
        words[k, : len(spoken)] = torch.tensor(spoken)
    poses = torch.tensor([poses for _, poses, *_ in found])
    return Walks(_paint(occupied, [marks for *_, marks in found], generator), occupied, words, poses)


def _quarter() -> Tensor:
    """Which cells of the quarter are built upon."""
    outlines = buildings()
    corners = torch.cat(outlines)
    low = corners.amin(0)
    size = int(((corners.amax(0) - low).max() / _CELL).ceil()) + 1
    whole = torch.zeros(size, size)
    for outline in outlines:
        whole = torch.maximum(whole, rasterize_polygon((outline - low).flip(-1).float() / _CELL, size))
    return whole > 0.5


def _walk(
    built: list[list[bool]], draw: object
) -> tuple[list[tuple[int, int, int]], list[int], list[tuple[int, int, int]]] | None:
    """Poses, words and landmarks (kind, row, column) of a walk; None where the draws lead into a wall."""
    assert callable(draw)
    row, column, heading = draw(0, _SIDE - 1), draw(0, _SIDE - 1), draw(0, 3)
    if built[row][column]:
        return None
    legs = draw(2, 3)
    cuts = [2, 4] if legs == 3 else [draw(2, 4)]
    poses, words, marks = [(heading, row, column)], [], []
    path = {(row, column)}
    kinds = sorted(range(len(_LANDMARKS)), key=lambda _: draw(0, 10**6))
    for leg, (first, last) in enumerate(zip([0, *cuts], [*cuts, 6], strict=True)):
        turn = 0
        if leg:
            turn = 1 if draw(0, 1) else -1
            heading = (heading + turn) % 4
        length, steps = draw(last - first, 3 * (last - first)), last - first
        for step in range(steps):
            for _ in range(length * (step + 1) // steps - length * step // steps):
                row, column = row + _STEPS[heading][0], column + _STEPS[heading][1]
                if not (0 <= row < _SIDE and 0 <= column < _SIDE) or built[row][column] or (row, column) in path:
                    return None
                path.add((row, column))
            poses.append((heading, row, column))
        marks.append((kinds[leg], row, column))
        words += _spoken(leg == legs - 1, turn, kinds[leg], draw)
    for other in range(6):
        place = (draw(0, _SIDE - 1), draw(0, _SIDE - 1))
        if place not in path and not built[place[0]][place[1]]:
            marks.append((kinds[other % legs], *place))
    return poses, words, marks


def _spoken(last: bool, turn: int, kind: int, draw: object) -> list[int]:
    assert callable(draw)
    colour, thing, _ = _LANDMARKS[kind]
    verb = ("walk", "go", "move")[draw(0, 2)]
    if turn:
        start = ["then"] * draw(0, 1) + ["turn", "right" if turn > 0 else "left", "and", verb]
    else:
        start = [verb, ("ahead", "straight")[draw(0, 1)]]
    end = ["and", "stop"] if last else []
    return [WALK_WORDS.index(word) for word in [*start, "to", "the", colour, thing, *end]]


def _paint(occupied: Tensor, marks: list[list[tuple[int, int, int]]], generator: torch.Generator) -> Tensor:
    """Maps in colour, with noise as of different light."""
    textures = {"bricks": picture("brick"), "grass": picture("grass"), "gravel": picture("gravel")}
    textures = {name: (t if t.ndim == 2 else t.mean(-1)) for name, t in textures.items()}
    ground = torch.where(occupied[:, None], torch.tensor([0.3, 0.22, 0.25]).view(3, 1, 1), 0.8)
    maps = ground.repeat_interleave(2, -1).repeat_interleave(2, -2).contiguous()
    maps = maps + 0.05 * torch.randn(maps.shape, generator=generator)
    for k, placed in enumerate(marks):
        for (kind, row, column), (u, v) in zip(placed, torch.rand(len(placed), 2, generator=generator), strict=True):
            _, thing, tint = _LANDMARKS[kind]
            texture = textures[thing]
            i, j = int(u * (texture.shape[0] - 2)), int(v * (texture.shape[1] - 2))
            grain = 0.6 + 0.8 * (texture[i : i + 2, j : j + 2] - texture.mean()) + 0.4
            maps[k, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = torch.tensor(tint).view(3, 1, 1) * grain
    return maps.clamp(0, 1)
