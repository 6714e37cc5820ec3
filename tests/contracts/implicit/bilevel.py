"""Contracts of bilevel problems: hypergradients and what they are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import implicit
from pullback.core.errors import ConvergenceError
from tests.contracts.contract import Bad, Call, Contract, Exempt, HigherOrder

_OFF: dict[str, Any] = {
    "batched": False,
    "gradcheck": False,
    "gradgradcheck": False,
    "forward_mode": False,
    "vmap": False,
    "compile": False,
    "large": (),
    "why": "a gradient, returned without derivatives of its own, of one problem; it overflows with its objective",
}


def _curvature(like: Tensor) -> Tensor:
    return torch.tensor((1.0, 2.0, 4.0), dtype=like.dtype, device=like.device)


def _points(generator: torch.Generator) -> list[Call]:
    return [Call(tuple(torch.randn(3, generator=generator, dtype=torch.float64) for _ in range(2)))]


def _lower(x: Tensor, y: Tensor) -> Tensor:
    """Minimal at ``y = sin(x) / curvature``."""
    return (_curvature(y) * y**2).sum() / 2 - (torch.sin(x) * y).sum()


def _upper(x: Tensor, y: Tensor) -> Tensor:
    return ((y - 1) ** 2).sum() / 2 + (x**2).sum() / 2


def _closed(x: Tensor, y: Tensor) -> Tensor:
    return x + torch.cos(x) * (y - 1) / _curvature(y)


def _after(steps: int, kept: int, scale: float, mix: float = 0.0) -> Any:
    """Return the derivative of unrolled steps as torch.func takes it."""

    def end(x: Tensor, y: Tensor) -> Tensor:
        curvature, fixed = _curvature(y), x.detach()
        for k in range(steps):
            here, share = (x if k >= steps - kept else fixed), mix / (k + 1)
            y = y - scale * (share * (y - 1) + (1 - share) * (curvature * y - torch.sin(here)))
        return _upper(x, y)

    def slope(x: Tensor, y: Tensor) -> Tensor:
        live = x.detach().clone().requires_grad_()
        return torch.autograd.grad(end(live, y.detach()), live)[0]

    return slope


_EXACT = {"scale": 0.4, "terms": 200}
_METHODS: dict[str, tuple[dict[str, Any], Any]] = {
    "neumann": (_EXACT, _closed),
    "cg": ({}, _closed),
    "exact": ({}, _closed),
    "identity": ({"scale": 0.5}, lambda x, y: x + torch.cos(x) * (y - 1) / 2),
    "direct": ({}, lambda x, y: x),
    "unrolled": ({"scale": 0.3, "steps": 4}, _after(4, 4, 0.3)),
    "truncated": ({"scale": 0.3, "steps": 4, "terms": 2}, _after(4, 2, 0.3)),
    "bda": ({"scale": 0.3, "steps": 4, "mix": 0.8}, _after(4, 4, 0.3, 0.8)),
}
_P = (torch.zeros(3), torch.ones(3))
_AWAY = (torch.zeros(3), torch.arange(3.0))


def _hypergradient(upper: Any, x: Any, y: Any, lower: Any = _lower, **options: Any) -> Tensor:
    gradient: Tensor = implicit.hypergradient(upper, lower, x, y, **options).gradient
    return gradient


_BAD_OPTIONS = [
    Bad(_P, {"method": "newton"}, ValueError, "method must be one of"),
    Bad(_P, {}, ValueError, "method 'neumann' needs scale"),
    Bad(_P, {"scale": 0.0}, ValueError, "scale must be > 0"),
    Bad(_P, {"scale": torch.tensor(1.0)}, TypeError, "scale must be a number"),
    Bad(_P, {"scale": 0.1, "terms": 0}, ValueError, "terms must be an integer >= 1"),
    Bad(_P, {"scale": 0.1, "damping": -1.0}, ValueError, "damping must be >= 0"),
    Bad(_P, {"method": "cg", "tolerance": 0.0}, ValueError, "tolerance must be > 0"),
    Bad(_AWAY, {"scale": 9.0, "terms": 9}, ConvergenceError, "the Neumann series diverged"),
    Bad(_AWAY, {"method": "cg", "terms": 1, "check": True}, ConvergenceError, "the system did not converge"),
]

CONTRACTS = [
    *(
        HigherOrder(
            f"implicit.hypergradient[{method}]",
            lambda upper, x, y, method=method, options=options, **more: _hypergradient(
                upper, x, y, **{"method": method, **options, **more}
            ),
            _points,
            given=_upper,
            argument="upper",
            reference=reference,
            **_OFF,
        )
        for method, (options, reference) in _METHODS.items()
    ),
    HigherOrder(
        "implicit.hypergradient",
        lambda lower, x, y, upper=_upper, **options: _hypergradient(upper, x, y, lower, **options or {"method": "cg"}),
        _points,
        given=_lower,
        argument="lower",
        reference=_closed,
        bad=[
            *_BAD_OPTIONS[:1],
            *(Bad(b.args, {"method": "neumann", **b.kwargs}, b.error, b.match) for b in _BAD_OPTIONS[1:]),
            Bad(_P, {"method": "unrolled"}, ValueError, "method 'unrolled' needs scale"),
            Bad(_P, {"method": "unrolled", "damping": 0.1}, ValueError, "damping is no option of method 'unrolled'"),
            Bad(_P, {"method": "unrolled", "scale": 0.1, "steps": 0}, ValueError, "steps must be an integer >= 1"),
            Bad(_P, {"method": "truncated", "scale": 0.1, "steps": 2, "terms": 3}, ValueError, "terms must be in 1..2"),
            Bad(_P, {"method": "bda", "scale": 0.1, "mix": 2.0}, ValueError, r"mix must be in \[0, 1\]"),
            Bad(_P, {"upper": lambda x, y: x.sum()}, ValueError, "upper must depend on y"),
            Bad(_P, {"upper": lambda x, y: y}, ValueError, "upper must return a floating tensor with one element"),
            Bad((_P[0], _P[1].long()), {}, TypeError, "y must be a module, a floating tensor or a nesting"),
            Bad(([], _P[1]), {}, ValueError, "x must hold at least one tensor"),
        ],
        **_OFF,
    ),
    *(
        HigherOrder(
            f"implicit.inverse_hessian_product[{method}]",
            lambda lower, y, v, method=method, options=options, **more: (
                implicit.inverse_hessian_product(lower, y, v, **{"method": method, **options, **more}).value
            ),
            _points,
            given=lambda y: (_curvature(y) * y**2).sum() / 2,
            argument="lower",
            reference=lambda y, v, method=method: v / (2 if method == "identity" else _curvature(v)),
            bad=_BAD_OPTIONS[2:6] if method == "neumann" else (),
            **_OFF,
        )
        for method, (options, _) in list(_METHODS.items())[:4]
    ),
    Contract(
        "implicit.inverse_hessian_product",
        lambda y, v, lower=torch.cosh, **options: (
            implicit.inverse_hessian_product(lambda y: lower(y).sum(), y, v, **options or {"method": "exact"}).value
        ),
        _points,
        reference=lambda y, v: v / torch.cosh(y),
        bad=[
            Bad(_P, {"method": "qr"}, ValueError, "method must be one of"),
            Bad(_P, {"method": "exact", "terms": 3}, ValueError, "terms is no option of method 'exact'"),
            Bad(_P, {"method": "identity", "damping": 0.5}, ValueError, "damping is no option of method 'identity'"),
            Bad(_P, {"lower": lambda y: torch.zeros(3), "method": "cg"}, ValueError, "lower must depend on y"),
            Bad((_P[0], torch.ones(2)), {"method": "cg"}, ValueError, "vector must have the shapes and dtypes of y"),
            Bad((_P[0], [_P[1]]), {"method": "cg"}, ValueError, "vector must have the structure of y"),
        ],
        **_OFF,
    ),
    HigherOrder(
        "implicit.kkt_residual",
        lambda upper, x, y, v=None, mix=0.25: implicit.kkt_residual(
            upper, _lower, x, y, torch.cos(y) if v is None else v, mix=mix
        ),
        _points,
        given=_upper,
        argument="upper",
        reference=lambda x, y: torch.linalg.vector_norm(
            torch.stack(
                [
                    x + 0.75 * torch.cos(x) * torch.cos(y),
                    y - 1 - (0.25 + 0.75 * _curvature(y)) * torch.cos(y),
                    0.25 * (y - 1) + 0.75 * (_curvature(y) * y - torch.sin(x)),
                ]
            )
        ),
        bad=[
            Bad(_P, {"mix": 1.5}, ValueError, r"mix must be in \[0, 1\]"),
            Bad(_P, {"v": torch.ones(2)}, ValueError, "multiplier must have the shapes and dtypes of y"),
        ],
        **_OFF,
    ),
    Exempt("implicit.BilevelDescent", "steps that change a problem in place", "implicit/test_bilevel.py"),
    Exempt("implicit.NormalizedBilevelMomentum", "steps that change a problem in place", "implicit/test_bilevel.py"),
    Exempt("implicit.AveragedMultipliers", "steps that change a problem in place", "implicit/test_bilevel.py"),
]
