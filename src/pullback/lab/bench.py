"""Blocks against their peers: interleaved medians and their ratios.

``benchmarks/<family>.py`` lists ``CASES``; ``pullback bench <family>`` measures them. Cores are shared and clocks
drift, so ours and the peers take turns in every round, and what is compared is the median of the ratio within a round.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

__all__ = ["Case", "Measurement", "import_cost", "load_cases", "measure"]


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
class Measurement:
    """Medians of one case.

    Attributes:
        name: the case's name.
        ours: seconds of one call of ours.
        peers: seconds of one call of each peer that is installed.
        ratios: for each of these the median of (peer / ours) within a round; 3.0 means ours is three times as fast.
        absent: peers that are not installed, with the module that is missing.
        rounds: how many rounds were measured.
    """

    name: str
    ours: float
    peers: dict[str, float]
    ratios: dict[str, float]
    absent: dict[str, str]
    rounds: int

    def to_json(self) -> dict[str, Any]:
        """Return the measurement as JSON values."""
        return asdict(self)


def _timed(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of one call, averaged over ``repeats`` calls."""
    accelerated = torch.cuda.is_available() and torch.cuda.is_initialized()
    if accelerated:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if accelerated:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def measure(case: Case, *, rounds: int = 7, seconds: float = 0.05) -> Measurement:
    """Measure one case.

    Args:
        case: what to measure.
        rounds: in each round ours and then every peer is timed once.
        seconds: each timing repeats the call until about this much time has passed.

    Returns:
        The medians and ratios.

    Raises:
        ValueError: ``rounds`` < 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be >= 1, got {rounds}")
    inputs = case.setup()
    contenders: dict[str, Callable[[], Any]] = {"": lambda: case.ours(inputs)}
    absent: dict[str, str] = {}
    repeats: dict[str, int] = {}

    def bind(work: Callable[[Any], Any]) -> Callable[[], Any]:
        return lambda: work(inputs)

    contenders |= {name: bind(work) for name, work in case.peers.items()}
    for name, call in list(contenders.items()):
        try:
            call()  # imports, compiles and allocates
        except ModuleNotFoundError as error:
            if not name:
                raise
            absent[name] = error.name or str(error)
            del contenders[name]
            continue
        repeats[name] = max(1, min(10_000, int(seconds / max(_timed(call, 1), 1e-7))))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            times[name].append(_timed(call, repeats[name]))
    ours = times.pop("")
    return Measurement(
        name=case.name,
        ours=median(ours),
        peers={name: median(values) for name, values in times.items()},
        ratios={name: median(p / o for p, o in zip(values, ours, strict=True)) for name, values in times.items()},
        absent=absent,
        rounds=rounds,
    )


def load_cases(path: Path) -> list[Case]:
    """Return the ``CASES`` of a benchmark file.

    Raises:
        ValueError: the file has no ``CASES``.
    """
    spec = importlib.util.spec_from_file_location(f"pullback_benchmarks_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    cases: Iterable[Case] | None = getattr(module, "CASES", None)
    if cases is None:
        raise ValueError(f"{path} has no CASES")
    return list(cases)


_IMPORT = "import time, torch; start = time.perf_counter(); import pullback; print(time.perf_counter() - start)"


def import_cost(*, rounds: int = 3) -> float:
    """Return the median seconds that ``import pullback`` adds to ``import torch``, each in a fresh interpreter."""
    return median(
        float(subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True).stdout)
        for _ in range(rounds)
    )
