"""Contracts of transport along lines: against the exact assignment or scipy on each line."""

from __future__ import annotations

from typing import Any

import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from pullback import transport
from tests.contracts.contract import Bad, Call, Contract
from tests.contracts.transport.exact import _best

_NAN = float("nan")


def _points(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _masses(g: torch.Generator, *shape: int) -> Tensor:
    x = torch.rand(*shape, generator=g, dtype=torch.float64) + 0.1
    return x / x.sum(-1, keepdim=True)


def _along(
    x: Tensor, y: Tensor, directions: Tensor, a: Tensor | None = None, b: Tensor | None = None, p: float = 2.0
) -> Tensor:
    """Line by line: the best permutation, or scipy's distance of masses."""
    if x.ndim > 2 or y.ndim > 2:
        batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        both = (t.expand(*batch, *t.shape[-2:]) for t in (x, y))
        return torch.stack([_along(*one, directions, a, b, p) for one in zip(*both, strict=True)])
    lines = zip((x @ directions.T).T, (y @ directions.T).T, strict=True)
    if a is not None:
        return torch.tensor([wasserstein_distance(*line, a, b) for line in lines], dtype=x.dtype).mean()
    return torch.stack([_best((s[:, None] - t).abs() ** p) for s, t in lines]).mean() / len(x)


def _sliced(x: Tensor, y: Tensor, directions: Tensor, *masses: Tensor, **words: Any) -> Tensor:
    return transport.sliced_wasserstein(x, y, *masses, directions=directions, **words)


def _seeded(x: Tensor, y: Tensor, **words: Any) -> Tensor:
    return transport.sliced_wasserstein(x, y, generator=torch.Generator().manual_seed(1), **words)


def _drawn(x: Tensor, y: Tensor, projections: int) -> Tensor:
    g = torch.Generator().manual_seed(1)
    gauss = torch.randn(projections, x.shape[-1], generator=g, dtype=torch.float64)
    return _along(x, y, gauss / gauss.square().sum(-1, keepdim=True).sqrt())


def _steepest(x: Tensor, y: Tensor, p: float) -> Tensor:
    """In the plane: the best of directions half a degree apart."""
    if x.ndim > 2:
        return torch.stack([_steepest(*one, p) for one in zip(x, y, strict=True)])
    angle = torch.arange(720, dtype=torch.float64) * torch.pi / 720
    lines = torch.stack([angle.cos(), angle.sin()], -1)
    return torch.stack([_along(x, y, line[None], p=p) for line in lines]).max()


_CLOUD = torch.zeros(2, 2)
_FAR = torch.tensor([20.0, 5.0])
_STARTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.8, -0.6]])
_SQUARES = "a square of the largest numbers overflows by nature"

CONTRACTS = [
    Contract(
        "transport.sliced_wasserstein",
        _sliced,
        lambda g: [
            Call((_points(g, 2, 4, 2), _points(g, 4, 2), _points(g, 3, 2))),
            Call((_points(g, 4, 3), _points(g, 4, 3), _points(g, 2, 3)), {"p": 1.0}),
        ],
        reference=_along,
        large=(0, 1),
        large_limit=1e2,
        why="in half precision the derivative along a direction overflows; the entry with drawn ones goes up to 1e8",
        bad=[
            Bad((_CLOUD, _CLOUD, torch.zeros(3)), {}, ValueError, r"directions must have shape \(..., l, 2\)"),
            Bad((_CLOUD, _CLOUD, torch.zeros(0, 2)), {}, ValueError, r"directions must have shape \(..., l, 2\)"),
            Bad((_CLOUD, _CLOUD, _CLOUD.double()), {}, TypeError, "x and directions must have the same dtype"),
            Bad((_CLOUD, _CLOUD, _CLOUD, torch.tensor(1.0)), {}, ValueError, r"a must have shape \(..., points\)"),
            Bad((_CLOUD, _CLOUD, _CLOUD, -torch.ones(2)), {}, ValueError, "a must be >= 0 and finite"),
            Bad((_CLOUD, _CLOUD, _CLOUD), {"p": 0.5}, ValueError, r"p must be in \[1, 1000"),
        ],
    ),
    Contract(
        "transport.sliced_wasserstein[masses]",
        _sliced,
        lambda g: [
            Call((_points(g, 3, 2), _points(g, 2, 2), _points(g, 2, 2), _masses(g, 3), _masses(g, 2)), {"p": 1.0})
        ],
        reference=_along,
        large=(0, 1),
        large_limit=1e2,
        batched=False,
        why="the entry without masses has a batch; in half precision the derivative along a direction overflows",
    ),
    Contract(
        "transport.sliced_wasserstein[drawn]",
        _seeded,
        lambda g: [Call((_points(g, 2, 3, 2), _points(g, 3, 2)), {"projections": 5})],
        reference=_drawn,
        large=(0, 1),
        large_limit=1e8,
        vmap=False,
        compile=False,
        why=f"random: vmap draws only with randomness='same', compiled graphs draw otherwise; {_SQUARES}",
        bad=[
            Bad((_CLOUD, _CLOUD), {"projections": 0}, ValueError, "projections must be an integer >= 1, got 0"),
            Bad((_CLOUD, _CLOUD), {"projections": 2.0}, TypeError, "projections must be an integer"),
            Bad((_CLOUD, torch.zeros(2, 3)), {}, ValueError, "x and y must have points of one dimension"),
            Bad((torch.full((2, 2), _NAN), _CLOUD), {}, ValueError, "x must be finite"),
        ],
    ),
    Contract(
        "transport.max_sliced_wasserstein",
        lambda x, y, p: transport.max_sliced_wasserstein(x, y, p=p, steps=10, directions=_STARTS.to(x)).value,
        lambda g: [
            Call((_points(g, 2, 2, 2), _points(g, 2, 2, 2) + _FAR), {"p": 2.0}),
            Call((_points(g, 2, 2), _points(g, 2, 2) + _FAR), {"p": 1.5}),
        ],
        reference=_steepest,
        tolerance=2e-4,
        large=(0, 1),
        large_limit=1e8,
        gradgradcheck=False,
        why=f"the direction is held: of first order, as documented; {_SQUARES}",
    ),
    Contract(
        "transport.max_sliced_wasserstein[masses, drawn]",
        lambda x, y, a, b: (
            transport.max_sliced_wasserstein(x, y, a, b, p=1, generator=torch.Generator().manual_seed(0)).value
        ),
        lambda g: [Call((_points(g, 3, 1), _points(g, 2, 1), _masses(g, 3), _masses(g, 2)))],
        reference=lambda x, y, a, b: _along(x, y, torch.ones(1, 1).double(), a, b),
        batched=False,
        vmap=False,
        compile=False,
        why="random: vmap draws only with randomness='same', compiled graphs draw otherwise",
        bad=[
            Bad((_CLOUD, _CLOUD, torch.ones(3), None), {}, ValueError, r"a must have shape \(..., 2\), got"),
        ],
    ),
]
