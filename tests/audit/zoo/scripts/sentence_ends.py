"""A decoder that stops at the end token, logs, and skips broken batches: Python decides, as it should."""

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
END = 0
words, cell, out = nn.Embedding(6, 8), nn.GRUCell(8, 8), nn.Linear(8, 6)
optimizer = torch.optim.Adam([*words.parameters(), *cell.parameters(), *out.parameters()])
history = []
for _ in range(5):
    target = torch.randint(6, (7,))
    state, token, loss = torch.zeros(1, 8), torch.tensor([1]), torch.zeros(())
    for wanted in target:
        state = cell(words(token), state)
        scores = out(state)
        loss = loss + F.cross_entropy(scores, wanted[None])
        token = scores.argmax(1).detach()
        if token.item() == END:
            break
    if not torch.isfinite(loss):
        continue
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    history.append(loss.item())
    if len(history) > 2 and history[-1] > history[0]:
        print("worse than at first")
