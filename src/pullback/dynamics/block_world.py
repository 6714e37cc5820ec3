"""Coloured blocks on a grid that push each other, or move together: scenes made of objects, acted on one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pullback.core.checks import check_choice, check_integer, check_shape, check_tensor
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Int

__all__ = ["BlockState", "BlockView", "BlockWorld"]

_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
_PALETTE = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
_FINE = 4
"""Points along the side of a pixel, over which the outline of a block is averaged."""


class BlockState(NamedTuple):
    """Blocks and where they are; no two share a cell.

    Attributes:
        cells: ``[*batch, objects, 2]`` row and column.
        shapes: ``[*batch, objects]`` numbers of :attr:`BlockWorld.SHAPES`.
        colours: ``[*batch, objects]`` numbers of :attr:`BlockWorld.COLOURS`.
    """

    cells: Int[Tensor, "*batch objects 2"]
    shapes: Int[Tensor, "*batch objects"]
    colours: Int[Tensor, "*batch objects"]


class BlockView(NamedTuple):
    """A picture and whose pixels are whose.

    Attributes:
        images: ``[*batch, 3, size, size]`` in [0, 1], black where nothing is.
        masks: ``[*batch, objects, size, size]`` share of each pixel that each block covers.
    """

    images: Float[Tensor, "*batch 3 size size"]
    masks: Float[Tensor, "*batch objects size size"]

    def objects(self) -> Float[Tensor, "*batch objects 4 size size"]:
        """Return the picture once for every block, with its mask as the last channel."""
        shown = self.images[..., None, :, :, :].expand(*self.masks.shape[:-2], *self.images.shape[-3:])
        return torch.cat([shown, self.masks[..., None, :, :]], -3)


@dataclass(frozen=True)
class BlockWorld:
    """A square grid of blocks with a shape and a colour; an action moves one of them by a cell, and others with it.

    Who is moved by the action: the block itself (``"push"``), also all that hang together with it by sides of equal
    colour (``"sticky"``), or all of its colour (``"team"``). Who moves pushes what is in front where that is lighter:
    of an earlier shape. It stays where a border is in front, or a block that stays.

    Attributes:
        objects: blocks of a scene, >= 1.
        rules: ``"push"``, ``"sticky"`` or ``"team"``.
        grid: cells of a side, >= 2, at least ``objects`` in all.
        size: pixels of a side, >= 4 a cell.

    Raises:
        TypeError: a number is no integer.
        ValueError: it is out of range, or there is no such rule.

    Example:
        >>> world = BlockWorld(2, rules="team")
        >>> state = BlockState(torch.tensor([[0, 0], [3, 3]]), torch.tensor([0, 1]), torch.tensor([2, 2]))
        >>> world.step(state, torch.tensor(0), torch.tensor(1)).cells.tolist()  # down
        [[1, 0], [4, 3]]
        >>> world.render(state).images.shape
        torch.Size([3, 32, 32])

    References:
        Kipf, van der Pol, Welling (2020), Contrastive learning of structured world models, section 4.1; Ke et al.
        (2021), Systematic evaluation of causal discovery in visual model based reinforcement learning, section 4
        (weights); Sehgal, Grayeli, Sun, Chaudhuri (2024), Neurosymbolic grounding for compositional world models,
        section 4 (sticky and team).
    """

    SHAPES: ClassVar[tuple[str, ...]] = ("bar", "cross", "triangle", "ring", "square")
    COLOURS: ClassVar[tuple[str, ...]] = ("red", "green", "blue", "yellow", "magenta", "cyan", "white")
    MOVES: ClassVar[tuple[str, ...]] = ("up", "down", "left", "right")

    objects: int
    rules: str = "push"
    grid: int = 5
    size: int = 32

    def __post_init__(self) -> None:
        check_integer("grid", self.grid, 2)
        check_integer("objects", self.objects, 1, self.grid**2)
        check_integer("size", self.size, 4 * self.grid)
        check_choice("rules", self.rules, ("push", "sticky", "team"))

    def sample(
        self,
        count: int,
        *,
        atoms: Bool[Tensor, "shapes colours"] | None = None,
        colours: int = 2,
        generator: torch.Generator | None = None,
    ) -> BlockState:
        """Return random scenes.

        Args:
            count: of scenes, >= 1.
            atoms: ``[5, 7]`` which shapes occur in which colours, for every colour at least one; all by default.
            colours: different ones of a scene at most, in 1..7: few make teams.
            generator: of the draws.

        Returns:
            :class:`BlockState` of ``[count, objects]`` blocks on different cells, in random order.

        Raises:
            ValueError: a number out of range, or a colour that no shape has.
        """
        check_integer("count", count, 1)
        check_integer("colours", colours, 1, len(self.COLOURS))
        kinds = (len(self.SHAPES), len(self.COLOURS))
        atoms = torch.ones(kinds, dtype=torch.bool) if atoms is None else check_tensor("atoms", atoms)
        if tuple(atoms.shape) != kinds or atoms.dtype != torch.bool or not bool(atoms.any(0).all()):
            raise ValueError(f"atoms must be booleans of shape {kinds} with a shape for every colour, got {atoms}")
        device = drawing_device(generator, torch.device("cpu"))
        places = torch.rand(count, self.grid**2, generator=generator, device=device).argsort(-1)[:, : self.objects]
        palette = torch.rand(count, kinds[1], generator=generator, device=device).argsort(-1)[:, :colours]
        drawn = torch.randint(colours, (count, self.objects), generator=generator, device=device)
        colour = palette.gather(1, drawn).cpu()
        score = torch.rand(count, self.objects, kinds[0], generator=generator, device=device).cpu()
        shape = torch.where(atoms.cpu().T[colour], score, -1.0).argmax(-1)
        places = places.cpu()
        return BlockState(torch.stack([places // self.grid, places % self.grid], -1), shape, colour)

    def group(self, state: BlockState, target: Int[Tensor, "*batch"]) -> Bool[Tensor, "*batch objects"]:
        """Return who is moved by an action on the block ``target``, what is pushed not counted.

        Raises:
            ValueError: a state that is none, or a block that is not there.
        """
        self._check(state)
        self._check_number("target", target, state, self.objects)
        chosen = F.one_hot(target.long(), self.objects).bool()
        if self.rules == "push":
            return chosen
        alike = state.colours[..., :, None] == state.colours[..., None, :]
        if self.rules == "team":
            return (alike & chosen[..., None]).any(-2)
        near = (state.cells[..., :, None, :] - state.cells[..., None, :, :]).abs().sum(-1) <= 1
        for _ in range(self.objects - 1):
            chosen = chosen | (alike & near & chosen[..., None]).any(-2)
        return chosen

    def step(self, state: BlockState, target: Int[Tensor, "*batch"], move: Int[Tensor, "*batch"]) -> BlockState:
        """Return the scene after an action.

        Args:
            state: ``[*batch]`` scenes.
            target: ``[*batch]`` number of the block that is acted on.
            move: ``[*batch]`` 0 up, 1 down, 2 left, 3 right.

        Raises:
            ValueError: a state that is none, a block or a move that is not there.
        """
        moved = self.group(state, target)
        self._check_number("move", move, state, len(self.MOVES))
        cells = state.cells
        front = cells + torch.tensor(_MOVES, device=cells.device)[move.long()][..., None, :]
        ahead = (front[..., :, None, :] == cells[..., None, :, :]).all(-1)  # of the one before the other
        heavier = state.shapes[..., :, None] > state.shapes[..., None, :]
        for _ in range(self.objects - 1):
            moved = moved | (ahead & heavier & moved[..., None]).any(-2)
        moved = moved & ((front >= 0) & (front < self.grid)).all(-1)
        for _ in range(self.objects):
            moved = moved & ~(ahead & ~moved[..., None, :]).any(-1)
        return state._replace(cells=torch.where(moved[..., None], front, cells))

    def actions(
        self, state: BlockState, target: Int[Tensor, "*batch"], move: Int[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch objects 6"]:
        """Return an action as one part for every block: where it is, in [-1, 1], and its move, one of four or none.

        Raises:
            ValueError: a state that is none, a block or a move that is not there.
        """
        self._check(state)
        self._check_number("target", target, state, self.objects)
        self._check_number("move", move, state, len(self.MOVES))
        where = 2 * state.cells / (self.grid - 1) - 1.0
        chosen = F.one_hot(target.long(), self.objects)[..., None] * F.one_hot(move.long(), 4)[..., None, :]
        return torch.cat([where, chosen.to(where)], -1)

    def attributes(self, state: BlockState) -> Int[Tensor, "*batch objects 4"]:
        """Return numbers of shape, colour, row and column of every block.

        Raises:
            ValueError: a state that is none.
        """
        self._check(state)
        return torch.cat([state.shapes[..., None], state.colours[..., None], state.cells], -1)

    def render(self, state: BlockState) -> BlockView:
        """Return pictures of scenes and the masks of their blocks.

        Raises:
            ValueError: a state that is none.
        """
        self._check(state)
        side = self.size // self.grid
        margin = (self.size - side * self.grid) // 2
        glyphs = _glyphs(side).to(state.cells.device)[state.shapes]
        pixel = torch.arange(self.size, device=state.cells.device) - margin
        inside = pixel - side * state.cells[..., None]  # [*batch, objects, 2, size]
        there = ((inside >= 0) & (inside < side)).to(glyphs)
        row, column = inside.clamp(0, side - 1).unbind(-2)
        drawn = glyphs.gather(-2, row[..., None].expand(*row.shape, side))
        drawn = drawn.gather(-1, column[..., None, :].expand(*row.shape, self.size))
        masks = drawn * there[..., 0, :, None] * there[..., 1, None, :]
        colours = torch.tensor(_PALETTE, device=masks.device).to(masks)[state.colours]
        return BlockView(torch.einsum("...khw,...kc->...chw", masks, colours), masks)

    def _check(self, state: BlockState) -> None:
        check_shape("state.cells", check_tensor("state.cells", state.cells), (self.objects, 2))
        tops = (("cells", self.grid), ("shapes", len(self.SHAPES)), ("colours", len(self.COLOURS)))
        for name, top in tops:
            values = check_tensor(f"state.{name}", getattr(state, name))
            if name != "cells" and values.shape != state.cells.shape[:-1]:
                raise ValueError(
                    f"state.{name} must have shape {tuple(state.cells.shape[:-1])}, got {tuple(values.shape)}"
                )
            _check_values(f"state.{name}", values, top)

    def _check_number(self, name: str, value: Tensor, state: BlockState, top: int) -> None:
        if check_tensor(name, value).shape != state.cells.shape[:-2]:
            raise ValueError(f"{name} must have shape {tuple(state.cells.shape[:-2])}, got {tuple(value.shape)}")
        _check_values(name, value, top)


def _check_values(name: str, values: Tensor, top: int) -> None:
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {values.dtype}")
    if values.numel() and (int(values.min()) < 0 or int(values.max()) >= top):
        raise ValueError(f"{name} must be in 0..{top - 1}, got {int(values.min())}..{int(values.max())}")


def _glyphs(side: int) -> Tensor:
    """Share of each pixel that each shape covers, ``[5, side, side]``."""
    line = (torch.arange(side * _FINE) + 0.5) / (side * _FINE) * 2 - 1
    v, u = torch.meshgrid(line, line, indexing="ij")
    far, near = torch.maximum(u.abs(), v.abs()), torch.minimum(u.abs(), v.abs())
    drawn = [
        (v.abs() < 0.34) & (u.abs() < 0.95),
        (near < 0.34) & (far < 0.95),
        (u.abs() < (v + 0.95) / 1.9) & (v < 0.95),
        (u.square() + v.square() < 1.0) & (far > 0.34),
        far < 0.95,
    ]
    return F.avg_pool2d(torch.stack(drawn).float()[None], _FINE)[0]
