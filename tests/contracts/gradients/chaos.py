"""Contracts of what measures gradients through iterated steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.gradients import gradient_horizon, gradient_variance, jacobian_spectrum, unrolled_losses
from tests.contracts.contract import Bad, Call, HigherOrder, Measurement
from tests.contracts.law import seeded

_ESTIMATE: dict[str, Any] = {"samples": 6, "smoothing": 0.5}


def _numbers(*shape: int) -> Any:
    return lambda g: [Call((torch.randn(*shape, generator=g, dtype=torch.float64),))]


def _squares(p: dict[str, Tensor]) -> Tensor:
    return p["x"].square().sum()


def _variance(x: Tensor, estimator: str = "reparam", loss: Any = _squares, **words: Any) -> Any:
    words = {**_ESTIMATE, **words}
    return gradient_variance(loss, {"x": x}, estimator=estimator, generator=seeded(), **words)


def _drawn(x: Tensor, count: int) -> Tensor:
    g = seeded()
    return torch.cat([torch.randn(1, *x.shape, generator=g, dtype=x.dtype) for _ in range(count)])


def _moments(g: Tensor) -> tuple[Tensor, Tensor]:
    return g.mean(0), g.var(0).sum()


def _reparam(x: Tensor) -> tuple[Tensor, Tensor]:
    return _moments(2 * (x + 0.5 * _drawn(x, 6)))


def _evolution(x: Tensor) -> tuple[Tensor, Tensor]:
    e = _drawn(x, 6)
    return _moments(2 * (e @ x)[:, None] * e)  # of a square, the difference of two values is exact


def _forward(x: Tensor) -> tuple[Tensor, Tensor]:
    e, v = _drawn(x, 12).unflatten(0, (6, 2)).unbind(1)
    return _moments((2 * (x + 0.5 * e) * v).sum(-1, keepdim=True) * v)


_BAD = [
    Bad((torch.ones(2),), {"samples": 1}, ValueError, "samples must be an integer >= 2"),
    Bad((torch.ones(2),), {"smoothing": 0.0}, ValueError, "smoothing must be > 0"),
    Bad((torch.ones(2),), {"chunk": 0}, ValueError, "chunk must be an integer >= 1"),
    Bad((torch.ones(2).long(),), {}, TypeError, "must be a floating tensor, got torch.int64"),
    Bad((torch.ones(2),), {"loss": 3}, TypeError, "loss must be callable"),
]


def _spectrum(x: Tensor, **words: Any) -> Any:
    step = words.pop("step", lambda s: (s["a"] * 3).sin() * s["b"])
    return jacobian_spectrum(step, {"a": x, "b": 2 * x + 1}, **{"count": 3, "generator": seeded(), **words})


def _singular(x: Tensor) -> Tensor:
    columns = torch.cat([torch.diag(3 * (3 * x).cos() * (2 * x + 1)), torch.diag((3 * x).sin())], 1)
    return torch.linalg.svdvals(columns)[:3]


def _horizon(x: Tensor, **words: Any) -> Any:
    step = words.pop("step", lambda s, p: 0.5 * s + p["x"])
    words = {"max_steps": 6, "smoothing": 0.1, "samples": 4, "trajectories": 2, "generator": seeded(), **words}
    return gradient_horizon(step, lambda s: s.sum(), torch.zeros_like(x), {"x": x}, **words)


def _linear(x: Tensor) -> tuple[Tensor, ...]:
    """Of ``s_t = s / 2 + p`` the gradient is ``2 - 2^(1 - t)``, everywhere; the exponent is ``log 1/2``."""
    gradient = 2 - 2.0 ** (1 - torch.arange(1, 7, dtype=x.dtype))
    return gradient[:, None].expand(6, len(x)), torch.tensor(0.5).log().to(x)


def _unrolled(step: Any, x: Tensor, **words: Any) -> Tensor:
    return unrolled_losses(step, lambda s: s.square().sum(), x, **{"steps": 4, "every": 2, **words})


CONTRACTS = [
    Measurement(
        "gradients.gradient_variance[reparam]",
        _variance,
        _numbers(3),
        outputs=lambda found: (found.mean["x"], found.variance),
        reference=_reparam,
        bad=[*_BAD, Bad((torch.ones(2),), {"estimator": "reparm"}, ValueError, "estimator must be")],
    ),
    Measurement(
        "gradients.gradient_variance[evolution]",
        lambda x, **words: _variance(x, "evolution", **words),
        _numbers(3),
        outputs=lambda found: (found.mean["x"], found.variance),
        reference=_evolution,
    ),
    Measurement(
        "gradients.gradient_variance[forward]",
        lambda x, **words: _variance(x, "forward", **words),
        _numbers(3),
        outputs=lambda found: (found.mean["x"], found.variance),
        reference=_forward,
    ),
    Measurement(
        "gradients.jacobian_spectrum",
        _spectrum,
        _numbers(4),
        outputs=lambda found: found.values,
        reference=_singular,
        bad=[
            Bad((torch.ones(2),), {"count": 3}, ValueError, r"count must be in 1\.\.2, got 3"),
            Bad((torch.ones(2),), {"count": 1, "iterations": -1}, ValueError, "iterations must be an integer >= 0"),
            Bad((torch.ones(2),), {"count": 1, "step": 3}, TypeError, "step must be callable"),
            Bad((torch.ones(2).long(),), {"count": 1}, TypeError, "state must be a floating tensor"),
        ],
    ),
    Measurement(
        "gradients.gradient_horizon",
        _horizon,
        _numbers(2),
        outputs=lambda found: (found.backprop.mean["x"], torch.as_tensor(found.exponent)),
        reference=_linear,
        bad=[
            Bad((torch.ones(2),), {"max_steps": 1}, ValueError, "max_steps must be an integer >= 2, got 1"),
            Bad((torch.ones(2),), {"every": 4, "max_steps": 9}, ValueError, "max_steps must be a multiple of every"),
            Bad((torch.ones(2),), {"trajectories": 1}, ValueError, "trajectories must be an integer >= 2"),
            Bad((torch.ones(2),), {"inputs": torch.ones(3)}, ValueError, "inputs must have one entry a step, 6, got 3"),
            Bad((torch.ones(2),), {"step": 3}, TypeError, "step must be callable"),
        ],
    ),
    HigherOrder(
        "gradients.unrolled_losses",
        _unrolled,
        _numbers(3),
        given=lambda s: 0.5 * s,
        argument="step",
        reference=lambda x: x.square().sum() * x.new_tensor([2.0**-4, 2.0**-8]),
        bad=[
            Bad((torch.ones(2),), {"steps": 3}, ValueError, "steps must be a positive multiple of every, got steps=3"),
            Bad((torch.ones(2),), {"every": 0}, ValueError, "every must be an integer >= 1"),
            Bad((torch.ones(2),), {"truncate": 0}, ValueError, "truncate must be an integer >= 1"),
            Bad((torch.ones(2),), {"inputs": [1, 2]}, ValueError, "inputs must have one entry a step, 4, got 2"),
        ],
        batched=False,
        large_limit=1e4,
        why="the loss of all states together is one number, a square",
    ),
]
