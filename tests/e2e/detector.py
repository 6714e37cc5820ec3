"""Count digits on a canvas: scores of cells, the best of neighbours survive, the loss is the error of the count."""

import torch
from torch import nn

from pullback import data

SIDE, CELLS, BEST = 3, 36, 6  # slots a side, cells of 4 x 4 pixels, candidates
ROW, COLUMN = torch.arange(CELLS) // 6, torch.arange(CELLS) % 6
NEAR = torch.maximum((ROW[:, None] - ROW).abs(), (COLUMN[:, None] - COLUMN).abs()) <= 1


def canvases(images, count, generator):
    """Canvases of 24 x 24 pixels with none to four digits, and how many they have."""
    found = torch.randint(0, 5, (count,), generator=generator)
    canvas = torch.zeros(count, 1, 8 * SIDE, 8 * SIDE)
    for page, digits in zip(canvas, found, strict=True):
        for slot in torch.randperm(SIDE * SIDE, generator=generator)[:digits].tolist():
            top, left = 8 * (slot // SIDE), 8 * (slot % SIDE)
            page[0, top : top + 8, left : left + 8] = images[torch.randint(len(images), (), generator=generator)]
    return canvas, found


def detector():
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5, stride=2, padding=2), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(8, 1, 3, padding=1), nn.Flatten(), nn.Sigmoid()),
    )


def count(scores):
    """Number of cells of one canvas that are sure and have no better neighbour."""
    order = torch.argsort(scores, descending=True)[:BEST]
    keep = torch.zeros(CELLS, dtype=torch.bool)
    for i in order:
        keep[i] = not bool((keep & NEAR[i]).any())
    return torch.round(((scores > 0.5) & keep).sum().float())


def loss_of(model, canvas, wanted):
    counts = torch.stack([count(scores) for scores in model(canvas)])
    return (counts - wanted).square().mean()


def right(model, canvas, wanted):
    with torch.no_grad():
        counts = torch.stack([count(scores) for scores in model(canvas)])
    return (counts == wanted).float().mean().item()


def train(steps, seed):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    images = data.digits().images
    canvas, wanted = canvases(images[:1200], 400, generator)
    unseen = canvases(images[1200:], 200, generator)
    model = detector()
    before = right(model, *unseen)
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(steps):
        batch = torch.randint(len(canvas), (4,), generator=generator)
        loss = loss_of(model, canvas[batch], wanted[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    commonest = torch.bincount(unseen[1]).max().item() / len(unseen[1])
    return before, commonest, right(model, *unseen)


if __name__ == "__main__":
    print("count right on held-out canvases: before {:.3f}, commonest {:.3f}, after {:.3f}".format(*train(60, seed=0)))
