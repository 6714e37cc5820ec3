"""Contracts of what measures and mends descent: proximal steps, sharpness, rates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pullback.gradients import (
    ProximalSGD,
    convergence_rate,
    fit_smoothness,
    local_smoothness,
    oscillation_amplitude,
    sharpness,
)
from tests.contracts.contract import Bad, Call, Contract, HigherOrder, Measurement, Optimizer
from tests.contracts.law import seeded


def _descended(w: Tensor, gradient: Tensor, **options: Any) -> Tensor:
    """Two steps with the same gradient."""
    parameter = nn.Parameter(w.detach().clone())
    optimizer = ProximalSGD([parameter], **{"lr": 0.5, "weight": 0.4} | options)
    for _ in range(2):
        parameter.grad = gradient
        optimizer.step()
    return parameter.detach()


def _by_hand(w: Tensor, gradient: Tensor, penalty: str, momentum: float) -> Tensor:
    before = w
    for _ in range(2):
        before, w = w, w - 0.5 * gradient + momentum * (w - before)
        if penalty == "l1":
            w = nn.functional.softshrink(w, 0.2)
        elif penalty == "l0":
            w = nn.functional.hardshrink(w, 0.4**0.5)
        else:
            length = w.norm(dim=1, keepdim=True)
            w = torch.where(length > 0.2, w * (1 - 0.2 / length), 0)
    return w


def _weights(g: torch.Generator) -> list[Call]:
    return [Call(tuple(torch.randn(4, 3, generator=g, dtype=torch.float64) for _ in range(2)))]


def _proximal(penalty: str, momentum: float, bad: list[Bad]) -> Measurement:
    return Measurement(
        f"gradients.ProximalSGD[{penalty}]",
        lambda w, g, **words: _descended(w, g, **{"penalty": penalty, "momentum": momentum} | words),
        _weights,
        reference=lambda w, g: _by_hand(w, g, penalty, momentum),
        bad=bad,
    )


_PAIR = (torch.ones(2, 2), torch.ones(2, 2))


def _loss(x: Tensor) -> Tensor:
    return (x**4).sum() / 12 + x.prod() + 3 * x[0]


def _top(f: Any, x: Tensor, **words: Any) -> Tensor:
    loss = (lambda p: f(p["x"])) if callable(f) else f
    found = sharpness(loss, {"x": x}, generator=seeded(), **words)
    return torch.tensor(found.value, dtype=x.dtype)


def _falling(g: torch.Generator) -> list[Call]:
    steps = torch.arange(1.0, 61, dtype=torch.float64)
    noise = 0.3 * torch.randn(2, 60, generator=g, dtype=torch.float64)
    return [Call((steps ** torch.tensor([[-0.5], [-2.0]], dtype=torch.float64) * noise.exp(),))]


def _regressed(values: Tensor) -> Tensor:
    import scipy.stats

    steps = torch.arange(1.0, 61, dtype=torch.float64).log().numpy()
    return torch.tensor([scipy.stats.linregress(steps, row).slope for row in values.log().numpy()])


def _smooth(f: Any, x: Tensor, d: Tensor, **words: Any) -> tuple[Tensor, Tensor]:
    loss = (lambda p: f(p["x"])) if callable(f) else f
    return tuple(local_smoothness(loss, {"x": x}, {"x": d}, **words))


def _smooth_by_hand(x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    def slope(x: Tensor) -> Tensor:
        return x**3 / 3 + torch.stack([3 + x[1] * x[2], x[0] * x[2], x[0] * x[1]])

    changes = [(slope(x + s * d) - slope(x)).norm() / (s * d).norm() for s in (0.2, 0.4, 0.6, 0.8, 1.0)]
    return max(changes), slope(x).norm()


def _line_of_scipy(smoothness: Tensor, norms: Tensor) -> tuple[Tensor, ...]:
    import scipy.stats

    lines = [scipy.stats.linregress(x, y) for x, y in zip(norms.numpy(), smoothness.numpy(), strict=True)]
    found = [(line.intercept, line.slope, line.slope / line.stderr) for line in lines]
    return tuple(torch.tensor(column, dtype=smoothness.dtype) for column in zip(*found, strict=True))


_RUN = torch.arange(1.0, 61).reciprocal()


CONTRACTS = [
    _proximal(
        "l1",
        0.0,
        [
            Bad(_PAIR, {"lr": -0.1}, ValueError, "lr must be > 0, got -0.1"),
            Bad(_PAIR, {"weight": -1.0}, ValueError, "weight must be >= 0, got -1.0"),
            Bad(_PAIR, {"penalty": "l2"}, ValueError, "penalty must be one of"),
            Bad(_PAIR, {"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\)"),
        ],
    ),
    _proximal("l0", 0.5, []),
    _proximal("group", 0.9, []),
    Optimizer("gradients.ProximalSGD[interface]", ProximalSGD, {"lr": 0.1, "weight": 0.2}),
    Optimizer(
        "gradients.ProximalSGD[interface, momentum]",
        ProximalSGD,
        {"lr": 0.1, "weight": 0.2, "momentum": 0.5, "penalty": "group"},
    ),
    HigherOrder(
        "gradients.sharpness",
        _top,
        lambda g: [Call((torch.randn(3, generator=g, dtype=torch.float64),))],
        given=_loss,
        argument="loss",
        reference=lambda x: torch.linalg.eigvalsh(torch.func.hessian(_loss)(x))[-1],
        **dict.fromkeys(("batched", "gradcheck", "gradgradcheck", "forward_mode", "vmap", "compile", "half"), False),
        large=(),
        why="a measurement: it is not differentiated",
        bad=[
            Bad((torch.ones(3),), {"iterations": 0}, ValueError, "iterations must be an integer >= 1, got 0"),
            Bad((torch.ones(3),), {"tolerance": 0.0}, ValueError, "tolerance must be > 0"),
            Bad((torch.ones(3).long(),), {}, TypeError, "must be a floating tensor, got torch.int64"),
            Bad((torch.ones(0),), {}, ValueError, "parameters must have at least one entry"),
        ],
    ),
    HigherOrder(
        "gradients.local_smoothness",
        _smooth,
        lambda g: [Call(tuple(torch.randn(3, generator=g, dtype=torch.float64) for _ in range(2)))],
        given=_loss,
        argument="loss",
        reference=_smooth_by_hand,
        **dict.fromkeys(("batched", "gradcheck", "gradgradcheck", "forward_mode", "vmap", "compile", "half"), False),
        large=(),
        infinite=True,
        why="a measurement: it is not differentiated; a loss of fourth order overflows",
        bad=[
            Bad((torch.ones(3), torch.ones(3)), {"points": 0}, ValueError, "points must be an integer >= 1, got 0"),
            Bad((torch.ones(3), torch.ones(2)), {}, ValueError, "direction must be shaped like parameters"),
            Bad((torch.ones(3), torch.zeros(3)), {}, ValueError, "direction must have a length"),
            Bad((torch.ones(3).long(), torch.ones(3)), {}, TypeError, "must be a floating tensor"),
        ],
    ),
    Measurement(
        "gradients.fit_smoothness",
        fit_smoothness,
        lambda g: [Call(tuple(torch.rand(2, 9, generator=g, dtype=torch.float64) for _ in range(2)))],
        reference=_line_of_scipy,
        outputs=tuple,
        bad=[
            Bad((_RUN, _RUN[1:]), {}, ValueError, "must have the same shape"),
            Bad((_RUN[:2], _RUN[:2]), {}, ValueError, "at least 3 points"),
            Bad((_RUN, torch.ones(60)), {}, ValueError, "gradient_norm must not be the same"),
            Bad((_RUN, _RUN / 0), {}, ValueError, "gradient_norm must be finite"),
            Bad((_RUN.long(), _RUN), {}, TypeError, "smoothness must be a floating tensor"),
        ],
    ),
    Measurement(
        "gradients.convergence_rate",
        convergence_rate,
        _falling,
        reference=_regressed,
        outputs=lambda rate: rate.exponent,
        bad=[
            Bad((_RUN,), {"window": 30}, ValueError, "values must fill at least 3 windows of 30 after 0"),
            Bad((_RUN,), {"optimum": 0.5}, ValueError, "values must stay above the optimum"),
            Bad((_RUN,), {"confidence": 1.0}, ValueError, "confidence must be in"),
            Bad((_RUN,), {"skip": -1}, ValueError, "skip must be an integer >= 0, got -1"),
            Bad((_RUN.long(),), {}, TypeError, "values must be a floating tensor"),
        ],
    ),
    Contract(
        "gradients.oscillation_amplitude",
        oscillation_amplitude,
        lambda g: [Call((torch.randn(7, 2, generator=g, dtype=torch.float64),))],
        reference=lambda x: (x.diff(dim=0).diff(dim=0) / 4).abs().mean(0),
        batched=False,
        why="the first dimension is time, further ones are entries",
        bad=[
            Bad((torch.ones(2, 3),), {}, ValueError, "iterates must be at least 3"),
            Bad((torch.ones(5),), {"window": 6}, ValueError, r"window must be in 3\.\.5, got 6"),
            Bad((torch.ones(5).long(),), {}, TypeError, "iterates must be a floating tensor"),
        ],
    ),
]
