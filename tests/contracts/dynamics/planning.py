"""Contracts of control tasks and of planners: each finds the answer of a linear-quadratic problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback import dynamics
from tests.contracts.contract import Bad, Call, Contract, Exempt, HigherOrder, Learner


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _moved(task: dynamics.Environment) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return lambda state, action: tuple(task.step(state, action.tanh()))


def _task(name: str, limit: float, bad: dict[str, Any], match: str, rows: int = 2) -> Contract:
    make = getattr(dynamics, name)
    task = make(repeat=1)
    return Contract(
        f"dynamics.{name}",
        lambda state, action, **options: _moved(make(**options) if options else task)(state, action),
        lambda g: [Call((normal(g, rows, task.state_size), normal(g, rows, task.action_size)))],
        bad=[
            Bad((torch.zeros(task.state_size), torch.zeros(task.action_size)), bad, ValueError, match),
            Bad((torch.zeros(task.state_size + 1), torch.zeros(task.action_size)), {}, ValueError, "state must have"),
            Bad((torch.zeros(task.state_size), torch.zeros(task.action_size + 1)), {}, ValueError, "action must have"),
        ],
        large_limit=limit,
        half=False,
        compile=False,
        why="squares of the state leave the range, its sines are rounded; a task makes closures, its step is compiled",
    )


def _linear(state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    after = 0.9 * state + 0.5 * action
    return after, -after.square().sum(-1) - 0.1 * action.square().sum(-1)


def _best(start: Tensor) -> Tensor:
    """The first action of horizon 3 by the regulator: rewards count the state after the action."""
    one = torch.eye(1, dtype=torch.float64)
    return -dynamics.lqr(0.9 * one, 0.5 * one, one, 0.1 * one, horizon=3).gains[0] @ start[..., None]


def _planner(name: str, tolerance: float, bad: list[tuple[dict[str, Any], str]], **options: Any) -> Learner:
    plan = getattr(dynamics, name)

    def learn(data: Tensor, generator: torch.Generator, **words: Any) -> dynamics.Plan:
        return plan(_linear, data, **{"actions": 1, "horizon": 3, "generator": generator, **options, **words})

    def planted(g: torch.Generator) -> tuple[Tensor, Tensor]:
        start = torch.rand(4, 1, generator=g, dtype=torch.float64) - 0.5
        return start, _best(start)[..., 0]

    everyone = [({"actions": 0}, "actions must be"), ({"horizon": 0}, "horizon must be")]
    everyone += [({"discount": 1.5}, "discount must be"), ({"limit": 0.0}, "limit must be")]
    return Learner(
        f"dynamics.{name}",
        learn,
        answer=lambda found: found.actions[0],
        planted=planted,
        recovers=lambda answer, truth: bool((answer - truth).abs().max() < tolerance),
        sets=lambda g: [normal(g, 2, 1), torch.zeros(1, dtype=torch.float64), 1e3 * normal(g, 1, 1)],
        bad=[Bad((torch.zeros(1), torch.Generator()), words, ValueError, match) for words, match in [*everyone, *bad]],
        permute=None,
        why="the problems of a batch have draws of their own",
    )


_ELITES = [({"elites": 0}, "elites must be"), ({"elites": 9, "samples": 8}, "elites must be in 1..8")]
_ELITES += [({"momentum": 1.0}, "momentum must be below 1"), ({"noise_floor": 3.0}, "noise_floor must be")]
_ELITES += [({"previous": torch.zeros(3, 2)}, "previous must have shape"), ({"iterations": 0}, "iterations must be")]

CONTRACTS = [
    _task("pendulum", 1e2, {"torque": 0.0}, "torque must be > 0"),
    _task("cartpole", 1e1, {"pole": -1.0}, "pole must be > 0"),
    _task("double_integrator", 1e4, {"force": 0.0}, "force must be > 0"),
    _task("point_mass", 1e4, {"width": 0.0}, "width must be > 0"),
    _task("acrobot", 1e1, {"torque": 0.0}, "torque must be > 0", rows=1),
    _task("reacher", 1e1, {"width": 0.0}, "width must be > 0", rows=1),
    Exempt("dynamics.Environment", "an object with functions", "dynamics/test_planning.py"),
    HigherOrder(
        "dynamics.imagined_return",
        dynamics.imagined_return,
        lambda g: [Call((normal(g, 2, 1), normal(g, 3, 2, 1)), {"discount": 0.5})],
        given=_linear,
        argument="step",
        reference=lambda s, a, discount: sum(
            discount**t
            * -(
                (0.9 ** (t + 1) * s + 0.5 * sum(0.9 ** (t - k) * a[k] for k in range(t + 1))).square() + 0.1 * a[t] ** 2
            )[..., 0]
            for t in range(3)
        ),
        bad=[
            Bad((torch.zeros(1), torch.zeros(0, 1)), {}, ValueError, "actions must have shape"),
            Bad((torch.zeros(1), torch.zeros(2, 1)), {"discount": 2.0}, ValueError, "discount must be"),
        ],
        batched=False,
        large_limit=1e4,
        half=False,
        why="time comes before the batch; squares of the largest numbers leave the range",
    ),
    _planner("plan_mppi", 0.05, [({"temperature": 0.0}, "temperature must be"), *_ELITES], temperature=0.1,
             noise_floor=0.0, elites=20, samples=200, iterations=12),
    _planner("plan_cem", 0.05, _ELITES, elites=20, samples=200),
    _planner("plan_random_shooting", 0.25, [({"samples": 0}, "samples must be")], samples=2000),
    _planner("plan_gradient", 0.02, [({"lr": 0.0}, "lr must be"), ({"candidates": 0}, "candidates must be")],
             candidates=3, iterations=60, lr=0.1),
]  # fmt: skip
