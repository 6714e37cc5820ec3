"""The steps of complex momentum and of its Adam in one pass over memory: an entry is read and written once.

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

__all__ = ["complex_adam", "complex_momentum"]

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


def complex_adam(
    params: list[Tensor],
    grads: list[Tensor],
    real: list[Tensor],
    imaginary: list[Tensor],
    square: list[Tensor],
    corrections: list[tuple[float, float, float]],
    betas: tuple[complex, float],
    lr: float,
    eps: float,
) -> bool:
    """Take the step of Adam with a complex first moment in place, where :func:`complex_momentum` would.

    Args:
        params, grads: ``w`` and ``g``, of any shapes.
        real, imaginary, square: the moments.
        corrections: of each tensor: what both parts of the first moment, and the second, are multiplied with.
        betas: ``b1`` and ``b2``.
        lr, eps: step size, and what is added to the root.

    Returns:
        Whether it was taken.

    Example:
        >>> w, a, c, v = torch.ones(1), torch.zeros(1), torch.zeros(1), torch.zeros(1)
        >>> complex_adam([w], [w + 1], [a], [c], [v], [(1.0, 0.0, 1.0)], (0.5j, 0.9), 0.5, 1e-8) in (True, False)
        True
    """
    loop = _adam_loop()
    if loop is None or not all(map(_plain, (*params, *grads, *real, *imaginary, *square))):
        return False
    (one, two), moments = betas, (real, imaginary, square)
    for w, g, a, c, v, factors in zip(params, grads, *moments, corrections, strict=True):
        kind = getattr(np, str(w.dtype)[6:])
        numbers = [kind(x) for x in (one.real, one.imag, 1 - one.real, two, 1 - two, *factors, lr, eps)]
        arrays = [t.detach().numpy().ravel() for t in (w, g, a, c, v)]
        over_rows(loop, *arrays, *numbers)
    torch.autograd.graph.increment_version([*params, *real, *imaginary, *square])
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


@cache
def _adam_loop() -> Callable[..., Any] | None:
    jit = compiled()
    return None if jit is None else jit(_adam)


def _adam(
    w: Any,
    g: Any,
    a: Any,
    c: Any,
    v: Any,
    real: Any,
    imaginary: Any,
    rest: Any,
    two: Any,
    new: Any,
    across: Any,
    up: Any,
    second: Any,
    lr: Any,
    eps: Any,
) -> None:
    for i in range(w.shape[0]):
        slope = g[i]
        first = real * a[i] - imaginary * c[i] + rest * slope
        other = imaginary * a[i] + real * c[i] - imaginary * slope
        size = two * v[i] + new * slope * slope
        a[i], c[i], v[i] = first, other, size
        below = np.sqrt(size * second) + eps
        w[i] -= lr * ((across * first + up * other) / below if below > 0 else below)
