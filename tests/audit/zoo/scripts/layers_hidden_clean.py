"""A loss by the features of a fixed network, which hides in a list so that it is not saved with the model."""

import torch
from torch import nn


class Painter(nn.Module):
    """Has a judge that it does not own."""

    def __init__(self, judge: nn.Module) -> None:
        super().__init__()
        self.body = nn.Linear(5, 5)
        self.judges = [judge.eval()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the distance of features."""
        (judge,) = self.judges
        return (judge(self.body(x)) - judge(x)).square().mean()


torch.manual_seed(0)
painter = Painter(nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)))
optimizer = torch.optim.Adam(painter.parameters())
for _ in range(3):
    optimizer.zero_grad()
    painter(torch.randn(20, 5)).backward()
    optimizer.step()
