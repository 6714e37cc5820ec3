"""The one place that asks whether loops can be compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

__all__ = ["compiled"]


@cache
def compiled() -> Callable[..., Any] | None:
    """Return numba's compiling decorator (no Python objects, no GIL, results cached on disk), or ``None`` without
    numba.

    numba is imported on first use and is optional: each kernel has a plain form for the case ``None``.

    Example:
        >>> jit = compiled()
        >>> jit is None or callable(jit)
        True
    """
    try:
        import numba
    except ModuleNotFoundError:
        return None
    decorator: Callable[..., Any] = numba.njit(nogil=True, cache=True, fastmath={"contract", "arcp", "nsz"})
    return decorator
