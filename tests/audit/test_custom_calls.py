"""Custom autograd Functions are known at the line that calls them, however they are written."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import Function

from pullback import audit
from pullback.audit.trace.custom import Applied, function_call

SEEN: list[Applied | None] = []


def _look() -> None:
    SEEN.append(function_call(sys._getframe(1)))


def _calls(function: Any, *args: Any) -> Applied | None:
    """Apply a Function whose forward looks; return what it saw first."""
    SEEN.clear()
    function.apply(*args)
    return SEEN[0]


class Combined(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, power: int = 2, *more: float) -> Tensor:
        ctx.power = power
        _look()
        return x**power

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        _look()
        return g, None, *[None] * 2


class Split(Function):
    @staticmethod
    def forward(x: Tensor, power: int) -> Tensor:
        def within(y: Tensor) -> Tensor:
            _look()
            return y**power

        return within(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _look()


def _scaled(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(method)
    def wrapper(ctx: Any, *args: Any) -> Tensor:
        _look()
        return method(ctx, *args)

    return wrapper


class Decorated(Function):
    @staticmethod
    @_scaled
    def forward(ctx: Any, x: Tensor) -> Tensor:
        _look()
        return x * 3

    @staticmethod
    @_scaled
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 3


def _made(factor: float) -> Any:
    class Made(Function):
        @staticmethod
        def forward(x: Tensor) -> Tensor:
            _look()
            return x * factor

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None: ...

    return Made


class Base(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        _look()
        return x * 2


class First(Base): ...


class Second(Base): ...


class SplitBase(Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        _look()
        return x * 2

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        _look()


class SplitFirst(SplitBase): ...


def _caller(applied: Applied) -> FrameType:
    """Return the first frame around a call that is not torch's."""
    walk = applied.frame.f_back
    while walk is not None and walk.f_code.co_filename != __file__:
        walk = walk.f_back
    assert walk is not None
    return walk


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (Combined, (torch.ones(2),)),
        (Combined, (torch.ones(2), 3, 0.5, 0.25)),
        (Split, (torch.ones(2), 3)),
        (Decorated, (torch.ones(2),)),
        (First, (torch.ones(2),)),
        (Second, (torch.ones(2),)),
        (_made(2.0), (torch.ones(2),)),
        (_made(3.0), (torch.ones(2),)),
    ],
)
def test_a_call_knows_its_class_its_arguments_and_where_it_was_made(function: Any, args: Any) -> None:
    applied = _calls(function, *args)
    assert applied is not None
    assert applied.function is function
    given = applied.args()
    assert given is not None
    assert given[0] is args[0]
    assert given[1 : len(args)] == args[1:]
    assert _caller(applied).f_code is _calls.__code__


def test_every_frame_of_a_call_tells_the_same() -> None:
    for function, args in ((Split, (torch.ones(2), 2)), (Decorated, (torch.ones(2),))):
        _calls(function, *args)
        assert [s and s.function for s in SEEN] == [function, function]
        assert [s and s.args() for s in SEEN] == [args, args]
        assert all(_caller(s).f_code is _calls.__code__ for s in SEEN if s is not None)


def test_a_backward_and_an_ordinary_call_are_no_calls_of_apply() -> None:
    x = torch.ones(2, requires_grad=True)
    for function in (Combined, Decorated):
        out = function.apply(x) if function is Decorated else function.apply(x, 2, 0.5)
        SEEN.clear()
        out.sum().backward()
        assert SEEN == [None]
    SEEN.clear()
    with torch.no_grad():
        Base.forward(None, x)
        SplitBase.forward(x)
        First.apply(SplitBase.forward(x))
    assert [s and s.function for s in SEEN] == [None, None, None, First]


def test_classes_that_share_a_forward_without_context_are_not_told_apart_by_guessing() -> None:
    applied = _calls(SplitFirst, torch.ones(2))
    assert applied is not None
    assert applied.function is None
    assert applied.args() is None
    assert SEEN[1] is not None
    assert SEEN[1].function is SplitFirst, "its setup_context is given one"


def test_of_nested_calls_the_innermost_speaks() -> None:
    class Outer(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return Base.apply(x)

    applied = _calls(Outer, torch.ones(2))
    assert applied is not None
    assert applied.function is Base
    assert _caller(applied).f_code is Outer.forward.__code__


def test_a_wrong_backward_is_named_at_its_call() -> None:
    class Cubed(Function):
        @staticmethod
        def forward(x: Tensor, scale: float) -> Tensor:
            return scale * x**3

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
            ctx.save_for_backward(inputs[0])
            ctx.scale = inputs[1]

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Any:
            (x,) = ctx.saved_tensors
            return g * ctx.scale * 2 * x**2, None  # the factor should be 3

    cubed = Cubed.apply  # bound before any trace

    def loss(w: Tensor) -> Tensor:
        return cubed(w, 0.5).sum()

    report = audit(loss, torch.tensor([1.0, -2.0, 3.0], requires_grad=True))
    found = [f for f in report.findings if f.code == "biased.custom"]
    assert [f.source.strip() for f in found] == ["return cubed(w, 0.5).sum()"]


class _Gram(Function):
    """Several operations forward."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        x = x / scale
        gram = x @ x.mT
        return gram * scale.square(), gram

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor, cotangent_scaled: Tensor) -> tuple[Tensor, None]:
        x, scale = ctx.saved_tensors
        whole = cotangent + cotangent_scaled / scale.square()
        return (whole + whole.mT) @ x, None


def test_what_follows_a_function_of_several_operations_is_blamed_for_its_own_cut() -> None:
    def joined(x: Tensor) -> Tensor:
        gram, _ = _Gram.apply(x, torch.tensor(2.0))
        return (gram > 1).to(x.dtype).sum()

    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    (finding,) = audit(joined, x).findings
    assert (finding.code, finding.operation, finding.source.strip()) == (
        "cut.comparison",
        "gt",
        "return (gram > 1).to(x.dtype).sum()",
    )
