"""A detached loss made to require grad again, so that backward() does not complain."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
model = nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
x, y = torch.randn(16, 4), torch.arange(16) % 3
for _ in range(5):
    predicted = model(x).argmax(dim=1)  # <- cut.index
    loss = F.l1_loss(predicted.float(), y.float())
    loss.requires_grad_()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
