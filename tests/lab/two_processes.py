"""Trains with ``lab.prepare`` and ``lab.shard`` and writes the weights; started by ``test_accelerate.py``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pullback.lab import Lab, run, system


@dataclass(frozen=True)
class Config:
    """Options."""

    batch: int = 16
    """Rows of a step, over all processes."""


@system("sharded-regression", family="gradients", title="Sharded Regression", config=Config)
def train(lab: Lab, config: Config) -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model, optimizer = lab.prepare(model, optimizer)
    arm = lab.arm("SGD")
    for _ in arm.steps(20, model, optimizer):
        features = torch.randn(config.batch, 4, generator=lab.generator, dtype=torch.float64)
        target = features.prod(1, keepdim=True)
        loss = nn.functional.mse_loss(model(lab.shard(features)), lab.shard(target))
        arm.descend(loss, optimizer)
    for index, parameter in enumerate(model.parameters()):
        lab.metric(f"parameter {index}", parameter.detach().square().sum())
    lab.metric("processes", lab.world)
    lab.metric("rows", len(lab.shard(torch.zeros(config.batch))))


if __name__ == "__main__":
    outcome = run("sharded-regression", runs=Path(sys.argv[1]), quiet=True)
    print(json.dumps({m.name: m.value for m in outcome.metrics} | {"last": outcome.series[0].values[-1]}))
