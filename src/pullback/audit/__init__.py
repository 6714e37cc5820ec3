"""Find where the gradient dies."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from pullback.audit.entry import audit
from pullback.audit.findings import Finding, LineRecord, ParameterRecord, Report

__all__ = ["Finding", "LineRecord", "ParameterRecord", "Report", "audit"]


class _CallableModule(ModuleType):
    """Lets ``pullback.audit(fn, x)`` be the call and ``pullback.audit.lyapunov`` its probes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Report:
        return audit(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
