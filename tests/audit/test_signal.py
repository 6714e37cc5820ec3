"""What passes through layers, and how noisy gradients are, as sections of the report."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import pullback
from pullback.audit import Report


def test_layers_are_told_in_the_order_of_their_calls() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    for layer in (model[0], model[2]):
        layer.weight = nn.Parameter(3 * torch.eye(2))
    x = torch.tensor([[1.0, -1.0], [1.0, -2.0]])
    report = pullback.audit(lambda x: model(x).sum(), x, wrt=model, signal=True)
    first, relu, last = report.layers
    assert [layer.name for layer in report.layers] == ["model.0", "model.1", "model.2"]
    assert [layer.kind for layer in report.layers] == ["Linear", "ReLU", "Linear"]
    assert first.size == pytest.approx(3 * math.sqrt(7 / 4))
    assert last.size == pytest.approx(9 / math.sqrt(2))
    assert relu.idle == pytest.approx(1)  # both units are the same for both samples
    assert first.correlation == pytest.approx(3 / math.sqrt(10))
    assert (last.cotangent, relu.cotangent) == pytest.approx((1, 3))
    assert first.cotangent == pytest.approx(3 / math.sqrt(2))  # the unit that is off passes nothing
    assert report.noise == ()
    assert Report.from_dict(report.to_dict()) == report
    assert "model.1" in str(report)
    assert "What passes through the layers" in report.to_html()


def test_the_noise_of_a_gradient_is_that_of_its_draws() -> None:
    """Of ``w (1 + 2 e)`` with normal e: signal 1, noise 4; of ``3 v`` no noise."""
    w, v = (torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def loss() -> Tensor:
        return (w * (1 + 2 * torch.randn(1, dtype=torch.float64)) + 3 * v).sum()

    state = torch.get_rng_state()
    report = pullback.audit(loss, signal=True)
    after = torch.get_rng_state()
    noisy, quiet = report.noise
    assert 1.5 < noisy.noise < 9
    assert -2 < noisy.signal < 6
    assert (quiet.signal, quiet.noise, quiet.ratio) == pytest.approx((9, 0, math.inf))
    assert report.layers == ()
    assert Report.from_dict(report.to_dict()) == report
    assert "signal over noise" in str(report)
    assert "Signal and noise of the gradients" in report.to_html()
    torch.set_rng_state(state)
    torch.randn(1, dtype=torch.float64)
    assert torch.equal(after, torch.get_rng_state())  # the program's own draw moved it, the replays did not
    assert [p.grad for p in (w, v)] == [None, None]


def test_nothing_is_told_unasked_or_of_a_program_that_trains_by_itself() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert pullback.audit(model, torch.ones(3, 2)).layers == ()

    def step() -> None:
        model(torch.randn(3, 2)).sum().backward()
        optimizer.step()

    report = pullback.audit(step, signal=True)
    assert report.layers == ()
    assert report.noise == ()


def test_a_shared_layer_is_told_at_every_call_and_inputs_are_left_as_they_were() -> None:
    layer = nn.Linear(3, 3)
    x = torch.rand(4, 3)
    report = pullback.audit(lambda x: layer(layer(x)).sum(), x, signal=True)
    assert [record.name for record in report.layers] == ["layer", "layer"]
    assert not x.requires_grad
