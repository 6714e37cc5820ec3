"""A regression whose gradients are cleared between backward and step."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(5, 8), nn.SiLU(), nn.Linear(8, 1))
optimizer = torch.optim.RMSprop(model.parameters())
for _ in range(6):
    x = torch.randn(16, 5)
    loss = (model(x) - x.sum(1, keepdim=True).sin()).square().mean()
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()  # <- unused.gradient
