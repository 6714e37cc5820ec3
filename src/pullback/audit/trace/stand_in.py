"""Call torch's functions from a frame that looks like the user's.

A warning names the frame that called the function, and is shown once for each of them; which filters apply goes by the
module of that frame. Under a function mode that frame would be the tracer's, for every line of the user.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import CellType, CodeType, FrameType, FunctionType
from typing import Any

import torch

__all__ = ["NAME", "stand_in"]

NAME = "<traced call>"
"""Name of the frames, by which tracebacks leave them out."""
DEPTH = 4
"""Frames that are imitated around a Python function; torch warns with ``stacklevel`` up to 5."""


def stand_in(frame: FrameType, func: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls ``func`` from a frame with the file, line and globals of its caller.

    Args:
        frame: the one that asked torch's dispatch of overrides for ``func``.
        func: a function of torch.
    """
    if frame.f_code is not _DISPATCH or frame.f_back is None:
        return _imitating(frame, func)
    # A Python function: behind the dispatch lies its first, overridden, call; it may warn in the name of outer frames.
    caller = frame.f_back.f_back
    callers: list[FrameType] = []
    while caller is not None and len(callers) < DEPTH:
        callers.append(caller)
        caller = caller.f_back
    for caller in callers:
        func = _imitating(caller, func)
    return func


def _imitating(frame: FrameType, func: Callable[..., Any]) -> Callable[..., Any]:
    code = _code(frame.f_code.co_filename, frame.f_lineno or 1)
    return FunctionType(code, frame.f_globals, NAME, None, (CellType(func),))


_DISPATCH = torch.overrides.handle_torch_function.__code__


def _template(func: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any: return func(*args, **kwargs)  # fmt: skip

    return call


_CODE = _template(len).__code__


@cache
def _code(filename: str, line: int) -> CodeType:
    return _CODE.replace(co_filename=filename, co_firstlineno=line, co_name=NAME, co_qualname=NAME)
