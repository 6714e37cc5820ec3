"""Small worlds of cells, as decision processes whose truth is known exactly."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_integer
from pullback.core.shapes import Bool, Int, Tensor
from pullback.dynamics.markov import MarkovDecisionProcess

__all__ = ["GridWorld", "four_rooms"]

_MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


class GridWorld(NamedTuple):
    """A world of cells.

    Attributes:
        process: the decision process; its states are the free cells, row by row.
        free: ``[rows, columns]`` which cells are free.
        cells: ``[states, 2]`` row and column of each state.
    """

    process: MarkovDecisionProcess
    free: Bool[Tensor, "rows columns"]
    cells: Int[Tensor, "states 2"]


def four_rooms(
    size: int = 11, *, goal: int = 0, discount: float = 0.9, dtype: torch.dtype = torch.float32
) -> GridWorld:
    """Return four rooms that are joined by four doors.

    The actions go up, down, left and right; who would walk into a wall stays. The policy that draws one of them at
    random has a symmetric transition matrix: its chain is reversible and visits all cells equally often.

    Args:
        size: cells of a side, odd and >= 5: the walls are in the middle.
        goal: number of the state whose every action earns 1.
        discount: in [0, 1].
        dtype: floating type of the process.

    Returns:
        :class:`GridWorld`.

    Raises:
        TypeError: an option of another kind.
        ValueError: an option out of range.

    Example:
        >>> world = four_rooms()
        >>> len(world.cells), world.process.transition.shape
        (104, torch.Size([104, 4, 104]))

    References:
        Sutton, Precup, Singh (1999), Between MDPs and semi-MDPs, section 2.
    """
    check_integer("size", size, 5)
    if size % 2 == 0:
        raise ValueError(f"size must be odd, got {size}")
    middle, door = size // 2, size // 4
    free = torch.ones(size, size, dtype=torch.bool)
    free[middle], free[:, middle] = False, False
    for low in (door, size - 1 - door):
        free[middle, low] = free[low, middle] = True
    cells = free.nonzero()
    states = len(cells)
    check_integer("goal", goal, 0, states - 1)
    number = torch.full((size + 2, size + 2), -1)  # with a wall around
    number[1:-1, 1:-1][free] = torch.arange(states)
    transition = torch.zeros(states, 4, states, dtype=dtype)
    for action, (down, right) in enumerate(_MOVES):
        there = number[cells[:, 0] + 1 + down, cells[:, 1] + 1 + right]
        transition[torch.arange(states), action, torch.where(there < 0, torch.arange(states), there)] = 1
    reward = torch.zeros(states, 4, dtype=dtype)
    reward[goal] = 1
    return GridWorld(MarkovDecisionProcess(transition, reward, discount), free, cells)
