"""Linear complementarity problems of positive semidefinite matrices: non-negative quadratic programs, many at once.

``z >= 0``, ``y = M z + q >= 0``, ``z . y = 0`` are the conditions of ``min_{z >= 0} z . M z / 2 + q . z``.

References:
    Lawson, Hanson (1974), Solving least squares problems, chapter 23 (one entry enters at a time). Portugal, Judice,
    Vicente (1994), A comparison of block pivoting and interior-point algorithms for linear least squares problems with
    nonnegative variables (all entries that are wrong change sides at once).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.core import numerics
from pullback.core.transforms import is_transformed
from pullback.kernels.compiled import compiled, over_rows

__all__ = ["complementarity", "complementarity_plain", "differentiable_complementarity"]

_SLACK = 1e-13
"""Relative to the largest entry of q: how far below 0 an entry of y may be."""


def complementarity(matrix: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Solve ``z >= 0``, ``M z + q >= 0``, ``z . (M z + q) = 0`` for several ``q`` of each ``M``.

    Args:
        matrix: ``[b, n, n]`` float64, symmetric, positive definite up to rounding.
        vector: ``[b, k, n]`` float64, the ``q`` of each matrix.

    Returns:
        ``z [b, k, n]`` and ``free [b, k, n]``, where ``z`` may differ from 0. An entry whose column depends on those
        that are free already stays at 0. ``z`` is NaN where the matrix is clearly indefinite. Compiled on the CPU;
        :func:`complementarity_plain` on other devices and without numba.

    Example:
        >>> complementarity(torch.eye(2).double()[None], torch.tensor([[[-1.0, 2.0]]]).double())[0].tolist()
        [[[1.0, 0.0]]]
    """
    loop = _loop()
    if loop is None or matrix.device.type != "cpu":
        return complementarity_plain(matrix, vector)
    z = torch.zeros(vector.shape, dtype=torch.float64)
    free = torch.zeros(vector.shape, dtype=torch.bool)
    over_rows(loop, *(t.contiguous().numpy() for t in (matrix, vector)), z.numpy(), free.numpy())
    return z, free


def complementarity_plain(matrix: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Return what :func:`complementarity` does, on any device, by block pivoting of all problems at once.

    Example:
        >>> complementarity_plain(torch.eye(2).double()[None], torch.tensor([[[-1.0, 2.0]]]).double())[0].tolist()
        [[[1.0, 0.0]]]
    """
    n = vector.shape[-1]
    slack = _SLACK * vector.abs().amax(-1, keepdim=True) if n else vector
    free = torch.zeros(vector.shape, dtype=torch.bool, device=vector.device)
    z, y = torch.zeros_like(vector), vector
    fewest = torch.full(vector.shape[:-1], n + 1, device=vector.device)
    chances = torch.full_like(fewest, 3)
    place = torch.arange(n, device=vector.device)
    for _ in range(50 + 10 * n):
        wrong = torch.where(free, z < -slack, y < -slack)
        count = wrong.sum(-1)
        if not bool(count.any()):
            break
        better = count < fewest
        fewest = torch.where(better, count, fewest)
        chances = torch.where(better, 3, chances - 1)
        last = (torch.where(wrong, place, -1).amax(-1, keepdim=True)) == place
        free = free ^ (wrong & (last | (chances > 0)[..., None]))
        both = free[..., None] & free[..., None, :]
        system = torch.where(both, matrix[:, None], 0) + torch.diag_embed((~free).to(matrix))
        z = torch.linalg.solve_ex(system, torch.where(free, -vector, 0)[..., None]).result[..., 0]
        y = torch.where(free, 0, vector + (matrix[:, None] @ z[..., None])[..., 0])
    indefinite = torch.linalg.eigvalsh(matrix)[:, :1] < -1e-3 * matrix.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True)
    return torch.where(indefinite[..., None], torch.nan, z.clamp(min=0)), free


def differentiable_complementarity(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the ``z`` of :func:`complementarity`, differentiable with the free entries fixed, under every transform.

    Args:
        matrix: ``[*batch, n, n]`` float64, symmetric, positive definite.
        vector: ``[*batch, k, n]``, the ``q``.

    Returns:
        ``[*batch, k, n]``.

    Example:
        >>> matrix = torch.eye(1, dtype=torch.float64).requires_grad_()
        >>> z = differentiable_complementarity(matrix, -2 * torch.ones(1, 1, dtype=torch.float64))
        >>> z.item(), torch.autograd.grad(z.sum(), matrix)[0].item()
        (2.0, -2.0)
    """
    transformed = is_transformed(matrix) or is_transformed(vector)
    found = _as_operation if transformed else _in_rows  # the first call of an operation imports a compiler
    z, free = found(matrix.detach(), vector.detach())
    wants = torch.is_grad_enabled() and (matrix.requires_grad or vector.requires_grad)
    if not (wants or transformed):
        return z
    both = free[..., None] & free[..., None, :]
    system = torch.where(both, matrix[..., None, :, :], 0) + torch.diag_embed((~free).to(matrix.dtype))
    right = torch.where(free, -vector, 0)
    return numerics.solve(system, right[..., None])[..., 0]


def _in_rows(matrix: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    rows = vector.shape[-2:]
    z, free = complementarity(matrix.reshape(-1, *matrix.shape[-2:]), vector.reshape(-1, *rows))
    return z.reshape(vector.shape).contiguous(), free.reshape(vector.shape).contiguous()


_as_operation = torch.library.custom_op(
    "pullback::complementarity",
    _in_rows,
    mutates_args=(),
    schema="(Tensor matrix, Tensor vector) -> (Tensor, Tensor)",
)


@_as_operation.register_fake
def _(matrix: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    return vector.new_empty(vector.shape), vector.new_empty(vector.shape, dtype=torch.bool)


def _mapped(info: Any, in_dims: tuple[int | None, int | None], *tensors: Tensor) -> Any:
    """A batch is one more leading dimension; what is not mapped over is repeated."""
    moved = [
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(tensors, in_dims, strict=True)
    ]
    return _as_operation(*moved), (0, 0)


_as_operation.register_vmap(_mapped)


@cache
def _loop() -> Callable[..., Any] | None:
    """Return the compiled loop, ``None`` without numba."""
    jit = compiled()
    return None if jit is None else jit(_enter_one_by_one)


def _enter_one_by_one(matrix: Any, vector: Any, z: Any, free: Any) -> None:
    """Lawson and Hanson's method with a Cholesky factor that grows by a row when an entry enters."""
    count, many, n = vector.shape
    factor, order = np.empty((n, n)), np.empty(n, np.int64)
    half, trial, y = np.empty(n), np.empty(n), np.empty(n)
    barred = np.empty(n, np.bool_)
    for b in range(count):
        widest = 0.0
        for j in range(n):
            widest = max(widest, matrix[b, j, j])
        for r in range(many):
            q, x, inside = vector[b, r], z[b, r], free[b, r]
            largest = 0.0
            for j in range(n):
                largest = max(largest, abs(q[j]))
                y[j] = q[j]
                barred[j] = False
            used = 0
            for _ in range(50 + 10 * n):
                entering, lowest = -1, -1e-13 * largest
                for j in range(n):
                    if not inside[j] and not barred[j] and y[j] < lowest:
                        entering, lowest = j, y[j]
                if entering < 0:
                    break
                order[used] = entering
                first = used  # rows of the factor from here on are missing
                used += 1
                inside[entering] = True
                while used > 0:
                    dependent = False
                    for i in range(first, used):
                        total = 0.0
                        for k in range(i):
                            value = matrix[b, order[i], order[k]]
                            for p in range(k):
                                value -= factor[i, p] * factor[k, p]
                            factor[i, k] = value / factor[k, k]
                            total += factor[i, k] * factor[i, k]
                        own = matrix[b, order[i], order[i]]
                        pivot = own - total
                        if pivot <= 1e-14 * own:
                            if pivot < -1e-3 * widest:
                                x[:] = np.nan
                            dependent = True
                            break
                        factor[i, i] = np.sqrt(pivot)
                    if dependent:  # the one that entered last
                        used -= 1
                        x[order[used]] = 0.0 * x[order[used]]
                        inside[order[used]] = False
                        barred[order[used]] = True
                        if first < used:
                            continue
                        break
                    first = used
                    for i in range(used):
                        value = -q[order[i]]
                        for k in range(i):
                            value -= factor[i, k] * half[k]
                        half[i] = value / factor[i, i]
                    for i in range(used - 1, -1, -1):
                        value = half[i]
                        for k in range(i + 1, used):
                            value -= factor[k, i] * trial[k]
                        trial[i] = value / factor[i, i]
                    step = 1.0
                    leaving = -1
                    for i in range(used):
                        if trial[i] <= 0.0:
                            part = x[order[i]] / (x[order[i]] - trial[i]) if x[order[i]] > trial[i] else 0.0
                            if part <= step or leaving < 0:
                                step, leaving = min(part, step), i
                    for i in range(used):
                        x[order[i]] += step * (trial[i] - x[order[i]])
                    if leaving < 0:
                        break
                    x[order[leaving]] = 0.0
                    inside[order[leaving]] = False
                    if leaving == used - 1:  # what has just entered would leave at once: rounding
                        barred[order[leaving]] = True
                    for i in range(leaving, used - 1):
                        order[i] = order[i + 1]
                    used -= 1
                    first = leaving
                for j in range(n):
                    if not inside[j]:
                        value = q[j]
                        for i in range(used):
                            value += matrix[b, j, order[i]] * x[order[i]]
                        y[j] = value
