"""Check torch's own derivative of an operation against the slope of its values, at the inputs that it saw.

Some derivatives of torch hold on a part of the inputs only: that of ``ctc_loss`` for logarithms of probabilities, that
of ``eigh`` for symmetric matrices. Elsewhere the gradient is that of another function, and nothing warns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pullback.audit.trace.alone import OperationCall
from pullback.audit.trace.private import unseen
from pullback.audit.trace.records import tensors_in

__all__ = ["check_operation"]

DIRECTIONS = 6
ENOUGH = 2
"""Directions along which the two must disagree: by chance the wrong part hides along some."""
STEP = 1e-4
"""Relative to the values."""
SMOOTH = 0.02
"""Differences to both sides, and of two steps, agree within this share where there is no kink."""
WRONG = 0.1
"""Share by which a derivative that is wrong differs."""


def check_operation(call: OperationCall) -> dict[str, float] | None:
    r"""Compare ``<J^T g, u>`` from torch with differences of ``<f, g>`` along ``u``, in float64.

    Directions keep what the inputs keep, as what comes before the operation may do: matrices that are symmetric stay
    so, logarithms of probabilities keep their sum of one. Entries to which torch gives no derivative at all (a padding
    row) are not moved. At kinks, where values jump, and of operations that write into their input nothing is judged.

    Returns:
        The two slopes along the direction where they differ most, ``None`` if they agree.

    Raises:
        Exception: whatever the operation raises where it cannot be run alone or in float64.
    """
    noise = torch.Generator().manual_seed(0)
    state = torch.get_rng_state()
    leaves = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in call.leaves]
    try:
        with unseen(), torch.enable_grad():
            return _compare(call, leaves, noise, state)
    finally:
        torch.set_rng_state(state)


def _compare(call: OperationCall, leaves: list[Any], noise: torch.Generator, state: Tensor) -> dict[str, float] | None:
    written = False

    def run(values: list[Any]) -> list[Tensor]:
        nonlocal written
        torch.set_rng_state(state)
        fresh = [v.clone() if isinstance(v, Tensor) else v for v in values]
        outputs = [t for t in tensors_in(call.run(fresh)) if t.is_floating_point()]
        written = any(fresh[i]._version for i in call.live)  # an embedding that projects its weight
        return outputs

    moved = [i for i in call.live if leaves[i].is_floating_point() and leaves[i].numel()]
    tracked = [x.requires_grad_() if i in moved else x for i, x in enumerate(leaves)]
    outputs = run(tracked)
    kept = [k for k, t in enumerate(outputs) if t.requires_grad and t.numel()]
    if written or not moved or not kept:
        return None
    cotangents = [torch.randn(outputs[k].shape, generator=noise, dtype=torch.float64).to(outputs[k]) for k in kept]
    inputs = [leaves[i] for i in moved]
    found = torch.autograd.grad([outputs[k] for k in kept], inputs, cotangents, allow_unused=True)
    gradients = [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]
    points = [x.detach() for x in inputs]

    def value(directions: Sequence[Tensor], step: float) -> float:
        values = [x.detach() if isinstance(x, Tensor) else x for x in leaves]
        for i, x, d in zip(moved, points, directions, strict=True):
            values[i] = x + step * d
        with torch.no_grad():
            results = run(values)
        return sum(float((results[k].double() * c).sum()) for k, c in zip(kept, cotangents, strict=True))

    rounding = 1e-9 * sum(float((outputs[k].detach() * c).abs().sum()) for k, c in zip(kept, cotangents, strict=True))
    disagree: list[tuple[float, float]] = []
    for turn in range(DIRECTIONS):
        directions = [_direction(x, g, noise, even=turn % 2 > 0) for x, g in zip(points, gradients, strict=True)]
        products = torch.cat([(g * d).reshape(-1) for g, d in zip(gradients, directions, strict=True)])
        automatic, typical = float(products.sum()), float(torch.linalg.vector_norm(products))
        middle, ahead, behind = (value(directions, step) for step in (0.0, STEP, -STEP))
        near, far = (ahead - middle) / STEP, (middle - behind) / STEP
        slope = (near + far) / 2
        finer = (value(directions, STEP / 5) - value(directions, -STEP / 5)) / (2 * STEP / 5)
        size = max(abs(slope), abs(automatic), typical)
        if not 0 < size < math.inf or not math.isfinite(finer) or slope == 0.0:  # a straight-through estimator
            return None
        if max(abs(near - far), abs(slope - finer)) > SMOOTH * abs(slope):
            continue
        if abs(slope - automatic) > max(WRONG * size, rounding):
            disagree.append((automatic, slope))
    if len(disagree) < ENOUGH:
        return None
    automatic, slope = max(disagree, key=lambda pair: abs(pair[0] - pair[1]))
    return {"slope by torch": automatic, "slope by differences": slope}


def _direction(x: Tensor, gradient: Tensor, noise: torch.Generator, *, even: bool) -> Tensor:
    """Return a random direction that keeps what ``x`` keeps, each entry of its own size, or all of one small size."""
    sizes = x.abs()
    some = sizes[sizes > 0]
    small = float(some.quantile(0.2)) if some.numel() > 0 else 1.0  # a mask of -1e9 says nothing of the other entries
    d = torch.randn(x.shape, generator=noise, dtype=torch.float64).to(x)
    d = d * (small if even else sizes.clamp_min(small))
    if x.ndim >= 2 and x.shape[-1] == x.shape[-2] and float((x - x.mT).abs().max()) <= 1e-5 * float(sizes.max()):
        d = (d + d.mT) / 2
    for dim in range(x.ndim):
        if x.shape[dim] > 1 and float(torch.logsumexp(x, dim).abs().max()) < 1e-3:
            d = d - (x.exp() * d).sum(dim, keepdim=True)
    return torch.where(gradient == 0, 0.0, d)
