"""Small worlds of cells, as decision processes whose truth is known exactly."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_integer, check_range
from pullback.core.shapes import Bool, Int, Tensor
from pullback.dynamics.decision_process import MarkovDecisionProcess

__all__ = ["GridWorld", "LifeGate", "four_rooms", "life_gate"]

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


class LifeGate(NamedTuple):
    """The gate of life: two decision processes with the same transitions and a discount of 1.

    Attributes:
        death: its reward is minus the probability of dying in this step: its best values are in [-1, 0].
        recovery: its reward is the probability of getting out in this step: its best values are in [0, 1].
        cells: ``[states, 2]`` column and row of each state.
        dead_end: ``[states]`` the cells from which nothing leads out.
        died: ``[states]`` the cells of death, which end an episode.
        recovered: ``[states]`` the exits, which end it too.
    """

    death: MarkovDecisionProcess
    recovery: MarkovDecisionProcess
    cells: Int[Tensor, "states 2"]
    dead_end: Bool[Tensor, "states"]
    died: Bool[Tensor, "states"]
    recovered: Bool[Tensor, "states"]


def life_gate(*, drag: float = 0.4, pull: float | None = 0.7, dtype: torch.dtype = torch.float64) -> LifeGate:
    """Return ten by ten cells with three exits above, death on the right, and a region that cannot be left.

    The actions are to stay, up, down, left and right. Everywhere a step goes to the right, whatever was wanted, with
    the probability ``drag``. In the 20 cells of columns 5 to 8, rows 5 to 9, it goes to the right with the probability
    ``pull`` and nowhere else: all that they lead to is death. Walls and borders are not passed.

    Args:
        drag: probability in [0, 1].
        pull: probability in (0, 1]; ``None``: these cells are like the others, and there are no dead-ends.
        dtype: floating type of the processes.

    Returns:
        :class:`LifeGate`, of 77 cells that can be left, 11 of death and 3 exits.

    Raises:
        TypeError: an option of another kind.
        ValueError: a probability out of range.

    Example:
        >>> gate = life_gate()
        >>> best = gate.death.optimal().values
        >>> len(best), round(float(best[gate.dead_end].max()), 9)
        (91, -1.0)

    References:
        Fatemi, Killian, Subramanian, Ghassemi (2021), arXiv 2110.04186, section 5.1 and their code.
    """
    check_range("drag", drag, 0.0, 1.0)
    if pull is not None:
        check_range("pull", pull, 1e-6, 1.0)
    free = torch.ones(10, 10, dtype=torch.bool)  # by column and row
    free[:5, 0] = free[1:5, 5] = False
    cells = free.nonzero()
    x, y = cells.unbind(-1)
    states = len(cells)
    died, recovered = (x == 9) | (x == 8) & (y == 0), (y == 0) & (x >= 5) & (x <= 7)
    dead_end = (x >= 5) & (x <= 8) & (y >= 5) & (pull is not None)
    number = torch.full((12, 12), -1)  # with a wall around
    number[1:-1, 1:-1][free] = torch.arange(states)
    at = torch.arange(states)
    moves = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))
    there = torch.stack([number[x + 1 + right, y + 1 + down] for right, down in moves], 1)
    there = torch.where(there < 0, at[:, None], there)
    pull = pull or 0.0
    granted, forced, still = torch.tensor([[1 - drag, drag, 0.0], [0.0, pull, 1 - pull]], dtype=dtype)[
        dead_end.long()
    ].T
    transition = torch.zeros(states, 5, states, dtype=dtype)
    for action in range(5):
        transition[at, action, there[:, action]] += granted
        transition[at, action, there[:, 4]] += forced
        transition[at, action, at] += still
    ended = died | recovered
    transition[ended] = torch.eye(states, dtype=dtype)[ended][:, None]
    alive = (~ended).to(dtype)[:, None]
    death = MarkovDecisionProcess(transition, -transition[:, :, died].sum(-1) * alive, 1.0)
    recovery = MarkovDecisionProcess(transition, transition[:, :, recovered].sum(-1) * alive, 1.0)
    return LifeGate(death, recovery, cells, dead_end, died, recovered)
