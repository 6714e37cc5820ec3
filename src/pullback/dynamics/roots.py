"""Roots of conditions along a solution: found on the dense output, and differentiated by one Newton step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pullback.dynamics.field import FlatField
from pullback.dynamics.steps import Stepper
from pullback.dynamics.storage import Step

__all__ = ["Conditions", "RootFinder", "newton_root"]

_PROBES = 4  # looks for a change of sign within a step, so that two roots in one step are told apart


class Conditions:
    """Several conditions ``condition(t, y)`` on flat states: ``[conditions, samples]``."""

    def __init__(self, conditions: Sequence[Callable[[Tensor, Any], Tensor]], field: FlatField) -> None:
        self.conditions = conditions
        self.field = field

    def __call__(self, u: Tensor, y: Tensor) -> Tensor:
        """Their values."""
        rows = self.field.rows
        t = (u * self.field.sign).expand(rows.count, 1).reshape(self.field.time_shape).to(rows.dtype)
        state = rows.unpack(y.to(rows.dtype))
        values = []
        for number, condition in enumerate(self.conditions):
            value = condition(t, state)
            if not isinstance(value, Tensor) or value.numel() != rows.count:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(
                    f"condition of event {number} must return {rows.batch}, one number a sample, got {got}"
                )
            values.append(value.reshape(rows.count).to(y.dtype))
        return torch.stack(values)

    def rate(self, u: Tensor, y: Tensor, k: Tensor) -> Tensor:
        """Total derivatives along the solution, ``k`` the field: dg/dt + dg/dy f."""
        with torch.enable_grad():
            u, y = u.detach().expand(len(y), 1).clone().requires_grad_(), y.detach().requires_grad_()
            values = self(u, y)
            rates = []
            for value in values:
                if not value.requires_grad:
                    rates.append(torch.zeros_like(value))
                    continue
                du, dy = torch.autograd.grad(value.sum(), [u, y], retain_graph=True, allow_unused=True)
                rate = torch.zeros_like(value)
                rate = rate if du is None else rate + du[:, 0]
                rates.append(rate if dy is None else rate + (dy * k).sum(1))
        return torch.stack(rates).detach()

    def signs(self, u: Tensor, y: Tensor, k: Tensor) -> Tensor:
        """Signs at the start of a solve; at a root (one just handled) that of the side on which the solution leaves."""
        with torch.no_grad():
            value = self(u, y)
        scale = 1e3 * torch.finfo(y.dtype).eps * (1 + y.abs().amax(1))
        return torch.where(value.abs() <= scale, self.rate(u, y, k).sign(), value.sign())


class RootFinder:
    """Watches the steps of a solve for the first root of each sample.

    Args:
        conditions: whose roots.
        directions: of each condition, as in :class:`pullback.dynamics.Event`.
        signs: ``[conditions, samples]`` at the start.
        watched: ``[samples]``, of which samples.

    Attributes:
        time, index: ``[samples]`` time of the first root and the number of its condition; infinite and -1 without.
    """

    def __init__(self, conditions: Conditions, directions: Sequence[int], signs: Tensor, watched: Tensor) -> None:
        self.conditions = conditions
        self.sign = signs
        self.watched = watched
        self.time = torch.full(signs.shape[1:], math.inf, dtype=signs.dtype, device=signs.device)
        self.index = torch.full(signs.shape[1:], -1, dtype=torch.int64, device=signs.device)
        self.direction = torch.tensor(directions, device=signs.device).unsqueeze(1)

    @torch.no_grad()
    def __call__(self, step: Step, stepper: Stepper) -> Tensor:
        """Look at a step; returns which samples ``[samples, 1]`` have their root, or are not watched."""
        searching = self.watched & (self.index < 0) & (step.h.expand(len(step.y), 1)[:, 0] > 0)
        left = 0.0
        for probe in range(1, _PROBES + 1):
            right = probe / _PROBES
            sign = self._at(right, step, stepper).sign()
            change = (sign != self.sign) & (self.sign != 0) & searching
            change &= (self.direction == 0) | (self.direction == -self.sign)
            self.sign = torch.where(searching & (sign != 0), sign, self.sign)
            if bool(change.any()):
                self._bisect(change, left, right, step, stepper)
                searching = searching & (self.index < 0)
            left = right
        return ((self.index >= 0) | ~self.watched).unsqueeze(1)

    def _at(self, x: Any, step: Step, stepper: Stepper) -> Tensor:
        """Values at a fraction of the step."""
        x = x if isinstance(x, Tensor) else step.y.new_full((1, 1), x)
        return self.conditions(step.t + x * step.h, stepper.interpolate(x[None], step.h, step.y, step.stages)[0])

    def _bisect(self, change: Tensor, left: float, right: float, step: Step, stepper: Stepper) -> None:
        y = step.y
        for number in range(len(change)):
            if not bool(change[number].any()):
                continue
            low, high = torch.full_like(y[:, :1], left), torch.full_like(y[:, :1], right)
            before = self._at(low, step, stepper)[number]
            if bool((change[number] & (before == 0)).any()):  # leave a root that the segment started from
                low = torch.where((before == 0).unsqueeze(1), low + 1e-3 * (high - low), low)
            after = self._at(high, step, stepper)[number].sign()
            for _ in range(56 if y.dtype == torch.float64 else 26):
                middle = 0.5 * (low + high)
                same = (self._at(middle, step, stepper)[number].sign() == after).unsqueeze(1)
                low, high = torch.where(same, low, middle), torch.where(same, middle, high)
            time = (step.t + high * step.h).expand(len(y), 1)[:, 0]
            first = change[number] & (time < self.time)
            self.time = torch.where(first, time, self.time)
            self.index = torch.where(first, number, self.index)


def newton_root(conditions: Conditions, field: FlatField, index: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Time and state after one Newton step from a located root of the condition ``index`` of each sample.

    The step polishes the root; its derivative is that of the implicit function theorem.
    """
    u = t.detach()
    k = field.evaluate(u, y)
    rate = conditions.rate(u, y, k.detach()).gather(0, index[None])[0]
    value = conditions(u, y).gather(0, index[None])[0]
    safe = torch.where(rate == 0, 1.0, rate)
    shift = torch.where(rate == 0, 0.0, -value / safe).unsqueeze(1)
    return u + shift, y + shift * k
