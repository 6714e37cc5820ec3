"""Contracts of Gaussian filters: against the joint law of all states and observations, written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback import uncertainty
from pullback.uncertainty import LinearGaussian, NonlinearGaussian
from tests.contracts.contract import Bad, Call, Contract, Exempt

_EYE, _Y = torch.eye(2), torch.zeros(3, 2)
_RANGE = "the evidence is a square of the observations, which leaves the range of half precision"


def _models(generator: torch.Generator) -> list[Call]:
    """y, A, C, and factors of Q, R; m; a factor of P."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def factor(n: int) -> Tensor:
        return 0.5 * draw(n, n) + torch.eye(n, dtype=torch.float64)

    return [Call((draw(2, 2), 0.5 * draw(2, 2), draw(2, 2), factor(2), factor(2), draw(2), factor(2)))]


def _linear(y: Tensor, a: Tensor, c: Tensor, q: Tensor, r: Tensor, m: Tensor, p: Tensor) -> LinearGaussian:
    return LinearGaussian(a, c, q @ q.mT, r @ r.mT, m, p @ p.mT)


def _of_functions(y: Tensor, a: Tensor, c: Tensor, q: Tensor, r: Tensor, m: Tensor, p: Tensor) -> NonlinearGaussian:
    return NonlinearGaussian(lambda x: x @ a.mT, lambda x: x @ c.mT, q @ q.mT, r @ r.mT, m, p @ p.mT)


def _joint(
    y: Tensor, a: Tensor, c: Tensor, q: Tensor, r: Tensor, m: Tensor, p: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean and covariance of all states, the matrix to all observations, and their noise."""
    means, blocks = [m], [[p @ p.mT]]
    for _ in range(len(y) - 1):
        means.append(a @ means[-1])
        for row in blocks:
            row.append(row[-1] @ a.mT)
        blocks.append([a @ blocks[-1][0] @ a.mT + q @ q.mT])
    full = torch.zeros(2 * len(y), 2 * len(y), dtype=y.dtype)
    for i, row in enumerate(blocks):
        for j, block in enumerate(row):
            full[2 * i : 2 * i + 2, 2 * (i + j) : 2 * (i + j) + 2] = block
            full[2 * (i + j) : 2 * (i + j) + 2, 2 * i : 2 * i + 2] = block.mT
    return torch.cat(means), full, torch.block_diag(*[c] * len(y)), torch.block_diag(*[r @ r.mT] * len(y))


def _given(count: int, y: Tensor, *model: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and covariances of all states given the first observations."""
    mean, full, look, noise = _joint(y, *model)
    look, noise, seen = look[: 2 * count], noise[: 2 * count, : 2 * count], y[:count].flatten()
    gain = full @ look.mT @ torch.linalg.inv(look @ full @ look.mT + noise)
    after, rest = mean + gain @ (seen - look @ mean), full - gain @ look @ full
    return after.view(-1, 2), torch.stack([rest[i : i + 2, i : i + 2] for i in range(0, len(rest), 2)])


def _evidence(y: Tensor, *model: Tensor) -> Tensor:
    mean, full, look, noise = _joint(y, *model)
    return torch.distributions.MultivariateNormal(look @ mean, look @ full @ look.mT + noise).log_prob(y.flatten())


def _filtered(y: Tensor, *model: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = [_given(t + 1, y, *model) for t in range(len(y))]
    means, covariances = (torch.stack([row[i][t] for t, row in enumerate(rows)]) for i in range(2))
    return means, covariances, _evidence(y, *model)


def _picked(found: uncertainty.Filtered) -> tuple[Tensor, Tensor, Tensor]:
    return found.means, found.factors @ found.factors.mT, found.log_evidence


def _bad(kind: Callable[..., Any]) -> list[Bad]:
    def call(y: Tensor = _Y, first: Any = None, **fields: Tensor) -> tuple[Any, ...]:
        names = {"q": _EYE, "r": _EYE, "m": torch.zeros(2), "p": _EYE} | fields
        firsts = (_EYE, _EYE) if kind is LinearGaussian else (torch.sin, torch.sin)
        return (y, kind(*firsts, *names.values()) if first is None else first)

    negative, skew = torch.diag(torch.tensor([1.0, -1.0])), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    return [
        Bad(call(first=3), {}, TypeError, f"model must be a {kind.__name__}"),
        Bad(call(_Y.long()), {}, TypeError, "y must be a floating tensor"),
        Bad(call(_Y.double()), {}, TypeError, "dtype"),
        Bad(call(_Y[:0]), {}, ValueError, "T >= 1"),
        Bad(call(_Y[:, :1]), {}, ValueError, "y must have shape"),
        Bad(call(_Y / 0), {}, ValueError, "y must be finite"),
        Bad(call(q=negative), {}, ValueError, "process_noise must be positive semi-definite, got an eigenvalue of -1"),
        Bad(call(r=negative), {}, ValueError, "observation_noise must be positive definite"),
        Bad(call(r=0 * _EYE), {}, ValueError, "observation_noise must be positive definite"),
        Bad(call(p=skew), {}, ValueError, "covariance must be symmetric"),
    ]


class _Either:
    """A filter of the tensors of a contract, or of a model where a test of bad input hands one."""

    def __init__(self, block: Callable[..., Any], model: Callable[..., Any]) -> None:
        self.block, self.model = block, model

    def __call__(self, y: Tensor, *fields: Any, **options: Any) -> Any:
        return self.block(fields[0] if len(fields) == 1 else self.model(y, *fields), y, **options)


CONTRACTS = [
    Contract(
        "uncertainty.kalman_filter",
        _Either(uncertainty.kalman_filter, _linear),
        _models,
        reference=_filtered,
        outputs=lambda found: found if isinstance(found, Tensor) else _picked(found),
        bad=_bad(LinearGaussian),
        large_limit=20.0,
        why=_RANGE,
    ),
    Contract(
        "uncertainty.kalman_evidence",
        _Either(uncertainty.kalman_evidence, _linear),
        _models,
        reference=_evidence,
        bad=_bad(LinearGaussian),
        large_limit=20.0,
        why=_RANGE,
    ),
    *[
        Contract(
            f"uncertainty.{name}",
            _Either(getattr(uncertainty, name), _of_functions),
            _models,
            reference=_filtered,
            outputs=_picked,
            bad=[*_bad(NonlinearGaussian), *more],
            large_limit=20.0,
            why=_RANGE,
        )
        for name, more in (
            ("extended_kalman_filter", []),
            (
                "unscented_kalman_filter",
                [
                    Bad(
                        (_Y, NonlinearGaussian(torch.sin, torch.sin, _EYE, _EYE, torch.zeros(2), _EYE)),
                        {"kappa": -0.5},
                        ValueError,
                        "kappa must be >= 0",
                    )
                ],
            ),
        )
    ],
    Contract(
        "uncertainty.rts_smoother",
        lambda y, *model: uncertainty.rts_smoother(
            uncertainty.kalman_filter(_linear(y, *model), y) if model else y  # type: ignore[arg-type]
        ),
        _models,
        reference=lambda y, *model: _given(len(y), y, *model),
        outputs=lambda found: (found.means, found.factors @ found.factors.mT),
        bad=[Bad((_Y,), {}, TypeError, "filtered must be the result of a filter")],
        large_limit=20.0,
        why="half precision rounds sums of numbers of any size",
    ),
    Exempt(
        "uncertainty.LinearGaussian",
        "a model: what is done with it is checked by the filters",
        "uncertainty/test_gaussian_filters.py",
    ),
]
