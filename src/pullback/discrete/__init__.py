"""Blocks of the discrete family."""

from __future__ import annotations

from pullback.discrete.comparisons import equal, greater, greater_equal, isclose, less, less_equal, not_equal
from pullback.discrete.logic import (
    all,
    any,
    count,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    masked_fill,
    masked_mean,
    where,
)
from pullback.discrete.piecewise import abs, clamp, heaviside, maximum, minimum, relu, sign
from pullback.discrete.rounding import ceil, floor, frac, remainder, round, trunc

__all__ = [
    "abs",
    "all",
    "any",
    "ceil",
    "clamp",
    "count",
    "equal",
    "floor",
    "frac",
    "greater",
    "greater_equal",
    "heaviside",
    "isclose",
    "less",
    "less_equal",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "masked_fill",
    "masked_mean",
    "maximum",
    "minimum",
    "not_equal",
    "relu",
    "remainder",
    "round",
    "sign",
    "trunc",
    "where",
]
