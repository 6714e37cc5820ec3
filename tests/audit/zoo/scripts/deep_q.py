"""Deep Q-learning with replay, a target network and epsilon-greedy actions."""

import random
from collections import deque

import torch
import torch.nn.functional as F
from torch import nn

random.seed(0)
torch.manual_seed(0)
online, slow = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2)), None
slow = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
slow.load_state_dict(online.state_dict())
optimizer = torch.optim.RMSprop(online.parameters(), 1e-3)
memory = deque(maxlen=200)
state = torch.randn(3)
for _ in range(60):
    if random.random() < 0.2:
        action = random.randrange(2)
    else:
        action = online(state[None]).max(1)[1].item()
    following = (state + torch.tensor([0.1, -0.1, 0.0]) * (1 if action else -1)).clamp(-2, 2)
    memory.append((state, action, -following.abs().sum().item(), following))
    state = following
    if len(memory) < 16:
        continue
    states, actions, rewards, nexts = zip(*random.sample(memory, 16), strict=True)
    value = online(torch.stack(states)).gather(1, torch.tensor(actions)[:, None]).squeeze(1)
    best = slow(torch.stack(nexts)).max(1)[0].detach()
    loss = F.smooth_l1_loss(value, torch.tensor(rewards) + 0.9 * best)
    optimizer.zero_grad()
    loss.backward()
    for parameter in online.parameters():
        parameter.grad.data.clamp_(-1, 1)
    optimizer.step()
    for a, b in zip(slow.parameters(), online.parameters(), strict=True):
        a.data.copy_(0.99 * a.data + 0.01 * b.data)
