"""Contracts of policy gradients: sums written out, the clip case by case."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import dynamics
from tests.contracts.contract import Bad, Call, Contract, Exempt

_TWO, _THREE = torch.zeros(2), torch.zeros(3)


def _rewards(g: torch.Generator) -> list[Call]:
    normal = {"generator": g, "dtype": torch.float64}
    return [
        Call((torch.randn(4, **normal), torch.randn(5, **normal)), {"discount": 0.9, "trace": 0.8}),
        Call((torch.randn(2, 3, **normal), torch.randn(2, 4, **normal)), {"discount": 1.0, "trace": 0.0}),
    ]


def _advantages(rewards: Tensor, values: Tensor, *, discount: float, trace: float) -> tuple[Tensor, Tensor]:
    steps = rewards.shape[-1]
    advantage = torch.zeros_like(rewards)
    for t in range(steps):
        for k in range(steps - t):
            difference = rewards[..., t + k] + discount * values[..., t + k + 1] - values[..., t + k]
            advantage[..., t] += (discount * trace) ** k * difference
    return advantage, advantage + values[..., :-1]


def _one(g: torch.Generator) -> Tensor:
    return torch.randn(1, 2, generator=g, dtype=torch.float64)


def _ppo(log_prob: Tensor, value: Tensor, **options: Any) -> Tensor:
    """With what no gradient flows into held fixed."""
    old = torch.linspace(-0.4, 0.5, log_prob.numel(), dtype=log_prob.dtype, device=log_prob.device).view_as(log_prob)
    return dynamics.ppo_loss(
        log_prob, old, old.cos() - 0.95, value, old.sin(), clip=0.2, value_weight=0.5, **options
    ).total


def _ppo_by_cases(log_prob: Tensor, value: Tensor) -> Tensor:
    old = torch.linspace(-0.4, 0.5, log_prob.numel(), dtype=log_prob.dtype).view_as(log_prob)
    total = torch.zeros((), dtype=log_prob.dtype)
    for now, before, v in zip(log_prob.flatten(), old.flatten(), value.flatten(), strict=True):
        ratio, gain = (now - before).exp(), before.cos() - 0.95
        bounded = min(ratio, torch.tensor(1.2)) if gain > 0 else max(ratio, torch.tensor(0.8))
        total += -bounded * gain + 0.5 * (v - before.sin()) ** 2
    return total / log_prob.numel()


CONTRACTS = [
    Contract(
        "dynamics.generalized_advantage",
        dynamics.generalized_advantage,
        _rewards,
        reference=_advantages,
        outputs=tuple,
        batched=False,
        large_limit=1e37,
        why="rewards and values have one batch: the law enlarges the first alone; sums of the largest numbers overflow",
        bad=[
            Bad((_TWO, _TWO), {}, ValueError, r"values must have one more step than rewards, got \(2,\) and \(2,\)"),
            Bad((_TWO, _THREE), {"discount": 1.5}, ValueError, r"discount must be in \[0, 1\], got 1.5"),
            Bad((_TWO, _THREE), {"trace": -0.5}, ValueError, r"trace must be in \[0, 1\], got -0.5"),
            Bad((_TWO / 0, _THREE), {}, ValueError, "rewards must be finite"),
            Bad((_TWO.long(), _THREE), {}, TypeError, "rewards must be a floating tensor"),
            Bad((_TWO, _THREE.double()), {}, TypeError, "rewards and values must have the same dtype"),
            Bad((_TWO, _THREE), {"ended": torch.zeros(3, dtype=torch.bool)}, ValueError, "ended must have the shape"),
        ],
    ),
    Contract(
        "dynamics.ppo_loss",
        _ppo,
        lambda g: [
            Call((torch.randn(4, generator=g, dtype=torch.float64), torch.randn(4, generator=g, dtype=torch.float64))),
            Call((_one(g), _one(g))),
        ],
        reference=_ppo_by_cases,
        batched=False,
        large_limit=10.0,
        why="one number for all actions; the ratio is an exponential",
        bad=[
            Bad((_TWO, _TWO), {"entropy": _THREE}, ValueError, "entropy must have the shape of log_prob"),
            Bad((_TWO, _TWO), {"entropy": _TWO.long()}, TypeError, "entropy must be a floating tensor"),
            Bad((_TWO, _TWO), {"entropy_weight": -1.0}, ValueError, "entropy_weight must be in"),
            Bad((_TWO, _THREE), {}, ValueError, "value must have the shape of log_prob"),
            Bad((_TWO[:0], _TWO[:0]), {}, ValueError, "log_prob must hold at least one action"),
        ],
    ),
    Exempt(
        "dynamics.ppo_update",
        "takes steps of an optimizer; each against one by hand",
        "dynamics/test_policy_gradient.py",
    ),
]
