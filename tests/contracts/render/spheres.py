"""Contracts of ``pullback.render``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import render
from pullback.geometry import Camera
from tests.contracts.contract import Bad, Call, Contract

_SIZE = (3, 4)
_FIRST = "the kernel has first derivatives and serves plain eager calls"
_CLIPPED = "half precision: the samples are near silhouettes on the scale of ten bits"


def _spheres(generator: torch.Generator) -> list[Call]:
    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    n = 4
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


def _boxes(generator: torch.Generator) -> list[Call]:
    corner = 40 * torch.rand(30, 2, generator=generator, dtype=torch.float64) - 5
    extent = 12 * torch.rand(30, 2, generator=generator, dtype=torch.float64) - 1
    depths = torch.rand(30, generator=generator, dtype=torch.float64).mul(8).round()
    return [Call((torch.cat([corner, corner + extent], -1), depths))]


def _dense(lists: render.TileLists) -> Tensor:
    """The lists as ``[tiles, longest]``, filled with -1."""
    parts = [lists.indices[a:b] for a, b in zip(lists.offsets[:-1], lists.offsets[1:], strict=True)]
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=-1)


def _bin(boxes: Tensor, depths: Tensor, tile: Any = 8) -> Tensor:
    return _dense(render.tile_primitives(boxes, depths, (21, 35), tile))


def _bin_by_pixels(boxes: Tensor, depths: Tensor) -> Tensor:
    lists = []
    for top in range(0, 21, 8):
        for left in range(0, 35, 8):
            y = torch.arange(top, min(top + 8, 21)) + 0.5
            x = torch.arange(left, min(left + 8, 35)) + 0.5
            inside = [bool(((b[1] <= y) & (y <= b[3])).any() and ((b[0] <= x) & (x <= b[2])).any()) for b in boxes]
            lists.append(torch.tensor([i for i in torch.argsort(depths, stable=True).tolist() if inside[i]]).long())
    return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=-1)


def _images(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(3, 3, 3, generator=generator, dtype=torch.float64),))]


def _shader(dtype: torch.dtype) -> render.NeuralShader:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return render.NeuralShader(3, 2).to(dtype)


# Made here, not in the block: in a torch.func transform a module cannot change its dtype.
_SHADERS = {dtype: _shader(dtype) for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}


def _shade(features: Tensor) -> Tensor:
    return _SHADERS[features.dtype](features)


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
    Bad(_ARGS, {"track": 0}, ValueError, "track must be an integer >= 1, got 0"),
    Bad(_ARGS, {"allowed_difference": 1.0}, ValueError, "allowed_difference"),
    Bad(_with(0, _ARGS[0][:, :2]), {}, ValueError, "centers must have shape"),
    Bad(_with(0, _ARGS[0] * torch.nan), {}, ValueError, "centers must be finite"),
    Bad(_with(2, _ARGS[2][:3]), {}, ValueError, "features must have shape"),
    Bad(_with(4, _ARGS[4][:1]), {}, ValueError, "background must have shape"),
    Bad(_with(1, _ARGS[1].double()), {}, ValueError, "radii must be torch.float32"),
    Bad(_with(2, _ARGS[2].long()), {}, TypeError, "features must be a floating tensor"),
]

CONTRACTS = [
    Contract(
        "render.render_spheres",
        _render(None),
        _spheres,
        reference=_by_definition,
        bad=_BAD,
        gradgradcheck=False,
        forward_mode=False,
        compile=False,
        half_tolerance=5e-2,
        why=_FIRST + "; compile is a law of the reference",
    ),
    Contract(
        "render.render_spheres[reference]",
        _render("reference"),
        _spheres,
        reference=_by_definition,
        half_tolerance=5e-2,
        bad=[Bad(_ARGS, {"gamma": 0.0}, ValueError, "gamma must be in")],
    ),
    Contract(
        "render.tile_primitives",
        _bin,
        _boxes,
        reference=_bin_by_pixels,
        bad=[
            Bad((torch.zeros(2, 3), torch.zeros(2)), {}, ValueError, "boxes must have shape"),
            Bad((torch.zeros(2, 4), torch.zeros(3)), {}, ValueError, "depths must have shape"),
            Bad((torch.zeros(2, 4), torch.zeros(2)), {"tile": 0}, ValueError, "tile must be an integer >= 1"),
        ],
        gradcheck=False,
        gradgradcheck=False,
        forward_mode=False,
        vmap=False,
        compile=False,
        half=False,
        batched=False,
        why="returns lists of indices, of a length that depends on the data",
    ),
    Contract(
        "render.NeuralShader",
        _shade,
        _images,
        bad=[Bad((torch.zeros(2, 4, 4),), {}, ValueError, "features must have shape")],
    ),
]
