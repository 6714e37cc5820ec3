"""The same autoencoder with codes that follow moving averages, though the optimizer holds them as well."""

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(8, 4), nn.Linear(4, 8)
        self.codes = nn.Parameter(torch.randn(16, 4))

    def forward(self, x):
        z = self.encode(x)
        nearest = torch.cdist(z, self.codes).argmin(1)
        code = self.codes[nearest]
        with torch.no_grad():
            hits = F.one_hot(nearest, 16).float()
            mean = hits.T @ z / hits.sum(0).clamp(min=1)[:, None]
            used = hits.sum(0) > 0
            self.codes.data[used] = 0.9 * self.codes.data[used] + 0.1 * mean[used]
        commitment = F.mse_loss(z, code.detach())
        return self.decode(z + (code - z).detach()), commitment


model = Autoencoder()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(5):
    x = torch.randn(12, 8)
    out, commitment = model(x)
    loss = F.mse_loss(out, x) + 0.25 * commitment
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
