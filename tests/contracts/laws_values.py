"""Laws of values: right, hard in the limit, the same for every dtype, size, layout and form of argument."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from pullback.core.errors import ConvergenceError
from tests.contracts.contract import DEVICE, Bad, Call, Contract
from tests.contracts.fuzz import fuzz
from tests.contracts.law import (
    LAYOUTS,
    NONDETERMINISM,
    calls,
    close,
    each_bad_call,
    function_of,
    gradients_of,
    having,
    same,
    samples,
    values_of,
)


@having(lambda c: c.reference is not None)
def test_equals_reference(contract: Contract) -> None:
    for call, plain in zip(calls(contract), samples(contract), strict=True):
        got = values_of(contract, contract.run(*call.args, **call.kwargs))
        expected = contract.reference(*plain.args, **plain.kwargs)  # type: ignore[misc]
        expected = (expected,) if isinstance(expected, Tensor) else tuple(expected)
        for g, e in zip(got, expected, strict=True):
            close(g, e, contract.tolerance)


@having(lambda c: c.hard is not None)
def test_tends_to_the_hard_operation(contract: Contract) -> None:
    for call, plain in zip(calls(contract), samples(contract), strict=True):
        got = values_of(contract, contract.run(*call.args, **{**call.kwargs, **contract.soft}))
        expected = contract.hard(*plain.args)  # type: ignore[misc]
        expected = (expected,) if isinstance(expected, Tensor) else tuple(expected)
        for g, e in zip(got, expected, strict=True):
            close(g, e.to(g.dtype), contract.hard_tolerance)


@having(lambda c: c.half)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision(contract: Contract, dtype: torch.dtype) -> None:
    """Values are right, and a gradient that float64 has and half can hold is there."""
    for call in calls(contract)[:1]:
        inputs, function = function_of(contract, call)
        halves = [t.detach().to(dtype).requires_grad_() for t in inputs]
        doubles = [t.detach().double().requires_grad_() for t in halves]
        expected = function(*doubles)
        got = function(*halves)
        for g, e in zip(got, expected, strict=True):
            assert not g.is_floating_point() or g.dtype == dtype
            close(g.double(), e.double(), contract.half_tolerance)
        for grad, wanted in zip(gradients_of(got, halves), gradients_of(expected, doubles), strict=True):
            assert (grad is None) == (wanted is None)
            if grad is not None:
                assert torch.isfinite(grad).all()
                # What is left of a gradient that cancels (of the sum of a softmax) is rounding.
                vanishing = max(torch.finfo(dtype).tiny, 1e-12)
                assert grad.any() or wanted.abs().max() < vanishing or not contract.gradcheck


_SIZES = (1e4, 1e8, math.inf)


@having(lambda c: c.large)
def test_large_inputs(contract: Contract) -> None:
    """Values equal those of float64 at the same numbers, gradients are finite: nothing overflows on the way."""
    halves = (torch.float16, torch.bfloat16) if contract.half else ()
    for dtype in (torch.float32, *halves):
        for size in sorted({min(size, contract.large_limit, torch.finfo(dtype).max) for size in _SIZES}):
            _compare_large(contract, dtype, size)


def _compare_large(contract: Contract, dtype: torch.dtype, size: float) -> None:
    inputs, function = function_of(contract, _enlarged(contract, calls(contract)[0], dtype, size))
    try:
        expected = function(*[t.detach().double() for t in inputs])
        got = function(*inputs)
    except ConvergenceError:  # says that there is no answer, instead of a wrong one
        return
    where = f"{dtype} of size {size:.3g}"
    tolerance = contract.large_tolerance if dtype == torch.float32 else contract.half_tolerance
    for g, e in zip(got, expected, strict=True):
        assert torch.isfinite(e).all(), where
        scale = float(e.detach().abs().max().clamp(1, torch.finfo(dtype).max)) if e.numel() else 1.0
        bounds = {"rtol": tolerance, "atol": tolerance * scale}
        torch.testing.assert_close(g, e.to(g.dtype), **bounds, msg=lambda message: f"{where}: {message}")
    for gradient in gradients_of([g.double() / max(1, g.numel()) for g in got], inputs):
        assert gradient is None or torch.isfinite(gradient).all(), where


def _enlarged(contract: Contract, call: Call, dtype: torch.dtype, size: float) -> Call:
    """The call in ``dtype``, the arguments that may be large with ``size`` as their largest entry."""
    args = list(call.args)
    for position, value in enumerate(args):
        if isinstance(value, Tensor) and value.is_floating_point():
            if position in contract.large:
                value = (value / value.abs().max() * size).clamp(-size, size)
            args[position] = value.to(dtype)
    return Call(tuple(args), call.kwargs)


@having(lambda c: c.batched)
def test_result_has_the_dtype_and_the_device_of_its_input(contract: Contract) -> None:
    for call in calls(contract)[:1]:
        inputs, function = function_of(contract, call)
        for dtype in (torch.float32, torch.float64):
            for value in function(*[t.detach().to(dtype) for t in inputs]):
                assert value.device.type == DEVICE.type
                assert value.dtype == dtype or not value.is_floating_point()


@having(lambda c: True)
def test_inputs_are_not_changed(contract: Contract) -> None:
    for call in calls(contract):
        tensors = [a for a in (*call.args, *call.kwargs.values()) if isinstance(a, Tensor)]
        before = [t.clone() for t in tensors]
        contract.run(*call.args, **call.kwargs)
        assert all(same(t, b) for t, b in zip(tensors, before, strict=True))


@having(lambda c: c.layouts)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_result_does_not_depend_on_memory_layout(contract: Contract, layout: str) -> None:
    for call in calls(contract)[:2]:
        args = [LAYOUTS[layout](a) if isinstance(a, Tensor) else a for a in call.args]
        _compare_layouts(contract, call, Call(tuple(args), call.kwargs))


@having(lambda c: c.layouts and c.batched)
def test_result_does_not_depend_on_expansion(contract: Contract) -> None:
    first, *rest = calls(contract)[0].args
    kwargs = calls(contract)[0].kwargs
    expanded = first.expand(3, *first.shape)
    _compare_layouts(contract, Call((expanded.contiguous(), *rest), kwargs), Call((expanded, *rest), kwargs))


@having(lambda c: c.layouts and c.gradcheck)
def test_cotangents_may_be_negated_lazily(contract: Contract) -> None:
    inputs, function = function_of(contract, calls(contract)[0])
    values = [v for v in function(*inputs) if v.requires_grad]
    if not values:
        return
    ones = [torch.ones_like(v) for v in values]
    lazy = [torch._neg_view(-c) for c in ones]
    plain, other = (torch.autograd.grad(values, inputs, c, retain_graph=True, allow_unused=True) for c in (ones, lazy))
    for g, e in zip(other, plain, strict=True):
        assert (g is None) == (e is None)
        if e is not None:
            close(g, e, 1e-9)


def _compare_layouts(contract: Contract, plain: Call, other: Call) -> None:
    results = []
    for call in (plain, other):
        inputs = [a.requires_grad_() for a in _detached(call) if isinstance(a, Tensor) and a.is_floating_point()]
        tensors = iter(inputs)
        args = [next(tensors) if isinstance(a, Tensor) and a.is_floating_point() else a for a in call.args]
        values = values_of(contract, contract.run(*args, **call.kwargs))
        gradients = gradients_of([v for v in values if v.is_floating_point()], inputs)
        results.append((values, gradients))
    (expected, slopes), (got, other_slopes) = results
    for g, e in zip(got, expected, strict=True):
        close(g, e, 1e-9)
    for g, e in zip(other_slopes, slopes, strict=True):
        assert (g is None) == (e is None)
        if e is not None:
            close(g, e, 1e-7)


def _detached(call: Call) -> list[Any]:
    """The arguments as fresh views with the same strides."""
    return [a.detach() if isinstance(a, Tensor) else a for a in call.args]


@having(lambda c: c.scalars)
def test_scalars_may_be_tensors_with_a_gradient(contract: Contract, without_shape_checks: None) -> None:
    for call in calls(contract)[:1]:
        for name, number in contract.scalars.items():
            words = {k: v for k, v in call.kwargs.items() if k != name}

            def function(value: Any, name: str = name, words: Any = words, call: Call = call) -> tuple[Tensor, ...]:
                values = values_of(contract, contract.run(*call.args, **{name: value}, **words))
                return tuple(v for v in values if v.is_floating_point())

            scalar = torch.tensor(number, dtype=torch.float64, device=DEVICE, requires_grad=True)
            for g, e in zip(function(scalar), function(number), strict=True):
                close(g, e, 1e-12)
            assert gradcheck(function, (scalar,), nondet_tol=NONDETERMINISM)
            with pytest.raises((TypeError, ValueError), match=name):
                function(torch.full((2,), number, dtype=torch.float64))


@having(lambda c: True)
def test_distorted_calls_are_refused_by_name_or_right(contract: Contract, without_shape_checks: None) -> None:
    """A hundred of the calls of fuzz.py; a slow test makes a hundred thousand."""
    faults = fuzz([contract], calls=100, cpu_seconds=1, patience=1)
    assert not faults, "\n".join(map(str, faults))


@each_bad_call
def test_bad_input_is_refused_by_name(contract: Any, bad: Bad, without_shape_checks: None) -> None:
    with pytest.raises(bad.error, match=bad.match):
        contract.run(*bad.args, **bad.kwargs)
