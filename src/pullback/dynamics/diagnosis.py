"""Why a solve stopped early, in words that name sample, time, component and remedy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pullback.core.transforms import physical
from pullback.dynamics.steps import Stepper

__all__ = ["failed_step", "stopped_early"]


def failed_step(stepper: Stepper, t: Tensor, new: Tensor) -> str:
    """What went wrong in a step of given length that ended at ``t`` in ``new``; empty if nothing did."""
    if stepper.solved is not None and not bool(physical(stepper.solved).all()):
        sample = int((~physical(stepper.solved)).flatten().nonzero()[0])
        what = f"Newton's iteration of {stepper.tableau.name} did not converge for sample {sample}; take smaller steps"
    else:
        y = physical(new.detach())
        if math.isfinite(float(y.sum())):  # one cheap look; a sum that overflows gets the thorough one
            return ""
        bad = (~torch.isfinite(y)).reshape(-1, y.shape[-1]).nonzero()
        if not len(bad):
            return ""
        sample, component = (int(i) for i in bad[0])
        what = f"the field or the state became NaN or infinite in sample {sample}, component {component}"
    at = physical(t.detach()).reshape(-1)
    return f"{what} at t={float(at[min(sample, len(at) - 1)])}"


def stopped_early(stepper: Stepper, t: Tensor, h: Tensor, done: Tensor, ratio: Tensor | None) -> str:
    """Which sample stopped, where, which component asks for the small steps, and what to try.

    Args:
        stepper: of the solve.
        t, h, done: ``[M, 1]`` time, next step, and whether the end was reached.
        ratio: ``[samples, size]`` error over tolerance of the last attempt.
    """
    done, t, h = (physical(x.detach()).reshape(-1) for x in (done, t, h))
    sample = int((~done).nonzero()[0])
    text = f"; sample {sample} stopped at t={float(t[sample]):.6g} with step {float(h[sample]):.3g}"
    if ratio is not None:
        row = physical(ratio).reshape(-1, ratio.shape[-1])[sample]
        if bool(torch.isfinite(row).all()):
            text += f", its component {int(row.abs().argmax())} has the largest error"
        else:
            text += f", where the field returned NaN or infinity (component {int((~torch.isfinite(row)).nonzero()[0])})"
    if not stepper.tableau.implicit:
        text += "; if the problem is stiff, method='kvaerno3' takes larger steps"
    return text
