"""What the renderers of spheres ask of a scene, and its batch item by item."""

from __future__ import annotations

import math

import torch

from pullback.core.checks import check_finite, check_floating, check_positive, check_same_dtype, check_shape
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.geometry import Camera

__all__ = ["check_depth_range", "check_spheres", "in_reach", "items"]


def check_spheres(centers: Float[Tensor, "*#batch n 3"], radii: Float[Tensor, "*#batch n"], camera: Camera) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless these are spheres, and a camera of the same dtype and device."""
    check_shape("centers", check_floating("centers", centers), (None, 3))
    check_shape("radii", check_floating("radii", radii), (centers.shape[-2],))
    if not isinstance(camera, Camera):
        raise TypeError(f"camera must be a pullback.geometry.Camera, got {type(camera).__name__}")
    check_same_dtype(centers=centers, radii=radii, camera=camera.intrinsics)
    if can_look(centers):
        check_finite("centers", centers)
    if can_look(radii) and radii.numel():
        check_positive("radii", radii)


def check_depth_range(depth_range: tuple[float, float], like: Tensor) -> tuple[float, float]:
    """Return near and far plane, else raise ``TypeError`` or ``ValueError``; the far plane must be in ``like``'s range.

    Example:
        >>> check_depth_range((1, 1), torch.zeros(1))
        Traceback (most recent call last):
        ValueError: depth_range must be (near, far) with 0 <= near < far, got (1, 1)
    """
    if not isinstance(depth_range, tuple | list) or not all(
        isinstance(d, int | float) and not isinstance(d, bool) for d in depth_range
    ):
        raise TypeError(f"depth_range must be (near, far), two numbers, got {depth_range!r}")
    if len(depth_range) != 2 or not 0 <= depth_range[0] < depth_range[1] < math.inf:
        raise ValueError(f"depth_range must be (near, far) with 0 <= near < far, got {depth_range}")
    largest = torch.finfo(like.dtype).max
    if depth_range[1] > largest:
        raise ValueError(f"depth_range must end within {like.dtype}, at most {largest}, got {depth_range}")
    return float(depth_range[0]), float(depth_range[1])


def in_reach(
    seen: Float[Tensor, "*batch n 3"], radii: Float[Tensor, "*#batch n"]
) -> tuple[Float[Tensor, "*batch n 3"], Float[Tensor, "*batch n"]]:
    """Return spheres in the camera's axes, those whose squared distance would overflow put behind the camera.

    No pixel sees them there either; where they were, infinities times zero would make gradients NaN.
    """
    limit = math.sqrt(torch.finfo(seen.dtype).max) / 16
    near = seen.detach().abs().amax(-1) <= limit if seen.numel() else seen[..., 0].bool()
    behind = torch.tensor([0.0, 0.0, -1.0], dtype=seen.dtype, device=seen.device)
    return torch.where(near[..., None], seen, behind), torch.where(near, radii, 1.0)


def items(batch: torch.Size, *tensors: tuple[Tensor, int]) -> list[Tensor]:
    """Return every tensor ``[*some batch, *own]`` as ``[items, *own]``; ``own`` comes as its number of dimensions."""
    return [
        t.expand(*batch, *t.shape[t.ndim - own :]).reshape(batch.numel(), *t.shape[t.ndim - own :])
        for t, own in tensors
    ]
