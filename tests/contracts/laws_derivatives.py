"""Laws of derivatives: of first and second order, backward, forward and nested, of batches, under vmap and compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from tests.contracts.contract import Contract
from tests.contracts.law import NONDETERMINISM, calls, close, function_of, having, on_device, seeded


@having(lambda c: c.gradcheck)
def test_gradcheck(contract: Contract) -> None:
    for call in calls(contract):
        inputs, function = function_of(contract, call)
        assert gradcheck(function, inputs, check_forward_ad=contract.forward_mode, nondet_tol=NONDETERMINISM)


@having(lambda c: c.gradgradcheck)
def test_gradgradcheck(contract: Contract) -> None:
    for call in calls(contract):
        inputs, function = function_of(contract, call)
        assert gradgradcheck(function, inputs, atol=1e-4, rtol=1e-3, nondet_tol=NONDETERMINISM)


@having(lambda c: c.forward_mode and c.gradgradcheck)
def test_nested_forward_mode_equals_forward_over_reverse(contract: Contract) -> None:
    for call in calls(contract)[:1]:
        inputs, function = function_of(contract, call)
        points = tuple(t.detach() for t in inputs)
        g = seeded(1)
        first, second = (on_device(tuple(torch.randn(t.shape, generator=g).double() for t in points)) for _ in "ab")

        def total(*tensors: Tensor, function: Any = function) -> Tensor:
            return torch.stack(
                [(o * torch.linspace(1, 2, o.numel(), device=o.device).view(o.shape)).sum() for o in function(*tensors)]
            ).sum()

        def along_first(*tensors: Tensor, total: Any = total, first: Any = first) -> Tensor:
            return torch.func.jvp(total, tensors, first)[1]

        def reverse_along_first(*tensors: Tensor, total: Any = total, first: Any = first) -> Tensor:
            gradients = torch.func.grad(total, argnums=tuple(range(len(tensors))))(*tensors)
            return torch.stack([(g * d).sum() for g, d in zip(gradients, first, strict=True)]).sum()

        got = torch.func.jvp(along_first, points, second)[1]
        expected = torch.func.jvp(reverse_along_first, points, second)[1]
        close(got, expected, 1e-7)


@having(lambda c: c.batched or c.vmap)
def test_batch_equals_loop_and_vmap(contract: Contract) -> None:
    for call in calls(contract)[:1]:
        inputs, function = function_of(contract, call)
        first, rest = inputs[0].detach(), [t.detach() for t in inputs[1:]]
        shifts = (0.0, 0.25, -0.5)
        stack = torch.stack([first * (1 + s) for s in shifts])
        loop = [function(x, *rest) for x in stack]
        expected = [torch.stack(parts) for parts in zip(*loop, strict=True)]
        if contract.batched:
            for g, e in zip(function(stack, *rest), expected, strict=True):
                close(g, e, 1e-8)
        if contract.vmap:
            got = torch.func.vmap(function, in_dims=(0, *[None] * len(rest)))(stack, *rest)
            for g, e in zip(got, expected, strict=True):
                close(g, e, 1e-8)


@having(lambda c: c.compile)
@pytest.mark.slow
def test_compile(contract: Contract, without_shape_checks: None) -> None:
    call = calls(contract)[0]
    inputs, function = function_of(contract, call)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager")
    expected = function(*inputs)
    got = compiled(*inputs)
    for g, e in zip(got, expected, strict=True):
        close(g, e, 1e-8)
    wanted = torch.autograd.grad(sum(e.sum() for e in expected), inputs, allow_unused=True)
    for g, e in zip(torch.autograd.grad(sum(g.sum() for g in got), inputs, allow_unused=True), wanted, strict=True):
        assert (g is None) == (e is None)
        if g is not None:
            close(g, e, 1e-8)
