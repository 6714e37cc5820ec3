"""Blending of spheres by the compiled kernel: its autograd function."""

from __future__ import annotations

from typing import Any

import torch

from pullback.core.shapes import Tensor
from pullback.render.blending import BACKGROUND_DEPTH, Blending, Item, Pixels, blend_in_tiles
from pullback.render.tiles import TileLists

__all__ = ["blend_compiled"]


def blend_compiled(item: Item, lists: TileLists, options: Blending) -> Pixels:
    """Blend at each pixel the spheres of its tile. Second derivatives are those of :func:`blend_in_tiles`."""
    gamma = None
    if isinstance(options.gamma, Tensor):
        gamma, options = options.gamma, options._replace(gamma=options.gamma.item())
    return Pixels(*_Blend.apply(*item, gamma, lists, options))


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        from pullback.kernels import spheres

        *tensors, gamma, lists, options = arguments
        item = Item(*tensors)
        height, width, _ = item.rays.shape
        image, depth = item.rays.new_empty(height, width, item.features.shape[1]), item.rays.new_empty(height, width)
        scale, total = (torch.empty(height, width, dtype=torch.float64) for _ in range(2))
        kept = torch.empty(height, width, options.track or 1, dtype=torch.int64)
        last, strongest = (torch.empty(height, width, dtype=torch.int64) for _ in range(2))
        pair_hits = torch.zeros(len(lists.indices), dtype=torch.int64)
        given = _given(item, lists, options)
        out = spheres.Pixels(*_arrays(image, depth, scale, total, kept, last, strongest, pair_hits))
        spheres.in_parallel(lambda begin, stop: spheres.forward(begin, stop, *given, out), len(lists.offsets) - 1)

        alpha = (1 - (given[2].floor - scale).exp() / total).to(image.dtype)
        hits = torch.zeros(len(item.radii), dtype=torch.int64).index_add_(0, lists.indices, pair_hits)
        ctx.lists, ctx.options, ctx.given, ctx.learns_gamma = lists, options, given, gamma is not None
        found = (image, alpha, depth, scale, total, kept, last, strongest, pair_hits)
        ctx.save_for_backward(*item, *([] if gamma is None else [gamma]), *found)
        ctx.mark_non_differentiable(strongest, hits)
        return image, alpha, depth, strongest, hits

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        item = Item(*ctx.saved_tensors[:6])
        gamma = ctx.saved_tensors[6] if ctx.learns_gamma else None
        if torch.is_grad_enabled():
            again = _again(item, gamma, ctx.lists, ctx.options, cotangents[:3], ctx.needs_input_grad[:7])
            return *again, None, None
        found = ctx.saved_tensors[6 + ctx.learns_gamma :]
        *to_item, to_gamma = _gradients(item, gamma, ctx.lists, ctx.given, found, cotangents[:3])
        return *to_item, to_gamma, None, None


def _gradients(
    item: Item,
    gamma: Tensor | None,
    lists: TileLists,
    given: tuple[Any, Any, Any],
    found: tuple[Tensor, ...],
    cotangents: tuple[Tensor, ...],
) -> list[Tensor | None]:
    """Return the gradients to the fields of ``item`` and to ``gamma``, by the kernel."""
    from pullback.kernels import spheres

    image, alpha, depth, scale, total, kept, last, strongest, pair_hits = found
    to_image, to_alpha, to_depth = (g.contiguous().resolve_neg() for g in cotangents)
    mean = (to_image.double() * image).sum(-1) + to_alpha.double() * alpha + to_depth.double() * depth
    pairs = torch.empty(len(lists.indices), 5 + image.shape[-1], dtype=torch.float64)
    to_rays = torch.zeros_like(item.rays, dtype=torch.float64, memory_format=torch.contiguous_format)
    to_exponents = torch.empty(len(lists.offsets) - 1, dtype=torch.float64)
    walked = spheres.Pixels(*_arrays(image, depth, scale, total, kept, last, strongest, pair_hits))
    weights = spheres.Cotangents(*_arrays(to_image, to_alpha, to_depth, mean))
    out = spheres.Gradients(*_arrays(pairs, to_rays, to_exponents))
    spheres.in_parallel(
        lambda begin, stop: spheres.backward(begin, stop, *given, walked, weights, out), len(to_exponents)
    )
    order = torch.argsort(lists.indices, stable=True)
    ends = torch.bincount(lists.indices, minlength=len(item.radii)).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends])
    sums = torch.empty(len(item.radii), pairs.shape[1], dtype=torch.float64)
    arrays = _arrays(order, starts, pairs, sums)
    spheres.in_parallel(lambda begin, stop: spheres.add_up(begin, stop, *arrays), len(sums))

    blending = given[2]
    ground = (blending.floor - scale).exp() / total
    to_background = (ground[..., None] * to_image).sum((0, 1))
    to_gamma = None
    if gamma is not None:
        value = (to_image.double() * item.background).sum(-1) + to_depth.double() * blending.far - mean
        to_gamma = (-(to_exponents.sum() + blending.floor * (ground * value).sum()) / blending.gamma).to(gamma)
    gradients = (sums[:, :3], sums[:, 3], sums[:, 4], sums[:, 5:], to_background, to_rays)
    return [*(g.to(image.dtype) for g in gradients), to_gamma]


def _again(
    item: Item,
    gamma: Tensor | None,
    lists: TileLists,
    options: Blending,
    cotangents: tuple[Tensor, ...],
    needed: tuple[bool, ...],
) -> list[Tensor | None]:
    """Return the gradients with a graph of their own, in plain torch."""
    blended = blend_in_tiles(item, lists, options if gamma is None else options._replace(gamma=gamma))
    inputs = [t for t, wanted in zip((*item, gamma), needed, strict=True) if wanted and t is not None]
    found = iter(torch.autograd.grad(blended[:3], inputs, cotangents, create_graph=True))
    return [next(found) if wanted else None for wanted in needed]


def _given(item: Item, lists: TileLists, options: Blending) -> tuple[Any, Any, Any]:
    """What both passes of the kernel are given."""
    from pullback.kernels import spheres

    gamma = float(options.gamma)
    offsets, indices, pixels = _arrays(lists.offsets, lists.indices, lists.pixels)
    return (
        spheres.Scene(*_arrays(*(t.detach().contiguous().resolve_neg() for t in item))),
        spheres.Lists(offsets, indices, pixels, lists.shape[1], lists.tile),
        spheres.Blending(
            options.near, options.far, gamma, BACKGROUND_DEPTH / gamma, options.allowed, options.track is not None
        ),
    )


def _arrays(*tensors: Tensor) -> list[Any]:
    return [t.numpy() for t in tensors]
