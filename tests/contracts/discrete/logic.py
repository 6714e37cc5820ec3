"""Contracts of the comparisons, of logic on probabilities and of soft masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges
from tests.contracts.law import floating

_X = torch.tensor([[-0.3, 0.1, 0.45], [0.5, -0.7, 0.02]], dtype=torch.float64)
_OTHER = torch.tensor([0.11, -0.2, 0.4], dtype=torch.float64)
_P = torch.tensor([[0.2, 0.7, 0.05], [0.6, 0.75, 0.35]], dtype=torch.float64)
_Q = torch.tensor([0.3, 0.65, 0.1], dtype=torch.float64)
_INT = torch.arange(3)


def _cdf(u: Tensor, method: str) -> Tensor:
    return torch.special.expit(4 * u) if method == "logistic" else torch.arctan(math.pi * u) / math.pi + 0.5


def _comparison(name: str, hard: Callable[..., Tensor], probability: Callable[[Tensor, str], Tensor]) -> list[Contract]:
    block = getattr(discrete, name)
    bad = [
        Bad((_INT, 1), {}, TypeError, "x must be a floating tensor, got torch.int64"),
        Bad((_OTHER, 1), {"temperature": -0.5}, ValueError, "temperature must be >= 0, got -0.5"),
        Bad((_OTHER, 1), {"temperature": torch.tensor(-0.5)}, ValueError, "temperature must be >= 0, got -0.5"),
        Bad((_OTHER, _X[0, :2]), {}, ValueError, r"other must broadcast with x, got \(2,\) and \(3,\)"),
        Bad((_OTHER, "1"), {}, TypeError, "other must be a real tensor or a number, got str"),
        Bad((_OTHER, 1), {"method": "step"}, ValueError, "method must be one of"),
    ]

    def calls(method: str, other: Any) -> Callable[[torch.Generator], list[Call]]:
        kwargs = {"method": method, "temperature": 0.2}
        return lambda generator: [
            Call((_X, other), kwargs),
            Call((_X[0, 0], other), kwargs),
            Call((_X[:0], other), kwargs),
        ]

    return [
        Contract(
            f"discrete.{name}[{method}{', number' if other is not _OTHER else ''}]",
            block,
            calls(method, other),
            reference=lambda x, other, method, temperature: probability((x - other) / temperature, method),
            hard=hard,
            scalars={"temperature": 0.2},
            edges=Edges(lambda x: hard(x, 0.5).to(x.dtype), lambda x: (x, 0.5))
            if method == "logistic" and other is _OTHER
            else None,
            bad=bad if method == "logistic" and other is _OTHER else (),
        )
        for method, other in (("logistic", _OTHER), ("cauchy", _OTHER), ("logistic", 0.3))
    ]


def _probabilities(*tail: Any, **kwargs: Any) -> Callable[[torch.Generator], list[Call]]:
    return lambda generator: [Call((_P, *tail), kwargs), Call((_P[1], *tail), kwargs)]


def _enumerated(name: str) -> Callable[..., Tensor]:
    """The probability of a logical operation on independent events, by summing over the four outcomes."""
    table = getattr(torch, name)

    def reference(p: Tensor, q: Tensor, **_: Any) -> Tensor:
        total = torch.zeros(torch.broadcast_shapes(p.shape, q.shape), dtype=p.dtype)
        for a in (True, False):
            for b in (True, False):
                if bool(table(torch.tensor(a), torch.tensor(b))):
                    total = total + (p if a else 1 - p) * (q if b else 1 - q)
        return total

    return reference


def _bad_probabilities(*tail: Any) -> list[Bad]:
    return [
        Bad((_INT, *tail), {}, TypeError, "p must be a floating tensor, got torch.int64"),
        Bad((1 + _P, *tail), {}, ValueError, r"p must be in \[0, 1\], got minimum 1.05 and maximum 1.75"),
    ]


def _alone(p: Tensor, dim: int) -> Tensor:
    return p.squeeze(dim)


_NOT_LARGE = "probabilities are not large"
_OF_EQUALS: dict[str, Callable[[Tensor], Tensor]] = {
    "logical_and": lambda p: p,
    "logical_or": lambda p: p,
    "logical_xor": lambda p: 0 * p,
}
_FUZZY = {"logical_and": torch.minimum, "logical_or": torch.maximum}

CONTRACTS = [
    *_comparison("greater", torch.gt, _cdf),
    *_comparison("greater_equal", torch.ge, _cdf),
    *_comparison("less", torch.lt, lambda u, method: _cdf(-u, method)),
    *_comparison("less_equal", torch.le, lambda u, method: _cdf(-u, method)),
    *_comparison("equal", torch.eq, lambda u, method: 4 * _cdf(u, method) * (1 - _cdf(u, method))),
    *_comparison("not_equal", torch.ne, lambda u, method: 1 - 4 * _cdf(u, method) * (1 - _cdf(u, method))),
    Contract(
        "discrete.isclose",
        discrete.isclose,
        lambda generator: [Call((_X, _OTHER, 0.5, 0.22), {"temperature": 0.2})],
        reference=lambda x, o, rtol, atol, temperature: (
            _cdf((atol + rtol * o.abs() - (x - o)) / temperature, "logistic")
            * _cdf((atol + rtol * o.abs() + (x - o)) / temperature, "logistic")
            / _cdf((atol + rtol * o.abs()) / temperature, "logistic") ** 2
        ),
        hard=torch.isclose,
        edges=Edges(lambda x: torch.isclose(x, torch.full_like(x, 0.5)).to(x.dtype), lambda x: (x, 0.5)),
        scalars={"temperature": 0.2},
        bad=[
            Bad((_INT, 1), {}, TypeError, "x must be a floating tensor, got torch.int64"),
            Bad((_OTHER, 1), {"atol": torch.tensor(1.0)}, TypeError, "atol must be a number, got a tensor"),
            Bad((_OTHER, 1), {"rtol": -1.0}, ValueError, "rtol must be >= 0, got -1.0"),
            Bad((_OTHER, 1), {"temperature": math.inf}, ValueError, "temperature must be >= 0, got inf"),
        ],
    ),
    *[
        Contract(
            f"discrete.{name}",
            getattr(discrete, name),
            _probabilities(_Q),
            large=(),
            why=_NOT_LARGE,
            reference=_enumerated(name),
            edges=Edges(_OF_EQUALS[name], lambda p: (p, p), domain=torch.sigmoid),
            bad=[
                *_bad_probabilities(_Q),
                Bad((_P, _INT), {}, TypeError, "q must be a floating tensor, got torch.int64"),
                Bad((_P, _Q), {"method": "maximum"}, ValueError, "method must be one of 'product', 'minimum'"),
            ],
        )
        for name in ("logical_and", "logical_or", "logical_xor")
    ],
    *[
        Contract(
            f"discrete.{name}[minimum]",
            getattr(discrete, name),
            _probabilities(_Q, method="minimum"),
            large=(),
            why=_NOT_LARGE,
            reference=lambda p, q, method, name=name: _FUZZY[name](p, q),
        )
        for name in _FUZZY
    ],
    Contract(
        "discrete.logical_not",
        discrete.logical_not,
        _probabilities(),
        large=(),
        why=_NOT_LARGE,
        edges=Edges(lambda p: 1 - p, domain=torch.sigmoid),
        reference=lambda p: 1 - p,
        bad=_bad_probabilities(),
    ),
    Contract(
        "discrete.all",
        discrete.all,
        _probabilities(-1),
        large=(),
        why=_NOT_LARGE,
        edges=Edges(lambda p, dim: (p > 0.5).all(dim), along=True, domain=torch.sigmoid, soft_single=_alone),
        reference=lambda p, dim: torch.exp(torch.log(p).sum(dim)),
        bad=[*_bad_probabilities(), Bad((_P, 2), {}, IndexError, "dim must be in")],
    ),
    Contract(
        "discrete.all[minimum, keepdim]",
        discrete.all,
        _probabilities(-1, True, method="minimum"),
        large=(),
        why=_NOT_LARGE,
        reference=lambda p, dim, keepdim, method: p.min(dim, keepdim=keepdim).values,
    ),
    Contract(
        "discrete.any",
        discrete.any,
        _probabilities(-1),
        large=(),
        why=_NOT_LARGE,
        edges=Edges(lambda p, dim: (p > 0.5).any(dim), along=True, domain=torch.sigmoid, soft_single=_alone),
        reference=lambda p, dim: 1 - torch.exp(torch.log1p(-p).sum(dim)),
        bad=[*_bad_probabilities(), Bad((_P, -3), {}, IndexError, "dim must be in")],
    ),
    Contract(
        "discrete.count",
        discrete.count,
        _probabilities(-1),
        large=(),
        why=_NOT_LARGE,
        edges=Edges(lambda p, dim: (p > 0.5).sum(dim), along=True, domain=torch.sigmoid, soft_single=_alone),
        reference=lambda p, dim: torch.einsum("...n->...", p),
        bad=_bad_probabilities(),
    ),
    Contract(
        "discrete.where",
        discrete.where,
        _probabilities(_X[0], _OTHER),
        large=(1, 2),
        edges=Edges(lambda p: (p > 0.5).to(p.dtype), lambda p: (p, 1.0, 0.0), domain=torch.sigmoid),
        reference=lambda p, x, other: torch.lerp(other.expand_as(p), x.expand_as(p), p),
        bad=[
            Bad((_INT, 1.0, 2.0), {}, TypeError, "condition must be a floating tensor, got torch.int64"),
            Bad((-_P, 1.0, 2.0), {}, ValueError, r"condition must be in \[0, 1\]"),
            Bad((_P, 1.0, _P[0, :2]), {}, ValueError, "other must broadcast with condition"),
        ],
    ),
    Contract(
        "discrete.where[numbers]",
        discrete.where,
        _probabilities(2.0, -1.0),
        large=(),
        why=_NOT_LARGE,
        reference=lambda p, x, other: other + p * (x - other),
    ),
    Contract(
        "discrete.masked_fill",
        discrete.masked_fill,
        lambda generator: [Call((_X, _Q, 2.0))],
        edges=Edges(
            lambda p: (p > 0.5).to(p.dtype),
            lambda p: (torch.zeros_like(p, dtype=floating(p)), p, 1.0),
            domain=torch.sigmoid,
            place=1,
        ),
        reference=lambda x, p, value: torch.lerp(x, torch.full_like(x, value), p.expand_as(x)),
        bad=[
            Bad((_INT, _Q, 0.0), {}, TypeError, "x must be a floating tensor, got torch.int64"),
            Bad((_Q, _INT, 0.0), {}, TypeError, "mask must be a floating tensor, got torch.int64"),
            Bad((_Q, 2 * _Q, 0.0), {}, ValueError, r"mask must be in \[0, 1\]"),
            Bad((_Q, _Q, _Q), {}, ValueError, "value must be a number or a tensor without dimensions"),
        ],
    ),
    Contract(
        "discrete.masked_fill[-inf]",
        discrete.masked_fill,
        lambda generator: [Call((_X, _Q, -math.inf))],
        infinite=True,
        reference=lambda x, p, value: torch.log((1 - p) * torch.exp(x)),
    ),
    Contract(
        "discrete.masked_mean",
        discrete.masked_mean,
        lambda generator: [Call((_X, _P, -1)), Call((_X, _Q, -2))],
        edges=Edges(lambda x, dim: x.mean(dim), lambda x: (x, torch.ones_like(x)), along=True),
        undefined=lambda x, p, dim: torch.broadcast_tensors(x, p)[1].sum(dim) == 0,
        reference=lambda x, p, dim: (x * (p / p.expand_as(x).sum(dim, keepdim=True))).sum(dim),
        bad=[
            Bad((_INT, _Q), {}, TypeError, "x must be a floating tensor, got torch.int64"),
            Bad((_Q, _INT), {}, TypeError, "mask must be a floating tensor, got torch.int64"),
            Bad((_Q, -_Q), {}, ValueError, r"mask must be in \[0, 1\]"),
        ],
    ),
]
