"""Calls of custom autograd Functions: which one a frame runs under, and copies that let it be repeated alone.

``Function.apply`` has a frame of its own in some releases of torch only. In all of them the Function's static methods
have one: their code tells the class, and the frame around them is where ``apply`` was called.
"""

from __future__ import annotations

import dis
import inspect
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import CodeType, FrameType
from typing import Any

from torch import Tensor
from torch.autograd import Function

from pullback.audit.trace.private import function_of, is_wrapped
from pullback.audit.trace.sites import Site, is_user_frame

__all__ = ["Applied", "CustomCall", "copied", "function_call"]

MOST_ELEMENTS = 100_000


@dataclass
class CustomCall:
    """A call of ``function.apply`` with detached copies of its arguments."""

    function: Any
    args: tuple[Any, ...]
    site: Site


def copied(args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Return the arguments with tensors copied, ``None`` if they are too large to keep."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    if sum(t.numel() for t in tensors) > MOST_ELEMENTS:
        return None
    if any(is_wrapped(t) for t in tensors):
        return None
    return tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args)


@dataclass(frozen=True)
class Applied:
    """A call of ``apply`` under way.

    Attributes:
        frame: the outermost frame of the static method that ``apply`` called.
        function: the class; ``None`` if several classes share a method that is given no context.
        method: ``"forward"``, ``"setup_context"``, ``"vmap"`` or ``"jvp"``.
    """

    frame: FrameType
    function: Any
    method: str

    def args(self) -> tuple[Any, ...] | None:
        """Return the arguments of ``apply`` as the method holds them now, ``None`` where it does not."""
        given = _positional(self.frame)
        if given is None or self.function is None or self.method not in ("forward", "setup_context"):
            return None
        if self.method == "setup_context":
            return tuple(given[1]) if len(given) > 1 else None
        return given[1:] if _takes_context(self.function) else given


def function_call(frame: FrameType) -> Applied | None:
    """Return the innermost call of a custom Function that ``frame`` runs under, if any."""
    walk: FrameType | None = frame
    while walk is not None:
        code = walk.f_code
        known = _methods.get(id(code))
        if known is None:
            known = _learn(code)
        if known[1]:
            applied = _applied(walk, known[1])
            if applied is None:  # a class that was made after its code was first seen, with a closure of its own
                applied = _applied(walk, _learn(code)[1])
            if applied is not None:
                return applied
        walk = walk.f_back
    return None


_Method = tuple["weakref.ref[type[Function]]", str]
_methods: dict[int, tuple[CodeType, list[_Method]]] = {}
"""By id of the code, which is kept so that no other one gets its id: the classes and methods that run it."""


def _learn(code: CodeType) -> tuple[CodeType, list[_Method]]:
    found: list[_Method] = []
    for function in _subclasses(Function):
        for method in ("forward", "setup_context", "vmap", "jvp"):  # backward is not run by apply
            if any(getattr(layer, "__code__", None) is code for layer in _layers(function, method)):
                found.append((weakref.ref(function), method))
    _methods[id(code)] = (code, found)
    return _methods[id(code)]


def _subclasses(function: type[Function]) -> Iterator[type[Function]]:
    for sub in function.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _layers(function: type[Function], method: str) -> list[Any]:
    """Return a static method and what its decorators wrap, the outermost first."""
    layers: list[Any] = []
    layer = getattr(function, method)
    while layer is not None and layer not in layers:
        layers.append(layer)
        layer = getattr(layer, "__wrapped__", None)
    return layers


def _applied(frame: FrameType, methods: list[_Method]) -> Applied | None:
    fitting: list[tuple[type[Function], str, list[Any]]] = []
    for reference, method in methods:
        function = reference()
        if function is None:
            continue
        layers = _layers(function, method)
        if any(_runs(frame, layer) for layer in layers) and _called_by_apply(frame, function, method):
            fitting.append((function, method, layers))
    if not fitting:
        return None
    function, method, layers = fitting[0]
    outermost = frame
    walk: FrameType | None = frame
    while walk is not None and not _runs(walk, layers[0]):
        walk = walk.f_back
    if walk is not None:
        outermost = walk
    caller = outermost.f_back
    if caller is not None and is_user_frame(caller) and _calls(caller.f_code, caller.f_lasti, method):
        return None
    if len({f for f, _, _ in fitting}) == 1:
        return Applied(outermost, function, method)
    of_context = function_of(_first(frame))
    return Applied(outermost, of_context if any(f is of_context for f, _, _ in fitting) else None, method)


def _runs(frame: FrameType, function: Any) -> bool:
    """Whether a frame runs this function, and not another one of the same code, as a decorator makes many."""
    code = frame.f_code
    if getattr(function, "__code__", None) is not code:
        return False
    if not code.co_freevars:
        return True
    values = frame.f_locals
    for name, cell in zip(code.co_freevars, function.__closure__, strict=True):
        try:
            if values.get(name) is not cell.cell_contents:
                return False
        except ValueError:  # an empty cell
            if name in values:
                return False
    return True


def _takes_context(function: type[Function]) -> bool:
    """Whether the forward is given the context, as it is where there is no ``setup_context``."""
    return function.setup_context is Function.setup_context


def _called_by_apply(frame: FrameType, function: type[Function], method: str) -> bool:
    """Whether a method was given what ``apply`` gives it: ``F.forward(None, x)`` is an ordinary call."""
    if method == "vmap" or (method == "forward" and not _takes_context(function)):
        return True
    return function_of(_first(frame)) is not None


@cache
def _calls(code: CodeType, instruction: int, name: str) -> bool:
    """Whether the call that ``code`` is at is written ``something.name(...)``: it need not go through ``apply``."""
    line, _, column, _ = list(code.co_positions())[instruction // 2]
    return any(
        each.opname in ("LOAD_METHOD", "LOAD_ATTR", "LOAD_SUPER_ATTR")
        and each.argval == name
        and each.positions is not None
        and (each.positions.lineno, each.positions.col_offset) == (line, column)
        for each in dis.get_instructions(code)
    )


def _first(frame: FrameType) -> Any:
    """Return the first positional argument of a frame, where its context is."""
    given = _positional(frame)
    return given[0] if given else None


def _positional(frame: FrameType) -> tuple[Any, ...] | None:
    """Return the positional arguments of a frame as its variables hold them, ``None`` if one was deleted."""
    code, values = frame.f_code, frame.f_locals
    names = code.co_varnames[: code.co_argcount]
    if any(name not in values for name in names):
        return None
    rest: tuple[Any, ...] = ()
    if code.co_flags & inspect.CO_VARARGS:
        rest = values.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount], ())
    return (*(values[name] for name in names), *rest)
