"""Loops that show how far they are, stop between two steps, and go on where a killed run was saved."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pullback.core.checks import check_integer
from pullback.lab import checkpoint
from pullback.lab.draw.files import file_name
from pullback.lab.processes import Processes
from pullback.lab.recorder import Recorder
from pullback.lab.streams import Streams

__all__ = ["Limits", "Loops", "RunStopped"]

_REASONS = ("", "out of time", "interrupted")


class RunStopped(BaseException):
    """Ends a run between two steps, with everything saved; ``status`` says why. No system should catch it."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """When a run stops and how often it is saved, in seconds."""

    budget: float | None = None
    checkpoint_every: float = 30.0
    write_every: float = 2.0


class Loops:
    """The loops of one run, one after the other.

    A checkpoint holds all that the rest of the run depends on: what the loop changes, what was recorded, and the random
    streams. A resumed run calls the system's function again; every loop that had ended is skipped by taking over its
    last checkpoint, and the one that was interrupted begins where it was saved.

    Args:
        recorder: what was found so far.
        streams: of the run.
        processes: of the run.
        limits: when to stop, how often to save.
        resume: whether to take over checkpoints that lie in the run's directory.
    """

    def __init__(
        self, recorder: Recorder, streams: Streams, processes: Processes, limits: Limits, *, resume: bool
    ) -> None:
        self._recorder = recorder
        self._streams = streams
        self._processes = processes
        self._limits = limits
        self._resume = resume
        self._names: Counter[str] = Counter()
        self._stop = ""
        self._began = self._saved = time.monotonic()
        self._save_cost = 0.0

    def steps(self, count: int, name: str, of: str, save: Mapping[str, Any] | None) -> Iterator[int]:
        """Yield the steps that are left of a loop of an arm."""
        check_integer("count", count, 0)
        if self._recorder.step is not None:
            raise RuntimeError(f"the loop {name!r} is inside another loop of steps: use range for the inner one")
        for key, target in (save or {}).items():
            checkpoint.check_savable(f"state {key!r} of the loop {name!r}", target)
        self._recorder.settle()
        replicate = self._recorder.replicate
        label = name if not of else of if not name else f"{of}: {name}"
        parts = [of, "" if replicate is None else f"replicate {replicate}", name]
        stem = file_name(" ".join(filter(None, parts)))[:80]
        self._names[stem] += 1
        again = f"-{self._names[stem]}" if self._names[stem] > 1 else ""
        path = self._recorder.directory / "checkpoints" / f"{stem}{again}.safetensors"
        return self._loop(count, label if replicate is None else f"{label} [{replicate}]", save, path)

    def request_stop(self) -> bool:
        """Ask the running loop to stop after its step; ``False`` when no loop runs that could."""
        self._stop = "interrupted"
        return self._recorder.step is not None

    def remove_checkpoints(self) -> None:
        """Remove all checkpoints of the run."""
        folder = self._recorder.directory / "checkpoints"
        if self._processes.is_main and folder.exists():
            shutil.rmtree(folder)

    def _loop(self, count: int, label: str, save: Mapping[str, Any] | None, path: Path) -> Iterator[int]:
        done, recorder = 0, self._recorder
        if save is not None and self._resume and (state := checkpoint.read_latest(path)) is not None:
            done, finished = self._load(state, path, count, save)
            if finished:
                return
        recorder.display.start(label, count, done)
        recorder.step = done
        self._saved = time.monotonic()
        try:
            while done < count:
                recorder.step = done
                reason = self._reason_to_stop()
                if reason:
                    self._save(path, done, count, save, finished=False)
                    raise RunStopped(reason)
                yield done
                done += 1
                self._after_step(path, done, count, label, save)
            self._save(path, done, count, save, finished=True)
        except GeneratorExit:
            # `break`, or an error that unwinds the caller. Only a run that goes on calls the lab again: it is then that
            # the state of this moment is known to be the loop's final one and is written.
            if save is not None and self._processes.is_main:
                state = self._state(done + 1, count, save, finished=True)
                recorder.pending = lambda: checkpoint.write(path, state)
            raise
        finally:
            recorder.step = None
            recorder.display.stop()

    def _after_step(self, path: Path, done: int, count: int, label: str, save: Mapping[str, Any] | None) -> None:
        recorder, every = self._recorder, self._limits.checkpoint_every
        recorder.result.progress = {"loop": label, "step": done, "steps": count}
        recorder.display.advance(done, recorder.latest)
        now = time.monotonic()
        if now - self._saved >= (max(every, 10 * self._save_cost) if every else 0.0) and done < count:
            self._save(path, done, count, save, finished=False)
        if now - recorder.written >= max(self._limits.write_every, 20 * recorder.write_cost):
            recorder.write()

    def _reason_to_stop(self) -> str:
        reason = self._stop
        if not reason and self._limits.budget is not None and time.monotonic() - self._began >= self._limits.budget:
            reason = "out of time"
        return _REASONS[self._processes.largest(_REASONS.index(reason))]  # all processes stop at one step, or none

    def _state(self, done: int, count: int, save: Mapping[str, Any], *, finished: bool) -> dict[str, Any]:
        return {
            "done": done,
            "steps": count,
            "finished": finished,
            "save": checkpoint.detached(checkpoint.capture(dict(save))),
            **self._recorder.state(),
            **self._streams.state(),
        }

    def _save(self, path: Path, done: int, count: int, save: Mapping[str, Any] | None, *, finished: bool) -> None:
        if save is None or not self._processes.is_main:
            return
        start = time.monotonic()
        checkpoint.write(path, self._state(done, count, save, finished=finished))
        self._saved = time.monotonic()
        self._save_cost = self._saved - start

    def _load(self, state: dict[str, Any], path: Path, count: int, save: Mapping[str, Any]) -> tuple[int, bool]:
        try:
            done, steps = state["done"], state["steps"]
            if steps != count:
                raise checkpoint.CheckpointError(f"it is of a loop of {steps} steps, not {count}")
            if not 0 <= done <= count:
                raise checkpoint.CheckpointError(f"it says that {done} of {count} steps are done")
            checkpoint.restore(dict(save), state["save"], "state")
            self._recorder.restore(state)
            self._streams.restore(state)
        except (ValueError, KeyError) as error:
            raise checkpoint.CheckpointError(
                f"{path} is of another version of the system: {error}; start a new run"
            ) from error
        return done, bool(state["finished"])
