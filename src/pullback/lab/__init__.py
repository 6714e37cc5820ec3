"""Running a system: `Lab`, claims, results, scales, distribution, gallery.

A system uses :class:`Lab` and :func:`system`; a program that runs systems uses :func:`run`, or :func:`execute` on
the jobs of :func:`seeds` or :func:`grid`. Everything is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pullback.core.errors import UsageError

if TYPE_CHECKING:
    from pullback.lab.arm import Arm
    from pullback.lab.bench import Case
    from pullback.lab.campaign import Job, Outcome, count_claims, execute, grid, seeds
    from pullback.lab.config import above, at_least, at_most, below
    from pullback.lab.lab import Lab
    from pullback.lab.measured import Measured, Verdict
    from pullback.lab.registry import System, families, load, slugs, system
    from pullback.lab.result import SCALES, DamagedRecord, RunResult
    from pullback.lab.runner import RunError, run
    from pullback.lab.store import read_results, scan

_HOMES = {
    "Arm": "arm",
    "Case": "bench",
    "DamagedRecord": "result",
    "Job": "campaign",
    "Lab": "lab",
    "Measured": "measured",
    "Outcome": "campaign",
    "RunError": "runner",
    "RunResult": "result",
    "SCALES": "result",
    "System": "registry",
    "Verdict": "measured",
    "above": "config",
    "at_least": "config",
    "at_most": "config",
    "below": "config",
    "count_claims": "campaign",
    "execute": "campaign",
    "families": "registry",
    "grid": "campaign",
    "load": "registry",
    "read_results": "store",
    "run": "runner",
    "scan": "store",
    "seeds": "campaign",
    "slugs": "registry",
    "system": "registry",
}

__all__ = [
    "SCALES",
    "Arm",
    "Case",
    "DamagedRecord",
    "Job",
    "Lab",
    "Measured",
    "Outcome",
    "RunError",
    "RunResult",
    "System",
    "UsageError",
    "Verdict",
    "above",
    "at_least",
    "at_most",
    "below",
    "count_claims",
    "execute",
    "families",
    "grid",
    "load",
    "read_results",
    "run",
    "scan",
    "seeds",
    "slugs",
    "system",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"pullback.lab.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pullback.lab' has no attribute {name!r}")
