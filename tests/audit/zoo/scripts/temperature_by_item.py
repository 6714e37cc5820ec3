"""An actor with a learned temperature: detached where it weighs the entropy, a number where it should learn."""

import torch
from torch import nn

torch.manual_seed(0)
actor = nn.Linear(3, 2)
log_alpha = torch.zeros(1, requires_grad=True)
optimizer = torch.optim.Adam([*actor.parameters(), log_alpha], 1e-2)
for _ in range(3):
    mean, log_std = actor(torch.randn(32, 3)).chunk(2, -1)
    policy = torch.distributions.Normal(mean, log_std.exp())
    action = policy.rsample()
    log_prob = policy.log_prob(action)
    alpha = log_alpha.exp()
    of_actor = (alpha.detach() * log_prob + action.square()).mean()
    of_alpha = -(alpha.item() * (log_prob + 1.0).detach()).mean()  # <- cut.item
    optimizer.zero_grad()
    (of_actor + of_alpha).backward()
    optimizer.step()
