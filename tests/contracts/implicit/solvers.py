"""Contracts of the solvers with implicit gradients built in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import implicit
from pullback.core.errors import ConvergenceError
from tests.contracts.contract import Bad, Call, Exempt, HigherOrder

_WHY = "compile: the solver branches on its data; half: it cannot show the tolerance that the laws ask for"
_LARGE = f"{_WHY}; large: the function of the table has no digits left beyond, which the result then says"


def _samples(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(2, generator=generator, dtype=torch.float64),))]


def _one_sample(generator: torch.Generator) -> list[Call]:
    """For slow methods: finite differences solve once more for every unknown."""
    return [Call((torch.randn(1, generator=generator, dtype=torch.float64),))]


def _cubic(x: Tensor, a: Tensor) -> Tensor:
    return x**3 + x - a


def _cubic_root(a: Tensor) -> Tensor:
    """The real root in closed form."""
    return 2 / 3**0.5 * torch.sinh(torch.asinh(1.5 * 3**0.5 * a) / 3)


def _damped(x: Tensor, a: Tensor) -> Tensor:
    """A contraction with the fixed point ``2 tanh(a)``."""
    return 0.5 * x + torch.tanh(a)


def _quartic(x: Tensor, a: Tensor) -> Tensor:
    """Its gradient is the cubic."""
    return (x**4 / 4 + x**2 / 2 - a * x).sum()


def _distance(x: Tensor, a: Tensor) -> Tensor:
    return ((x - a) ** 2).sum() / 2


def _soft(y: Tensor, step: float, a: Tensor) -> Tensor:
    return implicit.prox_lasso(y, 0.3 * step)


def _exact(a: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """A tolerance that derivatives of second order can be compared at."""
    return {"tolerance": 1e-11 if a.dtype == torch.float64 else None} | options


CONTRACTS = [
    HigherOrder(
        "implicit.find_root",
        lambda function, a, **options: implicit.find_root(function, torch.zeros_like(a), a, **_exact(a, options)),
        _samples,
        given=_cubic,
        argument="function",
        reference=_cubic_root,
        outputs=lambda solution: solution.value,
        large_limit=1e4,
        compile=False,
        half=False,
        why=_LARGE,
        bad=[
            Bad((torch.zeros(2),), {"solve": "qr"}, ValueError, "solve must be one of"),
            Bad((torch.zeros(2),), {"tolerance": torch.tensor(1e-3)}, TypeError, "tolerance must be a number"),
            Bad((torch.zeros(2),), {"max_iterations": 1.5}, TypeError, "max_iterations must be an integer"),
            Bad((torch.zeros(2),), {"batch_ndim": 2}, ValueError, "batch_ndim must be between"),
            Bad(
                (torch.full((2,), 5.0),),
                {"max_iterations": 1, "check": True},
                ConvergenceError,
                "the iterations were used up",
            ),
        ],
    ),
    *(
        HigherOrder(
            f"implicit.fixed_point[{method}]",
            lambda map, a, method=method, **options: implicit.fixed_point(
                map, torch.zeros_like(a), a, method=method, **_exact(a, options)
            ),
            _samples,
            given=_damped,
            argument="map",
            reference=lambda a: 2 * torch.tanh(a),
            outputs=lambda solution: solution.value,
            compile=False,
            half=False,
            why=_WHY,
            bad=[
                Bad((torch.zeros(2),), {"damping": 0.0}, ValueError, "damping must be > 0"),
                Bad((torch.zeros(2),), {"damping": 1.5}, ValueError, r"damping must be in \(0, 1\], got 1.5"),
                Bad((torch.zeros(2),), {"memory": 0}, ValueError, "memory must be an integer >= 1"),
            ],
        )
        for method in ("picard", "anderson", "newton")
    ),
    *(
        HigherOrder(
            f"implicit.minimize[{method}]",
            lambda objective, a, method=method, **options: implicit.minimize(
                objective, torch.zeros_like(a), a, method=method, max_iterations=2000, **_exact(a, options)
            ),
            _one_sample if method in ("gradient", "fire") else _samples,
            given=_quartic,
            argument="objective",
            reference=_cubic_root,
            outputs=lambda solution: solution.value,
            large_limit=1e4,
            compile=False,
            half=False,
            why=_LARGE,
            bad=[
                Bad((torch.zeros(2),), {"prox": lambda y, step, a: y}, ValueError, "do not go together"),
                Bad((torch.zeros(2),), {"step": torch.tensor(0.1)}, TypeError, "step must be a number"),
            ],
        )
        for method in ("lbfgs", "newton", "gradient", "fire")
    ),
    HigherOrder(
        "implicit.minimize[proximal_gradient]",
        lambda objective, a: implicit.minimize(objective, torch.zeros_like(a), a, prox=_soft, **_exact(a, {})),
        _samples,
        given=_distance,
        argument="objective",
        reference=lambda a: implicit.prox_lasso(a, 0.3),
        outputs=lambda solution: solution.value,
        large_limit=1e4,
        compile=False,
        half=False,
        why=_LARGE,
    ),
    HigherOrder(
        "implicit.minimize[prox]",
        lambda prox, a: implicit.minimize(_distance, torch.zeros_like(a), a, prox=prox, **_exact(a, {})),
        _samples,
        given=_soft,
        argument="prox",
        reference=lambda a: implicit.prox_lasso(a, 0.3),
        outputs=lambda solution: solution.value,
        large_limit=1e4,
        compile=False,
        half=False,
        why=_LARGE,
    ),
    Exempt("implicit.Reason", "an enumeration: the numbers in Solution.reason", "implicit/test_solvers.py"),
]
