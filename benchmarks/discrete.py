"""The discrete blocks against their peers, forward and backward. ``pullback bench discrete``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pullback.discrete import (
    entmax,
    entmax15,
    entmax_loss,
    group_ordering_loss,
    gumbel_softmax,
    local_attention,
    normmax,
    rank,
    reinmax,
    sort,
    sorting_network,
    sparsemax,
)
from pullback.lab.bench import Case

SIZES = (8, 32, 128, 1024, 10_000)
_ALONE = " (no peer: each would need over 2 GB or 10 s)"


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


def _network_peers(n: int) -> dict[str, Callable[[Tensor], None]]:
    """At n = 1024 diffsort would keep 55 layers of 64 matrices of 1024 x 1024 (over 100 GB); at n = 10 000 softtorch
    keeps 105 layers of temporaries (over 2 GB)."""
    peers: dict[str, Callable[[Tensor], None]] = {"softtorch": _softtorch} if n <= 1024 else {}
    return peers | ({"diffsort": lambda x: _diffsort(x, 0)} if n <= 128 else {})


# The matrix stops at n = 128: from 1024 on, 64 matrices and their cotangents take over 500 MB and minutes.
NETWORK_CASES = [
    *[
        Case(
            f"sorting network (bitonic, Cauchy), values, forward+backward, n={n}, batch 64" + _ALONE * (n > 1024),
            _scores(n),
            _network_values,
            _network_peers(n),
        )
        for n in SIZES
    ],
    *[
        Case(
            f"sorting network (bitonic, Cauchy), permutation matrix, forward+backward, n={n}, batch 64",
            _scores(n),
            _network_matrix,
            {"diffsort": lambda x: _diffsort(x, 1)},
        )
        for n in SIZES
        if n <= 128
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


def _peer() -> Any:
    import entmax as peer

    return peer


def _alphas() -> Tensor:
    return torch.linspace(1.1, 2.0, 256).unsqueeze(-1).requires_grad_()


def _classes(x: Tensor) -> Tensor:
    return torch.arange(len(x)) % x.shape[-1]


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
        "entmax, an alpha a row, forward+backward, 256 x 1000",
        _scores(1000, 256),
        _descend(lambda x: entmax(x, _alphas())),
        {"entmax": _descend(lambda x: _peer().entmax_bisect(x, _alphas()))},
    ),
    Case(
        "entmax of alpha 1.3, forward+backward, 256 x 1000",
        _scores(1000, 256),
        _descend(lambda x: entmax(x, 1.3)),
        {"entmax": _descend(lambda x: _peer().entmax_bisect(x, 1.3))},
    ),
    Case(
        "normmax, forward+backward, 256 x 1000",
        _scores(1000, 256),
        _descend(normmax),
        {"entmax": _descend(lambda x: _peer().normmax_bisect(x, 2, dim=-1))},
    ),
    Case(
        "loss of entmax15, forward+backward, 256 x 1000",
        _scores(1000, 256),
        lambda x: torch.autograd.grad(entmax_loss(x, _classes(x)).sum(), x),
        {"entmax": lambda x: torch.autograd.grad(_peer().entmax15_loss(x, _classes(x)).sum(), x)},
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


def _softtorch_rank(method: str, mode: str) -> Callable[[Tensor], None]:
    def work(x: Tensor) -> None:
        import softtorch

        ranks = softtorch.rank(x, dim=-1, method=method, mode=mode, softness=0.1, descending=False)
        torch.autograd.grad(ranks, x, x.detach())

    return work


def _torchsort(name: str) -> Callable[[Tensor], None]:
    def work(x: Tensor) -> None:
        import torchsort

        # Its regularization strength is an absolute temperature.
        torch.autograd.grad(getattr(torchsort, name)(x, regularization_strength=0.1), x, x.detach())

    return work


_SOFTTORCH = {
    "softsort": ("softsort", "smooth"),
    "neuralsort": ("neuralsort", "smooth"),
    "sinkhorn": ("ot", "smooth"),
    "isotonic": ("fast_soft_sort", "c0"),
}


def _order_peers(operation: str, method: str, n: int) -> dict[str, Callable[[Tensor], None]]:
    """The peers that need less than 10 s and 2 GB: those with matrices stop at n = 1024 (at 128 for ranks, which would
    double the time of the whole benchmark), the transport one at 128."""
    peers: dict[str, Callable[[Tensor], None]] = {}
    if n <= {"sinkhorn": 128, "isotonic": 10_000}.get(method, 1024 if operation == "sort" else 128):
        peers["softtorch"] = {"sort": _softtorch_sort, "rank": _softtorch_rank}[operation](*_SOFTTORCH[method])
    if method == "isotonic":
        peers["torchsort"] = _torchsort(f"soft_{operation}")
    return peers


def _order_case(operation: str, method: str, n: int, ours: Callable[[Tensor], Tensor]) -> Case:
    peers = _order_peers(operation, method, n)
    name = f"{operation}, {method}, forward+backward, n={n}, batch 64"
    return Case(name if peers else name + _ALONE, _scores(n), _descend(ours), peers)


class _Copy(torch.autograd.Function):
    """What every block that brings its own backward pass pays to autograd, before it does anything."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


ORDER_CASES = [
    # At n = 32 a sixth of torchsort's time and a quarter of the isotonic sort's here; checks of arguments and the way
    # from tensors to arrays and back are most of the rest.
    Case(
        "a Function that copies (the floor of each order below), forward+backward, n=32, batch 64",
        _scores(32),
        _descend(_Copy.apply),
        {},
    ),
    *[
        _order_case("sort", method, n, lambda x, method=method: sort(x, method=method).values)
        for method in _SOFTTORCH
        for n in SIZES
    ],
    *[
        # The isotonic peers take an absolute temperature.
        _order_case(
            "rank",
            method,
            n,
            lambda x, method=method, scale=scale: rank(x, method=method, temperature=0.1, scale=scale),
        )
        for method, scale in (("softsort", "std"), ("neuralsort", "std"), ("sinkhorn", "std"), ("isotonic", None))
        for n in SIZES
    ],
]


def _groups() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    positives, negatives = (torch.rand(512, n, generator=g).requires_grad_() for n in (3, 10))
    return positives, negatives


def _group_ordering(groups: tuple[Tensor, Tensor]) -> None:
    positives, negatives = groups
    torch.autograd.grad(group_ordering_loss(positives, negatives, steepness=1.0), (positives, negatives))


@cache
def _diffsort_groups() -> Any:
    import diffsort

    return diffsort.DiffSortNet("odd_even", 13, steepness=math.pi, distribution="cauchy")


def _diffsort_group_ordering(groups: tuple[Tensor, Tensor]) -> None:
    positives, negatives = groups
    ordered = torch.cat([negatives.sort(-1).values, positives.sort(-1).values], -1)
    mass = _diffsort_groups()(ordered)[1][:, :, 10:].sum(2).clamp(0, 1)
    belongs = (torch.arange(13) >= 10).to(mass).expand_as(mass)
    loss = torch.nn.functional.binary_cross_entropy(mass, belongs)
    torch.autograd.grad(loss, (positives, negatives))


GROUP_CASES = [
    Case(
        "group ordering loss, forward+backward, 512 anchors, 3 positives, 10 negatives",
        _groups,
        _group_ordering,
        {"diffsort": _diffsort_group_ordering},
    ),
]


def _sequences(n: int) -> Callable[[], tuple[Tensor, ...]]:
    g = torch.Generator().manual_seed(0)
    return lambda: tuple(torch.randn(2, 4, n, 16, generator=g).requires_grad_() for _ in range(3))


def _in_a_window(qkv: tuple[Tensor, ...]) -> None:
    torch.autograd.grad(local_attention(*qkv, 16).sum(), qkv)


@cache
def _band(n: int) -> Tensor:
    return (torch.arange(n) - torch.arange(n)[:, None]).abs() <= 8


def _torch_in_a_window(qkv: tuple[Tensor, ...]) -> None:
    found = torch.nn.functional.scaled_dot_product_attention(*qkv, attn_mask=_band(qkv[0].shape[-2]))
    torch.autograd.grad(found.sum(), qkv)


WINDOW_CASES = [
    Case(
        f"attention in a window of 16, forward+backward, n = {n}, 2 x 4 heads of 16",
        _sequences(n),
        _in_a_window,
        {"torch": _torch_in_a_window},
    )
    for n in (128, 1024)
]

CASES = [*CHOICE_CASES, *NETWORK_CASES, *ORDER_CASES, *GROUP_CASES, *WINDOW_CASES]
