"""Methods of Adams: a step uses the field at the steps before it, one new evaluation each (two where it is corrected).

A step of h integrates the polynomial through the last four values of the field, at whatever times they were taken:
weights w with ``sum_j w_j x_j^p = 1 / (p + 1)`` for p < 4 and nodes ``x_j = (t_j - t) / h``. The first three steps are
Runge-Kutta's; so are those after an event, a jump and a step of no length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.core.transforms import physical
from pullback.dynamics.methods_explicit import EXPLICIT
from pullback.dynamics.steps import Stepper
from pullback.dynamics.tableaux import Coefficients, Tableau, hermite
from pullback.dynamics.transforms import every

__all__ = ["ADAMS", "AdamsStepper", "Multistep"]

_STARTER = next(tableau for tableau in EXPLICIT if tableau.name == "rk38")
_ORDER = 4


@dataclass(frozen=True)
class Multistep(Tableau):
    """A method of several steps, as far as it is like one of one step: fixed steps of fourth order.

    Its "stages" are the field at the start, the mean slope of the step and the field at the end.

    Attributes:
        corrected: whether the new state is corrected by the field at the predicted one.
    """

    corrected: bool = False

    def coefficients(self, size: int, dtype: torch.dtype, device: torch.device) -> Coefficients:
        """Of the dense output alone."""
        return _coefficients(dtype, device)


@lru_cache(maxsize=16)
def _coefficients(dtype: torch.dtype, device: torch.device) -> Coefficients:
    def tensor(values: Any) -> Tensor:
        return physical(torch.as_tensor(np.asarray(values), dtype=dtype, device=device))

    b = (0.0, 1.0, 0.0)
    return Coefficients(
        nodes=tensor([0.0, 0.5, 1.0]).reshape(-1, 1, 1),
        rows=[],
        block=tensor(np.zeros((0, 0))),
        weights=tensor(b),
        error=None,
        dense=tensor(hermite(b)),
        adjoint=[],
        columns=[],
        used=[],
    )


def _method(name: str, *, corrected: bool) -> Multistep:
    zero = (0.0, 0.0, 0.0)
    return Multistep(name, _ORDER, (0.0, 0.5, 1.0), (zero, zero, zero), (0.0, 1.0, 0.0), corrected=corrected)


ADAMS = (
    _method("adams_bashforth", corrected=False),  # Bashforth, Adams (1883)
    _method("adams_moulton", corrected=True),  # Moulton (1926): predict, evaluate, correct, evaluate
)


class AdamsStepper(Stepper):
    """Steps of one such method along one solve.

    Args:
        field, like, live, tolerance: see :class:`pullback.dynamics.steps.Stepper`.
        method: the method.
    """

    def __init__(
        self,
        field: Callable[[Tensor, Tensor], Tensor],
        method: Multistep,
        like: Tensor,
        *,
        live: bool,
        tolerance: float,
    ) -> None:
        super().__init__(field, _STARTER, like, live=live, tolerance=tolerance)
        self.tableau, self.corrected = method, method.corrected
        self.starter = Stepper(field, _STARTER, like, live=live, tolerance=tolerance)
        self.c = method.coefficients(like.shape[1], like.dtype, like.device)
        self.past: deque[tuple[Tensor, Tensor]] = deque(maxlen=_ORDER)  # the latest first

    def __call__(self, t: Tensor, h: Tensor, y: Tensor, first: Tensor, *, last: bool = True) -> tuple[Tensor, Any]:
        """One step; see :meth:`pullback.dynamics.steps.Stepper.__call__`."""
        moves = every(h > 0)
        if not moves:
            self.past.clear()
        self.past.appendleft((t, first if self.live else first.clone()))
        if len(self.past) < _ORDER:
            new, stages = self.starter(t, h, y, first, last=last)
            k = stages[-1] if last else first
        else:
            new = y + h * self._mean([at for at, _ in self.past], [k for _, k in self.past], t, h)
            if self.corrected:
                times, slopes = [t + h, *(at for at, _ in self.past)], [self.field(t + h, new)]
                slopes += [k for _, k in self.past]
                new = y + h * self._mean(times[:_ORDER], slopes[:_ORDER], t, h)
            k = self.field(t + h, new) if last else first
        if not moves:
            self.past.clear()  # the next step begins at the same time
        mean = (new - y) / torch.where(h > 0, h, 1.0)
        stages = [first, mean, k]
        return new, stages if self.live else torch.stack(stages)

    def _mean(self, times: list[Tensor], slopes: list[Tensor], t: Tensor, h: Tensor) -> Tensor:
        """Mean over the step of the polynomial through ``slopes`` at ``times``."""
        with torch.no_grad():
            rows = max(x.shape[0] for x in (*times, t, h))
            nodes = torch.cat([((at - t) / h).expand(rows, 1) for at in times], 1).double()
            powers = torch.arange(len(times), device=t.device)
            table = nodes.unsqueeze(1) ** powers.unsqueeze(-1)  # [rows, power, node]
            weights = torch.linalg.solve(table, 1 / (1.0 + powers.double()).expand(rows, -1).unsqueeze(-1))
        mean = torch.zeros_like(slopes[0])
        for j, slope in enumerate(slopes):
            mean = mean + weights[:, j].to(slope.dtype) * slope
        return mean
