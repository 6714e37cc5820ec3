"""Contracts of implicit differentiation itself: decorators of solvers, and the bare products."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import implicit
from tests.contracts.contract import Bad, Call, HigherOrder

_WHY = "compile: the linear solve branches on its data"
_OVERFLOW = f"{_WHY}; large: 3 x^2 and the closed form that stands for the solver overflow beyond"


def _vectors(count: int) -> object:
    return lambda g: [Call(tuple(torch.randn(3, generator=g, dtype=torch.float64) for _ in range(count)))]


def _cubic(x: Tensor, a: Tensor) -> Tensor:
    return x**3 + x - a


def _cubic_root(a: Tensor) -> Tensor:
    """The real root in closed form."""
    return 2 / 3**0.5 * torch.sinh(torch.asinh(1.5 * 3**0.5 * a) / 3)


def _root_finder(init: None, a: Tensor) -> Tensor:
    return _cubic_root(a)


def _slope(a: Tensor, v: Tensor) -> Tensor:
    return v / (3 * _cubic_root(a) ** 2 + 1)


_BAD_OPTIONS = [
    Bad((torch.zeros(2),), {"solve": "qr"}, ValueError, "solve must be one of"),
    Bad((torch.zeros(2),), {"ridge": -1.0}, ValueError, "ridge must be >= 0"),
    Bad((torch.zeros(2),), {"ridge": torch.tensor(0.1)}, TypeError, "ridge must be a number, got a tensor"),
    Bad((torch.zeros(2),), {"batch_ndim": 2}, ValueError, "batch_ndim must be between 0 and the dimensions"),
]
_BAD_TUPLE = [Bad((torch.zeros(2), torch.zeros(2)), {"theta": 1.0}, TypeError, "theta must be a tuple")]

CONTRACTS = [
    HigherOrder(
        "implicit.custom_root",
        lambda optimality, a, **options: implicit.custom_root(optimality, **options)(_root_finder)(None, a),
        _vectors(1),
        given=_cubic,
        argument="optimality",
        reference=_cubic_root,
        large_limit=1e4,
        compile=False,
        why=_OVERFLOW,
        bad=_BAD_OPTIONS,
    ),
    HigherOrder(
        "implicit.custom_root[solver]",
        lambda solver, a: implicit.custom_root(_cubic)(solver)(None, a),
        _vectors(1),
        given=_root_finder,
        argument="solver",
        reference=_cubic_root,
        large_limit=1e4,
        compile=False,
        why=_OVERFLOW,
    ),
    HigherOrder(
        "implicit.custom_fixed_point",
        lambda map, a, **options: implicit.custom_fixed_point(map, **options)(lambda init, a: 2 * torch.tanh(a))(
            None, a
        ),
        _vectors(1),
        given=lambda x, a: 0.5 * x + torch.tanh(a),
        argument="map",
        reference=lambda a: 2 * torch.tanh(a),
        compile=False,
        why=_WHY,
        bad=_BAD_OPTIONS,
    ),
    HigherOrder(
        "implicit.root_jvp",
        lambda optimality, a, v, theta=None: implicit.root_jvp(
            optimality, _cubic_root(a), (a,) if theta is None else theta, (v.expand_as(a),)
        ),
        _vectors(2),
        given=_cubic,
        argument="optimality",
        reference=_slope,
        large=(1,),
        compile=False,
        why=f"{_WHY}; large: 3 x^2 overflows",
        bad=_BAD_TUPLE,
    ),
    HigherOrder(
        "implicit.root_vjp",
        lambda optimality, a, w, theta=None: implicit.root_vjp(
            optimality, _cubic_root(a), (a,) if theta is None else theta, w.expand_as(a)
        )[0],
        _vectors(2),
        given=_cubic,
        argument="optimality",
        reference=_slope,
        large=(1,),
        compile=False,
        why=f"{_WHY}; large: 3 x^2 overflows",
        bad=_BAD_TUPLE,
    ),
]
