"""Run a program again from the same state, with the results (or the arguments) of chosen calls changed."""

from __future__ import annotations

import contextlib
import io
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pullback.audit.judge.verdicts import site_key
from pullback.audit.probe.program import Program
from pullback.audit.probe.random import set_random_state
from pullback.audit.trace import operations as ops
from pullback.audit.trace.sites import locate
from pullback.audit.trace.tracer import Tracer

__all__ = ["Before", "Change", "Key", "Laboratory", "Replay", "same"]

Key = tuple[Any, int, str]
Change = Callable[[Any, int], Any]
"""From a result and the number of the visit to the result that the program gets."""
Before = Callable[[Any], Any]
"""From the arguments of a call to those it gets."""


class Replay(TorchFunctionMode):
    """Runs a program with the results at chosen call sites passed through a function of (result, visit)."""

    def __init__(self, changes: dict[Key, Change], before: dict[Key, Before], libraries: bool) -> None:
        super().__init__()
        self.changes = changes
        self.before = before
        self.names = {key[2] for key in [*changes, *before]}
        self.libraries = libraries
        self.visits: dict[Key, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = ops.operation_name(func)
        if name not in self.names:
            return func(*args, **(kwargs or {}))
        key = site_key(locate(sys._getframe(1), self.libraries), name)
        if key in self.before:
            args = self.before[key](args)
        out = func(*args, **(kwargs or {}))
        change = self.changes.get(key)
        if change is None:
            return out
        visit = self.visits[key] = self.visits.get(key, -1) + 1
        return change(out, visit)


class Laboratory:
    """Replays of one program from one state."""

    def __init__(self, program: Program, tracer: Tracer, state: tuple[Any, ...], budget: float) -> None:
        self.program = program
        self.libraries = tracer.libraries
        self.state = state
        self.until = time.monotonic() + budget
        buffers = [reference() for reference in tracer.mutated.values()]
        self.saved = [(b, b.detach().clone()) for b in buffers if b is not None and b.numel() < 10**7]

    @property
    def spent(self) -> bool:
        """Whether the time budget is used up."""
        return time.monotonic() > self.until

    def restore(self) -> None:
        """Put the buffers that the program writes into back to what they were."""
        with torch.no_grad():
            for tensor, copy in self.saved:
                tensor.copy_(copy)

    def loss(self, changes: dict[Key, Change] | None = None, before: dict[Key, Before] | None = None) -> float | None:
        """Return the loss of a replay, ``None`` if the changed program raised or returned no number."""
        set_random_state(self.state)
        try:
            with contextlib.redirect_stdout(io.StringIO()), Replay(changes or {}, before or {}, self.libraries):
                value = self.program.value()
        except Exception:
            if not changes and not before:
                raise
            return None  # an assertion or a bounds check of the program refused the changed value
        finally:
            self.restore()
        return None if value is None else float(value.detach().sum())


def same(a: float, b: float) -> bool:
    """Whether two losses are equal up to rounding."""
    return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= 1e-6 * max(abs(a), abs(b))
