"""The calls of gudhi, on arrays that have been checked: its C++ does not survive all others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["cubical_pairs", "delaunay", "has_gudhi", "rips_tree_pairs", "tree_pairs"]


def has_gudhi() -> bool:
    """Return whether gudhi can be imported."""
    try:
        import gudhi  # noqa: F401
    except ModuleNotFoundError:
        return False
    return True


def _gudhi() -> Any:
    try:
        import gudhi
    except ModuleNotFoundError as error:
        raise ImportError("this needs gudhi: pip install 'pullback[topology]'") from error
    return gudhi


def rips_tree_pairs(distances: np.ndarray, degrees: Sequence[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return simplices of birth and death by degree. No edges are collapsed: these would not carry the values."""
    gudhi = _gudhi()
    tree = gudhi.SimplexTree.create_from_array(distances, max_filtration=float(distances.max(1).min()))
    tree.expansion(max(degrees) + 1)
    return _pairs(tree, degrees)


def tree_pairs(
    cells: Sequence[np.ndarray], values: np.ndarray, degrees: Sequence[int]
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The same of any complex, with the values of its simplices in the order of the tables."""
    tree, at = _gudhi().SimplexTree(), 0
    for table in cells:
        tree.insert_batch(np.ascontiguousarray(table.T), values[at : at + len(table)])
        at += len(table)
    return _pairs(tree, degrees)


def _pairs(tree: Any, degrees: Sequence[int]) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    tree.compute_persistence(homology_coeff_field=2, min_persistence=0, persistence_dim_max=True)
    found: dict[int, tuple[list[Any], list[Any]]] = {k: ([], []) for k in degrees}
    for birth, death in tree.persistence_pairs():
        if len(birth) - 1 in found:
            births, deaths = found[len(birth) - 1]
            births.append(birth)
            deaths.append(death or [-1] * (len(birth) + 1))
    return {
        k: (np.sort(np.array(b, np.int64).reshape(-1, k + 1)), np.sort(np.array(d, np.int64).reshape(-1, k + 2)))
        for k, (b, d) in found.items()
    }


def cubical_pairs(values: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return by degree ``[m, 2]`` flat places of the pixels of birth and death, and ``[m]`` of what never dies."""
    complex_ = _gudhi().CubicalComplex(top_dimensional_cells=values)
    complex_.compute_persistence(homology_coeff_field=2, min_persistence=0)
    finite, never = complex_.cofaces_of_persistence_pairs()
    return [_pixels(table, values.shape) for table in finite], [_pixels(table, values.shape) for table in never]


def _pixels(places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """gudhi counts pixels with the first axis fastest, torch with the last."""
    of_axes = np.unravel_index(np.asarray(places, np.int64), shape, order="F")
    result: np.ndarray = np.ravel_multi_index(of_axes, shape).astype(np.int64)
    return result


def delaunay(points: np.ndarray) -> list[np.ndarray]:
    """Return the Delaunay triangulation ``[m_k, k + 1]`` by dimension: indices of points, equal ones once."""
    tree = _gudhi().DelaunayComplex(points=points).create_simplex_tree()
    found: dict[int, list[Any]] = {}
    for simplex, _ in tree.get_simplices():
        found.setdefault(len(simplex), []).append(simplex)
    return [np.sort(np.array(found[k], np.int64), axis=1) for k in sorted(found)]
