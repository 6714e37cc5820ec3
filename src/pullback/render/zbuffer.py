"""The z-buffer: which sphere is in front, with a gradient to what it shows and none to where it is."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_broadcast, check_floating, check_shape
from pullback.core.shapes import Float, Int, Tensor
from pullback.geometry import Camera
from pullback.render.blending import CHUNK, intersections
from pullback.render.scene import check_depth_range, check_spheres, in_reach, items

__all__ = ["ZBuffer", "zbuffer_spheres"]


class ZBuffer(NamedTuple):
    """What an opaque rendering sees.

    Attributes:
        nearest: ``[*batch, height, width]`` int64: the sphere that a pixel's ray meets first, -1 where it meets none.
        depth: ``[*batch, height, width]`` of the point met, metres; the far end of the range where there is none.
    """

    nearest: Int[Tensor, "*batch height width"]
    depth: Float[Tensor, "*batch height width"]

    def image(
        self, features: Float[Tensor, "n channels"], background: Float[Tensor, "channels"]
    ) -> Float[Tensor, "*batch channels height width"]:
        """Return the features of the spheres in front, differentiable in ``features`` and ``background``.

        Args:
            features: ``[n, channels]`` of the spheres, the same in every view.
            background: ``[channels]`` where there is no sphere.

        Raises:
            ValueError: a shape is not as said.

        Example:
            >>> seen = ZBuffer(torch.tensor([[0, -1]]), torch.tensor([[2.0, 9.0]]))
            >>> seen.image(torch.ones(1, 1), torch.zeros(1)).tolist()
            [[[1.0, 0.0]]]
        """
        check_shape("features", check_floating("features", features), (None, None))
        check_shape("background", check_floating("background", background), (features.shape[-1],))
        # The index -1 is the last row.
        return torch.cat([features, background[None]])[self.nearest].movedim(-1, -3)


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
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: ``radii`` or ``depth_range`` or a shape is not as said, or a centre is not finite.

    Example:
        >>> centers = torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 2.0]])
        >>> seen = zbuffer_spheres(centers, torch.ones(2), Camera.pinhole(10.0, (1, 1)), depth_range=(0.5, 5.0))
        >>> seen.nearest.item(), seen.depth.item()
        (1, 1.0)
    """
    check_spheres(centers, radii, camera)
    near, far = check_depth_range(depth_range, centers)
    dtype = centers.dtype
    if dtype in (torch.float16, torch.bfloat16):
        centers, radii, camera = centers.float(), radii.float(), camera.to(torch.float32)
    batch = check_broadcast(centers=centers.shape[:-2], radii=radii.shape[:-1], camera=camera.batch_shape)
    with torch.no_grad():
        seen, radii = in_reach(camera.transform(centers), radii)
        parts = items(batch, (seen, 2), (radii, 1), (camera.pixel_directions(), 3))
        indices, depths = [], []
        for points, radius, rays in zip(*(p.unbind(0) for p in parts), strict=True):
            for part in rays.flatten(0, 1).split(max(1, CHUNK // max(1, len(points)))):
                front, _, hit = intersections(part, points, radius, near, far)
                # The plane at the far end stands for "nothing", also where there are no spheres at all.
                none = front.new_full((len(part), 1), far)
                depth, index = torch.cat([none, torch.where(hit, front, torch.inf)], -1).min(-1)
                indices.append(index - 1)
                depths.append(depth)
        shape = (*batch, *camera.size)
        empty = seen.new_zeros(0)
        nearest, depth = torch.cat([empty.long(), *indices]).view(shape), torch.cat([empty, *depths]).view(shape)
        return ZBuffer(nearest, depth.to(dtype))
