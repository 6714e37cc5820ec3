"""Fine-tuning: the head is replaced by one for other classes after the optimizer was built."""

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)


class Classifier(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(16, classes)

    def forward(self, images):
        return self.head(self.backbone(images))


model = Classifier(10)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)  # <- cut.optimizer
model.head = nn.Linear(16, 3)  # <- cut.unstepped
for _ in range(6):
    images, labels = torch.rand(8, 1, 9, 9), torch.randint(3, (8,))
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
