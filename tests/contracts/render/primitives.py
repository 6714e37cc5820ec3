"""Contracts of lists of tiles, of points, of pruning and of shading."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pullback import render
from pullback.geometry import Camera
from tests.contracts.contract import Bad, Call, Contract, Exempt, Measurement, Module

_SIZE = (3, 4)


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


def _points(generator: torch.Generator) -> list[Call]:
    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    points = torch.cat([2 * rand(8, 2) - 1, 1 + 2 * rand(8, 1)], -1)
    points[:2, 2] -= 3
    return [Call((rand(8, 2), points))]


def _splat(features: Tensor, points: Tensor) -> tuple[Tensor, ...]:
    camera = Camera.pinhole(4.0, _SIZE, dtype=points.dtype, device=points.device)
    return render.splat_points(points, features, camera, subpixels=2)[:3]


def _splat_by_definition(features: Tensor, points: Tensor) -> tuple[Tensor, ...]:
    """Every part of a pixel looks through all points."""
    height, width = _SIZE
    image, alpha, depth = torch.zeros(2, *_SIZE), torch.zeros(1, *_SIZE), torch.zeros(1, *_SIZE)
    image, alpha, depth = image.double(), alpha.double(), depth.double()
    for y in range(2 * height):
        for x in range(2 * width):
            column, row = 8 * points[:, 0] / points[:, 2] + width, 8 * points[:, 1] / points[:, 2] + height
            inside = (points[:, 2] > 0) & (column >= x) & (column < x + 1) & (row >= y) & (row < y + 1)
            if inside.any():
                first = int(torch.where(inside, points[:, 2], torch.inf).argmin())
                image[:, y // 2, x // 2] += features[first]
                alpha[0, y // 2, x // 2] += 0.25
                depth[0, y // 2, x // 2] += points[first, 2]
    count = (4 * alpha).clamp(min=1)
    return image / count, alpha, depth / count


def _scene(generator: torch.Generator) -> list[Call]:
    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    return [Call((rand(9, 3), 0.1 + rand(9), rand(9, 2), rand(9), rand(9)))]


_USED = torch.tensor([1, 0, 3, 0, 0, 2, 1, 1, 0])


def _prune(centers: Tensor, radii: Tensor, features: Tensor, opacity: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    statistics = render.SphereStatistics(_USED.to(gradient.device), gradient, 1)
    scene = render.Spheres(centers, radii, features, opacity)
    return tuple(render.prune_and_split(scene, statistics, generator=torch.Generator().manual_seed(0)).spheres)


def _prune_one_by_one(centers: Tensor, radii: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    features, opacity, gradient = rest
    kept = [i for i in range(9) if _USED[i] > 0]
    busy = sorted(sorted(kept, key=lambda i: -float(gradient[i]))[: 9 - len(kept)])
    direction = torch.randn(len(busy), 3, generator=torch.Generator().manual_seed(0))
    offsets = {i: 0.5 * radii[i] * d / d.norm() for i, d in zip(busy, direction.double(), strict=True)}
    first = [(centers[i] + offsets.get(i, 0.0), radii[i] * (0.5 ** (1 / 3) if i in busy else 1.0), i) for i in kept]
    second = [(centers[i] - offsets[i], radii[i] * 0.5 ** (1 / 3), i) for i in busy]
    places, sizes, sources = zip(*first, *second, strict=True)
    return torch.stack(places), torch.stack(sizes), features[list(sources)], opacity[list(sources)]


def _images(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(3, 3, 3, generator=generator, dtype=torch.float64),))]


def _shader(generator: torch.Generator) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(generator.initial_seed())
        return render.NeuralShader(3, 2)


def _view(generator: torch.Generator) -> list[Call]:
    depth = 0.5 + 3 * torch.rand(*_SIZE, generator=generator, dtype=torch.float64)
    depth[0, 1], depth[2, 3] = -1.0, torch.inf
    return [Call((torch.randn(2, *_SIZE, generator=generator, dtype=torch.float64), depth))]


def _mapped(features: Tensor, depth: Tensor, size: Any = (4, 3), **options: Any) -> Tensor:
    camera = Camera.pinhole(2.0, _SIZE, dtype=features.dtype, device=features.device)
    options = {"cell": 0.8, "origin": (-1.5, 0.5), "axes": (0, 2)} | options
    return render.project_to_map(features, depth, camera, size=size, **options).features


def _mapped_by_pixels(features: Tensor, depth: Tensor) -> Tensor:
    cells: dict[tuple[int, int], list[Tensor]] = {}
    for y in range(3):
        for x in range(4):
            z = float(depth[y, x])
            if 0 < z < torch.inf:
                across = (x + 0.5 - 2) / 2 * z  # of the pinhole with its focal length of 2 pixels
                place = (int((z - 0.5) // 0.8), int((across + 1.5) // 0.8))
                cells.setdefault(place, []).append(features[:, y, x])
    result = torch.zeros(2, 4, 3, dtype=features.dtype)
    for (row, column), values in cells.items():
        if 0 <= row < 4 and 0 <= column < 3:
            result[:, row, column] = torch.stack(values).mean(0)
    return result


def _memory(generator: torch.Generator) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(generator.initial_seed())
        return render.MapMemory(2, 3)


_SEEN = torch.tensor([[True, False, True], [False, True, True]])


CONTRACTS = [
    Measurement(
        "render.tile_primitives",
        _bin,
        _boxes,
        reference=_bin_by_pixels,
        bad=[
            Bad((torch.zeros(2, 3), torch.zeros(2)), {}, ValueError, "boxes must have shape"),
            Bad((torch.zeros(2, 4), torch.zeros(3)), {}, ValueError, "depths must have shape"),
            Bad((torch.zeros(1, 2, 4), torch.zeros(2)), {}, ValueError, "boxes must have 2 dimensions"),
            Bad((torch.zeros(2, 4), torch.zeros(2)), {"tile": 0}, ValueError, "tile must be an integer >= 1"),
            Bad((torch.zeros(2, 4).long(), torch.zeros(2)), {}, TypeError, "boxes must be a floating tensor"),
        ],
        why="returns lists of indices, of a length that depends on the data",
    ),
    Contract(
        "render.splat_points",
        _splat,
        _points,
        reference=_splat_by_definition,
        batched=False,
        vmap=False,
        bad=[
            Bad((torch.zeros(2, 1), torch.zeros(3, 3)), {}, ValueError, "features must have shape"),
            Bad((torch.zeros(3, 1), torch.zeros(3, 2)), {}, ValueError, "points must have shape"),
            Bad((torch.zeros(2, 3, 1), torch.zeros(3, 3)), {}, ValueError, "features must have 2 dimensions"),
            Bad((torch.zeros(3, 1).double(), torch.zeros(3, 3)), {}, TypeError, "must have the same dtype"),
        ],
        why="batched, vmap: one cloud of points, seen by any batch of cameras",
    ),
    Contract(
        "render.project_to_map",
        _mapped,
        _view,
        reference=_mapped_by_pixels,
        bad=[
            Bad((torch.zeros(2, 3, 5), torch.zeros(3, 4)), {}, ValueError, "features must have shape"),
            Bad((torch.zeros(2, 3, 4), torch.zeros(4, 3)), {}, ValueError, "depth must have shape"),
            Bad((torch.zeros(2, 3, 4), torch.zeros(3, 4)), {"cell": 0.0}, ValueError, "cell must be"),
            Bad((torch.zeros(2, 3, 4), torch.zeros(3, 4)), {"axes": (0, 0)}, ValueError, "axes must be two different"),
            Bad((torch.zeros(2, 3, 4), torch.zeros(3, 4)), {"size": (0, 3)}, ValueError, "rows must be an integer"),
            Bad((torch.zeros(2, 3, 4), torch.zeros(3, 4).double()), {}, TypeError, "must have the same dtype"),
        ],
    ),
    Module(
        "render.MapMemory",
        lambda memory, seen: memory(seen, _SEEN.to(seen.device)),
        lambda generator: [Call((torch.randn(2, 2, 3, generator=generator, dtype=torch.float64),))],
        build=_memory,
        bad=[Bad((torch.zeros(3, 2, 3),), {}, ValueError, "seen must have shape")],
    ),
    Exempt("render.TopDownMap", why="what project_to_map returns", tested="render/test_top_down.py"),
    Measurement(
        "render.prune_and_split",
        _prune,
        _scene,
        reference=_prune_one_by_one,
        bad=[Bad((torch.zeros(9, 2), *(torch.ones(9) for _ in range(4))), {}, ValueError, "centers must have shape")],
        why="a step between optimizer steps: what comes out has no history",
    ),
    Exempt(
        "render.SphereStatistics",
        why="sums over views that change in place; its one consumer is prune_and_split",
        tested="render/test_density.py",
    ),
    Module(
        "render.NeuralShader",
        lambda shader, features: shader(features),
        _images,
        build=_shader,
        bad=[Bad((torch.zeros(2, 4, 4),), {}, ValueError, "features must have shape")],
    ),
]
