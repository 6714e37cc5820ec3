"""An auxiliary loss that is computed, printed and never joined: a hint, not an error."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
body, head, side = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 2)
optimizer = torch.optim.Adam([*body.parameters(), *head.parameters(), *side.parameters()], 1e-2)
x, y = torch.randn(16, 4), torch.arange(16) % 3
for _ in range(4):
    h = torch.relu(body(x))
    auxiliary = F.cross_entropy(side(h), y % 2)
    loss = F.cross_entropy(head(h), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item(), auxiliary.item())
