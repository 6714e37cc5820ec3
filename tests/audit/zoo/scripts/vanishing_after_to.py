"""A model that was moved with ``to``, and a factor in its middle that leaves no gradient to speak of."""

import torch
from torch import nn

torch.manual_seed(0)
encoder = nn.Sequential(nn.Linear(4, 8), nn.ReLU()).to("cpu")
head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)).to("cpu")
optimizer = torch.optim.SGD([*encoder.parameters(), *head.parameters()], lr=0.1)
for _ in range(6):
    x = torch.randn(16, 4)
    hidden = encoder(x)
    hidden = hidden * 1e-12  # <- vanishing.line
    loss = (head(hidden) - x.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
