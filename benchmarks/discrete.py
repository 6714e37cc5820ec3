"""The discrete blocks against their peers, forward and backward. ``pullback bench discrete``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pullback.discrete import sorting_network
from pullback.lab.bench import Case


def _scores(n: int, batch: int = 64) -> Callable[[], Tensor]:
    return lambda: torch.randn(batch, n, generator=torch.Generator().manual_seed(0)).requires_grad_()


@cache
def _diffsort_network(n: int) -> Any:
    import diffsort

    # The reference's Cauchy steepness is ours times pi.
    return diffsort.DiffSortNet("bitonic", n, steepness=10 * math.pi, distribution="cauchy")


def _diffsort(x: Tensor, output: int) -> None:
    torch.autograd.grad(_diffsort_network(x.shape[-1])(x)[output].square().sum(), x)


def _softtorch(x: Tensor) -> None:
    import softtorch

    values = softtorch.sort(x, method="sorting_network", softness=0.1, return_indices=False)[0]
    torch.autograd.grad(values.square().sum(), x)


def _network_values(x: Tensor) -> None:
    torch.autograd.grad(sorting_network(x).values.square().sum(), x)


def _network_matrix(x: Tensor) -> None:
    torch.autograd.grad(sorting_network(x).permutation.square().sum(), x)


NETWORK_CASES = [
    *[
        Case(
            f"sorting network (bitonic, Cauchy), values, forward+backward, n={n}, batch 64",
            _scores(n),
            _network_values,
            # At n=1024 diffsort would keep 55 layers of 64 matrices of 1024 x 1024: over 100 GB.
            {"softtorch": _softtorch} | ({"diffsort": lambda x: _diffsort(x, 0)} if n <= 128 else {}),
        )
        for n in (8, 32, 128, 1024)
    ],
    *[
        Case(
            f"sorting network (bitonic, Cauchy), permutation matrix, forward+backward, n={n}, batch 64",
            _scores(n),
            _network_matrix,
            {"diffsort": lambda x: _diffsort(x, 1)},
        )
        for n in (8, 32, 128)
    ],
]

CASES = [*NETWORK_CASES]
