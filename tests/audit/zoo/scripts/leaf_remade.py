"""Fitting the pose of a camera: the angles are made anew for each restart, the optimizer keeps the first ones."""

import torch

torch.manual_seed(0)
points = torch.randn(20, 3)
seen = points[:, :2].roll(1, 0)


def project(angles):
    c, s = angles.cos(), angles.sin()
    zero, one = torch.zeros(()), torch.ones(())
    turn = torch.stack((c[0], -s[0], zero, s[0], c[0], zero, zero, zero, one)).view(3, 3)
    tilt = torch.stack((one, zero, zero, zero, c[1], -s[1], zero, s[1], c[1])).view(3, 3)
    return (points @ turn @ tilt)[:, :2]


angles = torch.zeros(2, requires_grad=True)
optimizer = torch.optim.Adam([angles], lr=0.1)  # <- cut.optimizer
best = float("inf")
for _ in range(4):
    angles = (0.5 * torch.randn(2)).requires_grad_()
    for _ in range(5):
        optimizer.zero_grad()
        loss = (project(angles) - seen).square().mean()
        loss.backward()
        optimizer.step()
    best = min(best, loss.item())
