"""A network that decides how long it thinks: the decision is all that its halting unit is for."""

import torch
from torch import nn

torch.manual_seed(0)
cell, halt, out = nn.GRUCell(3, 8), nn.Linear(8, 1), nn.Linear(8, 1)
optimizer = torch.optim.Adam([*cell.parameters(), *halt.parameters(), *out.parameters()], lr=1e-2)
x = torch.randn(20, 3)
for _ in range(3):
    h, total = torch.zeros(20, 8), torch.zeros(())
    for _ in range(6):
        h = cell(x, h)
        total = total + torch.sigmoid(halt(h)).mean()
        if total > 1.2:  # <- control-flow.branch
            break
    loss = (out(h).squeeze(1) - x.sum(1)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
