"""Contracts of layers that answer hyperparameters: against the plain layer with the weights of each example."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear

from pullback import implicit
from tests.contracts.contract import Bad, Call, Contract, Exempt, Module


def _linear(generator: torch.Generator, **options: Any) -> nn.Module:
    return _opened(implicit.BestResponseLinear(3, 2, 4, generator=generator, **options))


def _conv(generator: torch.Generator) -> nn.Module:
    return _opened(implicit.BestResponseConv2d(2, 3, 2, 4, stride=2, padding=1, generator=generator))


def _opened(layer: Any) -> nn.Module:
    """Gates of ordinary size, so that they count."""
    with torch.no_grad():
        layer.gate *= 50
    return layer.double()


def _network(generator: torch.Generator) -> nn.Module:
    """A convolution and a layer behind something that has parameters of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        plain = nn.Sequential(nn.Conv2d(1, 2, 2), nn.GroupNorm(1, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2)).double()
    answering = implicit.replace_with_best_response(plain, 2, generator=generator)
    with torch.no_grad():
        for name in answering.replaced:
            answering.model.get_submodule(name).layer.gate.mul_(50)
    return answering


def _network_by_example(x: Tensor, h: Tensor) -> Tensor:
    answering: Any = _network(torch.Generator().manual_seed(0))
    outputs = []
    for image, row in zip(x, h, strict=True):
        weights = answering.at(row)
        hidden = conv2d(image[None], weights["0.weight"], weights["0.bias"])
        hidden = nn.functional.group_norm(hidden, 1, weights["1.weight"], weights["1.bias"]).tanh()
        outputs.append(linear(hidden.flatten(1), weights["4.weight"], weights["4.bias"]))
    return torch.cat(outputs).detach()


def _examples(generator: torch.Generator, *shapes: tuple[int, ...]) -> list[Call]:
    return [Call(tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes))]


def _weights(layer: nn.Module, h: Tensor) -> tuple[Tensor, Tensor | None]:
    """The paper's formula with a diagonal matrix, at one setting."""
    weight, gate, bias = (getattr(layer, name) for name in ("weight", "gate", "bias"))
    scaled = torch.diag(gate[0] @ h) @ weight[1].flatten(1)
    return weight[0] + scaled.view_as(weight[1]), None if bias is None else bias[0] + torch.diag(gate[1] @ h) @ bias[1]


def _by_example(build: Any, plain: Any, x: Tensor, h: Tensor) -> Tensor:
    layer = build(torch.Generator().manual_seed(0))
    rows = h.expand(len(x), -1)
    return torch.cat([plain(x[i : i + 1], *_weights(layer, row)) for i, row in enumerate(rows)]).detach()


def _at(layer: Any, h: Tensor) -> Tensor:
    return torch.cat([t.flatten() for t in layer.at(h) if t is not None])


def _refusals(x: Tensor, features: str) -> list[Bad]:
    h = torch.zeros(2, 4)
    return [
        Bad((x, torch.zeros(2, 3)), {}, ValueError, "h must"),
        Bad((x, torch.zeros(3, 4)), {}, ValueError, "h"),
        Bad((x.long(), h), {}, TypeError, "x must be a floating tensor"),
        Bad((x, h.long()), {}, TypeError, "h must be a floating tensor"),
        Bad((x[..., :1], h) if features == "features" else (x[:, :1], h), {}, ValueError, "x must"),
        Bad((x.double(), h), {}, TypeError, "dtype"),
    ]


_LARGE: dict[str, Any] = {
    "large": (0,),
    "large_limit": 1e8,
    "why": "a sum of inputs times weights: it overflows near the largest number of its type",
}


def _range(u: Tensor, low: float = -1.0, high: float = 2.0, **options: Any) -> Tensor:
    start = options.pop("start", 0.5)
    return implicit.Hyperparameter(start, low, high, **options).value(u)


def _numbers(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(2, 3, generator=generator, dtype=torch.float64),))]


def _dropped(x: Tensor, p: Tensor | None = None) -> Tensor:
    p = torch.tensor([0.3, 0.0, 1.0], dtype=x.dtype, device=x.device) if p is None else p
    return implicit.dropout_by_example(x, p, generator=torch.Generator().manual_seed(2))


def _dropped_by_hand(x: Tensor) -> Tensor:
    draws = torch.rand(x.shape, generator=torch.Generator().manual_seed(2))
    return torch.stack([torch.where(draws[0] >= 0.3, x[0] / 0.7, 0), x[1], 0 * x[2]])


CONTRACTS = [
    Module(
        "implicit.BestResponseLinear",
        lambda layer, x, h: layer(x, h),
        lambda g: [*_examples(g, (3, 3), (3, 4)), *_examples(g, (2, 3), (4,))],
        partial(_by_example, _linear, linear),
        build=_linear,
        bad=_refusals(torch.zeros(2, 3), "features"),
        **_LARGE,
    ),
    Module(
        "implicit.BestResponseLinear[no bias]",
        lambda layer, x, h: layer(x, h),
        lambda g: _examples(g, (3, 3), (3, 4)),
        partial(_by_example, partial(_linear, bias=False), linear),
        build=partial(_linear, bias=False),
        **_LARGE,
    ),
    Module(
        "implicit.BestResponseLinear[at]",
        _at,
        lambda g: _examples(g, (4,)),
        lambda h: torch.cat([t.flatten() for t in _weights(_linear(torch.Generator().manual_seed(0)), h)]).detach(),
        build=_linear,
        batched=False,
        large=(0,),
        large_limit=1e8,
        why="one setting, not a batch of them; a sum of products overflows near the largest number",
        bad=[Bad((torch.zeros(2, 4),), {}, ValueError, "h must have shape")],
    ),
    Module(
        "implicit.BestResponseConv2d",
        lambda layer, x, h: layer(x, h),
        lambda g: _examples(g, (2, 2, 3, 3), (2, 4)),
        partial(_by_example, _conv, partial(conv2d, stride=2, padding=1)),
        build=_conv,
        bad=[
            *_refusals(torch.zeros(2, 2, 3, 3), "channels"),
            Bad((torch.zeros(2, 2), torch.zeros(2, 4)), {}, ValueError, "x must have 3 or 4 dimensions"),
        ],
        batched=False,
        vmap=False,
        **{**_LARGE, "why": "torch's convolution takes one batch dimension, which is here; sums overflow"},
    ),
    Module(
        "implicit.BestResponseModel",
        lambda model, x, h: model(x, h=h),
        lambda g: _examples(g, (2, 1, 3, 3), (2, 2)),
        _network_by_example,
        build=_network,
        batched=False,
        vmap=False,
        large=(),
        compile=False,
        why="torch's convolution takes one batch dimension, which is here; settings are handed on by attributes",
        bad=[
            Bad((torch.zeros(2, 1, 3, 3), torch.zeros(2, 3)), {}, ValueError, "h must"),
            Bad((torch.zeros(2, 1, 3, 3), torch.zeros(3, 2)), {}, ValueError, "h must have one row an image"),
        ],
    ),
    Exempt("implicit.replace_with_best_response", "takes and returns modules", "implicit/test_self_tuning.py"),
    *(
        Contract(
            f"implicit.Hyperparameter[{name}]",
            partial(_range, **options),
            _numbers,
            reference,
            large=(),
            infinite=name == "exp",
            half_tolerance=5e-2,
            why="an exponential overflows" if "exp" in name else "the coordinate is of ordinary size",
        )
        for name, options, reference in (
            ("bounded", {}, lambda u: -1 + 3 / (1 + torch.exp(-u))),
            ("bounded log", {"low": 0.01, "log": True}, lambda u: 0.01 * 200 ** (1 / (1 + torch.exp(-u)))),
            ("softplus", {"high": math.inf}, lambda u: -1 + torch.log(1 + torch.exp(u))),
            ("exp", {"high": math.inf, "log": True}, lambda u: -1 + torch.exp(u)),
            ("free", {"low": -math.inf, "high": math.inf}, lambda u: u),
        )
    ),
    Contract(
        "implicit.Hyperparameter",
        lambda start, *args, **options: (
            implicit.Hyperparameter(0.5).value(start)
            if isinstance(start, Tensor)
            else implicit.Hyperparameter(start, *args, **options)
        ),
        _numbers,
        lambda u: 0.5 + torch.tanh(u / 2) / 2,
        bad=[
            Bad((1.0,), {}, ValueError, "start must be between low = 0 and high = 1"),
            Bad((0.0,), {}, ValueError, "start must be between"),
            Bad((float("nan"),), {}, ValueError, "start must be between"),
            Bad((0.5, 1.0, 0.0), {}, ValueError, "low and high must be a range"),
            Bad((0.5, -math.inf, 1.0), {}, ValueError, "low and high must be a range"),
            Bad((0.5, 0.0, 1.0), {"log": True}, ValueError, "log needs low > 0"),
            Bad((1, 0.5, 3), {"integer": True}, ValueError, "integer needs integers"),
            Bad((0.5,), {"scale": 0.0}, ValueError, "scale must be > 0"),
        ],
    ),
    Exempt("implicit.Hyperparameters", "a distribution with parameters and methods", "implicit/test_self_tuning.py"),
    Contract(
        "implicit.dropout_by_example",
        _dropped,
        lambda g: _examples(g, (3, 4)),
        _dropped_by_hand,
        batched=False,
        vmap=False,
        compile=False,
        large_limit=1e30,
        why="one probability an example of one batch; a compiled graph draws other numbers; scaled up, it overflows",
        bad=[
            Bad((torch.ones(3, 2).long(),), {}, TypeError, "x must be a floating tensor"),
            Bad((torch.ones(2, 2), torch.zeros(3)), {}, ValueError, "probability must have"),
            Bad((torch.ones(2, 2), torch.zeros(2, 2)), {}, ValueError, "probability must have"),
            Bad((torch.ones(2, 2), torch.tensor([0.5, 1.5])), {}, ValueError, r"probability must be in \[0, 1\]"),
            Bad((torch.ones(2, 2), torch.tensor([0.5, torch.nan])), {}, ValueError, r"probability must be in \[0, 1\]"),
            Bad((torch.ones(()), torch.zeros(1)), {}, ValueError, "x must have examples"),
        ],
    ),
    Exempt("implicit.self_tuning_training", "steps that change modules in place", "implicit/test_self_tuning.py"),
]
