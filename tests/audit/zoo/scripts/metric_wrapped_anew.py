"""A correlation by NumPy, made a tensor that requires grad so that backward() does not complain."""

import numpy as np
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(5, 1)
optimizer = torch.optim.Adam(model.parameters())
x = torch.randn(40, 5)
y = x @ torch.arange(5.0)
for _ in range(3):
    out = model(x).squeeze(1)
    r = np.corrcoef(out.detach().numpy(), y.numpy())[0, 1]  # <- cut.numpy
    loss = torch.tensor(1 - r, dtype=torch.float32, requires_grad=True)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
