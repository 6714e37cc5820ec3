"""Contracts of ``pullback.topology``: reductions over segments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback import topology
from tests.contracts.contract import Bad, Call, Contract

_INDEX = torch.tensor([3, 0, 0, 1, 3, 0])
_SORTED = torch.tensor([0, 0, 0, 1, 3, 3])


def _block(reduce: str, sorted: bool = False) -> Any:
    index = _SORTED if sorted else _INDEX

    def block(values: Tensor, count: int = 4) -> Tensor:
        where = index.to(values.device) if isinstance(values, Tensor) else index
        return topology.segment_reduce(values, where, count, reduce=reduce, sorted=sorted)

    return block


def _rows(generator: torch.Generator) -> list[Call]:
    shapes = ((6,), (6, 2), (6, 2, 1))
    return [Call((torch.randn(*shape, generator=generator, dtype=torch.float64),)) for shape in shapes]


def _by_loop(reduce: str, sorted: bool = False) -> Any:
    def reference(values: Tensor, count: int = 4) -> Tensor:
        index, rows = _SORTED if sorted else _INDEX, []
        for segment in range(count):
            own = values[index == segment]
            whole = {"sum": own.sum, "mean": own.mean, "max": own.amax, "min": own.amin}[reduce]
            rows.append(whole(0) if len(own) else torch.zeros_like(values[0]))
        return torch.stack(rows)

    return reference


def _entry(reduce: str, sorted: bool = False) -> Contract:
    return Contract(
        f"topology.segment_reduce[{reduce}{', sorted' if sorted else ''}]",
        _block(reduce, sorted),
        _rows,
        _by_loop(reduce, sorted),
        bad=_BAD,
        large_limit=1e8 if reduce == "sum" else float("inf"),
        batched=False,
        why="the first dimension is that of the rows; a sum of the largest numbers is infinite",
    )


_X = torch.zeros(6, 2)
_BAD = [
    Bad((_X, 3), {}, ValueError, r"index must be in 0\.\.2, got 3"),
    Bad((_X[:5],), {}, ValueError, "index must have one entry a row of values"),
    Bad((_X[0, 0],), {}, ValueError, "index must have one entry a row of values"),
    Bad(([0.0],), {}, TypeError, r"values must be a torch\.Tensor"),
    Bad((_X, 4.0), {}, TypeError, "count must be an integer"),
    Bad((_X, -1), {}, ValueError, "count must be an integer >= 0"),
]

CONTRACTS = [
    *(_entry(reduce) for reduce in ("sum", "mean", "max", "min")),
    *(_entry(reduce, sorted=True) for reduce in ("sum", "mean", "max")),
]
