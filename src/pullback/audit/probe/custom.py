"""Check the backward of a custom autograd Function against the slope of its own forward."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.audit.trace.custom import CustomCall
from pullback.audit.trace.sites import Site

__all__ = ["check_custom"]


def check_custom(
    call: CustomCall, generator: torch.Generator | None, notes: list[str]
) -> tuple[Site, str, dict[str, float]] | None:
    """Compare ``<J^T g, u>`` from the backward with central differences of ``<f, g>`` along ``u``, in float64.

    Not a finding: a forward that returns an input unchanged (gradient reversal, scaling), one whose slope is zero
    where the backward is not (straight-through), one whose differences do not settle as the step shrinks.

    A function that cannot be run alone in float64 is not judged, and ``notes`` says so.

    Returns:
        Site, name and numbers if the two disagree by more than 10 %, else ``None``.
    """
    random = torch.Generator().manual_seed(0) if generator is None else generator
    args = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in call.args]
    places = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point() and a.numel()]
    if not places:
        return None
    directions = {i: torch.randn(args[i].shape, generator=random, dtype=torch.float64) for i in places}

    def run(step: float) -> Tensor | None:
        moved = [a + step * directions[i] if i in directions else a for i, a in enumerate(args)]
        out = call.function.apply(*moved)
        return out if isinstance(out, Tensor) and out.is_floating_point() else None

    state = torch.get_rng_state()
    try:
        for i in places:
            args[i] = args[i].requires_grad_()
        base = run(0.0)
        if base is None or not base.requires_grad:
            return None
        if any(args[i].shape == base.shape and bool(torch.equal(args[i], base)) for i in places):
            return None
        cotangent = torch.randn(base.shape, generator=random, dtype=torch.float64).to(base)
        gradients = torch.autograd.grad(base, [args[i] for i in places], cotangent, allow_unused=True)
        used = [(i, g) for i, g in zip(places, gradients, strict=True) if g is not None]
        if not used:
            return None
        for i in set(places) - {i for i, _ in used}:
            directions[i].zero_()  # an argument that the function declares to have no derivative
        automatic = sum(float((g.double() * directions[i]).sum()) for i, g in used)
        slopes = []
        with torch.no_grad():
            for step in (1e-4, 2e-5):
                torch.set_rng_state(state)
                plus = run(step)
                torch.set_rng_state(state)
                minus = run(-step)
                assert plus is not None
                assert minus is not None
                slopes.append(float(((plus - minus).double() * cotangent.double()).sum()) / (2 * step))
    except Exception as error:  # a function for one dtype or device only, or with state
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        notes.append(f"the backward of {call.function.__name__} was not checked by itself, it raised {reason}")
        return None
    finally:
        torch.set_rng_state(state)
    coarse, fine = slopes
    size = max(abs(fine), abs(automatic))
    if fine == 0.0 or abs(coarse - fine) > 0.02 * abs(fine) or abs(fine - automatic) <= 0.1 * size:
        return None
    numbers = {"slope by autograd": automatic, "slope by differences": fine}
    return call.site, call.function.__name__, numbers
