"""Sums, means, maxima and minima over the segments of a ragged batch: nodes of a graph, edges of a node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_integer, check_tensor
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Int, Num
from pullback.core.transforms import can_look, is_transformed, transform_running

__all__ = ["segment_reduce"]


def segment_reduce(
    values: Num[Tensor, "m *features"],
    index: Int[Tensor, "m"],
    count: int,
    *,
    reduce: Literal["sum", "mean", "max", "min"] = "sum",
    sorted: bool = False,
) -> Num[Tensor, "count *features"]:
    r"""Reduce the rows of each segment: :math:`y_s = \mathrm{reduce} \{ x_i : \mathrm{index}_i = s \}`.

    A segment without rows gives 0 with no gradient, whatever the reduction. Entries that tie for a maximum or a minimum
    share its gradient equally, as in ``torch.amax``. Derivatives of every order and kind exist.

    Args:
        values: ``[m, *features]`` one row an item, features of any shape, any finite numbers.
        index: ``[m]`` the segment of each row, an integer in ``0..count-1``.
        count: number of segments, >= 0.
        reduce: the reduction.
        sorted: promises that ``index`` never decreases (it is checked). Sums then run along memory, about twice as fast
            for many rows, and on a GPU in one order, so that they are the same to the bit in every run.

    Returns:
        ``[count, *features]`` of the dtype of ``values``. Sums of half precision are added up in float32.

    Raises:
        TypeError: ``values`` is no tensor, ``index`` no integer tensor, ``count`` no integer; a mean of integers.
        ValueError: ``index`` is out of range, has another length than ``values``, or decreases although ``sorted``.

    Example:
        >>> x = torch.tensor([1.0, 5.0, 2.0])
        >>> segment_reduce(x, torch.tensor([0, 0, 2]), 3)
        tensor([6., 0., 2.])
        >>> segment_reduce(x, torch.tensor([0, 0, 2]), 3, reduce="min")
        tensor([1., 0., 2.])

    References:
        Fey, Lenssen (2019), Fast graph representation learning with PyTorch Geometric, section 3 (gather and scatter).
    """
    check_choice("reduce", reduce, _REDUCTIONS)
    count = check_integer("count", count, 0)
    index = _check(values, index, count, sorted)
    if reduce == "mean" and not values.is_floating_point():
        raise TypeError(f"values must be floating for a mean, got {values.dtype}")
    if values.dtype in (torch.float16, torch.bfloat16):
        return _REDUCTIONS[reduce](values.float(), index, count, sorted).to(values.dtype)
    return _REDUCTIONS[reduce](values, index, count, sorted)


def _sum(values: Tensor, index: Tensor, count: int, sorted: bool) -> Tensor:
    if sorted and values.is_floating_point() and not (is_transformed(values) or is_transformed(index)):
        result: Tensor = _SortedSum.apply(values, index, count)
        return result
    return values.new_zeros(count, *values.shape[1:]).scatter_add(0, _expand(index, values), values)


def _mean(values: Tensor, index: Tensor, count: int, sorted: bool) -> Tensor:
    share = 1 / _sizes(index, count).clamp(min=1).to(values.dtype)[index]
    return _sum(values * _column(share, values), index, count, sorted)  # divided first: a sum of large ones overflows


def _extremum(name: str) -> Callable[[Tensor, Tensor, int, bool], Tensor]:
    def reduce(values: Tensor, index: Tensor, count: int, sorted: bool) -> Tensor:
        fixed = values.detach()
        start = fixed.new_zeros(count, *values.shape[1:])
        best = start.scatter_reduce(0, _expand(index, values), fixed, name, include_self=False)
        if not (values.requires_grad or transform_running()):
            return best
        tied = fixed == best[index]
        ties = _sum(tied.to(values.dtype), index, count, sorted).clamp(min=1)
        return replace_gradient(best, _sum(torch.where(tied, values / ties[index], 0), index, count, sorted))

    return reduce


_REDUCTIONS = {"sum": _sum, "mean": _mean, "max": _extremum("amax"), "min": _extremum("amin")}


class _SortedSum(torch.autograd.Function):
    """Sums of rows that lie together; its derivatives are those of gathering and scattering."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(index)
        return torch.segment_reduce(values, "sum", lengths=_sizes(index, count), axis=0, unsafe=True)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        return cotangent[index], None, None


def _sizes(index: Tensor, count: int) -> Tensor:
    """Rows of every segment (``bincount`` has no rule under vmap and in a compiled graph)."""
    return index.new_zeros(count).scatter_add(0, index, torch.ones_like(index))


def _column(row: Tensor, values: Tensor) -> Tensor:
    return row.view(-1, *[1] * (values.ndim - 1))


def _expand(index: Tensor, values: Tensor) -> Tensor:
    return _column(index, values).expand(values.shape)  # torch scatters whole rows where the index is expanded


def _check(values: Tensor, index: Tensor, count: int, sorted: bool) -> Tensor:
    check_tensor("values", values)
    check_tensor("index", index)
    if index.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8):
        raise TypeError(f"index must be an integer tensor, got {index.dtype}")
    if values.ndim < 1 or index.shape != values.shape[:1]:
        raise ValueError(
            f"index must have one entry a row of values, got {tuple(index.shape)} for values {tuple(values.shape)}"
        )
    index = index.long()
    if can_look(index) and len(index):
        low, high = (int(bound) for bound in index.aminmax())
        if low < 0 or high >= count:
            raise ValueError(f"index must be in 0..{count - 1}, got {low if low < 0 else high}")
        if sorted and bool((index[1:] < index[:-1]).any()):
            raise ValueError("index must not decrease where sorted=True")
    return index
