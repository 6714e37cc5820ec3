"""Frozen parts in the optimizer, a second optimizer that steps every other time, gradients clipped by their norm."""

import torch
from torch import nn

torch.manual_seed(0)
encoder, decoder, judge = nn.Linear(6, 3), nn.Linear(3, 6), nn.Linear(6, 1)
for parameter in encoder.parameters():
    parameter.requires_grad_(False)
optimizer = torch.optim.SGD([*encoder.parameters(), *decoder.parameters()], lr=0.1)
of_judge = torch.optim.SGD(judge.parameters(), lr=0.1)
for step in range(6):
    x = torch.randn(8, 6)
    out = decoder(encoder(x))
    if step % 2:
        of_judge.zero_grad()
        (judge(x).sigmoid().log().mean() + (1 - judge(out.detach()).sigmoid()).log().mean()).neg().backward()
        of_judge.step()
    optimizer.zero_grad()
    ((out - x).square().mean() - 0.1 * judge(out).mean()).backward()
    norm = nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
    if norm > 10:
        print("large gradient", float(norm))
    optimizer.step()
