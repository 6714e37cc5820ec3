"""Contracts of ``pullback.topology``: complexes, Euler curves and transforms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import topology
from tests.contracts.contract import DEVICE, Bad, Call, Contract, Exempt, Measurement, Module

_FACES = torch.tensor([[0, 1, 2], [1, 2, 3], [2, 3, 4], [0, 5, 4]])
_EDGES = [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4), (0, 5), (4, 5), (0, 4)]
_BATCH = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
_THRESHOLDS = torch.tensor([0.7, -0.3, 0.1], dtype=torch.float64)


def _complex(vertices: Tensor) -> topology.Complex:
    """Four triangles as one shape, an edge as another."""
    cells = torch.tensor([*_EDGES, (6, 7)], device=vertices.device), _FACES.to(vertices.device)
    return topology.Complex(vertices, cells, _BATCH.to(vertices.device), 2)


def _transform(vertices: Tensor, directions: Tensor, thresholds: Tensor, **kwargs: Any) -> Tensor:
    return topology.euler_transform(_complex(vertices), directions, thresholds, **{"sharpness": 5.0, **kwargs})


def _samples(g: torch.Generator) -> list[Call]:
    vertices, directions = (torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (8, 2))
    return [Call((0.5 * vertices, directions, _THRESHOLDS))]


def _cells() -> list[tuple[int, ...]]:
    return [*((v,) for v in range(8)), *_EDGES, (6, 7), *map(tuple, _FACES.tolist())]


def _one_by_one(step: Any) -> Any:
    def count(vertices: Tensor, directions: Tensor, thresholds: Tensor) -> Tensor:
        total = torch.zeros(2, len(thresholds), len(directions), dtype=torch.float64)
        for j, direction in enumerate(directions):
            height = vertices @ (direction / direction.norm())
            for cell in _cells():
                entered = step(thresholds - max(height[v] for v in cell))
                total[int(_BATCH[cell[0]]), :, j] += (-1) ** (len(cell) - 1) * entered
        return total

    return count


_smooth = _one_by_one(lambda x: 1 / (1 + torch.exp(-5 * x)))
_exact = _one_by_one(lambda x: (x >= 0).double())


def _normalized(vertices: Tensor, directions: Tensor, thresholds: Tensor) -> Tensor:
    return torch.stack([image / image.abs().max() for image in _smooth(vertices, directions, thresholds)])


def _curve(vertices: Tensor, edges: Tensor, thresholds: Tensor, **kwargs: Any) -> Tensor:
    batch = [torch.arange(len(h), device=h.device) % 2 for h in (vertices, edges)]
    options = {"sharpness": 5.0, "batch": batch, "count": 2, **kwargs}
    return topology.euler_curve([vertices, edges], thresholds, **options)


def _heights(g: torch.Generator) -> list[Call]:
    return [Call((*(torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (5, 4)), _THRESHOLDS))]


def _curve_one_by_one(vertices: Tensor, edges: Tensor, thresholds: Tensor) -> Tensor:
    total = torch.zeros(2, len(thresholds), 2, dtype=torch.float64)
    for sign, heights in ((1, vertices), (-1, edges)):
        for i, height in enumerate(heights):
            total[i % 2] += sign * torch.sigmoid(5 * (thresholds[:, None] - height))
    return total


def _apply(module: topology.EulerTransform, vertices: Tensor) -> Tensor:
    return module(_complex(vertices))


_RAGGED = "the batch is ragged: it has an index, not a dimension"
_LINE = torch.tensor([0.0, 1.0])
_BAD_TRANSFORM = [
    Bad((torch.zeros(8, 2), torch.zeros(1, 2), _LINE), {}, ValueError, "directions must have a length > 0, number 0"),
    Bad((torch.zeros(8, 2), torch.ones(1, 3), _LINE), {}, ValueError, "directions must have shape"),
    Bad((torch.zeros(8, 2), torch.ones(1, 2), _LINE), {"sharpness": 0.0}, ValueError, "sharpness must be > 0"),
    Bad((torch.zeros(8, 2), torch.ones(1, 2), _LINE), {"sharpness": None, "hard": True}, ValueError, "hard=True"),
    Bad((torch.zeros(8, 2), torch.ones(1, 2), torch.ones(2, 2)), {}, ValueError, "thresholds must have shape"),
    Bad((torch.full((8, 2), torch.nan), torch.ones(1, 2), _LINE), {}, ValueError, "vertices must be finite"),
    Bad((torch.zeros(8, 2), torch.ones(1, 2, dtype=torch.float64), _LINE), {}, TypeError, "same dtype"),
    Bad((torch.zeros(7, 2), torch.ones(1, 2), _LINE), {}, ValueError, "batch must have shape"),
]

CONTRACTS = [
    Contract(
        "topology.euler_transform",
        _transform,
        _samples,
        reference=_smooth,
        hard=_exact,
        soft={"sharpness": 1e8},
        scalars={"sharpness": 5.0},
        batched=False,
        bad=_BAD_TRANSFORM,
        why=_RAGGED,
    ),
    Contract(
        "topology.euler_transform[normalize]",
        lambda *args, **kwargs: _transform(*args, normalize=True, **kwargs),
        _samples,
        reference=_normalized,
        batched=False,
        why=_RAGGED,
    ),
    Contract(
        "topology.euler_transform[hard]",
        lambda *args, **kwargs: _transform(*args, hard=True, **kwargs),
        _samples,
        reference=_exact,
        batched=False,
        gradcheck=False,
        gradgradcheck=False,
        why=_RAGGED + "; the gradient is that of the smooth counts",
    ),
    Contract(
        "topology.euler_transform[exact]",
        lambda *args, **kwargs: _transform(*args, **{"sharpness": None, **kwargs}),
        _samples,
        reference=_exact,
        batched=False,
        gradcheck=False,
        gradgradcheck=False,
        compile=False,
        why=_RAGGED + "; counts have no gradient",
    ),
    Contract(
        "topology.euler_curve",
        _curve,
        _heights,
        reference=_curve_one_by_one,
        scalars={"sharpness": 5.0},
        batched=False,
        bad=[
            Bad((torch.zeros(2, 1), torch.zeros(1, 2), _LINE), {}, ValueError, r"heights\[1\] must have shape"),
            Bad((torch.zeros(2, 1), torch.zeros(1, 1), _LINE), {"sharpness": -1.0}, ValueError, "sharpness"),
            Bad((torch.zeros(2, 1), torch.zeros(1, 1), _LINE), {"count": 1}, ValueError, "batch must be in 0..0"),
            Bad((torch.zeros(2, 1), torch.zeros(1, 1), _LINE), {"batch": []}, ValueError, "batch must be a sequence"),
            Bad((torch.zeros(2, 1).long(), torch.zeros(1, 1), _LINE), {}, TypeError, r"heights\[0\] must be a float"),
        ],
        why=_RAGGED,
    ),
    Module(
        "topology.EulerTransform",
        _apply,
        lambda g: [Call((0.3 * torch.randn(8, 2, generator=g, dtype=torch.float64),))],
        build=lambda g: topology.EulerTransform(2, 2, 3, sharpness=6.0, radius=3.0, generator=g),
        reference=lambda vertices: topology.euler_transform(
            _complex(vertices),
            topology.sphere_directions(2, 2, generator=torch.Generator().manual_seed(0)).double(),
            torch.linspace(-3, 3, 3, dtype=torch.float64),
            sharpness=6.0,
        ),
        batched=False,
        why=_RAGGED,
    ),
    Measurement(
        "topology.sphere_directions",
        lambda like, **kwargs: topology.sphere_directions(7, 3, **{"method": "fibonacci", **kwargs}) * like.new_ones(3),
        lambda g: [Call((torch.zeros(3),))],
        bad=[
            Bad((torch.zeros(3),), {"method": "circle"}, ValueError, "needs dim = 2"),
            Bad((torch.zeros(3),), {"method": "grid"}, ValueError, "method must be one of"),
        ],
    ),
    Measurement(
        "topology.flag_simplices",
        lambda x: topology.flag_simplices((torch.cdist(x, x) < 1.5).to(DEVICE), max_dim=2)[2],
        lambda g: [Call((torch.randn(6, 2, generator=g, dtype=torch.float64),))],
        reference=lambda x: torch.tensor(
            [
                [i, j, k]
                for i in range(6)
                for j in range(i + 1, 6)
                for k in range(j + 1, 6)
                if all((x[a] - x[b]).norm() < 1.5 for a, b in ((i, j), (j, k), (i, k)))
            ]
        ).view(-1, 3),
    ),
    Exempt(
        "topology.Complex",
        "a container: index tensors with a batch index, whose vertices carry the gradient",
        tested="topology/test_complexes.py",
    ),
]
