"""The renderers against their peers, forward and backward. ``pullback bench render``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pullback.geometry import Camera
from pullback.lab.bench import Case
from pullback.render import render_spheres

_RANGE = (1.0, 6.0)


def _scene(n: int) -> Callable[[], list[Tensor]]:
    def setup() -> list[Tensor]:
        stream = torch.Generator().manual_seed(0)
        centers = torch.rand(n, 3, generator=stream) * 3 + torch.tensor([-1.5, -1.5, 2.0])
        radii = 0.03 + 0.03 * torch.rand(n, generator=stream)
        return [t.requires_grad_() for t in (centers, radii, torch.rand(n, 3, generator=stream))]

    return setup


def _ours(size: int, method: str) -> Callable[[list[Tensor]], None]:
    camera = Camera.pinhole(float(size), (size, size))

    def work(scene: list[Tensor]) -> None:
        image = render_spheres(*scene, camera, depth_range=_RANGE, method=method).image
        torch.autograd.grad(image.square().sum(), scene)

    return work


def _pytorch3d(size: int) -> Callable[[list[Tensor]], None]:
    def work(scene: list[Tensor]) -> None:
        from pytorch3d.renderer.points.pulsar import Renderer

        centers, radii, features = scene
        renderer = Renderer(size, size, len(radii), n_channels=3, right_handed_system=False)
        # Position, axis-angle rotation, focal length and sensor width: the field of view of our camera.
        camera = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
        image = renderer(centers, features, radii, camera, 1e-2, _RANGE[1], min_depth=_RANGE[0])
        torch.autograd.grad(image.square().sum(), scene)

    return work


CASES = [
    Case(
        f"spheres, forward+backward, n={n}, {size} x {size}",
        _scene(n),
        _ours(size, "kernel"),
        {"reference (plain torch)": _ours(size, "reference"), "PyTorch3D": _pytorch3d(size)},
    )
    for n, size in ((500, 64), (2000, 64))
]
