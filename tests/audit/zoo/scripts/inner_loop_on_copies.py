"""Meta-learning on deep copies: the outer optimizer steps what the loss never sees."""

import copy

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(1, 4)
meta = torch.optim.Adam(model.parameters(), lr=1e-2)  # <- cut.optimizer
for _ in range(3):
    meta_loss = torch.zeros(())
    for _ in range(4):  # more inner passes than are audited of a line
        x = torch.rand(10, 1)
        learner = copy.deepcopy(model)  # <- cut.unstepped
        inner = torch.optim.SGD(learner.parameters(), lr=0.05)
        (learner(x) - torch.sin(x)).square().mean().backward()
        inner.step()
        meta_loss = meta_loss + (learner(x) - torch.sin(x)).square().mean()
    meta.zero_grad()
    meta_loss.backward()
    meta.step()
