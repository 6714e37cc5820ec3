"""The discrete blocks against their peers, forward and backward. ``pullback bench discrete``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pullback.discrete import entmax15, gumbel_softmax, rank, reinmax, sort, sorting_network, sparsemax
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


def _descend(block: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    """Forward, and backward of a cotangent that is not symmetric in the classes."""

    def work(x: Tensor) -> None:
        torch.autograd.grad(block(x), x, x.detach())

    return work


def _entmax(name: str) -> Callable[[Tensor], None]:
    def work(x: Tensor) -> None:
        import entmax

        torch.autograd.grad(getattr(entmax, name)(x, dim=-1), x, x.detach())

    return work


_torch_gumbel = _descend(lambda x: torch.nn.functional.gumbel_softmax(x))
_torch_gumbel_hard = _descend(lambda x: torch.nn.functional.gumbel_softmax(x, hard=True))

CHOICE_CASES = [
    Case(
        "sparsemax, forward+backward, 256 x 1000",
        _scores(1000, 256),
        _descend(sparsemax),
        {"entmax": _entmax("sparsemax")},
    ),
    Case(
        "entmax15, forward+backward, 256 x 1000",
        _scores(1000, 256),
        _descend(entmax15),
        {"entmax": _entmax("entmax15")},
    ),
    Case(
        "gumbel_softmax, forward+backward, 256 x 1000",
        _scores(1000, 256),
        _descend(gumbel_softmax),
        {"torch": _torch_gumbel},
    ),
    Case(
        "gumbel_softmax hard, forward+backward, 256 x 1000",
        _scores(1000, 256),
        _descend(lambda x: gumbel_softmax(x, hard=True)),
        {"torch": _torch_gumbel_hard},
    ),
    Case(
        "reinmax, forward+backward, 256 x 1000",
        _scores(1000, 256),
        _descend(lambda x: reinmax(x).onehot),
        {"torch gumbel_softmax hard": _torch_gumbel_hard},
    ),
]


def _softtorch_sort(method: str, mode: str) -> Callable[[Tensor], None]:
    def work(x: Tensor) -> None:
        import softtorch

        values = softtorch.sort(x, method=method, mode=mode, softness=0.1, return_indices=False)[0]
        torch.autograd.grad(values, x, x.detach())

    return work


def _torchsort(name: str) -> Callable[[Tensor], None]:
    def work(x: Tensor) -> None:
        import torchsort

        # Its regularization strength is an absolute temperature.
        torch.autograd.grad(getattr(torchsort, name)(x, regularization_strength=0.1), x, x.detach())

    return work


_SOFTTORCH_SORT = {
    "softsort": ("softsort", "smooth"),
    "neuralsort": ("neuralsort", "smooth"),
    "sinkhorn": ("ot", "smooth"),
    "isotonic": ("fast_soft_sort", "c0"),
}


def _sort_peers(method: str, n: int) -> dict[str, Callable[[Tensor], None]]:
    """The peers that need less than 10 s and 2 GB: those with matrices stop at n = 1024, the transport one at 128."""
    peers: dict[str, Callable[[Tensor], None]] = {}
    if n <= {"sinkhorn": 128, "isotonic": 10_000}.get(method, 1024):
        peers["softtorch"] = _softtorch_sort(*_SOFTTORCH_SORT[method])
    if method == "isotonic":
        peers["torchsort"] = _torchsort("soft_sort")
    return peers


ORDER_CASES = [
    *[
        Case(
            f"sort, {method}, forward+backward, n={n}, batch 64",
            _scores(n),
            _descend(lambda x, method=method: sort(x, method=method).values),
            _sort_peers(method, n),
        )
        for method in _SOFTTORCH_SORT
        for n in (8, 32, 128, 1024, 10_000)
    ],
    *[
        Case(
            f"rank, isotonic, forward+backward, n={n}, batch 64",
            _scores(n),
            _descend(lambda x: rank(x, method="isotonic", temperature=0.1, scale=None)),
            {"torchsort": _torchsort("soft_rank")},
        )
        for n in (8, 32, 128, 1024, 10_000)
    ],
]

CASES = [*CHOICE_CASES, *NETWORK_CASES, *ORDER_CASES]
