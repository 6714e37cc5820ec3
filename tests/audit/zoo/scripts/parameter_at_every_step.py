"""A gate whose weights become a parameter of their own at every call."""

import torch
from torch import nn


class Gate(nn.Module):
    """Weighs its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(6))
        self.body = nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``[rows, 1]``."""
        weights = nn.Parameter(self.logits.softmax(0))  # <- cut.rebuild
        return self.body(x * weights)


torch.manual_seed(0)
gate = Gate()
optimizer = torch.optim.Adam(gate.parameters())
x = torch.randn(30, 6)
for _ in range(3):
    loss = (gate(x).squeeze(1) - x[:, 0]).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
