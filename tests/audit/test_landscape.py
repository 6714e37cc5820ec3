"""The lines of the loss that a report draws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import pullback
from pullback.audit import Report


def test_lines_hold_the_loss_along_the_gradient_and_leave_all_as_it_was() -> None:
    x = torch.tensor([3.0, 4.0], requires_grad=True)
    report = pullback.audit(lambda x: x.square().sum(), x, landscape=True)
    drawn = report.landscape
    assert drawn is not None
    # the gradient points along x, so a step of t times the norm of x leads to (1 + t) x
    assert drawn.along == pytest.approx([25 * (1 + t) ** 2 for t in drawn.offsets], rel=1e-5)
    middle = len(drawn.offsets) // 2
    assert drawn.across[middle] == pytest.approx(25)
    assert min(drawn.across) > min(drawn.along)
    assert x.tolist() == [3.0, 4.0]
    assert Report.from_dict(report.to_dict()) == report
    page = report.to_html()
    assert "<h2>The loss around here</h2>" in page
    assert page.count("<title>along") == 2


def test_lines_have_gaps_where_the_program_refuses_and_none_without_gradient() -> None:
    layer = nn.Linear(2, 1, bias=False)

    def loss() -> Tensor:
        if float(layer.weight.detach().norm()) > 1.5:
            raise ValueError("too large")
        return layer.weight.sum()

    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.6, 0.8]]))
    drawn = pullback.audit(loss, wrt=layer, landscape=True).landscape
    assert drawn is not None
    assert math.isnan(drawn.along[-1])
    assert not math.isnan(drawn.along[len(drawn.along) // 2])
    assert layer.weight.tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
    dead = pullback.audit(lambda x: x.round().sum(), torch.rand(3, requires_grad=True), landscape=True)
    assert dead.landscape is None
    assert "<h2>The loss around here</h2>" not in dead.to_html()
