"""Learning an order: the loss against the true permutation and the accuracies that the field reports."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pullback.core.checks import check_floating, check_integer, check_same_dtype, check_shape, check_tensor
from pullback.core.shapes import Float, Num, Tensor
from pullback.core.transforms import is_transformed
from pullback.discrete.softness import widen

__all__ = ["OrderingMetrics", "ordering_metrics", "permutation_loss", "reordered_loss"]


class OrderingMetrics(NamedTuple):
    """How well scores order sets, as fractions in [0, 1].

    Attributes:
        exact_match: of the sets, those that are ordered entirely right.
        element_wise: of the places, those that hold an item of the right value.
        subset_match: of all subsets of the given size, those that are ordered right; ``None`` without ``subset``.
    """

    exact_match: float
    element_wise: float
    subset_match: float | None


def permutation_loss(permutation: Float[Tensor, "*batch n n"], target: Num[Tensor, "..."]) -> Float[Tensor, ""]:
    r"""Return the mean binary cross entropy of a soft permutation matrix against the true one.

    .. math::
        -\frac{1}{B n^2} \sum_{bij} Q_{bij} \log P_{bij} + (1 - Q_{bij}) \log(1 - P_{bij})

    Logarithms stop at the smallest normal number, so that an entry that is wrong by exactly 1 costs about 87 (float32)
    and passes no gradient: a hard permutation learns from its right entries alone, and of long sets next to nothing.
    See :func:`reordered_loss`.

    Args:
        permutation: ``[*batch, n, n]`` in [0, 1], row = place, column = item; half precision is computed in float32.
        target: the true matrix ``[*batch, n, n]``, or integers ``[*batch, n]``: the item at each place, as
            ``torch.argsort`` of the true values.

    Returns:
        A scalar of the dtype of ``permutation``; 0 for an empty batch.

    Raises:
        TypeError: ``permutation`` is not a floating tensor, or ``target`` neither floating nor integer.
        ValueError: the shapes do not fit, or a row of integers is no permutation (looked for except under
            ``torch.func``, forward mode and ``torch.compile``).

    Example:
        >>> halves = torch.full((2, 2), 0.5)
        >>> round(permutation_loss(halves, torch.tensor([1, 0])).item(), 4)  # ln 2
        0.6931

    References:
        Petersen, Borgelt, Kuehne, Deussen (2021), Differentiable sorting networks for scalable sorting and ranking
        supervision, section 3.4.
    """
    truth = _matrix(permutation, target)
    p = widen(permutation)
    tiny = torch.finfo(p.dtype).tiny
    loss = -truth * p.clamp(min=tiny).log() - (1 - truth) * (1 - p).clamp(min=tiny).log()
    return (loss.sum() / max(1, loss.numel())).to(permutation.dtype)


def reordered_loss(
    permutation: Float[Tensor, "*batch n n"], items: Float[Tensor, "..."], target: Num[Tensor, "..."]
) -> Float[Tensor, ""]:
    r"""Return the mean squared difference between the items as a permutation orders them and in their true order.

    .. math:: \frac{1}{B n d} \sum_b \left| P_b X_b - Q_b X_b \right|^2

    It gives the hard permutation of an error-free network a gradient, which their cross entropy does not: what it
    costs to swap two items is how much they differ.

    Args:
        permutation: ``[*batch, n, n]`` soft or hard, row = place, column = item.
        items: ``[*batch, n, *item]`` what is ordered, such as pixels; ``d`` numbers each.
        target: the true matrix ``[*batch, n, n]``, or integers ``[*batch, n]``: the item at each place.

    Returns:
        A scalar of the dtype of ``permutation``; 0 for an empty batch. Half precision is computed in float32.

    Raises:
        TypeError: ``permutation`` or ``items`` is not a floating tensor, or ``target`` neither floating nor integer.
        ValueError: the shapes do not fit, the dtypes differ, or a row of integers is no permutation (looked for except
            under ``torch.func``, forward mode and ``torch.compile``).

    Example:
        >>> swapped = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> reordered_loss(swapped, torch.tensor([[1.0], [4.0]]), torch.tensor([0, 1])).item()
        9.0

    References:
        Kim, Yoon, Cho (2024), Generalized neural sorting networks with error-free differentiable swap functions,
        section 4.
    """
    truth = _matrix(permutation, target)
    check_floating("items", items)
    check_same_dtype(permutation=permutation, items=items)
    sets = permutation.shape[:-1]
    if items.shape[: len(sets)] != sets:
        raise ValueError(f"items must begin with the shape {tuple(sets)}, got {tuple(items.shape)}")
    flat = widen(items).reshape(*sets, math.prod(items.shape[len(sets) :]))
    difference = (widen(permutation) - truth) @ flat
    return (difference.square().sum() / max(1, difference.numel())).to(permutation.dtype)


def _matrix(permutation: Tensor, target: Tensor) -> Tensor:
    """Return the target as a matrix of the (wide) dtype of ``permutation``."""
    check_floating("permutation", permutation)
    check_tensor("target", target)
    n = permutation.shape[-1] if permutation.ndim else 0
    check_shape("permutation", permutation, (n, n))
    if target.dtype == torch.bool or target.is_complex():
        raise TypeError(f"target must be a floating matrix or integer indices, got {target.dtype}")
    wide = widen(permutation).dtype
    if target.is_floating_point():
        if target.shape != permutation.shape:
            raise ValueError(f"target must have shape {tuple(permutation.shape)}, got {tuple(target.shape)}")
        return target.to(wide)
    if target.shape != permutation.shape[:-1]:
        raise ValueError(f"target must have shape {tuple(permutation.shape[:-1])}, got {tuple(target.shape)}")
    places = torch.arange(n, device=target.device)
    if not is_transformed(permutation) and not bool((target.sort(dim=-1).values == places).all()):
        raise ValueError(f"target must hold every index 0..{n - 1} once in every row")
    return (target[..., None] == places).to(wide)


def ordering_metrics(
    scores: Float[Tensor, "*batch n"], truth: Num[Tensor, "*batch n"], subset: int | None = None
) -> OrderingMetrics:
    """Return how well the order of ``scores`` agrees with that of the true values.

    Items of equal true value are interchangeable. A set counts as ordered where the true values, taken in the order of
    the scores, never fall. ``subset_match`` is the exact mean over all subsets: it counts the subsequences that never
    fall.

    Args:
        scores: ``[*batch, n]`` predicted, compared within a set; equal scores keep the order of the items.
        truth: ``[*batch, n]`` the true values.
        subset: also judge all subsets of this size, 1 to ``n``.

    Returns:
        :class:`OrderingMetrics`, means over the batch.

    Raises:
        TypeError: ``scores`` is not a floating tensor.
        ValueError: the shapes differ, the batch is empty, or ``subset`` is out of range.

    Example:
        >>> ordering_metrics(torch.tensor([[0.1, 0.3, 0.2]]), torch.tensor([[1, 2, 3]]), subset=2)
        OrderingMetrics(exact_match=0.0, element_wise=0.3333333..., subset_match=0.6666666...)
    """
    check_floating("scores", scores)
    check_tensor("truth", truth)
    if scores.shape != truth.shape:
        raise ValueError(f"scores and truth must agree in shape, got {tuple(scores.shape)} and {tuple(truth.shape)}")
    if scores.numel() == 0:
        raise ValueError(f"scores must not be empty, got shape {tuple(scores.shape)}")
    n = scores.shape[-1]
    if subset is not None:
        check_integer("subset", subset, 1, n)
    predicted = truth.gather(-1, torch.argsort(scores, dim=-1, stable=True))
    right = predicted == truth.sort(dim=-1).values
    subset_match = None
    if subset is not None:
        later = torch.ones(n, n, dtype=torch.bool, device=truth.device).tril(-1)
        follows = ((predicted[..., None] >= predicted[..., None, :]) & later).double()
        ending = torch.ones_like(predicted, dtype=torch.float64)
        for _ in range(subset - 1):
            ending = (follows @ ending[..., None]).squeeze(-1)
        subset_match = float(ending.sum(-1).mean()) / math.comb(n, subset)
    return OrderingMetrics(float(right.all(-1).double().mean()), float(right.double().mean()), subset_match)
