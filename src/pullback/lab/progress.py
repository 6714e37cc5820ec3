"""Progress on standard error: Rich bars with the latest recorded values on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["Bars", "Display", "Lines", "Silent", "display"]


class Display(Protocol):
    """Shows loops and single lines."""

    def start(self, name: str, total: int, done: int) -> None:
        """A loop of ``total`` steps begins, ``done`` of which a former process made."""

    def advance(self, step: int, values: dict[str, float]) -> None:
        """``step`` steps are made; ``values`` are the latest recorded ones."""

    def stop(self) -> None:
        """The loop ended."""

    def say(self, line: str) -> None:
        """Show a line."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """End, whatever happened."""


def display(*, quiet: bool = False) -> Display:
    """Return the display that fits standard error."""
    if quiet:
        return Silent()
    console = Console(stderr=True)
    return Bars(console) if console.is_terminal else Lines()


class Silent:
    """Shows nothing."""

    def start(self, name: str, total: int, done: int) -> None:
        """Show nothing."""

    def advance(self, step: int, values: dict[str, float]) -> None:
        """Show nothing."""

    def stop(self) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Show nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        return None


class Lines(Silent):
    """A line when a loop begins and ends, and every ten seconds between."""

    interval = 10.0

    def __init__(self) -> None:
        self._name, self._total, self._shown, self._step, self._text = "", 0, 0.0, 0, ""

    def start(self, name: str, total: int, done: int) -> None:
        """Print that the loop begins."""
        self._name, self._total, self._shown, self._step, self._text = name, total, time.monotonic(), done, ""
        if done:
            self.say(f"{name}: goes on at {done}/{total}")

    def advance(self, step: int, values: dict[str, float]) -> None:
        """Print the step now and then."""
        self._step, self._text = step, _format(values)
        if time.monotonic() - self._shown >= self.interval:
            self._shown = time.monotonic()
            self.say(f"{self._name}: {step}/{self._total} {self._text}".rstrip())

    def stop(self) -> None:
        """Print the last step."""
        self.say(f"{self._name}: {self._step}/{self._total} {self._text}".rstrip())

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, file=sys.stderr, flush=True)


class Bars(Silent):
    """A bar for the loop that runs, with its name, the latest values and the time that remains."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[values]}"),
            console=console,
        )
        self._task: TaskID | None = None
        self._refreshed = 0.0

    def start(self, name: str, total: int, done: int) -> None:
        """Add a bar."""
        self._task = self._progress.add_task(name, total=total, completed=done, values="")

    def advance(self, step: int, values: dict[str, float]) -> None:
        """Move the bar, at most ten times a second: a step may take microseconds."""
        now = time.monotonic()
        if self._task is not None and now - self._refreshed >= 0.1:
            self._refreshed = now
            self._progress.update(self._task, completed=step, values=_format(values))

    def stop(self) -> None:
        """Leave the bar as it is."""
        if self._task is not None:
            self._progress.stop_task(self._task)
            self._task = None

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(line, markup=False, highlight=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()


def _format(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
