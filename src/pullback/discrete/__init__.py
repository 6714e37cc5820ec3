"""Blocks of the discrete family."""

from __future__ import annotations

from pullback.discrete.piecewise import abs, clamp, heaviside, maximum, minimum, relu, sign
from pullback.discrete.rounding import ceil, floor, frac, remainder, round, trunc

__all__ = [
    "abs",
    "ceil",
    "clamp",
    "floor",
    "frac",
    "heaviside",
    "maximum",
    "minimum",
    "relu",
    "remainder",
    "round",
    "sign",
    "trunc",
]
