"""A gate that Python decides entry by entry and writes into a plain tensor; a best value that is only kept."""

import torch
from torch import nn

torch.manual_seed(0)
meter = nn.Linear(4, 1)
readings = torch.randn(16, 4)
alarms = (readings.sum(1) > 0).float()
optimizer = torch.optim.SGD(meter.parameters(), 0.1)
highest = torch.zeros(3)
for step in range(3):
    level = meter(readings)[:, 0]
    silent = torch.ones(16)
    for i in range(16):
        silent[i] = 0.0 if level[i] > 0 else 1.0  # <- control-flow.branch
    loss = (1 - silent - alarms).square().mean() + 1e-3 * level.square().mean()
    if loss < 1.0:
        highest[step] = 1.0
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
