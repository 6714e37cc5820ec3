"""The step of complex momentum in one pass over memory: an entry is read and written once.

``a <- Re(b) a - Im(b) c - g``, ``c <- Im(b) a_old + Re(b) c``, ``w <- w + lr a`` moves seven numbers an entry; a
sequence of tensor operations moves eighteen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pullback.kernels.compiled import compiled, over_rows

__all__ = ["complex_momentum"]


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
    tensors = (*params, *grads, *real, *imaginary)
    if loop is None or not all(_plain(t) for t in tensors):
        return False
    for w, g, a, c in zip(params, grads, real, imaginary, strict=True):
        rows = [t.view(-1).numpy() for t in (w.detach(), g.detach(), a, c)]
        over_rows(loop, *rows, *(rows[0].dtype.type(v) for v in (beta.real, beta.imag, lr)))
    torch.autograd.graph.increment_version(params)  # a graph that saved them must know
    return True


def _plain(t: Tensor) -> bool:
    return t.device.type == "cpu" and t.dtype in (torch.float32, torch.float64) and t.is_contiguous() and not t.is_neg()


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
