"""Blocks of one vector, such as projections, for all tensors of a nesting together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pullback.core.rows import Rows
from pullback.core.shapes import Tensor
from pullback.implicit.arguments import check_function

__all__ = ["on_nesting"]


def on_nesting(block: Callable[..., Tensor], *, batch_ndim: int = 0) -> Callable[..., Any]:
    """Return a block of vectors as a block of nestings of tensors: all their entries together are the vector.

    Args:
        block: ``block(x, *args, **kwargs)`` from ``[*batch, n]`` to ``[*batch, n]``.
        batch_ndim: number of leading dimensions of the tensors that are independent problems.

    Returns:
        A function of a nesting (lists, tuples, dictionaries) and of the block's other arguments; it returns a nesting
        of the same structure, shapes and dtypes.

    Raises:
        TypeError: ``block`` cannot be called, or the nesting holds something else than floating tensors.
        ValueError: ``block`` changes the number of entries.

    Example:
        >>> import torch
        >>> from pullback.implicit import projection_l2_ball
        >>> weights = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}
        >>> on_nesting(projection_l2_ball)(weights, 1.0)
        {'a': tensor([0.6000]), 'b': tensor([[0.8000]])}
    """
    check_function("block", block)

    def on_tensors(nesting: Any, *args: Any, **kwargs: Any) -> Any:
        rows = Rows.of(nesting, batch_ndim, "the nesting")
        packed = rows.pack(nesting)
        value = block(packed.reshape(*rows.batch, -1), *args, **kwargs)
        if value.numel() != packed.numel():
            raise ValueError(f"block must keep the {packed.numel()} entries, got shape {tuple(value.shape)}")
        return rows.unpack(value.reshape(packed.shape))

    return on_tensors
