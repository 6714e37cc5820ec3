"""Contracts of values that find dead-ends, of what avoids them, and of states made of histories."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import dynamics
from pullback.dynamics import Transitions
from tests.contracts.contract import Bad, Call, Contract, Exempt, Module

ACTIONS = torch.tensor([0, 2, 1])


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def ended(like: Tensor) -> Tensor:
    """The last of three."""
    return (torch.arange(3, device=like.device) == 2).expand(like.shape)


def target(reward: Tensor, choosing: Tensor, valuing: Tensor, **words: Any) -> Tensor:
    batch = torch.broadcast_shapes(reward.shape, choosing.shape[:-1])
    return dynamics.double_q_target(
        reward.expand(batch), choosing.expand(*batch, 4), valuing.expand(*batch, 4), ended(reward), **words
    )


def target_by_hand(
    reward: Tensor, choosing: Tensor, valuing: Tensor, discount: float = 1.0, bounds: Any = None
) -> Tensor:
    low, high = bounds or (-torch.inf, torch.inf)
    found = []
    for r, c, v, end in zip(reward, choosing, valuing, (False, False, True), strict=True):
        best = max(range(4), key=lambda a: float(c[a]))
        found.append(r.clamp(low, high) + (0.0 if end else discount * v[best].clamp(low, high)))
    return torch.stack(found)


def laws(logits: Tensor) -> Tensor:
    return torch.softmax(logits, -1)


def risks(logits: Tensor) -> Tensor:
    return -torch.sigmoid(logits)


def avoided_by_hand(policy: Tensor, risk: Tensor) -> Tensor:
    rows = []
    for p, q in zip(laws(policy), risks(risk), strict=True):
        kept = torch.stack([x if float(v) >= float(q.max()) - 0.2 else 0 * x for x, v in zip(p, q, strict=True)])
        rows.append(kept / kept.sum())
    return torch.stack(rows)


def loss_of_values(values: Any, states: Tensor, following: Tensor) -> Tensor:
    reward = torch.tensor([[-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=states.dtype, device=states.device)
    batch, device = states.shape[:-1], states.device
    seen = Transitions(
        states,
        ACTIONS.to(device).expand(batch),
        reward.expand(*batch, 2),
        following.expand_as(states),
        ended(states[..., 0]),
    )
    return values.loss(seen)


def encoded(encoder: Any, observations: Tensor) -> tuple[Tensor, Tensor]:
    actions = torch.zeros(observations.shape[:-1], dtype=torch.int64, device=observations.device)
    return encoder(observations, actions), encoder.loss(observations, actions).expand(observations.shape[:-2])


CONTRACTS = [
    Contract(
        "dynamics.double_q_target",
        target,
        lambda g: [
            Call((normal(g, 3), normal(g, 3, 4), normal(g, 3, 4)), words)
            for words in ({}, {"discount": 0.5}, {"bounds": (-1.0, 0.0)})
        ],
        reference=target_by_hand,
        scalars={"discount": 0.5},
        large_limit=1e30,
        why="a sum of two large numbers",
        bad=(
            Bad(
                (torch.ones(3), torch.ones(3, 4), torch.ones(3, 4)),
                {"discount": 2.0},
                ValueError,
                "discount must be in",
            ),
            Bad(
                (torch.ones(3), torch.ones(3, 4), torch.ones(3, 4)),
                {"bounds": (1.0, 0.0)},
                ValueError,
                "bounds must be",
            ),
        ),
    ),
    Contract(
        "dynamics.avoid_dead_ends",
        lambda p, q, slack=0.2: dynamics.avoid_dead_ends(laws(p), risks(q), slack=slack),
        lambda g: [Call((normal(g, 3, 4), normal(g, 3, 4))) for _ in range(2)],
        reference=avoided_by_hand,
        large_limit=3.0,
        why="what is allowed jumps where rounding changes which risk is the least",
        bad=(
            Bad((torch.ones(2, 3), torch.ones(2, 3)), {"slack": -1.0}, ValueError, "slack must be >= 0"),
            Bad((torch.ones(2, 3), torch.ones(2, 4)), {}, ValueError, "q_death must have as many actions as policy"),
        ),
    ),
    Contract(
        "dynamics.security_gap",
        lambda p, q: dynamics.security_gap(laws(p), risks(q)).gap,
        lambda g: [Call((normal(g, 3, 4), normal(g, 3, 4)))],
        reference=lambda p, q: torch.stack(
            [max(x - 1 - v for x, v in zip(*rows, strict=True)) for rows in zip(laws(p), risks(q), strict=True)]
        ),
        bad=(Bad((torch.ones(2, 3), torch.ones(2, 4)), {}, ValueError, "q_death must have as many actions as policy"),),
    ),
    Module(
        "dynamics.DeadEndValues",
        lambda values, x: (values.q_death(x), values.q_recovery(x)),
        lambda g: [Call((normal(g, 3, 2),))],
        build=lambda g: dynamics.DeadEndValues(2, 3, hidden=4, generator=g),
        idle=[f"copies.{side}.{layer}.{kind}" for side in (0, 1) for layer in (0, 2) for kind in ("weight", "bias")],
        large_limit=100.0,
        why="sums of products leave the range of half",
        bad=(Bad((torch.ones(3, 4),), {}, ValueError, r"states must have shape \(\.\.\., 2\)"),),
    ),
    Module(
        "dynamics.HistoryEncoder",
        lambda encoder, x: encoder(x, torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)),
        lambda g: [Call((normal(g, 2, 4, 3),))],
        build=lambda g: dynamics.HistoryEncoder(3, 2, 4, generator=g),
        idle=[f"head.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")],
        large_limit=10.0,
        forward_mode=False,
        vmap=False,
        half=False,
        gradgradcheck=False,
        compile=False,
        why="torch's GRU has no forward mode, no batching rule, and kernels of its own for half precision",
        bad=(Bad((torch.ones(3, 4),), {}, ValueError, r"observations must have shape \(\.\.\., times, 3\)"),),
    ),
    Exempt("dynamics.life_gate", "makes two processes from numbers", "dynamics/test_dead_ends.py"),
    Exempt("dynamics.empirical_process", "counts integers, and is not differentiated", "dynamics/test_dead_ends.py"),
]
