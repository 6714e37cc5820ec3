"""Contracts of polygons: distances edge by edge in plain numbers, areas by counting."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback import geometry
from tests.contracts.contract import Bad, Call, Contract, Measurement


def _corners(g: torch.Generator, *shape: int) -> Tensor:
    return 4 * torch.rand(*shape, 2, generator=g, dtype=torch.float64)


def _distance(point: Tensor, polygon: Tensor) -> float:
    best = math.inf
    for a, b in zip(polygon.tolist(), polygon.roll(-1, 0).tolist(), strict=True):
        edge = (b[0] - a[0], b[1] - a[1])
        offset = (float(point[0]) - a[0], float(point[1]) - a[1])
        share = (offset[0] * edge[0] + offset[1] * edge[1]) / (edge[0] ** 2 + edge[1] ** 2)
        share = min(max(share, 0), 1)
        best = min(best, math.hypot(offset[0] - share * edge[0], offset[1] - share * edge[1]))
    return best


def _polis(first: Tensor, second: Tensor) -> Tensor:
    if first.ndim > 2:
        return torch.stack([_polis(a, b) for a, b in zip(first, second.expand(len(first), -1, -1), strict=True)])
    there = sum(_distance(p, second) for p in first) / len(first)
    back = sum(_distance(p, first) for p in second) / len(second)
    return torch.tensor((there + back) / 2, dtype=first.dtype)


def _turns(row: float, column: float, polygon: Tensor) -> bool:
    """Whether the directions to the corners add up to an odd number of turns."""
    total = 0.0
    angles = torch.atan2(polygon[:, 0] - row, polygon[:, 1] - column).tolist()
    for before, after in zip(angles, [*angles[1:], angles[0]], strict=True):
        total += (after - before + math.pi) % (2 * math.pi) - math.pi
    return round(total / (2 * math.pi)) % 2 == 1


def _soft_raster(vertices: Tensor, size: int, softness: float) -> Tensor:
    if vertices.ndim > 2:
        return torch.stack([_soft_raster(v, size, softness) for v in vertices])
    image = torch.zeros(size, size, dtype=vertices.dtype)
    for r in range(size):
        for c in range(size):
            d = _distance(torch.tensor([r + 0.5, c + 0.5]), vertices)
            d = d if _turns(r + 0.5, c + 0.5, vertices) else -d
            image[r, c] = 1 / (1 + math.exp(-d / softness))
    return image


def _raster(vertices: Tensor, size: int = 4, softness: float = 0.0) -> Tensor:
    return geometry.rasterize_polygon(vertices, size, softness=softness)


def _masks(g: torch.Generator) -> list[Call]:
    return [Call(tuple(torch.rand(2, 3, 4, generator=g) < 0.5 for _ in range(2)))]


def _areas(mask: Tensor, truth: Tensor) -> Tensor:
    pairs = zip(mask.flatten(1).tolist(), truth.flatten(1).tolist(), strict=True)
    return torch.tensor([sum(map(min, zip(*p, strict=True))) / sum(map(max, zip(*p, strict=True))) for p in pairs])


_SQUARE = torch.tensor([[0.0, 0.0], [0.0, 2.0], [2.0, 2.0], [2.0, 0.0]])

CONTRACTS = [
    Contract(
        "geometry.rasterize_polygon",
        _raster,
        lambda g: [
            Call((_corners(g, 2, 3),), {"size": 2, "softness": 0.5}),
            Call((_corners(g, 5),), {"size": 3, "softness": 2.0}),
        ],
        reference=_soft_raster,
        large=(),
        why="a corner that is far away leaves sizes of pixels no digits",
        bad=[
            Bad((_SQUARE[:2],), {}, ValueError, r"vertices must have shape \(..., n, 2\) with n >= 3"),
            Bad((_SQUARE * torch.nan,), {}, ValueError, "vertices must be finite"),
            Bad((_SQUARE,), {"size": 0}, ValueError, "the height of size must be an integer >= 1"),
            Bad((_SQUARE,), {"softness": -1.0}, ValueError, "softness must be >= 0"),
            Bad((_SQUARE.long(),), {}, TypeError, "vertices must be a floating tensor"),
        ],
    ),
    Measurement(
        "geometry.rasterize_polygon[hard]",
        _raster,
        lambda g: [Call((_corners(g, 2, 6),), {"size": 5})],
        reference=lambda vertices, size: (_soft_raster(vertices, size, 1.0) > 0.5).to(vertices.dtype),
    ),
    Measurement(
        "geometry.polygon_iou",
        geometry.polygon_iou,
        _masks,
        reference=_areas,
        tolerance=1e-6,
        bad=[
            Bad((torch.ones(2, 2), torch.ones(2, 2).bool()), {}, TypeError, "mask must be a boolean tensor"),
            Bad((torch.ones(2, 2).bool(), torch.ones(2, 3).bool()), {}, ValueError, "mask and truth must have shapes"),
            Bad((torch.ones(2).bool(), torch.ones(2).bool()), {}, ValueError, r"mask must have shape \(..., h, w\)"),
        ],
    ),
    Contract(
        "geometry.complexity_iou",
        geometry.complexity_iou,
        lambda g: [Call(tuple(torch.rand(4, generator=g, dtype=torch.float64) + 0.1 for _ in range(3)))],
        reference=lambda iou, n, m: torch.stack(
            [a * 2 * min(b, c) / (b + c) for a, b, c in zip(iou, n, m, strict=True)]  # the same, said otherwise
        ),
        bad=[
            Bad((torch.ones(2), -torch.ones(2), torch.ones(2)), {}, ValueError, "vertices must be >= 0"),
            Bad((torch.ones(2), torch.ones(3), torch.ones(2)), {}, ValueError, "must have shapes that broadcast"),
            Bad(
                (torch.ones(2), torch.ones(2).long(), torch.ones(2)),
                {},
                TypeError,
                "vertices must be a floating tensor",
            ),
            Bad((torch.ones(2), torch.ones(2).double(), torch.ones(2)), {}, TypeError, "must have the same dtype"),
        ],
    ),
    Contract(
        "geometry.polis_distance",
        geometry.polis_distance,
        lambda g: [Call((_corners(g, 2, 3), _corners(g, 4))), Call((_corners(g, 3), _corners(g, 5)))],
        reference=_polis,
        large=(0, 1),
        large_limit=1e4,
        half_tolerance=5e-2,
        why="squares of the largest numbers overflow by nature",
        bad=[
            Bad((_SQUARE[:2], _SQUARE), {}, ValueError, "first must have shape"),
            Bad((_SQUARE, _SQUARE.double()), {}, TypeError, "must have the same dtype"),
            Bad((_SQUARE, _SQUARE * torch.inf), {}, ValueError, "second must be finite"),
        ],
    ),
]
