"""Contracts of the estimators of gradients and of what measures them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pullback.gradients import (
    EstimatorError,
    activity_forward_gradient,
    estimator_error,
    forward_gradient,
    gradient_signal,
    missing_forward_rules,
    signal_propagation,
)
from tests.contracts.contract import Bad, Call, Exempt, HigherOrder, Measurement
from tests.contracts.law import seeded

_MEASURED: dict[str, Any] = {
    **dict.fromkeys(("batched", "gradcheck", "gradgradcheck", "forward_mode", "vmap", "compile", "half"), False),
    "large": (),
    "why": "a measurement: it is not differentiated",
}
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


def _points(g: torch.Generator) -> list[Call]:
    return [Call((torch.randn(3, generator=g, dtype=torch.float64),))]


def _forward(loss: Any, x: Tensor, directions: int = 4, **words: Any) -> tuple[Tensor, Tensor]:
    found = forward_gradient(loss, {"x": x}, directions=directions, generator=seeded(), **words)
    return found.value, found.gradient["x"]


def _along(directions: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return x.square().sum(), torch.einsum("ki,kj,j->i", directions, directions, 2 * x) / len(directions)


def _signs(count: int) -> Tensor:
    """Bits of one word, the lowest first."""
    word = int(torch.empty(1, dtype=torch.int64).random_(-(2**63), None, generator=seeded())) % 2**64
    bits = [word >> place & 1 for place in range(3 * count)]
    return torch.tensor([1.0 if bit else -1.0 for bit in bits], dtype=torch.float64).view(count, 3)


class _Scaled(nn.Module):
    """``w x``, of any shape."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.5, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * x


def _activity(x: Tensor, **words: Any) -> tuple[Tensor, Tensor]:
    if not x.is_floating_point():
        raise TypeError("x must be floating")
    words = {"loss": lambda out: out.square().flatten(1).sum(1), "directions": 1, **words}
    found = activity_forward_gradient(_Scaled(x.dtype), words.pop("loss"), x, generator=seeded(), **words)
    return found.losses, found.gradient["w"]


def _perturbed(x: Tensor) -> tuple[Tensor, Tensor]:
    noise = torch.randn(x.shape, generator=seeded(), dtype=torch.float64)
    slopes = (3.0 * x * noise).sum(1)
    return (1.5 * x).square().sum(1), (slopes[:, None] * noise * x).sum() / len(x)


def _signal(loss: Any, x: Tensor, batches: int = 3) -> Tensor:
    found = gradient_signal(loss, {"x": x}, range(1, batches + 1))
    return torch.tensor([found.signal["x"], found.noise["x"], found.overall], dtype=torch.float64)


def _signal_of(x: Tensor) -> Tensor:
    """Gradients of 2 x, 4 x and 6 x: their mean is 4 x, their variance 4 x^2."""
    size = x.double().square().sum()
    return torch.stack([16 * size - 4 * size / 3, 4 * size, (16 - 4 / 3) / 4 * size / size])


def _propagated(x: Tensor, **words: Any) -> Tensor:
    if not x.is_floating_point():
        raise TypeError("x must be floating")
    (found,) = signal_propagation(_Scaled(x.dtype), x, generator=seeded(), **words)
    correlation = torch.nan_to_num(torch.tensor(found.correlation, dtype=torch.float64))
    return torch.stack(
        [torch.tensor(found.size, dtype=torch.float64), correlation, torch.tensor(found.cotangent).double()]
    )


def _sizes(x: Tensor) -> Tensor:
    pairs = [torch.cosine_similarity(a, b, dim=0) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    noise = torch.randn(x.shape, generator=seeded()).double()
    return torch.stack([(1.5 * x).square().mean().sqrt(), torch.stack(pairs).mean(), noise.square().mean().sqrt()])


CONTRACTS = [
    HigherOrder(
        "gradients.forward_gradient",
        _forward,
        _points,
        given=lambda p: p["x"].square().sum(),
        argument="loss",
        reference=lambda x: _along(torch.randn(4, 3, generator=seeded(), dtype=torch.float64), x),
        bad=[
            Bad((torch.ones(2),), {"directions": 0}, ValueError, "directions must be an integer >= 1, got 0"),
            Bad((torch.ones(2),), {"directions": 2.0}, TypeError, "directions must be an integer"),
            Bad((torch.ones(2),), {"chunk": 0}, ValueError, "chunk must be an integer >= 1"),
            Bad((torch.ones(2).long(),), {}, TypeError, "params..x.. must be a floating tensor"),
            Bad((torch.ones(2),), {"distribution": "uniform"}, ValueError, "distribution must be"),
            Bad((torch.ones(2),), {"subspace": {}}, ValueError, "subspace must have the names of params"),
            Bad((torch.ones(2),), {"subspace": {"x": torch.ones(2)}}, ValueError, r"shape \(rank, \*\(2,\)\)"),
            Bad((torch.ones(2),), {"subspace": {"x": torch.ones(0, 2)}}, ValueError, "at least one vector"),
            Bad((torch.ones(2),), {"subspace": {"x": torch.ones(2, 2)}}, ValueError, "linearly independent"),
        ],
        **_MEASURED,
    ),
    HigherOrder(
        "gradients.forward_gradient[signs, chunks of one]",
        lambda f, x: _forward(f, x, distribution="rademacher", chunk=1),
        _points,
        given=lambda p: p["x"].square().sum(),
        argument="loss",
        reference=lambda x: _along(_signs(4), x),
        **_MEASURED,
    ),
    HigherOrder(
        "gradients.missing_forward_rules",
        lambda f, x: torch.tensor([len(missing_forward_rules(f, {"x": x}))]),
        _points,
        given=lambda p: sum(torch.cdist(p["x"][..., None], p["x"][..., None]).sum() for _ in range(2)),
        argument="loss",
        reference=lambda x: torch.tensor([1]),
        bad=[Bad((torch.ones(2).long(),), {}, TypeError, "params..x.. must be a floating tensor")],
        **_MEASURED,
    ),
    Measurement(
        "gradients.activity_forward_gradient",
        _activity,
        lambda g: [Call((torch.randn(5, 3, generator=g, dtype=torch.float64),))],
        reference=_perturbed,
        bad=[
            Bad((torch.ones(2, 2),), {"directions": 0}, ValueError, "directions must be an integer >= 1"),
            Bad((torch.ones(2, 2),), {"loss": 3}, TypeError, "loss must be callable"),
            Bad((torch.ones(2, 2),), {"loss": torch.sum}, ValueError, r"one real number a sample, \[batch\], got \(\)"),
            Bad((torch.ones(2, 2),), {"loss": lambda out: out[:1, 0]}, ValueError, "the 1 samples .* returns shape"),
            Bad((torch.ones(2, 2),), {"layers": ["head"]}, ValueError, "layers must be"),
            Bad((torch.ones(2, 2),), {"distribution": "uniform"}, ValueError, "distribution must be"),
        ],
    ),
    HigherOrder(
        "gradients.gradient_signal",
        _signal,
        _points,
        given=lambda p, batch: (p["x"].square() * batch).sum(),
        argument="loss",
        reference=_signal_of,
        infinite=True,
        bad=[
            Bad((torch.ones(2),), {"batches": 1}, ValueError, "batches must be at least two, got 1"),
            Bad((torch.ones(2).long(),), {}, TypeError, "parameters..x.. must be a floating tensor"),
        ],
        **_MEASURED,
    ),
    Measurement(
        "gradients.signal_propagation",
        _propagated,
        lambda g: [Call((torch.randn(5, 3, generator=g, dtype=torch.float64),))],
        reference=_sizes,
        bad=[
            Bad((torch.ones(2, 2),), {"loss": 3}, TypeError, "loss must be callable"),
            Bad((torch.ones(2, 2),), {"loss": lambda out: out}, ValueError, r"loss must return a scalar, got \(2, 2\)"),
        ],
    ),
    Exempt("gradients.ForwardGradientDescent", "an optimizer", "gradients/test_estimators.py"),
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
