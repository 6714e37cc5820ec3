"""Running a system: `Lab`, claims, results, scales, distribution, gallery.

A system uses :class:`Lab` and :func:`system`; a program that runs systems uses :func:`run`, :func:`verify` and
:func:`sweep`. Everything is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pullback.lab.bench import Case
    from pullback.lab.lab import Lab
    from pullback.lab.registry import SCALES, System, families, load, slugs, system
    from pullback.lab.result import RunResult, read_results
    from pullback.lab.runner import RunError, UsageError, run

_HOMES = {
    "Case": "bench",
    "Lab": "lab",
    "RunError": "runner",
    "RunResult": "result",
    "SCALES": "registry",
    "System": "registry",
    "UsageError": "runner",
    "families": "registry",
    "load": "registry",
    "read_results": "result",
    "run": "runner",
    "slugs": "registry",
    "system": "registry",
}

__all__ = [
    "SCALES",
    "Case",
    "Lab",
    "RunError",
    "RunResult",
    "System",
    "UsageError",
    "families",
    "load",
    "read_results",
    "run",
    "slugs",
    "system",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"pullback.lab.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pullback.lab' has no attribute {name!r}")
