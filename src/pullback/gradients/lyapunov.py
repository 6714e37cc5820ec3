"""Lyapunov exponents of an iterated step: whether gradients through it grow or fade."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive
from pullback.core.shapes import Float

__all__ = ["LyapunovSpectrum", "lyapunov_spectrum"]


@dataclass(frozen=True)
class LyapunovSpectrum:
    """Lyapunov exponents of a trajectory.

    Attributes:
        exponents: ``[count]`` mean growth rates per unit time, largest first; single precision where the state's is
            half.
        errors: ``[count]`` standard errors, from the means of ten consecutive parts of the trajectory.
        curve: ``[steps / every, count]`` running estimates.
        state: the state after the last step.
        converged: whether each standard error is below ``max(0.02, 5 %)`` of its exponent.
    """

    exponents: Tensor
    errors: Tensor
    curve: Tensor
    state: Tensor
    converged: bool


def lyapunov_spectrum(
    step: Callable[[Tensor], Tensor],
    state: Float[Tensor, "*shape"],
    *,
    steps: int,
    count: int | None = None,
    every: int = 1,
    dt: float = 1.0,
    burn_in: int = 0,
) -> LyapunovSpectrum:
    r"""Return the leading Lyapunov exponents of ``state -> step(state)`` along one trajectory.

    Tangent vectors are carried by Jacobian-vector products and re-orthonormalised, ``Q_t R_t = J_t Q_{t-1}``;
    ``exponent_i = mean over t of log |R_ii| / dt``. A positive largest exponent means that gradients through ``T``
    steps grow like ``exp(exponent T)`` almost everywhere.

    Args:
        step: a differentiable map that keeps shape and dtype of the state.
        state: ``[*shape]`` the initial state; the whole tensor is one state.
        steps: number of steps, a positive multiple of ``every``.
        count: how many exponents, from 1 to the number of elements (default: all).
        every: steps between two orthonormalisations.
        dt: time that one step stands for.
        burn_in: steps taken first, without measuring, to reach the attractor.

    Returns:
        A :class:`LyapunovSpectrum`.

    Raises:
        TypeError: ``step`` is not callable, ``state`` is not floating, or a number of steps is no integer.
        ValueError: ``state`` is empty; ``steps``, ``count``, ``every``, ``dt`` or ``burn_in`` is out of range; ``step``
            changes shape or dtype; the state is no longer finite (the message names the step).

    Example:
        >>> spectrum = lyapunov_spectrum(lambda x: 0.5 * x, torch.tensor([1.0, 2.0]), steps=10)
        >>> [round(float(e), 4) for e in spectrum.exponents]  # log 0.5
        [-0.6931, -0.6931]

    References:
        Benettin, Galgani, Giorgilli, Strelcyn (1980), Lyapunov characteristic exponents for smooth dynamical systems.
        Metz, Freeman, Schoenholz, Kachman (2021), Gradients are not all you need, arXiv 2111.05803.
    """
    check_callable("step", step)
    if not check_floating("state", state).numel():
        raise ValueError(f"state must not be empty, got shape {tuple(state.shape)}")
    check_positive("dt", dt)
    size = state.numel()
    count = check_integer("count", size if count is None else count, 1, size)
    check_integer("every", every, 1)
    if check_integer("steps", steps, 1) % every:
        raise ValueError(f"steps must be a multiple of every, got steps={steps}, every={every}")
    check_integer("burn_in", burn_in, 0)
    x = state.detach().clone()
    wide = torch.promote_types(x.dtype, torch.float32)  # torch orthonormalises nothing narrower
    basis = torch.eye(size, count, dtype=x.dtype, device=x.device)
    for index in range(burn_in):
        x = _checked(step(x).detach(), x, index)
    logs: list[Tensor] = []
    for index in range(steps):
        value, basis = _push(step, x, basis)
        x = _checked(value, x, burn_in + index)
        if (index + 1) % every == 0:
            orthonormal, triangle = torch.linalg.qr(basis.to(wide))
            basis = orthonormal.to(x.dtype)
            logs.append(triangle.diagonal().abs().clamp_min(torch.finfo(wide).tiny).log())
    rates = torch.stack(logs) / (every * dt)
    exponents = rates.mean(0)
    parts = torch.stack([part.mean(0) for part in rates.chunk(min(10, len(rates)))])
    spread = parts.std(0) / math.sqrt(len(parts)) if len(parts) > 1 else torch.full_like(exponents, math.inf)
    order = exponents.argsort(descending=True)
    exponents, spread = exponents[order], spread[order]
    counts = torch.arange(1, len(rates) + 1, dtype=wide, device=x.device)[:, None]
    curve = (rates.cumsum(0) / counts)[:, order]
    converged = bool((spread <= torch.maximum(0.05 * exponents.abs(), torch.full_like(spread, 0.02))).all())
    return LyapunovSpectrum(exponents, spread, curve, x, converged)


def _push(step: Callable[[Tensor], Tensor], x: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``step(x)`` and the Jacobian applied to the columns of ``basis``."""

    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        value, tangent = torch.func.jvp(step, (x,), (direction.reshape(x.shape),))[:2]
        return value, tangent

    columns = []
    value = x
    for column in basis.T:
        value, tangent = along(column)
        columns.append(tangent.reshape(-1))
    return value.detach(), torch.stack(columns, dim=1).detach()


def _checked(value: Tensor, before: Tensor, index: int) -> Tensor:
    if value.shape != before.shape or value.dtype != before.dtype:
        raise ValueError(
            f"step must keep shape and dtype, got {tuple(value.shape)} {value.dtype} "
            f"from {tuple(before.shape)} {before.dtype}"
        )
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"state is not finite after step {index + 1}")
    return value
