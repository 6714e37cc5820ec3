"""Rendering of spheres that is differentiable in everything: Pulsar's depth-weighted blending."""

from __future__ import annotations

import torch

from pullback.core.checks import (
    check_broadcast,
    check_choice,
    check_floating,
    check_integer,
    check_range,
    check_same_dtype,
    check_scalar,
    check_shape,
)
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look, is_transformed
from pullback.geometry import Camera
from pullback.kernels.compiled import compiled
from pullback.render.blending import Blending, Item, Pixels, blend_everywhere, blend_in_tiles
from pullback.render.bounds import sphere_lists
from pullback.render.compiled import blend_compiled
from pullback.render.result import Rendered
from pullback.render.scene import check_depth_range, check_spheres, in_reach, items

__all__ = ["render_spheres"]


def render_spheres(
    centers: Float[Tensor, "*#batch n 3"],
    radii: Float[Tensor, "*#batch n"],
    features: Float[Tensor, "*#batch n channels"],
    camera: Camera,
    *,
    gamma: float | Float[Tensor, ""] = 1e-2,
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

    Differentiable in centres, radii, features, opacity, background, gamma and the camera's pose and intrinsics.

    Args:
        centers: ``[*batch, n, 3]`` metres, in the world.
        radii: ``[*batch, n]`` metres, > 0.
        features: ``[*batch, n, channels]`` any number of channels; colours in [0, 1] give an image.
        camera: with any batch shape that broadcasts with the others.
        gamma: softness in [1e-5, 1]: 1 is transparent, with gradients to every sphere on the ray, 1e-5 an opaque
            z-buffer. It is the temperature of the choice of the nearest sphere; a tensor without dimensions may want a
            gradient.
        opacity: ``[*batch, n]`` in [0, 1]; by default 1.
        background: ``[*batch, channels]``; by default 0.
        depth_range: the near and far planes, metres, 0 <= near < far.
        track: how many of the strongest spheres of a pixel receive its gradient (the paper: 5); by default all.
        allowed_difference: in [0, 1). Where the spheres behind cannot take more than this share of a pixel from those
            in front, the kernel leaves them out. 0 is exact; the other methods always are.
        method: ``"kernel"`` (compiled, CPU), ``"tiles"`` (plain torch on the lists of tiles, any device) or
            ``"reference"`` (plain torch, every sphere at every pixel; also under ``vmap``, forward mode and
            ``torch.compile``). By default the first of them that can be used. All have second derivatives; those of the
            kernel are computed by ``"tiles"``.

    Returns:
        A :class:`Rendered`; ``depth`` is ``sum_i w_i depth_i + w_b far``; ``extras`` has ``"strongest"``
        ``[*batch, height, width]`` (the sphere of the largest weight; -1: the background's is larger) and ``"hits"``
        ``[*batch, n]`` (the pixels whose rays meet the sphere; 0 for one that is out of sight or range).

    Raises:
        TypeError: a tensor is not floating, the dtypes differ, or a number is none.
        ValueError: ``gamma``, ``radii``, ``opacity``, ``depth_range``, ``track``, ``allowed_difference``, ``method`` or
            a shape is not as said, a centre is not finite, or the method was asked for where it cannot run.

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
    tensors = _checked(centers, radii, features, opacity, background, camera)
    options = _options(gamma, depth_range, track, allowed_difference, tensors[0])
    view = (camera.intrinsics, camera.camera_from_world)
    chosen = _method(method, (*tensors, *view, *([options.gamma] if isinstance(options.gamma, Tensor) else [])))
    dtype = features.dtype
    centers, radii, opacity_, features, background_ = tensors
    if dtype in (torch.float16, torch.bfloat16):
        centers, radii, opacity_, features, background_ = (t.float() for t in tensors)
        camera = camera.to(torch.float32)

    batch = check_broadcast(
        centers=centers.shape[:-2],
        radii=radii.shape[:-1],
        opacity=opacity_.shape[:-1],
        features=features.shape[:-2],
        background=background_.shape[:-1],
        camera=camera.batch_shape,
    )
    seen, radii = in_reach(camera.transform(centers), radii)
    rays = camera.pixel_directions()
    parts = items(batch, (seen, 2), (radii, 1), (opacity_, 1), (features, 2), (background_, 1), (rays, 3))
    rendered = [_blended(Item(*item), options, chosen) for item in zip(*(p.unbind(0) for p in parts), strict=True)]
    if not rendered:  # a blank in place of the items of an empty batch says the shapes
        rendered = [_blended(Item(*(p.new_ones(p.shape[1:]) for p in parts)), options, "reference")]
    image, alpha, depth, strongest, hits = (
        torch.stack(values)[: batch.numel()].reshape(*batch, *values[0].shape) for values in zip(*rendered, strict=True)
    )
    return Rendered(
        image.movedim(-1, -3).to(dtype),
        alpha.unsqueeze(-3).to(dtype),
        depth.unsqueeze(-3).to(dtype),
        {"strongest": strongest, "hits": hits},
    )


def _options(
    gamma: float | Tensor, depth_range: tuple[float, float], track: int | None, allowed: float, like: Tensor
) -> Blending:
    number = check_scalar("gamma", gamma, zero=True)
    if number is not None:
        check_range("gamma", number, 1e-5, 1.0)
    if track is not None:
        check_integer("track", track, 1)
    check_range("allowed_difference", allowed, 0.0, 1.0)
    if allowed == 1.0:
        raise ValueError("allowed_difference must be < 1, got 1.0")
    near, far = check_depth_range(depth_range, like)
    if isinstance(gamma, Tensor):
        gamma = gamma.to(like.device, torch.promote_types(like.dtype, torch.float32))
    return Blending(near, far, gamma, track, float(allowed))


def _checked(
    centers: Tensor, radii: Tensor, features: Tensor, opacity: Tensor | None, background: Tensor | None, camera: Camera
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return centres, radii, opacity, features, background, all there and valid."""
    check_spheres(centers, radii, camera)
    n = centers.shape[-2]
    check_shape("features", check_floating("features", features), (n, None))
    if opacity is None:
        opacity = torch.ones_like(radii)
    check_shape("opacity", check_floating("opacity", opacity), (n,))
    if background is None:
        background = features.new_zeros(features.shape[-1])
    check_shape("background", check_floating("background", background), (features.shape[-1],))
    check_same_dtype(centers=centers, opacity=opacity, features=features, background=background)
    if can_look(opacity) and not bool(((opacity >= 0) & (opacity <= 1)).all()):
        low, high = opacity.min().item(), opacity.max().item()
        raise ValueError(f"opacity must be in [0, 1] everywhere, got {low} to {high}")
    return centers, radii, opacity, features, background


def _method(method: str | None, inputs: tuple[Tensor, ...]) -> str:
    """Return the way to render: ``"kernel"``, ``"tiles"`` or ``"reference"``."""
    if method is not None:
        check_choice("method", method, ("kernel", "tiles", "reference"))
    obstacles: dict[str, str] = {}
    if any(map(is_transformed, inputs)):
        needs = "it has no rule for torch.func transforms, forward mode and torch.compile"
        obstacles = {"kernel": needs, "tiles": needs}
    elif inputs[0].device.type != "cpu":
        obstacles = {"kernel": f"it runs on the CPU, and the tensors are on {inputs[0].device}"}
    elif compiled() is None:
        obstacles = {"kernel": "it needs numba (pip install 'pullback[kernels]')"}
    possible = [name for name in ("kernel", "tiles", "reference") if name not in obstacles]
    if method in obstacles:
        raise ValueError(f"method {method!r} cannot be used here: {obstacles[method]}; use method={possible[0]!r}")
    return method or possible[0]


def _blended(item: Item, options: Blending, method: str) -> Pixels:
    """Render one item of a batch."""
    if method == "reference":
        return blend_everywhere(item, options)
    lists = sphere_lists(item.centers, item.radii, item.rays, options.far)
    return (blend_compiled if method == "kernel" else blend_in_tiles)(item, lists, options)
