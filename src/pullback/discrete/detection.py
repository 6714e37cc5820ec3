"""Objects found by their centres, at tokens that stand anywhere in a plane: a loss, peaks, and how many are right."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_finite, check_floating, check_positive, check_tensor
from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.core.transforms import can_look

__all__ = ["DetectionScores", "Detections", "center_heatmap_loss", "detection_scores", "find_centers"]


def center_heatmap_loss(
    logits: Float[Tensor, "*batch n classes"],
    positions: Float[Tensor, "*batch n 2"],
    centers: Float[Tensor, "*batch m 2"],
    labels: Int[Tensor, "*batch m"],
    *,
    radius: float,
    mask: Bool[Tensor, "*batch n"] | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Return how far the classes at tokens are from a map with a peak at the token nearest to each object.

    .. math::
        h_{ic} = \max_{o:\ c_o = c} \exp\left(-\frac{d_{io}^2 - \min_j d_{jo}^2}{2 r^2}\right), \qquad
        L = -\frac{1}{\max(1, m)} \sum_{i, c} \begin{cases} (1 - p)^2 \log p & h = 1 \\
        (1 - h)^4 p^2 \log(1 - p) & h < 1 \end{cases}

    with distances d from tokens to centres and :math:`p = \sigma(\mathrm{logit})`.

    Args:
        logits: ``[*batch, n, classes]``.
        positions: ``[*batch, n, 2]`` of the tokens, in the unit of ``centers``.
        centers: ``[*batch, m, 2]`` of the objects.
        labels: ``[*batch, m]`` their classes; -1 is no object.
        radius: r > 0, in that unit: nearer tokens of an object are hardly punished.
        mask: ``[*batch, n]`` true at tokens, false in the padding.

    Returns:
        ``[*batch]``; 0 where there are no tokens.

    Raises:
        TypeError: ``logits``, ``positions`` or ``centers`` is not floating, ``labels`` not integer, ``mask`` not
            boolean.
        ValueError: shapes do not belong together, a logit is not finite, a label is no class, ``radius`` is not
            positive.

    Example:
        >>> positions, centers = torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.tensor([[1.0, 0.0]])
        >>> logits = torch.tensor([[8.0], [-8.0]])  # sure of an object at the first token, of none at the second
        >>> bool(center_heatmap_loss(logits, positions, centers, torch.tensor([0]), radius=2.0) < 1e-6)
        True

    References:
        Zhou, Wang, Kraehenbuehl (2019), Objects as points, equation 1. Sun et al. (2022), SWFormer: sparse window
        transformer for 3D object detection in point clouds, section 3.4 (the nearest token is the peak).
    """
    _check_plane(logits, positions, centers, labels, mask)
    check_positive("radius", radius)
    if can_look(logits):
        check_finite("logits", logits)
    if not logits.shape[-2]:
        return logits.sum((-1, -2))
    there = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device) if mask is None else mask
    squared = (positions.unsqueeze(-2) - centers.unsqueeze(-3)).square().sum(-1)  # [*batch, n, m]
    squared = torch.where(there.unsqueeze(-1), squared, torch.finfo(squared.dtype).max)
    nearest = squared.amin(-2, keepdim=True)
    near = torch.exp((nearest - squared) / (2 * radius**2))
    of_class = labels.unsqueeze(-1) == torch.arange(logits.shape[-1], device=labels.device)  # [*batch, m, classes]
    heat = near.unsqueeze(-1) * of_class.unsqueeze(-3)
    heat = heat.amax(-2) if heat.shape[-2] else torch.zeros_like(logits)
    peak = heat == 1
    signed = torch.where(peak, logits, -logits)
    missed = (2 * nn.functional.logsigmoid(-signed)).exp() * nn.functional.logsigmoid(signed)
    losses = torch.where(peak, missed, (1 - heat) ** 4 * missed)
    total = torch.where(there.unsqueeze(-1), losses, 0).sum((-1, -2))
    return -total / (labels >= 0).sum(-1).clamp(min=1)


class Detections(NamedTuple):
    """Peaks of the scores, the best first; rows with fewer are padded at their end.

    Attributes:
        positions: ``[*batch, k, 2]``.
        labels: ``[*batch, k]`` the class with the largest score; -1 in the padding.
        scores: ``[*batch, k]`` its probability; 0 in the padding.
    """

    positions: Float[Tensor, "*batch k 2"]
    labels: Int[Tensor, "*batch k"]
    scores: Float[Tensor, "*batch k"]


@torch.no_grad()
def find_centers(
    logits: Float[Tensor, "*batch n classes"],
    positions: Float[Tensor, "*batch n 2"],
    *,
    radius: float,
    threshold: float = 0.0,
    mask: Bool[Tensor, "*batch n"] | None = None,
) -> Detections:
    """Return the tokens whose largest probability no other token within ``radius`` exceeds.

    Args:
        logits: ``[*batch, n, classes]``.
        positions: ``[*batch, n, 2]``.
        radius: > 0, in the unit of the positions; of equals the first token is the peak.
        threshold: smallest probability of a detection, in [0, 1].
        mask: ``[*batch, n]`` true at tokens that may be found (those that are present).

    Returns:
        :class:`Detections`; none where there is no token.

    Raises:
        TypeError: ``logits`` or ``positions`` is not floating, ``mask`` not boolean.
        ValueError: shapes do not belong together, ``radius`` is not positive.

    Example:
        >>> positions = torch.tensor([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0]])
        >>> found = find_centers(torch.tensor([[0.0, 2.0], [1.0, 1.0], [0.0, -2.0]]), positions, radius=3.0)
        >>> found.positions.tolist(), found.labels.tolist()
        ([[0.0, 0.0], [9.0, 0.0]], [1, 0])
    """
    _check_plane(logits, positions, None, None, mask)
    check_positive("radius", radius)
    batch, n = logits.shape[:-2], logits.shape[-2]
    if not n or not logits.shape[-1]:
        labels = torch.zeros(*batch, 0, dtype=torch.long, device=logits.device)
        return Detections(positions[..., :0, :], labels, logits.new_zeros(*batch, 0))
    best, labels = torch.sigmoid(logits).max(-1)
    possible = best >= threshold if mask is None else mask & (best >= threshold)
    ranked = torch.where(possible, best, -1).argsort(dim=-1, descending=True, stable=True)
    best, labels, possible = (t.gather(-1, ranked) for t in (best, labels, possible))
    positions = positions.gather(-2, ranked.unsqueeze(-1).expand(*ranked.shape, 2))
    near = (positions.unsqueeze(-2) - positions.unsqueeze(-3)).norm(dim=-1) <= radius
    better = torch.ones(n, n, dtype=torch.bool, device=logits.device).tril(-1)  # who stands before in the ranking
    peak = possible & ~(near & better & possible.unsqueeze(-2)).any(-1)
    most = int(peak.sum(-1).max()) if peak.numel() else 0
    order = (~peak).to(torch.uint8).argsort(dim=-1, stable=True)[..., :most]
    peak, best, labels = (t.gather(-1, order) for t in (peak, best, labels))
    positions = positions.gather(-2, order.unsqueeze(-1).expand(*order.shape, 2))
    return Detections(positions, torch.where(peak, labels, -1), torch.where(peak, best, 0))


class DetectionScores(NamedTuple):
    """How many detections are right, over all rows together.

    Attributes:
        precision: share of the detections that are an object; 1 where there is none.
        recall: share of the objects that are found; 1 where there is none.
        f1: their harmonic mean.
    """

    precision: float
    recall: float
    f1: float


def detection_scores(
    found: Detections,
    centers: Float[Tensor, "*batch m 2"],
    labels: Int[Tensor, "*batch m"],
    *,
    radius: float,
    threshold: float = 0.0,
) -> DetectionScores:
    """Return precision, recall and F1: from the best detection on, each takes the nearest free object of its class.

    Args:
        found: what :func:`find_centers` returned.
        centers: ``[*batch, m, 2]`` of the objects.
        labels: ``[*batch, m]`` their classes; -1 is no object.
        radius: largest distance from a detection to its object, > 0.
        threshold: smallest score of the detections that count.

    Returns:
        :class:`DetectionScores` over all rows.

    Raises:
        TypeError: ``centers`` is not floating or ``labels`` not integer.
        ValueError: shapes do not belong together, ``radius`` is not positive.

    Example:
        >>> found = Detections(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([1, 0]), torch.tensor([0.9, 0.6]))
        >>> detection_scores(found, torch.tensor([[1.0, 0.0]]), torch.tensor([1]), radius=3.0)
        DetectionScores(precision=0.5, recall=1.0, f1=0.6666666666666666)
    """
    _check_plane(None, found.positions, centers, labels, None)
    check_positive("radius", radius)
    valid = (found.labels >= 0) & (found.scores >= threshold)
    distances = (found.positions.unsqueeze(-2) - centers.unsqueeze(-3)).norm(dim=-1)
    fits = (found.labels.unsqueeze(-1) == labels.unsqueeze(-2)) & (distances <= radius) & valid.unsqueeze(-1)
    free, objects = labels >= 0, int((labels >= 0).sum())
    right = 0
    for number in range(found.labels.shape[-1] if labels.shape[-1] else 0):
        candidate = fits[..., number, :] & free
        nearest = torch.where(candidate, distances[..., number, :], torch.inf).argmin(-1, keepdim=True)
        taken = candidate.gather(-1, nearest)
        right += int(taken.sum())
        free = free.scatter(-1, nearest, free.gather(-1, nearest) & ~taken)
    detections = int(valid.sum())
    total = detections + objects
    return DetectionScores(
        right / detections if detections else 1.0,
        right / objects if objects else 1.0,
        2 * right / total if total else 1.0,
    )


def _check_plane(
    logits: Tensor | None, positions: Tensor, centers: Tensor | None, labels: Tensor | None, mask: Tensor | None
) -> None:
    check_floating("positions", positions)
    if positions.ndim < 2 or positions.shape[-1] != 2:
        raise ValueError(f"positions must have shape (..., n, 2), got {tuple(positions.shape)}")
    rows = positions.shape[:-1]
    if logits is not None and (check_floating("logits", logits).ndim < 2 or logits.shape[:-1] != rows):
        raise ValueError(f"logits must have shape {tuple(rows)} and classes, got {tuple(logits.shape)}")
    if mask is not None:
        if check_tensor("mask", mask).dtype != torch.bool:
            raise TypeError(f"mask must be a boolean tensor, got {mask.dtype}")
        if mask.shape != rows:
            raise ValueError(f"mask must have shape {tuple(rows)}, got {tuple(mask.shape)}")
    if centers is None or labels is None:
        return
    check_floating("centers", centers)
    if check_tensor("labels", labels).is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be an integer tensor, got {labels.dtype}")
    if centers.shape != (*labels.shape, 2) or labels.shape[:-1] != rows[:-1]:
        raise ValueError(
            f"centers and labels must be [*batch, m, 2] and [*batch, m], batch {tuple(rows[:-1])} as positions, "
            f"got {tuple(centers.shape)} and {tuple(labels.shape)}"
        )
    if logits is not None and can_look(labels) and bool(((labels < -1) | (labels >= logits.shape[-1])).any()):
        raise ValueError(f"labels must be in -1..{logits.shape[-1] - 1}")
