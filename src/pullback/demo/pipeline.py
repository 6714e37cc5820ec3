"""A pipeline as one would write it first: read images of four-digit numbers, order them, compare with the true order.

Nothing here knows of pullback, and nothing here learns: the rounding, the sorts and the comparison pass no gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NumberReader(nn.Module):
    """Reads a four-digit number: a small network gives each digit ten probabilities, the reading is their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.digit = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 2 * 2, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Read ``[..., 8, 32]`` images of four digits side by side; returns ``[...]`` numbers from 0 to 9999."""
        tiles = images.unflatten(-1, (4, 8)).movedim(-2, -3)
        probabilities = self.digit(tiles.flatten(0, -3).unsqueeze(1)).softmax(-1)
        digits = (probabilities @ torch.arange(10.0, device=images.device)).view(*images.shape[:-2], 4)
        return digits @ torch.tensor([1000.0, 100.0, 10.0, 1.0], device=images.device)


def read(model: nn.Module, images: Tensor) -> Tensor:
    """Read sets of images ``[sets, n, 8, 32]`` as whole numbers ``[sets, n]``."""
    return torch.round(model(images))


def ordering_loss(model: nn.Module, images: Tensor, values: Tensor) -> Tensor:
    """Compare the order of the readings with the order of the true values ``[sets, n]``."""
    numbers = read(model, images)
    order = torch.argsort(numbers, dim=-1)
    places = torch.argsort(order, dim=-1)
    true_places = values.argsort(-1).argsort(-1)
    misplaced = (places - true_places).float().square().mean()
    above = numbers.unsqueeze(-1) > numbers.unsqueeze(-2)
    below = values.unsqueeze(-1) < values.unsqueeze(-2)
    swapped = (above & below).float().sum((-2, -1)).mean()
    decay = sum(p.square().sum() for p in model.parameters())
    return 0.3 * misplaced + swapped + 1e-6 * decay


def exact_order(model: nn.Module, images: Tensor, values: Tensor) -> float:
    """Return the share of sets whose readings are in exactly the true order."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        same = read(model, images).argsort(-1) == values.argsort(-1)
    model.train(was_training)
    return float(same.all(-1).float().mean())
