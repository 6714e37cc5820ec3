"""Equilibrium prices against the dual linear programme of scipy, which has no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.lab.bench import Case
from pullback.markets import equilibrium_prices


def values() -> Tensor:
    return torch.rand(20, 20, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ours(x: Tensor) -> None:
    equilibrium_prices(x, position=0.0)


def scipy_programme(x: Tensor) -> None:
    import numpy as np
    from scipy.optimize import linear_sum_assignment, linprog

    n, m = x.shape[1:]
    pairs = -np.hstack([np.kron(np.eye(n), np.ones((m, 1))), np.kron(np.ones((n, 1)), np.eye(m))])
    for table in x.numpy():
        total = table[linear_sum_assignment(table, maximize=True)].sum()
        least = np.repeat([0.0, 1.0], [n, m])
        found = linprog(least, A_ub=pairs, b_ub=-table.ravel(), A_eq=np.ones((1, n + m)), b_eq=[total])
        assert found.status == 0


CASES = [Case("least equilibrium prices of 20 markets, 20 x 20, forward", values, ours, {"scipy": scipy_programme})]
