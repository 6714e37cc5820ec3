"""Contracts of unrolling, the linear-quadratic regulator, controllers, and the glucose of a patient."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import dynamics
from tests.contracts.contract import Bad, Call, Contract, Exempt, HigherOrder, Measurement, Module
from tests.contracts.dynamics.models import seeded


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _decaying(x: Tensor, u: Tensor) -> Tensor:
    return 0.5 * x + u.sin()


def _by_sum(x: Tensor, u: Tensor) -> Tensor:
    states = [x]
    for t in range(len(u)):
        states.append(0.5 ** (t + 1) * x + sum(0.5 ** (t - s) * u[s].sin() for s in range(t + 1)))
    return torch.stack(states)


def _matrices(a: Tensor, b: Tensor, q: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From any numbers to a bounded plant and costs that are products."""
    q, r = 2 * q.tanh(), 2 * r.tanh()
    return 2 * a.tanh(), 2 * b.tanh(), q @ q.mT, r @ r.mT + torch.eye(2, dtype=a.dtype, device=a.device)


def _regulated(*given: Tensor) -> tuple[Tensor, ...]:
    return tuple(found.movedim(0, -3) for found in dynamics.lqr(*_matrices(*given), horizon=3))


def _regulated_at_once(*given: Tensor) -> tuple[Tensor, Tensor]:
    """The whole horizon as one least-squares problem, from every time on."""
    a, b, cost, effort = _matrices(*given)
    gains, values = [], []
    for t in range(3):
        left = 3 - t
        free = torch.stack([torch.linalg.matrix_power(a, k) for k in range(left + 1)], -3)
        zero = torch.zeros_like(b)
        forced = [
            torch.cat([torch.linalg.matrix_power(a, k - 1 - s) @ b if s < k else zero for s in range(left)], -1)
            for k in range(left + 1)
        ]
        hessian = sum(f.mT @ cost @ f for f in forced) + torch.kron(torch.eye(left, dtype=a.dtype), effort)
        cross = sum(f.mT @ cost @ free[..., k, :, :] for k, f in enumerate(forced))
        best = -torch.linalg.solve(hessian, cross)
        gains.append(-best[..., :2, :])
        through = sum(free[..., k, :, :].mT @ cost @ free[..., k, :, :] for k in range(left + 1))
        values.append(through + cross.mT @ best)
    return torch.stack(gains, -3), torch.stack([*values, cost], -3)


CONTRACTS = [
    HigherOrder(
        "dynamics.rollout",
        dynamics.rollout,
        lambda g: [Call((normal(g, 3), normal(g, 4, 3)), words) for words in ({}, {"segment": 2}, {"segment": "sqrt"})],
        given=_decaying,
        argument="step",
        reference=lambda x, u, **words: _by_sum(x, u),
        bad=[
            Bad((torch.zeros(2),), {}, ValueError, "needs inputs or a number of steps"),
            Bad((torch.zeros(2), torch.zeros(3, 2)), {"steps": 4}, ValueError, "at most the 3 of the inputs"),
            Bad((torch.zeros(2), torch.zeros(3, 2)), {"truncate": 0}, ValueError, "truncate must be"),
            Bad((torch.zeros(2), torch.zeros(3, 2)), {"segment": 0}, ValueError, "segment must be"),
        ],
        batched=False,
        why="the first dimension of the inputs is time",
    ),
    Contract(
        "dynamics.lqr",
        _regulated,
        lambda g: [Call((normal(g, 2, 2), normal(g, 2, 2), normal(g, 2, 2), normal(g, 2, 2)))],
        reference=_regulated_at_once,
        bad=[
            Bad(
                (torch.eye(2), torch.ones(2, 1), torch.eye(2), torch.eye(2)),
                {},
                ValueError,
                r"R must have shape .*1, 1",
            ),
            Bad((torch.ones(2), torch.eye(2), torch.eye(2), torch.eye(2)), {}, ValueError, "A must be a matrix"),
        ],
    ),
    Module(
        "dynamics.BoundedPolicy",
        lambda policy, x: policy(x),
        lambda g: [Call((normal(g, 2, 3),))],
        build=seeded(lambda: dynamics.BoundedPolicy(3, 2, low=(0.0, -1.0), high=(1.0, 3.0), hidden=(4,), start=0.3)),
        large_limit=1e8,
        why="sums of the largest numbers of either sign leave the range",
    ),
    Module(
        "dynamics.PIDController",
        lambda pid, y: pid(y, pid(0.5 * y)[1])[0],
        lambda g: [Call((0.2 * normal(g, 4),))],
        build=lambda g: dynamics.PIDController(0.5, 0.1, 0.2, setpoint=0.1, bias=0.05, low=-4.0, high=4.0, step=0.5),
    ),
    Exempt("dynamics.GlucoseModel", "an object with a field", "dynamics/test_glucose.py"),
    Exempt("dynamics.PadovaModel", "an object with a field", "dynamics/test_padova.py"),
    Exempt("dynamics.GlucoseLoop", "runs a controller against patients", "dynamics/test_glucose_loop.py"),
    Exempt("dynamics.meal_scenarios", "draws scenarios", "dynamics/test_glucose.py"),
    Measurement(
        "dynamics.time_in_range",
        dynamics.time_in_range,
        lambda g: [Call((120 + 60 * torch.rand(2, 20, generator=g, dtype=torch.float64),))],
        bad=[
            Bad((torch.full((3,), 6.0),), {}, ValueError, "mg/dl, got at most 6: multiply mmol/l"),
            Bad((torch.empty(0),), {}, ValueError, "at least one reading"),
            Bad((torch.full((3,), 100.0),), {"low": 200.0}, ValueError, "low must be below high"),
        ],
    ),
    Contract(
        "dynamics.risk_index",
        lambda x: tuple(dynamics.risk_index(25 + x.square())),
        lambda g: [Call((10 * normal(g, 2, 6),))],
        reference=lambda x: _risk(25 + x.square()),
        large_limit=1e4,
        half=False,
        why="the square that makes the argument leaves the range; it is rounded by 4 mg/dl in half precision",
    ),
]


def _risk(glucose: Tensor) -> tuple[Tensor, Tensor]:
    f = 1.509 * (glucose.log() ** 1.084 - 5.381)
    risk = 10 * f * f
    return torch.where(f < 0, risk, 0 * risk).mean(-1), torch.where(f > 0, risk, 0 * risk).mean(-1)
