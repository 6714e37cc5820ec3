"""Speech from text: the number of frames is cut from a predicted duration by int(), which nothing can learn."""

import torch
from torch import nn

torch.manual_seed(0)
duration, frame = nn.Linear(4, 1), nn.GRUCell(4, 4)
optimizer = torch.optim.Adam([*duration.parameters(), *frame.parameters()])
for _ in range(5):
    text, sound = torch.randn(1, 4), torch.randn(1, 4)
    state = torch.zeros(1, 4)
    length = duration(text).exp() * 5
    for _ in range(int(length)):  # <- control-flow.number
        state = frame(text, state)
    loss = (state - sound).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
