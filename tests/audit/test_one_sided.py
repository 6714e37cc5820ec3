"""What stands beside a kink in the report: slopes of the loss on both sides, and the one that autograd takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pullback


@pytest.mark.parametrize(
    ("program", "ratio"),
    [
        (lambda x: x.abs().sum(), -1.0),  # one number: it rises on both sides
        (lambda x: x.relu().sum() - (-x).relu().sum(), 1.0),  # the identity
    ],
)
def test_kinks_are_told_with_the_slopes_on_both_sides(program: Callable[[Tensor], Tensor], ratio: float) -> None:
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    kinks = [f for f in pullback.audit(program, x).findings if f.kind == "kink"]
    assert kinks
    for finding in kinks:
        behind, ahead = finding.evidence["slope behind"], finding.evidence["slope ahead"]
        assert abs(ahead) == pytest.approx(1, abs=1e-6)
        assert behind == pytest.approx(ratio * ahead, abs=1e-6)
        assert finding.evidence["slope by autograd"] == 0
    assert x.tolist() == [0.0]


def test_nothing_is_replayed_where_no_probe_may_run() -> None:
    x = torch.zeros(1, requires_grad=True)
    runs = []

    def program(x: Tensor) -> Tensor:
        runs.append(1)
        return x.abs().sum()

    found = pullback.audit(program, x, probes="none").findings
    assert [f.kind for f in found] == ["kink"]
    assert "slope ahead" not in found[0].evidence
    assert len(runs) == 1
