"""Probes at a stop itself: does the loss depend on its input, and does it jump where a comparison changes sides."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from torch import Tensor

from pullback.audit.probe.replay import Key, Laboratory
from pullback.audit.probe.steps import draw_step

__all__ = ["crosses_a_jump", "loss_depends"]

FLIPS = 6
"""Elements flipped one by one near the threshold, and as many far from it."""


def crosses_a_jump(laboratory: Laboratory, key: Key) -> bool | None:
    """Whether the loss jumps where the comparison at ``key`` changes sides.

    Single elements are flipped, those nearest to the threshold and some far from it. At distance ``m`` a flip changes
    the loss by ``O(m)`` where both sides meet (a hand-made relu), and by a constant where they do not.

    Returns:
        ``None`` if it cannot be told: fewer than eight elements, no two sides, no change at all, or a
        threshold that moves with what it is compared with (a median), so that elements change sides together.
    """
    margins: list[Tensor] = []

    def measure(args: Any) -> Any:
        if len(args) > 1 and not margins and isinstance(args[0], Tensor):
            if _relative(*args[:2]):
                margins.append(torch.zeros(0))
                return args
            with torch.no_grad():
                margins.append((args[0] - args[1]).abs().double().flatten())
        return args

    base = laboratory.loss(before={key: measure})
    if base is None or not margins or margins[0].numel() < 8:
        return None
    order = margins[0].argsort()
    near = order[:FLIPS] if order.numel() >= 4 * FLIPS else order[: order.numel() // 4]
    far = order[order.numel() // 2 :]
    far = far[torch.linspace(0, far.numel() - 1, len(near)).long()]
    changes = [_flipped(laboratory, key, base, group.tolist()) for group in (near, far)]
    if None in changes or changes[1] == 0.0:
        return None
    distance = float(margins[0][near].median() / margins[0][far].median().clamp_min(1e-300))
    if distance > 0.5:
        return None
    assert changes[0] is not None
    assert changes[1] is not None
    return bool(changes[0] > changes[1] * distance**0.5)


def _relative(value: Any, threshold: Any) -> bool:
    """Whether the threshold is a trained statistic with fewer elements than what it is compared with."""
    if not isinstance(value, Tensor) or not isinstance(threshold, Tensor):
        return False
    return value.requires_grad and threshold.requires_grad and threshold.numel() != value.numel()


def _flipped(laboratory: Laboratory, key: Key, base: float, elements: list[int]) -> float | None:
    """Return the median change of the loss when one element of the first visit is negated."""
    found: list[float] = []
    for element in elements:

        def flip(out: Any, visit: int, element: int = element) -> Any:
            if visit or not isinstance(out, Tensor) or element >= out.numel():
                return out
            changed = out.clone()
            changed.view(-1)[element] = ~changed.view(-1)[element]
            return changed

        value = laboratory.loss({key: flip})
        if value is None or laboratory.spent:
            return None
        found.append(abs(value - base))
    return median(found)


def loss_depends(laboratory: Laboratory, key: Key, base: float, generator: torch.Generator) -> bool | None:
    """Whether the loss moves when the floating arguments of the call at ``key`` do, by up to three times their size.

    Returns:
        ``None`` if the call took no floating tensor, the program refused every move, or the time is used up.
    """
    touched: list[Tensor] = []
    taken = False
    for scale in (0.1, 0.5, 3.0):
        for kind in ("free", "free", "scaled", "mixed"):  # the later ones where the program refuses the first

            def perturb(args: Any, scale: float = scale, kind: str = kind) -> Any:
                touched.extend(a for a in args if isinstance(a, Tensor) and a.is_floating_point())
                with torch.no_grad():
                    return tuple(_noisy(a, kind, scale, generator) if isinstance(a, Tensor) else a for a in args)

            if laboratory.spent:
                return None
            if taken and kind != "free":
                break
            value = laboratory.loss(before={key: perturb})
            if value is not None and value != base:
                return True
            if not touched:
                return None
            taken |= value is not None
            touched.clear()
    if taken:
        return False
    laboratory.give_up()
    return None


def _noisy(value: Tensor, kind: str, scale: float, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point() or not value.numel():
        return value
    return value.detach() + draw_step(value.detach(), kind, min(scale, 1.0) if kind == "mixed" else scale, generator)
