"""Unchanged code on the device: relaxed keeps its values to the bit and revives gradients; audit finds them dead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pullback
from tests.contracts.contract import DEVICE


def ordered(x: Tensor) -> Tensor:
    return (x[torch.argsort(x)] * torch.arange(x.numel(), device=x.device)).sum()


def counted(x: Tensor) -> Tensor:
    return (x > 0.1).float().mean() + torch.round(3 * x).sum()


def chosen(x: Tensor) -> Tensor:
    table = torch.linspace(0, 1, x.numel(), device=x.device)
    return table[x.argmax()] + torch.where(x < 0, x, 2 * x).sum() + x.topk(2).values.sum()


def ranked(x: Tensor) -> Tensor:
    weights = torch.arange(len(x), dtype=x.dtype, device=x.device)  # a sum over all ranks alone is a constant
    return ((x.argsort().argsort().to(x.dtype) - 1).square() * weights).sum()


PROGRAMS = (ordered, counted, chosen, ranked)


@pytest.mark.parametrize("program", PROGRAMS)
def test_relaxed_keeps_values_and_gives_the_gradients_of_the_cpu(program: Callable[[Tensor], Tensor]) -> None:
    start = torch.randn(8, generator=torch.Generator().manual_seed(0))
    gradients = []
    for device in ("cpu", DEVICE):
        x = start.clone().to(device).requires_grad_()
        plain = program(x)
        with pullback.relaxed(temperature=0.1):
            value = program(x)
        assert value.device.type == torch.device(device).type
        assert float(value.detach()) == float(plain.detach())
        value.backward()
        assert x.grad is not None
        assert x.grad.device == x.device
        assert x.grad.abs().max() > 1e-3
        gradients.append(x.grad.cpu())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_audit_finds_what_is_dead() -> None:
    x = torch.randn(8, generator=torch.Generator().manual_seed(0)).to(DEVICE).requires_grad_()
    report = pullback.audit(counted, x)
    assert {f.severity for f in report.findings} & {"error", "warning"}
