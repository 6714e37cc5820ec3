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


def _softened_root(a: Tensor) -> Tensor:
    """The root of ``x + tanh x = a`` by bisection."""
    low, high = a - 1, a + 1
    for _ in range(80):
        middle = (low + high) / 2
        short = middle + torch.tanh(middle) < a
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (low + high) / 2


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
        "implicit.find_root[broyden]",
        lambda function, a: implicit.find_root(function, torch.zeros_like(a), a, method="broyden", **_exact(a, {})),
        _samples,
        given=_cubic,
        argument="function",
        reference=_cubic_root,
        outputs=lambda solution: solution.value,
        large=(),
        compile=False,
        half=False,
        why=f"{_WHY}; large: many updates of a Jacobian that is far off",
    ),
    HigherOrder(
        "implicit.find_bracketed_root",
        lambda function, a, **options: implicit.find_bracketed_root(
            function, -2 - a.detach().abs(), 2 + a.detach().abs(), a, **_exact(a, options)
        ),
        _samples,
        given=_cubic,
        argument="function",
        reference=_cubic_root,
        outputs=lambda solution: solution.value,
        large=(),
        compile=False,
        half=False,
        why=f"{_WHY}; large: the cube of the bracket overflows, which is refused",
        bad=[
            Bad((torch.zeros(2),), {"tolerance": torch.tensor(1e-3)}, TypeError, "tolerance must be a number"),
            Bad((torch.zeros(2),), {"max_iterations": 0}, ValueError, "max_iterations must be an integer"),
        ],
    ),
    *(
        HigherOrder(
            f"implicit.least_squares[{method}]",
            lambda residual, a, method=method, **options: implicit.least_squares(
                residual, torch.zeros_like(a), a, method=method, **_exact(a, options)
            ),
            _samples,
            given=lambda x, a: torch.cat([x + torch.tanh(x) - a, 2 * (x + torch.tanh(x) - a)], -1),
            argument="residual",
            reference=_softened_root,
            outputs=lambda solution: solution.value,
            large_limit=1e4,
            compile=False,
            half=False,
            why=_LARGE,
            bad=[
                Bad((torch.zeros(2),), {"damping": 0.0}, ValueError, "damping must be > 0"),
                Bad((torch.zeros(2),), {"solve": "qr"}, ValueError, "solve must be one of"),
                Bad((torch.zeros(2),), {"batch_ndim": 1, "tolerance": 0.0}, ValueError, "tolerance must be > 0"),
            ],
        )
        for method in ("levenberg_marquardt", "gauss_newton")
    ),
    HigherOrder(
        "implicit.minimize[lbfgsb]",
        lambda objective, a, **options: implicit.minimize(
            objective, torch.zeros_like(a), a, **{"bounds": (-0.2, 0.3)} | _exact(a, options)
        ),
        lambda g: [Call((torch.tensor([-1.4, 0.1, 2.0]).double() + 0.1 * torch.randn(3, generator=g).double(),))],
        given=_quartic,
        argument="objective",
        reference=lambda a: _cubic_root(a).clamp(-0.2, 0.3),
        outputs=lambda solution: solution.value,
        large_limit=1e4,
        compile=False,
        half=False,
        why=_LARGE,
        bad=[
            Bad((torch.zeros(2),), {"bounds": (1.0, 0.0)}, ValueError, "the low bounds must not exceed the high ones"),
            Bad((torch.zeros(2),), {"bounds": 1.0}, TypeError, "bounds must be a pair"),
            Bad((torch.zeros(2),), {"bounds": ([0.0, 0.0], 1.0)}, ValueError, "must .* have the structure of init"),
            Bad((torch.zeros(2),), {"method": "bfgs"}, ValueError, "'bfgs' and bounds do not go together"),
        ],
    ),
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
            Bad((torch.zeros(2),), {"method": "secant"}, ValueError, "method must be one of"),
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
        for method in ("lbfgs", "bfgs", "nonlinear_cg", "newton", "gradient", "fire")
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
        "implicit.minimize[block_coordinate]",
        lambda objective, a: implicit.minimize(
            objective, torch.zeros_like(a), a, prox=_soft, method="block_coordinate", **_exact(a, {})
        ),
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
