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
from itertools import compress, repeat
from operator import attrgetter, eq, is_
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from pullback.audit.remedy.search import Candidate, compiled

__all__ = ["LivingFunctions", "swapped"]

_numbers = itertools.count(1)


class LivingFunctions:
    """Every function that lives, closures and methods included."""

    def __init__(self) -> None:
        living = gc.get_objects()  # millions where many libraries are loaded: no loop of Python over them
        self._all: list[Any] = list(compress(living, map(is_, map(type, living), repeat(FunctionType))))
        self._by_file: dict[str, list[FunctionType]] = {}

    def of(self, file: str) -> list[FunctionType]:
        """Return those of a file."""
        if file not in self._by_file:
            files = map(attrgetter("__code__.co_filename"), self._all)
            self._by_file[file] = list(compress(self._all, map(eq, files, repeat(file))))
        return self._by_file[file]

    def around(self, function: FunctionType) -> list[FunctionType]:
        """Return those that say that they wrap a function."""
        return [f for f in self._all if getattr(f, "__wrapped__", None) is function]


@contextlib.contextmanager
def swapped(candidate: Candidate, living: LivingFunctions) -> Iterator[str | None]:
    """Run with a candidate's code in place of the user's; yields the name under which the changed file goes.

    Args:
        candidate: the changed file.
        living: the functions that live.

    ``None`` is yielded where that cannot be done: no function of the file is alive, its text is not what was
    compiled, or the change reaches variables that a closure does not hold.
    """
    path = Path(candidate.file)
    name = str(path.with_name(f"{path.stem}~{next(_numbers)}{path.suffix}"))
    pairs = _counterparts(living.of(candidate.file), candidate, name)
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
                for outer in living.around(function):
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
    new = dict(_numbered(_codes(compiled(candidate.new, candidate.file))))
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
        found.append((function, _under(counterpart, name)))
    return found or None


@lru_cache(maxsize=4)
def _by_line(text: str, file: str) -> dict[tuple[str, int], tuple[str, int]]:
    """The number of each function of a text by its name and first line."""
    codes = _numbered(_codes(compiled(text, file)))
    return {(code.co_qualname, code.co_firstlineno): key for key, code in codes}


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _under(code: CodeType, name: str) -> CodeType:
    """A code object, and those within it, under another file name."""
    constants = tuple(_under(c, name) if isinstance(c, CodeType) else c for c in code.co_consts)
    return code.replace(co_filename=name, co_consts=constants)


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
