"""Contracts of online-to-nonconvex conversion and of stationarity at kinks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pullback.optim import OnlineToNonconvex, goldstein_norm, horizon_plan
from tests.contracts.contract import Bad, Call, HigherOrder, Measurement

_MEASURED = {
    **dict.fromkeys(("batched", "gradcheck", "gradgradcheck", "forward_mode", "vmap", "compile", "half"), False),
    "large": (),
    "why": "a measurement: it is not differentiated",
}
_ONE, _TWO = torch.ones(1, requires_grad=True), torch.ones(2, 1)
_OPTIONS = {"radius": 1.5, "horizon": 3, "random_scaling": False}


def _converted(w: Tensor, gradients: Tensor, **options: Any) -> Tensor:
    """The parameters after steps with given gradients, two parameters together."""
    parts = [torch.nn.Parameter(part) for part in w.detach().clone().tensor_split(2)]
    optimizer = OnlineToNonconvex(parts, **{**_OPTIONS, **options})
    for gradient in gradients:
        for part, slope in zip(parts, gradient.tensor_split(2), strict=True):
            part.grad = slope.clone()
        optimizer.step()
    return torch.cat([part.detach() for part in parts])


def _by_hand(w: Tensor, gradients: Tensor, lipschitz: float | None = None, optimistic: bool = False) -> Tensor:
    """The formulas, with ``s = 1``: the parameters are ``x_{n-1} + Delta_n``."""

    def shorten(v: Tensor) -> Tensor:
        return v * min(1.0, 0.5 / max(float(v.norm()), 1e-30))

    x, move, base = w, torch.zeros_like(w), torch.zeros_like(w)
    squares = 0.0
    for n, g in enumerate(gradients):
        x = x + move
        squares += float(g @ g)
        eta = 0.5 / math.sqrt(squares) if lipschitz is None else 0.5 / (lipschitz * math.sqrt(3))
        base = shorten(base - eta * g)
        move = shorten(base - eta * g) if optimistic else base
        if n % 3 == 2:
            move, base, squares = torch.zeros_like(w), torch.zeros_like(w), 0.0
    return x + move


def _gradients(generator: torch.Generator) -> list[Call]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [Call((draw(4), draw(5, 4)))]


def _curved(x: Tensor) -> Tensor:
    return x * torch.arange(1.0, x.shape[-1] + 1, dtype=x.dtype, device=x.device)


def _norm(f: Any, x: Tensor, **words: Any) -> Tensor:
    return goldstein_norm(f, x, **{"radius": 0.5, "samples": 8, "generator": torch.Generator().manual_seed(0)} | words)


def _plan(first: Tensor, calls: int = 8000, radius: float = 0.1, lipschitz: float = 1.0, gap: float = 0.8) -> Tensor:
    return first * torch.tensor(horizon_plan(calls, radius, lipschitz, gap), dtype=first.dtype, device=first.device)


CONTRACTS = [
    *(
        Measurement(
            f"optim.OnlineToNonconvex[{name}]",
            lambda w, gradients, given=given, **options: _converted(w, gradients, **given | options),
            _gradients,
            reference=lambda w, gradients, words=words: _by_hand(w, gradients, **words),
            bad=[
                Bad((_ONE, _TWO), {"radius": 0.0}, ValueError, "radius must be > 0, got 0.0"),
                Bad((_ONE, _TWO), {"horizon": 1}, ValueError, "horizon must be an integer >= 2, got 1"),
                Bad((_ONE, _TWO), {"lipschitz": -1.0}, ValueError, "lipschitz must be > 0"),
                Bad((_ONE, _TWO), {"learner": "adam"}, ValueError, "learner must be one of"),
                Bad((_ONE, _TWO), {"random_scaling": 1}, TypeError, "random_scaling must be True or False"),
                Bad((_ONE, _TWO), {"batch_ndim": -1}, ValueError, "batch_ndim must be an integer >= 0"),
            ],
        )
        for name, given, words in (
            ("ogd", {"lipschitz": 2.0}, {"lipschitz": 2.0}),
            ("adaptive", {}, {}),
            ("optimistic", {"learner": "optimistic"}, {"optimistic": True}),
        )
    ),
    HigherOrder(
        "optim.goldstein_norm",
        _norm,
        lambda g: [Call((torch.randn(2, 3, generator=g, dtype=torch.float64),))],
        given=_curved,
        argument="gradient",
        # Of a quadratic, the mean over a pair is the gradient between them.
        reference=lambda x: _curved(x).norm(dim=-1),
        tolerance=1e-6,
        bad=[
            Bad((torch.ones(2),), {"radius": 0.0}, ValueError, "radius must be > 0, got 0.0"),
            Bad((torch.ones(2),), {"samples": 3}, ValueError, "samples must be even: they come in pairs, got 3"),
            Bad((torch.ones(2),), {"method": "median"}, ValueError, "method must be one of"),
            Bad((torch.ones(2).long(),), {}, TypeError, "point must be a floating tensor"),
            Bad((torch.ones(()),), {}, ValueError, "point must have shape"),
        ],
        **_MEASURED,  # type: ignore[arg-type]
    ),
    Measurement(
        "optim.horizon_plan",
        _plan,
        lambda g: [Call((torch.ones(1).double(),))],
        reference=lambda first: first * torch.tensor([100, 80, 0.001, 0.0001, 0.3], dtype=torch.float64),
        bad=[
            Bad((_ONE,), {"calls": 3}, ValueError, "calls must be an integer >= 4, got 3"),
            Bad((_ONE,), {"radius": 0.0}, ValueError, "radius must be > 0"),
            Bad((_ONE,), {"lipschitz": 0.0}, ValueError, "lipschitz must be > 0"),
            Bad((_ONE,), {"gap": -1.0}, ValueError, "gap must be > 0"),
        ],
    ),
]
