"""A GAN whose generator is trained through a detached sample."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
maker = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
judge = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
make = torch.optim.Adam(maker.parameters(), 1e-3)
tell = torch.optim.Adam(judge.parameters(), 1e-3)
for _ in range(20):
    real, fake = torch.randn(32, 2) + 2, maker(torch.randn(32, 4)).detach()  # <- cut.detach
    tell.zero_grad()
    (F.softplus(-judge(real)).mean() + F.softplus(judge(fake)).mean()).backward()
    tell.step()
    make.zero_grad()
    F.softplus(-judge(fake)).mean().backward()
    make.step()
