"""How far a point of a bilevel problem is from stationary, each objective and its gradient evaluated once."""

from __future__ import annotations

import torch

from pullback.core.shapes import Tensor
from pullback.implicit.variables import Objective, Variables, gradient, length, pull_back

__all__ = ["Stationarity"]


class Stationarity:
    """The conditions of ``min upper`` subject to ``D_y phi = 0``, ``phi = mix upper + (1 - mix) lower``, at a point.

    Each objective is evaluated once.

    Attributes:
        upper, lower: values of the objectives.
        of_x: ``D_x upper - (D_xy phi) v``.
        of_v: ``(D_yy phi) v - D_y upper``.
        of_y: ``D_y phi``.
        residual: norm of all.
    """

    def __init__(
        self, upper: Objective, lower: Objective, outer: Variables, inner: Variables, v: list[Tensor], mix: float
    ) -> None:
        with torch.enable_grad():
            x, self._y = outer.live(), inner.live()
            values = upper(x, self._y), lower(x, self._y)
            self.upper, self.lower = (value.detach() for value in values)
            direct, of_upper = gradient("upper", values[0], x, self._y, create_graph=mix > 0)
            _, of_lower = gradient("lower", values[1], [], self._y, create_graph=True)
            if mix > 0:
                self._slope = [torch.lerp(low, up, mix) for low, up in zip(of_lower, of_upper, strict=True)]
            else:
                self._slope = of_lower
        second = pull_back(self._slope, [*x, *self._y], v)
        self.of_x = [d.detach() - s for d, s in zip(direct, second[: len(x)], strict=True)]
        self.of_v = [s - u.detach() for s, u in zip(second[len(x) :], of_upper, strict=True)]
        self.of_y = [slope.detach() for slope in self._slope]
        self.residual = length([*self.of_x, *self.of_v, *self.of_y])

    def line_search(self) -> Tensor:
        """Return the step of ``v`` along its residual that minimises ``v^T (D_yy phi) v / 2 - v^T D_y upper``."""
        curved = pull_back(self._slope, self._y, self.of_v)
        bend = torch.stack([(r * c).sum() for r, c in zip(self.of_v, curved, strict=True)]).sum()
        size = torch.stack([(r * r).sum() for r in self.of_v]).sum()
        return torch.where(bend == 0, 0, size / torch.where(bend == 0, 1, bend))
