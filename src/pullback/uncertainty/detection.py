"""How well a score tells two kinds of samples apart."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_broadcast, check_floating, check_range, check_same_dtype
from pullback.core.shapes import Float, Tensor

__all__ = ["Detection", "detection_metrics"]


class Detection(NamedTuple):
    """What a score detects.

    Attributes:
        auroc: ``[*batch]`` area under the receiver operating characteristic: how often a sample from inside scores
            above one from outside, a tie counting half. 0.5 by chance.
        false_positive_rate: ``[*batch]`` share of outside samples that score at least as high as the threshold above
            which the asked share of inside samples lies. 0 is best.
        average_precision: ``[*batch]`` area under the curve of precision and recall (by steps), inside positive.
    """

    auroc: Float[Tensor, "*batch"]
    false_positive_rate: Float[Tensor, "*batch"]
    average_precision: Float[Tensor, "*batch"]


def detection_metrics(
    inside: Float[Tensor, "*#batch n"], outside: Float[Tensor, "*#batch m"], *, recall: float = 0.95
) -> Detection:
    r"""Return how well a score, high inside, tells inside from outside samples, exact with ties.

    .. math:: \mathrm{AUROC}=P(s_{in}>s_{out})+\tfrac12P(s_{in}=s_{out}),\qquad
        \mathrm{FPR}=P\big(s_{out}\ge t\big),\ t=\max\{t:P(s_{in}\ge t)\ge\text{recall}\},

    and the average precision :math:`\sum_t(R_t-R_{t-1})P_t` over the thresholds t that are scores. O(n log n), not
    differentiated (a sigmoid of differences is what trains).

    Args:
        inside: ``[*batch, n]`` scores of samples from inside, n >= 1; infinite ones are allowed.
        outside: ``[*batch, m]`` of those from outside, m >= 1.
        recall: of the inside samples at which the false positive rate is read, in (0, 1].

    Returns:
        :class:`Detection`, in the dtype of the scores (float32 for smaller ones).

    Raises:
        TypeError: the scores are no floating tensors, or the dtypes differ.
        ValueError: there are no samples, a score is NaN, shapes do not broadcast, or ``recall`` is out of range.

    Example:
        >>> detection_metrics(torch.tensor([3.0, 2.0, 2.0]), torch.tensor([1.0, 2.0]), recall=1.0)
        Detection(auroc=tensor(0.8333), false_positive_rate=tensor(0.5000), average_precision=tensor(0.8333))

    References:
        Davis, Goadrich (2006), The relationship between precision-recall and ROC curves. Hendrycks, Gimpel (2017), A
        baseline for detecting misclassified and out-of-distribution examples.
    """
    check_same_dtype(inside=check_floating("inside", inside), outside=check_floating("outside", outside))
    for name, scores in (("inside", inside), ("outside", outside)):
        if not scores.ndim or not scores.shape[-1]:
            raise ValueError(f"{name} must have shape (..., n) with n >= 1, got {tuple(scores.shape)}")
        if bool(scores.isnan().any()):
            raise ValueError(f"{name} must not be NaN")
    check_range("recall", recall, 0, 1)
    if recall == 0:
        raise ValueError("recall must be > 0, got 0")
    batch = check_broadcast(inside=inside.shape[:-1], outside=outside.shape[:-1])
    ups = inside.detach().expand(*batch, -1).sort(-1, descending=True).values
    downs = outside.detach().expand(*batch, -1).sort(-1).values
    n, m = ups.shape[-1], downs.shape[-1]
    dtype = torch.promote_types(inside.dtype, torch.float32)
    below = torch.searchsorted(downs, ups)  # outside samples below each one from inside
    least = torch.searchsorted(downs, ups, right=True)  # below or equal
    area = ((below.double() + least.double()) / (2 * m)).mean(-1)
    needed = _needed(recall, n)
    rate = (m - below[..., needed - 1]).double() / m
    # Read at the last of equal scores, where all of them are accepted.
    accepted = torch.searchsorted(-ups, -ups, right=True).double()
    precision = accepted / (accepted + (m - below))
    return Detection(area.to(dtype), rate.to(dtype), precision.mean(-1).to(dtype))


def _needed(recall: float, n: int) -> int:
    """How many of n samples are at least that share, rounding of the product aside."""
    count = max(1, round(recall * n))
    if count / n < recall:
        count += 1
    return count - 1 if count > 1 and (count - 1) / n >= recall else count
