"""Contrastive learning against a slow copy, whose block without gradients holds the query's encoder too."""

import torch
from torch import nn
from torch.nn import functional

torch.manual_seed(0)
query, head, key = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(6, 4)
for weight in key.parameters():
    weight.requires_grad_(False)
optimizer = torch.optim.SGD([*query.parameters(), *head.parameters()], 0.1)
for _ in range(3):
    x = torch.randn(16, 6)
    with torch.no_grad():
        k = functional.normalize(key(x), dim=1)
        q = query(x + 0.1 * torch.randn(16, 6))  # <- cut.no_grad
    q = functional.normalize(head(q), dim=1)
    loss = functional.cross_entropy(q @ k.T / 0.2, torch.arange(16))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(key.parameters(), query.parameters(), strict=True):
            slow.mul_(0.99).add_(fast, alpha=0.01)
