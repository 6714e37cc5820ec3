"""Times of a solve: how they are laid out, which way they run, and how a state moves with them."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.core.rows import Rows
from pullback.core.transforms import transform_running
from pullback.dynamics.field import FlatField
from pullback.dynamics.transforms import every, some

__all__ = ["columns", "direction", "shifted_end", "shifted_start"]


def columns(name: str, t: Tensor, rows: Rows) -> Tensor:
    """Times ``[m]`` or ``[*batch, m]`` as ``[m, samples or 1, 1]``."""
    if t.ndim == 1:
        return t.reshape(-1, 1, 1)
    if tuple(t.shape[:-1]) != rows.batch:
        raise ValueError(f"{name} must have shape [times] or {[*rows.batch, 'times']}, got {tuple(t.shape)}")
    return t.reshape(rows.count, t.shape[-1]).T.unsqueeze(-1)


def direction(times: Tensor, *, endless: bool = False) -> float | Tensor:
    """1, -1, or for samples of both directions ``[samples, 1]``; raises ``ValueError`` where times turn back, or are
    not finite (``endless``: but for the last)."""
    times = times.detach()
    if not every(torch.isfinite(times[:-1] if endless else times)) or some(torch.isnan(times)):
        raise ValueError(f"t must be finite, got {times.flatten().tolist()}")
    forward = times[-1] >= times[0]
    sign: float | Tensor
    if every(forward):
        sign = 1.0
    elif not some(forward):
        sign = -1.0
    else:
        sign = torch.where(forward, 1.0, -1.0).to(times.dtype)
    steps = times.diff(dim=0) * sign
    if some(steps < 0):
        if transform_running():
            raise ValueError("t must be monotone")
        i, sample = (int(v) for v in (steps[..., 0] < 0).nonzero()[0])
        raise ValueError(
            f"t must be monotone, got {float(times[i, sample])} before {float(times[i + 1, sample])} "
            f"(positions {i} and {i + 1}, sample {sample}) in a solve "
            f"from {float(times[0, sample])} to {float(times[-1, sample])}"
        )
    return sign


def shifted_start(field: FlatField, y: Tensor, t: Tensor) -> Tensor:
    """``y`` given at live time ``t``, moved to the same time held constant: the value of y, the derivative -f of t.

    A midpoint step of length zero: exact to the second derivative.
    """
    h = t.detach() - t
    return y + h * field.evaluate(t + h / 2, y + h / 2 * field.evaluate(t, y))


def shifted_end(field: FlatField, y: Tensor, t: Tensor) -> Tensor:
    """``y`` given at the constant value of ``t``, moved to live time ``t``: the value of y, the derivative f of t."""
    h = t - t.detach()
    start = t.detach()
    return y + h * field.evaluate(start + h / 2, y + h / 2 * field.evaluate(start, y))
