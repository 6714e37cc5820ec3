"""Contracts of the catalogue of optimality conditions and fixed-point maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback.implicit import KKTPoint, optimality, projection_box, prox_lasso
from tests.contracts.contract import Bad, Call, HigherOrder

_SIZE = "large: the objective of the table, a quartic, overflows beyond"


def _pair(generator: torch.Generator) -> list[Call]:
    return [Call(tuple(torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(2)))]


def _positive_pair(generator: torch.Generator) -> list[Call]:
    return [Call(tuple(torch.rand(4, generator=generator, dtype=torch.float64) + 0.2 for _ in range(2)))]


def _quartic(x: Tensor, a: Tensor) -> Tensor:
    return (x**4 / 4 + x**2 / 2 - a * x).sum()


def _cubic(x: Tensor, a: Tensor) -> Tensor:
    return x**3 + x - a


def _blocks(x: tuple[Tensor, Tensor], a: Tensor) -> Tensor:
    return _quartic(torch.cat(x, -1), a)


def _conditions(
    build: Callable[..., Any], name: str, reference: Callable[..., Tensor], samples: Any = _pair, **options: Any
) -> HigherOrder:
    return HigherOrder(
        f"implicit.optimality.{name}",
        lambda objective, x, a, **given: build(objective, **given)(x, a),
        samples,
        reference=reference,
        large_limit=10.0,
        half_tolerance=6e-2,
        **{"given": _quartic, "argument": "objective", "why": _SIZE, **options},
    )


def _kkt(objective: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    conditions = optimality.kkt(objective, lambda x, a: x.sum(-1, keepdim=True) - 1, lambda x, a: -x)

    def together(x: Tensor, a: Tensor) -> Tensor:
        point = KKTPoint(x, 2 * x.sum(-1, keepdim=True), a * x)  # multipliers of any value
        return torch.cat(list(conditions(point, a)), -1)

    return together


def _kkt_by_hand(x: Tensor, a: Tensor) -> Tensor:
    total = x.sum(-1, keepdim=True)
    return torch.cat([_cubic(x, a) + 2 * total - a * x, total - 1, -a * x * x], -1)


def _block_map(objective: Callable[..., Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    map = optimality.block_proximal(
        objective, [lambda y, step, a: prox_lasso(y, 0.1 * step), lambda y, step, a: y], [0.1, 0.2]
    )
    return lambda x, a: torch.cat(map((x[..., :1], x[..., 1:]), a), -1)


def _block_by_hand(x: Tensor, a: Tensor) -> Tensor:
    step = x.new_tensor([0.1, 0.2, 0.2, 0.2])
    moved = x - step * _cubic(x, a)
    first = moved[..., :1].sign() * (moved[..., :1].abs() - 0.01).clamp(min=0)
    return torch.cat([first, moved[..., 1:]], -1)


CONTRACTS = [
    _conditions(optimality.stationary, "stationary", _cubic),
    _conditions(_kkt, "kkt", _kkt_by_hand),
    _conditions(
        lambda f, step=0.1: optimality.projected_gradient(f, lambda y, a: projection_box(y, -1, 1), step=step),
        "projected_gradient",
        lambda x, a: (x - 0.1 * _cubic(x, a)).clamp(-1, 1),
        bad=[
            Bad((torch.zeros(2), torch.zeros(2)), {"step": 0.0}, ValueError, "step must be > 0, got 0.0"),
        ],
    ),
    _conditions(
        lambda f: optimality.proximal_gradient(f, lambda y, step, a: prox_lasso(y, 0.5 * step), step=0.2),
        "proximal_gradient",
        lambda x, a: torch.nn.functional.softshrink(x - 0.2 * _cubic(x, a), 0.1),
    ),
    _conditions(
        lambda f: optimality.mirror_descent(f, step=0.1),
        "mirror_descent",
        lambda x, a: x * torch.exp(-0.1 * _cubic(x, a)) / (x * torch.exp(-0.1 * _cubic(x, a))).sum(-1, keepdim=True),
        samples=_positive_pair,
    ),
    _conditions(_block_map, "block_proximal", _block_by_hand, given=_blocks),
    _conditions(
        optimality.newton,
        "newton",
        lambda x, a: x - _cubic(x, a) / (3 * x**2 + 1),
        given=_cubic,
        argument="function",
        batched=False,
        why=f"{_SIZE}; batched: one system over all entries",
    ),
]
