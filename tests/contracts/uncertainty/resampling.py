"""Contracts of resampling: draws one by one, plans by plain sweeps."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from pullback import uncertainty
from tests.contracts.contract import Bad, Call, Contract
from tests.contracts.law import seeded

_P = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
_W = torch.tensor([0.0, -1.0, -2.0])
_RANDOM = "each row draws its own ancestors"


def _particles(generator: torch.Generator) -> list[Call]:
    return [
        Call(tuple(torch.randn(*shape, generator=generator).double() for shape in ((*batch, n, d), (*batch, n))))
        for batch, n, d in (((), 5, 2), ((2,), 4, 1))
    ]


def _seeded(points: Tensor, log_weights: Tensor, **options: object) -> uncertainty.Resampled:
    return uncertainty.resample(points, log_weights, generator=seeded(3), **options)


def _uniforms(batch: tuple[int, ...], count: int, scheme: str) -> Tensor:
    drawn = torch.rand(*batch, 1 if scheme == "systematic" else count, generator=seeded(3), dtype=torch.float64)
    return drawn if scheme == "multinomial" else (drawn + torch.arange(count)) / count


def _one_by_one(method: str, scheme: str) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    def reference(points: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        if points.ndim > 2:
            uniforms = _uniforms(tuple(points.shape[:-2]), points.shape[-2], scheme)
            rows = [row(p, w, u) for p, w, u in zip(points, log_weights, uniforms, strict=True)]
            return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))
        return row(points, log_weights, _uniforms((), len(points), scheme))

    def row(points: Tensor, log_weights: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        n, weights = len(points), log_weights.exp()
        p = weights / weights.sum()
        q = 0.5 * p + 0.5 / n if method == "soft" else p
        levels = list(accumulate(q.tolist()))
        chosen = [bisect_right(levels, u) for u in uniforms.tolist()]
        return points[chosen], torch.stack([(weights.sum() / n * p[i] / q[i]).log() for i in chosen])

    return reference


def _swept(points: Tensor, log_weights: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Alternate scalings of a kernel, many times."""
    if points.ndim > 2:
        rows = [_swept(p, w, epsilon) for p, w in zip(points, log_weights, strict=True)]
        return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))
    n, mass = len(points), torch.softmax(log_weights, 0)
    cost = torch.cdist(points, points).square()
    kernel = torch.exp(-cost / (epsilon * cost.mean()))
    v = torch.ones(n, dtype=points.dtype)
    for _ in range(5000):
        u = mass / (kernel @ v)
        v = (1 / n) / (kernel.T @ u)
    moved = n * (u[:, None] * kernel * v).T @ points
    return moved, torch.full_like(log_weights, float(log_weights.logsumexp(0)) - math.log(n))


_BAD = [
    Bad((_P.long(), _W), {}, TypeError, "points must be a floating tensor"),
    Bad((_P[0], _W), {}, ValueError, r"points must have shape \[\*batch, n, d\]"),
    Bad((_P[:0], _W[:0]), {}, ValueError, "n >= 1"),
    Bad((_P, _W[:2]), {}, ValueError, r"log_weights must have shape \(\.\.\., 3\)"),
    Bad((_P, _W.double()), {}, TypeError, "dtype"),
    Bad((_P, _W / 0), {}, ValueError, "log_weights must be finite or -inf"),
    Bad((_P, _W - torch.inf), {}, uncertainty.DegenerateWeights, "no particle has any weight"),
    Bad((_P, _W), {"method": "sistematic"}, ValueError, "systematic"),
    Bad((_P, _W), {"scheme": "soft"}, ValueError, "scheme must be"),
    Bad((_P, _W), {"count": 0}, ValueError, "count must be an integer >= 1"),
    Bad((_P, _W), {"mixture": 1.5}, ValueError, "mixture must be in"),
    Bad((_P, _W), {"epsilon": 0.0}, ValueError, "epsilon must be > 0"),
    Bad((_P, _W), {"method": "transport", "count": 2}, ValueError, "count must be 3"),
]

CONTRACTS = [
    *[
        Contract(
            f"uncertainty.resample[{method}, {scheme}]" if method != scheme else f"uncertainty.resample[{method}]",
            partial(_seeded, **{"method": method, "scheme": scheme}),
            _particles,
            reference=_one_by_one(method, scheme),
            outputs=lambda found: (found.points, found.log_weights),
            bad=_BAD[:-1] if method == "soft" else (),
            batched=False,
            vmap=False,
            gradcheck=method != "stop-gradient",
            gradgradcheck=method != "stop-gradient",
            why=_RANDOM + "; stop-gradient's derivative is that of an expectation: tests/uncertainty",
        )
        for method, scheme in (
            ("systematic", "systematic"),
            ("stratified", "stratified"),
            ("multinomial", "multinomial"),
            ("soft", "systematic"),
            ("stop-gradient", "multinomial"),
        )
    ],
    Contract(
        "uncertainty.resample[transport]",
        lambda p, w, epsilon=0.5: uncertainty.resample(p, w, method="transport", epsilon=epsilon),
        lambda g: [Call((torch.randn(3, 2, generator=g).double(), torch.randn(3, generator=g).double()))],
        reference=lambda p, w: _swept(p, w, 0.5),
        tolerance=1e-7,
        outputs=lambda found: (found.points, found.log_weights),
        scalars={"epsilon": 0.5},
        bad=_BAD[-2:-1],
    ),
]
