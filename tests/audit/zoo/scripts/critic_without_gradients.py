"""The critic runs under no_grad: the sample detached in its own step is not to blame for the starved generator."""

import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
features, judge = nn.Linear(3, 8), nn.Linear(8, 1)
generator_optimizer = torch.optim.Adam(generator.parameters(), lr=0.01)
critic_optimizer = torch.optim.Adam([*features.parameters(), *judge.parameters()], lr=0.01)


def critic(x):
    hidden = features(x).relu()
    with torch.no_grad():
        score = judge(hidden)  # <- cut.no_grad
    return score.requires_grad_()


for _ in range(5):
    fake, real = generator(torch.randn(6, 2)), torch.randn(6, 3)
    generator_optimizer.zero_grad()
    (critic(fake) - 1).square().mean().backward()
    generator_optimizer.step()
    critic_optimizer.zero_grad()
    ((critic(real) - 1).square().mean() + critic(fake.detach()).square().mean()).backward()
    critic_optimizer.step()
