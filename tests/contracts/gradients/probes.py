"""Contracts of ``pullback.gradients``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pullback.gradients import SavedBytes, evolution_gradient, kink_distance, lyapunov_spectrum, saved_bytes
from tests.contracts.contract import Bad, Call, Contract, HigherOrder, Measurement
from tests.contracts.law import seeded


def _vector(g: torch.Generator) -> list[Call]:
    return [Call((torch.randn(4, 5, generator=g, dtype=torch.float64),))]


def _second(x: Tensor) -> Tensor:
    ordered = x.sort(dim=-1, descending=True).values
    return ordered[..., 0] - ordered[..., 1]


_MEASURED: dict[str, Any] = {
    **dict.fromkeys(("batched", "gradcheck", "gradgradcheck", "forward_mode", "vmap", "compile", "half"), False),
    "large": (),
    "why": "a measurement: it is not differentiated",
}
_ESTIMATE: dict[str, Any] = {"smoothing": 0.5, "pairs": 8}
_DIRECTIONS = torch.cat([torch.randn(1, 3, generator=g, dtype=torch.float64) for g in [seeded()] for _ in range(8)])


def _evolution(x: Tensor, loss: Any = lambda p: p["x"].square().sum(), **words: Any) -> Tensor:
    return evolution_gradient(loss, {"x": x}, **{**_ESTIMATE, **words}, generator=seeded()).gradient["x"]


def _as_tensor(saved: SavedBytes) -> Tensor:
    return torch.tensor([saved.total, saved.count])


CONTRACTS = [
    Contract(
        "gradients.kink_distance[relu]",
        lambda x: kink_distance("relu", x),
        _vector,
        reference=lambda x: x.abs(),
        bad=[Bad((torch.zeros(2),), {"operation": "rellu"}, TypeError, "operation")],
    ),
    Contract(
        "gradients.kink_distance[max]",
        lambda x: kink_distance("max", x, dim=-1),
        _vector,
        reference=_second,
        bad=[
            Bad((torch.zeros(2, 0),), {}, ValueError, "x must not be empty along dim 1"),
            Bad((torch.zeros(2, dtype=torch.int64),), {}, TypeError, "x must be a floating tensor"),
        ],
        infinite=True,
    ),
    Contract(
        "gradients.kink_distance[sort]",
        lambda x: kink_distance("sort", x),
        _vector,
        reference=lambda x: x.sort(-1).values.diff(dim=-1).min(-1).values,
        infinite=True,
    ),
    Measurement(
        "gradients.lyapunov_spectrum",
        lambda x, **words: lyapunov_spectrum(words.pop("step", lambda s: 0.5 * s), x, **{"steps": 4, **words}),
        lambda g: [Call((torch.randn(3, generator=g, dtype=torch.float64),))],
        outputs=lambda spectrum: spectrum.exponents,
        reference=lambda x: torch.full((3,), math.log(0.5), dtype=x.dtype),
        bad=[
            Bad((torch.ones(2),), {"steps": 0}, ValueError, "steps must be an integer >= 1, got 0"),
            Bad((torch.ones(2),), {"every": 3}, ValueError, "steps must be a multiple of every"),
            Bad((torch.ones(2),), {"count": 3}, ValueError, r"count must be in 1\.\.2"),
            Bad((torch.ones(0),), {}, ValueError, "state must not be empty"),
            Bad((torch.ones(2),), {"step": 3}, TypeError, "step must be callable"),
        ],
    ),
    Measurement(
        "gradients.evolution_gradient",
        _evolution,
        lambda g: [Call((torch.randn(3, generator=g, dtype=torch.float64),))],
        # of a square, every pair gives 2 (x e) e: the mean over the same directions, summed in another way
        reference=lambda x: 2 * torch.einsum("ki,kj,j->i", _DIRECTIONS, _DIRECTIONS, x) / len(_DIRECTIONS),
        bad=[
            Bad((torch.ones(2),), {"pairs": 1}, ValueError, "pairs must be an integer >= 2"),
            Bad((torch.ones(2),), {"smoothing": 0.0}, ValueError, "smoothing must be > 0"),
            Bad((torch.ones(2),), {"shaping": "rank"}, ValueError, "shaping must be"),
            Bad((torch.ones(2).long(),), {}, TypeError, "must be a floating tensor, got torch.int64"),
            Bad((torch.ones(2),), {"loss": lambda p: p["x"]}, ValueError, "loss must return a scalar"),
        ],
    ),
    HigherOrder(
        "gradients.saved_bytes",
        lambda f, x: _as_tensor(saved_bytes(f, x)),
        lambda g: [Call((torch.randn(3, generator=g, dtype=torch.float64),))],
        given=lambda x: (x.detach().requires_grad_().exp() * 2).sin(),
        argument="fn",
        reference=lambda x: torch.tensor([2 * 3 * x.element_size(), 2]),  # exp keeps its output, sin its input
        **_MEASURED,
    ),
]
