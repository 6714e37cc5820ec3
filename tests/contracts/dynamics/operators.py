"""Contracts of scores and estimators of transfer operators and generators."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from pullback import dynamics
from tests.contracts.contract import Bad, Call, Contract, Exempt, HigherOrder, Learner

SQUARES = "covariances are squares of features"
NEAR = torch.eye(2).double()


def pairs(g: torch.Generator) -> list[Call]:
    return [Call(tuple(torch.randn(6, 3, generator=g, dtype=torch.float64) for _ in "xy")) for _ in range(2)]


def scored(score: Any) -> Any:
    """A score of covariances as one of features, so that the matrices stay covariances."""
    return lambda x, y, **options: score(*dynamics.covariances(x, y), **options)


def moments(x: Tensor, y: Tensor) -> tuple[np.ndarray, ...]:
    a, b = x.numpy(), y.numpy()
    return tuple(sum(np.outer(u, v) for u, v in zip(s, t, strict=True)) / len(s) for s, t in ((a, a), (b, b), (a, b)))


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """The score depends on the spans alone: squared cosines of the angles between the columns."""
    return torch.tensor((np.cos(scipy.linalg.subspace_angles(x.numpy(), y.numpy())) ** 2).sum())


def by_norms(x: Tensor, y: Tensor) -> Tensor:
    cx, cy, cxy = moments(x, y)
    return torch.tensor(np.linalg.norm(cxy) ** 2 / np.linalg.norm(cx, 2) / np.linalg.norm(cy, 2))


def distortion(x: Tensor, y: Tensor) -> Tensor:
    c = moments(x, y)[0]
    return torch.tensor(np.trace(c @ c - c - scipy.linalg.logm(c)))


def waves(x: Tensor) -> Tensor:
    return torch.stack([torch.sin(x[:, 0]) * x[:, 1], x[:, 0] ** 2, torch.cos(x[:, 1] / 3)], -1)


def states(g: torch.Generator) -> list[Call]:
    return [Call(tuple(torch.randn(*s, generator=g, dtype=torch.float64) for s in ((4, 2), (4, 2), (4, 2, 2))))]


def generator_by_hand(x: Tensor, drift: Tensor, diffusion: Tensor) -> Tensor:
    """Values, slopes and second derivatives of :func:`waves`, written out."""
    total = torch.zeros(3, 3, dtype=x.dtype)
    for (u, v), a, b in zip(x, drift, diffusion, strict=True):
        s, c, w, o = torch.sin(u), torch.cos(u), v / 3, torch.zeros(())
        slopes = torch.stack([torch.stack([c * v, s]), torch.stack([2 * u, o]), torch.stack([o, -torch.sin(w) / 3])])
        curved = [[[-s * v, c], [c, o]], [[o + 2, o], [o, o]], [[o, o], [o, -torch.cos(w) / 9]]]
        hessian = torch.stack([torch.stack([torch.stack(row) for row in h]) for h in curved])
        moved = slopes @ a + (hessian * (b @ b.mT)).sum((-1, -2)) / 2
        total = total + torch.outer(torch.stack([s * v, u**2, torch.cos(w)]), moved)
    return total / len(x)


def reversible_by_hand(x: Tensor, drift: Tensor, diffusion: Tensor) -> Tensor:
    total = torch.zeros(3, 3, dtype=x.dtype)
    for (u, v), b in zip(x, diffusion, strict=True):
        o = torch.zeros(())
        rows = ([torch.cos(u) * v, torch.sin(u)], [2 * u, o], [o, -torch.sin(v / 3) / 3])
        slopes = torch.stack([torch.stack(row) for row in rows]) @ b
        total = total - slopes @ slopes.mT / 2
    return total / len(x)


def planted(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pairs of a linear map without noise, and the map."""
    x, matrix = (torch.randn(n, 2, generator=g, dtype=torch.float64) for n in (20, 2))
    return torch.stack([x, x @ matrix], 1), matrix


def rates(potential: Tensor, temperature: float = 1.5) -> Tensor:
    """Rates between neighbours, one by one; the diagonal makes rows sum to 0."""
    n = potential.shape[-1]
    found = torch.zeros(*potential.shape, n, dtype=potential.dtype)
    for i in range(n):
        for j in {max(i - 1, 0), min(i + 1, n - 1)} - {i}:
            rise = potential[..., j] - potential[..., i]
            found[..., i, j] = rise / 0.25 / torch.expm1(rise / temperature)
            found[..., i, i] -= found[..., i, j]
    return found


def symmetric_rates(potential: Tensor) -> Tensor:
    half = torch.exp(-potential / 3)
    return half[..., None] * rates(potential) / half[..., None, :]


CONTRACTS = [
    Contract(
        "dynamics.covariances",
        dynamics.covariances,
        pairs,
        reference=lambda x, y: tuple(torch.from_numpy(c) for c in moments(x, y)),
        outputs=tuple,
        large=(0, 1),
        large_limit=100.0,
        why=SQUARES,
        bad=(
            Bad((torch.ones(3), torch.ones(3)), {}, ValueError, r"x must have shape \(..., n, r\)"),
            Bad((torch.ones(3, 2), torch.ones(2, 2)), {}, ValueError, "y must have the shape of x"),
            Bad((torch.ones(3, 2), torch.ones(3, 2).double()), {}, TypeError, "dtype"),
            Bad((torch.ones(0, 2), torch.ones(0, 2)), {}, ValueError, "n, r >= 1"),
        ),
    ),
    Contract(
        "dynamics.covariances[center]",
        lambda x, y: dynamics.covariances(x, y, center=True),
        pairs,
        reference=lambda x, y: tuple(
            torch.from_numpy(np.cov(x.numpy().T, y.numpy().T, bias=True)[rows, columns])
            for rows, columns in (
                (slice(3), slice(3)),
                (slice(3, 6), slice(3, 6)),
                (slice(3), slice(3, 6)),
            )
        ),
        outputs=tuple,
        large_limit=100.0,
        why=SQUARES,
    ),
    Contract(
        "dynamics.projection_score",
        scored(dynamics.projection_score),
        pairs,
        reference=cosines,
        scalars={"ridge": 0.5},
        large_limit=100.0,
        half_tolerance=0.2,
        why=SQUARES,
    ),
    Contract(
        "dynamics.projection_score[ridged]",
        lambda x, y: dynamics.projection_score(NEAR.to(x) + x.mT @ x, NEAR.to(x) + y.mT @ y, x.mT @ y),
        lambda g: [Call(tuple(torch.randn(2, 2, generator=g, dtype=torch.float64) for _ in "xy"))],
        reference=lambda x, y: torch.tensor(
            np.linalg.norm(
                scipy.linalg.sqrtm(np.linalg.inv(np.eye(2) + x.numpy().T @ x.numpy()))
                @ (x.numpy().T @ y.numpy())
                @ scipy.linalg.sqrtm(np.linalg.inv(np.eye(2) + y.numpy().T @ y.numpy()))
            )
            ** 2
        ),
        large_limit=10.0,
        why=SQUARES,
    ),
    Contract(
        "dynamics.relaxed_score",
        scored(dynamics.relaxed_score),
        pairs,
        reference=by_norms,
        large_limit=100.0,
        why=SQUARES,
    ),
    Contract(
        "dynamics.vamp2_score",
        dynamics.vamp2_score,
        pairs,
        reference=lambda x, y: 1 + cosines(x - x.mean(0), y - y.mean(0)),
        scalars={"ridge": 0.5},
        large_limit=100.0,
        half_tolerance=0.2,
        why=SQUARES,
        bad=(
            Bad((torch.ones(3, 2), torch.ones(3, 2)), {}, ValueError, "cx must be positive definite"),
            Bad((torch.randn(9, 2), torch.randn(9, 2)), {"ridge": -1.0}, ValueError, "ridge must be"),
        ),
    ),
    Contract(
        "dynamics.metric_distortion",
        lambda x, y, **options: dynamics.metric_distortion(dynamics.covariances(x, y).cx, **options),
        pairs,
        reference=distortion,
        large_limit=10.0,
        why="fourth powers of features",
        bad=(Bad((torch.ones(3, 2), torch.ones(3, 2)), {"floor": 0.0}, ValueError, "floor must be"),),
    ),
    HigherOrder(
        "dynamics.generator_covariance",
        dynamics.generator_covariance,
        states,
        given=waves,
        argument="features",
        reference=generator_by_hand,
        batched=False,
        compile=False,
        forward_mode=False,
        large_limit=10.0,
        half_tolerance=0.1,
        why="one batch dimension; forward derivatives nest by torch.func only, and are not traced; squares",
        bad=(
            Bad((torch.ones(4), torch.ones(4), torch.ones(4, 1, 1)), {}, ValueError, r"x must have shape \(n, d\)"),
            Bad((torch.ones(4, 2), torch.ones(4, 2), torch.ones(4, 1, 1)), {}, ValueError, "diffusion must have shape"),
            Bad((torch.ones(4, 2), torch.ones(4, 1), torch.ones(4, 2, 2)), {}, ValueError, "drift must have the shape"),
            Bad((torch.ones(4, 2), None, torch.ones(4, 2, 2)), {}, ValueError, "drift must be given"),
        ),
    ),
    HigherOrder(
        "dynamics.generator_covariance[reversible]",
        lambda f, x, drift, diffusion: (
            dynamics.generator_covariance(f, x, None, diffusion, reversible=True) + 0 * drift.sum()
        ),
        states,
        given=waves,
        argument="features",
        reference=reversible_by_hand,
        batched=False,
        compile=False,
        forward_mode=False,
        large_limit=10.0,
        half_tolerance=0.1,
        why="one batch dimension; forward derivatives nest by torch.func only, and are not traced; squares",
    ),
    Contract(
        "dynamics.generator_score",
        lambda x, y, **options: dynamics.generator_score(
            dynamics.covariances(x, y).cx, -dynamics.covariances(x, y).cy, **options
        ),
        pairs,
        reference=lambda x, y: -torch.tensor(scipy.linalg.eigh(moments(x, y)[1], moments(x, y)[0])[0].sum()),
        scalars={"ridge": 0.5},
        large_limit=100.0,
        half_tolerance=0.2,
        why=SQUARES,
        bad=(Bad((torch.ones(3, 2), torch.ones(3, 2)), {}, ValueError, "cx must be positive definite"),),
    ),
    Contract(
        "dynamics.generator_score[relaxed]",
        lambda x, y: dynamics.generator_score(
            dynamics.covariances(x, y).cx, -dynamics.covariances(x, y).cy, relaxed=True
        ),
        pairs,
        reference=lambda x, y: -torch.tensor(np.trace(moments(x, y)[1]) / np.linalg.norm(moments(x, y)[0], 2)),
        large_limit=100.0,
        why=SQUARES,
    ),
    Learner(
        "dynamics.TransferOperator",
        lambda data, generator: dynamics.TransferOperator(lambda x: x, ridge=0.0).fit(data[:, 0], data[:, 1]),
        answer=lambda fitted: fitted.matrix,
        planted=planted,
        recovers=lambda found, truth: torch.allclose(found, truth.double(), atol=1e-6),
        sets=lambda g: [torch.randn(9, 2, 2, generator=g) * s for s in (1e-3, 1.0, 1e3)],
        bad=(
            Bad((torch.ones(9, 2, 2), None), {}, ValueError, "features must be independent on 9 pairs"),
            Bad((torch.randn(1, 2, 2), None), {}, ValueError, "features must be independent on 1 pairs"),
            Bad((torch.full((9, 2, 2), torch.nan), None), {}, ValueError, "must be finite"),
        ),
    ),
    Contract(
        "dynamics.four_well_potential",
        dynamics.four_well_potential,
        lambda g: [Call((torch.rand(2, 6, generator=g, dtype=torch.float64) * 2.4 - 1.2,))],
        reference=lambda x: torch.from_numpy(
            4 * x.numpy() ** 8
            + 3.2 * np.exp(-80 * x.numpy() ** 2)
            + 0.8 * np.exp(-80 * (x.numpy() - 0.5) ** 2)
            + 2 * np.exp(-40 * (x.numpy() + 0.5) ** 2)
        ),
        large_limit=3.0,
        why="an eighth power",
        bad=(Bad((torch.ones(2, dtype=torch.long),), {}, TypeError, "x must be"),),
    ),
    Contract(
        "dynamics.langevin_generator",
        lambda u, **words: dynamics.langevin_generator(u, **{"spacing": 0.5, "temperature": 1.5, **words}),
        lambda g: [Call((torch.randn(2, 4, generator=g, dtype=torch.float64),))],
        reference=lambda u: rates(u),
        scalars={"temperature": 1.5},
        large_limit=1e4,
        why="rates grow with the potential over a square",
        bad=(
            Bad((torch.ones(1),), {}, ValueError, "n >= 2"),
            Bad((torch.ones(3),), {"spacing": 0.0}, ValueError, "spacing must be"),
            Bad((torch.ones(3),), {"temperature": 0.0}, ValueError, "temperature must be"),
        ),
    ),
    Contract(
        "dynamics.langevin_generator[symmetric]",
        lambda u: dynamics.langevin_generator(u, spacing=0.5, temperature=1.5, symmetric=True),
        lambda g: [Call((torch.randn(2, 4, generator=g, dtype=torch.float64),))],
        reference=symmetric_rates,
        large_limit=1e4,
        why="rates grow with the potential over a square",
    ),
    Exempt("dynamics.NoisyLogisticMap", "draws paths, and holds integrals of them", "dynamics/test_operators.py"),
]
