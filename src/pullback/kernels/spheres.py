"""Blending of spheres, compiled: tiles of the image side by side, each with its list of spheres, nearest first.

The readable twin is ``pullback.render.spheres``' ``method="reference"``; the tests hold them equal. A backward pass
walks the same lists again; each pair of a tile and a sphere has its own row of partial gradients, which are added up
sphere by sphere in the order of the tiles: no atomics, so the same input gives the same gradient, bit by bit.

All arithmetic is in float64, whatever the arrays are. The threads are Python's (the loops run without its lock), not
numba's: those of its OpenMP layer spin while they wait, which takes five times the CPU time where cores are shared.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
import torch

__all__ = [
    "Blending",
    "Cotangents",
    "Gradients",
    "Lists",
    "Pixels",
    "Scene",
    "add_up",
    "backward",
    "forward",
    "in_parallel",
]


class Scene(NamedTuple):
    """What is rendered, in the camera's axes.

    Attributes:
        centers: ``[n, 3]``.
        radii: ``[n]``.
        opacity: ``[n]``.
        features: ``[n, C]``.
        background: ``[C]``.
        rays: ``[H, W, 3]`` of one unit of depth.
    """

    centers: Any
    radii: Any
    opacity: Any
    features: Any
    background: Any
    rays: Any


class Lists(NamedTuple):
    """Which spheres a tile meets: the fields of ``render.TileLists``.

    Attributes:
        offsets: ``[tiles + 1]``: tile ``t`` has the pairs from ``offsets[t]`` to ``offsets[t + 1]``.
        indices: ``[pairs]`` the sphere of a pair, nearest first within a tile.
        pixels: ``[n, 4]`` first column, first row, last column, last row of a sphere.
        columns: tiles in a row of tiles.
        tile: edge of a tile, pixels.
    """

    offsets: Any
    indices: Any
    pixels: Any
    columns: int
    tile: int


class Blending(NamedTuple):
    """The numbers of the blending.

    Attributes:
        near: plane, metres.
        far: plane, metres.
        gamma: softness.
        floor: the background's exponent.
        allowed: share of a pixel that may be left out.
        tracked: whether only the spheres that were kept receive a gradient.
    """

    near: float
    far: float
    gamma: float
    floor: float
    allowed: float
    tracked: bool


class Pixels(NamedTuple):
    """What :func:`forward` finds at each pixel.

    Attributes:
        image: ``[H, W, C]``.
        depth: ``[H, W]``.
        scale: ``[H, W]`` the largest exponent.
        total: ``[H, W]`` the weights' sum without it.
        kept: ``[H, W, k]`` the pairs of the strongest spheres, strongest first (-1: fewer than k).
        last: ``[H, W]`` the pair at which a pixel stopped: the rest of the list cannot change it by more than allowed.
        strongest: ``[H, W]`` the strongest sphere, -1 where the background's weight is larger.
        hits: ``[pairs]`` how many pixels of the tile meet the sphere before they stop.
    """

    image: Any
    depth: Any
    scale: Any
    total: Any
    kept: Any
    last: Any
    strongest: Any
    hits: Any


class Cotangents(NamedTuple):
    """Of the results, and their product with them.

    Attributes:
        image: ``[H, W, C]``.
        alpha: ``[H, W]``.
        depth: ``[H, W]``.
        mean: ``[H, W]`` the sum of cotangents times blended values.
    """

    image: Any
    alpha: Any
    depth: Any
    mean: Any


class Gradients(NamedTuple):
    """What :func:`backward` finds.

    Attributes:
        pairs: ``[pairs, 5 + C]`` a tile's share of the gradients to a sphere's centre, radius, opacity and features.
        rays: ``[H, W, 3]``.
        exponents: ``[tiles]`` the sum of exponents times their gradients, which is minus gamma times its gradient.
    """

    pairs: Any
    rays: Any
    exponents: Any


def in_parallel(work: Callable[[int, int], None], count: int) -> None:
    """Call ``work(begin, end)`` on parts of ``range(count)``, on as many threads as torch would use.

    Example:
        >>> seen = []
        >>> in_parallel(lambda begin, end: seen.extend(range(begin, end)), 5)
        >>> sorted(seen)
        [0, 1, 2, 3, 4]
    """
    threads = min(torch.get_num_threads(), max(1, count))
    if threads == 1:
        work(0, count)
        return
    # Four parts a thread, so that one with a crowded part does not keep the others waiting.
    bounds = [count * k // (4 * threads) for k in range(4 * threads + 1)]
    list(_pool(threads).map(work, bounds[:-1], bounds[1:]))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "pullback-spheres")


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def forward(begin: int, stop: int, scene: Scene, lists: Lists, blending: Blending, out: Pixels) -> None:
    """Fill tiles ``begin`` to ``stop`` of ``out``."""
    centers, radii, opacity, features, background, rays = scene
    near, far, gamma, floor, allowed, _ = blending
    image, depth, scale, total, kept, last, winner, hits = out
    pixels, tile = lists.pixels, lists.tile
    height, width, channels = image.shape
    strongest = kept.shape[2]
    for number in range(begin, stop):
        top, left = (number // lists.columns) * tile, (number % lists.columns) * tile
        bottom, right = min(top + tile, height) - 1, min(left + tile, width) - 1
        weights = np.zeros((tile * tile, strongest))
        sums = np.empty((tile * tile, channels + 1))
        running = np.zeros(tile * tile, np.bool_)
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                place = (y - top) * tile + x - left
                scale[y, x] = floor
                total[y, x] = 1.0
                running[place] = True
                last[y, x] = lists.offsets[number + 1]
                for c in range(channels):
                    sums[place, c] = background[c]
                sums[place, channels] = far
                for k in range(strongest):
                    kept[y, x, k] = -1
        first, end = lists.offsets[number], lists.offsets[number + 1]
        for pair in range(first, end):
            i = lists.indices[pair]
            cx, cy, cz = float(centers[i, 0]), float(centers[i, 1]), float(centers[i, 2])
            r, o = float(radii[i]), float(opacity[i])
            if allowed > 0.0 and (pair - first) % 16 == 15:
                # No sphere from here on is nearer than this one's front, so none has a larger exponent.
                bound = min(1.0, (far - (cz - r)) / (far - near)) / gamma
                alive = False
                for y in range(top, bottom + 1):
                    for x in range(left, right + 1):
                        place = (y - top) * tile + x - left
                        if running[place]:
                            rest = (end - pair) * np.exp(bound - scale[y, x])
                            running[place] = rest > allowed * (total[y, x] + rest)
                            alive = alive or running[place]
                            if not running[place]:
                                last[y, x] = pair
                if not alive:
                    break
            met = 0
            for y in range(max(top, pixels[i, 1]), min(bottom, pixels[i, 3]) + 1):
                for x in range(max(left, pixels[i, 0]), min(right, pixels[i, 2]) + 1):
                    place = (y - top) * tile + x - left
                    if not running[place]:
                        continue
                    square, t, _, _, _, length = _intersect(cx, cy, cz, rays[y, x, 0], rays[y, x, 1])
                    distance = np.sqrt(square)
                    if not distance < r:
                        continue
                    front = t - np.sqrt((r - distance) * (r + distance) / length)
                    if not near <= front <= far:
                        continue
                    met += 1
                    exponent = o * (far - front) / ((far - near) * gamma)
                    if exponent > scale[y, x]:
                        shrink = np.exp(scale[y, x] - exponent)
                        scale[y, x] = exponent
                        total[y, x] *= shrink
                        for c in range(channels + 1):
                            sums[place, c] *= shrink
                        for k in range(strongest):
                            weights[place, k] *= shrink
                    weight = o * (1.0 - distance / r) * np.exp(exponent - scale[y, x])
                    total[y, x] += weight
                    for c in range(channels):
                        sums[place, c] += weight * features[i, c]
                    sums[place, channels] += weight * front
                    k = strongest - 1
                    if weight > weights[place, k]:
                        while k > 0 and weight > weights[place, k - 1]:
                            weights[place, k] = weights[place, k - 1]
                            kept[y, x, k] = kept[y, x, k - 1]
                            k -= 1
                        weights[place, k] = weight
                        kept[y, x, k] = pair
            hits[pair] = met
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                place = (y - top) * tile + x - left
                for c in range(channels):
                    image[y, x, c] = sums[place, c] / total[y, x]
                depth[y, x] = sums[place, channels] / total[y, x]
                winner[y, x] = -1
                if weights[place, 0] > np.exp(floor - scale[y, x]):
                    winner[y, x] = lists.indices[kept[y, x, 0]]


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def backward(
    begin: int,
    stop: int,
    scene: Scene,
    lists: Lists,
    blending: Blending,
    found: Pixels,
    cotangents: Cotangents,
    out: Gradients,
) -> None:
    """Fill tiles ``begin`` to ``stop`` of ``out``: their pairs and exponents; add to the rays of their pixels."""
    centers, radii, opacity, features, _, rays = scene
    near, far, gamma, _, _, tracked = blending
    _, _, scale, total, kept, last, _, _ = found
    pixels, tile = lists.pixels, lists.tile
    grad_rays = out.rays
    height, width, channels = cotangents.image.shape
    for number in range(begin, stop):
        top, left = (number // lists.columns) * tile, (number % lists.columns) * tile
        bottom, right = min(top + tile, height) - 1, min(left + tile, width) - 1
        to_exponents = 0.0
        for pair in range(lists.offsets[number], lists.offsets[number + 1]):
            i = lists.indices[pair]
            cx, cy, cz = float(centers[i, 0]), float(centers[i, 1]), float(centers[i, 2])
            r, o = float(radii[i]), float(opacity[i])
            row = out.pairs[pair]
            row[:] = 0.0
            for y in range(max(top, pixels[i, 1]), min(bottom, pixels[i, 3]) + 1):
                for x in range(max(left, pixels[i, 0]), min(right, pixels[i, 2]) + 1):
                    if pair >= last[y, x]:
                        continue
                    vx, vy = float(rays[y, x, 0]), float(rays[y, x, 1])
                    square, t, px, py, pz, length = _intersect(cx, cy, cz, vx, vy)
                    distance = np.sqrt(square)
                    if not distance < r:
                        continue
                    half = np.sqrt((r - distance) * (r + distance) / length)
                    front = t - half
                    if not near <= front <= far:
                        continue
                    if tracked:
                        found_it = False
                        for k in range(kept.shape[2]):
                            found_it = found_it or kept[y, x, k] == pair
                        if not found_it:
                            continue
                    z = (far - front) / (far - near)
                    share = np.exp(o * z / gamma - scale[y, x]) / total[y, x]
                    closeness = 1.0 - distance / r
                    weight = o * closeness * share
                    value = cotangents.alpha[y, x] + cotangents.depth[y, x] * front - cotangents.mean[y, x]
                    for c in range(channels):
                        value += cotangents.image[y, x, c] * features[i, c]
                        row[5 + c] += weight * cotangents.image[y, x, c]
                    to_closeness = value * o * share
                    row[4] += value * closeness * share * (1.0 + o * z / gamma)
                    to_exponents += weight * value * o * z / gamma
                    to_front = weight * (cotangents.depth[y, x] - value * o / (gamma * (far - near)))
                    # b^2 = |p|^2, front = t - half, half^2 = (r^2 - b^2) / |v|^2.
                    chord = to_front / (half * length) if half > 0.0 else 0.0
                    row[3] += to_closeness * distance / r / r - chord * r
                    to_square = 0.5 * chord
                    if distance > 0.0:
                        to_square -= 0.5 * to_closeness / r / distance
                    along = to_front / length
                    row[0] += 2.0 * to_square * px + along * vx
                    row[1] += 2.0 * to_square * py + along * vy
                    row[2] += 2.0 * to_square * pz + along
                    across = along - 2.0 * to_square * t
                    back = along * (half - t)
                    grad_rays[y, x, 0] += across * px + back * vx
                    grad_rays[y, x, 1] += across * py + back * vy
                    grad_rays[y, x, 2] += across * pz + back
        out.exponents[number] = to_exponents


@numba.njit(cache=True, nogil=True)
def add_up(begin: int, stop: int, order: Any, starts: Any, pairs: Any, out: Any) -> None:
    """Fill rows ``begin`` to ``stop`` of ``out [n, 5 + C]``: each the sum of the rows of ``pairs`` of one sphere.

    The pairs of sphere ``i`` are ``order[starts[i] : starts[i + 1]]``, by tile; they are added in that order.
    """
    for i in range(begin, stop):
        for c in range(out.shape[1]):
            added = 0.0
            for place in range(starts[i], starts[i + 1]):
                added += pairs[order[place], c]
            out[i, c] = added


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _intersect(cx: float, cy: float, cz: float, vx: float, vy: float) -> Any:
    """Return ``(b^2, t, px, py, pz, |v|^2)`` of a ray ``(vx, vy, 1)`` and a centre: ``p = c - t v`` is orthogonal."""
    square = vx * vx + vy * vy + 1.0
    t = (cx * vx + cy * vy + cz) / square
    px, py, pz = cx - t * vx, cy - t * vy, cz - t
    return px * px + py * py + pz * pz, t, px, py, pz, square
