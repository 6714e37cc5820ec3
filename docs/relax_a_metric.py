"""Train by the metric itself: F1 of torchmetrics, unchanged, as the loss of a linear model of handwritten digits.

Run it with torchmetrics and scikit-learn installed: ``python docs/relax_a_metric.py``.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torchmetrics.functional.classification import binary_f1_score

import pullback

digits = load_digits()
images = torch.tensor(digits.data, dtype=torch.float32)
images = (images - images.mean(0)) / (images.std(0) + 1)
is_eight = torch.tensor(digits.target == 8).long()  # one in ten
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train, test = order[:800], order[800:]


# Some metrics switch gradients off in their middle (torchmetrics' AUROC does): `through_no_grad` carries them through.
# The forward value is torchmetrics' own; `loss.report()` says which of its lines were relaxed, and what was dropped.
@pullback.relaxed(temperature=0.3, through_no_grad=True)
def loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return minus the F1 score: what falls is a loss."""
    return -binary_f1_score(scores.sigmoid(), labels)


torch.manual_seed(0)
model = torch.nn.Linear(64, 1)
optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
for step in range(151):
    value = loss(model(images[train]).squeeze(1), is_eight[train])
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    if step % 50 == 0:
        with torch.no_grad():
            unseen = binary_f1_score(model(images[test]).squeeze(1).sigmoid(), is_eight[test])
        print(f"step {step:3d}: F1 {-value.item():.3f} in training, {unseen:.3f} on unseen images")
