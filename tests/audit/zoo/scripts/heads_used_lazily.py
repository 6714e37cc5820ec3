"""Several tasks: each step uses one of the heads, one is not used yet, the feature network of a loss is not frozen."""

import torch
from torch import nn

torch.manual_seed(0)
trunk = nn.Sequential(nn.Linear(6, 16), nn.GELU())
heads = nn.ModuleDict({"depth": nn.Linear(16, 1), "normals": nn.Linear(16, 3), "flow": nn.Linear(16, 2)})
features = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))
optimizer = torch.optim.Adam([*trunk.parameters(), *heads.parameters()])
count, best = 0, float("inf")
for step in range(6):
    task = ("depth", "normals")[step % 2]
    x = torch.randn(10, 6)
    out = heads[task](trunk(x))
    if task == "depth":
        loss = (out - x.sum(1, keepdim=True)).square().mean()
    else:
        loss = (features(out) - features(x[:, :3])).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if loss.item() < best:
        best = loss.item()
    else:
        count += 1
    if count > 4:
        break
