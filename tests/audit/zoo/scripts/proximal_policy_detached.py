"""The ratio of the clipped objective is detached: the advantage beside it is not to blame."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
trunk, policy, value = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 1)
optimizer = torch.optim.Adam([*trunk.parameters(), *policy.parameters(), *value.parameters()], lr=0.01)
for _ in range(5):
    states, actions, rewards = torch.randn(6, 4), torch.randint(2, (6, 1)), torch.randn(6, 1)
    hidden = trunk(states).relu()
    advantage = (rewards - value(hidden)).detach()
    chosen = policy(hidden).softmax(-1).gather(1, actions)
    ratio = (chosen / 0.5).detach()  # <- cut.detach
    surrogate = torch.min(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage)
    loss = (F.mse_loss(value(hidden), rewards) - surrogate).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
