"""What a run has found so far, kept in its record and written as it comes."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.core.checks import check_choice
from pullback.lab.draw.files import file_name
from pullback.lab.measured import Measured, Verdict, mean
from pullback.lab.progress import Display
from pullback.lab.result import SCALES, Artifact, Claim, Data, Metric, RunResult, Series

__all__ = ["Recorder", "number"]

ORIGINS = ("real", "simulated", "stand-in")


class Recorder:
    """Keeps series, metrics, claims, counts and files of one run, by arm and replicate.

    Args:
        result: the record.
        directory: of the run's files.
        display: where values and verdicts are shown.

    Attributes:
        replicate: the running replicate; ``None`` outside of :meth:`pullback.lab.Lab.replicates`.
        step: the running loop's step; ``None`` outside of loops.
        pending: what has to be written before anything else may be recorded.
    """

    def __init__(self, result: RunResult, directory: Path, display: Display) -> None:
        self.result = result
        self.directory = directory
        self.display = display
        self.replicate: int | None = None
        self.step: int | None = None
        self.latest: dict[str, float] = {}
        self.pending: Callable[[], None] | None = None
        self._series: dict[tuple[str, str, int | None], Series] = {}
        self._replicated: dict[tuple[str, str], dict[int, float]] = {}
        self._timers: list[_Timer] = []
        self._began = self.written = time.monotonic()
        self._cpu_seconds = result.cpu_seconds - time.process_time()  # those of former processes of a resumed run
        self.write_cost = 0.0

    # Series

    def record(self, name: str, value: float | Tensor, of: str, step: int | None) -> None:
        """Add a value to a series."""
        key = (name, of, self.replicate)
        if key not in self._series:
            self.settle()
            self._series[key] = Series(name, of, replicate=self.replicate)
            self.result.series.append(self._series[key])
        series = self._series[key]
        if step is None:
            step = self.step if self.step is not None else len(series.values)
        series.steps.append(step)
        series.values.append(number(name, value))
        self.latest.pop(label := f"{name} ({of})" if of else name, None)
        self.latest[label] = series.values[-1]
        if len(self.latest) > 3:
            del self.latest[next(iter(self.latest))]

    def series(self, name: str, of: str, replicate: int | None = None) -> Series:
        """Return a series, of the running replicate unless one is given."""
        replicate = self.replicate if replicate is None else replicate
        found = self._series.get((name, of, replicate))
        if found is None:
            recorded = ", ".join(f"{s.name!r} of {s.of!r}" + _in(s.replicate) for s in self._series.values())
            raise KeyError(f"no series {name!r} of {of!r}{_in(replicate)}; recorded: {recorded or 'nothing'}")
        return found

    def last(self, name: str, of: str) -> Measured:
        """Return the latest value of a series; after the replicates, the mean of their last values."""
        if self.replicate is None and (name, of, None) not in self._series:
            ends = [s.values[-1] for s in self.result.series if (s.name, s.of) == (name, of)]
            if ends:
                return mean(ends, f"last {name}", of)
        return Measured(self.series(name, of).values[-1], f"last {name}", of)

    # Metrics, counts and claims

    def metric(
        self, name: str, value: Any, of: str, *, better: str | None, unit: str, baseline: bool, replicated: bool = False
    ) -> Measured:
        """Keep a measured number, in place of the former of that name, arm and replicate."""
        if better is not None:
            check_choice("better", better, ("higher", "lower"))
        key = (name, of)  # an integer would come back as a number with a point from the record of a resumed run
        if replicated:
            if self.replicate is not None:
                raise ValueError(f"{name} must be one number inside of lab.replicates, got replicated=True")
            self._replicated[key] = dict(enumerate(_numbers(name, value)))
        elif self.replicate is not None:
            self._replicated.setdefault(key, {})[self.replicate] = float(number(name, value))
        else:
            self._replicated.pop(key, None)
        values = tuple(v for _, v in sorted(self._replicated.get(key, {}).items()))
        single = sum(values) / len(values) if values else float(number(name, value))
        metric = Metric(name, single, of, better, unit, baseline, values)
        places = {(m.name, m.of): place for place, m in enumerate(self.result.metrics)}
        if key in places:
            self.result.metrics[places[key]] = metric
        else:
            self.result.metrics.append(metric)
        self.changed()
        return self.measured(name, of)

    def measured(self, name: str, of: str) -> Measured:
        """Return a metric or count: the running replicate's, or the mean over replicates with all of them behind it."""
        for metric in self.result.metrics:
            if (metric.name, metric.of) == (name, of):
                own = self._replicated.get((name, of), {})
                if self.replicate in own:
                    return Measured(own[self.replicate], name, of, unit=metric.unit)
                return Measured(metric.value, name, of, unit=metric.unit, values=metric.values)
        counted = self.result.counts.get(name, {})
        if of in counted:
            return Measured(counted[of], name, of, unit="s" if name == "cpu seconds" else "")
        known = [m.name for m in self.result.metrics if m.of == of]
        known += [kind for kind, arms in self.result.counts.items() if of in arms]
        listed = ", ".join(map(repr, known)) or "nothing"
        raise KeyError(f"no metric or count {name!r} of {of!r}; there are: {listed}")

    def count(self, kind: str, added: float, of: str) -> Measured:
        """Add up operations."""
        arms = self.result.counts.setdefault(kind, {})
        arms[of] = arms.get(of, 0) + added
        return Measured(arms[of], kind, of)

    @contextmanager
    def cpu_time(self, kind: str, of: str) -> Iterator[None]:
        """Add the process's CPU seconds inside the block to a count.

        A checkpoint that is written inside has the seconds up to it: a resumed run adds its own.
        """
        timer = _Timer(kind, of, time.process_time())
        self._timers.append(timer)
        try:
            yield
        finally:
            self._read_timers()
            self._timers.remove(timer)

    def _read_timers(self) -> None:
        for timer in self._timers:
            now = time.process_time()
            self.count(timer.kind, now - timer.since, timer.of)
            timer.since = now

    def claim(self, statement: str, conditions: Sequence[Any], scale: str, numbers: dict[str, Any]) -> bool:
        """Judge a claim."""
        check_choice("scale", scale, SCALES)
        if not conditions:
            raise TypeError(f"claim {statement!r} needs a condition")
        if any(claim.statement == statement for claim in self.result.claims):
            raise ValueError(f"claim {statement!r} was stated before in this run")
        outcomes = [_holds(statement, condition) for condition in conditions]
        behind: dict[str, Any] = {}
        for condition in conditions:
            behind |= condition.numbers if isinstance(condition, Verdict) else {}
        behind |= numbers
        verdict = "held" if all(outcomes) else "failed"
        if SCALES.index(self.result.scale) < SCALES.index(scale):
            verdict = "not judged"
        shown = {name: value if isinstance(value, str) else number(name, value) for name, value in behind.items()}
        spreads = {n: v.spread for n, v in behind.items() if isinstance(v, Measured) and v.spread is not None}
        self.result.claims.append(Claim(statement, verdict, scale, shown, spreads))
        self.display.say(f"claim {verdict}: {statement}")
        self.changed()
        return all(outcomes)

    def found(self, kind: str, name: str, arms: Sequence[str] = ()) -> list[Any]:
        """Return the ``"series"`` or ``"metrics"`` of one name, of all arms or of those that are named."""
        every = getattr(self.result, kind)
        kept = [each for each in every if each.name == name and (not arms or each.of in arms)]
        if not kept:
            known = ", ".join(sorted({repr(each.name) for each in every})) or "nothing"
            raise KeyError(f"no {kind} {name!r} of {', '.join(arms) or 'any arm'}; there are: {known}")
        return kept

    # Data, notes and files

    def data(self, name: str, origin: str) -> None:
        """Keep which data were used."""
        check_choice("origin", origin, ORIGINS)
        self.result.data.append(Data(name, origin))
        self.changed()

    def note(self, text: str) -> None:
        """Keep a remark."""
        self.result.notes.append(text)
        self.changed()

    def keep(
        self, kind: str, name: str, caption: str, write: Callable[[str], tuple[str, ...]], content: Any = None
    ) -> None:
        """Write something to look at or listen to, in place of the former of its kind and name."""
        files = write(f"{kind}-{file_name(name)}")
        artifact = Artifact(kind, name, files, caption, content)
        kept = [a for a in self.result.artifacts if (a.kind, a.name) != (kind, name)]
        self.result.artifacts = [*kept, artifact]
        self.changed()

    # Writing

    def settle(self) -> None:
        """Write what is pending."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending()

    def changed(self) -> None:
        """Write the record, after what is pending; one that takes long to write (long series) not every time."""
        self.settle()
        if self.write_cost < 0.05 or time.monotonic() - self.written >= 20 * self.write_cost:
            self.write()

    def write(self) -> None:
        """Write the record."""
        # In CPU time: what others do on the machine must not decide what a reader of the record sees.
        start = time.thread_time()
        self.result.seconds = time.monotonic() - self._began
        self.result.cpu_seconds = self._cpu_seconds + time.process_time()
        self.result.threads = torch.get_num_threads()
        self.result.peak_memory = max(self.result.peak_memory, _resident_memory())
        self.result.write()
        self.written = time.monotonic()
        self.write_cost = time.thread_time() - start

    def finish(self, status: str, error: str) -> RunResult:
        """Write the final record."""
        if status == "complete":
            self.settle()
        self.result = replace(self.result, status=status, error=error)
        self.write()
        return self.result

    # Checkpoints

    def state(self) -> dict[str, Any]:
        """Return all that was kept, as a checkpoint holds it."""
        self._read_timers()
        return {
            "record": replace(self.result, series=[]).to_json(),
            "series": [
                {
                    "name": s.name,
                    "of": s.of,
                    "replicate": s.replicate,
                    "steps": torch.tensor(s.steps, dtype=torch.int64),
                    "values": torch.tensor(s.values, dtype=torch.float64),
                }
                for s in self.result.series
            ],
            "replicated": [[name, of, dict(values)] for (name, of), values in self._replicated.items()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what was kept up to a checkpoint."""
        former = RunResult.from_json({**state["record"], "series": []})
        for name in ("metrics", "claims", "data", "artifacts", "notes", "counts"):
            setattr(self.result, name, getattr(former, name))
        self.result.series = [
            Series(s["name"], s["of"], s["steps"].tolist(), s["values"].tolist(), s["replicate"])
            for s in state["series"]
        ]
        self._series = {(s.name, s.of, s.replicate): s for s in self.result.series}
        self._replicated = {(name, of): values for name, of, values in state["replicated"]}
        for timer in self._timers:
            timer.since = time.process_time()


@dataclass(eq=False)
class _Timer:
    """A running clock of an arm: what passed before ``since`` is counted."""

    kind: str
    of: str
    since: float


def number(name: str, value: Any) -> float:
    """Return a Python number from a number, or from a tensor or array with one element.

    Raises:
        TypeError: it is none; the message begins with ``name``.
    """
    if isinstance(value, Tensor | np.ndarray | np.generic):
        if math.prod(value.shape) != 1:
            raise TypeError(f"{name} must be one number, got shape {tuple(value.shape)}")
        value = value.item()
    if not isinstance(value, bool | int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value) if isinstance(value, Measured) else value


def _resident_memory() -> int:
    """The largest resident memory that this process has had, in bytes."""
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else 1024 * largest


def _numbers(name: str, value: Any) -> list[float]:
    if isinstance(value, Tensor | np.ndarray):
        value = value.tolist()
    if not isinstance(value, Sequence) or len(value) == 0:
        raise TypeError(f"{name} must be a sequence of numbers with replicated=True, got {value!r}")
    return [float(number(name, item)) for item in value]


def _holds(statement: str, condition: Any) -> bool:
    if isinstance(condition, Tensor | np.ndarray) and math.prod(condition.shape) != 1:
        raise TypeError(f"a condition of claim {statement!r} must be one truth value, got {tuple(condition.shape)}")
    if isinstance(condition, Tensor | np.ndarray):
        condition = condition.item()
    if not isinstance(condition, bool | np.bool_ | Verdict):
        raise TypeError(f"a condition of claim {statement!r} must be true or false, got {type(condition).__name__}")
    return bool(condition)


def _in(replicate: int | None) -> str:
    return "" if replicate is None else f" in replicate {replicate}"
