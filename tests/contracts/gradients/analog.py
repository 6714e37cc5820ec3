"""Contracts of analog layers and of what noise does to gradients."""

from __future__ import annotations

import copy
from typing import Any

import torch
from scipy.special import erf, erfinv
from torch import Tensor, nn

from pullback.gradients import (
    AnalogLayer,
    gradient_cosine,
    gradient_noise,
    interpolated_activation,
    leakage_to_std,
    reduce_precision,
    std_to_leakage,
)
from tests.contracts.contract import Bad, Call, Contract, HigherOrder, Module
from tests.contracts.law import seeded


def _vector(g: torch.Generator) -> list[Call]:
    return [Call((torch.randn(4, 5, generator=g, dtype=torch.float64),))]


def _positive(g: torch.Generator) -> list[Call]:
    return [Call((0.05 + 0.7 * torch.rand(3, 4, generator=g, dtype=torch.float64),))]


def _nearest(x: Tensor) -> Tensor:
    """The nearest of all levels, the one of smaller magnitude at halves."""
    levels = torch.arange(-400, 401, dtype=torch.float64) / 8
    levels = levels[levels.abs().argsort(stable=True)]
    return levels[(x.detach().unsqueeze(-1) - levels).abs().argmin(-1)]


def _scipy(function: Any) -> Any:
    return lambda x: torch.from_numpy(function(x.detach().numpy()))


def _analog(module: AnalogLayer, x: Tensor) -> Tensor:
    module = copy.copy(module)
    module.generator = seeded()
    return module(x)


def _by_hand(x: Tensor) -> Tensor:
    """The layer of the contract, spelled out with the same draws."""
    g, layer = seeded(), _layer(torch.Generator().manual_seed(0)).double().module
    std = 1 / (2 * 2**0.5 * 8 * erfinv(1 - 0.3))

    def noise(v: Tensor) -> Tensor:
        return v + std * torch.randn(v.shape, generator=g, dtype=v.dtype)

    weight, bias = (noise(_nearest(p.clamp(-1, 1))) for p in (layer.weight, layer.bias))
    return _nearest(noise(noise(_nearest(x.clamp(-1, 1))) @ weight.T + bias).clamp(-1, 1))


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(f"x must have {self.in_features} features, got shape {tuple(x.shape)}")
        return super().forward(x)


def _layer(g: torch.Generator) -> AnalogLayer:
    layer = _Linear(5, 3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) / 3)
    return AnalogLayer(layer, precision=8, leakage=0.3)


def _cosine(f: Any, x: Tensor, **words: Any) -> Tensor:
    leaf = x.detach().requires_grad_()
    return gradient_cosine((lambda: f(leaf)) if callable(f) else f, lambda: leaf.square().sum(), {"x": leaf}, **words)[
        "x"
    ]


_STEPPED: dict[str, Any] = {
    **dict.fromkeys(("gradcheck", "gradgradcheck", "half"), False),
    "why": "a step with the gradient of the identity; half-precision inputs may lie on another side of it",
}
_MEASURED: dict[str, Any] = {
    **dict.fromkeys(("batched", "gradcheck", "gradgradcheck", "forward_mode", "vmap", "compile", "half"), False),
    "large": (),
    "why": "a measurement: it is not differentiated",
}
_ONE = (torch.ones(2),)


CONTRACTS = [
    Contract(
        "gradients.reduce_precision",
        lambda x, precision=8, **words: reduce_precision(x, precision, **words),
        _vector,
        reference=_nearest,
        bad=[
            Bad(_ONE, {"precision": 0}, ValueError, "precision must be > 0, got 0"),
            Bad(_ONE, {"divide": 1.5}, ValueError, "divide must be"),
            Bad((torch.ones(2).long(),), {}, TypeError, "x must be a floating tensor"),
        ],
        **_STEPPED,
    ),
    Contract(
        "gradients.leakage_to_std",
        lambda x, precision=8: leakage_to_std(x, precision),
        _positive,
        reference=_scipy(lambda x: 1 / (2 * 2**0.5 * 8 * erfinv(1 - x))),
        large=(),
        compile=False,
        vmap=False,
        why="probabilities, which are looked at",
        bad=[
            Bad((torch.tensor([0.5, 1.0]),), {}, ValueError, "leakage must be below 1, got 1"),
            Bad((torch.tensor([0.0]),), {}, ValueError, "leakage must be > 0 everywhere"),
            Bad((0.0,), {}, ValueError, "leakage must be > 0"),
            Bad((0.5,), {"precision": -1}, ValueError, "precision must be > 0"),
        ],
    ),
    Contract(
        "gradients.std_to_leakage",
        lambda x, precision=8: std_to_leakage(x, precision),
        _positive,
        reference=_scipy(lambda x: 1 - erf(1 / (2 * 2**0.5 * x * 8))),
        compile=False,
        vmap=False,
        why="a range that is looked at",
        bad=[
            Bad((torch.tensor([0.0]),), {}, ValueError, "std must be > 0 everywhere"),
            Bad((0.5,), {"precision": 0}, ValueError, "precision must be > 0"),
        ],
    ),
    Contract(
        "gradients.interpolated_activation[gelu]",
        lambda x, weight=0.3, **words: interpolated_activation(x, weight, **{"scale": 1.5, **words}),
        _vector,
        reference=lambda x: (
            0.7 * x.clamp(min=0) + 0.3 * x * torch.distributions.Normal(0.0, 1.0).cdf(1.5 * x.detach().double())
        ),
        scalars={"weight": 0.3, "scale": 1.5},
        bad=[
            Bad(_ONE, {"weight": -1.0}, ValueError, "weight must be >= 0"),
            Bad(_ONE, {"scale": 0.0}, ValueError, "scale must be > 0"),
            Bad(_ONE, {"smooth": "selu"}, ValueError, "smooth must be"),
            Bad(_ONE, {"negative_slope": -0.1}, ValueError, "negative_slope must be >= 0"),
        ],
    ),
    Contract(
        "gradients.interpolated_activation[silu]",
        lambda x: interpolated_activation(x, 1.0, smooth="silu", negative_slope=0.1),
        _vector,
        reference=nn.functional.silu,
    ),
    Module(
        "gradients.AnalogLayer",
        _analog,
        _vector,
        build=_layer,
        reference=_by_hand,
        large=(),
        batched=False,
        vmap=False,
        compile=False,
        forward_mode=False,
        bad=[],
        **{**_STEPPED, "why": "steps with the gradient of the identity, and draws; its output is clamped"},
    ),
    HigherOrder(
        "gradients.gradient_noise",
        lambda f, x, std=0.5, **words: gradient_noise(f, x, std, **{"samples": 20_000, **words}),
        _vector,
        given=lambda x: x.clamp(min=0),
        argument="activation",
        reference=lambda x: torch.special.ndtr(-x.abs() / 0.5),
        bad=[
            Bad(_ONE, {"std": 0.0}, ValueError, "std must be > 0"),
            Bad(_ONE, {"samples": 1}, ValueError, "samples must be an integer >= 2"),
            Bad((torch.ones(2).long(),), {}, TypeError, "x must be a floating tensor"),
        ],
        **{**_MEASURED, "tolerance": 1e-4},
    ),
    HigherOrder(
        "gradients.gradient_cosine",
        _cosine,
        _vector,
        given=lambda x: x.pow(3).sum(),
        argument="noisy",
        reference=lambda x: torch.cosine_similarity(x.square().flatten(), x.flatten(), dim=0),
        bad=[Bad(_ONE, {"samples": 0}, ValueError, "samples must be an integer >= 1")],
        **_MEASURED,
    ),
]
