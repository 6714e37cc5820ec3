"""Persistence of any filtered simplicial complex by reduction of its boundary matrix over Z/2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pullback.core.checks import check_floating, check_tensor
from pullback.core.shapes import Float, Int
from pullback.kernels.persistence import pair_cells
from pullback.topology.pairing import as_array

__all__ = ["boundary", "by_degree", "check_simplices", "pair_simplices", "with_faces"]


def pair_simplices(
    simplices: Sequence[Int[Tensor, "_ _"]], values: Float[Tensor, "*batch cells"]
) -> Int[Tensor, "*batch cells"]:
    r"""Pair each simplex that begins a cycle with the one that ends it.

    Simplices enter in the order of (value, dimension, position). A simplex :math:`\sigma` either begins a class of
    degree :math:`\dim\sigma` or ends one of degree :math:`\dim\sigma - 1`; with the pairs :math:`\pi`, the rank of
    degree ``k`` at ``t`` is the number of ``k``-simplices with value :math:`\le t` that are born (unpaired, or paired
    with a higher one), less that of their partners with value :math:`\le t`. The boundary matrix is reduced from the
    highest dimension down, and columns that are known to vanish are left out. Every pair is returned, those of no
    persistence too. Values may be infinite: such simplices enter last, so one complex serves many subcomplexes.

    Args:
        simplices: by dimension, ``[m_k, k + 1]`` integers: vertices, edges, triangles, and so on. Every face of a
            simplex is listed; the vertices of a row in any order.
        values: ``[*batch, m_0 + m_1 + ...]`` of the simplices in that order. A simplex is worth at least its faces.

    Returns:
        ``[*batch, m_0 + m_1 + ...]`` int64: the place of each simplex' partner, -1 where it has none. No gradient:
        gather ``values`` by it. The work is done on the CPU.

    Raises:
        TypeError: simplices are no integers, values no floating numbers.
        ValueError: a shape does not fit, a vertex or simplex is there twice, a face is missing, or a value is NaN or
            below that of a face.

    Example:
        >>> vertices, edges = torch.tensor([[0], [1], [2]]), torch.tensor([[0, 1], [1, 2], [0, 2]])
        >>> pair_simplices([vertices, edges], torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]))
        tensor([-1,  3,  4,  1,  2, -1])

    References:
        Edelsbrunner, Letscher, Zomorodian (2002), Topological persistence and simplification.
        Chen, Kerber (2011), Persistent homology computation with a twist.
    """
    cells = check_simplices(simplices)
    check_floating("values", values)
    count = sum(map(len, cells))
    if values.ndim < 1 or values.shape[-1] != count:
        raise ValueError(f"values must have shape (..., {count}), one a simplex, got {tuple(values.shape)}")
    starts, faces, dims = boundary(cells)
    numbers = as_array(values).reshape(-1, count)
    if np.isnan(numbers).any():
        raise ValueError("values must not be NaN")
    of_coface = np.repeat(np.arange(count), np.diff(starts))
    lower = (numbers[:, of_coface] < numbers[:, faces]).any(0)
    if lower.any():
        at = int(of_coface[lower.argmax()])
        cell = [row for table in cells for row in table.tolist()][at] if count < 1 << 20 else at
        raise ValueError(f"values must not be below those of the faces, as at simplex {cell} (place {at})")
    partners = pair_cells(starts, faces, dims, np.argsort(numbers, -1, kind="stable"))
    return torch.from_numpy(partners).view(values.shape).to(values.device)


def check_simplices(simplices: Sequence[Tensor]) -> list[np.ndarray]:
    """Return simplices as arrays with rows in ascending order, after looking at shapes, signs and repetitions."""
    if isinstance(simplices, Tensor) or not isinstance(simplices, Sequence) or not simplices:
        raise TypeError("simplices must be a sequence of integer tensors [m, k + 1], one a dimension")
    cells = []
    for k, table in enumerate(simplices):
        name = f"simplices[{k}]"
        if check_tensor(name, table).is_floating_point() or table.dtype == torch.bool or table.is_complex():
            raise TypeError(f"{name} must hold integers, got {table.dtype}")
        if table.ndim != 2 or not table.shape[1]:
            raise ValueError(f"{name} must have shape (m, vertices), got {tuple(table.shape)}")
        rows = np.sort(as_array(table).astype(np.int64), axis=1)
        if rows.size and rows.min() < 0:
            raise ValueError(f"{name} must hold vertices >= 0, got {rows.min()}")
        twice = (rows[:, 1:] == rows[:, :-1]).any(1)
        if twice.any():
            raise ValueError(f"{name} must have different vertices in a row, got {rows[twice.argmax()].tolist()}")
        cells.append(rows)
    return cells


def boundary(cells: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ``starts``, ``faces`` and ``dims`` of a complex, as :func:`pair_cells` takes them."""
    sizes = np.cumsum([0, *map(len, cells)])
    starts, faces = [np.zeros(1, np.int64)], []
    for k, table in enumerate(cells):
        if table.shape[1] != k + 1:
            raise ValueError(f"simplices[{k}] must have shape (m, {k + 1}), got {table.shape}")
        (codes,) = _codes(table)
        if len(np.unique(codes)) < len(codes):
            raise ValueError(f"simplices[{k}] must not hold a simplex twice")
        if k:
            parts = [np.delete(table, i, 1) for i in range(k + 1)]
            of_table, *of_faces = _codes(cells[k - 1], *parts)
            order = np.argsort(of_table)
            wanted = np.stack(of_faces, 1)
            at = np.searchsorted(of_table, wanted, sorter=order)
            found = order[np.minimum(at, len(order) - 1)] if len(order) else np.zeros_like(at)
            missing = (of_table[found] != wanted).any(1) if len(order) else np.ones(len(table), bool)
            if missing.any():
                raise ValueError(f"simplices must hold all faces, one of {table[missing.argmax()].tolist()} is missing")
            faces.append((found + sizes[k - 1]).ravel())
        width = k + 1 if k else 0
        starts.append(starts[-1][-1] + width * np.arange(1, len(table) + 1, dtype=np.int64))
    dims = np.repeat(np.arange(len(cells)), np.diff(sizes))
    return np.concatenate(starts), np.concatenate([*faces, np.empty(0, np.int64)]), dims


def by_degree(
    cells: Sequence[np.ndarray], partners: np.ndarray, degrees: Sequence[int]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return simplices of birth and of death (-1: never), degree by degree."""
    sizes, result = np.cumsum([0, *map(len, cells)]), {}
    for k in degrees:
        if k >= len(cells):
            result[k] = np.empty((0, k + 1), np.int64), np.empty((0, k + 2), np.int64)
            continue
        own = partners[sizes[k] : sizes[k + 1]]
        born = (own < 0) | (own >= sizes[k + 1])
        deaths = np.full((born.sum(), k + 2), -1, np.int64)
        ends = own[born]
        if k + 1 < len(cells):
            deaths[ends >= 0] = cells[k + 1][ends[ends >= 0] - sizes[k + 1]]
        result[k] = cells[k][born], deaths
    return result


def with_faces(cells: Sequence[np.ndarray], vertices: int) -> list[np.ndarray]:
    """Return the complex of all ``vertices`` and of the given simplices of any dimension, with all faces, once each."""
    top = max((table.shape[1] for table in cells), default=1)
    by_size: list[list[np.ndarray]] = [[] for _ in range(top)]
    for table in cells:
        by_size[table.shape[1] - 1].append(table)
    by_size[0].append(np.arange(vertices)[:, None])
    result: list[np.ndarray] = []
    for k in range(top - 1, -1, -1):
        rows = np.concatenate([*by_size[k], np.empty((0, k + 1), np.int64)])
        if k:
            _, first = np.unique(_codes(rows)[0], return_index=True)
            rows = rows[np.sort(first)]
            by_size[k - 1] += [np.delete(rows, i, 1) for i in range(k + 1)]
        else:
            rows = np.arange(vertices)[:, None]
        result.insert(0, rows)
    return result


def _codes(*tables: np.ndarray) -> list[np.ndarray]:
    """Number the rows of tables of one width, equal rows alike. Prefix by prefix: a product of counts may overflow."""
    rows = np.concatenate(tables)
    codes = rows[:, 0]
    for column in rows.T[1:]:
        codes = np.unique(codes, return_inverse=True)[1].ravel() * (int(column.max(initial=0)) + 1) + column
    return np.split(codes, np.cumsum([len(table) for table in tables])[:-1])
