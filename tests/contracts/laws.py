"""The laws: tests that every entry of a table goes through. A table is ``CONTRACTS`` of ``<family>/<topic>.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from tests.contracts.contract import Bad, Call, Contract


@dataclass(frozen=True)
class Law:
    """A test and the entries that it holds for: ``cases`` picks (name, arguments) from the entries of a table."""

    test: Callable[..., None]
    cases: Callable[[Sequence[Any]], list[tuple[str, tuple[Any, ...]]]]


LAWS: dict[str, Law] = {}


def _having(condition: Callable[[Contract], bool]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a test a law of the contracts that ``condition`` picks."""

    def register(test: Callable[..., None]) -> Callable[..., None]:
        LAWS[test.__name__] = Law(test, lambda table: [(c.name, (c,)) for c in table if condition(c)])
        return test

    return register


def _calls(contract: Contract) -> list[Call]:
    return list(contract.samples(torch.Generator().manual_seed(0)))


def _tensors(contract: Contract, result: Any) -> tuple[Tensor, ...]:
    picked = contract.outputs(result)
    return (picked,) if isinstance(picked, Tensor) else tuple(picked)


def _split(call: Call) -> tuple[list[Tensor], Any]:
    """Return the differentiable arguments and a function of them alone."""
    positions = [i for i, a in enumerate(call.args) if isinstance(a, Tensor) and a.is_floating_point()]

    def rebuild(*tensors: Tensor) -> tuple[Any, ...]:
        args = list(call.args)
        for i, t in zip(positions, tensors, strict=True):
            args[i] = t
        return tuple(args)

    return [call.args[i].detach().clone().requires_grad_() for i in positions], rebuild


def _function(contract: Contract, call: Call) -> tuple[list[Tensor], Any]:
    inputs, rebuild = _split(call)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return _tensors(contract, contract.block(*rebuild(*tensors), **call.kwargs))

    return inputs, function


def _close(got: Any, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, check_dtype=False, equal_nan=True)


@_having(lambda c: c.reference is not None)
def test_equals_reference(contract: Contract) -> None:
    for call in _calls(contract):
        got = _tensors(contract, contract.block(*call.args, **call.kwargs))
        expected = contract.reference(*call.args, **call.kwargs)  # type: ignore[misc]
        expected = (expected,) if isinstance(expected, Tensor) else tuple(expected)
        for g, e in zip(got, expected, strict=True):
            _close(g, e, contract.tolerance)


@_having(lambda c: c.hard is not None)
def test_tends_to_the_hard_operation(contract: Contract) -> None:
    for call in _calls(contract):
        got = _tensors(contract, contract.block(*call.args, **{**call.kwargs, **contract.soft}))
        expected = contract.hard(*call.args)  # type: ignore[misc]
        expected = (expected,) if isinstance(expected, Tensor) else tuple(expected)
        for g, e in zip(got, expected, strict=True):
            _close(g, e.to(g.dtype), contract.hard_tolerance)


@_having(lambda c: c.gradcheck)
def test_gradcheck(contract: Contract) -> None:
    for call in _calls(contract):
        inputs, function = _function(contract, call)
        assert gradcheck(function, inputs, check_forward_ad=contract.forward_mode, check_batched_grad=False)


@_having(lambda c: c.gradgradcheck)
def test_gradgradcheck(contract: Contract) -> None:
    for call in _calls(contract):
        inputs, function = _function(contract, call)
        assert gradgradcheck(function, inputs, atol=1e-4, rtol=1e-3)


@_having(lambda c: c.forward_mode and c.gradgradcheck)
def test_nested_forward_mode_equals_forward_over_reverse(contract: Contract) -> None:
    for call in _calls(contract)[:1]:
        inputs, function = _function(contract, call)
        points = tuple(t.detach() for t in inputs)
        g = torch.Generator().manual_seed(1)
        first, second = (tuple(torch.randn(t.shape, generator=g, dtype=t.dtype) for t in points) for _ in range(2))

        def total(*tensors: Tensor, function: Any = function) -> Tensor:
            return torch.stack(
                [(o * torch.linspace(1, 2, o.numel()).view(o.shape)).sum() for o in function(*tensors)]
            ).sum()

        def along_first(*tensors: Tensor, total: Any = total, first: Any = first) -> Tensor:
            return torch.func.jvp(total, tensors, first)[1]

        def reverse_along_first(*tensors: Tensor, total: Any = total, first: Any = first) -> Tensor:
            gradients = torch.func.grad(total, argnums=tuple(range(len(tensors))))(*tensors)
            return torch.stack([(g * d).sum() for g, d in zip(gradients, first, strict=True)]).sum()

        got = torch.func.jvp(along_first, points, second)[1]
        expected = torch.func.jvp(reverse_along_first, points, second)[1]
        _close(got, expected, 1e-7)


@_having(lambda c: c.batched or c.vmap)
def test_batch_equals_loop_and_vmap(contract: Contract) -> None:
    for call in _calls(contract)[:1]:
        inputs, function = _function(contract, call)
        first, rest = inputs[0].detach(), [t.detach() for t in inputs[1:]]
        shifts = (0.0, 0.25, -0.5)
        stack = torch.stack([first * (1 + s) for s in shifts])
        loop = [function(x, *rest) for x in stack]
        expected = [torch.stack(parts) for parts in zip(*loop, strict=True)]
        if contract.batched:
            for g, e in zip(function(stack, *rest), expected, strict=True):
                _close(g, e, 1e-8)
        if contract.vmap:
            got = torch.func.vmap(function, in_dims=(0, *[None] * len(rest)))(stack, *rest)
            for g, e in zip(got, expected, strict=True):
                _close(g, e, 1e-8)


@_having(lambda c: c.compile)
@pytest.mark.slow
def test_compile(contract: Contract, without_shape_checks: None) -> None:
    call = _calls(contract)[0]
    inputs, function = _function(contract, call)
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager")
    expected = function(*inputs)
    got = compiled(*inputs)
    for g, e in zip(got, expected, strict=True):
        _close(g, e, 1e-8)
    wanted = torch.autograd.grad(sum(e.sum() for e in expected), inputs, allow_unused=True)
    for g, e in zip(torch.autograd.grad(sum(g.sum() for g in got), inputs, allow_unused=True), wanted, strict=True):
        assert (g is None) == (e is None)
        if g is not None:
            _close(g, e, 1e-8)


@_having(lambda c: c.half)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision(contract: Contract, dtype: torch.dtype) -> None:
    for call in _calls(contract)[:1]:
        inputs, function = _function(contract, call)
        halves = [t.detach().to(dtype).requires_grad_() for t in inputs]
        expected = function(*[t.detach().double() for t in halves])
        got = function(*halves)
        for g, e in zip(got, expected, strict=True):
            assert not g.is_floating_point() or g.dtype == dtype
            _close(g.double(), e.double(), contract.half_tolerance)
        for grad in torch.autograd.grad(sum(g.float().sum() for g in got), halves, allow_unused=True):
            assert grad is None or torch.isfinite(grad).all()


@_having(lambda c: True)
def test_inputs_are_not_changed(contract: Contract) -> None:
    for call in _calls(contract):
        before = [a.clone() if isinstance(a, Tensor) else a for a in call.args]
        contract.block(*call.args, **call.kwargs)
        for a, b in zip(call.args, before, strict=True):
            if isinstance(a, Tensor):
                assert torch.equal(a, b) or (a.isnan() == b.isnan()).all()


def _each_bad_call(test: Callable[..., None]) -> Callable[..., None]:
    LAWS[test.__name__] = Law(
        test, lambda table: [(f"{c.name}-{i}", (c, bad)) for c in table for i, bad in enumerate(c.bad)]
    )
    return test


@_each_bad_call
def test_bad_input_is_refused_by_name(contract: Contract, bad: Bad, without_shape_checks: None) -> None:
    with pytest.raises(bad.error, match=bad.match):
        contract.block(*bad.args, **bad.kwargs)
