"""The step of complex momentum in one pass over memory: an entry is read and written once.

``a <- Re(b) a - Im(b) c - g``, ``c <- Im(b) a_old + Re(b) c``, ``w <- w + lr a`` moves seven numbers an entry; a
sequence of tensor operations moves eighteen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.kernels.compiled import compiled, over_rows

__all__ = ["complex_momentum"]

_KINDS = frozenset((torch.float32, torch.float64))


def complex_momentum(
    params: list[Tensor], grads: list[Tensor], real: list[Tensor], imaginary: list[Tensor], beta: complex, lr: float
) -> bool:
    """Take the step in place if every tensor is a contiguous one of single or double precision on the CPU.

    Args:
        params: ``w``, of any shapes.
        grads: ``g``.
        real: ``a``.
        imaginary: ``c``.
        beta: the coefficient.
        lr: step size.

    Returns:
        Whether it was taken: ``False`` for other tensors and without numba, and nothing has changed.

    Example:
        >>> w, a, c = torch.ones(1), torch.zeros(1), torch.zeros(1)
        >>> complex_momentum([w], [torch.ones(1)], [a], [c], 0.5j, 0.5) in (True, False)
        True
    """
    loop = _loop()
    if loop is None or not all(map(_plain, (*params, *grads, *real, *imaginary))):
        return False
    numbers = beta.real, beta.imag, lr
    kinds = {kind: [getattr(np, str(kind)[6:])(v) for v in numbers] for kind in {p.dtype for p in params}}
    for w, g, a, c in zip(params, grads, real, imaginary, strict=True):
        moved, slope = w.detach().numpy().ravel(), (g.detach() if g.requires_grad else g).numpy().ravel()
        over_rows(loop, moved, slope, a.numpy().ravel(), c.numpy().ravel(), *kinds[w.dtype])
    torch.autograd.graph.increment_version(params)  # a graph that saved them must know
    return True


def _plain(t: Tensor) -> bool:
    return t.is_cpu and t.dtype in _KINDS and t.is_contiguous() and not t.is_neg()


@cache
def _loop() -> Callable[..., Any] | None:
    jit = compiled()
    return None if jit is None else jit(_step)


def _step(w: Any, g: Any, a: Any, c: Any, real: Any, imaginary: Any, lr: Any) -> None:
    for i in range(w.shape[0]):
        old = a[i]
        new = real * old - imaginary * c[i] - g[i]
        c[i] = imaginary * old + real * c[i]
        a[i] = new
        w[i] += lr * new
