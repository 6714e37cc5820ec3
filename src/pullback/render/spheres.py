"""Rendering of spheres that is differentiable in everything: Pulsar's depth-weighted blending."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from pullback.core.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_range,
    check_shape,
)
from pullback.core.shapes import Float, Int, Tensor
from pullback.core.transforms import is_transformed
from pullback.geometry import Camera
from pullback.kernels.compiled import compiled
from pullback.render.result import Rendered
from pullback.render.tiles import TileLists, tile_primitives

__all__ = ["ZBuffer", "render_spheres", "zbuffer_spheres"]

_BACKGROUND_DEPTH = 1e-6
"""The epsilon of the blending: the background's normalised depth."""

_CHUNK = 1 << 18
"""Pairs of a pixel and a sphere that the reference holds at a time."""


class _Options(NamedTuple):
    near: float
    far: float
    gamma: float
    track: int | None
    allowed: float


class ZBuffer(NamedTuple):
    """What an opaque rendering sees.

    Attributes:
        nearest: ``[*batch, height, width]`` int64: the sphere that a pixel's ray meets first, -1 where it meets none.
        depth: ``[*batch, height, width]`` of the point met, metres; the far end of the range where there is none.
    """

    nearest: Int[Tensor, "*batch height width"]
    depth: Float[Tensor, "*batch height width"]


def render_spheres(
    centers: Float[Tensor, "*#batch n 3"],
    radii: Float[Tensor, "*#batch n"],
    features: Float[Tensor, "*#batch n channels"],
    camera: Camera,
    *,
    gamma: float = 1e-2,
    opacity: Float[Tensor, "*#batch n"] | None = None,
    background: Float[Tensor, "*#batch channels"] | None = None,
    depth_range: tuple[float, float],
    track: int | None = None,
    allowed_difference: float = 0.0,
    method: str | None = None,
) -> Rendered:
    """Blend the features of spheres into an image.

    The weights of spheres and of the background at a pixel are

    ``w_i = o_i d_i exp(o_i z_i / gamma) / s``, ``w_b = exp(eps / gamma) / s``,
    ``s = exp(eps / gamma) + sum_k o_k d_k exp(o_k z_k / gamma)``

    with ``z_i`` the depth of the first point of sphere ``i`` on the pixel's ray, 1 at the near plane and 0 at the far
    plane; ``d_i = 1 - min(1, distance(ray, center_i) / radius_i)``, 0 where the ray misses; ``eps = 1e-6``. Coverage
    falls continuously to 0 at the silhouette, so there is no boundary term: this is the whole gradient. A point outside
    ``depth_range`` is clipped, which is the one discontinuity. A sphere smaller than a pixel may fall between the rays.

    Differentiable in centres, radii, features, opacity, background and the camera's pose and intrinsics.

    Args:
        centers: ``[*batch, n, 3]`` metres, in the world.
        radii: ``[*batch, n]`` metres, > 0.
        features: ``[*batch, n, channels]`` any number of channels; colours in [0, 1] give an image.
        camera: with any batch shape that broadcasts with the others.
        gamma: softness in [1e-5, 1]: 1 is transparent, with gradients to every sphere on the ray, 1e-5 an opaque
            z-buffer. It is the temperature of the choice of the nearest sphere.
        opacity: ``[*batch, n]`` in [0, 1]; by default 1.
        background: ``[*batch, channels]``; by default 0.
        depth_range: the near and far planes, metres, 0 <= near < far.
        track: how many of the strongest spheres of a pixel receive its gradient (the paper: 5); by default all.
        allowed_difference: in [0, 1). Where the spheres behind cannot take more than this share of a pixel from those
            in front, the kernel leaves them out. 0 is exact. The reference is always exact.
        method: ``"kernel"`` (compiled, CPU; first derivatives) or ``"reference"`` (plain torch, every sphere at every
            pixel; any device, double backward, forward mode, vmap); by default the kernel where it can be used.

    Returns:
        A :class:`Rendered`; ``depth`` is ``sum_i w_i depth_i + w_b far``; ``extras`` has ``"strongest"``
        ``[*batch, height, width]`` (the sphere of the largest weight; -1: the background's is larger) and ``"hits"``
        ``[*batch, n]`` (the pixels whose rays meet the sphere; 0 for one that is out of sight or range).

    Raises:
        TypeError: a tensor is not floating.
        ValueError: ``gamma``, ``radii``, ``opacity``, ``depth_range``, ``track``, ``allowed_difference``, ``method`` or
            a shape is not as said, a centre is not finite, or the kernel was asked for where it cannot run.

    Example:
        >>> red_before_green = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> centers = torch.tensor([[0.0, 0.0, 2.0], [0.0, 0.0, 3.0]], requires_grad=True)
        >>> camera = Camera.pinhole(10.0, (1, 1))
        >>> out = render_spheres(centers, torch.ones(2), red_before_green, camera, gamma=0.02, depth_range=(0.5, 5.0))
        >>> [round(value, 3) for value in out.image.flatten().tolist()]
        [1.0, 0.0, 0.0]
        >>> out.extras["strongest"].item()
        0

    References:
        Lassner, Zollhoefer (CVPR 2021), Pulsar: efficient sphere-based neural rendering, equation 1; the depth is taken
        along the optical axis. Milakov, Gimelshein (2018), Online normalizer calculation for softmax.
    """
    options = _checked_options(gamma, depth_range, track, allowed_difference)
    tensors = _checked(centers, radii, features, opacity, background, camera)
    centers, radii, opacity_, features, background_ = tensors
    inputs = (*tensors, camera.intrinsics, camera.camera_from_world)
    chosen = _method(method, inputs)
    dtype = features.dtype
    if dtype in (torch.float16, torch.bfloat16):
        centers, radii, opacity_, features, background_ = (t.float() for t in tensors)
        camera = camera.to(torch.float32)

    batch = torch.broadcast_shapes(
        centers.shape[:-2], radii.shape[:-1], opacity_.shape[:-1], features.shape[:-2], background_.shape[:-1],
        camera.batch_shape,
    )  # fmt: skip
    seen = camera.transform(centers)
    rays = camera.pixel_directions()
    parts = _items(batch, (seen, 2), (radii, 1), (opacity_, 1), (features, 2), (background_, 1), (rays, 3))
    render: Callable[..., tuple[Tensor, ...]] = _reference if chosen == "reference" else _compiled
    items = [render(*item, options) for item in zip(*(p.unbind(0) for p in parts), strict=True)]
    image, alpha, depth, strongest, hits = (
        torch.stack(values).reshape(*batch, *values[0].shape) if items else _nothing(batch, camera.size, parts, place)
        for place, values in enumerate(zip(*items, strict=True) if items else [()] * 5)
    )
    return Rendered(
        image.movedim(-1, -3).to(dtype),
        alpha.unsqueeze(-3).to(dtype),
        depth.unsqueeze(-3).to(dtype),
        {"strongest": strongest, "hits": hits},
    )


def zbuffer_spheres(
    centers: Float[Tensor, "*#batch n 3"],
    radii: Float[Tensor, "*#batch n"],
    camera: Camera,
    *,
    depth_range: tuple[float, float],
) -> ZBuffer:
    """Return the first sphere on the ray of each pixel: the hard operation to which rendering tends as gamma goes to 0.

    Args:
        centers: ``[*batch, n, 3]`` metres, in the world.
        radii: ``[*batch, n]`` metres, > 0.
        camera: with any batch shape that broadcasts with the others.
        depth_range: the near and far planes, metres, 0 <= near < far.

    Returns:
        A :class:`ZBuffer`, without gradient.

    Raises:
        TypeError: a tensor is not floating.
        ValueError: ``radii`` or ``depth_range`` or a shape is not as said.

    Example:
        >>> centers = torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 2.0]])
        >>> seen = zbuffer_spheres(centers, torch.ones(2), Camera.pinhole(10.0, (1, 1)), depth_range=(0.5, 5.0))
        >>> seen.nearest.item(), seen.depth.item()
        (1, 1.0)
    """
    options = _checked_options(1.0, depth_range, None, 0.0)
    tensors = _checked(centers, radii, centers, None, None, camera)
    with torch.no_grad():
        seen = camera.transform(tensors[0])
        batch = torch.broadcast_shapes(seen.shape[:-2], radii.shape[:-1], camera.batch_shape)
        parts = _items(batch, (seen, 2), (radii, 1), (camera.pixel_directions(), 3))
        indices, depths = [], []
        for points, radius, rays in zip(*(p.unbind(0) for p in parts), strict=True):
            for part in rays.flatten(0, 1).split(max(1, _CHUNK // max(1, len(points)))):
                front, _, hit = _intersections(part, points, radius, options)
                # The plane at the far end stands for "nothing", also where there are no spheres at all.
                none = front.new_full((len(part), 1), options.far)
                depth, index = torch.cat([none, torch.where(hit, front, torch.inf)], -1).min(-1)
                indices.append(index - 1)
                depths.append(depth)
        shape = (*batch, *camera.size)
        empty = seen.new_zeros(0)
        return ZBuffer(torch.cat([empty.long(), *indices]).view(shape), torch.cat([empty, *depths]).view(shape))


def _checked_options(gamma: float, depth_range: tuple[float, float], track: int | None, allowed: float) -> _Options:
    check_range("gamma", gamma, 1e-5, 1.0)
    near, far = depth_range
    if not (0 <= near < far < math.inf):
        raise ValueError(f"depth_range must be (near, far) with 0 <= near < far, got {depth_range}")
    if track is not None:
        check_integer("track", track, 1)
    check_range("allowed_difference", allowed, 0.0, 1.0)
    if allowed == 1.0:
        raise ValueError("allowed_difference must be < 1, got 1.0")
    return _Options(float(near), float(far), float(gamma), track, float(allowed))


def _checked(
    centers: Tensor, radii: Tensor, features: Tensor, opacity: Tensor | None, background: Tensor | None, camera: Camera
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return centres, radii, opacity, features, background, all there and valid."""
    check_shape("centers", check_floating("centers", centers), (None, 3))
    n = centers.shape[-2]
    check_shape("radii", check_floating("radii", radii), (n,))
    check_shape("features", check_floating("features", features), (n, None))
    if opacity is None:
        opacity = torch.ones_like(radii)
    check_shape("opacity", check_floating("opacity", opacity), (n,))
    if background is None:
        background = features.new_zeros(features.shape[-1])
    check_shape("background", check_floating("background", background), (features.shape[-1],))
    if not isinstance(camera, Camera):
        raise TypeError(f"camera must be a pullback.geometry.Camera, got {type(camera).__name__}")
    tensors = (centers, radii, opacity, features, background)
    named = zip(("radii", "opacity", "features", "background"), tensors[1:], strict=True)
    for name, value in (*named, ("camera", camera.camera_from_world), ("camera", camera.intrinsics)):
        if (value.dtype, value.device) != (centers.dtype, centers.device):
            wanted = f"{centers.dtype} on {centers.device}"
            raise ValueError(f"{name} must be {wanted} as centers is, got {value.dtype} on {value.device}")
    if not any(map(is_transformed, tensors)):  # values can be looked at
        check_finite("centers", centers)
        if n:
            check_positive("radii", radii)
        if not bool(((opacity >= 0) & (opacity <= 1)).all()):
            low, high = opacity.min().item(), opacity.max().item()
            raise ValueError(f"opacity must be in [0, 1] everywhere, got {low} to {high}")
    return tensors


def _method(method: str | None, inputs: tuple[Tensor, ...]) -> str:
    """Return the way to render: ``"reference"`` or ``"kernel"``."""
    if method is not None:
        check_choice("method", method, ("kernel", "reference"))
    obstacle = None
    if any(map(is_transformed, inputs)):
        obstacle = "it has no rule for torch.func transforms, forward mode and torch.compile"
    elif inputs[0].device.type != "cpu":
        obstacle = f"it runs on the CPU, and the tensors are on {inputs[0].device}"
    elif compiled() is None:
        obstacle = "it needs numba (pip install 'pullback[kernels]')"
    if method == "kernel" and obstacle:
        raise ValueError(f"method 'kernel' cannot be used here: {obstacle}; use method='reference'")
    return method or ("reference" if obstacle else "kernel")


def _items(batch: torch.Size, *tensors: tuple[Tensor, int]) -> list[Tensor]:
    """Return every tensor ``[*some batch, *own]`` as ``[items, *own]``; ``own`` comes as its number of dimensions."""
    return [
        t.expand(*batch, *t.shape[t.ndim - own :]).reshape(batch.numel(), *t.shape[t.ndim - own :])
        for t, own in tensors
    ]


def _nothing(batch: torch.Size, size: tuple[int, int], parts: list[Tensor], place: int) -> Tensor:
    """The parts of a result for a batch without items."""
    shapes = ((*size, parts[3].shape[-1]), size, size, size, (parts[0].shape[-2],))
    return torch.zeros((*batch, *shapes[place]), dtype=torch.int64 if place > 2 else parts[0].dtype)


# Plain torch


def _intersections(rays: Tensor, centers: Tensor, radii: Tensor, options: _Options) -> tuple[Tensor, Tensor, Tensor]:
    """Return the depth of the first point and the distance to the centre over the radius, and where a ray meets.

    All ``[pixels, n]``. With the ray ``s v``, ``v_z = 1``: ``t = c·v / |v|^2`` is the depth of the nearest point to the
    centre, ``b = |c - t v|`` its distance, ``t - sqrt((r^2 - b^2) / |v|^2)`` the depth of the first point on a sphere.
    Where a ray misses, both are constants without gradient.
    """
    square = rays.square().sum(-1, keepdim=True)
    t = rays @ centers.mT / square
    across = [c - t * v[:, None] for c, v in zip(centers.unbind(-1), rays.unbind(-1), strict=True)]
    b_square = across[0].square() + across[1].square() + across[2].square()
    b = torch.where(b_square > 0, torch.where(b_square > 0, b_square, 1.0).sqrt(), 0.0)
    inside = b < radii
    b = torch.where(inside, b, 0.0)
    # (r - b)(r + b) loses no digits at the silhouette; it is at least the smallest number, so its root has a slope.
    half = ((radii - b) * (radii + b) / square).clamp(min=torch.finfo(b.dtype).tiny).sqrt()
    front = torch.where(inside, t - half, options.far)
    hit = inside & (front >= options.near) & (front <= options.far)
    return torch.where(hit, front, options.far), torch.where(hit, b / radii, 1.0), hit


def _blend(
    rays: Tensor,
    centers: Tensor,
    radii: Tensor,
    opacity: Tensor,
    features: Tensor,
    background: Tensor,
    options: _Options,
) -> tuple[Tensor, ...]:
    """Return image ``[pixels, c]``, alpha, depth, strongest ``[pixels]`` and hits ``[pixels, n]``."""
    front, ratio, hit = _intersections(rays, centers, radii, options)
    floor = _BACKGROUND_DEPTH / options.gamma
    exponent = opacity * (options.far - front) / ((options.far - options.near) * options.gamma)
    top = exponent.detach().amax(-1, keepdim=True).clamp(min=floor)
    weight = opacity * (1 - ratio) * (exponent - top).exp()
    ground = (floor - top[:, 0]).exp()
    total = (weight.sum(-1) + ground)[:, None]
    if options.track is not None and options.track < weight.shape[-1]:
        chosen = torch.topk(weight.detach(), options.track, dim=-1).indices
        tracked = torch.zeros_like(weight, dtype=torch.bool).scatter(-1, chosen, True)
        weight = torch.where(tracked, weight, weight.detach())
        total = (weight.sum(-1) + ground)[:, None]
        front = torch.where(tracked, front, front.detach())
        moving, fixed = torch.where(tracked, weight, 0.0), torch.where(tracked, 0.0, weight)
        blended = moving @ features + fixed @ features.detach()
    else:
        blended = weight @ features
    image = (blended + ground[:, None] * background) / total
    alpha = weight.sum(-1) / total[:, 0]
    depth = ((weight * front).sum(-1) + ground * options.far) / total[:, 0]
    best, index = weight.detach().max(-1)
    return image, alpha, depth, torch.where(best > ground, index, -1), hit


def _reference(
    centers: Tensor,
    radii: Tensor,
    opacity: Tensor,
    features: Tensor,
    background: Tensor,
    rays: Tensor,
    options: _Options,
) -> tuple[Tensor, ...]:
    """Render one item in plain torch, some pixels at a time."""
    height, width, _ = rays.shape
    n = centers.shape[-2]
    if n == 0:
        image = background.expand(height, width, -1)
        zero = rays[..., 0].detach() * 0
        return image, zero, zero + options.far, zero.long() - 1, zero.new_zeros(0, dtype=torch.int64)
    scene = (centers, radii, opacity, features, background)
    parts = rays.flatten(0, 1).split(max(1, _CHUNK // n))
    # Each part is computed again in the backward pass, so that only one is in memory at a time.
    again = len(parts) > 1 and torch.is_grad_enabled() and not any(map(is_transformed, (*scene, rays)))
    blocks = []
    hits: Tensor | int = 0
    for part in parts:
        if again:
            block = checkpoint(_blend, part, *scene, options, use_reentrant=False)
        else:
            block = _blend(part, *scene, options)
        blocks.append(block[:4])
        hits = hits + block[4].sum(0)
    image, alpha, depth, strongest = (torch.cat(values).unflatten(0, (height, width)) for values in zip(*blocks))
    return image, alpha, depth, strongest, hits  # type: ignore[return-value]


# Compiled


def _boxes(centers: Tensor, radii: Tensor, rays: Tensor) -> Tensor:
    """Return pixel boxes ``[n, 4]`` around spheres in the camera's axes; the whole image where one is not in front.

    In the plane of x and z the lines through the origin that touch the circle have the slopes
    ``(x z ± r sqrt(x^2 + z^2 - r^2)) / (z^2 - r^2)``; a pixel's slope is linear in its place.
    """
    height, width, _ = rays.shape
    centers, radii, rays = centers.double(), radii.double(), rays.double()
    z = centers[:, 2]
    front = z > radii
    lows, highs = [], []
    for axis in (0, 1):
        x = centers[:, axis]
        reach = radii * (x.square() + z.square() - radii.square()).clamp(min=0).sqrt()
        scale = torch.where(front, (z - radii) * (z + radii), 1.0)
        lows.append((x * z - reach) / scale)
        highs.append((x * z + reach) / scale)
    # Slopes of a pixel: the first row and column of rays give the linear map, with a skew in x along the rows.
    origin = rays[0, 0]
    step_x = float(rays[0, -1, 0] - origin[0]) / max(width - 1, 1)
    step_y = float(rays[-1, 0, 1] - origin[1]) / max(height - 1, 1)
    shear = float(rays[-1, 0, 0] - origin[0]) / max(height - 1, 1)
    infinite = torch.full_like(z, math.inf)

    def places(low: Tensor, high: Tensor, start: Tensor | float, step: float) -> tuple[Tensor, Tensor]:
        if step == 0:  # one pixel in this direction
            return -infinite, infinite
        a, b = (low - start) / step, (high - start) / step
        # A hundredth of a pixel more: the rays are rounded.
        return torch.minimum(a, b) + 0.49, torch.maximum(a, b) + 0.51

    top, bottom = places(lows[1], highs[1], origin[1], step_y)
    slant = shear * torch.tensor([0.0, height - 1.0])
    left, right = places(lows[0] - slant.max(), highs[0] - slant.min(), origin[0], step_x)
    whole = torch.stack([-infinite, -infinite, infinite, infinite], -1)
    return torch.where(front[:, None], torch.stack([left, top, right, bottom], -1), whole)


def _compiled(
    centers: Tensor,
    radii: Tensor,
    opacity: Tensor,
    features: Tensor,
    background: Tensor,
    rays: Tensor,
    options: _Options,
) -> tuple[Tensor, ...]:
    """Render one item with the compiled kernel."""
    with torch.no_grad():
        depths = centers[:, 2] - radii
        boxes = _boxes(centers, radii, rays)
        boxes = torch.where((depths > options.far)[:, None], torch.nan, boxes)
        lists = tile_primitives(boxes, depths.double(), (rays.shape[0], rays.shape[1]))
    result: tuple[Tensor, ...] = _Spheres.apply(centers, radii, opacity, features, background, rays, lists, options)
    return result


class _Spheres(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        centers: Tensor,
        radii: Tensor,
        opacity: Tensor,
        features: Tensor,
        background: Tensor,
        rays: Tensor,
        lists: TileLists,
        options: _Options,
    ) -> tuple[Tensor, ...]:
        from pullback.kernels import spheres

        scene = [t.detach().contiguous() for t in (centers, radii, opacity, features)]
        rays = rays.detach().contiguous()
        height, width, _ = rays.shape
        image, depth = rays.new_empty(height, width, features.shape[1]), rays.new_empty(height, width)
        scale, total = (torch.empty(height, width, dtype=torch.float64) for _ in range(2))
        kept = torch.empty(height, width, options.track or 1, dtype=torch.int64)
        last, strongest = (torch.empty(height, width, dtype=torch.int64) for _ in range(2))
        pair_hits = torch.zeros(len(lists.indices), dtype=torch.int64)
        floor = _BACKGROUND_DEPTH / options.gamma
        limits = (options.near, options.far, options.gamma)
        tiles = lists.shape[0] * lists.shape[1]
        arguments = [
            *_arrays(*scene, background.detach().contiguous(), rays, lists.offsets, lists.indices, lists.pixels),
            lists.shape[1],
            lists.tile,
            *limits,
            floor,
            options.allowed,
            *_arrays(image, depth, scale, total, kept, last, strongest, pair_hits),
        ]
        spheres.in_parallel(lambda begin, end: spheres.forward(begin, end, *arguments), tiles)
        alpha = (1 - (floor - scale).exp() / total).to(image.dtype)
        hits = torch.zeros(len(radii), dtype=torch.int64).index_add_(0, lists.indices, pair_hits)
        ctx.lists, ctx.options, ctx.floor = lists, options, floor
        ctx.save_for_backward(*scene, rays, image, alpha, depth, scale, total, kept, last)
        ctx.mark_non_differentiable(strongest, hits)
        return image, alpha, depth, strongest, hits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_image: Tensor, grad_alpha: Tensor, grad_depth: Tensor, *_: Any) -> tuple[Any, ...]:
        from pullback.kernels import spheres

        *scene, rays, image, alpha, depth, scale, total, kept, last = ctx.saved_tensors
        lists, options = ctx.lists, ctx.options
        cotangents = [g.contiguous() for g in (grad_image, grad_alpha, grad_depth)]
        mean = (grad_image.double() * image).sum(-1) + grad_alpha.double() * alpha + grad_depth.double() * depth
        n, width = len(scene[1]), 5 + image.shape[-1]
        order = torch.argsort(lists.indices, stable=True)
        ends = torch.bincount(lists.indices, minlength=n).cumsum(0)
        starts = torch.cat([ends.new_zeros(1), ends])
        partial = torch.empty(len(lists.indices), width, dtype=torch.float64)
        grad_rays = torch.zeros_like(rays, dtype=torch.float64)
        out = torch.empty(n, width, dtype=torch.float64)
        tiles = lists.shape[0] * lists.shape[1]
        arguments = [
            *_arrays(*scene, rays, lists.offsets, lists.indices, lists.pixels),
            lists.shape[1],
            lists.tile,
            options.near,
            options.far,
            options.gamma,
            *_arrays(scale, total, kept, last),
            options.track is not None,
            *_arrays(mean, *cotangents, partial, grad_rays),
        ]
        spheres.in_parallel(lambda begin, end: spheres.backward(begin, end, *arguments), tiles)
        sums = _arrays(order, starts, partial, out)
        spheres.in_parallel(lambda begin, end: spheres.add_up(begin, end, *sums), n)
        ground = (ctx.floor - scale).exp() / total
        grad_background = (ground[..., None] * grad_image).sum((0, 1))
        gradients = (out[:, :3], out[:, 3], out[:, 4], out[:, 5:], grad_background, grad_rays)
        return *(g.to(image.dtype) for g in gradients), None, None


def _arrays(*tensors: Tensor) -> list[Any]:
    return [t.numpy() for t in tensors]
