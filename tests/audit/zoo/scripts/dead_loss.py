"""The backward pass raises, because the loss has no graph."""

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(4, 3)
x = torch.randn(16, 4)
loss = (model(x) > 0).float().mean()  # <- cut.comparison
loss.backward()
