"""Whether values are finite, asked once a call and answered inside ``torch.func`` transforms as well."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["FINITE", "INFINITE", "NAN", "UNKNOWN", "value_state"]

FINITE, INFINITE, NAN, UNKNOWN = 0, 1, 2, 3


def value_state(x: Tensor) -> int:
    """Return ``FINITE``, ``INFINITE`` or ``NAN`` for the worst entry, ``UNKNOWN`` while a graph is compiled.

    Under vmap it is the worst entry of the whole batch.

    Example:
        >>> value_state(torch.tensor([0.0, float("inf")])) == INFINITE
        True
    """
    if torch.compiler.is_compiling():
        return UNKNOWN
    return int(_State.apply(x.detach()))


class _State(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        if bool(torch.isfinite(x).all()):
            return torch.tensor(FINITE)
        return torch.tensor(NAN if bool(torch.isnan(x).any()) else INFINITE)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None], x: Tensor) -> Any:
        return _State.apply(x), None
