"""A layer made without memory gets its weights by assignment after the optimizer took the old ones."""

import torch
from torch import nn

torch.manual_seed(0)
saved = nn.Linear(4, 2).state_dict()
with torch.device("meta"):
    layer = nn.Linear(4, 2)
optimizer = torch.optim.SGD(layer.parameters(), 0.1)  # <- cut.optimizer
layer.load_state_dict(saved, assign=True)  # <- cut.unstepped
for _ in range(3):
    optimizer.zero_grad()
    layer(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
