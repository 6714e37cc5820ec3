"""A small system with arms and replicates for the tests of the lab.

``TOY_KILL_AT=<arm>:<replicate>:<step>`` makes the process kill itself there as
``kill -9`` would, in the middle of a step.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import torch
from torch import nn

from pullback.lab import Lab, system


@dataclass(frozen=True)
class Config:
    """Options of the toy."""

    steps: int = 3
    """Steps of each loop."""
    replicates: int = 2
    """Initialisations and batch streams."""


@system("toy-arms", family="gradients", title="Toy Arms", paper="Nobody, 2026", config=Config)
def run(lab: Lab, config: Config) -> None:
    features = torch.randn(64, 3, generator=lab.generator)
    target = features.sum(1, keepdim=True)
    lab.data("noise", origin="simulated")
    ours, base = lab.arm("adam"), lab.arm("sgd", baseline=True)
    for replicate in lab.replicates(config.replicates):
        for arm, kind in ((ours, torch.optim.Adam), (base, torch.optim.SGD)):
            with arm.weights():
                model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))
            optimizer = kind(model.parameters(), lr=0.05)
            batches = lab.fork("batches")
            for step in arm.steps(config.steps, model, optimizer, batches):
                rows = torch.randint(0, 64, (16,), generator=batches)
                arm.descend(nn.functional.mse_loss(model(features[rows]), target[rows]), optimizer)
                arm.count("rows", 16)
                if os.environ.get("TOY_KILL_AT") == f"{arm.name}:{replicate}:{step}":
                    os.kill(os.getpid(), signal.SIGKILL)
            arm.metric("last loss", arm.last("loss"), better="lower")
            arm.metric("drawn after the loop", torch.rand(()) + torch.rand((), generator=batches))
    lab.claim("Adam ends lower", ours["last loss"] < base["last loss"], ours.last("loss") < 1e9, scale="smoke")


if __name__ == "__main__":
    import sys

    from pullback.cli import main
    from tests.lab import arms  # noqa: F401  (declared again under its own name, so that workers find it)

    sys.exit(main())
