"""A Wasserstein GAN with gradient penalty: five steps of the critic for each of the generator."""

import torch
from torch import nn

torch.manual_seed(0)
maker = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
judge = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
make = torch.optim.Adam(maker.parameters(), 1e-3)
tell = torch.optim.Adam(judge.parameters(), 1e-3)
for step in range(20):
    real = torch.randn(32, 2) + 2
    fake = maker(torch.randn(32, 4)).detach()
    mix = torch.rand(32, 1)
    between = (mix * real + (1 - mix) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(judge(between).sum(), between, create_graph=True)
    loss = judge(fake).mean() - judge(real).mean() + 10 * (slope.norm(dim=1) - 1).pow(2).mean()
    tell.zero_grad()
    loss.backward()
    tell.step()
    if step % 5 == 0:
        make.zero_grad()
        (-judge(maker(torch.randn(32, 4))).mean()).backward()
        make.step()
    print(step, loss.item())
