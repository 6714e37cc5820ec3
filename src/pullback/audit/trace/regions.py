"""Where gradients were switched off: the ``with torch.no_grad():``, the decorator, or the call of set_grad_enabled."""

from __future__ import annotations

import functools
import linecache
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

from pullback.audit.trace.sites import Site, locate

__all__ = ["Regions"]

_WORDS = ("no_grad", "inference_mode", "set_grad_enabled")


class Regions:
    """Numbers the stretches of a run without gradients, from 1, and knows the line that began each.

    Args:
        libraries: name lines inside installed libraries instead of the user's line that called them.
    """

    def __init__(self, libraries: bool) -> None:
        self.libraries = libraries
        self.opened: list[Site] = []

    @property
    def current(self) -> int:
        """Number of the stretch that began last; 0 before the first."""
        return len(self.opened)

    def site(self, number: int) -> Site | None:
        """Return the line that began a stretch."""
        return self.opened[number - 1] if number else None

    def enter(self) -> None:
        """Watch from now on."""
        self._real: dict[tuple[type, str], Callable[..., Any]] = {
            (torch.no_grad, "__enter__"): torch.no_grad.__enter__,
            (torch.inference_mode, "__enter__"): torch.inference_mode.__enter__,
            (torch.set_grad_enabled, "__init__"): torch.set_grad_enabled.__init__,
        }
        for (owner, name), real in self._real.items():
            setattr(owner, name, self._watched(real))

    def leave(self) -> None:
        """Put torch's own methods back."""
        for (owner, name), real in self._real.items():
            setattr(owner, name, real)

    def _watched(self, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def method(*args: Any) -> Any:
            before = torch.is_grad_enabled()
            result = real(*args)
            if before and not torch.is_grad_enabled():
                self.opened.append(self._opening(sys._getframe(1)))
            return result

        return method

    def _opening(self, frame: FrameType) -> Site:
        """Return the place of a decorator if one was at work, else the line of the block or the call."""
        walk: FrameType | None = frame
        for _ in range(3):
            if walk is None:
                break
            if walk.f_code.co_name in ("decorate_context", "generator_context"):
                code = getattr(walk.f_locals.get("func"), "__code__", None)
                if code is not None:
                    return Site(code, -2, _decorator_line(code), None)
            walk = walk.f_back
        return locate(frame, self.libraries)


@functools.cache
def _decorator_line(code: Any) -> int:
    """Return the line of the decorator that switches gradients off; the first line of the function without one."""
    first = int(code.co_firstlineno)
    for line in range(first, first + 16):
        text = linecache.getline(code.co_filename, line)
        if not text or text.lstrip().startswith(("def ", "async def ", "class ")):
            break
        if any(word in text for word in _WORDS):
            return line
    return first
