"""A GAN that detaches its samples for the discriminator, as it should, and again for the generator."""

import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
critic = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
of_generator, of_critic = torch.optim.Adam(generator.parameters()), torch.optim.Adam(critic.parameters())
cross_entropy = nn.BCEWithLogitsLoss()
real = torch.randn(64, 2) @ torch.tensor([[1.0, 0.5], [0.0, 0.5]])
for _ in range(4):
    fake = generator(torch.randn(64, 4))
    of_critic.zero_grad()
    told = cross_entropy(critic(real), torch.ones(64, 1)) + cross_entropy(critic(fake.detach()), torch.zeros(64, 1))
    told.backward()
    of_critic.step()
    of_generator.zero_grad()
    fooled = cross_entropy(critic(fake.detach()), torch.ones(64, 1))  # <- cut.detach
    fooled.backward()
    of_generator.step()
