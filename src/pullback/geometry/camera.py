"""The pinhole camera: world to pixels and back, differentiable in pose and intrinsics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from pullback.core.checks import (
    check_broadcast,
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_shape,
)
from pullback.core.numerics import solve
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["Camera", "Projection", "Rays", "look_at"]


class Projection(NamedTuple):
    """Points seen by a camera.

    Attributes:
        pixels: ``[*batch, n, 2]`` positions ``(x, y)`` in pixels; for points not in front, which no pixel shows, the
            principal point with zero gradient, so that a mask by ``depth > 0`` keeps a loss finite.
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
        TypeError: a matrix is not a floating tensor, they differ in dtype, or ``size`` is not of integers.
        ValueError: a matrix has another shape or an entry that is not finite, the batch shapes do not broadcast, a
            focal length is 0, the pose cannot be inverted, or ``size`` is not two integers >= 1. The values are not
            checked under transforms of ``torch.func`` and ``torch.compile``.

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
        check_same_dtype(intrinsics=self.intrinsics, camera_from_world=self.camera_from_world)
        check_broadcast(intrinsics=self.intrinsics.shape[:-2], camera_from_world=self.camera_from_world.shape[:-2])
        if can_look(self.intrinsics) and can_look(self.camera_from_world):
            self._check_values()

    def _check_values(self) -> None:
        check_finite("intrinsics", self.intrinsics)
        check_finite("camera_from_world", self.camera_from_world)
        fx, _, _, fy, _ = (entry.detach() for entry in self._entries())
        if bool(((fx == 0) | (fy == 0)).any()):
            raise ValueError("intrinsics must have focal lengths other than 0")
        matrix = self.camera_from_world[..., :3, :3].detach()
        unit = matrix / matrix.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
        if bool((torch.linalg.det(unit.to(torch.promote_types(unit.dtype, torch.float32))) == 0).any()):
            raise ValueError("camera_from_world must be invertible")

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
        self._check_input(points.shape[:-2], points=points)
        check_shape("points", points, (None, 3))
        matrix, shift = self.camera_from_world[..., :3, :3], self.camera_from_world[..., :3, 3]
        return points @ matrix.mT + shift[..., None, :]

    def project(self, points: Float[Tensor, "*batch n 3"]) -> Projection:
        """Return pixels and depth of world points ``[*batch, n, 3]``.

        Raises:
            TypeError: ``points`` has another dtype than the camera.
            ValueError: ``points`` has another shape.
        """
        x, y, depth = self.transform(points).unbind(-1)
        fx, skew, cx, fy, cy = self._entries()
        front = depth > 0
        # The division is by 1 where there is nothing to see, so that its gradient is 0 and not NaN.
        safe = torch.where(front, depth, 1.0)
        right, down = torch.where(front, x, 0.0) / safe, torch.where(front, y, 0.0) / safe
        pixels = torch.stack([fx * right + skew * down + cx, fy * down + cy], -1)
        return Projection(torch.where(front[..., None], pixels, pixels.detach()), depth)

    def unproject(
        self, pixels: Float[Tensor, "*batch n 2"], depth: Float[Tensor, "*batch n"]
    ) -> Float[Tensor, "*result n 3"]:
        """Return the world points ``[*batch, n, 3]`` seen at ``pixels`` ``(x, y)`` at a ``depth`` in metres."""
        self._check_input(depth.shape[:-1], pixels=pixels, depth=depth)
        check_shape("depth", depth, (pixels.shape[-2],))
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
            check_shape("pixels", pixels, (None, 2))
            self._check_input(pixels.shape[:-2], pixels=pixels)
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

    def _check_input(self, batch: torch.Size, **tensors: Tensor) -> None:
        for name, tensor in tensors.items():
            check_same_dtype(**{name: check_floating(name, tensor), "intrinsics": self.intrinsics})
        check_broadcast(**{next(iter(tensors)): batch, "the camera": self.batch_shape})

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
    check_shape("position", check_floating("position", position), (3,))
    check_shape("target", check_floating("target", target), (3,))
    check_same_dtype(position=position, target=target)
    check_broadcast(position=position.shape, target=target.shape)
    position, target = torch.broadcast_tensors(position, target)
    sight = target - position
    size = sight.detach().abs().amax(dim=-1, keepdim=True)
    forward = sight / torch.where(size > 0, size, 1.0)  # of length 1 to 2: its square neither over- nor underflows
    right = torch.linalg.cross(forward, forward.new_tensor(up).expand_as(forward))
    if bool((right.norm(dim=-1) <= 1e-6 * forward.norm(dim=-1)).any()):
        raise ValueError(f"target must differ from position, and up must not be along the line of sight, got up={up}")
    z = forward / forward.norm(dim=-1, keepdim=True)
    x = right / right.norm(dim=-1, keepdim=True)
    rotation = torch.stack([x, torch.linalg.cross(z, x), z], dim=-2)
    shift = -(rotation @ position[..., None])
    last = shift.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*rotation.shape[:-2], 1, 4)
    return torch.cat([torch.cat([rotation, shift], -1), last], -2)
