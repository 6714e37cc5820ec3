"""Contracts of material points: a step node by node."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import torch
from torch import Tensor

from pullback import dynamics
from tests.contracts.contract import DEVICE, Bad, Call, Contract

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_AREA = torch.tensor([0.02, 0.03])
_FIBRES = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
_BODY = dynamics.MaterialPoints(
    _AREA, cells=8, walls=2, youngs=3.0, poisson=0.25, muscles=torch.tensor([0, -1]), fibres=_FIBRES, strength=2.0
)
_BODIES = {dtype: copy.deepcopy(_BODY).to(DEVICE, dtype) for dtype in DTYPES}
_REST = (torch.tensor([[0.4, 0.3], [0.5, 0.5]]), torch.zeros(2, 2), torch.zeros(2, 1))


def _moved(x: Tensor, v: Tensor, u: Tensor, c: Tensor | None = None, **words: Any) -> tuple[Tensor, ...]:
    """One step, from a deformation that the affine part gives."""
    body = _BODIES[x.dtype]
    f = None if c is None else torch.eye(2, dtype=x.dtype, device=x.device) + 0.1 * c
    found = body.simulate(x, v, u, **{"dt": 0.02, "affine": c, "deformation": f, **words})
    last = (found.positions[-1], found.velocities[-1], found.affine, found.deformation)
    return (*last, body.energy(*last))


def _points(g: torch.Generator) -> list[Call]:
    """Two points, one above a floor on which it slides."""
    x = torch.tensor([[[0.42, 0.26], [0.53, 0.48]]], dtype=torch.float64)
    v = torch.tensor([[[0.8, -0.4], [-0.3, 0.2]]], dtype=torch.float64)
    v = v + 0.05 * torch.randn(1, 2, 2, generator=g, dtype=torch.float64)
    u, c = (
        draw(*s, generator=g, dtype=torch.float64) for draw, s in ((torch.rand, (1, 1, 1)), (torch.randn, (1, 2, 2, 2)))
    )
    return [Call((x, v, u, c))]


def _times(a: list[list[float]], b: list[list[float]]) -> list[list[float]]:
    return [[sum(a[i][k] * b[k][j] for k in (0, 1)) for j in (0, 1)] for i in (0, 1)]


def _hat(t: float) -> float:
    """The quadratic B-spline."""
    t = abs(t)
    return 0.75 - t * t if t < 0.5 else 0.5 * (1.5 - t) ** 2 if t < 1.5 else 0.0


def _node_by_node(xs: Tensor, vs: Tensor, us: Tensor, cs: Tensor) -> tuple[Tensor, ...]:
    s, h, mu, lam = 1 / 8, 0.02, 3 / 2.5, 3 * 0.25 / (1.25 * 0.5)
    area, x, v = _AREA.double().tolist(), xs[0].tolist(), vs[0].tolist()
    c, f = cs[0].tolist(), (torch.eye(2) + 0.1 * cs[0]).tolist()
    energy = 0.0
    for u in us[:, 0, 0].tolist():
        push = []
        for p in range(2):
            grown = [[float(i == j) + h * c[p][i][j] for j in (0, 1)] for i in (0, 1)]
            f[p] = _times(grown, f[p])
            angle = math.atan2(f[p][1][0] - f[p][0][1], f[p][0][0] + f[p][1][1])
            turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            off = [[f[p][i][j] - turn[i][j] for j in (0, 1)] for i in (0, 1)]
            ratio = f[p][0][0] * f[p][1][1] - f[p][0][1] * f[p][1][0]
            sheared = _times(off, [[f[p][j][i] for j in (0, 1)] for i in (0, 1)])
            d = _FIBRES[p].double().tolist()
            pulled = [sum(f[p][i][k] * d[k] for k in (0, 1)) for i in (0, 1)]
            stress = [
                [
                    2 * mu * sheared[i][j]
                    + float(i == j) * lam * ratio * (ratio - 1)
                    + (2 * u if p == 0 else 0) * pulled[i] * pulled[j]
                    for j in (0, 1)
                ]
                for i in (0, 1)
            ]
            push.append(
                [[area[p] * c[p][i][j] - 4 * h / s**2 * area[p] * stress[i][j] for j in (0, 1)] for i in (0, 1)]
            )
        new_v, new_c = ([[0.0, 0.0] for _ in x], [[[0.0, 0.0], [0.0, 0.0]] for _ in x])
        for node in itertools.product(range(8), range(8)):
            share = [math.prod(_hat(x[p][k] / s - node[k]) for k in (0, 1)) for p in range(2)]
            away = [[node[k] * s - x[p][k] for k in (0, 1)] for p in range(2)]
            mass = sum(share[p] * area[p] for p in range(2))
            if mass == 0:
                continue
            w = [
                sum(share[p] * (area[p] * v[p][i] + sum(push[p][i][j] * away[p][j] for j in (0, 1))) for p in range(2))
                / mass
                for i in (0, 1)
            ]
            w[1] -= 1.8 * h
            if node[1] < 2 and w[1] < 0:
                w = [math.copysign(max(abs(w[0]) + 0.5 * w[1], 0.0), w[0]), 0.0]
            for p in range(2):
                for i in (0, 1):
                    new_v[p][i] += share[p] * w[i]
                    for j in (0, 1):
                        new_c[p][i][j] += 4 / s**2 * share[p] * w[i] * away[p][j]
        v, c = new_v, new_c
        x = [[x[p][k] + h * v[p][k] for k in (0, 1)] for p in range(2)]
    for p in range(2):
        angle = math.atan2(f[p][1][0] - f[p][0][1], f[p][0][0] + f[p][1][1])
        turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        off = sum((f[p][i][j] - turn[i][j]) ** 2 for i in (0, 1) for j in (0, 1))
        ratio = f[p][0][0] * f[p][1][1] - f[p][0][1] * f[p][1][0]
        moving = sum(e * e for e in v[p]) + s * s / 4 * sum(e * e for row in c[p] for e in row)
        energy += area[p] * (mu * off + lam / 2 * (ratio - 1) ** 2 + moving / 2 + 1.8 * x[p][1])
    found = (torch.tensor([part], dtype=torch.float64) for part in (x, v, c, f))
    return (*found, torch.tensor([energy], dtype=torch.float64))


CONTRACTS = [
    Contract(
        "dynamics.MaterialPoints",
        _moved,
        _points,
        reference=_node_by_node,
        batched=False,
        large=(),
        half=False,
        compile=False,
        why="positions, velocities and commands have one batch; a box bounds positions, and in half precision a point "
        "cannot be told from its nodes; compiling the operations of a step takes thrice the budget of an entry",
        bad=[
            Bad(_REST, {"dt": 0.0}, ValueError, "dt must be > 0"),
            Bad((_REST[0][:1], *_REST[1:]), {}, ValueError, "x must have shape"),
            Bad((_REST[0], _REST[1], torch.zeros(2, 2)), {}, ValueError, "controls must have shape"),
            Bad((_REST[0] + 0.5, *_REST[1:]), {}, ValueError, "points must stay a cell"),
            Bad(_REST, {"affine": torch.zeros(2, 2)}, ValueError, "affine must have shape"),
        ],
    ),
]
