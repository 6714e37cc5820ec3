"""Blocks against their peers: interleaved medians of process CPU time, and their ratios.

``benchmarks/<name>.py`` lists ``CASES``; ``pullback bench <name>`` measures them with the clock of the lab,
:func:`pullback.lab.measure.race`. It may list ``TABLES`` too: what is measured in other units than time.
"""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from pullback.core.checks import check_integer
from pullback.lab.measure import race

__all__ = ["Case", "Measurement", "Table", "geometric_mean", "import_cost", "load_cases", "load_tables", "measure"]


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        name: what is measured, with the sizes, such as ``"softsort forward+backward, n=128, batch 64"``.
        setup: builds the inputs, once.
        ours: takes what ``setup`` returned and does the work, once a call.
        peers: the same work by other libraries, by their name. A peer imports its package inside the function; where
            that raises ``ModuleNotFoundError`` the peer is reported as not installed. What a peer builds before the
            measured work (a module, a plan) belongs into a cached function of the benchmark file.

    Example:
        >>> case = Case("sum", lambda: [1.0] * 100, sum, {"math": lambda x: __import__("math").fsum(x)})
        >>> sorted(measure(case, rounds=3, seconds=0.01).peers)
        ['math']
    """

    name: str
    setup: Callable[[], Any]
    ours: Callable[[Any], Any]
    peers: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Numbers that are no times, such as the bias of estimators.

    Attributes:
        title: what is measured, in a sentence.
        columns: headings; one that begins with ``>`` is right-aligned.
        rows: measures them: a string or a number a column.

    Example:
        >>> Table("squares", ("n", ">n^2"), lambda: [(n, n * n) for n in range(3)]).rows()
        [(0, 0), (1, 1), (2, 4)]
    """

    title: str
    columns: Sequence[str]
    rows: Callable[[], Sequence[Sequence[str | float]]]


@dataclass(frozen=True)
class Measurement:
    """Medians of one case.

    Attributes:
        name: the case's name.
        clock: what was measured, with the number of threads.
        ours: seconds of one call of ours.
        peers: seconds of one call of each peer that is installed.
        ratios: for each of these the median of (peer / ours) within a round; 3.0 means ours is three times as fast.
        absent: peers that are not installed, with the module that is missing.
        rounds: how many rounds were measured.
    """

    name: str
    clock: str
    ours: float
    peers: dict[str, float]
    ratios: dict[str, float]
    absent: dict[str, str]
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """Return the measurement as JSON values."""
        return asdict(self)


def measure(case: Case, *, rounds: int = 7, threads: int = 1, seconds: float = 0.05) -> Measurement:
    """Measure one case.

    Args:
        case: what to measure.
        rounds: in each round ours and every peer are timed once, >= 1.
        threads: that torch may compute with, >= 1.
        seconds: each timing repeats the call until about this much time has passed.

    Returns:
        The medians and ratios.

    Raises:
        ValueError: an argument out of range.
    """
    check_integer("rounds", rounds, 1)
    inputs = case.setup()
    contenders: dict[str, Callable[[], Any]] = {"": lambda: case.ours(inputs)}
    absent: dict[str, str] = {}

    def bind(work: Callable[[Any], Any]) -> Callable[[], Any]:
        return lambda: work(inputs)

    for name, work in case.peers.items():
        try:
            work(inputs)
        except ModuleNotFoundError as error:
            absent[name] = error.name or str(error)
        else:
            contenders[name] = bind(work)
    found = race(contenders, rounds=rounds, threads=threads, seconds=seconds)
    present = [name for name in contenders if name]
    return Measurement(
        name=case.name,
        clock=found.name,
        ours=float(found[""]),
        peers={name: float(found[name]) for name in present},
        ratios={name: float(found.ratio(name, "")) for name in present},
        absent=absent,
        rounds=rounds,
    )


def geometric_mean(found: Iterable[Measurement]) -> float | None:
    """Return the geometric mean of all ratios to peers; ``None`` where no peer was measured.

    Example:
        >>> two = Measurement("a", "CPU time", 1.0, {"x": 2.0, "y": 8.0}, {"x": 2.0, "y": 8.0}, {}, 1)
        >>> round(geometric_mean([two]), 6)
        4.0
    """
    ratios = [ratio for each in found for ratio in each.ratios.values()]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


def load_cases(path: Path) -> list[Case]:
    """Return the ``CASES`` of a benchmark file; none where it has ``TABLES`` only.

    Raises:
        ValueError: the file has neither.
    """
    return list(_load(path).get("CASES", ()))


def load_tables(path: Path) -> list[Table]:
    """Return the ``TABLES`` of a benchmark file, often none.

    Raises:
        ValueError: the file has neither ``CASES`` nor ``TABLES``.
    """
    return list(_load(path).get("TABLES", ()))


def _load(path: Path) -> dict[str, Any]:
    name = f"pullback_benchmarks_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    found = vars(module)
    if "CASES" not in found and "TABLES" not in found:
        raise ValueError(f"{path} has no CASES")
    return found


_IMPORT = "import time, torch; start = time.process_time(); import pullback; print(time.process_time() - start)"


def import_cost(*, rounds: int = 3) -> float:
    """Return the median CPU seconds that ``import pullback`` adds to ``import torch``, each in a fresh interpreter."""
    return median(
        float(subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True).stdout)
        for _ in range(rounds)
    )
