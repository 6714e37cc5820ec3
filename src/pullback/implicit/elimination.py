"""Elimination of sparse systems block by block, along the breadth-first levels of their pattern.

Unknowns at distance k from a start are coupled with those at distance k - 1, k and k + 1 alone, so that in this order
every matrix is block tridiagonal. Its blocks are dense and few, and those of a whole batch are eliminated at once: on a
mesh of the plane with n vertices there are about sqrt(n) blocks of about sqrt(n) unknowns.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from pullback.core.shapes import Float, Int, Tensor

__all__ = ["BlockElimination", "Factors"]

_LEAST = 32
"""Levels are joined up to this many unknowns: smaller products cost as much."""


class Factors(NamedTuple):
    """A factorised matrix.

    Attributes:
        triangles: of each block what is left of its diagonal once those before are eliminated, as LU.
        pivots: of each of them.
        lower: ``A[i, i - 1]`` of each block but the first.
        upper: ``A[i, i + 1]`` of each block but the last.
    """

    triangles: list[Tensor]
    pivots: list[Tensor]
    lower: list[Tensor]
    upper: list[Tensor]


class _Block(NamedTuple):
    """Which entries of the pattern lie in a dense block, and where in it."""

    entries: Int[Tensor, "k"]
    places: Int[Tensor, "k"]
    height: int
    width: int

    def of(self, values: Tensor) -> Tensor:
        dense = values.new_zeros(*values.shape[:-1], self.height * self.width)
        return dense.index_add(-1, self.places, values[..., self.entries]).unflatten(-1, (self.height, self.width))


@dataclass(frozen=True)
class BlockElimination:
    """The order of elimination of a square pattern.

    Attributes:
        groups: of each block its unknowns.
        diagonal, lower, upper: the blocks of the matrix, as in :class:`Factors`.
    """

    groups: list[Tensor]
    diagonal: list[_Block]
    lower: list[_Block]
    upper: list[_Block]

    @staticmethod
    def of(rows: Int[Tensor, "k"], columns: Int[Tensor, "k"], size: int) -> BlockElimination:
        """Order the unknowns of a matrix ``[size, size]`` with entries at ``rows, columns``."""
        i, j = rows.cpu().numpy(), columns.cpu().numpy()
        level = _levels(np.r_[i, j], np.r_[j, i], size)
        group = _joined(np.bincount(level))[level]
        count = int(group.max()) + 1 if size else 0
        order = np.argsort(group, kind="stable")
        sizes = np.bincount(group, minlength=count)
        starts = np.r_[0, sizes.cumsum()]
        position = np.empty(size, dtype=np.int64)
        position[order] = np.arange(size) - np.repeat(starts[:-1], sizes)

        def block(of: int, with_: int) -> _Block:
            entries = found[of, with_ - of + 1]
            places = position[i[entries]] * sizes[with_] + position[j[entries]]
            own, inside = (torch.from_numpy(a).to(rows.device) for a in (entries, places))
            return _Block(own, inside, int(sizes[of]), int(sizes[with_]))

        key = 3 * group[i] + group[j] - group[i] + 1
        sorted_entries = np.argsort(key, kind="stable")
        bounds = np.searchsorted(key[sorted_entries], np.arange(3 * count + 1))
        found = {
            (g, side): sorted_entries[bounds[3 * g + side] : bounds[3 * g + side + 1]]
            for g in range(count)
            for side in range(3)
        }
        return BlockElimination(
            [torch.from_numpy(order[a:b]).to(rows.device) for a, b in pairwise(starts)],
            [block(g, g) for g in range(count)],
            [block(g, g - 1) for g in range(1, count)],
            [block(g, g + 1) for g in range(count - 1)],
        )

    def factorise(self, values: Float[Tensor, "*batch k"], ridge: float = 0.0) -> Factors:
        """Eliminate block after block, pivoting inside of each; a singular block leaves numbers that are not finite."""
        lower, upper = ([b.of(values) for b in blocks] for blocks in (self.lower, self.upper))
        triangles: list[Tensor] = []
        pivots: list[Tensor] = []
        for g, block in enumerate(self.diagonal):
            rest = block.of(values) + ridge * torch.eye(block.height, dtype=values.dtype, device=values.device)
            if g:
                rest = rest - lower[g - 1] @ torch.linalg.lu_solve(triangles[-1], pivots[-1], upper[g - 1])
            triangle, pivot, _ = torch.linalg.lu_factor_ex(rest)
            triangles.append(triangle)
            pivots.append(pivot)
        return Factors(triangles, pivots, lower, upper)

    def solve(
        self, factors: Factors, right: Float[Tensor, "*batch n"], *, transposed: bool
    ) -> Float[Tensor, "*batch n"]:
        """Return ``x`` of ``A x = right``, or of ``A^T x = right``."""
        single = factors.triangles[0].ndim == 2  # one matrix: the whole batch is its right sides
        columns = right.reshape(-1, right.shape[-1]).mT if single else right[..., None]
        down, up = factors.lower, factors.upper
        if transposed:
            down, up = [u.mT for u in factors.upper], [b.mT for b in factors.lower]

        def divided(g: int, part: Tensor) -> Tensor:
            return torch.linalg.lu_solve(factors.triangles[g], factors.pivots[g], part, adjoint=transposed)

        parts: list[Tensor] = []
        for g, places in enumerate(self.groups):
            part = columns[..., places, :]
            parts.append(divided(g, part - down[g - 1] @ parts[-1] if g else part))
        for g in range(len(parts) - 2, -1, -1):
            parts[g] = parts[g] - divided(g, up[g] @ parts[g + 1])
        x = torch.cat(parts, -2)[..., torch.cat(self.groups).argsort(), :]
        return x.mT.reshape(right.shape) if single else x[..., 0]


def _levels(rows: np.ndarray, columns: np.ndarray, size: int) -> np.ndarray:
    """Return the distance of every unknown from the start of its part, parts one after the other."""
    order = np.lexsort((columns, rows))
    beside, starts = columns[order], np.searchsorted(rows[order], np.arange(size + 1))
    degree = np.diff(starts)

    def walked(start: int, level: np.ndarray, first: int) -> np.ndarray:
        """Number the levels from ``start`` on, from ``first``; return the last of them."""
        front, depth = np.array([start]), first
        while True:
            level[front] = depth
            counts = degree[front]
            places = np.repeat(starts[front] - np.r_[0, counts.cumsum()[:-1]], counts) + np.arange(counts.sum())
            ahead = np.unique(beside[places])
            ahead = ahead[level[ahead] < 0]
            if not len(ahead):
                return front
            front, depth = ahead, depth + 1

    level = np.full(size, -1, dtype=np.int64)
    while (level < 0).any():
        left = np.flatnonzero(level < 0)
        start, first = int(left[degree[left].argmin()]), int(level.max()) + 1
        for _ in range(2):  # from the far side of the far side the levels are many and small
            last = walked(start, level.copy(), first)
            start = int(last[degree[last].argmin()])
        walked(start, level, first)
    return level


def _joined(sizes: np.ndarray) -> np.ndarray:
    """Return the block of each level: neighbours join while they are small."""
    block, filled, found = 0, 0, []
    for size in sizes.tolist():
        if filled and filled + size > _LEAST:
            block, filled = block + 1, 0
        filled += size
        found.append(block)
    return np.array(found, dtype=np.int64)
