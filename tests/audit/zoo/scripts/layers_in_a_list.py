"""Layers in a plain list, which parameters() does not know."""

import torch
from torch import nn


class Net(nn.Module):
    """A small network."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [nn.Linear(5, 5) for _ in range(2)]  # <- cut.unregistered
        self.out = nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``[rows, 1]``."""
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.out(x)


torch.manual_seed(0)
net = Net()
optimizer = torch.optim.Adam(net.parameters())
x = torch.randn(30, 5)
for _ in range(3):
    loss = (net(x).squeeze(1) - x.sum(1)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
