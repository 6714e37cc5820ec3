"""Entries that tie along a dimension are said, where the choice among them changes the gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pullback


def _kinks(program: Callable[..., Tensor], *inputs: Tensor) -> list[tuple[str, str, object]]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    found = pullback.audit(program, *leaves, probes="none").findings
    return [(f.code, f.severity, f.evidence["count"]) for f in found if f.kind == "kink"]


A, B = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([1.0, 3.0, 5.0])
ROW = torch.tensor([[4.0, 2.0, 2.0, 1.0]])


@pytest.mark.parametrize(
    ("program", "inputs", "code", "count"),
    [
        (lambda a, b: torch.stack([a, b]).amax(0).sum(), (A, B), "kink.amax", 2),
        (lambda a, b: torch.stack([a, b], 1).min(dim=1).values.sum(), (A, B), "kink.min", 2),
        (lambda a, b: torch.cat([a[:, None], b[:, None]], 1).max(-1)[0].sum(), (A, B), "kink.max", 2),
        (lambda a, b: torch.stack([a, b, a + 9]).median(0).values.sum(), (A, A), "kink.median", 3),
        (lambda x: x.topk(2).values.sum(), (ROW,), "kink.topk", 1),
        (lambda x: (x.sort(1).values * torch.arange(4.0)).sum(), (ROW,), "kink.sort", 1),
    ],
)
def test_ties_are_counted(program: Callable[..., Tensor], inputs: tuple[Tensor, ...], code: str, count: int) -> None:
    assert _kinks(program, *inputs) == [(code, "info", count)]


@pytest.mark.parametrize(
    ("program", "inputs"),
    [
        (lambda x: x.topk(2).values.sum(), (torch.tensor([4.0, 3.0, 1.0, 1.0]),)),  # the tie is not among the chosen
        (lambda x: F.max_pool1d(F.relu(x)[None], 2).sum(), (torch.tensor([[-1.0, -2.0, 1.0, 2.0]]),)),
        (lambda x: F.relu(x).amax(1).sum() + x.sum(), (torch.tensor([[-1.0, -2.0], [1.0, 2.0]]),)),
        (lambda w: F.embedding(torch.tensor([[1, 1, 2]]), w).amax(1).sum(), (torch.randn(3, 2),)),
        (lambda x: x.masked_fill(x < 3, -1e9).sort().values[2:].sum(), (torch.tensor([1.0, 2.0, 3.0, 4.0]),)),
        (lambda x: x.amax(0).sum() + x.sort(0).values[0].sum(), (torch.randn(5, 3),)),
    ],
)
def test_what_no_choice_depends_on_stays_quiet(program: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    assert _kinks(program, *inputs) == []
