"""Find where the gradient dies.

The parts are imported on first use: a command that only looks advice up needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pullback.audit.entry import audit
    from pullback.audit.probe.chaos import lyapunov
    from pullback.audit.report.findings import Finding, LineRecord, ParameterRecord
    from pullback.audit.report.remedy import Remedy
    from pullback.audit.report.report import Report
    from pullback.audit.script import audit_script
    from pullback.audit.target import audit_target, load_target

_HOMES = {
    "Finding": "report.findings",
    "LineRecord": "report.findings",
    "ParameterRecord": "report.findings",
    "Remedy": "report.remedy",
    "Report": "report.report",
    "audit": "entry",
    "audit_script": "script",
    "audit_target": "target",
    "load_target": "target",
    "lyapunov": "probe.chaos",
}

__all__ = [
    "Finding",
    "LineRecord",
    "ParameterRecord",
    "Remedy",
    "Report",
    "audit",
    "audit_script",
    "audit_target",
    "load_target",
    "lyapunov",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"pullback.audit.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pullback.audit' has no attribute {name!r}")


class _CallableModule(ModuleType):
    """Lets ``pullback.audit(fn, x)`` be the call and ``pullback.audit.lyapunov`` its probes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        return __getattr__("audit")(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
