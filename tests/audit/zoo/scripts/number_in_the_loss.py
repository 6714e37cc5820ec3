"""A penalty that enters the loss as a number."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
body, head = nn.Linear(4, 8), nn.Linear(8, 1)
scale = nn.Parameter(torch.ones(8))
optimizer = torch.optim.Adam([*body.parameters(), *head.parameters(), scale], 1e-2)
x, y = torch.randn(16, 4), torch.randn(16, 1)
for _ in range(5):
    h = torch.tanh(body(x))
    loss = F.mse_loss(head(h), y)
    penalty = (h * scale).abs().mean()
    loss += 0.1 * penalty.item()  # <- cut.item
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
