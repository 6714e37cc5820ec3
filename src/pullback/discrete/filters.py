"""Rank filters with a gradient: the median, or another place of the order, of the window around each entry.

The windows are copied: O(n w) memory for n entries and windows of w. Methods, ``temperature`` and ``scale`` are those
of :mod:`pullback.discrete.sorting`, each window being ordered by itself.
"""

from __future__ import annotations

import math

import torch

from pullback.core.checks import check_choice, check_floating, check_integer
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.discrete.selection import kthvalue

__all__ = ["median_filter", "rank_filter"]

_MODES = ("reflect", "nearest", "mirror", "wrap")


def rank_filter(
    x: Float[Tensor, "*shape"],
    rank: int,
    size: int | tuple[int, ...],
    *,
    mode: str = "reflect",
    method: str = "softsort",
    temperature: Scalar = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "*shape"]:
    """Replace each entry by the ``rank``-th smallest of the window around it: ``scipy.ndimage.rank_filter``.

    Args:
        x: ``[*batch, *space]`` floating; the last dimensions, as many as ``size`` has numbers, are filtered.
        rank: from 0, in ``-w .. w - 1`` for windows of w entries; negative ones count from the largest.
        size: entries of the window along each filtered dimension, >= 1; one number filters the last dimension. A window
            of even size reaches one entry further back, as scipy's.
        mode: what stands beyond the border: ``"reflect"`` (``c b a | a b c``), ``"nearest"`` (``a a a | a b c``),
            ``"mirror"`` (``c b | a b c``) or ``"wrap"`` (``b c | a b c``).
        method, temperature, scale, hard: as in :func:`~pullback.discrete.sort`; the spread is that of each window.

    Returns:
        ``[*shape]`` of the dtype of ``x``.

    Raises:
        TypeError, ValueError: as in ``sort``, ``size`` or ``rank`` is out of range, or ``mode`` is unknown.

    Example:
        >>> rank_filter(torch.tensor([0.0, 5.0, 1.0, 2.0]), 2, 3, hard=True)
        tensor([5., 5., 5., 2.])
    """
    sizes = _sizes(check_floating("x", x), size)
    check_choice("mode", mode, _MODES)
    count = math.prod(sizes)
    check_integer("rank", rank, -count, count - 1)
    windows = _windows(x, sizes, mode)
    return kthvalue(windows, rank % count + 1, method=method, temperature=temperature, scale=scale, hard=hard)


def median_filter(
    x: Float[Tensor, "*shape"],
    size: int | tuple[int, ...],
    *,
    mode: str = "reflect",
    method: str = "softsort",
    temperature: Scalar = 0.1,
    scale: str | None = "std",
    hard: bool = False,
) -> Float[Tensor, "*shape"]:
    """Replace each entry by the median of the window around it: ``scipy.ndimage.median_filter``.

    Args:
        x, size, mode, method, temperature, scale, hard: as in :func:`rank_filter`. Of an even number of entries the
            larger of the middle ones is taken, as scipy does.

    Returns:
        ``[*shape]`` of the dtype of ``x``.

    Raises:
        TypeError, ValueError: as in :func:`rank_filter`.

    Example:
        >>> median_filter(torch.tensor([0.0, 9.0, 1.0, 2.0]), 3, hard=True)
        tensor([0., 1., 2., 2.])
    """
    middle = math.prod(_sizes(check_floating("x", x), size)) // 2
    return rank_filter(x, middle, size, mode=mode, method=method, temperature=temperature, scale=scale, hard=hard)


def _sizes(x: Tensor, size: int | tuple[int, ...]) -> tuple[int, ...]:
    sizes = size if isinstance(size, tuple) else (size,)
    for one in sizes:
        check_integer("size", one, 1)
    if not 1 <= len(sizes) <= x.ndim:
        raise ValueError(f"size must have one number a filtered dimension, got {size} for shape {tuple(x.shape)}")
    return sizes


def _windows(x: Tensor, sizes: tuple[int, ...], mode: str) -> Tensor:
    """Return ``[*shape, w]``: the entries of the window around each entry."""
    if not x.numel():
        return x.unsqueeze(-1).expand(*x.shape, math.prod(sizes))
    windows = x
    for dim, size in enumerate(sizes, start=x.ndim - len(sizes)):
        n = x.shape[dim]
        first = torch.arange(n, device=x.device) - size // 2
        places = first.unsqueeze(-1) + torch.arange(size, device=x.device)
        chosen = windows.index_select(dim, _inside(places, n, mode).reshape(-1))
        windows = chosen.unflatten(dim, (n, size)).movedim(dim + 1, -1)
    return windows.flatten(x.ndim)


def _inside(places: Tensor, n: int, mode: str) -> Tensor:
    """Return the places in ``0 .. n - 1`` whose entries stand at ``places``, some of them beyond the border."""
    if mode == "nearest":
        return places.clamp(0, n - 1)
    if mode == "wrap":
        return places % n
    # Both reflections are periodic: a b c c b a, and a b c b.
    period = max(1, 2 * n if mode == "reflect" else 2 * n - 2)
    last = 2 * n - 1 if mode == "reflect" else 2 * n - 2
    back = places % period
    return torch.where(back < n, back, last - back)
