"""Arguments that the transport problems share: costs and masses."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback.core.checks import check_broadcast, check_floating, check_same_dtype
from pullback.core.transforms import can_look

__all__ = ["check_cost", "masses"]


def check_cost(cost: Tensor) -> None:
    """Raise unless ``cost`` is a floating ``[*batch, n, m]`` without NaN or ``-inf``; ``inf`` forbids a pair.

    Each row, or column where there are fewer, has a finite entry. Under transforms and in compiled graphs, values are
    not looked at.

    Example:
        >>> check_cost(torch.tensor([[0.0, float("nan")]]))
        Traceback (most recent call last):
        ValueError: cost must not be NaN or -inf, got nan at index (0, 1)
        >>> check_cost(torch.tensor([[0.0, 1.0], [torch.inf, torch.inf]]))
        Traceback (most recent call last):
        ValueError: cost must have a finite entry in each row, got none at index (1,)
    """
    if check_floating("cost", cost).ndim < 2:
        raise ValueError(f"cost must have shape (..., n, m), got {tuple(cost.shape)}")
    if not can_look(cost) or bool(cost.isfinite().all()):
        return
    wrong = cost.isnan() | (cost == -torch.inf)
    if bool(wrong.any()):
        index = _first(wrong)
        raise ValueError(f"cost must not be NaN or -inf, got {cost[index].item()} at index {index}")
    n, m = cost.shape[-2:]
    if n <= m and bool((empty := cost.isinf().all(-1)).any()):
        raise ValueError(f"cost must have a finite entry in each row, got none at index {_first(empty)}")
    if m <= n and bool((empty := cost.isinf().all(-2)).any()):
        raise ValueError(f"cost must have a finite entry in each column, got none at index {_first(empty)}")


def _first(where: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in where.nonzero()[0])


def masses(
    a: Tensor | None,
    b: Tensor | None,
    *,
    sizes: tuple[int, int],
    batch: tuple[int, ...],
    like: Tensor,
    what: str,
    held: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return masses ``[*batch, n]`` and ``[*batch, m]`` of equal sums: uniform where none are given, ``b`` scaled.

    Args:
        a, b: >= 0, of sums that agree up to rounding (a hundredth, as half precision needs); ``None``: uniform, of the
            sum of the other, or 1.
        sizes: n and m.
        batch: of the problems.
        like: whose dtype and device they have; float16 and bfloat16 masses come back in float32.
        what: the name of ``like``, for messages.
        held: whether the sums must agree.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, negative, not finite, without any mass, or of another sum.

    Example:
        >>> [x.tolist() for x in masses(None, torch.tensor([1.0, 3.0]), sizes=(2, 2), batch=(), like=torch.zeros(1),
        ...     what="cost")]
        [[2.0, 2.0], [1.0, 3.0]]
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    for name, x, size in (("a", a, sizes[0]), ("b", b, sizes[1])):
        if x is None:
            continue
        check_same_dtype(**{what: like, name: check_floating(name, x)})
        if x.ndim < 1 or x.shape[-1] != size:
            raise ValueError(f"{name} must have shape (..., {size}), got {tuple(x.shape)}")
        check_broadcast(**{what: batch, name: tuple(x.shape[:-1])})
        if can_look(x):
            if bool((wrong := ~((x >= 0) & x.isfinite())).any()):
                raise ValueError(f"{name} must be >= 0 and finite, got {x[_first(wrong)].item()}")
            if bool((x.sum(-1) <= 0).any()):
                raise ValueError(f"{name} must have a positive sum")
    a, b = (None if x is None else x.to(wide) for x in (a, b))
    if held and a is not None and b is not None:
        total, other = a.sum(-1, keepdim=True), b.sum(-1, keepdim=True)
        if can_look(a) and can_look(b) and bool(((total - other).abs() > 1e-2 * total).any()):
            raise ValueError(f"a and b must have equal sums, got {total.flatten()[0]:.6g} and {other.flatten()[0]:.6g}")
        b = b * (total / other)
    one = torch.ones((), dtype=wide, device=like.device)
    first = one if a is None and b is None else (b if a is None else a).sum(-1, keepdim=True)  # type: ignore[union-attr]
    a = (first / sizes[0]).expand(*first.shape[:-1], sizes[0]) if a is None else a
    b = (first / sizes[1]).expand(*first.shape[:-1], sizes[1]) if b is None else b
    return a.expand(*batch, sizes[0]), b.expand(*batch, sizes[1])
