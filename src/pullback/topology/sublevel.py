"""Filtrations by the values of vertices (lower star) and of pixels (cubical complex)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pullback.kernels.persistence import pair_cells
from pullback.topology.gudhi_backend import cubical_pairs, has_gudhi, tree_pairs
from pullback.topology.pairing import Pairs, settled, with_ties
from pullback.topology.reduction import boundary, by_degree

__all__ = ["cubical_stack", "lower_star_stack"]


def lower_star_stack(
    values: np.ndarray, cells: Sequence[np.ndarray], degrees: Sequence[int], backend: str
) -> list[Pairs]:
    """Return the pairs of ``values [b, n]`` of vertices on a complex, a simplex worth its highest vertex."""
    b = len(values)
    of_cells = np.concatenate([values[:, table].max(-1) for table in cells], -1)
    if backend == "gudhi":
        found = [tree_pairs(cells, row, degrees) for row in of_cells]
    else:
        partners = pair_cells(*boundary(cells), np.argsort(of_cells, -1, kind="stable"))
        found = [by_degree(cells, row, degrees) for row in partners]
    result = []
    for k in degrees:
        element = np.repeat(np.arange(b), [len(each[k][0]) for each in found])
        births = np.concatenate([*(each[k][0] for each in found), np.empty((0, k + 1), np.int64)])
        deaths = np.concatenate([*(each[k][1] for each in found), np.empty((0, k + 2), np.int64)])
        born, died = (_highest(values, element, simplices) for simplices in (births, deaths))
        pairs = settled(Pairs(element, births, deaths, born, died, np.zeros(b, bool)), values)
        result.append(with_ties(pairs, values))
    return result


def _highest(values: np.ndarray, element: np.ndarray, simplices: np.ndarray) -> np.ndarray:
    if not len(simplices):
        return np.empty(0, np.int64)
    at = values[element[:, None], simplices].argmax(1)
    return np.take_along_axis(simplices, at[:, None], 1)[:, 0]


def cubical_stack(values: np.ndarray, degrees: Sequence[int], backend: str) -> list[Pairs]:
    """Return the pairs of images ``[b, *shape]``; cells are pixels, by their indices."""
    b, shape = len(values), values.shape[1:]
    if backend == "auto":
        backend = "gudhi" if has_gudhi() else "reference"
    found = [_by_gudhi(v, degrees) for v in values] if backend == "gudhi" else _by_reduction(values, degrees)
    flat, result = values.reshape(b, math.prod(shape)), []
    for i in range(len(degrees)):
        element = np.repeat(np.arange(b), [len(each[i]) for each in found])
        at = np.concatenate([*(each[i] for each in found), np.empty((0, 2), np.int64)])
        births, deaths = (_indices(places, shape) for places in at.T)
        pairs = settled(Pairs(element, births, deaths, at[:, 0], at[:, 1], np.zeros(b, bool)), flat)
        result.append(with_ties(pairs, flat))
    return result


def _indices(places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    indices = np.stack(np.unravel_index(np.maximum(places, 0), shape), -1).astype(np.int64)
    return np.where(places[:, None] < 0, -1, indices)


def _by_gudhi(image: np.ndarray, degrees: Sequence[int]) -> list[np.ndarray]:
    finite, never = cubical_pairs(image)
    empty = np.empty((0, 2), np.int64)
    result = []
    for k in degrees:
        ends = finite[k].reshape(-1, 2) if k < len(finite) else empty
        starts = never[k].reshape(-1, 1) if k < len(never) else empty[:, :1]
        result.append(np.concatenate([ends, np.pad(starts, ((0, 0), (0, 1)), constant_values=-1)]))
    return result


def _by_reduction(values: np.ndarray, degrees: Sequence[int]) -> list[list[np.ndarray]]:
    """A cell stands on the grid of twice the size: odd along the axes in which it is long, between pixels along others.

    It is worth the lowest pixel that it is a face of.
    """
    shape = values.shape[1:]
    grid = np.stack(np.meshgrid(*(np.arange(2 * s + 1) for s in shape), indexing="ij"), -1).reshape(-1, len(shape))
    grid = grid[np.argsort((grid % 2).sum(1), kind="stable")]
    dims = (grid % 2).sum(1)
    full = tuple(2 * s + 1 for s in shape)
    place = np.empty(len(grid), np.int64)
    place[np.ravel_multi_index(tuple(grid.T), full)] = np.arange(len(grid))
    faces: list[list[int]] = [[] for _ in grid]
    for axis in range(len(shape)):
        long = np.flatnonzero(grid[:, axis] % 2)
        for side in (-1, 1):
            moved = grid[long].copy()
            moved[:, axis] += side
            for cell, face in zip(long, place[np.ravel_multi_index(tuple(moved.T), full)], strict=True):
                faces[cell].append(int(face))
    starts = np.cumsum([0, *map(len, faces)])
    pixels, flat = _lowest(grid, values)
    joined = np.array([face for each in faces for face in each], np.int64)
    of_cells = np.take_along_axis(flat, pixels, 1)
    partners = pair_cells(starts, joined, dims, np.argsort(of_cells, -1, kind="stable"))
    result = []
    for row, own in zip(partners, pixels, strict=True):
        parts = []
        for k in degrees:
            born = np.flatnonzero((dims == k) & ((row < 0) | (row > np.arange(len(row)))))
            ends = row[born]
            parts.append(np.stack([own[born], np.where(ends < 0, -1, own[np.maximum(ends, 0)])], 1))
        result.append(parts)
    return result


def _lowest(grid: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the flat place of the lowest pixel around each cell ``[b, cells]``, and the flat images."""
    b, shape = len(values), values.shape[1:]
    flat = values.reshape(b, math.prod(shape))
    best = np.full((b, len(grid)), -1)
    for corner in np.ndindex(*(2 for _ in shape)):
        pixel = (grid - 1 + np.array(corner)) // 2
        inside = ((pixel >= 0) & (pixel < shape)).all(1)
        at = np.ravel_multi_index(tuple(np.where(inside[:, None], pixel, 0).T), shape)
        lower = inside & ((best < 0) | (flat[:, at] < np.take_along_axis(flat, np.maximum(best, 0), 1)))
        best = np.where(lower, at, best)
    return best, flat
