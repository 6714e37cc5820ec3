"""Bootstrap your own latent: an online network, a predictor, and a slow copy as its target."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
online = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
predictor = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
target = copy.deepcopy(online)
optimizer = torch.optim.SGD([*online.parameters(), *predictor.parameters()], 0.05, momentum=0.9)
data = torch.randn(64, 6)
for _ in range(8):
    first, second = data + 0.1 * torch.randn_like(data), data + 0.1 * torch.randn_like(data)
    p, q = predictor(online(first)), predictor(online(second))
    with torch.no_grad():
        a, b = target(first), target(second)
    loss = 4 - 2 * (F.cosine_similarity(p, b).mean() + F.cosine_similarity(q, a).mean())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
            slow.lerp_(fast, 0.01)
