"""An exponential for compiled loops: a polynomial and a shift of the exponent, which vector instructions compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

__all__ = ["two_to_the"]

_POWERS = tuple(math.log(2) ** k / math.factorial(k) for k in range(11, -1, -1))
"""Coefficients of 2^r on [-1/2, 1/2], the highest power first."""


@cache
def two_to_the(single: bool) -> Callable[[Any], Any]:
    """Return 2^x of one number, written into the compiled loops that call it; numba must be there.

    To 1e-14 of its size in float64, to 3e-7 in float32. Below the normal numbers it is 0; exponents above 1000 (126)
    are taken as that.

    Args:
        single: for float32; else float64.

    Example:
        >>> import pytest
        >>> numba = pytest.importorskip("numba")
        >>> power = two_to_the(False)
        >>> [round(float(x), 12) for x in (power(np.float64(3.5)), power(np.float64(-2000)))]
        [11.313708498985, 0.0]
    """
    from numba.extending import register_jitable

    real: Any = np.float32 if single else np.float64
    integer: Any = np.int32 if single else np.int64
    c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11 = [real(c) for c in _POWERS]
    # Below the normal numbers the exponent's bits are 0, which is the number 0.
    low, high, half = real(-127 if single else -1023), real(126 if single else 1000), real(0.5)
    bias, bits = (integer(127), integer(23)) if single else (integer(1023), integer(52))
    magic = real(1.5 * 2.0 ** (23 if single else 52))  # to it whole numbers are added without a conversion

    def of_single(r: Any) -> Any:
        return c5

    def of_double(r: Any) -> Any:
        return ((((c0 * r + c1) * r + c2) * r + c3) * r + c4) * r + c5

    first = register_jitable(inline="always")(of_single if single else of_double)

    def two_to(x: Any) -> Any:
        held = min(max(x, low), high)
        whole = np.floor(held + half)
        r = held - whole
        fraction = (((((first(r) * r + c6) * r + c7) * r + c8) * r + c9) * r + c10) * r + c11
        power = integer((real(whole + magic).view(integer) + bias) << bits).view(real)
        return fraction * power

    found: Callable[[Any], Any] = register_jitable(inline="always")(two_to)
    return found
