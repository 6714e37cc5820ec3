"""A small system for the tests of the lab: three loops, dropout, a scheduler, all kinds of saved state.

``TOY_KILL_AT=<loop>:<step>`` makes the process kill itself there as ``kill -9`` would, in the middle of a step.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from pullback.lab import Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the toy."""

    steps: Annotated[int, at_least(1)] = 12
    """Steps of each
    loop."""
    lr: Annotated[float, above(0)] = 0.05
    """Learning rate."""
    arms: tuple[str, ...] = ("a", "b")
    """Names of the arms."""
    fail: bool = False
    """Raise in the middle."""
    bound: float = 1e9
    """Largest final loss for which the claim holds."""
    codes: tuple[tuple[int, int], ...] = ((1, 2),)
    """Pairs that are noted."""


def _die(loop: str, step: int) -> None:
    if os.environ.get("TOY_KILL_AT") == f"{loop}:{step}":
        os.kill(os.getpid(), signal.SIGKILL)


@system(
    "toy-regression",
    family="gradients",
    title="Toy Regression",
    paper="Nobody, 2026",
    config=Config,
    smoke={"steps": 3},
    full={"steps": 20},
    blocks=("gradients.replace_gradient",),
)
def run(lab: Lab, config: Config) -> None:
    print("a system that prints")
    lab.note(repr(config.codes))
    features = torch.randn(64, 3, generator=lab.generator)
    target = features.sum(1, keepdim=True)
    lab.data("noise", origin="simulated")
    noise = lab.fork("noise")
    for arm in (lab.arm(name, baseline=name == "b") for name in config.arms):
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
        state = {"best": float("inf"), "total": 0.0, "mean": torch.zeros(())}
        for step in arm.steps(config.steps, model, optimizer, scheduler, state):
            rows = torch.randint(0, 64, (16,), generator=lab.generator)
            shaken = features[rows] + 0.1 * torch.randn(16, 3, generator=noise)
            loss = nn.functional.mse_loss(model(shaken), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            _die(arm.name, step)
            scheduler.step()
            state["best"] = min(state["best"], loss.item())
            state["total"] += loss.item()
            state["mean"] += loss.detach() / config.steps
            arm.record("loss", loss)
            arm.count("evaluations", 16)
            if config.fail and step == 1:
                raise ArithmeticError("asked to fail\nsecond line")
        arm.metric("last loss", arm.last("loss"), better="lower")
        arm.metric("best loss", state["best"], better="lower")
        arm.metric("total loss", state["total"])
        arm.metric("mean loss", state["mean"])
        arm.metric("evaluations", arm["evaluations"])
    chance = lab.arm("chance")
    for step in chance.steps(100, {}, name="until drawn"):
        chance.record("drawn", torch.rand((), generator=lab.generator))
        _die("until drawn", step)
        if step == 4:
            break
    lab.metric("after the break", torch.rand((), generator=lab.generator))
    lab.metric("dropout state", torch.rand(()))
    worst = max(lab.arm(name).last("loss") for name in config.arms)
    lab.claim("every arm ends below the bound", worst <= config.bound, scale="smoke", worst=worst)
    lab.claim("the paper's gain shows", worst < 100, worst=worst)
    figure, axes = lab.subplots()
    axes.plot(lab.arm(config.arms[0]).series("loss"))
    lab.figure("loss", figure, caption="Loss of the first arm.")


if __name__ == "__main__":
    import sys

    from pullback.cli import main
    from tests.lab import toy  # noqa: F401  (declared again under its own name, so that workers find it)

    sys.exit(main())
