"""Vietoris-Rips persistence: which distances carry the diagram."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from math import comb
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_finite, check_floating
from pullback.core.shapes import Float, Int
from pullback.core.transforms import physical, transform_running
from pullback.kernels.persistence import pair_cells, rips_cycles, spanning_tree, spanning_trees
from pullback.topology.gudhi_backend import has_gudhi, rips_tree_pairs
from pullback.topology.pairing import Pairs, as_array, with_ties
from pullback.topology.reduction import boundary, by_degree

__all__ = ["BACKENDS", "check_distances", "entries", "rips_pairs", "rips_stack", "tree_pairs"]

BACKENDS = ("auto", "reference", "gudhi")
_LARGEST = 200_000
"""Simplices that the reference reduces at most."""
_WORTH_THREADS = 64


def rips_pairs(distances: Float[Tensor, "*batch n n"]) -> Int[Tensor, "*batch n-1 2"]:
    r"""Return the pairs of points whose distances are the degree-0 persistence diagram of the Rips complex.

    Each bar of degree 0 but one begins at 0 and ends at the length of an edge of a minimum spanning tree: the edge that
    first joins its component to an older one. So ``distances`` gathered by these pairs are the diagram.

    Args:
        distances: ``[*batch, n, n]`` symmetric, >= 0, finite, ``n >= 2``. The diagonal is not read.

    Returns:
        ``[*batch, n - 1, 2]`` int64, the smaller index first, shortest edge first. No gradient. On the CPU a compiled
        loop in threads over the batch, from other devices by one copy; where ties leave a choice it is one of the
        trees. Under ``torch.func.vmap`` and gradients too.

    Raises:
        TypeError: ``distances`` is not a floating tensor.
        ValueError: the matrices are not square, have fewer than two points, are not symmetric, negative or not finite.

    Example:
        >>> x = torch.tensor([0.0, 1.0, 5.0])
        >>> rips_pairs((x[:, None] - x).abs())
        tensor([[0, 1],
                [1, 2]])

    References:
        Moor, Horn, Rieck, Borgwardt (2020), Topological autoencoders, section 3.2.
    """
    check_distances("distances", distances)
    pairs = tree_pairs(distances)
    return pairs.gather(-2, entries(distances, pairs).argsort(dim=-1, stable=True).unsqueeze(-1).expand_as(pairs))


def tree_pairs(distances: Tensor) -> Tensor:
    """:func:`rips_pairs` without checks and in any order."""
    if not transform_running():
        return _TreePairs.forward(distances.detach())
    result: Tensor = _TreePairs.apply(distances.detach())
    return result


class _TreePairs(torch.autograd.Function):
    @staticmethod
    def forward(distances: Tensor) -> Tensor:
        n = distances.shape[-1]
        flat = distances.reshape(-1, n, n)
        first, second = spanning_tree(flat)[0].unbind(-1)
        return torch.stack([torch.minimum(first, second), torch.maximum(first, second)], -1).view(
            *distances.shape[:-2], n - 1, 2
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> None:
        return None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], distances: Tensor) -> tuple[Tensor, int]:
        return _TreePairs.apply(distances.movedim(in_dims[0], 0)), 0


def entries(distances: Tensor, pairs: Tensor) -> Tensor:
    """Return ``distances [*batch, n, n]`` at ``pairs [*batch, m, 2]``."""
    n = distances.shape[-1]
    return distances.flatten(-2).gather(-1, pairs[..., 0] * n + pairs[..., 1])


def check_distances(name: str, distances: Tensor) -> None:
    """Refuse what are no distance matrices, by name."""
    check_floating(name, distances)
    shape = tuple(distances.shape)
    if len(shape) < 2 or shape[-1] != shape[-2]:
        raise ValueError(f"{name} must have shape (..., n, n), got {shape}")
    if shape[-1] < 2:
        raise ValueError(f"{name} must have at least 2 points, got {shape[-1]}")
    numbers = physical(distances.detach()).detach()
    if not numbers.numel():
        return
    low, high = numbers.aminmax()
    if not bool(torch.isfinite(high - low)):
        check_finite(name, numbers)
    if low < 0:
        raise ValueError(f"{name} must be >= 0, got {low.item()}")
    if distances.ndim != numbers.ndim:  # under vmap, where the mapped dimension may stand anywhere
        return
    if torch.equal(numbers, numbers.mT):
        return
    # Matrix products leave distances that are symmetric but for rounding.
    allowed = torch.finfo(numbers.dtype).eps ** 0.5
    apart = (numbers - numbers.mT).abs().max()
    if apart > allowed * high:
        raise ValueError(f"{name} must be symmetric, got entries that differ by {apart.item():.3g}")


def rips_stack(distances: Tensor, degrees: Sequence[int], backend: str) -> list[Pairs]:
    """Return the pairs of ``distances [b, n, n]``, one record a degree."""
    check_choice("backend", backend, BACKENDS)
    matrices = _symmetric(as_array(distances))
    n = matrices.shape[-1]
    if backend == "auto":
        by_degree = {k: _zero(matrices) if k == 0 else _one(matrices) for k in degrees if k < 2}
        high = [k for k in degrees if k >= 2]
        if high:
            small = sum(comb(n, k + 1) for k in range(max(high) + 2)) <= _LARGEST
            by_degree |= _general(matrices, high, "reference" if small and not has_gudhi() else "gudhi")
    else:
        by_degree = _general(matrices, degrees, backend)
    return [by_degree[k] for k in degrees]


def _zero(matrices: np.ndarray) -> Pairs:
    b, n = matrices.shape[:2]
    edges, tied = spanning_trees(matrices, ties=True)
    deaths = np.concatenate([edges.reshape(-1, 2), np.full((b, 2), -1)])  # the first node's component stays
    births = np.concatenate([deaths[: b * (n - 1), 1:], np.zeros((b, 1), np.int64)])
    element = np.concatenate([np.repeat(np.arange(b), n - 1), np.arange(b)])
    ends = np.sort(deaths, 1)
    return Pairs(element, births, ends, np.full(len(ends), -1), np.where(ends[:, 0] < 0, -1, ends @ (n, 1)), tied)


def _one(matrices: np.ndarray) -> Pairs:
    b, n = matrices.shape[:2]
    threads = min(b, torch.get_num_threads()) if n >= _WORTH_THREADS else 1
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(rips_cycles, matrices))
    else:
        found = [rips_cycles(matrix) for matrix in matrices]
    rows = np.concatenate([*(pairs for pairs, _ in found), np.empty((0, 5), np.int64)])
    return Pairs(
        np.repeat(np.arange(b), [len(pairs) for pairs, _ in found]),
        rows[:, :2],
        np.sort(rows[:, 2:], 1),
        rows[:, :2] @ (n, 1),
        np.sort(rows[:, 2:4], 1) @ (n, 1),
        np.array([tied for _, tied in found], bool),
    )


def _general(matrices: np.ndarray, degrees: Sequence[int], backend: str) -> dict[int, Pairs]:
    """Pairs of simplices, their values those of their longest edges."""
    b = len(matrices)
    find = rips_tree_pairs if backend == "gudhi" else _reduced
    found = [find(matrix, degrees) for matrix in matrices]
    result = {}
    for k in degrees:
        births, deaths = (
            np.concatenate([each[k][i] for each in found] or [np.empty((0, k + 1 + i), np.int64)]) for i in (0, 1)
        )
        element = np.repeat(np.arange(b), [len(each[k][0]) for each in found])
        pairs = Pairs(
            element,
            births,
            deaths,
            _longest_edge(matrices, element, births),
            _longest_edge(matrices, element, deaths),
            np.zeros(b, bool),
        )
        result[k] = _with_tied_distances(pairs, matrices)
    return result


def _reduced(matrix: np.ndarray, degrees: Sequence[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """All simplices up to one dimension more than the degrees, and the reduction of their boundary matrix."""
    n, top = len(matrix), min(max(degrees) + 1, len(matrix) - 1)
    count = sum(comb(n, k + 1) for k in range(top + 1))
    if count > _LARGEST:
        raise ValueError(f"backend 'reference' must have at most {_LARGEST} simplices, got {count}; use 'auto'")
    cells = [np.array(list(combinations(range(n), k + 1)), np.int64) for k in range(top + 1)]
    values = [np.zeros(n)]
    for table in cells[1:]:
        values.append(np.max([matrix[table[:, i], table[:, j]] for i, j in combinations(range(table.shape[1]), 2)], 0))
    starts, faces, dims = boundary(cells)
    partners = pair_cells(starts, faces, dims, np.argsort(np.concatenate(values), kind="stable")[None])[0]
    return by_degree(cells, partners, degrees)


def _symmetric(distances: np.ndarray) -> np.ndarray:
    """The matrices with what stands below the diagonal taken from above it, and zeros on it."""
    if np.array_equal(distances, distances.swapaxes(-1, -2)):
        matrices = distances.copy()
    else:
        above = np.triu(distances, 1)
        matrices = above + above.swapaxes(-1, -2)
    every = np.arange(matrices.shape[-1])
    matrices[:, every, every] = 0
    return matrices


def _longest_edge(matrices: np.ndarray, element: np.ndarray, simplices: np.ndarray) -> np.ndarray:
    """The flat place of the longest edge of each simplex; -1 for a vertex, and for what is no simplex."""
    n = matrices.shape[-1]
    if simplices.shape[1] < 2 or not len(simplices):
        return np.full(len(simplices), -1)
    ends = np.array(list(combinations(range(simplices.shape[1]), 2)))
    places = simplices[:, ends] @ (n, 1)
    lengths = matrices.reshape(len(matrices), -1)[element[:, None], np.maximum(places, 0)]
    longest = np.take_along_axis(places, lengths.argmax(1)[:, None], 1)[:, 0]
    return np.where(simplices[:, 0] < 0, -1, longest)


def _with_tied_distances(pairs: Pairs, matrices: np.ndarray) -> Pairs:
    """Every distance stands in one place above the diagonal."""
    if not len(pairs.element):
        return pairs
    n = matrices.shape[-1]
    below = np.tri(n, dtype=bool).ravel()
    return with_ties(pairs, np.where(below, -1.0, matrices.reshape(len(matrices), -1)))
