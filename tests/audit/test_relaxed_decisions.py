"""Decisions that Python takes under ``relaxed``: what is soft goes on softly, what an ``if`` asks for does not."""

from __future__ import annotations

import linecache
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pullback


def branch(x: Tensor, w: Tensor) -> Tensor:
    s = x * w
    keep = (s > 0.2).float()
    if keep.sum() > 3:  # the decision
        out = (keep * s).sum()
    else:
        out = (keep * s).mean()
    return out + w.square().sum()


def loop(x: Tensor, w: Tensor) -> Tensor:
    s = x * w
    order = s.argsort(descending=True)
    total = torch.zeros(())
    i = 0
    while bool(s[order[i]] > 0.1) and i < 5:  # the decision
        total = total + s[order[i]].round()
        i += 1
    return total


def indexed(x: Tensor, w: Tensor) -> Tensor:
    s = x * w
    best = int(s.argmax())  # the decision
    return s[best] * s.square().sum()


@pytest.mark.parametrize("program", [branch, loop, indexed])
@pytest.mark.parametrize("decorated", [False, True])
def test_a_decision_under_relaxed_is_a_finding_at_its_line(program: Callable[..., Tensor], decorated: bool) -> None:
    x, w = torch.linspace(-1, 1, 8), torch.ones(8, requires_grad=True)
    if decorated:
        report = pullback.audit(pullback.relaxed(temperature=0.1)(program), x, w)
    else:
        report = pullback.audit(program, x, w, relax=0.1)
    found = [f for f in report.findings if f.severity != "info"]
    assert [f.kind for f in found] == ["control-flow"]
    assert "the decision" in linecache.getline(found[0].file, found[0].line)


def test_what_a_metric_asks_of_its_inputs_is_no_decision() -> None:
    def share(x: Tensor, w: Tensor) -> Tensor:
        s = (x * w).sigmoid()
        if not torch.all((s >= 0) * (s <= 1)):
            raise ValueError("scores must be probabilities")
        return (s > 0.6).float().mean()

    report = pullback.audit(share, torch.linspace(-1, 1, 8), torch.ones(8, requires_grad=True), relax=0.1)
    assert [f for f in report.findings if f.severity != "info"] == []
