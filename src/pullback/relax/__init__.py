"""Unchanged torch code with gradients: :class:`relaxed`.

The parts are imported on first use: an audit asks for the class of soft tensors alone, and needs
neither rules nor blocks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pullback.relax.mode import relaxed
    from pullback.relax.report import RelaxedCall
    from pullback.relax.soft_tensors import Distribution, SoftBool, SoftIndex, SoftTensor

_HOMES = {
    "Distribution": "soft_tensors",
    "RelaxedCall": "report",
    "SoftBool": "soft_tensors",
    "SoftIndex": "soft_tensors",
    "SoftTensor": "soft_tensors",
    "relaxed": "mode",
}

__all__ = ["Distribution", "RelaxedCall", "SoftBool", "SoftIndex", "SoftTensor", "relaxed"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"pullback.relax.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'pullback.relax' has no attribute {name!r}")
