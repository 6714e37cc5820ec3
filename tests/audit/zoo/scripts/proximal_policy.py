"""Proximal policy optimisation with advantages computed in NumPy, two passes over stored probabilities."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
trunk, policy, value = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(8, 1)
optimizer = torch.optim.Adam([*trunk.parameters(), *policy.parameters(), *value.parameters()], lr=0.01)


def probabilities(states):
    return policy(trunk(states).relu()).softmax(-1)


def values(states):
    return value(trunk(states).relu())


for _ in range(3):
    stored = []
    for _ in range(6):
        state = torch.randn(4)
        probability = probabilities(state)
        action = torch.distributions.Categorical(probability).sample().item()
        stored.append((state.tolist(), [action], [float(np.cos(action))], [probability[action].item()]))
    states, actions, rewards, old = (torch.tensor(column) for column in zip(*stored, strict=True))
    for _ in range(2):
        target = rewards + 0.9 * values(states)
        errors = (target - values(states)).detach().numpy()
        running, rows = 0.0, []
        for error in errors[::-1]:
            running = 0.9 * running + error[0]
            rows.append([running])
        advantage = torch.tensor(rows[::-1], dtype=torch.float)
        ratio = (probabilities(states).gather(1, actions).log() - old.log()).exp()
        surrogate = torch.min(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage)
        loss = (F.smooth_l1_loss(values(states), target.detach()) - surrogate).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
