"""A text classifier whose word vectors become a new parameter once the optimizer exists."""

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
vectors = torch.randn(30, 8)
words, scorer = nn.Embedding(30, 8), nn.Linear(8, 2)
optimizer = torch.optim.SGD([*words.parameters(), *scorer.parameters()], lr=0.1)  # <- cut.optimizer
words.weight = nn.Parameter(vectors)  # <- cut.unstepped
for _ in range(5):
    text, label = torch.randint(30, (4, 6)), torch.randint(2, (4,))
    loss = F.cross_entropy(scorer(words(text).mean(1)), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
