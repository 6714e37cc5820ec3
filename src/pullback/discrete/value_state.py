"""What the values of a tensor look like, asked once a call and answered inside ``torch.func`` transforms as well."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["ValueState", "value_state"]


class ValueState(NamedTuple):
    """What may be among the values."""

    infinite: bool = False
    """An infinity or NaN."""
    nan: bool = False
    """NaN."""
    large: bool = False
    """A finite value beyond the bound."""


def value_state(x: Tensor, bound: float | None = None) -> ValueState:
    """Return what is among the values of ``x``; under vmap, of the whole batch.

    Args:
        x: floating.
        bound: beyond which a finite value is large; nothing is by default.

    Returns:
        The state. While a graph is compiled values are unknown: infinities may be there.

    Example:
        >>> value_state(torch.tensor([1.0, float("inf")]), bound=10.0)
        ValueState(infinite=True, nan=False, large=False)
    """
    if torch.compiler.is_compiling():
        return ValueState(infinite=True)
    code = int(_State.apply(x.detach(), torch.finfo(x.dtype).max if bound is None else bound))
    return _STATES[code]


_STATES = {
    i + 2 * n + 4 * large: ValueState(bool(i), bool(n), bool(large)) for i in (0, 1) for n in (0, 1) for large in (0, 1)
}


class _State(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, bound: float) -> Tensor:
        size = x.abs()
        if bool((size <= bound).all()):
            return torch.tensor(0)
        finite = torch.isfinite(x)
        state = int(not finite.all()) + 2 * int(torch.isnan(x).any()) + 4 * int((finite & (size > bound)).any())
        return torch.tensor(state)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, None], x: Tensor, bound: float) -> Any:
        return _State.apply(x, bound), None
