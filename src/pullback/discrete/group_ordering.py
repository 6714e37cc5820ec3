"""One set before another: the order of two groups, whatever the order inside each."""

from __future__ import annotations

from functools import partial

import torch

from pullback.core.checks import (
    check_choice,
    check_floating,
    check_integer,
    check_same_dtype,
    check_scalar,
)
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.discrete.networks import NETWORKS, layers_of, refuse_nan, steepened
from pullback.discrete.softness import widen
from pullback.discrete.steps import STEP_ERRORS, soft_step
from pullback.kernels.sorting_network import Swaps, sorting_mass

__all__ = ["group_mass", "group_ordering_loss"]

_REDUCTIONS = ("mean", "sum", "none")


def group_mass(
    x: Float[Tensor, "*batch n"],
    group: int,
    *,
    steepness: Scalar = 10.0,
    distribution: str = "cauchy",
    network: str = "odd_even",
) -> Float[Tensor, "*batch n"]:
    r"""Return how much of each item a sorting network brings to the last ``group`` places: a soft "among the largest".

    .. math:: m_i = \sum_{j > n - k} P_{ji} = (M_1 M_2 \cdots M_L \, 1_{j > n - k})_i

    with the soft permutation ``P = M_L ... M_1`` of :func:`sorting_network`, which is not formed: its layers are
    symmetric, so the indicator of the places goes through them in reverse, at the cost of the values.

    Args:
        x: ``[*batch, n]`` any floating dtype (half precision is computed in float32); ``+-inf`` go to the ends exactly.
        group: how many places ``k``, 0 to ``n``.
        steepness: slope ``beta > 0`` of the sigmoid at a tie, in units of 1 / value; a number or a differentiable
            tensor without dimensions.
        distribution: of :func:`~pullback.discrete.soft_step`.
        network: ``"odd_even"`` or ``"bitonic"``, see :func:`comparators`.

    Returns:
        ``[*batch, n]`` in [0, 1], each row sums to ``group``.

    Raises:
        TypeError: ``x`` is not a floating tensor, ``group`` no integer.
        ValueError: ``x`` has no entries along its last dimension, a NaN (looked for except under ``torch.func``,
            forward mode and ``torch.compile``), ``group`` or ``steepness`` out of range, unknown ``distribution`` or
            ``network``.

    Example:
        >>> group_mass(torch.tensor([3.0, 1.0, 2.0]), 2, steepness=1e4).round(decimals=2).tolist()
        [1.0, 0.0, 1.0]

    References:
        Shvetsova, Petersen, Kukleva, Schiele, Kuehne (2023), Learning by sorting: self-supervised learning with group
        ordering constraints, equation 4.
    """
    check_floating("x", x)
    n = x.shape[-1] if x.ndim else 0
    if not n:
        raise ValueError(f"x must have entries along its last dimension, got shape {tuple(x.shape)}")
    check_integer("group", group, 0, n)
    check_scalar("steepness", steepness)
    check_choice("distribution", distribution, STEP_ERRORS)
    check_choice("network", network, NETWORKS)
    refuse_nan("x", x)
    learned = steepness if isinstance(steepness, Tensor) else None
    slope = 1.0 if learned is not None else float(steepness)
    swaps = Swaps(*layers_of(network, n), partial(soft_step, distribution=distribution), distribution, slope, False)
    rows = widen(x) if learned is None else steepened(widen(x), learned)
    return sorting_mass(rows, swaps, group).to(x.dtype)


def group_ordering_loss(
    positives: Float[Tensor, "*batch p"],
    negatives: Float[Tensor, "*batch m"],
    *,
    steepness: Scalar,
    distribution: str = "cauchy",
    network: str = "odd_even",
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    r"""Return what it costs that not every positive is above every negative; no order inside a group is asked for.

    .. math::
        \frac{1}{p + m} \left(\sum_{i \in +} -\log m_i + \sum_{i \in -} -\log (1 - m_i)\right)

    with the :func:`group_mass` ``m`` of the last ``p`` places. Each group is sorted first, without error, and enters
    the network in order. Of two scores the loss is ``-log f(beta (positive - negative))``, and groups that are far
    apart still cost ``O(1 / beta)``: similarities between -1 and 1 never make it 0.

    Args:
        positives: ``[*batch, p]`` scores, such as similarities to an anchor, any size.
        negatives: ``[*batch, m]`` scores of the others.
        steepness: slope ``beta > 0`` of the sigmoid at a tie, in units of 1 / score; a number or a differentiable
            tensor without dimensions. The authors' steepness is ours times pi.
        distribution: of :func:`~pullback.discrete.soft_step`.
        network: ``"odd_even"`` or ``"bitonic"``, see :func:`comparators`.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``.

    Returns:
        A scalar, or ``[*batch]``; the mean over an empty batch is 0. Computed in float64.

    Raises:
        TypeError: an argument is not a floating tensor, or the dtypes differ.
        ValueError: there are no positives or no negatives, the batches differ, a NaN, ``steepness <= 0``, an unknown
            word.

    Example:
        >>> positives, negatives = torch.tensor([0.9, 0.8]), torch.tensor([0.1, -0.2, 0.3])
        >>> apart = group_ordering_loss(positives, negatives, steepness=10.0)
        >>> bool(apart < group_ordering_loss(positives - 0.5, negatives, steepness=10.0))
        True

    References:
        Shvetsova, Petersen, Kukleva, Schiele, Kuehne (2023), Learning by sorting: self-supervised learning with group
        ordering constraints, section 3.
    """
    check_groups(positives, negatives)
    check_choice("reduction", reduction, _REDUCTIONS)
    refuse_nan("positives", positives)
    refuse_nan("negatives", negatives)
    low, high = negatives.sort(dim=-1).values, positives.sort(dim=-1).values
    # In float64, so that 1 - mass of a negative that is nearly in keeps its digits.
    ordered = torch.cat([low, high], -1).double()
    count = high.shape[-1]
    mass = group_mass(ordered, count, steepness=steepness, distribution=distribution, network=network)
    right = torch.cat([1 - mass[..., :-count], mass[..., -count:]], -1)
    losses = -right.clamp(min=torch.finfo(right.dtype).tiny).log().mean(-1)
    return reduced(losses, reduction).to(positives.dtype)


def check_groups(positives: Tensor, negatives: Tensor) -> None:
    """Refuse scores of two groups that do not belong together."""
    for name, scores in (("positives", positives), ("negatives", negatives)):
        check_floating(name, scores)
        if not scores.ndim or not scores.shape[-1]:
            raise ValueError(f"{name} must have entries along their last dimension, got shape {tuple(scores.shape)}")
    check_same_dtype(positives=positives, negatives=negatives)
    if positives.shape[:-1] != negatives.shape[:-1]:
        raise ValueError(
            f"positives and negatives must agree in all but the last dimension, got {tuple(positives.shape)} and "
            f"{tuple(negatives.shape)}"
        )


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """Return the losses ``[*batch]``, their sum, or their mean, 0 where there are none."""
    if reduction == "none":
        return losses
    return losses.sum() / (1 if reduction == "sum" else max(1, losses.numel()))
