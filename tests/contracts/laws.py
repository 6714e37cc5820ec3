"""The laws: tests that every entry of a table goes through. A table is ``CONTRACTS`` of ``<family>/<topic>.py``."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from pullback.core.errors import ConvergenceError
from tests.contracts.contract import Bad, Call, Contract, HigherOrder, Learner, Module


@dataclass(frozen=True)
class Law:
    """A test and the entries that it holds for: ``cases`` picks (name, arguments) from the entries of a table."""

    test: Callable[..., None]
    cases: Callable[[Sequence[Any]], list[tuple[str, tuple[Any, ...]]]]


LAWS: dict[str, Law] = {}


def _having(condition: Callable[[Any], bool], kind: type = Contract) -> Callable[[Callable[..., None]], Any]:
    """Make a test a law of the entries of a kind that ``condition`` picks."""

    def register(test: Callable[..., None]) -> Callable[..., None]:
        def cases(table: Sequence[Any]) -> list[tuple[str, tuple[Any, ...]]]:
            return [(c.name, (c,)) for c in table if isinstance(c, kind) and condition(c)]

        LAWS[test.__name__] = Law(test, cases)
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
        return _tensors(contract, contract.run(*rebuild(*tensors), **call.kwargs))

    return inputs, function


def _close(got: Any, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, check_dtype=False, equal_nan=True)


@_having(lambda c: c.reference is not None)
def test_equals_reference(contract: Contract) -> None:
    for call in _calls(contract):
        got = _tensors(contract, contract.run(*call.args, **call.kwargs))
        expected = contract.reference(*call.args, **call.kwargs)  # type: ignore[misc]
        expected = (expected,) if isinstance(expected, Tensor) else tuple(expected)
        for g, e in zip(got, expected, strict=True):
            _close(g, e, contract.tolerance)


@_having(lambda c: c.hard is not None)
def test_tends_to_the_hard_operation(contract: Contract) -> None:
    for call in _calls(contract):
        got = _tensors(contract, contract.run(*call.args, **{**call.kwargs, **contract.soft}))
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
    """Values are right, and a gradient that float64 has and half can hold is there."""
    for call in _calls(contract)[:1]:
        inputs, function = _function(contract, call)
        halves = [t.detach().to(dtype).requires_grad_() for t in inputs]
        doubles = [t.detach().double().requires_grad_() for t in halves]
        expected = function(*doubles)
        got = function(*halves)
        for g, e in zip(got, expected, strict=True):
            assert not g.is_floating_point() or g.dtype == dtype
            _close(g.double(), e.double(), contract.half_tolerance)
        for grad, wanted in zip(_gradients(got, halves), _gradients(expected, doubles), strict=True):
            assert (grad is None) == (wanted is None)
            if grad is not None:
                assert torch.isfinite(grad).all()
                # What is left of a gradient that cancels (of the sum of a softmax) is rounding.
                vanishing = max(torch.finfo(dtype).tiny, 1e-12)
                assert grad.any() or wanted.abs().max() < vanishing or not contract.gradcheck


_SIZES = {"1e4": 1e4, "1e8": 1e8, "largest": float("inf")}


@_having(lambda c: c.large)
@pytest.mark.parametrize("size", _SIZES.values(), ids=_SIZES)
def test_large_inputs(contract: Contract, size: float) -> None:
    """Values equal those of float64 at the same numbers, gradients are finite: nothing overflows on the way."""
    halves = (torch.float16, torch.bfloat16) if contract.half else ()
    for dtype in (torch.float32, *halves):
        inputs, function = _function(contract, _enlarged(contract, _calls(contract)[0], dtype, size))
        try:
            expected = function(*[t.detach().double() for t in inputs])
            got = function(*inputs)
        except ConvergenceError:  # says that there is no answer, instead of a wrong one
            continue
        tolerance = contract.large_tolerance if dtype == torch.float32 else contract.half_tolerance
        for g, e in zip(got, expected, strict=True):
            assert torch.isfinite(e).all()
            scale = float(e.abs().max().clamp(1, torch.finfo(dtype).max)) if e.numel() else 1.0
            torch.testing.assert_close(g, e.to(g.dtype), rtol=tolerance, atol=tolerance * scale)
        for gradient in _gradients([g.double() / max(1, g.numel()) for g in got], inputs):
            assert gradient is None or torch.isfinite(gradient).all()


def _enlarged(contract: Contract, call: Call, dtype: torch.dtype, size: float) -> Call:
    """The call in ``dtype``, the arguments that may be large with ``size`` as their largest entry."""
    args = list(call.args)
    for position, value in enumerate(args):
        if isinstance(value, Tensor) and value.is_floating_point():
            if position in contract.large:
                largest = min(size, contract.large_limit, torch.finfo(dtype).max)
                value = (value / value.abs().max() * largest).clamp(-largest, largest)
            args[position] = value.to(dtype)
    return Call(tuple(args), call.kwargs)


def _gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    live = [o for o in outputs if o.requires_grad]
    if not live:
        return [None] * len(inputs)
    return torch.autograd.grad(sum(o.sum() for o in live), inputs, allow_unused=True)


def _same(tensor: Tensor, before: Tensor) -> bool:
    """Equal to the bit, NaN where NaN was."""
    return tensor.shape == before.shape and bool(((tensor == before) | (tensor.isnan() & before.isnan())).all())


@_having(lambda c: True)
def test_inputs_are_not_changed(contract: Contract) -> None:
    for call in _calls(contract):
        tensors = [a for a in (*call.args, *call.kwargs.values()) if isinstance(a, Tensor)]
        before = [t.clone() for t in tensors]
        contract.run(*call.args, **call.kwargs)
        assert all(_same(t, b) for t, b in zip(tensors, before, strict=True))


def _every_second(t: Tensor) -> Tensor:
    wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), 7, dtype=t.dtype)
    wide[..., ::2] = t
    return wide[..., ::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.mT.contiguous().mT if t.ndim > 1 else t,
    "every second": lambda t: _every_second(t) if t.ndim else t,
    "negated lazily": lambda t: torch._neg_view(-t) if t.is_floating_point() else t,  # as `x.conj().imag` is
}


@_having(lambda c: c.layouts)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_result_does_not_depend_on_memory_layout(contract: Contract, layout: str) -> None:
    for call in _calls(contract)[:2]:
        args = [LAYOUTS[layout](a) if isinstance(a, Tensor) else a for a in call.args]
        _compare_layouts(contract, call, Call(tuple(args), call.kwargs))


@_having(lambda c: c.layouts and c.batched)
def test_result_does_not_depend_on_expansion(contract: Contract) -> None:
    first, *rest = _calls(contract)[0].args
    kwargs = _calls(contract)[0].kwargs
    expanded = first.expand(3, *first.shape)
    _compare_layouts(contract, Call((expanded.contiguous(), *rest), kwargs), Call((expanded, *rest), kwargs))


def _compare_layouts(contract: Contract, plain: Call, other: Call) -> None:
    results = []
    for call in (plain, other):
        inputs = [a.requires_grad_() for a in _detached(call) if isinstance(a, Tensor) and a.is_floating_point()]
        tensors = iter(inputs)
        args = [next(tensors) if isinstance(a, Tensor) and a.is_floating_point() else a for a in call.args]
        values = _tensors(contract, contract.run(*args, **call.kwargs))
        gradients = _gradients([v for v in values if v.is_floating_point()], inputs)
        results.append((values, gradients))
    (expected, slopes), (got, other_slopes) = results
    for g, e in zip(got, expected, strict=True):
        _close(g, e, 1e-9)
    for g, e in zip(other_slopes, slopes, strict=True):
        assert (g is None) == (e is None)
        if e is not None:
            _close(g, e, 1e-7)


def _detached(call: Call) -> list[Any]:
    """The arguments as fresh views with the same strides."""
    return [a.detach() if isinstance(a, Tensor) else a for a in call.args]


@_having(lambda c: c.scalars)
def test_scalars_may_be_tensors_with_a_gradient(contract: Contract, without_shape_checks: None) -> None:
    for call in _calls(contract)[:1]:
        for name, number in contract.scalars.items():
            words = {k: v for k, v in call.kwargs.items() if k != name}

            def function(value: Any, name: str = name, words: Any = words, call: Call = call) -> tuple[Tensor, ...]:
                values = _tensors(contract, contract.run(*call.args, **{name: value}, **words))
                return tuple(v for v in values if v.is_floating_point())

            scalar = torch.tensor(number, dtype=torch.float64, requires_grad=True)
            for g, e in zip(function(scalar), function(number), strict=True):
                _close(g, e, 1e-12)
            assert gradcheck(function, (scalar,), check_batched_grad=False)
            with pytest.raises((TypeError, ValueError), match=name):
                function(torch.full((2,), number, dtype=torch.float64))


def _each_bad_call(test: Callable[..., None]) -> Callable[..., None]:
    LAWS[test.__name__] = Law(
        test, lambda table: [(f"{c.name}-{i}", (c, bad)) for c in table for i, bad in enumerate(c.bad)]
    )
    return test


@_each_bad_call
def test_bad_input_is_refused_by_name(contract: Any, bad: Bad, without_shape_checks: None) -> None:
    with pytest.raises(bad.error, match=bad.match):
        contract.run(*bad.args, **bad.kwargs)


class _Given(nn.Module):
    """A function of a user as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


class _Mine(Exception):
    """An error that only the user's function knows."""


def _raiser(*args: Any, **kwargs: Any) -> Any:
    raise _Mine


@_having(lambda c: True, HigherOrder)
def test_a_given_function_may_be_any_callable(contract: HigherOrder) -> None:
    call = _calls(contract)[0]
    expected = _tensors(contract, contract.run(*call.args, **call.kwargs))
    for form in (functools.partial(contract.given), _Given(contract.given), _Given(contract.given).forward):
        for g, e in zip(_tensors(contract, contract.block(form, *call.args, **call.kwargs)), expected, strict=True):
            _close(g, e, 1e-12)


@_having(lambda c: True, HigherOrder)
def test_an_error_of_a_given_function_reaches_the_caller(contract: HigherOrder, without_shape_checks: None) -> None:
    call = _calls(contract)[0]
    with pytest.raises(_Mine):
        contract.block(_raiser, *call.args, **call.kwargs)
    with pytest.raises(TypeError, match=contract.argument):
        contract.block(3, *call.args, **call.kwargs)


@_having(lambda c: True, Module)
def test_a_module_is_its_generator_its_state_and_its_dtype(contract: Module) -> None:
    call = _calls(contract)[0]
    module, twin, other = contract.new(), contract.new(), contract.new(seed=1)
    for (name, p), (_, q) in zip(module.named_parameters(), twin.named_parameters(), strict=True):
        assert torch.equal(p, q), f"the same generator gives another {name}"
    other.load_state_dict(module.state_dict())
    results = [_tensors(contract, contract.block(m.double(), *call.args, **call.kwargs)) for m in (module, other)]
    for g, e in zip(*results, strict=True):
        assert g.dtype == torch.float64 or not g.is_floating_point()
        assert torch.equal(g, e)


@_having(lambda c: True, Module)
def test_every_parameter_of_a_module_learns(contract: Module) -> None:
    call = _calls(contract)[0]
    module = contract.new().double()
    total = sum(o.square().sum() for o in _tensors(contract, contract.block(module, *call.args, **call.kwargs)))
    total.backward()
    for name, p in module.named_parameters():
        assert (p.grad is None) == (name in contract.idle), name
        assert p.grad is None or (torch.isfinite(p.grad).all() and p.grad.any()), name


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@_having(lambda c: True, Learner)
def test_a_learner_is_its_generator_and_changes_nothing(contract: Learner) -> None:
    data, _ = contract.planted(_generator())
    before, state = copy.deepcopy(data), torch.get_rng_state()
    answers = [contract.answer(contract.learn(data, _generator())) for _ in range(2)]
    assert torch.equal(*answers)
    assert torch.equal(torch.get_rng_state(), state), "draws from the global generator"
    flat, flat_before = (torch.utils._pytree.tree_leaves(d) for d in (data, before))
    assert all(_same(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(flat, flat_before, strict=True))


@_having(lambda c: c.permute is not None, Learner)
def test_a_learner_does_not_see_the_order_of_samples(contract: Learner) -> None:
    data, _ = contract.planted(_generator())
    count = len(torch.utils._pytree.tree_leaves(data)[0])
    again = contract.permute(data, torch.randperm(count, generator=_generator(1)))  # type: ignore[misc]
    answers = [contract.answer(contract.learn(d, _generator())) for d in (data, again)]
    _close(answers[1], answers[0], contract.tolerance)


@_having(lambda c: True, Learner)
def test_a_learner_finds_a_planted_answer(contract: Learner) -> None:
    for seed in range(2):
        data, truth = contract.planted(_generator(seed))
        assert contract.recovers(contract.answer(contract.learn(data, _generator(seed))), truth)


@_having(lambda c: True, Learner)
def test_a_learner_ends_with_finite_numbers_or_says_why_not(contract: Learner) -> None:
    for data in contract.sets(_generator()):
        try:
            answer = contract.answer(contract.learn(data, _generator()))
        except ConvergenceError:
            continue
        assert torch.isfinite(answer).all()
