"""The field as the solvers see it: a function of flat states ``[samples, size]`` and times ``[samples, 1]``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback.core.rows import Rows

__all__ = ["FlatField"]


class FlatField:
    """``field`` on flat states, counted.

    Args:
        field: the user's ``field(t, y)``.
        rows: how its state is laid out, one sample a row.
        sign: 1, or -1 where time runs backwards: the solver then integrates in u = -t.
    """

    def __init__(self, field: Callable[[Tensor, Any], Any], rows: Rows, sign: float | Tensor = 1.0) -> None:
        self.field = field
        self.rows = rows
        dims = {len(shape) for shape in rows.shapes}
        self.time_shape = rows.batch + (1,) * (dims.pop() if len(dims) == 1 else 1)
        self.sign = sign
        self.forward_evaluations = 0
        self.backward_evaluations = 0
        self.differentiates = False  # set where the field needs gradients switched on to be evaluated at all
        self.span: tuple[Tensor, Tensor] | None = None
        self._probed = False
        flat = rows.single and not rows.complex and len(rows.batch) == 1 and len(rows.shapes[0]) == 1
        self._plain = flat and isinstance(sign, float) and sign == 1.0

    def within(self, low: Tensor, high: Tensor) -> FlatField:
        """The same field, counted anew, asked at no time outside of ``[low, high]``, each ``[samples or 1, 1]``."""
        twin = FlatField(self.field, self.rows, self.sign)
        twin.span, twin._plain = (low, high), False
        return twin

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/du at times ``[samples or 1, 1]``, with gradients as they are switched on by the caller."""
        self.forward_evaluations += 1
        if self._plain and t.shape[0] == y.shape[0] and y.dtype == self.rows.dtype:
            out = self.field(t, y)
            if isinstance(out, Tensor) and out.shape == y.shape and out.dtype == y.dtype:
                return out
            return self._checked(out, y)
        return self.evaluate(t, y)

    def evaluate(self, t: Tensor, y: Tensor) -> Tensor:
        """The same, not counted as an evaluation of the forward solve."""
        rows = self.rows
        if t.shape[0] != rows.count:
            t = t.expand(rows.count, 1)
        if self._plain and y.dtype == rows.dtype:
            out = self.field(t, y)
            if isinstance(out, Tensor) and out.shape == y.shape and out.dtype == y.dtype:
                return out
            return self._checked(out, y)
        if self.span is not None:
            t = torch.minimum(torch.maximum(t, self.span[0]), self.span[1])
        if self.sign is not None and not (isinstance(self.sign, float) and self.sign == 1.0):
            t = t * self.sign
        dtype = rows.dtype
        cast = dtype != y.dtype
        out = self.field(t.reshape(self.time_shape).to(dtype), rows.unpack(y.to(dtype) if cast else y))
        result = self._checked(out, y)
        return result if isinstance(self.sign, float) and self.sign == 1.0 else result * self.sign

    def _checked(self, out: Any, y: Tensor) -> Tensor:
        self.rows.check(out, "field", "y")
        return self.rows.pack(out).to(y.dtype)

    def quiet(self, t: Tensor, y: Tensor) -> Tensor:
        """The field without a graph, also where it needs gradients to be evaluated (an energy's gradient)."""
        if not self.differentiates:
            if self._probed and not torch.is_grad_enabled():
                return self(t, y)
            try:
                with torch.no_grad():
                    result = self(t, y)
                self._probed = True
                return result
            except RuntimeError:
                if self._probed:
                    raise
                self.forward_evaluations -= 1
                self.differentiates = True
        with torch.enable_grad():
            return self(t, y.detach().requires_grad_()).detach()
