"""Contracts of the estimators of gradients and of what measures them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.gradients import EstimatorError, estimator_error
from tests.contracts.contract import Bad, Call, Measurement

_TWO = torch.ones(2, 3)
_LAW = torch.arange(4, dtype=torch.float64) / 6


def _numbers(error: EstimatorError) -> tuple[Tensor, ...]:
    assert isinstance(error.bias, Tensor)
    assert isinstance(error.z, Tensor)
    return error.bias, error.z, torch.tensor([error.variance, error.relative_bias, error.cosine], dtype=torch.float64)


def _two_passes(estimates: Tensor, exact: Tensor) -> tuple[Tensor, ...]:
    """Loops over estimates and coordinates, as the definitions say."""
    g, d = estimates.double(), exact.double()
    count = len(g)
    mean = sum(g) / count
    spread = sum((row - mean).square() for row in g) / (count - 1)
    bias = mean - d
    size = d.square().sum()
    off = (bias.square().sum() - spread.sum() / count) / size
    cosine = sum((row * d).sum() / row.norm() / d.norm() for row in g) / count
    return bias, bias / (spread / count).sqrt(), torch.stack([spread.sum(), off, cosine])


def _bad(estimates: Any, exact: Any, error: type[Exception], match: str) -> Bad:
    return Bad((estimates, exact), {}, error, match)


def _whole_law(estimates: Tensor, exact: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    mean = sum(p * row for p, row in zip(weights, estimates, strict=True))
    bias = mean - exact
    variance = sum(p * (row - mean).square().sum() for p, row in zip(weights, estimates, strict=True))
    cosine = sum(p * (row @ exact) / row.norm() / exact.norm() for p, row in zip(weights, estimates, strict=True))
    z = bias.sign() * torch.inf
    return bias, z, torch.stack([variance, bias.square().sum() / exact.square().sum(), cosine])


CONTRACTS = [
    Measurement(
        "gradients.estimator_error[weights]",
        lambda g, d, w: estimator_error(g, d, weights=w),
        lambda g: [Call((torch.randn(4, 3, generator=g).double(), torch.randn(3, generator=g).double(), _LAW))],
        outputs=_numbers,
        reference=_whole_law,
        infinite=True,
        bad=[
            Bad(
                (_TWO, torch.ones(3), torch.ones(3) / 3), {}, ValueError, r"weights must have shape \(2,\), got \(3,\)"
            ),
            Bad((_TWO, torch.ones(3), torch.ones(2)), {}, ValueError, "weights must be >= 0 with sum 1"),
            Bad((_TWO, torch.ones(3), torch.arange(2)), {}, TypeError, "weights must be a floating tensor"),
        ],
    ),
    Measurement(
        "gradients.estimator_error",
        estimator_error,
        lambda g: [
            Call((torch.randn(6, 2, 3, generator=g, dtype=torch.float64), torch.randn(2, 3, generator=g).double())),
            Call((torch.randn(2, 4, generator=g, dtype=torch.float64), torch.randn(4, generator=g).double())),
        ],
        outputs=_numbers,
        reference=_two_passes,
        infinite=True,
        bad=[
            _bad(_TWO, torch.ones(2), ValueError, r"estimates must have shape \(draws, \*\(2,\)\)"),
            _bad(torch.ones(1, 3), torch.ones(3), ValueError, "estimates must hold at least 2 estimates, got 1"),
            _bad(torch.ones(2, 0), torch.ones(0), ValueError, "exact must have at least one element"),
            _bad(_TWO.long(), torch.ones(3), TypeError, "estimates must be a floating tensor"),
            _bad(_TWO, torch.ones(3).double(), TypeError, "estimates and exact must have the same dtype"),
            _bad(_TWO, {"w": torch.ones(3)}, TypeError, "two tensors or two mappings"),
            _bad({"w": _TWO}, {"v": torch.ones(3)}, ValueError, "the same names, got .'w'. and .'v'."),
            _bad(
                {"a": _TWO, "b": torch.ones(3)},
                {"a": torch.ones(3), "b": torch.tensor(1.0)},
                ValueError,
                "the others, 2",
            ),
            _bad(_TWO.log() / 0, torch.ones(3), ValueError, "estimates must be finite, got nan"),
        ],
    ),
]
