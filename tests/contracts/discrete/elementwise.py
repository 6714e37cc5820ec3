"""Contracts of the elementwise relaxations of ``pullback.discrete``: rounding, steps and bends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges

# Away from the jumps of round (n + 1/2) and of floor (n), also after the batch law's factors 1.25 and 0.5.
_AWAY = torch.tensor([[-2.3, -1.7, -0.3], [0.3, 0.7, 2.7]], dtype=torch.float64)


def _calls(*tail: Any, **kwargs: Any) -> Callable[[torch.Generator], list[Call]]:
    def samples(generator: torch.Generator) -> list[Call]:
        return [
            Call((_AWAY, *tail), kwargs),
            Call((torch.tensor(0.3, dtype=torch.float64), *tail), kwargs),
            Call((torch.zeros(0, 3, dtype=torch.float64), *tail), kwargs),
        ]

    return samples


def _bad(*tail: Any) -> list[Bad]:
    x = torch.zeros(3)
    return [
        Bad((torch.arange(3), *tail), {}, TypeError, "x must be a floating tensor, got torch.int64"),
        Bad((x, *tail), {"temperature": -1.0}, ValueError, "temperature must be >= 0, got -1.0"),
        Bad((x, *tail), {"temperature": math.nan}, ValueError, "temperature must be >= 0, got nan"),
        Bad((x, *tail), {"temperature": torch.tensor(-1.0)}, ValueError, "temperature must be >= 0, got -1.0"),
        Bad((x, *tail), {"temperature": torch.tensor(1)}, TypeError, "temperature must be a floating tensor"),
        Bad((x, *tail), {"method": "steep"}, ValueError, "method must be one of"),
    ]


def _cdf(x: Tensor, method: str) -> Tensor:
    """The four steps, by other formulas than the library's."""
    if method == "logistic":
        return torch.special.expit(4 * x)
    if method == "cauchy":
        return torch.arctan(math.pi * x) / math.pi + 0.5
    if method == "reciprocal":
        return (1 + 2 * x / (1 + 2 * x.abs())) / 2
    return torch.where(x.abs() < 0.25, x + 0.5, torch.where(x > 0, 1 - 1 / (16 * x), -1 / (16 * x)))


def _stairs(x: Tensor, method: str, temperature: float) -> Tensor:
    """Every step of the staircase by its own: x in the unit interval that starts at the integer below."""
    result = torch.empty_like(x)
    half = torch.tensor(0.5 / temperature, dtype=x.dtype)
    for value, out in zip(x.reshape(-1), result.view(-1), strict=True):
        n = math.floor(value)
        low, high = _cdf(-half, method), _cdf(half, method)
        out.copy_(n + (_cdf((value - n - 0.5) / temperature, method) - low) / (high - low))
    return result


def _rounding(name: str, shift: float, hard: Callable[..., Tensor]) -> list[Contract]:
    block = getattr(discrete, name)
    return [
        Contract(
            f"discrete.{name}[{method}]",
            block,
            _calls(method=method, temperature=0.2),
            reference=lambda x, method, temperature: _stairs(x + shift, method, temperature),
            hard=hard,
            bad=_bad() if method == "cauchy" else (),
            edges=Edges(hard) if method == "cauchy" else None,
        )
        for method in ("cauchy", "logistic", "reciprocal", "optimal")
    ]


def _reference_trunc(x: Tensor, temperature: float, method: str = "cauchy") -> Tensor:
    return _stairs(x - 0.5, method, temperature) + _cdf(-x / temperature, method)


def _reference_clamp(x: Tensor, low: Tensor, high: Tensor, temperature: float) -> Tensor:
    """The integral of (F((u - low)/t) - F((u - high)/t)), written with logsumexp."""
    rise, fall = (_soft_maximum(x - b, 0.0, temperature) for b in (low, high))
    return low + rise - fall


def _soft_maximum(x: Tensor, other: Any, temperature: float) -> Tensor:
    pair = torch.stack(torch.broadcast_tensors(x, torch.as_tensor(other, dtype=x.dtype)))
    return torch.logsumexp(4 * pair / temperature, 0) * temperature / 4


def _sextic(x: Tensor) -> Tensor:
    """The integral of 1/2 + 15/16 u - 5/8 u^3 + 3/16 u^5 over 15/16 of ``u``, from -1 on, and relu beyond."""
    u = x * 16 / 15
    inside = 15 / 16 * (u / 2 + 15 / 32 * u**2 - 5 / 32 * u**4 + 1 / 32 * u**6 + 5 / 32)
    return torch.where(u.abs() < 1, inside, torch.relu(x))


_OTHER = torch.tensor([0.1, -2.0, 0.9], dtype=torch.float64)
_LOW = torch.tensor([-1.0, -0.5, 0.0], dtype=torch.float64)
_HIGH = torch.tensor([1.0, 0.5, 0.6], dtype=torch.float64)

_BAD_SECOND = {
    name: [
        Bad((torch.zeros(3), torch.zeros(2)), {}, ValueError, rf"{name} must broadcast with x, got \(2,\) and \(3,\)"),
        Bad((torch.zeros(3), [1.0]), {}, TypeError, f"{name} must be a real tensor or a number, got list"),
    ]
    for name in ("divisor", "other")
}

_TABLE = [
    *_rounding("round", 0.0, torch.round),
    *_rounding("floor", -0.5, torch.floor),
    *_rounding("ceil", 0.5, torch.ceil),
    Contract(
        "discrete.trunc",
        discrete.trunc,
        _calls(temperature=0.2),
        reference=_reference_trunc,
        hard=torch.trunc,
        edges=Edges(torch.trunc),
        bad=_bad(),
    ),
    Contract(
        "discrete.frac",
        discrete.frac,
        _calls(temperature=0.2),
        reference=lambda x, temperature: x - _reference_trunc(x, temperature),
        hard=torch.frac,
        edges=Edges(torch.frac),
        bad=_bad(),
    ),
    Contract(
        "discrete.remainder",
        discrete.remainder,
        _calls(1.25, temperature=0.2),
        reference=lambda x, d, temperature: x - d * _stairs(x / d - 0.5, "cauchy", temperature),
        hard=torch.remainder,
        edges=Edges(lambda x: torch.remainder(x, 1.5), lambda x: (x, 1.5)),
        bad=[*_bad(2), *_BAD_SECOND["divisor"]],
    ),
    Contract(
        "discrete.fmod",
        discrete.fmod,
        _calls(1.25, temperature=0.2),
        reference=lambda x, d, temperature: (
            x - d * (_stairs(x / d - 0.5, "cauchy", temperature) + _cdf(-x / d / temperature, "cauchy"))
        ),
        hard=torch.fmod,
        edges=Edges(lambda x: torch.fmod(x, 1.5), lambda x: (x, 1.5)),
        bad=[*_bad(2), *_BAD_SECOND["divisor"]],
    ),
    *[
        Contract(
            f"discrete.sign[{method}]",
            discrete.sign,
            _calls(method=method, temperature=0.2),
            reference=lambda x, method, temperature: 2 * _cdf(x / temperature, method) - 1,
            hard=torch.sign,
            edges=Edges(torch.sign) if method == "logistic" else None,
            bad=_bad() if method == "logistic" else (),
        )
        for method in ("logistic", "cauchy", "reciprocal", "optimal")
    ],
    Contract(
        "discrete.heaviside",
        discrete.heaviside,
        _calls(temperature=0.2),
        reference=lambda x, temperature: _cdf(x / temperature, "logistic"),
        hard=lambda x: torch.heaviside(x, torch.full_like(x, 0.5)),
        edges=Edges(lambda x: torch.heaviside(x, torch.full_like(x, 0.5))),
        bad=_bad(),
    ),
    Contract(
        "discrete.relu",
        discrete.relu,
        _calls(temperature=0.5),
        reference=lambda x, temperature: _soft_maximum(x, 0.0, temperature),
        hard=torch.relu,
        edges=Edges(torch.relu),
        bad=_bad(),
    ),
    Contract(
        "discrete.relu[gated]",
        discrete.relu,
        _calls(temperature=0.5, method="gated"),
        reference=lambda x, temperature, method: torch.nn.functional.silu(x * 4 / temperature) * temperature / 4,
        hard=torch.relu,
    ),
    Contract(
        "discrete.relu[quintic]",
        discrete.relu,
        _calls(temperature=0.5, method="quintic"),
        reference=lambda x, temperature, method: temperature * _sextic(x / temperature),
        hard=torch.relu,
    ),
    Contract(
        "discrete.abs",
        discrete.abs,
        _calls(temperature=0.5),
        reference=lambda x, temperature: x.abs() + temperature / 2 * torch.log1p(torch.exp(-4 * x.abs() / temperature)),
        hard=torch.abs,
        edges=Edges(torch.abs),
        bad=_bad(),
    ),
    Contract(
        "discrete.abs[gated]",
        discrete.abs,
        _calls(temperature=0.5, method="gated"),
        reference=lambda x, temperature, method: x * torch.tanh(2 * x / temperature),
        hard=torch.abs,
    ),
    Contract(
        "discrete.maximum",
        discrete.maximum,
        _calls(_OTHER, temperature=0.5),
        reference=_soft_maximum,
        hard=torch.maximum,
        edges=Edges(lambda x: x.clamp(min=0.5), lambda x: (x, 0.5)),
        bad=[*_bad(0.0), *_BAD_SECOND["other"]],
    ),
    Contract(
        "discrete.maximum[number]",
        discrete.maximum,
        _calls(1, temperature=0.5),
        reference=_soft_maximum,
        hard=lambda x, other: x.clamp(min=other),
    ),
    Contract(
        "discrete.maximum[gated]",
        discrete.maximum,
        _calls(_OTHER, temperature=0.5, method="gated"),
        reference=lambda x, b, temperature, method: (
            x * _cdf((x - b) / temperature, "logistic") + b * _cdf((b - x) / temperature, "logistic")
        ),
        hard=torch.maximum,
    ),
    Contract(
        "discrete.minimum",
        discrete.minimum,
        _calls(_OTHER, temperature=0.5),
        reference=lambda x, other, temperature: -_soft_maximum(-x, -other, temperature),
        hard=torch.minimum,
        edges=Edges(lambda x: x.clamp(max=0.5), lambda x: (x, 0.5)),
        bad=[*_bad(0.0), *_BAD_SECOND["other"]],
    ),
    Contract(
        "discrete.clamp",
        discrete.clamp,
        _calls(_LOW, _HIGH, temperature=0.5),
        reference=_reference_clamp,
        hard=torch.clamp,
        edges=Edges(lambda x: x.clamp(-1, 1), lambda x: (x, -1, 1)),
        bad=[*_bad(0.0, 1.0), Bad((torch.zeros(3),), {}, ValueError, "min and max must not both be None")],
    ),
    Contract(
        "discrete.clamp[upper]",
        discrete.clamp,
        _calls(None, 1.0, temperature=0.5),
        reference=lambda x, low, high, temperature: -_soft_maximum(-x, -high, temperature),
        hard=torch.clamp,
    ),
]

CONTRACTS = [replace(contract, scalars={"temperature": 0.3}) for contract in _TABLE]
