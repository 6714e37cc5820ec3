"""Does the loss jump where a decision changes sides?

The trained tensors are made smaller, larger and moved along random directions until the decision falls otherwise, and
back by bisection to the place where it just does not. There the decision is turned round: clipping
(``if n > limit: h = h * (limit / n)``) gives the same loss on both sides of its threshold, a bonus or a penalty does
not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from pullback.audit.probe.replay import Change, Key, Laboratory, same
from pullback.audit.probe.steps import Steps

__all__ = ["comparison_margin", "jumps_where_it_turns", "number_margin"]

SCALES = (0.05, 0.3, 1.0, 3.0)
"""Steps in which the other side is looked for."""
TRIES = 3
HALVINGS = 24
SMALL = 0.01
"""Share of the change away from the threshold that counts as none at the threshold."""

Margin = Callable[[], float | None]
"""Replays the program; the signed distance from the threshold, ``None`` if it was not reached."""


def jumps_where_it_turns(laboratory: Laboratory, steps: Steps, margin: Margin, other: dict[Key, Change]) -> bool | None:
    """Whether the loss jumps where a margin changes its sign.

    Args:
        laboratory: runs the program.
        steps: of the trained tensors.
        margin: the distance of the decision from its threshold.
        other: the changes that make the decision fall otherwise.

    Returns:
        ``None`` if no step was found that changes the sign, or the decision makes no difference.
    """
    start = margin()
    away = _difference(laboratory, other)
    kind = steps.kind(SCALES[0])
    if not start or not math.isfinite(start) or not away or not kind:
        return None
    for scale, trials, way in ((0.95, 1, "ray"), *((scale, TRIES, kind) for scale in SCALES)):
        for _ in range(trials):
            with steps.step(way, scale) as (move, _):
                for side in steps.sides(way):
                    move(side)
                    reached = margin()
                    if laboratory.spent:
                        return None
                    if reached is None or not reached * start < 0:
                        continue
                    near = 0.0
                    for _ in range(HALVINGS):
                        middle = 0.5 * (near + side)
                        move(middle)
                        reached = margin()
                        if reached is not None and reached * start > 0:
                            near = middle
                        else:
                            side = middle
                    move(near)
                    there = _difference(laboratory, other)
                    return None if there is None else there > SMALL * away
    return None


def _difference(laboratory: Laboratory, other: dict[Key, Change]) -> float | None:
    """Return how much the loss changes when the decision falls otherwise; rounding is no change."""
    one, two = laboratory.loss(), laboratory.loss(other)
    if one is None or two is None or not math.isfinite(one - two):
        return None
    return 0.0 if same(one, two) else abs(one - two)


def comparison_margin(laboratory: Laboratory, key: Key, visit: int, element: int) -> Margin:
    """Return the margin of one element of one visit of a comparison: its left side minus its right side."""

    def margin() -> float | None:
        found: list[float] = []
        visits = -1

        def measure(args: Any) -> Any:
            nonlocal visits
            visits += 1
            if visits == visit and len(args) > 1:
                difference = args[0] - args[1]
                if not isinstance(difference, Tensor):
                    found.append(float(difference))
                elif element < difference.numel():
                    found.append(float(difference.detach().reshape(-1)[element]))
            return args

        value = laboratory.loss(before={key: measure})
        return found[0] if found and value is not None else None

    return margin


def number_margin(laboratory: Laboratory, key: Key, visit: int, extreme: float, base: float) -> Margin | None:
    """Return the margin of a number that Python compares: its value minus the threshold.

    The threshold is not seen; it is where the loss changes when the number is replaced by one towards ``extreme``.
    """
    seen: list[float] = []

    def keep(out: Any, at: int) -> Any:
        if at == visit:
            seen.append(float(out))
        return out

    if laboratory.loss({key: keep}) is None or not seen:
        return None
    natural = seen[0]
    reach = max(abs(natural), 1e-6)
    inner, outer = natural, natural
    while abs(outer) < abs(extreme):
        outer = natural + math.copysign(reach, extreme)
        if not _unchanged(laboratory, key, visit, outer, base):
            break
        inner, reach = outer, 4.0 * reach
    else:
        return None
    for _ in range(HALVINGS):
        middle = 0.5 * (inner + outer)
        if _unchanged(laboratory, key, visit, middle, base):
            inner = middle
        else:
            outer = middle
    threshold = 0.5 * (inner + outer)
    if abs(threshold - natural) <= 1e-5 * max(abs(natural), abs(threshold)):
        return None  # the loss moves with the number itself

    def margin() -> float | None:
        seen.clear()
        value = laboratory.loss({key: keep})
        return seen[0] - threshold if seen and value is not None else None

    return margin


def _unchanged(laboratory: Laboratory, key: Key, visit: int, number: float, base: float) -> bool:
    value = laboratory.loss({key: lambda out, at: type(out)(number) if at == visit else out})
    return value is not None and same(value, base)
