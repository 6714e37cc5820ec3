"""Runs in processes of their own, a bounded number at once: started, watched through their records, stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from pullback.lab.request import RunRequest
from pullback.lab.result import DamagedRecord, RunResult
from pullback.lab.store import run_directories

__all__ = ["BusyError", "Launched", "Launcher"]

PROGRAM = (sys.executable, "-m", "pullback")
_KEPT = 50
_LOG_TAIL = 16_384
_GRACE = 10.0


class BusyError(RuntimeError):
    """As many runs as are allowed at once are going on."""


class Launched:
    """A run that was started here.

    Attributes:
        number: its name, from 1.
        request: what was asked for.
        started: Unix time.
    """

    def __init__(self, number: int, request: RunRequest, process: subprocess.Popen[bytes], runs: Path, log: Path):
        self.number, self.request, self.started = number, request, time.time()
        self._process, self._runs, self._log = process, runs, log
        self._directory: Path | None = None
        self._ended: float | None = None
        self._asked_to_stop = False

    @property
    def over(self) -> bool:
        """Whether the process has ended."""
        if self._process.poll() is None:
            return False
        self._ended = self._ended or time.time()
        return True

    @property
    def status(self) -> int | None:
        """The exit status, ``None`` while it runs."""
        return self._process.poll()

    @property
    def seconds(self) -> float:
        """How long it has been running, or ran."""
        return (self._ended or time.time()) - self.started

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop and has not ended."""
        return self._asked_to_stop and not self.over

    def result(self) -> RunResult | None:
        """Return the record that the process has written so far; none before its first."""
        try:
            if self._directory is None:
                self._directory = self._find()
            return RunResult.read(self._directory) if self._directory is not None else None
        except (FileNotFoundError, DamagedRecord):  # removed from the store meanwhile, or overwritten by somebody
            return None

    def log(self) -> str:
        """Return the end of what the process printed."""
        with self._log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LOG_TAIL))
            text = file.read().decode(errors="replace")
        return text if size <= _LOG_TAIL else text.partition("\n")[2]

    def stop(self) -> None:
        """Ask it to end after its step, saved; asked again, end it at once."""
        if self.over:
            return
        if self._asked_to_stop:
            _signal(self._process, signal.SIGKILL)
        else:
            self._asked_to_stop = True
            self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Wait for it to end; at the end of the time, end it."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            _signal(self._process, signal.SIGKILL)
            self._process.wait()

    def _find(self) -> Path | None:
        """The directory whose record names this process."""
        for directory in run_directories(self._runs, self.request.slug):
            try:
                if (directory / "result.json").stat().st_mtime < self.started - 1:
                    continue
                result = RunResult.read(directory)
            except (FileNotFoundError, DamagedRecord):  # it is not the one that this process writes
                continue
            if result.process.get("pid") == self._process.pid and result.started >= self.started - 1:
                return directory
        return None


class Launcher:
    """Starts runs.

    Args:
        runs: the results store.
        program: words of the command before ``run``.
        at_once: most runs that go on at the same time.
    """

    def __init__(self, runs: Path, *, program: Sequence[str] = PROGRAM, at_once: int = 1) -> None:
        self._runs, self._program, self._at_once = runs, tuple(program), at_once
        self._logs = tempfile.TemporaryDirectory(prefix="pullback-serve-")
        self._launched: dict[int, Launched] = {}
        self._count = 0
        self._lock = threading.Lock()

    @property
    def launched(self) -> list[Launched]:
        """The runs that were started here, newest first."""
        return list(self._launched.values())[::-1]

    def get(self, number: int) -> Launched | None:
        """Return a run by its number."""
        return self._launched.get(number)

    def start(self, request: RunRequest) -> Launched:
        """Start a run.

        Raises:
            BusyError: as many as allowed go on.
        """
        with self._lock:
            going = [one for one in self._launched.values() if not one.over]
            if len(going) >= self._at_once:
                names = ", ".join(one.request.slug for one in going)
                raise BusyError(f"{names} is still running; stop it or wait for its end")
            self._count += 1
            log = Path(self._logs.name) / f"{self._count}.log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [*self._program, *request.words(), f"--runs={self._runs}"],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                    start_new_session=True,  # Ctrl-C at the server's terminal is for the server; it stops its runs
                )
            launched = Launched(self._count, request, process, self._runs, log)
            self._launched[self._count] = launched
            for number in [n for n, one in self._launched.items() if one.over][: max(0, len(self._launched) - _KEPT)]:
                del self._launched[number]
            return launched

    def close(self) -> None:
        """Stop what runs, with what it has saved, and remove the logs."""
        going = [one for one in self._launched.values() if not one.over]
        for one in going:
            one.stop()
        for one in going:
            one.wait(_GRACE)
        self._logs.cleanup()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """To the process and all that it started: it leads a session of its own."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:  # ended in between
        return
