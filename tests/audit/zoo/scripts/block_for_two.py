"""A student under the same no_grad as the teacher that it imitates: the student's line is the one that costs."""

import torch
from torch import nn

torch.manual_seed(0)
teacher, student, head = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 3)
optimizer = torch.optim.SGD([*student.parameters(), *head.parameters()], 0.1)
for _ in range(3):
    x = torch.randn(8, 4)
    with torch.no_grad():
        wanted = teacher(x)
        found = student(x)  # <- cut.no_grad
    loss = (head(found) - wanted).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
