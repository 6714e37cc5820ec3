"""Lyapunov exponents of an iterated step: whether gradients through it grow or fade."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pullback.core.checks import check_callable, check_integer, check_positive
from pullback.core.rows import Rows

__all__ = ["LyapunovSpectrum", "lyapunov_spectrum"]

PARTS = 10
"""Consecutive parts of a trajectory whose means give the standard error."""


@dataclass(frozen=True)
class LyapunovSpectrum:
    """Lyapunov exponents of one trajectory, or of each of a batch.

    Attributes:
        exponents: ``[*batch, count]`` mean growth rates per unit time, largest first; single precision where the
            state's is half.
        errors: ``[*batch, count]`` standard errors, from the means of ten consecutive parts of the trajectory.
        curve: ``[steps / every, *batch, count]`` running estimates.
        state: the state after the last step.
        converged: whether each standard error is at most ``max(0.02, 5 %)`` of its exponent; where not, the exponents
            are those of a piece of trajectory that is too short to stand for the system.
    """

    exponents: Tensor
    errors: Tensor
    curve: Tensor
    state: Any
    converged: bool


def lyapunov_spectrum(
    step: Callable[..., Any],
    state: Any,
    *,
    steps: int,
    count: int | None = None,
    every: int = 1,
    dt: float = 1.0,
    burn_in: int = 0,
    batch_ndim: int = 0,
    inputs: Sequence[Any] | Tensor | None = None,
    chunk: int | None = None,
) -> LyapunovSpectrum:
    r"""Return the leading Lyapunov exponents of ``state -> step(state)`` along trajectories.

    Tangent vectors are carried by Jacobian-vector products and re-orthonormalised, ``Q_t R_t = J_t Q_{t-1}``;
    ``exponent_i = mean over t of log |R_ii| / dt``. A positive largest exponent means that gradients through ``T``
    steps grow like ``exp(exponent T)`` almost everywhere. No Jacobian is formed: ``count`` tangents of a state with
    ``n`` numbers take ``count n`` numbers of memory.

    Args:
        step: a differentiable map that keeps structure, shapes and dtype of the state.
        state: the initial state: a floating tensor, or any nesting of tuples, lists and dicts of them.
        steps: number of steps, a positive multiple of ``every``.
        count: how many exponents, from 1 to the number of elements of one state (default: all).
        every: steps between two orthonormalisations; so few that ``exp(every dt (first - last exponent))`` is far
            from ``1 / eps``.
        dt: time that one step stands for.
        burn_in: steps taken first, without measuring: the state reaches the attractor, the tangents turn to the
            directions that belong to the exponents.
        batch_ndim: leading dimensions of every tensor that number trajectories; ``step`` keeps them apart.
        inputs: what drives the system, one entry a step, burn-in first: then ``step(state, inputs[t])`` is called.
        chunk: how many tangents one call of ``step`` carries, by ``torch.func.vmap`` (default: all); 1 for a step that
            vmap cannot take.

    Returns:
        A :class:`LyapunovSpectrum`.

    Raises:
        TypeError: ``step`` is not callable, ``state`` holds something else than floating tensors, or a number of steps
            is no integer.
        ValueError: ``state`` is empty; ``steps``, ``count``, ``every``, ``dt``, ``burn_in``, ``batch_ndim`` or
            ``chunk`` is out of range; ``inputs`` has another length; ``step`` changes structure, shape or dtype; the
            state is no longer finite (the message names the step).

    Example:
        >>> spectrum = lyapunov_spectrum(lambda x: 0.5 * x, torch.tensor([1.0, 2.0]), steps=10)
        >>> [round(float(e), 4) for e in spectrum.exponents]  # log 0.5
        [-0.6931, -0.6931]

    References:
        Benettin, Galgani, Giorgilli, Strelcyn (1980), Lyapunov characteristic exponents for smooth dynamical systems.
        Metz, Freeman, Schoenholz, Kachman (2021), Gradients are not all you need, arXiv 2111.05803.
    """
    check_callable("step", step)
    check_integer("batch_ndim", batch_ndim, 0)
    rows = Rows.of(state, batch_ndim, "state")
    if not rows.size or not rows.count:
        raise ValueError(f"state must not be empty, got {rows.count} trajectories of {rows.size} elements")
    check_positive("dt", dt)
    count = check_integer("count", rows.size if count is None else count, 1, rows.size)
    check_integer("every", every, 1)
    if check_integer("steps", steps, 1) % every:
        raise ValueError(f"steps must be a multiple of every, got steps={steps}, every={every}")
    check_integer("burn_in", burn_in, 0)
    chunk = count if chunk is None else check_integer("chunk", chunk, 1)
    if inputs is not None and len(inputs) != burn_in + steps:
        raise ValueError(f"inputs must have one entry a step, {burn_in + steps}, got {len(inputs)}")
    x = pytree.tree_map(lambda leaf: leaf.detach().clone(), state)
    wide = torch.promote_types(rows.dtype, torch.float32)  # torch orthonormalises nothing narrower
    basis = torch.eye(rows.size, count, dtype=rows.dtype, device=rows.device).expand(rows.count, -1, -1)
    logs: list[Tensor] = []
    for index in range(-burn_in, steps):
        driven = step if inputs is None else _driven(step, inputs[burn_in + index])
        x, basis = _push(driven, x, basis, rows, chunk, burn_in + index)
        if (index + 1) % every == 0:
            orthonormal, triangle = torch.linalg.qr(basis.to(wide))
            basis = orthonormal.to(rows.dtype)
            if index >= 0:
                sizes = triangle.diagonal(dim1=-2, dim2=-1).abs().clamp_min(torch.finfo(wide).tiny)
                logs.append(sizes.log())
    return _spectrum(torch.stack(logs) / (every * dt), x, rows)


def _spectrum(rates: Tensor, state: Any, rows: Rows) -> LyapunovSpectrum:
    """Turn the growth rates ``[orthonormalisations, trajectories, count]`` into exponents with errors."""
    exponents = rates.mean(0)
    parts = torch.stack([part.mean(0) for part in rates.chunk(min(PARTS, len(rates)))])
    errors = parts.std(0) / math.sqrt(len(parts)) if len(parts) > 1 else torch.full_like(exponents, math.inf)
    exponents, order = exponents.sort(-1, descending=True)
    errors = errors.gather(-1, order)
    times = torch.arange(1, len(rates) + 1, dtype=rates.dtype, device=rates.device)[:, None, None]
    curve = (rates.cumsum(0) / times).gather(-1, order.expand_as(rates))
    converged = bool((errors <= (0.05 * exponents.abs()).clamp_min(0.02)).all())
    exponents, errors, curve = (t.reshape(*t.shape[:-2], *rows.batch, t.shape[-1]) for t in (exponents, errors, curve))
    return LyapunovSpectrum(exponents, errors, curve, state, converged)


def _driven(step: Callable[..., Any], drive: Any) -> Callable[[Any], Any]:
    return lambda state: step(state, drive)


def _push(step: Callable[[Any], Any], x: Any, basis: Tensor, rows: Rows, chunk: int, index: int) -> tuple[Any, Tensor]:
    """Return ``step(x)`` and the Jacobian of every trajectory applied to the columns of its ``basis``."""

    def along(column: Tensor) -> tuple[Any, Tensor]:
        value, tangent = torch.func.jvp(step, (x,), (rows.unpack(column),))[:2]
        rows.check(value, "step", "state")
        return value, rows.pack(tangent)

    value, columns = x, []
    for part in basis.split(chunk, -1):
        if part.shape[-1] == 1:
            value, tangent = along(part[..., 0])
            columns.append(tangent[..., None])
        else:
            dims: Any = (None, -1)  # of the value, which no tangent changes, and of the tangents
            value, tangents = torch.func.vmap(along, in_dims=-1, out_dims=dims)(part)
            columns.append(tangents)
    _check(value, rows, index)
    return pytree.tree_map(Tensor.detach, value), torch.cat(columns, dim=-1).detach()


def _check(value: Any, rows: Rows, index: int) -> None:
    for leaf in pytree.tree_leaves(value):
        if leaf.dtype != rows.dtype:
            raise ValueError(f"step must keep the dtype of state, {rows.dtype}, got {leaf.dtype}")
        if not bool(torch.isfinite(leaf).all()):
            raise ValueError(f"state is not finite after step {index + 1}")
