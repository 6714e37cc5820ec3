r"""Tracks of several things at once: how well predicted ones follow the true ones, exactly and with a gradient."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pullback.core.checks import check_floating, check_positive, check_same_dtype, check_tensor
from pullback.core.shapes import Bool, Float, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.softness import widen
from pullback.transport import assignment

__all__ = ["TrackingLoss", "TrackingMetrics", "clear_mot", "soft_tracking_loss"]


class TrackingLoss(NamedTuple):
    """The parts of a differentiable tracking loss.

    Attributes:
        loss: ``motp + mota``, what is minimised.
        motp: distance of the matched pairs, weighted.
        mota: false positives, false negatives and switches, as a part of what is predicted.
        false_positives: summed over the frames, by how much more is matched than exists.
        false_negatives: the same, by how much less.
        switches: summed over the frames, pairs that were not made in the frame before.
    """

    loss: Float[Tensor, ""]
    motp: Float[Tensor, ""]
    mota: Float[Tensor, ""]
    false_positives: Float[Tensor, ""]
    false_negatives: Float[Tensor, ""]
    switches: Float[Tensor, ""]


class TrackingMetrics(NamedTuple):
    """How predicted tracks follow the true ones; NaN where there is nothing to divide by.

    Attributes:
        mota: accuracy, ``1 - (misses + false_positives + switches) / true``, at most 1.
        motp: mean distance of the pairs, in the unit of the distance.
        precision: share of the predictions that have a partner, in [0, 1].
        recall: share of the true ones that have a partner, in [0, 1].
        f1: harmonic mean of both.
        matches: pairs.
        misses: true ones without a partner.
        false_positives: predictions without a partner.
        switches: pairs in which a true one has another partner than the last that it had.
    """

    mota: float
    motp: float
    precision: float
    recall: float
    f1: float
    matches: int
    misses: int
    false_positives: int
    switches: int


def soft_tracking_loss(
    distance: Float[Tensor, "*batch t n m"],
    assignment: Float[Tensor, "*batch t n m"],
    references: Bool[Tensor, "*batch t m"],
    *,
    motp: float = 50.0,
    mota: float = 1.0,
    switches: float = 1.0,
) -> TrackingLoss:
    r"""Both CLEAR MOT scores of soft assignments :math:`A_t` of n outputs to m references, to be minimised.

    .. math::
        \mathrm{motp} = w_p\,\frac{\sum_t (\sum A_t D_t)(\sum A_t)}{\sum_t \sum A_t}, \qquad
        \mathrm{mota} = w_a\,\frac{\sum_t |M_t - N_t| + w_s \sum_t \sum A_t (1 - A_{t-1})}{\sum_t M_t}

    with :math:`M_t = \sum_i \max_j A_{t,ij}` outputs in use and :math:`N_t` references that exist. Sums run over the
    frames of all clips of the batch; a switch is counted within a clip only. A pair that begins counts as a switch too.

    Args:
        distance: ``[*batch, t, n, m]`` >= 0, finite, those of missing references too.
        assignment: ``[*batch, t, n, m]`` in [0, 1], such as that of :func:`~pullback.discrete.assign`.
        references: ``[*batch, t, m]`` which references exist. Where they are more than outputs, those that are left are
            false negatives.
        motp: :math:`w_p` >= 0.
        mota: :math:`w_a` >= 0.
        switches: :math:`w_s` >= 0.

    Returns:
        :class:`TrackingLoss`. Where nothing is assigned, motp is 0 and mota as large as the smallest number allows.

    Raises:
        TypeError: an argument is of another type.
        ValueError: the shapes do not fit, a weight is negative, a distance is NaN or infinite.

    Example:
        >>> loss = soft_tracking_loss(torch.full((3, 1, 1), 0.1), torch.ones(3, 1, 1), torch.ones(3, 1).bool())
        >>> round(loss.motp.item(), 4), loss.mota.item()
        (5.0, 0.0)

    References:
        Adavanne, Politis, Virtanen (2021), Differentiable tracking-based training of deep learning sound source
        localizers, section 2.2. Xu et al. (2020), How to train your deep multi-object tracker.
    """
    _check_frames(distance, "references", references, rows=False)
    check_floating("assignment", assignment)
    check_same_dtype(distance=distance, assignment=assignment)
    if assignment.shape != distance.shape:
        raise ValueError(
            f"assignment must have the shape of distance, {tuple(distance.shape)}, got {tuple(assignment.shape)}"
        )
    for name, weight in (("motp", motp), ("mota", mota), ("switches", switches)):
        check_positive(name, weight, zero=True)
    if can_look(distance) and not bool(distance.isfinite().all()):
        raise ValueError("distance must be finite, those of missing references too")
    d, a = widen(distance), widen(assignment)
    matched, used = a.sum((-2, -1)), a.amax(-1).sum(-1)
    exist = references.sum(-1).to(used)
    least = torch.finfo(used.dtype).eps
    error = (a * d).sum((-2, -1))
    precision = motp * (error * matched).sum() / matched.sum().clamp(min=least)
    positives, negatives = (used - exist).clamp(min=0).sum(), (exist - used).clamp(min=0).sum()
    changes = (a[..., 1:, :, :] * (1 - a[..., :-1, :, :])).sum()
    accuracy = mota * (positives + negatives + switches * changes) / used.sum().clamp(min=least)
    parts = (precision + accuracy, precision, accuracy, positives, negatives, changes)
    return TrackingLoss(*(x.to(distance.dtype) for x in parts))


@torch.no_grad()
def clear_mot(
    distance: Float[Tensor, "*batch t n m"],
    predicted: Bool[Tensor, "*batch t n"],
    reference: Bool[Tensor, "*batch t m"],
    *,
    threshold: float,
    memory: bool = True,
) -> TrackingMetrics:
    r"""Count how predicted tracks follow the true ones (CLEAR MOT): misses, false positives, switches, distance.

    Frame by frame: pairs of the frame before stay, where both still exist and are not further apart than the threshold.
    Of the others as many as possible are paired, at the least total distance (Hungarian). A true one whose new partner
    is not the last that it had, however long ago, has switched.

    Args:
        distance: ``[*batch, t, n, m]`` of n predictions to m true ones in each frame, >= 0; not read where one of both
            does not exist.
        predicted: ``[*batch, t, n]`` which predictions exist; track i is row i of all frames.
        reference: ``[*batch, t, m]`` which true ones exist.
        threshold: the largest distance of a pair, > 0, in the unit of the distance.
        memory: let pairs stay. ``False`` pairs every frame anew, at its least total distance.

    Returns:
        :class:`TrackingMetrics` of all clips of the batch together.

    Raises:
        TypeError: an argument is of another type.
        ValueError: the shapes do not fit, the threshold is not positive, a distance that is read is NaN or negative.

    Example:
        >>> distance = torch.tensor([[[0.1, 2.0], [2.0, 0.1]], [[2.0, 0.1], [0.1, 2.0]]])  # they swap
        >>> both = torch.ones(2, 2, dtype=torch.bool)
        >>> found = clear_mot(distance, both, both, threshold=1.0)
        >>> found.switches, found.mota, found.recall
        (2, 0.5, 1.0)

    References:
        Bernardin, Stiefelhagen (2008), Evaluating multiple object tracking performance: the CLEAR MOT metrics.
    """
    _check_frames(distance, "reference", reference, rows=False)
    _check_frames(distance, "predicted", predicted, rows=True)
    check_positive("threshold", threshold)
    exist = predicted.unsqueeze(-1) & reference.unsqueeze(-2)
    if bool((exist & ~(distance >= 0)).any()):
        raise ValueError("distance must be >= 0 wherever a prediction and a true one exist")
    near = (exist & (distance <= threshold)).reshape(-1, *distance.shape[-3:])
    distance = torch.where(near, distance.reshape(near.shape), 0).double()
    frames, n, m = near.shape[1:]
    before = torch.zeros_like(near[:, :1]).sum(1) > 0
    last = torch.full((len(near), m), -1, device=near.device)
    total, matches, switches = 0.0, 0, 0
    for t in range(frames if n and m else 0):
        kept = before & near[:, t] if memory else torch.zeros_like(near[:, t])
        free = near[:, t] & ~kept.any(-1, keepdim=True) & ~kept.any(-2, keepdim=True)
        # Two costs at once: one more pair is worth more than all distances.
        gain = torch.where(free, distance[:, t] / threshold - (1 + min(n, m)), 0.0)
        found = assignment(gain)
        index = torch.zeros_like(free).flatten(1)
        index.scatter_(1, found.rows * m + found.columns, True)
        before = kept | (index.view_as(free) & free)
        paired, partner = before.any(1), before.int().argmax(1)
        switches += int((paired & (last >= 0) & (last != partner)).sum())
        last = torch.where(paired, partner, last)
        matches += int(paired.sum())
        total += float(distance[:, t][before].sum())
    predictions, true = int(predicted.sum()), int(reference.sum())
    misses, false_positives = true - matches, predictions - matches
    return TrackingMetrics(
        mota=1 - (misses + false_positives + switches) / true if true else math.nan,
        motp=total / matches if matches else math.nan,
        precision=matches / predictions if predictions else math.nan,
        recall=matches / true if true else math.nan,
        f1=2 * matches / (predictions + true) if predictions + true else math.nan,
        matches=matches,
        misses=misses,
        false_positives=false_positives,
        switches=switches,
    )


def _check_frames(distance: Tensor, name: str, exists: Tensor, *, rows: bool) -> None:
    if check_floating("distance", distance).ndim < 3:
        raise ValueError(f"distance must have shape (..., t, n, m), got {tuple(distance.shape)}")
    if check_tensor(name, exists).dtype != torch.bool:
        raise TypeError(f"{name} must be a boolean tensor, got {exists.dtype}")
    wanted = distance.shape[:-1] if rows else (*distance.shape[:-2], distance.shape[-1])
    if tuple(exists.shape) != tuple(wanted):
        raise ValueError(f"{name} must have shape {tuple(wanted)}, got {tuple(exists.shape)}")
