"""Contracts of meshes: areas by Heron's formula, nearest points one by one, crossings by solving for them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from pullback import geometry
from tests.contracts.contract import Bad, Call, Contract, Measurement

_NAN = float("nan")
_FACES = torch.tensor([[0, 1, 2], [2, 1, 3]])


def _corners(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, 3, generator=g, dtype=torch.float64)


def _measure(kind: str) -> Any:
    def block(vertices: Tensor, faces: Tensor, **words: Any) -> tuple[Tensor, Tensor]:
        return tuple(geometry.mesh_measure(vertices, faces.to(vertices.device), kind=kind, **words))

    return block


def _seeded(vertices: Tensor, faces: Tensor, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return geometry.mesh_measure(vertices, faces.to(vertices.device), count=count, generator=generator).points


def _middles(vertices: Tensor, faces: Tensor, normal_weight: float | None = None) -> tuple[Tensor, Tensor]:
    """Areas from the lengths of the sides; normals that are orthogonal to two of them."""
    if vertices.ndim > 2:
        parts = [_middles(v, faces, normal_weight) for v in vertices]
        return tuple(torch.stack(p) for p in zip(*parts, strict=True))  # type: ignore[return-value]
    points, areas = [], []
    for face in faces.tolist():
        a, b, c = vertices[face]
        sides = [float((p - q).square().sum()) ** 0.5 for p, q in ((a, b), (b, c), (c, a))]
        half = sum(sides) / 2
        areas.append((half * (half - sides[0]) * (half - sides[1]) * (half - sides[2])) ** 0.5)
        null = torch.linalg.svd(torch.stack([b - a, c - a])).Vh[-1]
        null = null * torch.linalg.det(torch.stack([b - a, c - a, null])).sign()
        middle = (a + b + c) / 3
        points.append(middle if normal_weight is None else torch.cat([middle, normal_weight * null]))
    found = torch.tensor(areas, dtype=vertices.dtype)
    return torch.stack(points), found / found.sum()


def _drawn(vertices: Tensor, faces: Tensor, count: int) -> Tensor:
    """Of one face: the same draws, folded into the triangle."""
    g = torch.Generator().manual_seed(0)
    torch.rand(count, generator=g, dtype=torch.float64)  # which face, of one
    r, s = torch.rand(2, count, generator=g, dtype=torch.float64)
    a, b, c = vertices[faces[0]]
    return torch.stack([a + u**0.5 * (b - a) + u**0.5 * v * (c - b) for u, v in zip(r, s, strict=True)])


def _smoothness(vertices: Tensor, faces: Tensor) -> Tensor:
    if vertices.ndim > 2:
        return torch.stack([_smoothness(v, faces) for v in vertices])
    total, used = torch.zeros((), dtype=vertices.dtype), sorted(set(faces.flatten().tolist()))
    for i in used:
        neighbours = sorted({j for face in faces.tolist() if i in face for j in face} - {i})
        total += (vertices[i] - vertices[neighbours].mean(0)).square().sum()
    return total / len(used)


def _both_ways(x: Tensor, y: Tensor, squared: bool = True) -> Tensor:
    if x.ndim > 2 or y.ndim > 2:
        batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        both = (t.expand(*batch, *t.shape[-2:]) for t in (x, y))
        return torch.stack([_both_ways(*one, squared) for one in zip(*both, strict=True)])
    total = 0.0
    for points, others in ((x, y), (y, x)):
        least = [
            min(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) for b in others.tolist()) for a in points.tolist()
        ]
        total += sum(v if squared else v**0.5 for v in least) / len(least)
    return torch.tensor(total, dtype=x.dtype)


def _dense_distance(vertices: Tensor, faces: Tensor, other_vertices: Tensor, other_faces: Tensor, **_: Any) -> Tensor:
    """Mean distance between grids of points in the triangles, from both sides."""
    grid = torch.tensor([(i, j, 60 - i - j) for i in range(61) for j in range(61 - i)], dtype=torch.float64) / 60
    clouds = [(grid @ v[f]).flatten(0, 1) for v, f in ((vertices, faces), (other_vertices, other_faces))]
    pairs = torch.cdist(*clouds)
    return (pairs.amin(0).mean() + pairs.amin(1).mean()) / 2


def _average(*mesh: Tensor, samples: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return geometry.surface_distance(*mesh, samples=samples, generator=generator).average


def _crossings(vertices: Tensor, faces: Tensor) -> Tensor:
    """Pair by pair: where an edge meets the plane of the other face, in barycentric coordinates."""
    found = torch.zeros(len(faces), dtype=torch.bool)
    for i, j in itertools.permutations(range(len(faces)), 2):
        mine, other = faces[i].tolist(), faces[j].tolist()
        a, b, c = vertices[other]
        for k in range(3):
            ends = mine[k], mine[(k + 1) % 3]
            if set(ends) & set(other):
                continue
            p, q = vertices[list(ends)]
            t, u, v = torch.linalg.solve(torch.stack([p - q, b - a, c - a], 1), p - a).tolist()
            if 0 < t < 1 and u > 0 and v > 0 and u + v < 1:
                found[i] = found[j] = True
    return found


_FLAT = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
_MESH_ERRORS = [
    ((torch.zeros(4, 2), _FACES), ValueError, r"vertices must have shape \(..., v, 3\), got \(4, 2\)"),
    ((_FLAT.long(), _FACES), TypeError, "vertices must be a floating tensor"),
    ((_FLAT, _FACES.float()), TypeError, "faces must hold integers, got torch.float32"),
    ((_FLAT, torch.tensor([[0, 1, 2, 3]])), ValueError, r"faces must be triangles of shape \(f, 3\)"),
    ((_FLAT, torch.tensor([[0, 1, 4]])), ValueError, "faces must be in 0..3, got 0..4"),
    ((_FLAT * _NAN, _FACES), ValueError, "vertices must be finite"),
    ((torch.zeros(4, 3), _FACES), ValueError, "faces must have an area, got none of 2 with any"),
]
_CLOUD = torch.zeros(2, 2)
_WORDS: dict[str, dict[str, Any]] = {"samples": {"count": 3}, "varifold": {"normal_weight": 1.0}}

CONTRACTS = [
    *[
        Contract(
            f"geometry.mesh_measure[{kind}]",
            _measure(kind),
            lambda g, words=words: [Call((_corners(g, 2, 4), _FACES), words)],
            reference=_middles,
            scalars=dict.fromkeys(words, 0.5),
            large_limit=1e8,
            bad=[
                *(Bad(args, words, error, match) for args, error, match in _MESH_ERRORS),
                Bad(
                    (_FLAT, _FACES),
                    {"count": 3},
                    ValueError,
                    "count must be given for kind='samples', and for no other",
                ),
            ],
            why="the difference of the largest numbers overflows",
        )
        for kind, words in (("barycentres", {}), ("varifold", {"normal_weight": 0.5}))
    ],
    Contract(
        "geometry.mesh_measure[samples]",
        _seeded,
        lambda g: [Call((_corners(g, 3), _FACES[:1]), {"count": 4})],
        reference=_drawn,
        large_limit=1e8,
        batched=False,
        vmap=False,
        compile=False,
        why="random: each problem of a batch has draws of its own; the difference of the largest numbers overflows",
        bad=[
            Bad((_FLAT, _FACES), {"count": 0}, ValueError, "count must be an integer >= 1, got 0"),
            Bad((_FLAT, _FACES), {"count": None}, ValueError, "count must be given for kind='samples'"),
        ],
    ),
    Contract(
        "geometry.laplacian_energy",
        lambda vertices, faces: geometry.laplacian_energy(vertices, faces.to(vertices.device)),
        lambda g: [Call((_corners(g, 2, 5), _FACES)), Call((_corners(g, 4), torch.tensor([[0, 1, 2], [1, 2, 3]])))],
        reference=_smoothness,
        large_limit=1e8,
        bad=[Bad(args, {}, error, match) for args, error, match in _MESH_ERRORS[:-1]],
        why="squares of the largest numbers overflow by nature",
    ),
    Contract(
        "geometry.chamfer",
        geometry.chamfer,
        lambda g: [
            Call((_corners(g, 2, 3), _corners(g, 4))),
            Call((_corners(g, 2), _corners(g, 3)), {"squared": False}),
        ],
        reference=_both_ways,
        large=(0, 1),
        large_limit=1e8,
        bad=[
            Bad((torch.zeros(2), _CLOUD), {}, ValueError, r"x must have shape \(..., points, dimensions\), got \(2,\)"),
            Bad((_CLOUD, torch.zeros(0, 2)), {}, ValueError, r"y must have shape \(..., points, dimensions\)"),
            Bad((_CLOUD, torch.zeros(2, 3)), {}, ValueError, "x and y must have points of one dimension, got 2 and 3"),
            Bad((_CLOUD, _CLOUD.double()), {}, TypeError, "x and y must have the same dtype"),
            Bad((_CLOUD, _CLOUD * _NAN), {}, ValueError, "y must be finite"),
        ],
        why="squares of the largest numbers overflow by nature",
    ),
    Measurement(
        "geometry.surface_distance",
        _average,
        lambda g: [Call((_corners(g, 4), _FACES, _corners(g, 3) + 1, _FACES[:1]), {"samples": 2000})],
        reference=_dense_distance,
        tolerance=3e-2,
        bad=[
            *(Bad((*args, _FLAT, _FACES), {"samples": 2}, error, match) for args, error, match in _MESH_ERRORS),
            Bad(
                (_FLAT, _FACES, _FLAT, _FACES + 2), {"samples": 2}, ValueError, "other_faces must be in 0..3, got 2..5"
            ),
            Bad((_FLAT, _FACES, _FLAT, _FACES), {"samples": 0}, ValueError, "samples must be an integer >= 1"),
            Bad((_FLAT[None], _FACES, _FLAT, _FACES), {"samples": 2}, ValueError, r"vertices must have shape \(v, 3\)"),
            Bad((_FLAT, _FACES, _FLAT.double(), _FACES), {"samples": 2}, TypeError, "must have the same dtype"),
        ],
    ),
    Measurement(
        "geometry.self_intersections",
        geometry.self_intersections,
        lambda g: [
            Call((_corners(g, 12), torch.randperm(12, generator=g).view(4, 3))),
            Call((_corners(g, 8), torch.stack([torch.randperm(8, generator=g)[:3] for _ in range(6)]))),
        ],
        reference=_crossings,
        bad=[
            *(Bad(args, {}, error, match) for args, error, match in _MESH_ERRORS),
            Bad((_FLAT[None], _FACES), {}, ValueError, r"vertices must have shape \(v, 3\)"),
        ],
    ),
]
