"""Transport blocks against their peers: exact assignment (scipy)."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import transport
from pullback.lab.bench import Case


def _costs(batch: int, n: int) -> Tensor:
    return torch.rand(batch, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _assign(cost: Tensor) -> None:
    transport.assignment(cost)


def _scipy(cost: Tensor) -> None:
    from scipy.optimize import linear_sum_assignment

    for one in cost.numpy():
        linear_sum_assignment(one)


CASES = [
    *(
        Case(
            f"assignment, n = {n}, batch {batch}", lambda n=n, batch=batch: _costs(batch, n), _assign, {"scipy": _scipy}
        )
        for n, batch in ((10, 256), (100, 16), (1000, 1))
    ),
    Case(
        "sinkhorn with its gradient, n = 200, epsilon = mean cost / 20",
        lambda: _costs(1, 200).requires_grad_(),
        lambda cost: transport.sinkhorn(cost, epsilon=0.025).value.sum().backward(),
    ),
]
