"""Run a program again from the same state, with the results (or the arguments) of chosen calls changed."""

from __future__ import annotations

import contextlib
import io
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

from pullback.audit.judge.verdicts import site_key
from pullback.audit.probe.program import Program
from pullback.audit.probe.random import set_random_state
from pullback.audit.trace import operations as ops
from pullback.audit.trace.sites import is_user_file, locate
from pullback.audit.trace.tracer import Tracer

__all__ = ["Before", "Change", "Key", "Laboratory", "Refusal", "Replay", "same"]

Result = TypeVar("Result")
LONGER = 20
"""A replay may call torch so many times as often as the traced run recorded operations, and ..."""
SHORTEST = 5000
"""... so many times more."""
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


class Endless(BaseException):
    """A changed value made a loop of the program run far longer than it did; no handler of the program takes it."""


class _Bounded(TorchFunctionMode):
    """Ends a replay that calls torch far more often than the traced run did: its graph would fill the memory."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise Endless("the changed value made the program run far longer than it did")
        return func(*args, **(kwargs or {}))


class Refusal(Exception):
    """A replay that did not come to its end; says what the program raised, and where."""

    def __init__(self, raised: BaseException) -> None:
        words = str(raised).strip().splitlines()
        what = f"{type(raised).__name__}: {words[0]}" if words else type(raised).__name__
        self.place = _place_of(raised.__traceback__)
        super().__init__(f"{self.place}{what}")


def _place_of(traceback: TracebackType | None) -> str:
    """Return ``file:line: `` of the innermost line of the user's own code."""
    found = ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_user_file(code.co_filename):
            found = f"{code.co_filename}:{traceback.tb_lineno}: "
        traceback = traceback.tb_next
    return found


class Laboratory:
    """Replays of one program from one state.

    Attributes:
        refusals: what the program raised where a question stayed open for it, by the line that raised.
    """

    def __init__(self, program: Program, tracer: Tracer, state: tuple[Any, ...], budget: float) -> None:
        self.program = program
        self.libraries = tracer.libraries
        self.state = state
        self.until = time.monotonic() + budget
        buffers = [reference() for reference in tracer.mutated.values()]
        self.calls = LONGER * len(tracer.nodes) + SHORTEST
        self.refusals: dict[str, str] = {}
        self._refused: Refusal | None = None
        self.saved = [(b, b.detach().clone()) for b in buffers if b is not None and b.numel() < 10**7]

    def give_up(self) -> None:
        """Note the last refusal: no value was found that the program takes."""
        if self._refused is not None:
            self.refusals.setdefault(self._refused.place, str(self._refused))

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
        """Return the loss of a replay, ``None`` if the program raised or returned no number."""

        def run() -> float | None:
            with Replay(changes or {}, before or {}, self.libraries):
                value = self.program.value()
            return None if value is None else float(value.detach().sum())

        try:
            return self.attempt(run)
        except Refusal:  # an assertion or a bounds check of the program refused the changed value
            return None

    def attempt(self, run: Callable[[], Result]) -> Result:
        """Run the program from the state, in silence.

        Raises:
            Refusal: it raised anything, ``SystemExit`` included: the program checks its values, or ends itself. Only
                a ``KeyboardInterrupt`` passes: it is the user's.
        """
        set_random_state(self.state)
        try:
            with _silence(), _Bounded(self.calls):
                return run()
        except KeyboardInterrupt:
            raise
        except BaseException as raised:
            self._refused = Refusal(raised)
            raise self._refused from None
        finally:
            self.restore()


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what a replay prints and warns of from the user, who saw it in the traced run."""
    out = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        warnings.simplefilter("ignore")
        yield


def same(a: float, b: float) -> bool:
    """Whether two losses are equal up to rounding."""
    return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= 1e-6 * max(abs(a), abs(b))
