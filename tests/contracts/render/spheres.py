"""Contracts of the renderer of spheres, by each of its methods, and of its hard limit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import render
from pullback.geometry import Camera
from tests.contracts.contract import Bad, Call, Contract, Measurement

_SIZE = (2, 2)


def _spheres(generator: torch.Generator) -> list[Call]:
    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    n = 3
    centers = torch.cat([rand(n, 2) - 0.5, 2 + rand(n, 1)], -1)
    intrinsics = torch.tensor([[6.0, 0.2, 2.1], [0.0, 6.3, 1.4], [0.0, 0.0, 1.0]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = 0.1 * (rand(3) - 0.5)
    scene = (centers, 0.2 + 0.3 * rand(n), rand(n, 2), 0.2 + 0.7 * rand(n), rand(2), intrinsics, pose)
    return [Call(scene), Call(scene, {"track": 2})]


def _render(method: str | None) -> Any:
    def block(
        centers: Tensor,
        radii: Tensor,
        features: Tensor,
        opacity: Tensor,
        background: Tensor,
        intrinsics: Tensor,
        pose: Tensor,
        **options: Any,
    ) -> tuple[Tensor, ...]:
        options = {"gamma": 0.1, "depth_range": (0.5, 5.0), "size": _SIZE, **options}
        camera = Camera(intrinsics, pose, options.pop("size"))
        found = render.render_spheres(
            centers, radii, features, camera, opacity=opacity, background=background, method=method, **options
        )
        return found.image, found.alpha, found.depth

    return block


def _by_definition(
    centers: Tensor,
    radii: Tensor,
    features: Tensor,
    opacity: Tensor,
    background: Tensor,
    intrinsics: Tensor,
    pose: Tensor,
    track: int | None = None,
) -> tuple[Tensor, ...]:
    """Equation 1 pixel by pixel and sphere by sphere, with quadratics solved as in a school book."""
    near, far, gamma, eps = 0.5, 5.0, 0.1, 1e-6
    image, alpha, depth = torch.zeros(2, *_SIZE), torch.zeros(1, *_SIZE), torch.zeros(1, *_SIZE)
    image, alpha, depth = image.double(), alpha.double(), depth.double()
    seen = centers @ pose[:3, :3].T + pose[:3, 3]
    for y in range(_SIZE[0]):
        for x in range(_SIZE[1]):
            v = torch.linalg.inv(intrinsics) @ torch.tensor([x + 0.5, y + 0.5, 1.0], dtype=torch.float64)
            ground = torch.exp(torch.tensor(eps / gamma, dtype=torch.float64))
            weights, values, depths = [ground], [background], [torch.tensor(far, dtype=torch.float64)]
            for c, r, f, o in zip(seen, radii, features, opacity, strict=True):
                a, b, q = v @ v, -2 * v @ c, c @ c - r * r
                discriminant = b * b - 4 * a * q
                if discriminant <= 0:
                    continue
                front = (-b - discriminant.sqrt()) / (2 * a)
                distance = torch.linalg.cross(v, c).norm() / v.norm()
                z = (far - front) / (far - near)
                weights.append(o * (1 - distance / r) * torch.exp(o * z / gamma))
                values.append(f)
                depths.append(front)
            w = torch.stack(weights) / torch.stack(weights).sum()
            image[:, y, x] = w @ torch.stack(values)
            alpha[0, y, x] = 1 - w[0]
            depth[0, y, x] = w @ torch.stack(depths)
    return image, alpha, depth


def _zbuffer(centers: Tensor, radii: Tensor, *rest: Any, **_: Any) -> render.ZBuffer:
    return render.zbuffer_spheres(centers, radii, Camera(*rest[-2:], _SIZE), depth_range=(0.5, 5.0))


def _zbuffer_by_definition(centers: Tensor, radii: Tensor, *rest: Any, **_: Any) -> tuple[Tensor, ...]:
    """The smallest root of each quadratic, one ray and one sphere at a time."""
    intrinsics, pose = rest[-2:]
    nearest, depth = torch.full(_SIZE, -1), torch.full(_SIZE, 5.0, dtype=torch.float64)
    seen = centers @ pose[:3, :3].T + pose[:3, 3]
    for y in range(_SIZE[0]):
        for x in range(_SIZE[1]):
            v = torch.linalg.inv(intrinsics) @ torch.tensor([x + 0.5, y + 0.5, 1.0], dtype=torch.float64)
            for i, (c, r) in enumerate(zip(seen, radii, strict=True)):
                discriminant = (v @ c) ** 2 - (v @ v) * (c @ c - r * r)
                front = (v @ c - discriminant.clamp(min=0).sqrt()) / (v @ v)
                if discriminant > 0 and 0.5 <= front < depth[y, x]:
                    nearest[y, x], depth[y, x] = i, front
    return nearest, depth


_ARGS = tuple(t.float() for t in _spheres(torch.Generator().manual_seed(0))[0].args)


def _with(place: int, value: Tensor) -> tuple[Tensor, ...]:
    return (*_ARGS[:place], value, *_ARGS[place + 1 :])


_BAD = [
    Bad(_ARGS, {"gamma": 1e-6}, ValueError, r"gamma must be in \[1e-05, 1.0\], got 1e-06"),
    Bad(_ARGS, {"gamma": 1.5}, ValueError, "gamma must be in"),
    Bad(_with(1, -_ARGS[1]), {}, ValueError, "radii must be > 0"),
    Bad(_with(1, 0 * _ARGS[1]), {}, ValueError, "radii must be > 0 everywhere, got minimum 0.0"),
    Bad(_with(3, 1 + _ARGS[3]), {}, ValueError, r"opacity must be in \[0, 1\] everywhere, got 1\."),
    Bad(_ARGS, {"depth_range": (2.0, 2.0)}, ValueError, r"depth_range must be .* got \(2.0, 2.0\)"),
    Bad(_ARGS, {"depth_range": (-1.0, 2.0)}, ValueError, "depth_range"),
    Bad(_ARGS, {"gamma": torch.tensor(-0.1)}, ValueError, "gamma must be >= 0"),
    Bad(_ARGS, {"depth_range": (torch.tensor(1.0), 2.0)}, TypeError, "depth_range must be .near, far., two numbers"),
    Bad(_ARGS, {"depth_range": (1.0,)}, ValueError, "depth_range must be"),
    Bad(tuple(a.half() for a in _ARGS), {"depth_range": (1.0, 1e5)}, ValueError, "depth_range must end within"),
    Bad(_with(3, _ARGS[3].expand(2, 3)), {"track": 1.0}, TypeError, "track must be an integer"),
    Bad((_ARGS[0].expand(3, 3, 3), _ARGS[1].expand(2, 3), *_ARGS[2:]), {}, ValueError, "shapes that broadcast"),
    Bad(_ARGS, {"track": 0}, ValueError, "track must be an integer >= 1, got 0"),
    Bad(_ARGS, {"allowed_difference": 1.0}, ValueError, "allowed_difference"),
    Bad(_with(0, _ARGS[0][:, :2]), {}, ValueError, "centers must have shape"),
    Bad(_with(0, _ARGS[0] * torch.nan), {}, ValueError, "centers must be finite"),
    Bad(_with(2, _ARGS[2][:2]), {}, ValueError, "features must have shape"),
    Bad(_with(4, _ARGS[4][:1]), {}, ValueError, "background must have shape"),
    Bad(_with(1, _ARGS[1].double()), {}, TypeError, "centers and radii and camera must have the same dtype"),
    Bad(_with(2, _ARGS[2].long()), {}, TypeError, "features must be a floating tensor"),
]

_EAGER = "forward mode, compile: of the reference alone, which is taken under them; {} serves plain eager calls"

CONTRACTS = [
    Contract(
        f"render.render_spheres[{method}]" if method else "render.render_spheres",
        _render(method),
        _spheres,
        reference=_by_definition,
        bad=_BAD if method is None else _BAD[:1],
        scalars={"gamma": 0.1},
        large=(0, 1),
        forward_mode=method == "reference",
        compile=method == "reference",
        vmap=method in (None, "reference"),
        half_tolerance=5e-2,
        why="" if method == "reference" else _EAGER.format(f"the method {method or 'kernel'}"),
    )
    for method in (None, "tiles", "reference")
] + [
    Measurement(
        "render.zbuffer_spheres",
        _zbuffer,
        _spheres,
        reference=_zbuffer_by_definition,
        outputs=lambda seen: (seen.nearest, seen.depth),
        batched=True,
        half=True,
        large=(0, 1),
        bad=[Bad(_with(1, -_ARGS[1]), {}, ValueError, "radii must be > 0"), _BAD[-2]],
        why="no gradient: which sphere is in front is a constant almost everywhere",
    )
]
