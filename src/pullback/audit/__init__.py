"""Find where the gradient dies."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


def audit(*args: Any, **kwargs: Any) -> Any:
    """Audit a function."""
    raise NotImplementedError


class _CallableModule(ModuleType):
    """Lets ``pullback.audit(fn, x)`` be the call and ``pullback.audit.lyapunov`` its probes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return audit(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
