"""The one place that asks whether loops can be compiled, and that spreads their rows over threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch

__all__ = ["compiled", "over_rows"]

_WORTH_A_THREAD = 1 << 17
"""Elements below which starting threads takes longer than the loops."""


@cache
def compiled(reassociate: bool = False, nan: bool = False) -> Callable[..., Any] | None:
    """Return numba's compiling decorator (no Python objects, no GIL, results cached on disk), or ``None`` without
    numba.

    numba is imported on first use and is optional: each kernel has a plain form for the case ``None``. A function that
    is compiled here may define inner functions, but not refer to another compiled one beside it: numba would find
    nothing on disk, and compile for seconds at every start.

    Args:
        reassociate: let sums and maxima be taken in any order, as vector instructions need, and no number be NaN.
        nan: numbers may be NaN all the same (maxima then take longer).

    Example:
        >>> jit = compiled()
        >>> jit is None or callable(jit)
        True
    """
    try:
        import numba
    except ModuleNotFoundError:
        return None
    fastmath = (
        {"contract", "arcp", "nsz"}
        | ({"reassoc"} if reassociate else set())
        | ({"nnan"} if reassociate and not nan else set())
    )
    decorator: Callable[..., Any] = numba.njit(nogil=True, cache=True, fastmath=fastmath)
    return decorator


def over_rows(kernel: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call ``kernel`` on parts of the rows in up to ``torch.get_num_threads()`` threads; return what the parts return.

    Args:
        kernel: releases the GIL and treats rows independently.
        *arguments: arrays ``[b, ...]``, of which every part gets its rows, and whatever else is passed on as it is. The
            first is the array that decides whether threads pay. No threads outlive the call (a fork may follow).

    Example:
        >>> out = np.zeros((2, 3))
        >>> over_rows(lambda rows, scale, out: np.multiply(rows, scale, out=out) is out, np.ones((2, 3)), 2.0, out)
        [True]
        >>> float(out.sum())
        12.0
    """
    first = arguments[0]
    threads = first.size // _WORTH_A_THREAD
    if threads > 1:
        threads = min(torch.get_num_threads(), first.shape[0], threads)
    if threads < 2:
        return [kernel(*arguments)]
    bounds = [first.shape[0] * i // threads for i in range(threads + 1)]

    def part(i: int) -> Any:
        rows = slice(bounds[i], bounds[i + 1])
        return kernel(*[a[rows] if isinstance(a, np.ndarray) else a for a in arguments])

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(part, range(threads)))
