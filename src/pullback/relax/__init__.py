"""Unchanged torch code with gradients: :class:`relaxed`."""

from __future__ import annotations

from pullback.relax.mode import relaxed
from pullback.relax.report import RelaxedCall
from pullback.relax.soft_tensors import Distribution, SoftBool, SoftIndex, SoftTensor

__all__ = ["Distribution", "RelaxedCall", "SoftBool", "SoftIndex", "SoftTensor", "relaxed"]
