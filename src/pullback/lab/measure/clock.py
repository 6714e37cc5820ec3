"""One clock: process CPU time, in turn, as medians.

Cores are shared and clocks drift, so contenders take turns in every round, and what is compared is the median of the
ratio within a round. Process CPU time does not count what other programs take; on one thread it is the work done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from pullback.core.checks import check_integer, check_positive
from pullback.lab.measured import Measured

__all__ = ["Race", "race"]

_MOST_REPEATS = 10_000


@dataclass(frozen=True)
class Race:
    """What :func:`race` measured.

    Attributes:
        times: seconds of one call, by contender, one a round.
        threads: that torch computed with.
        clock: ``"CPU time"``, or ``"time"`` on a CUDA device.
    """

    times: Mapping[str, tuple[float, ...]]
    threads: int
    clock: str = "CPU time"

    @property
    def rounds(self) -> int:
        """How often each contender was timed."""
        return len(next(iter(self.times.values())))

    @property
    def name(self) -> str:
        """What was measured, such as ``"CPU time, 1 thread"``."""
        return f"{self.clock}, {self.threads} thread{'' if self.threads == 1 else 's'}"

    def __getitem__(self, contender: str) -> Measured:
        """Return the median seconds of one call.

        Raises:
            KeyError: there was no such contender.
        """
        return Measured(median(self._of(contender)), self.name, contender, unit="s")

    def ratio(self, contender: str, other: str) -> Measured:
        """Return the median over the rounds of the seconds of one contender over those of another.

        Raises:
            KeyError: there was no such contender.
        """
        ratios = [_ratio(a, b) for a, b in zip(self._of(contender), self._of(other), strict=True)]
        seconds = [self[contender], self[other]]
        return Measured(median(ratios), f"{contender} / {other}", sources={s.label: s for s in seconds})

    def _of(self, contender: str) -> tuple[float, ...]:
        if contender not in self.times:
            raise KeyError(f"no contender {contender!r}; there were: {', '.join(map(repr, self.times))}")
        return self.times[contender]


def race(
    contenders: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 15,
    threads: int = 1,
    seconds: float = 0.0,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] | None = None,
) -> Race:
    """Time callables against each other: interleaved rounds of process CPU time.

    Every contender is called once before (it imports, compiles, allocates) and once more to see how long it takes. In
    each round all are timed once, beginning with another one each time. On a CUDA device the clock is wall time between
    two synchronisations: the process's CPU time would be that of waiting.

    Args:
        contenders: the same work done in several ways, by name; at least one.
        rounds: >= 1.
        threads: that torch may compute with meanwhile, >= 1.
        seconds: each timing repeats the call until about this much time has passed, >= 0; 0: one call a timing.
        device: on which the work is done.
        clock: another clock, in seconds.

    Returns:
        The times; medians by ``race[name]`` and ratios by ``race.ratio(name, other)``.

    Raises:
        ValueError: no contenders, or an argument out of range.

    Example:
        >>> found = race({"sum": lambda: sum(range(1000)), "twice": lambda: sum(range(2000))}, rounds=3)
        >>> found["sum"].label, found.ratio("twice", "sum").name
        ('CPU time, 1 thread (sum)', 'twice / sum')
    """
    check_integer("rounds", rounds, 1)
    check_integer("threads", threads, 1)
    check_positive("seconds", seconds, zero=True)
    if not contenders:
        raise ValueError("contenders must be at least one, got none")
    accelerated = torch.device(device).type == "cuda"
    now = clock or (time.perf_counter if accelerated else time.process_time)

    def timed(call: Callable[[], Any], repeats: int) -> float:
        if accelerated:
            torch.cuda.synchronize(device)
        start = now()
        for _ in range(repeats):
            call()
        if accelerated:
            torch.cuda.synchronize(device)
        return (now() - start) / repeats

    names = list(contenders)
    times: dict[str, list[float]] = {name: [] for name in names}
    repeats: dict[str, int] = {}
    with _threads(threads):
        for name in names:
            contenders[name]()
            repeats[name] = _repeats(partial(timed, contenders[name]), seconds)
        for turn in range(rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                times[name].append(timed(contenders[name], repeats[name]))
    kept = {name: tuple(values) for name, values in times.items()}
    return Race(kept, threads, "time" if accelerated else "CPU time")


def _repeats(timed: Callable[[int], float], seconds: float) -> int:
    """How many calls take about ``seconds``; a clock that ticks slowly may not see a single one."""
    count = 1
    while True:
        once = timed(count)
        if count * once >= seconds / 4 or count == _MOST_REPEATS:
            return max(1, min(_MOST_REPEATS, int(seconds / max(once, 1e-9))))
        count = min(2 * count, _MOST_REPEATS)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    former = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(former)


def _ratio(a: float, b: float) -> float:
    """A clock may not have moved at all: of two such times neither is longer."""
    if b == 0:
        return 1.0 if a == 0 else float("inf")
    return a / b
