"""Contracts of quadratic programs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import implicit
from pullback.core.errors import ConvergenceError
from tests.contracts.contract import Bad, Call, Contract


def _solve(q: Tensor, c: Tensor, *constraints: Tensor, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    a, b, g, h = constraints
    found = implicit.quadratic_program(q, c, (a, b), (g, h), **options)
    return found.value, found.equality, found.inequality


def _samples(generator: torch.Generator) -> list[Call]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    calls = []
    for batch, n, p, m in (((2,), 4, 1, 6), ((), 3, 1, 4)):
        root, inside = draw(*batch, n, n), draw(*batch, n)
        a, g = draw(*batch, p, n), draw(*batch, m, n)
        room = torch.rand(*batch, m, generator=generator, dtype=torch.float64)
        b, h = (a @ inside[..., None])[..., 0], (g @ inside[..., None])[..., 0] + room
        calls.append(Call((root @ root.mT + torch.eye(n).double() / 2, 3 * draw(*batch, n), a, b, g, h)))
    return calls


def _by_enumeration(q: Tensor, c: Tensor, a: Tensor, b: Tensor, g: Tensor, h: Tensor) -> tuple[Tensor, ...]:
    """Try every set of active inequalities."""
    if q.ndim > 2:
        parts = [_by_enumeration(*(v[i] for v in (q, c, a, b, g, h))) for i in range(len(q))]
        return tuple(torch.stack(part) for part in zip(*parts, strict=True))
    n, p, m = len(c), len(b), len(h)
    for code in range(2**m):
        chosen = [i for i in range(m) if code >> i & 1]
        rows, right = torch.cat([a, g[chosen]]), torch.cat([b, h[chosen]])
        if len(rows) > n:
            continue
        corner = torch.zeros(len(rows), len(rows), dtype=q.dtype)
        system = torch.cat([torch.cat([q, rows.mT], 1), torch.cat([rows, corner], 1)])
        solution = torch.linalg.solve(system, torch.cat([-c, right]))
        x, multiplier = solution[:n], torch.zeros(m, dtype=q.dtype)
        multiplier[chosen] = solution[n + p :]
        if bool((g @ x <= h + 1e-9).all()) and bool((multiplier >= 0).all()):
            return x, solution[n : n + p], multiplier
    raise AssertionError("no set of active inequalities is optimal")


_EYE, _ONE = torch.eye(2), torch.ones(2)

CONTRACTS = [
    Contract(
        "implicit.quadratic_program",
        _solve,
        _samples,
        reference=_by_enumeration,
        tolerance=1e-8,
        large=(),
        why="numbers of one problem that differ by more than 1e12 are beyond the arithmetic of its linear systems",
        bad=[
            Bad((_EYE.long(), _ONE, _EYE, _ONE, _EYE, _ONE), {}, TypeError, "quadratic must be a floating tensor"),
            Bad((_EYE, _ONE[:1], _EYE, _ONE, _EYE, _ONE), {}, ValueError, "quadratic must be .* linear"),
            Bad((_EYE, _ONE, _EYE[:1], _ONE, _EYE, _ONE), {}, ValueError, "equality must be a matrix .* got"),
            Bad((_EYE, _ONE, _EYE, _ONE, _EYE, 0), {}, TypeError, "inequality must be a pair"),
            Bad((_EYE, _ONE, _EYE, _ONE, _EYE.double(), _ONE), {}, TypeError, "must have the same dtype"),
            Bad((_EYE / 0, _ONE, _EYE, _ONE, _EYE, _ONE), {}, ValueError, "quadratic must be finite"),
            Bad((_EYE, _ONE, _EYE, _ONE, _EYE, _ONE * torch.nan), {}, ValueError, "inequality right side must be"),
            Bad((_EYE, _ONE, _EYE, _ONE, _EYE, -_ONE / 0), {}, ValueError, "finite or inf, got NaN or -infinity"),
            Bad((_EYE - 2.0, _ONE, _EYE, _ONE, _EYE, _ONE), {}, ValueError, "must be positive semidefinite"),
            Bad((_EYE, _ONE, _EYE, _ONE, _EYE, _ONE), {"tolerance": -1.0}, ValueError, "tolerance must be > 0"),
            Bad((_EYE, _ONE, _EYE, _ONE, _EYE, _ONE), {"max_iterations": 0}, ValueError, "max_iterations must be"),
            Bad((_EYE, _ONE, _EYE, 2 * _ONE, _EYE, _ONE), {"check": True}, ConvergenceError, "infeasible or unbounded"),
        ],
    ),
]
