"""What an attribution cannot tell: models with one attribution and opposite behaviour, and the curve of a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import (
    check_callable,
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
)
from pullback.core.shapes import Float, Shaped, Tensor
from pullback.gradients.attribution import scalar_rows

__all__ = ["AdversarialPair", "OperatingCurve", "adversarial_pair", "hypothesis_test_curve"]

_GRID = 129


class AdversarialPair(NamedTuple):
    """Two models with the same attribution of a feature and opposite behaviour in it near a point.

    Attributes:
        increasing: rises with the feature within ``delta`` of the point.
        decreasing: falls with it.
    """

    increasing: nn.Module
    decreasing: nn.Module


def adversarial_pair(
    fn: Callable[[Tensor], Tensor],
    x: Float[Tensor, "n"],
    feature: int,
    *,
    reference: Float[Tensor, "b n"],
    delta: float,
    effect: float = 1.0,
    attribution: Callable[[Callable[[Tensor], Tensor], Tensor, Tensor], Tensor] | None = None,
    value: float | None = None,
    target: int | None = None,
) -> AdversarialPair:
    r"""Add a function ``h`` of one feature to a model so that its attribution is prescribed and its local slope too.

    A complete and linear attribution of ``fn + h(x_j)`` is that of ``fn`` plus ``h(x_j) - mean_b h(b_j)``: the baseline
    of integrated gradients, the background of Shapley values. So ``h`` has slope ``s`` or ``-s`` on
    ``[x_j - delta, x_j + delta]``, steeper than ``fn`` is there, and is constant from the nearest reference outside of
    it on, at the height that gives the attribution. It is a sum of four ReLUs: a network stays one.

    Args:
        fn: maps rows ``[m, n]`` to ``[m]``, ``[m, 1]``, or to ``[m, outputs]`` of which ``target`` is meant.
        x: ``[n]`` the point.
        feature: ``j`` in ``0..n-1``.
        reference: ``[b, n]`` background rows of Shapley values, or the one baseline of integrated gradients.
        delta: > 0, half the width of the neighbourhood, in units of the feature; at least one reference lies outside.
        effect: > 0, by how much the models rise and fall at least over the neighbourhood, in units of ``fn``.
        attribution: ``(fn, x, reference)`` to attributions ``[n]`` of ``fn``; needed with ``value``.
        value: what both models' attribution of the feature is to be; ``None`` for that of ``fn``.
        target: the output that is meant, where ``fn`` has several.

    Returns:
        An :class:`AdversarialPair` of modules from ``[m, n]`` to ``[m]``.

    Raises:
        TypeError: ``fn`` or ``attribution`` is not callable; ``x`` or ``reference`` is not floating or of another
            dtype.
        ValueError: a shape is wrong, ``feature``, ``delta`` or ``effect`` is out of range, no reference is further
            than ``delta`` from the point, ``value`` comes without ``attribution``, or ``fn`` has several outputs and
            no ``target``.

    Example:
        >>> x, zero = torch.tensor([1.0, 2.0]), torch.zeros(1, 2)
        >>> pair = adversarial_pair(lambda x: x.sum(-1), x, 0, reference=zero, delta=0.1)
        >>> [model(x + torch.tensor([[-0.1, 0], [0.1, 0]])).diff().sign().item() for model in pair]
        [1.0, -1.0]
        >>> [(model(x[None]) - model(zero)).item() for model in pair]  # fn's own
        [3.0, 3.0]

    References:
        Bilodeau, Jaques, Koh, Kim (2024), Impossibility theorems for feature attribution, theorem 3.3 and its proof.
    """
    check_callable("fn", fn)
    if check_floating("x", x).ndim != 1:
        raise ValueError(f"x must be one point [n], got shape {tuple(x.shape)}")
    if check_floating("reference", reference).ndim != 2 or reference.shape[1] != len(x) or not len(reference):
        raise ValueError(f"reference must have shape [b, {len(x)}], b >= 1, got {tuple(reference.shape)}")
    check_same_dtype(x=x, reference=reference)
    j = check_integer("feature", feature, 0, len(x) - 1)
    check_positive("delta", delta)
    check_positive("effect", effect)
    if value is not None:
        if attribution is None:
            raise ValueError("attribution must be given with value, got None")
        check_callable("attribution", attribution)
    with torch.no_grad():
        apart = reference[:, j] - x[j]
        outside = apart.abs() > delta
        if not bool(outside.any()):
            raise ValueError(f"delta must be below the largest distance {apart.abs().max():.4g} of a reference")
        line = x.repeat(_GRID, 1)
        line[:, j] += torch.linspace(-delta, delta, _GRID).to(x)
        steepest = scalar_rows(fn, line, target).diff().abs().max() * (_GRID - 1) / (2 * delta)
        slope = 2 * steepest + effect / (2 * delta)
        excess = x.new_zeros(())
    if value is not None and attribution is not None:
        excess = value - attribution(fn, x, reference)[j].detach()
    end = delta + (apart.abs()[outside].min() - delta) / 2
    models = []
    for sign in (1.0, -1.0):
        rise = sign * slope * delta
        level = -(excess + (sign * slope * apart[~outside]).sum() / len(apart)) * len(apart) / outside.sum()
        heights = torch.stack([level, -rise, rise, level])
        knots = x[j] + torch.stack([-end, torch.full_like(end, -delta), torch.full_like(end, delta), end])
        models.append(_Shifted(fn, j, knots, heights, target))
    return AdversarialPair(*models)


class _Shifted(nn.Module):
    """A model plus a piecewise-linear function of one feature, constant outside of its knots, as a sum of ReLUs."""

    def __init__(
        self, fn: Callable[[Tensor], Tensor], feature: int, knots: Tensor, heights: Tensor, target: int | None
    ) -> None:
        super().__init__()
        self.fn, self.feature, self.target = fn, feature, target
        slopes = nn.functional.pad(heights.diff() / knots.diff(), (1, 1))
        for name, tensor in {"knots": knots, "changes": slopes.diff(), "level": heights[0]}.items():
            self.register_buffer(name, tensor)

    knots: Tensor
    changes: Tensor
    level: Tensor

    def forward(self, x: Tensor) -> Tensor:
        added = self.level + torch.relu(x[:, self.feature, None] - self.knots) @ self.changes
        return scalar_rows(self.fn, x, self.target) + added


class OperatingCurve(NamedTuple):
    """Every threshold of a score as a test.

    Attributes:
        thresholds: ``[m]`` descending, the first ``inf``: positive where the score is at least the threshold.
        sensitivity: ``[m]`` share of the true cases that are called positive.
        specificity: ``[m]`` share of the others that are not.
        area: under sensitivity against 1 - specificity: the probability that a true case scores higher than another,
            ties counted half.
    """

    thresholds: Float[Tensor, "m"]
    sensitivity: Float[Tensor, "m"]
    specificity: Float[Tensor, "m"]
    area: float


def hypothesis_test_curve(scores: Float[Tensor, "n"], truth: Shaped[Tensor, "n"]) -> OperatingCurve:
    """Return sensitivity and specificity of the tests "score >= threshold", and the area under their curve.

    A test that knows nothing has sensitivity + specificity = 1 at every threshold and area 1/2. Equal scores are one
    threshold: they cannot be told apart.

    Args:
        scores: ``[n]`` finite.
        truth: ``[n]`` boolean, both kinds present.

    Returns:
        A :class:`OperatingCurve`.

    Raises:
        TypeError: ``scores`` is not floating, or ``truth`` is not boolean.
        ValueError: shapes differ, scores are not finite, or a kind is missing.

    Example:
        >>> curve = hypothesis_test_curve(torch.tensor([0.9, 0.6, 0.6, 0.1]), torch.tensor([True, True, False, False]))
        >>> curve.sensitivity.tolist(), curve.specificity.tolist(), curve.area
        ([0.0, 0.5, 1.0, 1.0], [1.0, 1.0, 0.5, 0.0], 0.875)
    """
    if check_floating("scores", scores).ndim != 1:
        raise ValueError(f"scores must have shape [n], got {tuple(scores.shape)}")
    if truth.dtype != torch.bool:
        raise TypeError(f"truth must be boolean, got {truth.dtype}")
    if truth.shape != scores.shape:
        raise ValueError(f"truth must have the shape {tuple(scores.shape)} of scores, got {tuple(truth.shape)}")
    check_finite("scores", scores)
    if not bool(truth.any()) or bool(truth.all()):
        raise ValueError(f"truth must have cases of both kinds, got {int(truth.sum())} of {len(truth)} true")
    levels, place = scores.detach().unique(return_inverse=True)
    true, false = (torch.bincount(place[kind], minlength=len(levels)).flip(0).double() for kind in (truth, ~truth))
    sensitivity, fall_out = (nn.functional.pad(c.cumsum(0) / c.sum(), (1, 0)) for c in (true, false))
    area = float(torch.trapezoid(sensitivity, fall_out))
    thresholds = nn.functional.pad(levels.flip(0), (1, 0), value=torch.inf)
    return OperatingCurve(thresholds, sensitivity.to(scores.dtype), (1 - fall_out).to(scores.dtype), area)
