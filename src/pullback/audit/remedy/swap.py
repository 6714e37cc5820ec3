"""Let the functions of a file run changed code for a while.

The changed file is compiled, not executed; each function that lives gets the code object of its counterpart and, at
the end, its own again. Closures, defaults, methods, decorators and whoever holds the function stay what they are.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import linecache
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from pullback.audit.remedy.search import Candidate

__all__ = ["living_functions", "swapped"]

_numbers = itertools.count(1)


def living_functions() -> list[FunctionType]:
    """Return every function that lives, closures and methods included."""
    return [f for f in gc.get_objects() if type(f) is FunctionType]


@contextlib.contextmanager
def swapped(candidate: Candidate, functions: list[FunctionType]) -> Iterator[str | None]:
    """Run with a candidate's code in place of the user's; yields the name under which the changed file goes.

    Args:
        candidate: the changed file.
        functions: those that live (:func:`living_functions`).

    ``None`` is yielded where that cannot be done: no function of the file is alive, its text is not what was
    compiled, or the change reaches variables that a closure does not hold.
    """
    path = Path(candidate.file)
    name = str(path.with_name(f"{path.stem}~{next(_numbers)}{path.suffix}"))
    own = [f for f in functions if f.__code__.co_filename == candidate.file]
    pairs = _counterparts(own, candidate, name)
    if pairs is None:
        yield None
        return
    scope: dict[str, Any] = {}
    exec("\n".join(candidate.imports.values()), scope)
    undo: list[Any] = []
    lines = candidate.new.splitlines(keepends=True)
    linecache.cache[name] = (len(candidate.new), None, lines, name)
    try:
        for function, code in pairs:
            undo.append((function, function.__code__, function.__defaults__))
            function.__code__ = code
            for bound in candidate.imports:
                if bound not in function.__globals__:
                    function.__globals__[bound] = scope[bound]
                    undo.append((function.__globals__, bound, None))
        for function, _ in pairs:
            if function.__name__ in candidate.wrapped:
                _trampoline(function, _relaxed(_copy(function)), undo)
            if function.__name__ in candidate.unwrapped:
                for outer in functions:
                    if getattr(outer, "__wrapped__", None) is function:
                        _trampoline(outer, function, undo)
        yield name
    finally:
        for owner, first, second in reversed(undo):
            if isinstance(owner, dict):
                owner.pop(first, None)
            else:
                owner.__code__, owner.__defaults__ = first, second
        linecache.cache.pop(name, None)


def _counterparts(
    functions: list[FunctionType], candidate: Candidate, name: str
) -> list[tuple[FunctionType, CodeType]] | None:
    new = dict(_numbered(_codes(compile(candidate.new, name, "exec", dont_inherit=True))))
    by_line = _by_line(candidate.old, candidate.file)
    found = []
    for function in functions:
        code = function.__code__
        key = by_line.get((code.co_qualname, code.co_firstlineno))
        counterpart = new.get(key) if key is not None else None
        if counterpart is None:
            continue
        if counterpart.co_freevars != code.co_freevars:
            return None
        found.append((function, counterpart))
    return found or None


@lru_cache(maxsize=4)
def _by_line(text: str, file: str) -> dict[tuple[str, int], tuple[str, int]]:
    """The number of each function of a text by its name and first line."""
    codes = _numbered(_codes(compile(text, file, "exec", dont_inherit=True)))
    return {(code.co_qualname, code.co_firstlineno): key for key, code in codes}


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _numbered(codes: Iterator[CodeType]) -> Iterator[tuple[tuple[str, int], CodeType]]:
    """Codes by qualified name and its number among those of the same name."""
    seen: Counter[str] = Counter()
    for code in codes:
        yield (code.co_qualname, seen[code.co_qualname]), code
        seen[code.co_qualname] += 1


def _copy(function: FunctionType) -> FunctionType:
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _relaxed(function: FunctionType) -> Any:
    from pullback.relax import relaxed

    return relaxed(temperature=0.1)(function)


def _trampoline(function: FunctionType, target: Any, undo: list[Any]) -> None:
    """Make a function call another one instead, whatever variables its closure has."""
    key = f"_pullback_target_{next(_numbers)}"
    free = function.__code__.co_freevars
    held = f"    {' = '.join(free)} = None\n" if free else ""
    text = f"def outer():\n{held}    def inner(*args, **kwargs):\n        {', '.join(free) or None}\n"
    text += f"        return {key}(*args, **kwargs)\n    return inner\n"
    outer = next(c for c in compile(text, "<frozen pullback>", "exec").co_consts if isinstance(c, CodeType))
    inner = next(c for c in outer.co_consts if isinstance(c, CodeType))
    undo.append((function, function.__code__, function.__defaults__))
    function.__globals__[key] = target
    undo.append((function.__globals__, key, None))
    function.__code__ = inner
    function.__defaults__ = None
