"""The pinhole camera: world to pixels and back, differentiable in pose and intrinsics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from pullback.core.checks import check_floating, check_integer, check_positive, check_shape
from pullback.core.numerics import solve
from pullback.core.shapes import Float, Tensor

__all__ = ["Camera", "Projection", "Rays", "look_at"]


class Projection(NamedTuple):
    """Points seen by a camera.

    Attributes:
        pixels: ``[*batch, n, 2]`` positions ``(x, y)`` in pixels; NaN (with zero gradient) for points not in front.
        depth: ``[*batch, n]`` distance along the optical axis, metres; <= 0 for points not in front.
    """

    pixels: Float[Tensor, "*batch n 2"]
    depth: Float[Tensor, "*batch n"]


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
        TypeError: a matrix is not a floating tensor.
        ValueError: a matrix has another shape, the batch shapes do not broadcast, or ``size`` is not two integers >= 1.

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
        if len(self.size) != 2:
            raise ValueError(f"size must be (height, width), got {self.size}")
        for name, pixels in zip(("height", "width"), self.size, strict=True):
            check_integer(f"{name} of size", pixels, 1)
        try:
            _ = self.batch_shape
        except RuntimeError:
            raise ValueError(
                "intrinsics and camera_from_world must have batch shapes that broadcast, got "
                f"{tuple(self.intrinsics.shape[:-2])} and {tuple(self.camera_from_world.shape[:-2])}"
            ) from None

    @classmethod
    def pinhole(
        cls,
        focal: float,
        size: tuple[int, int],
        *,
        centre: tuple[float, float] | None = None,
        camera_from_world: Float[Tensor, "*batch 4 4"] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Camera:
        """Return a camera with square pixels.

        Args:
            focal: focal length, pixels, > 0.
            size: ``(height, width)``.
            centre: principal point ``(x, y)``, pixels; by default the middle of the image.
            camera_from_world: ``[*batch, 4, 4]`` the pose; by default the identity.
            dtype: of the matrices; by default that of the pose, or torch's default.
            device: likewise.

        Returns:
            The camera.

        Raises:
            ValueError: ``focal`` <= 0.
        """
        check_positive("focal", focal)
        pose = torch.eye(4, dtype=dtype, device=device) if camera_from_world is None else camera_from_world
        pose = pose.to(dtype=dtype or pose.dtype, device=device or pose.device)
        height, width = size
        x, y = centre or (width / 2, height / 2)
        return cls(pose.new_tensor([[focal, 0.0, x], [0.0, focal, y], [0.0, 0.0, 1.0]]), pose, size)

    @property
    def batch_shape(self) -> torch.Size:
        """The batch shape of the two matrices together."""
        return torch.broadcast_shapes(self.intrinsics.shape[:-2], self.camera_from_world.shape[:-2])

    @property
    def position(self) -> Float[Tensor, "*batch 3"]:
        """The centre in the world: ``-A^-1 t`` for the pose ``[A t]``."""
        matrix, shift = self.camera_from_world[..., :3, :3], self.camera_from_world[..., :3, 3]
        return -solve(matrix, shift[..., None])[..., 0]

    def transform(self, points: Float[Tensor, "*batch n 3"]) -> Float[Tensor, "*result n 3"]:
        """Return world points ``[*batch, n, 3]`` in the camera's axes."""
        check_shape("points", points, (None, 3))
        matrix, shift = self.camera_from_world[..., :3, :3], self.camera_from_world[..., :3, 3]
        return points @ matrix.mT + shift[..., None, :]

    def project(self, points: Float[Tensor, "*batch n 3"]) -> Projection:
        """Return pixels and depth of world points ``[*batch, n, 3]``; NaN pixels for points not in front.

        Raises:
            ValueError: ``points`` has another shape.
        """
        x, y, depth = self.transform(points).unbind(-1)
        fx, skew, cx, fy, cy = self._entries()
        front = depth > 0
        # The division is by 1 where there is nothing to see, so that its gradient is 0 and not NaN.
        safe = torch.where(front, depth, 1.0)
        pixels = torch.stack([(fx * x + skew * y) / safe + cx, fy * y / safe + cy], -1)
        return Projection(torch.where(front[..., None], pixels, torch.nan), depth)

    def unproject(
        self, pixels: Float[Tensor, "*batch n 2"], depth: Float[Tensor, "*batch n"]
    ) -> Float[Tensor, "*result n 3"]:
        """Return the world points ``[*batch, n, 3]`` seen at ``pixels`` ``(x, y)`` at a ``depth`` in metres."""
        check_shape("pixels", pixels, (None, 2))
        seen = self.pixel_directions(pixels) * depth[..., None]
        matrix, shift = self.camera_from_world[..., :3, :3], self.camera_from_world[..., :3, 3]
        return solve(matrix, (seen - shift[..., None, :]).mT).mT

    def pixel_directions(self, pixels: Float[Tensor, "*batch n 2"] | None = None) -> Float[Tensor, "*result 3"]:
        """Return the directions ``[*batch, n, 3]`` with depth 1, in the camera's axes, in which pixels look.

        Args:
            pixels: ``[*batch, n, 2]`` positions; by default all centres, and the result is
                ``[*batch, height, width, 3]``.
        """
        if pixels is not None:
            x, y = pixels.unbind(-1)
            fx, skew, cx, fy, cy = self._entries()
            down = (y - cy) / fy
            return torch.stack([(x - cx - skew * down) / fx, down, torch.ones_like(down)], -1)
        height, width = self.size
        rows, columns = (torch.arange(n, device=self.intrinsics.device) + 0.5 for n in (height, width))
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1).flatten(0, 1).to(self.intrinsics)
        return self.pixel_directions(grid).unflatten(-2, (height, width))

    def rays(self, pixels: Float[Tensor, "*batch n 2"] | None = None) -> Rays:
        """Return the rays of ``pixels`` ``[*batch, n, 2]`` (by default of every pixel) in the world.

        Example:
            >>> rays = Camera.pinhole(100.0, (2, 2)).rays(torch.tensor([[1.0, 1.0]]))
            >>> rays.origins.tolist(), rays.directions.tolist()
            ([[0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]])
        """
        seen = self.pixel_directions(pixels)
        flat = seen if pixels is not None else seen.flatten(-3, -2)
        directions = solve(self.camera_from_world[..., :3, :3], flat.mT).mT
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
        scale = self.intrinsics.new_tensor([size[1] / self.size[1], size[0] / self.size[0], 1.0])
        return replace(self, intrinsics=self.intrinsics * scale[:, None], size=size)

    def to(self, target: torch.dtype | torch.device | str) -> Camera:
        """Return the camera in another dtype or on another device."""
        return replace(
            self,
            intrinsics=self.intrinsics.to(target),
            camera_from_world=self.camera_from_world.to(target),
        )

    def _entries(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The focal lengths, skew and principal point, each ``[*batch, 1]`` against the points of an item."""
        k = self.intrinsics[..., None, :, :]
        return k[..., 0, 0], k[..., 0, 1], k[..., 0, 2], k[..., 1, 1], k[..., 1, 2]


def look_at(
    position: Float[Tensor, "*batch 3"], target: Float[Tensor, "*#batch 3"], *, up: tuple[float, float, float]
) -> Float[Tensor, "*batch 4 4"]:
    """Return the pose ``camera_from_world`` of a camera at ``position`` that looks at ``target``.

    The rows of the rotation are ``x = z * up``-wards normalised: ``z`` towards the target, ``x = z × up / |z × up|``,
    ``y = z × x``, which points away from ``up``.

    Args:
        position: ``[*batch, 3]`` metres.
        target: ``[*batch, 3]`` metres.
        up: direction in the world that is up in the image, not parallel to the line of sight. In a world with OpenCV
            axes that is ``(0, -1, 0)``.

    Returns:
        ``[*batch, 4, 4]``.

    Raises:
        ValueError: ``target`` is at ``position``, or ``up`` is along the line of sight.

    Example:
        >>> pose = look_at(torch.tensor([0.0, 0.0, -3.0]), torch.zeros(3), up=(0.0, -1.0, 0.0))
        >>> (pose @ torch.tensor([0.0, 0.0, 0.0, 1.0])).tolist()
        [0.0, 0.0, 3.0, 1.0]
    """
    position, target = torch.broadcast_tensors(check_floating("position", position), check_floating("target", target))
    forward = target - position
    right = torch.linalg.cross(forward, forward.new_tensor(up).expand_as(forward))
    if bool((right.norm(dim=-1) <= 1e-6 * forward.norm(dim=-1)).any()):
        raise ValueError(f"target must differ from position, and up must not be along the line of sight, got up={up}")
    z = forward / forward.norm(dim=-1, keepdim=True)
    x = right / right.norm(dim=-1, keepdim=True)
    rotation = torch.stack([x, torch.linalg.cross(z, x), z], dim=-2)
    shift = -(rotation @ position[..., None])
    last = shift.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*rotation.shape[:-2], 1, 4)
    return torch.cat([torch.cat([rotation, shift], -1), last], -2)
