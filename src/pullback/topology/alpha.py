"""Alpha filtration: the Delaunay triangulation of points, by squared radii of empty balls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pullback.kernels.persistence import pair_cells
from pullback.topology.gudhi_backend import delaunay
from pullback.topology.pairing import Pairs, as_array, with_ties
from pullback.topology.reduction import boundary, by_degree

__all__ = ["alpha_pairs"]


def alpha_pairs(points: Tensor, degrees: Sequence[int]) -> tuple[list[Pairs], Tensor]:
    """Return the pairs of ``points [n, d]`` by degree, and the values that they are places of.

    A simplex whose smallest circumsphere holds no other point is worth that sphere's squared radius; else it enters
    with a coface. Values of the diagram are radii of such spheres, as functions of their corners.
    """
    numbers = as_array(points)
    scale = max(float(np.abs(numbers - numbers[:1]).max(initial=0)), np.finfo(np.float64).tiny)
    numbers = (numbers - numbers[:1]) / scale
    cells = delaunay(numbers)
    starts, faces, dims = boundary(cells)
    sizes = np.cumsum([0, *map(len, cells)])
    worth, source = np.zeros(sizes[-1]), np.full(sizes[-1], -1)
    for k in range(len(cells) - 1, 0, -1):
        here = slice(sizes[k], sizes[k + 1])
        squared, centers = _spheres(torch.from_numpy(numbers)[cells[k]])
        own, least = as_array(squared), np.full(len(cells[k]), np.inf)
        source[here] = np.arange(sizes[k], sizes[k + 1])
        if k + 1 < len(cells):
            above = faces[starts[sizes[k + 1]] : starts[sizes[k + 2]]].reshape(-1, k + 2) - sizes[k]
            opposite = _opposite(cells[k + 1], cells[k], above)
            gap = np.square(numbers[opposite] - as_array(centers)[above]).sum(-1) - own[above]
            inside = np.zeros(len(cells[k]), bool)
            np.logical_or.at(inside, above, gap < 0)
            of_coface = np.broadcast_to(worth[sizes[k + 1] : sizes[k + 2], None], above.shape)
            np.minimum.at(least, above, of_coface)
            hidden = inside | (own > least)
            coface = np.zeros(len(cells[k]), np.int64)
            is_least = of_coface == least[above]
            coface[above[is_least]] = np.broadcast_to(source[sizes[k + 1] : sizes[k + 2], None], above.shape)[is_least]
            own = np.where(hidden, least, own)
            source[here] = np.where(hidden, coface, source[here])
        worth[here] = own
    partners = pair_cells(starts, faces, dims, np.argsort(worth, kind="stable")[None])[0]
    found = by_degree(cells, partners, degrees)
    born = (partners < 0) | (partners > np.arange(len(partners)))
    result = []
    for k in degrees:
        birth = np.flatnonzero(born & (dims == k))
        death = partners[birth]
        pairs = Pairs(
            np.zeros(len(birth), np.int64),
            *found[k],
            source[birth],
            np.where(death < 0, -1, source[death]),
            np.zeros(1, bool),
        )
        own_sphere = source == np.arange(len(source))
        result.append(with_ties(pairs, np.where(own_sphere, worth, -1.0)[None]))
    return result, _values(points, scale, cells, sizes, result)


def _values(points: Tensor, scale: float, cells: list[np.ndarray], sizes: np.ndarray, pairs: list[Pairs]) -> Tensor:
    """The squared radii of the spheres that the pairs name, at their places; the others stay 0."""
    named = np.unique(np.concatenate([np.concatenate([each.birth_at, each.death_at]) for each in pairs]))
    wide = (points.double() - points.detach()[:1].double()) / scale
    values = wide.new_zeros(int(sizes[-1]))
    for k in range(1, len(cells)):
        at = named[(named >= sizes[k]) & (named < sizes[k + 1])]
        if len(at):
            corners = torch.from_numpy(cells[k][at - sizes[k]]).to(points.device)
            values = values.index_put((torch.from_numpy(at).to(points.device),), _spheres(wide[corners])[0])
    return (values * scale * scale).to(points.dtype)


def _spheres(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Squared radii and centres of the smallest spheres through ``corners [m, k + 1, d]``.

    The centre is in the middle of every side, ``u_i . c = |s_i| / 2``, and in the span of the sides.
    """
    sides = corners[:, 1:] - corners[:, :1]
    lengths = torch.linalg.vector_norm(sides, dim=-1, keepdim=True)
    basis, triangle = torch.linalg.qr((sides / lengths).mT)
    center = basis @ torch.linalg.solve_triangular(triangle.mT, lengths / 2, upper=False)
    return center.square().sum((-2, -1)), corners[:, 0] + center[..., 0]


def _opposite(cofaces: np.ndarray, cells: np.ndarray, above: np.ndarray) -> np.ndarray:
    """The vertex of each coface that its faces leave out."""
    result: np.ndarray = cofaces.sum(1)[:, None] - cells[above].sum(-1)
    return result
