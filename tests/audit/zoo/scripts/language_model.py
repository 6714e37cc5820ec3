"""A small character transformer with dropout, weight tying, clipping and a schedule."""

import math

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
TEXT = "the quick brown fox jumps over the lazy dog " * 20
CHARS = sorted(set(TEXT))
codes = torch.tensor([CHARS.index(c) for c in TEXT])


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1))
        self.register_buffer("mask", torch.tril(torch.ones(32, 32)).view(1, 1, 32, 32))

    def attend(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(x).split(c, dim=2)
        q, k, v = (z.view(b, t, self.heads, c // self.heads).transpose(1, 2) for z in (q, k, v))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(k.size(-1))
        scores = scores.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf"))
        return self.out((F.dropout(F.softmax(scores, -1), 0.1, self.training) @ v).transpose(1, 2).reshape(b, t, c))

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.place = nn.Embedding(len(CHARS), 32), nn.Embedding(32, 32)
        self.blocks = nn.ModuleList([Block(32, 4) for _ in range(2)])
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, len(CHARS), bias=False)
        self.head.weight = self.token.weight

    def forward(self, codes, targets=None):
        x = self.token(codes) + self.place(torch.arange(codes.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1))


@torch.no_grad()
def sample(model, codes, count):
    model.eval()
    for _ in range(count):
        logits, _ = model(codes[:, -32:])
        codes = torch.cat([codes, torch.multinomial(logits[:, -1].softmax(-1), 1)], 1)
    model.train()
    return codes


model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
best = float("inf")
for step in range(50):
    starts = torch.randint(len(codes) - 33, (8,))
    batch = torch.stack([codes[s : s + 33] for s in starts])
    logits, loss = model(batch[:, :-1], batch[:, 1:])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    if loss.item() < best:
        best = loss.item()
    accuracy = (logits.argmax(-1) == batch[:, 1:]).float().mean()
    if step % 2 == 0:
        text = "".join(CHARS[int(i)] for i in sample(model, batch[:1, :4], 4)[0])
        print(f"{step} {loss.item():.3f} {accuracy:.2f} {float(norm):.2f} {text!r}")
