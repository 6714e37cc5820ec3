"""The whole gradient against that of the smoothed loss: what biases it is said, what does not stays quiet."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pullback
from pullback.audit import Finding


def _bias(findings: tuple[Finding, ...]) -> Finding | None:
    return next((f for f in findings if f.code == "biased.gradient"), None)


@pytest.fixture
def data() -> Tensor:
    return torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


def _layer() -> nn.Linear:
    layer = nn.Linear(4, 4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return layer


def test_a_hook_that_scales_gradients_is_seen_with_its_factor(data: Tensor) -> None:
    layer = _layer()

    def loss(x: Tensor) -> Tensor:
        y = layer(x).tanh()
        y.register_hook(lambda g: 0.3 * g)
        return y.square().mean()

    found = _bias(pullback.audit(loss, data, probes="all").findings)
    assert found is not None
    assert found.severity == "warning"
    low, high = found.evidence["confidence interval"]
    assert low - 0.05 <= 1 / 0.3 <= high + 0.05
    assert found.evidence["cosine"] > 0.99
    assert found.line == loss.__code__.co_firstlineno + 3


@pytest.mark.parametrize("activation", [torch.tanh, torch.relu, nn.functional.softplus])
def test_a_right_gradient_is_not_reported(activation: object, data: Tensor) -> None:
    layer = _layer()
    report = pullback.audit(lambda x: activation(layer(x)).square().mean(), data, probes="all")  # type: ignore[operator]
    assert _bias(report.findings) is None
    assert report.ok


def test_a_meant_stop_is_for_information(data: Tensor) -> None:
    layer = _layer()

    def loss(x: Tensor) -> Tensor:
        y = layer(x)
        return (y - 0.5 * layer(x.flip(0)).detach()).square().mean()

    report = pullback.audit(loss, data, probes="all")
    assert report.ok
    found = _bias(report.findings)
    assert found is None or found.severity == "info"


def test_an_operation_without_derivative_is_left_to_the_trace(data: Tensor) -> None:
    layer = _layer()
    report = pullback.audit(lambda x: torch.heaviside(layer(x), torch.tensor(0.5)).sum(), data, probes="all")
    assert [f.severity for f in report.findings] == ["error"]
