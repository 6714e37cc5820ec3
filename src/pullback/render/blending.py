"""Blending of spheres in plain torch, on any device: the truth of the compiled kernel, and its stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.core.transforms import is_transformed
from pullback.render.tiles import TileLists

__all__ = ["BACKGROUND_DEPTH", "Blending", "Item", "Pixels", "blend_everywhere", "blend_in_tiles", "intersections"]

BACKGROUND_DEPTH = 1e-6
"""The epsilon of the blending: the background's normalised depth."""

CHUNK = 1 << 18
"""Pairs of a pixel and a sphere that are in memory at a time."""


class Blending(NamedTuple):
    """How to blend: the options of :func:`pullback.render.render_spheres`."""

    near: float
    far: float
    gamma: float | Tensor
    track: int | None
    allowed: float


class Item(NamedTuple):
    """One scene of a batch, in the axes of its camera, with the rays of its pixels (of one unit of depth)."""

    centers: Float[Tensor, "n 3"]
    radii: Float[Tensor, "n"]
    opacity: Float[Tensor, "n"]
    features: Float[Tensor, "n channels"]
    background: Float[Tensor, "channels"]
    rays: Float[Tensor, "height width 3"]


class Pixels(NamedTuple):
    """The image of one item; ``strongest`` is -1 for the background, ``hits`` counts the pixels that meet a sphere."""

    image: Float[Tensor, "height width channels"]
    alpha: Float[Tensor, "height width"]
    depth: Float[Tensor, "height width"]
    strongest: Int[Tensor, "height width"]
    hits: Int[Tensor, "n"]


def blend_everywhere(item: Item, options: Blending) -> Pixels:
    """Blend every sphere at every pixel, some pixels at a time."""
    scene, rays = item[:5], item.rays
    height, width, _ = rays.shape
    n = len(item.radii)
    if n == 0:
        return _background(item, options)
    blocks = [
        _recomputed(rays.numel() // 3 * n > CHUNK, part, *scene, options)
        for part in rays.flatten(0, 1).split(max(1, CHUNK // n))
    ]
    hits = torch.stack([block[4].sum(0) for block in blocks]).sum(0)
    image, alpha, depth, strongest = (
        torch.cat(values).unflatten(0, (height, width)) for values in zip(*(b[:4] for b in blocks), strict=True)
    )
    return Pixels(image, alpha, depth, strongest, hits)


def blend_in_tiles(item: Item, lists: TileLists, options: Blending) -> Pixels:
    """Blend at each pixel the spheres of its tile, some tiles at a time: the work grows with what is seen.

    Tiles of like length go together, and shorter lists are filled up with a sphere behind the camera.
    """
    n = len(item.radii)
    if n == 0:
        return _background(item, options)
    behind = item.centers.new_tensor([[0.0, 0.0, -1.0]])
    scene = (
        torch.cat([item.centers, behind]),
        *(torch.cat([t, t.new_ones(1, *t.shape[1:])]) for t in (item.radii, item.opacity, item.features)),
    )
    rays, inside = _by_tile(item.rays, lists)
    lengths = lists.offsets.diff()
    order = torch.argsort(lengths, descending=True, stable=True)
    blocks, hits = [], lengths.new_zeros(n + 1)
    for tiles in _chunks(order, lengths, rays.shape[1]):
        place = torch.arange(max(1, int(lengths[tiles[0]])), device=order.device)
        pair = (lists.offsets[tiles, None] + place).clamp(max=max(0, len(lists.indices) - 1))
        filled = place < lengths[tiles, None]
        members = torch.where(filled, lists.indices[pair], n) if len(lists.indices) else torch.full_like(pair, n)
        parts = (t[members] for t in scene)
        image, alpha, depth, strongest, hit = _recomputed(
            len(lists.indices) * rays.shape[1] > CHUNK, rays[tiles], *parts, item.background, options
        )
        best = members.gather(-1, strongest.clamp(min=0))
        blocks.append((image, alpha, depth, torch.where(strongest < 0, -1, best)))
        count = (hit & inside[tiles, :, None]).sum(1)
        hits = hits.index_add(0, members.flatten(), count.flatten())
    back = torch.argsort(order)
    size = (item.rays.shape[0], item.rays.shape[1])
    image, alpha, depth, strongest = (
        _as_image(torch.cat(values)[back], lists, size) for values in zip(*blocks, strict=True)
    )
    return Pixels(image, alpha, depth, strongest, hits[:n])


def intersections(
    rays: Float[Tensor, "*tiles pixels 3"],
    centers: Float[Tensor, "*tiles n 3"],
    radii: Float[Tensor, "*tiles n"],
    near: float,
    far: float,
) -> tuple[Float[Tensor, "*tiles pixels n"], Float[Tensor, "*tiles pixels n"], Bool[Tensor, "*tiles pixels n"]]:
    """Return the depth of the first point, the distance to the centre over the radius, and where a ray meets a sphere.

    With the ray ``s v``, ``v_z = 1``: ``t = c·v / |v|^2`` is the depth of the nearest point to the centre,
    ``b = |c - t v|`` its distance, ``t - sqrt((r^2 - b^2) / |v|^2)`` the depth of the first point on a sphere. Where a
    ray misses, both are constants without gradient.
    """
    radii = radii[..., None, :]
    square = rays.square().sum(-1, keepdim=True)
    t = rays @ centers.mT / square
    across = [c[..., None, :] - t * v[..., None] for c, v in zip(centers.unbind(-1), rays.unbind(-1), strict=True)]
    b_square = across[0].square() + across[1].square() + across[2].square()
    b = torch.where(b_square > 0, torch.where(b_square > 0, b_square, 1.0).sqrt(), 0.0)
    inside = b < radii
    b = torch.where(inside, b, 0.0)
    # (r - b)(r + b) loses no digits at the silhouette; it is at least the smallest number, so its root has a slope.
    half = ((radii - b) * (radii + b) / square).clamp(min=torch.finfo(b.dtype).tiny).sqrt()
    front = torch.where(inside, t - half, far)
    hit = inside & (front >= near) & (front <= far)
    return torch.where(hit, front, far), torch.where(hit, b / radii, 1.0), hit


def _blend(
    rays: Tensor,
    centers: Tensor,
    radii: Tensor,
    opacity: Tensor,
    features: Tensor,
    background: Tensor,
    options: Blending,
) -> tuple[Tensor, ...]:
    """Return image ``[*tiles, pixels, c]``, alpha, depth, strongest ``[*tiles, pixels]``, hits ``[*tiles, pixels, n]``.

    ``rays [*tiles, pixels, 3]``, of the spheres ``[*tiles, n, ...]``; ``background [c]``.
    """
    front, ratio, hit = intersections(rays, centers, radii, options.near, options.far)
    floor = torch.as_tensor(BACKGROUND_DEPTH / options.gamma, dtype=front.dtype, device=front.device)
    opacity = opacity[..., None, :]
    exponent = opacity * (options.far - front) / ((options.far - options.near) * options.gamma)
    top = torch.maximum(exponent.detach().amax(-1), floor.detach())
    weight = opacity * (1 - ratio) * (exponent - top[..., None]).exp()
    ground = (floor - top).exp()
    best, index = weight.detach().max(-1)
    strongest = torch.where(best > ground, index, -1)
    tracked = None
    if options.track is not None and options.track < weight.shape[-1]:
        chosen = torch.topk(weight.detach(), options.track, dim=-1).indices
        tracked = torch.zeros_like(weight, dtype=torch.bool).scatter(-1, chosen, True)
        weight = torch.where(tracked, weight, weight.detach())
        front = torch.where(tracked, front, front.detach())
    # Shares first: a sum of weights times the largest features would overflow.
    total = weight.sum(-1) + ground
    share, ground = weight / total[..., None], ground / total
    if tracked is None:
        blended = share @ features
    else:
        moving, fixed = torch.where(tracked, share, 0.0), torch.where(tracked, 0.0, share)
        blended = moving @ features + fixed @ features.detach()
    depth = (share * front).sum(-1) + ground * options.far
    return blended + ground[..., None] * background, share.sum(-1), depth, strongest, hit


def _recomputed(large: bool, *arguments: Any) -> tuple[Tensor, ...]:
    """Return ``_blend(*arguments)``; large work is done again in the backward pass, so that one piece is in memory."""
    again = large and torch.is_grad_enabled() and not any(is_transformed(a) for a in arguments if isinstance(a, Tensor))
    blended: tuple[Tensor, ...] = checkpoint(_blend, *arguments, use_reentrant=False) if again else _blend(*arguments)
    return blended


def _background(item: Item, options: Blending) -> Pixels:
    """The image of no spheres."""
    height, width, _ = item.rays.shape
    zero = torch.zeros_like(item.rays[..., 0])
    hits = zero.new_zeros(0, dtype=torch.int64)
    return Pixels(item.background.expand(height, width, -1), zero, zero + options.far, zero.long() - 1, hits)


def _chunks(order: Tensor, lengths: Tensor, pixels: int) -> Iterator[Tensor]:
    """Cut ``order``, by falling length, into parts of at most ``CHUNK`` pairs when filled up to their longest."""
    begin = 0
    while begin < len(order):
        longest = max(1, int(lengths[order[begin]]))
        end = begin + max(1, CHUNK // (longest * pixels))
        yield order[begin:end]
        begin = end


def _by_tile(rays: Tensor, lists: TileLists) -> tuple[Tensor, Tensor]:
    """Return rays ``[tiles, tile * tile, 3]`` and whether a place is inside the image, ``[tiles, tile * tile]``."""
    (rows, columns), tile = lists.shape, lists.tile
    height, width, _ = rays.shape
    y = torch.arange(rows * tile, device=rays.device)
    x = torch.arange(columns * tile, device=rays.device)
    inside = (y < height)[:, None] & (x < width)
    filled = rays[y.clamp(max=height - 1)][:, x.clamp(max=width - 1)]
    by_tile, inside = (
        t.unflatten(0, (rows, tile)).unflatten(2, (columns, tile)).transpose(1, 2).flatten(0, 1).flatten(1, 2)
        for t in (filled, inside)
    )
    return by_tile, inside


def _as_image(values: Tensor, lists: TileLists, size: tuple[int, int]) -> Tensor:
    """Return ``values [tiles, tile * tile, ...]`` as ``[height, width, ...]``."""
    (rows, columns), tile = lists.shape, lists.tile
    grid = values.unflatten(1, (tile, tile)).unflatten(0, (rows, columns)).transpose(1, 2)
    return grid.flatten(2, 3).flatten(0, 1)[: size[0], : size[1]]
