"""The pinhole camera: world to pixels and back, differentiable in pose and intrinsics."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from pullback.core.checks import (
    check_broadcast,
    check_finite,
    check_floating,
    check_integer,
    check_same_dtype,
    check_scalar,
    check_shape,
)
from pullback.core.numerics import solve
from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.core.transforms import can_look

__all__ = ["Camera", "Projection", "Rays", "look_at"]


class Projection(NamedTuple):
    """Points seen by a camera.

    Attributes:
        pixels: ``[*batch, n, 2]`` positions ``(x, y)`` in pixels; ``(-1, -1)``, which is outside every image, with zero
            gradient where a point has none.
        depth: ``[*batch, n]`` distance along the optical axis, metres; <= 0 for points not in front.
        valid: ``[*batch, n]`` whether a point has a position: it is in front, and so far from the plane of the camera
            that the position is a number of the dtype. It may lie outside the image.
    """

    pixels: Float[Tensor, "*batch n 2"]
    depth: Float[Tensor, "*batch n"]
    valid: Bool[Tensor, "*batch n"]


class Rays(NamedTuple):
    """Half-lines in the world, ``origin + t direction``.

    Attributes:
        origins: ``[*batch, *shape, 3]`` the camera's centre.
        directions: ``[*batch, *shape, 3]`` of one unit of depth: at parameter ``t`` the depth is ``t``.
    """

    origins: Float[Tensor, "*shape 3"]
    directions: Float[Tensor, "*shape 3"]


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera with OpenCV axes: x right, y down, z forward. The first pixel's centre is at (0.5, 0.5).

    A world point ``p`` is seen at ``x = (fx X + s Y) / Z + cx``, ``y = fy Y / Z + cy`` with
    ``(X, Y, Z) = camera_from_world p``. All methods are differentiable in both matrices.

    Args:
        intrinsics: ``[*batch, 3, 3]`` the matrix ``[[fx, s, cx], [0, fy, cy], [0, 0, 1]]``, pixels. The five entries
            named are used, the others are not read.
        camera_from_world: ``[*batch, 4, 4]`` the pose, homogeneous; metres. The last row is not read.
        size: ``(height, width)`` of the image, pixels.

    Raises:
        TypeError: a matrix is not a floating tensor, they differ in dtype, or ``size`` is not of integers.
        ValueError: a matrix has another shape, is not finite, or is on another device than the other; a focal length
            is 0, or so small that slopes of pixels overflow; the pose is singular; the batch shapes do not broadcast;
            or ``size`` is not two integers >= 1. What depends on values is not looked at under transforms of
            ``torch.func``.

    Example:
        >>> camera = Camera.pinhole(100.0, (60, 80))
        >>> camera.project(torch.tensor([[0.1, 0.0, 2.0]])).pixels.tolist()
        [[45.0, 30.0]]
        >>> camera.unproject(torch.tensor([[45.0, 30.0]]), torch.tensor([2.0])).tolist() # doctest: +ELLIPSIS
        [[0.1..., 0.0, 2.0]]

    References:
        Hartley, Zisserman (2004), Multiple View Geometry in Computer Vision, chapter 6.
    """

    intrinsics: Float[Tensor, "*#batch 3 3"]
    camera_from_world: Float[Tensor, "*#batch 4 4"]
    size: tuple[int, int]

    def __post_init__(self) -> None:
        check_shape("intrinsics", check_floating("intrinsics", self.intrinsics), (3, 3))
        check_shape("camera_from_world", check_floating("camera_from_world", self.camera_from_world), (4, 4))
        check_same_dtype(intrinsics=self.intrinsics, camera_from_world=self.camera_from_world)
        _check_size(self.size)
        check_broadcast(intrinsics=self.intrinsics.shape[:-2], camera_from_world=self.camera_from_world.shape[:-2])
        if can_look(self.intrinsics):
            check_finite("intrinsics", self.intrinsics[..., :2, :])
            # Larger slopes would overflow when squared. The comparison is false for those of a focal length of 0.
            limit = math.sqrt(torch.finfo(_wide(self.intrinsics).dtype).max) / 16
            if not bool((self._steepest() <= limit).all()):
                raise ValueError(
                    f"intrinsics must have focal lengths other than 0, and slopes of pixels of at most {limit:.3g}, "
                    f"got focal lengths {self.intrinsics[..., (0, 1), (0, 1)].tolist()}"
                )
        if can_look(self.camera_from_world):
            check_finite("camera_from_world", self.camera_from_world[..., :3, :])
            matrix = self._pose()[0].detach()
            # Scaled, so that the determinant does not underflow; a size whose inverse square overflows has no gradient.
            size, limits = matrix.abs().amax((-2, -1), keepdim=True), torch.finfo(matrix.dtype)
            volume = torch.linalg.det(matrix / size.clamp(min=limits.tiny)).abs()
            if bool(((volume <= 4 * limits.eps) | (size[..., 0, 0] <= limits.tiny**0.5)).any()):
                raise ValueError("camera_from_world must be invertible, got a singular matrix")

    def __getitem__(self, index: int | slice | Int[Tensor, "..."]) -> Camera:
        """Return some of a batch of cameras, as indexing its first dimension does.

        Raises:
            IndexError: there is no batch, or ``index`` is not in it.

        Example:
            >>> around = torch.eye(4).expand(5, 4, 4)
            >>> Camera.pinhole(100.0, (60, 80), camera_from_world=around)[torch.tensor([0, 3])].batch_shape
            torch.Size([2])
        """
        batch = self.batch_shape
        if not batch:
            raise IndexError("camera must have a batch dimension to be indexed, got a single camera")
        return replace(
            self,
            intrinsics=self.intrinsics.expand(*batch, 3, 3)[index],
            camera_from_world=self.camera_from_world.expand(*batch, 4, 4)[index],
        )

    @classmethod
    def pinhole(
        cls,
        focal: float | Float[Tensor, ""],
        size: tuple[int, int],
        *,
        centre: tuple[float, float] | None = None,
        camera_from_world: Float[Tensor, "*batch 4 4"] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Camera:
        """Return a camera with square pixels.

        Args:
            focal: focal length, pixels, > 0; a tensor without dimensions may want a gradient.
            size: ``(height, width)``.
            centre: principal point ``(x, y)``, pixels; by default the middle of the image.
            camera_from_world: ``[*batch, 4, 4]`` the pose; by default the identity.
            dtype: of the matrices; by default that of the pose, or torch's default.
            device: likewise.

        Returns:
            The camera.

        Raises:
            TypeError: ``focal`` is no number, or ``size`` is not of integers.
            ValueError: ``focal`` <= 0, or what a :class:`Camera` refuses.
        """
        check_scalar("focal", focal)
        _check_size(size)
        pose = torch.eye(4, dtype=dtype, device=device) if camera_from_world is None else camera_from_world
        pose = pose.to(dtype=dtype or pose.dtype, device=device or pose.device)
        height, width = size
        x, y = (width / 2, height / 2) if centre is None else centre
        scaled = torch.tensor([1.0, 1.0, 0.0], dtype=pose.dtype, device=pose.device).diag()
        fixed = torch.tensor([[0.0, 0.0, x], [0.0, 0.0, y], [0.0, 0.0, 1.0]], dtype=pose.dtype, device=pose.device)
        return cls(fixed + focal * scaled, pose, size)

    @property
    def batch_shape(self) -> torch.Size:
        """The batch shape of the two matrices together."""
        return torch.broadcast_shapes(self.intrinsics.shape[:-2], self.camera_from_world.shape[:-2])

    @property
    def position(self) -> Float[Tensor, "*batch 3"]:
        """The centre in the world: ``-A^-1 t`` for the pose ``[A t]``."""
        matrix, shift = self._pose()
        return -solve(matrix, shift[..., None])[..., 0].to(self.camera_from_world.dtype)

    def transform(self, points: Float[Tensor, "*batch n 3"]) -> Float[Tensor, "*result n 3"]:
        """Return world points ``[*batch, n, 3]`` in the camera's axes.

        Raises:
            TypeError: ``points`` is not floating or of another dtype than the camera.
            ValueError: ``points`` has another shape or is on another device.
        """
        return self._transformed(points).to(points.dtype)

    def project(self, points: Float[Tensor, "*batch n 3"]) -> Projection:
        """Return pixels and depth of world points ``[*batch, n, 3]``.

        Raises:
            TypeError: ``points`` is not floating or of another dtype than the camera.
            ValueError: ``points`` has another shape or is on another device.
        """
        x, y, depth = self._transformed(points).unbind(-1)
        fx, skew, cx, fy, cy = self._entries()
        # No position is larger than this; a comparison with NaN is false.
        slope = (torch.maximum(x.abs(), y.abs()) / depth).detach()
        bound = (fx.abs() + skew.abs()).maximum(fy.abs()).detach() * slope + cx.abs().maximum(cy.abs()).detach()
        valid = (depth > 0) & (bound <= torch.finfo(points.dtype).max)
        # The division is by 1 where there is no position, so that its gradient is 0 and not NaN.
        x, y = torch.where(valid, x, 0.0), torch.where(valid, y, 0.0)
        safe = torch.where(valid, depth, 1.0)
        position = torch.stack([fx * (x / safe) + skew * (y / safe) + cx, fy * (y / safe) + cy], -1)
        outside = torch.where(points.isnan().any(-1), torch.nan, -1.0)
        pixels = torch.where(valid[..., None], position, outside[..., None])
        return Projection(pixels.to(points.dtype), depth.to(points.dtype), valid)

    def unproject(
        self, pixels: Float[Tensor, "*batch n 2"], depth: Float[Tensor, "*batch n"]
    ) -> Float[Tensor, "*result n 3"]:
        """Return the world points ``[*batch, n, 3]`` seen at ``pixels`` ``(x, y)`` at a ``depth`` in metres.

        Raises:
            TypeError: a tensor is not floating or of another dtype than the camera.
            ValueError: a tensor has another shape or is on another device.
        """
        check_shape("depth", check_floating("depth", depth), (pixels.shape[-2],) if pixels.ndim > 1 else ())
        check_same_dtype(pixels=pixels, depth=depth)
        seen = self._directions(pixels) * _wide(depth)[..., None]
        matrix, shift = self._pose()
        return solve(matrix, (seen - shift[..., None, :]).mT).mT.to(pixels.dtype)

    def pixel_directions(self, pixels: Float[Tensor, "*batch n 2"] | None = None) -> Float[Tensor, "*result 3"]:
        """Return the directions ``[*batch, n, 3]`` with depth 1, in the camera's axes, in which pixels look.

        Args:
            pixels: ``[*batch, n, 2]`` positions; by default all centres, and the result is
                ``[*batch, height, width, 3]``.

        Raises:
            TypeError: ``pixels`` is not floating or of another dtype than the camera.
            ValueError: ``pixels`` has another shape or is on another device.
        """
        return self._directions(pixels).to(self.intrinsics.dtype)

    def rays(self, pixels: Float[Tensor, "*batch n 2"] | None = None) -> Rays:
        """Return the rays of ``pixels`` ``[*batch, n, 2]`` (by default of every pixel) in the world.

        Example:
            >>> rays = Camera.pinhole(100.0, (2, 2)).rays(torch.tensor([[1.0, 1.0]]))
            >>> rays.origins.tolist(), rays.directions.tolist()
            ([[0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]])
        """
        seen = self._directions(pixels)
        flat = seen if pixels is not None else seen.flatten(-3, -2)
        directions = solve(self._pose()[0], flat.mT).mT.to(self.intrinsics.dtype)
        origins = (self.position[..., None, :] + 0.0).expand(directions.shape)
        if pixels is None:
            directions, origins = (t.unflatten(-2, self.size) for t in (directions, origins))
        return Rays(origins, directions)

    def resized(self, size: tuple[int, int]) -> Camera:
        """Return the same view on an image of another ``size`` ``(height, width)``.

        Example:
            >>> Camera.pinhole(100.0, (60, 80)).resized((30, 40)).intrinsics[0].tolist()
            [50.0, 0.0, 20.0]
        """
        _check_size(size)
        factors = [size[1] / self.size[1], size[0] / self.size[0], 1.0]
        scale = torch.tensor(factors, dtype=self.intrinsics.dtype, device=self.intrinsics.device)
        return replace(self, intrinsics=self.intrinsics * scale[:, None], size=size)

    def to(self, target: torch.dtype | torch.device | str) -> Camera:
        """Return the camera in another dtype or on another device."""
        return replace(
            self,
            intrinsics=self.intrinsics.to(target),
            camera_from_world=self.camera_from_world.to(target),
        )

    # Half precision does not name a pixel of a large image: these compute in single precision at least.

    def _entries(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The focal lengths, skew and principal point, each ``[*batch, 1]`` against the points of an item."""
        k = _wide(self.intrinsics)[..., None, :, :]
        return k[..., 0, 0], k[..., 0, 1], k[..., 0, 2], k[..., 1, 1], k[..., 1, 2]

    def _steepest(self) -> Tensor:
        """A bound of the slopes of all pixels."""
        fx, skew, cx, fy, cy = (entry.detach().abs() for entry in self._entries())
        down = (self.size[0] + cy) / fy
        return torch.maximum((self.size[1] + cx + skew * down) / fx, down)

    def _pose(self) -> tuple[Tensor, Tensor]:
        pose = _wide(self.camera_from_world)
        return pose[..., :3, :3], pose[..., :3, 3]

    def _transformed(self, points: Tensor) -> Tensor:
        check_shape("points", check_floating("points", points), (None, 3))
        check_same_dtype(points=points, camera=self.intrinsics)
        check_broadcast(points=points.shape[:-2], camera=self.batch_shape)
        matrix, shift = self._pose()
        return _wide(points) @ matrix.mT + shift[..., None, :]

    def _directions(self, pixels: Tensor | None) -> Tensor:
        if pixels is None:
            height, width = self.size
            rows, columns = (torch.arange(n, device=self.intrinsics.device) + 0.5 for n in (height, width))
            grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1)
            return self._seen(grid.to(_wide(self.intrinsics).dtype)).unflatten(-2, (height, width))
        check_shape("pixels", check_floating("pixels", pixels), (None, 2))
        check_same_dtype(pixels=pixels, camera=self.intrinsics)
        check_broadcast(pixels=pixels.shape[:-2], camera=self.batch_shape)
        return self._seen(_wide(pixels))

    def _seen(self, pixels: Tensor) -> Tensor:
        x, y = pixels.unbind(-1)
        fx, skew, cx, fy, cy = self._entries()
        down = (y - cy) / fy
        return torch.stack([(x - cx - skew * down) / fx, down, torch.ones_like(down)], -1)


def look_at(
    position: Float[Tensor, "*batch 3"], target: Float[Tensor, "*#batch 3"], *, up: tuple[float, float, float]
) -> Float[Tensor, "*batch 4 4"]:
    """Return the pose ``camera_from_world`` of a camera at ``position`` that looks at ``target``.

    The rows of the rotation are ``x = z * up``-wards normalised: ``z`` towards the target, ``x = z × up / |z × up|``,
    ``y = z × x``, which points away from ``up``.

    Args:
        position: ``[*batch, 3]`` metres.
        target: ``[*batch, 3]`` metres, of the same dtype.
        up: direction in the world that is up in the image, not parallel to the line of sight. In a world with OpenCV
            axes that is ``(0, -1, 0)``.

    Returns:
        ``[*batch, 4, 4]``.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: a shape or device is not as said; ``target`` is at ``position``, or ``up`` is along the line
            of sight (neither is looked at under transforms of ``torch.func``).

    Example:
        >>> pose = look_at(torch.tensor([0.0, 0.0, -3.0]), torch.zeros(3), up=(0.0, -1.0, 0.0))
        >>> (pose @ torch.tensor([0.0, 0.0, 0.0, 1.0])).tolist()
        [0.0, 0.0, 3.0, 1.0]
    """
    check_shape("position", check_floating("position", position), (3,))
    check_shape("target", check_floating("target", target), (3,))
    check_same_dtype(position=position, target=target)
    check_broadcast(position=position.shape, target=target.shape)
    dtype = position.dtype
    position, target = torch.broadcast_tensors(_wide(position), _wide(target))
    # Only the direction counts: in units of its largest entry its length neither overflows nor vanishes.
    forward = 0.5 * target - 0.5 * position
    forward = forward / forward.detach().abs().amax(-1, keepdim=True).clamp(min=torch.finfo(forward.dtype).tiny)
    right = torch.linalg.cross(forward, forward.new_tensor(up).expand_as(forward))
    if can_look(forward) and not bool((right.norm(dim=-1) > 1e-6 * forward.norm(dim=-1)).all()):
        raise ValueError(f"target must differ from position, and up must not be along the line of sight, got up={up}")
    z = forward / forward.norm(dim=-1, keepdim=True)
    x = right / right.norm(dim=-1, keepdim=True)
    rotation = torch.stack([x, torch.linalg.cross(z, x), z], dim=-2)
    shift = -(rotation @ position[..., None])
    last = shift.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*rotation.shape[:-2], 1, 4)
    return torch.cat([torch.cat([rotation, shift], -1), last], -2).to(dtype)


def _wide(x: Tensor) -> Tensor:
    """``x``, in single precision where it is in half."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _check_size(size: tuple[int, int]) -> None:
    if not isinstance(size, tuple) or len(size) != 2:
        raise ValueError(f"size must be (height, width), got {size}")
    for name, pixels in zip(("height", "width"), size, strict=True):
        check_integer(f"{name} of size", pixels, 1)
