"""Contracts of optimizers and of what a game needs besides them."""

from __future__ import annotations

import cmath
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.optim import (
    ComplexMomentumAdam,
    ComplexMomentumSGD,
    Extragradient,
    NormalizedMomentumSGD,
    OptimisticAdam,
    OptimisticSGD,
    game_gradient,
    game_spectrum,
    momentum_radius,
    play,
    tune_momentum,
)
from tests.contracts.contract import Bad, Call, Exempt, HigherOrder, Measurement, Optimizer

_MEASURED = {
    **dict.fromkeys(("batched", "gradcheck", "gradgradcheck", "forward_mode", "vmap", "compile", "half"), False),
    "large": (),
    "why": "a measurement: it is not differentiated",
}


def _pair(g: torch.Generator) -> list[Call]:
    return [Call(tuple(torch.randn(3, generator=g, dtype=torch.float64) for _ in range(2)))]


def _losses(x: Tensor, y: Tensor) -> list[Tensor]:
    matrix = torch.arange(9.0, dtype=x.dtype, device=x.device).reshape(3, 3).sin()
    meeting = x @ matrix @ y
    return [meeting + 0.1 * x.pow(4).sum(), y.square().sum() - meeting]


def _leaves(*points: Tensor) -> list[Tensor]:
    return [p.detach().clone().requires_grad_() for p in points]


def _field(x: Tensor, y: Tensor) -> Tensor:
    players = _leaves(x, y)
    return torch.cat([g for own in game_gradient(_losses(*players), players) for g in own])


def _field_by_hand(x: Tensor, y: Tensor) -> Tensor:
    matrix = torch.arange(9.0, dtype=x.dtype).reshape(3, 3).sin()
    return torch.cat([matrix @ y + 0.4 * x**3, 2 * y - matrix.T @ x])


def _sorted(values: Tensor) -> Tensor:
    """Moduli: conjugates have no order."""
    return values.abs().sort().values


def _spectrum(x: Tensor, y: Tensor, **words: Any) -> Tensor:
    players = _leaves(x, y)
    return _sorted(game_spectrum(_losses(*players), players, **words))


def _spectrum_by_numpy(x: Tensor, y: Tensor) -> Tensor:
    jacobian = torch.func.jacrev(lambda w: _field_by_hand(*w.split(3)))(torch.cat([x, y]))
    return torch.from_numpy(np.sort(np.abs(np.linalg.eigvals(jacobian.numpy()))))


def _radius(real: Tensor, imaginary: Tensor, **words: Any) -> Tensor:
    return momentum_radius(torch.complex(real, imaginary), **{"lr": 0.1, "momentum": 0.8, "angle": 0.4} | words)


def _radius_by_power(real: Tensor, imaginary: Tensor) -> Tensor:
    """The growth of a thousand steps, each as the optimizer writes it."""
    rates = []
    for eigenvalue in torch.complex(real, imaginary).tolist():
        beta, a, b, w = cmath.rect(0.8, 0.4), 0.3 + 0j, -0.2 + 0.1j, 1 + 0j
        total = 0.0
        for step in range(1500):
            a, b = beta.real * a - beta.imag * b - eigenvalue * w, beta.imag * a + beta.real * b
            w = w + 0.1 * a
            size = math.sqrt(abs(a) ** 2 + abs(b) ** 2 + abs(w) ** 2)
            a, b, w = a / size, b / size, w / size
            total += math.log(size) if step >= 500 else 0.0
        rates.append(math.exp(total / 1000))
    return torch.tensor(max(rates), dtype=real.dtype)


def _played(f: Any, x: Tensor, **words: Any) -> Tensor:
    p = torch.nn.Parameter(x.detach().clone())
    losses = (lambda: f(p)) if callable(f) else f
    for _ in play(losses, [torch.optim.SGD([p], 0.1)], **{"steps": 2} | words):
        pass
    return p.detach()


def _one_player(p: Tensor) -> list[Tensor]:
    return [p.square().sum()]


def _normalized(w: Tensor, gradients: Tensor, **options: Any) -> Tensor:
    """Two steps of two parameters."""
    parts = [torch.nn.Parameter(part) for part in w.detach().clone().tensor_split(2)]
    optimizer = NormalizedMomentumSGD(parts, **{"lr": 0.3, "momentum": 0.75} | options)
    for gradient in gradients:
        for part, slope in zip(parts, gradient.tensor_split(2), strict=True):
            part.grad = slope.clone()
        optimizer.step()
    return torch.cat([part.detach() for part in parts])


def _normalized_by_hand(w: Tensor, gradients: Tensor) -> Tensor:
    first = gradients[0] / 4
    second = 0.75 * first + gradients[1] / 4
    return w - 0.3 * (first / torch.sqrt((first**2).sum()) + second / torch.sqrt((second**2).sum()))


_ONE = torch.ones(1, requires_grad=True)
_GRID = ([0.1, 0.3], [0.0, 0.5], [0.0, 0.4])


CONTRACTS = [
    Optimizer(
        "optim.ComplexMomentumSGD",
        ComplexMomentumSGD,
        {"lr": 0.1, "weight_decay": 0.01},
        bad=[
            Bad(([_ONE],), {"lr": 0.0}, ValueError, "lr must be > 0, got 0.0"),
            Bad(([_ONE],), {"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1"),
            Bad(([_ONE],), {"momentum": 0.9 + 0.9j}, ValueError, r"momentum must be in \[0, 1\]"),
            Bad(([_ONE],), {"angle": math.inf}, ValueError, "angle must be finite, got inf"),
            Bad(([_ONE],), {"weight_decay": -1.0}, ValueError, "weight_decay must be >= 0"),
            Bad(([_ONE],), {"foreach": 1}, TypeError, "foreach must be True, False or None"),
        ],
    ),
    Optimizer("optim.ComplexMomentumSGD[complex number]", ComplexMomentumSGD, {"lr": 0.1, "momentum": 0.5j}),
    Optimizer(
        "optim.ComplexMomentumAdam",
        ComplexMomentumAdam,
        {"lr": 0.1, "weight_decay": 0.01},
        bad=[
            Bad(([_ONE],), {"betas": (1.0j, 0.9)}, ValueError, r"betas\[0\] must be in \[0, 1\)"),
            Bad(([_ONE],), {"betas": (0.5, 1.0)}, ValueError, r"betas\[1\] must be in \[0, 1\)"),
            Bad(([_ONE],), {"betas": 0.9}, TypeError, "betas must be a pair"),
            Bad(([_ONE],), {"eps": 0.0}, ValueError, "eps must be > 0"),
        ],
    ),
    Optimizer(
        "optim.OptimisticSGD",
        OptimisticSGD,
        {"lr": 0.1},
        bad=[Bad(([_ONE],), {"strength": -1.0}, ValueError, "strength must be >= 0")],
    ),
    Optimizer(
        "optim.OptimisticAdam",
        OptimisticAdam,
        {"lr": 0.1, "weight_decay": 0.01},
        bad=[
            Bad(([_ONE],), {"betas": (0.5j, 0.9)}, TypeError, r"betas\[0\] must be a number"),
            Bad(([_ONE],), {"lr": "0.1"}, TypeError, "lr must be a number"),
        ],
    ),
    Optimizer(
        "optim.Extragradient",
        Extragradient,
        {"lr": 0.1},
        bad=[Bad(([_ONE],), {"lr": -1.0}, ValueError, "lr must be > 0")],
    ),
    Measurement(
        "optim.NormalizedMomentumSGD",
        _normalized,
        lambda g: [Call((torch.randn(4, generator=g, dtype=torch.float64), torch.randn(2, 4, generator=g).double()))],
        reference=_normalized_by_hand,
        bad=[
            Bad((_ONE, torch.ones(1, 1)), {"lr": 0.0}, ValueError, "lr must be > 0, got 0.0"),
            Bad((_ONE, torch.ones(1, 1)), {"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\), got 1"),
        ],
    ),
    Exempt("optim.functional", "every law of an optimizer goes through it", "contracts/laws_optimizers.py"),
    Measurement(
        "optim.game_gradient",
        _field,
        _pair,
        reference=_field_by_hand,
    ),
    Measurement("optim.game_spectrum", _spectrum, _pair, reference=_spectrum_by_numpy),
    Measurement(
        "optim.game_spectrum[arnoldi]",
        lambda x, y: _spectrum(x, y, count=6),
        _pair,
        reference=_spectrum_by_numpy,
        tolerance=1e-6,
        bad=[],
    ),
    HigherOrder(
        "optim.play",
        _played,
        lambda g: [Call((torch.randn(2, generator=g, dtype=torch.float64),))],
        given=_one_player,
        argument="losses",
        reference=lambda x: 0.64 * x,
        bad=[
            Bad((torch.ones(2),), {"steps": 0}, ValueError, "steps must be an integer >= 1, got 0"),
            Bad((torch.ones(2),), {"order": "random"}, ValueError, "order must be one of"),
        ],
        **_MEASURED,  # type: ignore[arg-type]
    ),
    Measurement(
        "optim.momentum_radius",
        _radius,
        lambda g: [Call((torch.rand(3, generator=g, dtype=torch.float64), torch.randn(3, generator=g).double()))],
        reference=_radius_by_power,
        tolerance=2e-3,
        bad=[
            Bad((torch.ones(2), torch.ones(2)), {"lr": 0.0}, ValueError, "lr must be > 0, got 0.0"),
            Bad((torch.ones(2), torch.ones(2)), {"momentum": 1.0}, ValueError, r"momentum must be in \[0, 1\)"),
            Bad((torch.ones(2), torch.ones(2)), {"angle": math.nan}, ValueError, "angle must be finite"),
            Bad((torch.ones(2), torch.ones(2)), {"order": "alternating"}, ValueError, "must be real or imaginary"),
            Bad((torch.ones(0), torch.ones(0)), {}, ValueError, "eigenvalues must hold at least one number"),
        ],
    ),
    Measurement(
        "optim.tune_momentum",
        lambda values, grid=_GRID: torch.tensor(tune_momentum(values, grid), dtype=values.dtype),
        lambda g: [Call((torch.rand(3, generator=g, dtype=torch.float64) + 0.5,))],
        reference=lambda values: torch.tensor(
            min(
                (float(momentum_radius(values, lr=lr, momentum=m, angle=a)), lr, m, a)
                for lr in _GRID[0]
                for m in _GRID[1]
                for a in _GRID[2]
            ),
            dtype=values.dtype,
        ),
        bad=[
            Bad((torch.ones(2),), {"grid": ([0.1], [0.5])}, TypeError, "grid must hold step sizes, moduli and angles"),
            Bad((torch.ones(2),), {"grid": ([0.1], [], [0.0])}, ValueError, "grid must hold moduli, got none"),
        ],
    ),
]
