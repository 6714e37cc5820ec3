"""Meta-learning whose inner loop detaches the fast weights: the optimizer steps without any gradient."""

import torch
import torch.nn.functional as F

torch.manual_seed(0)
weight = torch.nn.Parameter(torch.randn(4, 3))
optimizer = torch.optim.Adam([weight], lr=0.01)
for _ in range(5):
    x, y = torch.randn(8, 4), torch.arange(8) % 3
    fast = weight
    for _ in range(3):
        (gradient,) = torch.autograd.grad(F.cross_entropy(x @ fast, y), [fast])
        fast = (fast - 0.1 * gradient).detach().requires_grad_()  # <- cut.detach
    optimizer.zero_grad()
    F.cross_entropy(x @ fast, y).backward()
    optimizer.step()
