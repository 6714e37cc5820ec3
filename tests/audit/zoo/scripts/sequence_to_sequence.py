"""An encoder and a decoder that sometimes feeds on its own predictions."""

import random

import torch
import torch.nn.functional as F
from torch import nn

random.seed(1)
torch.manual_seed(0)
embed, encoder, decoder, head = nn.Embedding(9, 12), nn.GRU(12, 24), nn.GRU(12, 24), nn.Linear(24, 9)
modules = nn.ModuleList([embed, encoder, decoder, head])
optimizer = torch.optim.Adam(modules.parameters(), 1e-3)
for _ in range(10):
    source = torch.randint(1, 9, (6, 4))
    target = source.flip(0)
    _, hidden = encoder(embed(source))
    token = torch.zeros(1, 4, dtype=torch.long)
    loss = 0
    for t in range(6):
        out, hidden = decoder(embed(token), hidden)
        logits = head(out[0])
        loss += F.cross_entropy(logits, target[t])
        if random.random() < 0.5:
            token = target[t : t + 1]
        else:
            _, top = logits.topk(1)
            token = top.squeeze(-1).detach()[None]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item() / 6)
