"""Find where the gradient dies."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from pullback.audit.entry import audit
from pullback.audit.probe.chaos import lyapunov
from pullback.audit.report.findings import Finding, LineRecord, ParameterRecord, Report
from pullback.audit.script import audit_script
from pullback.audit.target import audit_target, load_target

__all__ = [
    "Finding",
    "LineRecord",
    "ParameterRecord",
    "Report",
    "audit",
    "audit_script",
    "audit_target",
    "load_target",
    "lyapunov",
]


class _CallableModule(ModuleType):
    """Lets ``pullback.audit(fn, x)`` be the call and ``pullback.audit.lyapunov`` its probes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        return audit(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
