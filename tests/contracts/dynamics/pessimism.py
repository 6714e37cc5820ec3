"""Contracts of weighted regression, of doubt and of value iteration by lower bounds."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from pullback import dynamics
from pullback.core.errors import ConvergenceError
from pullback.dynamics import MarkovDecisionProcess, Transitions
from tests.contracts.contract import Bad, Call, Contract, HigherOrder, Measurement

SQUARES = "squares of features beside a ridge of 1"


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def tensors(*sizes: tuple[int, ...], calls: int = 2) -> Any:
    return lambda g: [Call(tuple(normal(g, *size) for size in sizes)) for _ in range(calls)]


def noise(logits: Tensor) -> Tensor:
    return 0.5 + torch.sigmoid(logits)


def ellipse(points: Tensor, data: Tensor, logits: Tensor) -> Tensor:
    gram = sum((torch.outer(x, x) / s for x, s in zip(data, noise(logits), strict=True)), torch.eye(data.shape[-1]))
    inverse = torch.linalg.inv(gram.double())
    return torch.stack([x @ inverse @ x for x in points])


def by_rows(inputs: Tensor, targets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Ordinary least squares of scaled rows, the ridge being rows of their own."""
    root = noise(logits).sqrt()
    rows = torch.cat([root[:, None] * inputs, torch.eye(inputs.shape[-1]).double()])
    wanted = torch.cat([root * targets, torch.zeros(inputs.shape[-1]).double()])
    found = torch.from_numpy(np.linalg.lstsq(rows.numpy(), wanted.numpy(), rcond=None)[0])
    return found, inputs @ found - targets


def bent(params: Tensor, inputs: Tensor) -> Tensor:
    return torch.tanh(inputs @ params[:-1]) + params[-1]


def gradients_by_hand(params: Tensor, points: Tensor, data: Tensor, logits: Tensor) -> Tensor:
    def rows(x: Tensor) -> Tensor:
        slope = 1 - torch.tanh(x @ params[:-1]) ** 2
        return torch.cat([slope[:, None] * x, torch.ones(len(x), 1).double()], 1)

    return ellipse(rows(points), rows(data), logits)


def by_scipy(params: Tensor, inputs: Tensor, targets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    root, start = noise(logits).sqrt(), 0.3 * params

    def residual(p: np.ndarray) -> np.ndarray:
        theta = torch.from_numpy(p)
        return torch.cat([root * (bent(theta, inputs) - targets), theta - start]).numpy()

    found = torch.from_numpy(scipy.optimize.least_squares(residual, start.numpy(), xtol=1e-14, ftol=1e-14).x)
    return found, bent(found, inputs) - targets


def pairs_by_hand(params: Tensor, points: Tensor, data: Tensor) -> Tensor:
    ratios = [
        (bent(a, points) - bent(b, points)) ** 2 / ((bent(a, data) - bent(b, data)).square().sum() + 1)
        for a, b in itertools.combinations(params, 2)
    ]
    return torch.stack(ratios).amax(0)


def episodes(reward: Tensor) -> Transitions:
    """Of 6 episodes with 3 steps among two states and two actions."""
    state = torch.tensor([[0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 0, 0]], device=reward.device)
    action = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1], [0, 1, 0]], device=reward.device)
    following = torch.cat([state[:, 1:], 1 - state[:, -1:]], 1)
    return Transitions(state, action, reward, following, following > 5)


def by_counting(reward: Tensor, variance: float = 2.0) -> tuple[Tensor, Tensor]:
    """A table: sums and counts, what was tried n times being shrunk by n / (n + variance)."""
    seen = episodes(reward)
    values, bonus, after = torch.zeros(3, 2, 2).double(), torch.zeros(3, 2, 2).double(), torch.zeros(2).double()
    for h in (2, 1, 0):
        for s, a in itertools.product(range(2), range(2)):
            hit = (seen.state[:, h] == s) & (seen.action[:, h] == a)
            total = (reward[hit, h] + after[seen.next_state[hit, h]]).sum()
            bonus[h, s, a] = 0.5 / (hit.double().sum() / variance + 1) ** 0.5
            values[h, s, a] = (total / (hit.double().sum() + variance) - bonus[h, s, a]).clamp(0, 3 - h)
        after = values[h].amax(-1)
    return values, bonus


def believe(reward: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    features = torch.eye(4, dtype=reward.dtype, device=reward.device).view(2, 2, 4)
    options = {"beta": 0.5, "variance": 2.0, **options}
    found = dynamics.pessimistic_value_iteration(episodes(reward), features, **options)
    return found.action_values, found.bonus


def all_policies(reward: Tensor, logits: Tensor) -> Tensor:
    """The gap of always taking action 0, by sums over every policy of two steps."""
    p, first = torch.softmax(logits, -1), torch.arange(2)

    def earned(one: Any, two: Any) -> Tensor:
        return reward[first, list(one)] + p[first, list(one)] @ reward[first, list(two)]

    choices = list(itertools.product(range(2), repeat=2))
    best = torch.stack([earned(a, b) for a in choices for b in choices]).amax(0)
    return best - earned((0, 0), (0, 0))


def gap(reward: Tensor, logits: Tensor, policy: Tensor | None = None) -> Tensor:
    law = torch.softmax(logits, -1)
    process = MarkovDecisionProcess(law / law.sum(-1, keepdim=True), reward, 1.0)
    policy = torch.zeros(2, 2, dtype=torch.int64, device=reward.device) if policy is None else policy
    return dynamics.suboptimality(process, policy, 2).gap


CONTRACTS = [
    Contract(
        "dynamics.estimate_variance",
        lambda first, second, floor=0.3: dynamics.estimate_variance(first, second, floor=floor),
        tensors((5,), (5,)),
        reference=lambda first, second: torch.stack(
            [max(s - f * f, torch.tensor(0.3).double()) for f, s in zip(first, second, strict=True)]
        ),
        scalars={"floor": 0.3},
        large_limit=100.0,
        why="squares of the means leave the range of half",
        bad=(
            Bad((torch.ones(2), torch.ones(2)), {"floor": 0.0}, ValueError, "floor must be .*> 0"),
            Bad((torch.ones(2), torch.ones(3)), {}, ValueError, "first_moment"),
            Bad((torch.ones(2).long(), torch.ones(2)), {}, TypeError, "first_moment must be a floating tensor"),
        ),
    ),
    Contract(
        "dynamics.d2_divergence[linear]",
        lambda points, data, logits, ridge=1.0: dynamics.d2_divergence(
            points, data, variance=noise(logits), ridge=ridge
        ),
        tensors((3, 2), (4, 2), (4,)),
        reference=ellipse,
        scalars={"ridge": 1.0},
        large_limit=100.0,
        why=SQUARES,
        bad=(
            Bad(
                (torch.ones(2, 3), torch.ones(4, 2), torch.ones(4)), {}, ValueError, "points and data must have shapes"
            ),
            Bad(
                (torch.ones(2, 2), torch.ones(4, 2), torch.ones(3)),
                {},
                ValueError,
                r"variance must have shape \(..., 4",
            ),
            Bad(
                (torch.ones(2, 2), torch.ones(4, 2), torch.ones(4)), {"ridge": 0.0}, ConvergenceError, "singular matrix"
            ),
            Bad((torch.ones(2, 2), torch.ones(4, 2), torch.ones(4)), {"ridge": -1.0}, ValueError, "ridge must be"),
        ),
    ),
    HigherOrder(
        "dynamics.d2_divergence[gradient]",
        lambda f, params, points, data, logits: dynamics.d2_divergence(
            points, data, function=f, params=params, variance=noise(logits), method="gradient"
        ),
        tensors((3,), (2, 2), (3, 2), (3,), calls=1),
        reference=gradients_by_hand,
        given=bent,
        argument="function",
        large=(),
        why="gradients of a function that saturates",
        bad=(
            Bad((torch.ones(()), torch.ones(3, 2), torch.ones(4, 2), torch.ones(4)), {}, ValueError, "params must"),
            Bad((torch.ones(5, 3), torch.ones(3, 2), torch.ones(2, 4, 2), torch.ones(4)), {}, ValueError, "params"),
        ),
    ),
    HigherOrder(
        "dynamics.d2_divergence[ensemble]",
        lambda f, params, points, data: dynamics.d2_divergence(
            points, data, function=f, params=params, method="ensemble"
        ),
        tensors((3, 3), (2, 2), (3, 2), calls=1),
        reference=pairs_by_hand,
        given=bent,
        argument="function",
        batched=False,
        large=(),
        why="one ensemble has no batch; a function that saturates",
        bad=(
            Bad((torch.ones(1, 3), torch.ones(3, 2), torch.ones(4, 2)), {}, ValueError, "params must have shape"),
            Bad((torch.ones(3), torch.ones(3, 2), torch.ones(4, 2)), {}, ValueError, "params must have shape"),
        ),
    ),
    Contract(
        "dynamics.weighted_regression[linear]",
        lambda x, y, logits, ridge=1.0, **options: tuple(
            dynamics.weighted_regression(x, y, weights=noise(logits), ridge=ridge, **options)[:2]
        ),
        tensors((4, 2), (4,), (4,)),
        reference=by_rows,
        scalars={"ridge": 1.0},
        large=(1,),
        large_limit=100.0,
        why=SQUARES,
        bad=(
            Bad(
                (torch.ones(4, 2), torch.ones(3), torch.ones(4)), {}, ValueError, "inputs and targets must have shapes"
            ),
            Bad((torch.ones(4, 2), torch.ones(4), torch.ones(4)), {"ridge": 0.0}, ConvergenceError, "singular matrix"),
            Bad((torch.ones(4, 2), torch.ones(4), torch.ones(4)), {"method": "liner"}, ValueError, "mean 'linear'"),
            Bad(
                (torch.ones(4, 2), torch.ones(4), torch.ones(4)),
                {"method": "levenberg_marquardt"},
                ValueError,
                "method must be 'linear' without a function",
            ),
        ),
    ),
    HigherOrder(
        "dynamics.weighted_regression[levenberg_marquardt]",
        lambda f, params, x, y, logits: tuple(
            dynamics.weighted_regression(
                x, y, function=f, params=0.3 * params, weights=noise(logits), method="levenberg_marquardt"
            )[:2]
        ),
        tensors((2,), (2, 1), (2,), (2,), calls=1),
        reference=by_scipy,
        tolerance=1e-6,
        given=bent,
        argument="function",
        large=(),
        gradgradcheck=False,
        forward_mode=False,
        vmap=False,
        compile=False,
        half=False,
        why="an iterative solve; its laws are those of implicit.least_squares",
        bad=(Bad((torch.ones(()), torch.ones(4, 2), torch.ones(4), torch.ones(4)), {}, ValueError, "params must"),),
    ),
    Measurement(
        "dynamics.pessimistic_value_iteration",
        believe,
        lambda g: [Call((torch.rand(6, 3, generator=g).double(),)) for _ in range(2)],
        reference=by_counting,
        bad=(
            Bad((torch.ones(6, 2),), {}, ValueError, r"seen.reward must have shape \(6, 3\)"),
            Bad((torch.ones(6, 3),), {"beta": -1.0}, ValueError, "beta must be"),
            Bad((torch.ones(6, 3),), {"floor": 0.0}, ValueError, "floor must be"),
            Bad((torch.ones(6, 3),), {"variance": 0.0}, ValueError, "variance must be > 0"),
            Bad(
                (torch.ones(6, 3),),
                {"variance": torch.ones(2, 2, 2)},
                ValueError,
                r"variance must have shape \(3, 2, 2",
            ),
        ),
    ),
    Measurement(
        "dynamics.suboptimality",
        gap,
        lambda g: [Call((normal(g, 2, 2), normal(g, 2, 2, 2))) for _ in range(2)],
        reference=all_policies,
        bad=(
            Bad(
                (torch.ones(2, 2), torch.ones(2, 2, 2), torch.zeros(3, 2).long()), {}, ValueError, "policy must have sh"
            ),
            Bad((torch.ones(2, 2), torch.ones(2, 2, 2), torch.full((2, 2), 2)), {}, ValueError, "policy must hold act"),
        ),
    ),
]
