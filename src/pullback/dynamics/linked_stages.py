r"""The states of the stages of an explicit step, with a graph of one node a stage.

Of a step with stages :math:`x_i = y + h \sum_{j<i} a_{ij} k_j` the cotangents are

.. math:: \bar k_j = h \sum_{i>j} a_{ij} \bar x_i, \qquad \bar y = \sum_i \bar x_i,

so that each of them is one product with a column of the table once the later :math:`\bar x_i` are known. The nodes are
chained by a second output, whose cotangent is the array of the :math:`\bar x_i` so far: autograd then visits them from
the last stage to the first, also where the field does not depend on the state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.core.transforms import transform_running
from pullback.dynamics.tableaux import Coefficients

__all__ = ["LinkedStages"]


class LinkedStages:
    """Makes the states of the stages, one step after the other.

    Args:
        coefficients: of an explicit method that ends at its solution.
        buffer: ``[stages, samples, size]``, where the values of the stages are kept as they come.
        views: ``[samples * size, i]`` views of its first i stages.
    """

    def __init__(self, coefficients: Coefficients, buffer: Tensor, views: list[Tensor]) -> None:
        self.c, self.buffer, self.views = coefficients, buffer, views
        self.slots = list(buffer.unbind(0))

    def start(self, h: Tensor, y: Tensor) -> None:
        """Begin a step of ``h`` ``[samples or 1, 1]`` from ``y`` ``[samples, size]``."""
        self.h, self.y, self.value, self.chain = h, y, y.detach(), self.buffer

    def __call__(self, i: int, k: Tensor) -> Tensor:
        """Return the state of stage ``i >= 1``; ``k`` is the field at the one before."""
        state, self.chain = _State.apply(self, i, self.y if i == 1 else None, k, self.chain)
        return state


def _batched(x: Tensor | None) -> bool:
    """Whether ``x`` is a batch of cotangents, of ``torch.autograd.grad(..., is_grads_batched=True)``."""
    return x is not None and bool(torch._C._functorch.is_legacy_batchedtensor(x))


class _State(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, link: LinkedStages, i: int, y: Tensor | None, k: Tensor, chain: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.link, ctx.i, ctx.h = link, i, link.h
        link.slots[i - 1].copy_(k)
        slope = torch.mv(link.views[i], link.c.rows[i]).view(link.value.shape)
        return torch.addcmul(link.value, link.h, slope), chain

    @staticmethod
    def backward(ctx: Any, bar: Tensor | None, later: Tensor | None) -> Any:
        link, i = ctx.link, ctx.i
        bars = torch.zeros_like(link.buffer) if later is None else later
        weights = link.c.columns[i - 1]
        plain = not (torch.is_grad_enabled() or transform_running() or _batched(bars) or _batched(bar))
        if plain and bar is not None:
            bars[i].copy_(bar)  # no one else holds this array
        elif bar is not None:
            bars = torch.cat([bars[:i], bar.unsqueeze(0), bars[i + 1 :]])
        rest = bars[i:]
        if plain:
            to_k = torch.mv(rest.flatten(1).T, weights).view(rest.shape[1:]) * ctx.h
        else:
            to_k = (weights.reshape(-1, 1, 1) * rest).sum(0) * ctx.h
        if i == 1:
            return None, None, rest.sum(0), to_k, None
        return None, None, None, to_k, bars
