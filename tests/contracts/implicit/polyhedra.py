"""Contracts of projections on spheres, half-spaces, sections of boxes, polyhedra and transport polytopes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import implicit
from pullback.core.errors import ConvergenceError
from tests.contracts.contract import Bad, Call, Contract, HigherOrder
from tests.contracts.implicit.projections import _BAD_POINTS, _nearest, _points

_TWO = torch.ones(2)
_LIMIT = "large points and small bounds together lose the digits that their equations need"


def _cone(x: Tensor) -> Tensor:
    return _nearest(x, [], (0, None))


def _cube(x: Tensor) -> Tensor:
    return _nearest(x, [], (-1, 1))


def _on_circle(x: Tensor) -> Tensor:
    """Try every direction of a fine grid, two coordinates after the other."""
    best = x.clone()
    for _ in range(200):
        for i in range(x.shape[-1]):
            for j in range(i):
                pair = best[..., [i, j]]
                angle = torch.atan2(x[..., j], x[..., i])
                length = torch.linalg.vector_norm(pair, dim=-1)
                best[..., i], best[..., j] = length * angle.cos(), length * angle.sin()
    return best / torch.linalg.vector_norm(best, dim=-1, keepdim=True)


def _signed_faces(x: Tensor) -> Tensor:
    """Project on the face of the octahedron in the orthant of the point."""
    sign = torch.where(x < 0, -1.0, 1.0)
    return sign * _nearest(sign * x, [{"type": "eq", "fun": lambda y: y.sum() - 1}], (0, None))


def _best_support(x: Tensor) -> Tensor:
    """Try every choice of two entries."""
    rows = []
    for row in x.reshape(-1, x.shape[-1]):
        found = []
        for i in range(len(row)):
            for j in range(i):
                point = torch.zeros_like(row)
                middle = ((row[i] - row[j] + 1) / 2).clamp(0, 1)
                point[i], point[j] = middle, 1 - middle
                found.append(point)
        rows.append(min(found, key=lambda p, row=row: float((p - row).square().sum())))
    return torch.stack(rows).reshape(x.shape)


def _planes(generator: torch.Generator) -> list[Call]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [Call((2 * draw(3, 4), draw(3, 4), draw(3))), Call((2 * draw(5), draw(5), draw(1)[0]))]


def _beyond(generator: torch.Generator) -> list[Call]:
    """Points on both sides, away from the kink."""
    calls = []
    for call in _planes(generator):
        x, normal, _ = call.args
        gap = torch.where(torch.arange(x[..., 0].numel()).reshape(x.shape[:-1]) % 2 == 0, 0.7, -0.7)
        calls.append(Call((x, normal, (x * normal).sum(-1) - gap)))
    return calls


def _on_plane(x: Tensor, normal: Tensor, offset: Tensor) -> Tensor:
    return x - ((x * normal).sum(-1) - offset)[..., None] * normal / normal.square().sum(-1, keepdim=True)


def _in_half(x: Tensor, normal: Tensor, offset: Tensor) -> Tensor:
    beyond = (x * normal).sum(-1) > offset
    return torch.where(beyond[..., None], _on_plane(x, normal, offset), x)


def _sections(generator: torch.Generator) -> list[Call]:
    calls = []
    for shape in ((3, 5), (4,)):
        x, normal = (2 * torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))
        low = -torch.rand(shape, generator=generator, dtype=torch.float64)
        inside = low + torch.rand(shape, generator=generator, dtype=torch.float64)
        calls.append(Call((x, low, low + 1, normal, (normal * inside).sum(-1))))
    return calls


def _section(x: Tensor, low: Tensor, high: Tensor, normal: Tensor, offset: Tensor) -> Tensor:
    """Bisect on the number tau."""
    first, last = torch.full_like(offset, -1e4), torch.full_like(offset, 1e4)
    for _ in range(200):
        middle = (first + last) / 2
        moved = torch.minimum(torch.maximum(x + middle[..., None] * normal, low), high)
        short = (moved * normal).sum(-1) < offset
        first, last = torch.where(short, middle, first), torch.where(short, last, middle)
    return torch.minimum(torch.maximum(x + first[..., None] * normal, low), high)


def _polyhedra(generator: torch.Generator) -> list[Call]:
    calls = []
    for batch, n, p, m in (((3,), 4, 1, 4), ((), 3, 1, 3)):
        x, inside, a, g = (
            torch.randn(*batch, *shape, generator=generator, dtype=torch.float64)
            for shape in ((n,), (n, 1), (p, n), (m, n))
        )
        room = torch.rand(*batch, m, generator=generator, dtype=torch.float64)
        calls.append(Call((3 * x, a, (a @ inside)[..., 0], g, (g @ inside)[..., 0] + room)))
    return calls


def _project(x: Tensor, a: Tensor, b: Tensor, g: Tensor, h: Tensor, **options: Any) -> Tensor:
    return implicit.projection_polyhedron(x, (a, b), (g, h), **options)


def _alternating(x: Tensor, a: Tensor, b: Tensor, g: Tensor, h: Tensor) -> Tensor:
    """Dykstra's method: one plane or half-space after the other."""
    rows, right = torch.cat([a, g], -2), torch.cat([b, h], -1)
    y, kept = x.clone(), torch.zeros_like(rows)
    for _ in range(4000):
        for i in range(rows.shape[-2]):
            moved = y + kept[..., i, :]
            onto = _on_plane if i < a.shape[-2] else _in_half
            y = onto(moved, rows[..., i, :], right[..., i])
            kept[..., i, :] = moved - y
    return y


def _matrices(generator: torch.Generator) -> list[Call]:
    calls = []
    for batch, n, m in (((2,), 3, 4), ((), 2, 3)):
        x = torch.randn(*batch, n, m, generator=generator, dtype=torch.float64)
        mass = 0.1 + torch.rand(*batch, n, m, generator=generator, dtype=torch.float64)
        calls.append(Call((x, mass.sum(-1), mass.sum(-2))))
    return calls


def _squares(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(*s, generator=generator, dtype=torch.float64),)) for s in ((2, 3, 3), (4, 4))]


def _dykstra(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Dykstra's method between rows and columns, each a simplex by its own."""
    plan, by_row, by_column = x.clone(), torch.zeros_like(x), torch.zeros_like(x)
    b = b * (a.sum(-1, keepdim=True) / b.sum(-1, keepdim=True))
    for _ in range(3000):
        moved = plan + by_row
        plan = implicit.projection_simplex(moved, a)
        by_row, moved = moved - plan, plan + by_column
        plan = implicit.projection_simplex(moved.mT, b).mT
        by_column = moved - plan
    return plan


def _on_ball(block: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    found = implicit.on_nesting(block)({"a": a, "b": [b]})
    return found["a"], found["b"][0]


_BAD_PLANE = [
    Bad((torch.tensor([1, 2]), _TWO, 1.0), {}, TypeError, "x must be a floating tensor"),
    Bad((_TWO, torch.ones(3), 1.0), {}, ValueError, "normal must be .* got"),
    Bad((_TWO, _TWO.double(), 1.0), {}, TypeError, "must have the same dtype"),
    Bad((_TWO, 0 * _TWO, 1.0), {}, ValueError, "normal must not be 0"),
    Bad((_TWO, _TWO, torch.ones(3)), {}, ValueError, "offset must be a number or a tensor that broadcasts"),
]

CONTRACTS = [
    Contract(
        "implicit.projection_non_negative",
        implicit.projection_non_negative,
        _points,
        reference=_cone,
        tolerance=1e-6,
        bad=[Bad((torch.tensor([1, 2]),), {}, TypeError, "x must be a floating tensor")],
    ),
    Contract(
        "implicit.projection_linf_ball",
        implicit.projection_linf_ball,
        _points,
        reference=_cube,
        tolerance=1e-6,
        scalars={"radius": 0.7},
        bad=_BAD_POINTS,
    ),
    Contract(
        "implicit.projection_l1_sphere",
        implicit.projection_l1_sphere,
        _points,
        reference=_signed_faces,
        tolerance=1e-6,
        scalars={"radius": 0.7},
        bad=_BAD_POINTS,
    ),
    Contract(
        "implicit.projection_l2_sphere",
        implicit.projection_l2_sphere,
        _points,
        reference=_on_circle,
        tolerance=1e-6,
        scalars={"radius": 0.7},
        bad=_BAD_POINTS,
    ),
    Contract(
        "implicit.projection_sparse_simplex",
        lambda x, **options: implicit.projection_sparse_simplex(x, 2, **options),
        _points,
        reference=_best_support,
        tolerance=1e-6,
        scalars={"radius": 0.7},
        bad=_BAD_POINTS,
    ),
    Contract(
        "implicit.projection_hyperplane",
        implicit.projection_hyperplane,
        _planes,
        reference=_on_plane,
        bad=_BAD_PLANE,
    ),
    Contract(
        "implicit.projection_halfspace",
        implicit.projection_halfspace,
        _beyond,
        reference=_in_half,
        bad=_BAD_PLANE,
    ),
    Contract(
        "implicit.projection_box_section",
        implicit.projection_box_section,
        _sections,
        reference=_section,
        tolerance=1e-7,
        large_limit=1e4,
        why=_LIMIT,
        bad=[
            Bad((_TWO.long(), 0.0, 1.0, _TWO, 1.0), {}, TypeError, "x must be a floating tensor"),
            Bad((_TWO, 1.0, 0.0, _TWO, 1.0), {}, ValueError, "low must not exceed high"),
            Bad((_TWO, 0.0, 1.0, _TWO, 3.0), {}, ValueError, "the hyperplane misses the box"),
            Bad((_TWO, 0.0, 1.0, torch.ones(3), 1.0), {}, ValueError, "normal must be .* got"),
            Bad((_TWO, 0.0, 1.0, _TWO.double(), 1.0), {}, TypeError, "must have the same dtype"),
        ],
    ),
    Contract(
        "implicit.projection_polyhedron",
        _project,
        _polyhedra,
        reference=_alternating,
        tolerance=1e-6,
        large=(),
        why=_LIMIT,
        bad=[
            Bad((_TWO.long(), _TWO[None], _TWO[:1], _TWO[None], _TWO[:1]), {}, TypeError, "x must be a floating"),
            Bad((_TWO, _TWO[None], _TWO, _TWO[None], _TWO[:1]), {}, ValueError, "equality must be a matrix"),
            Bad((_TWO, _TWO[None], 5 * _TWO[:1], _TWO[None], _TWO[:1]), {}, ConvergenceError, "infeasible"),
        ],
    ),
    Contract(
        "implicit.projection_transport",
        implicit.projection_transport,
        _matrices,
        reference=_dykstra,
        tolerance=1e-6,
        large_limit=1e4,
        why=_LIMIT,
        bad=[
            Bad((_TWO.long()[None], _TWO[:1], _TWO / 2), {}, TypeError, "x must be a floating tensor"),
            Bad((_TWO, _TWO, _TWO), {}, ValueError, "x must be .* got"),
            Bad((torch.eye(2), _TWO, _TWO.double()), {}, TypeError, "must have the same dtype"),
            Bad((torch.eye(2), _TWO * torch.tensor([1.0, 0.0]), _TWO), {}, ValueError, "rows must be > 0 everywhere"),
            Bad((torch.eye(2) / 0, _TWO, _TWO), {}, ValueError, "x must be finite"),
            Bad((torch.eye(2), _TWO, 2 * _TWO), {}, ValueError, "must have the same sum, got 2 and 4"),
        ],
    ),
    Contract(
        "implicit.projection_birkhoff",
        implicit.projection_birkhoff,
        _squares,
        reference=lambda x: _dykstra(x, torch.ones(x.shape[-1]).to(x), torch.ones(x.shape[-1]).to(x)),
        tolerance=1e-6,
        large_limit=1e4,
        why=_LIMIT,
        bad=[
            Bad((torch.eye(2).long(),), {}, TypeError, "x must be a floating tensor"),
            Bad((torch.ones(2, 3),), {}, ValueError, r"x must be \[\*, n, n\], got \(2, 3\)"),
            Bad((torch.eye(2) * torch.nan,), {}, ValueError, "x must be finite"),
        ],
    ),
    HigherOrder(
        "implicit.on_nesting",
        _on_ball,
        lambda g: [Call((2 * torch.randn(3, generator=g).double(), torch.randn(2, 2, generator=g).double()))],
        reference=lambda a, b: tuple(v / torch.cat([a, b.flatten()]).norm() for v in (a, b)),
        given=lambda x: implicit.projection_l2_sphere(x),
        argument="block",
        batched=False,
        large=(),
        why="all entries are one vector, as large as the given block takes",
        bad=[
            Bad((torch.tensor([1, 2]), _TWO), {}, TypeError, "the nesting"),
        ],
    ),
]
