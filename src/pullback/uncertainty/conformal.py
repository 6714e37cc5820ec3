r"""Conformal prediction: sets that cover with a probability that holds for every law and every model.

Of ``n + 1`` exchangeable scores the last is among the ``k`` smallest with probability ``>= k / (n + 1)``. With ``k =
ceil((n + 1) level)`` the ``k``-th smallest of the ``n`` that are known bounds the one to come at that level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from pullback.core.checks import (
    check_broadcast,
    check_callable,
    check_choice,
    check_floating,
    check_positive,
    check_same_dtype,
)
from pullback.core.shapes import Float, Int, Tensor
from pullback.core.transforms import can_look
from pullback.uncertainty.levels import as_given, check_increasing_levels, check_known, check_level, from_array

__all__ = [
    "ConformalPredictor",
    "ConformalQuantiles",
    "Interval",
    "conformal_quantile",
    "conformalize_quantiles",
    "split_conformal",
]


def conformal_quantile(
    scores: Float[Tensor, "*#batch n"],
    level: float | Float[Tensor, "*#batch"],
    *,
    weights: Float[Tensor, "*#batch n"] | None = None,
    test_weight: float | Float[Tensor, "*#batch"] = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""Return the bound that the next score meets with probability at least ``level``.

    .. math:: \hat q = s_{(k)},\ k = \lceil (n + 1)\, \text{level} \rceil, \qquad \hat q = \infty \text{ where } k > n

    and with weights, the ratios of the laws of test and calibration at each ``x`` up to a factor,

    .. math:: \hat q = \inf \Big\{ s : \sum_{i : s_i \le s} w_i \ge \text{level} \Big(\sum_i w_i + w_{n+1}\Big) \Big\}

    For exchangeable scores without ties the coverage is exactly ``k / (n + 1)``, and given the calibration scores it
    is a draw of Beta(k, n + 1 - k).

    Args:
        scores: ``[*batch, n]`` of calibration data, the larger the worse; infinities are allowed, NaN is not.
        level: probability of coverage (one minus the rate of errors) in (0, 1); a number or ``[*batch]``.
        weights: ``[*batch, n]`` of the calibration data, >= 0; equal by default.
        test_weight: >= 0, of the point to come; a number or ``[*batch]``. Many points have one bound each:
            ``scores[None], weights[None]`` with ``test_weight`` of shape ``[m]``.

    Returns:
        ``[*batch]`` one of the scores, or infinity where there are too few for the level, which is below
        ``level / (1 - level)`` of them. The gradient is that of the score; there is none for weights and levels.

    Raises:
        TypeError: no floating tensors, or of different dtypes.
        ValueError: a NaN, no dimension of scores, a level outside (0, 1), negative or no weights.

    Example:
        >>> conformal_quantile(torch.tensor([3.0, 1.0, 2.0, 5.0]), 0.8)
        tensor(5.)
        >>> conformal_quantile(torch.tensor([3.0, 1.0, 2.0, 5.0]), torch.tensor([0.6, 0.9]))
        tensor([3., inf])
        >>> conformal_quantile(torch.tensor([3.0, 1.0, 2.0]), 0.5, weights=torch.tensor([1.0, 8.0, 1.0]))
        tensor(1.)

    References:
        Vovk, Gammerman, Shafer (2005), Algorithmic learning in a random world; Tibshirani, Foygel Barber, Candes,
        Ramdas (2019), Conformal prediction under covariate shift, equation 7.
    """
    check_known("scores", check_floating("scores", scores))
    if not scores.ndim:
        raise ValueError("scores must have a last dimension of scores, got a tensor without dimensions")
    check_level("level", level)
    _check_weights(scores, weights, test_weight)
    n = scores.shape[-1]
    if weights is None and not isinstance(level, Tensor) and not isinstance(test_weight, Tensor) and test_weight == 1:
        place = _ceil((n + 1) * level)
        if place > n:
            return scores.new_full(scores.shape[:-1], math.inf)
        return torch.kthvalue(scores, place, dim=-1).values
    wanted = torch.as_tensor(level, dtype=None if isinstance(level, Tensor) else torch.float64, device=scores.device)
    slack = 4 * torch.finfo(wanted.dtype).eps
    other = torch.as_tensor(test_weight, device=scores.device).detach().double()
    if weights is None:
        weights = torch.ones_like(scores)
    batch = check_broadcast(
        scores=scores.shape[:-1], weights=weights.shape[:-1], level=wanted.shape, test_weight=other.shape
    )
    ordered, order = scores.broadcast_to(torch.broadcast_shapes(scores.shape, weights.shape)).sort(-1)
    below = weights.detach().double().expand(order.shape).gather(-1, order).cumsum(-1)
    # Sums that meet the level exactly are not missed by rounding.
    needed = wanted.detach().double() * (below[..., -1:].sum(-1) + other) * (1 - slack)
    index = (below < needed[..., None]).sum(-1, keepdim=True)
    ordered = torch.cat([ordered, ordered.new_full((*ordered.shape[:-1], 1), math.inf)], -1)
    return ordered.expand(*batch, n + 1).gather(-1, index.expand(*batch, 1)).squeeze(-1)


class ConformalQuantiles(NamedTuple):
    """Quantiles after calibration.

    Attributes:
        quantiles: ``[*batch, m, k]`` not decreasing in the level.
        shift: ``[*batch, k]`` what was added to each level; infinite where calibration data was too scarce.
        crossings: ``[*batch]`` how many neighbours among the ``m`` times ``k - 1`` had to be sorted.
    """

    quantiles: Float[Tensor, "*batch m k"]
    shift: Float[Tensor, "*batch k"]
    crossings: Int[Tensor, "*batch"]


def conformalize_quantiles(
    quantiles: Float[Tensor, "*#batch n k"],
    y: Float[Tensor, "*#batch n"],
    new: Float[Tensor, "*#batch m k"],
    levels: Float[Tensor, "k"],
    *,
    method: str = "interval",
) -> ConformalQuantiles:
    r"""Return predicted quantiles, shifted by what calibration data misses.

    ``"interval"`` (CQR) widens each pair of outer quantiles by the same amount on both sides: with scores
    :math:`E_i = \max(q_{lo}(x_i) - y_i,\ y_i - q_{hi}(x_i))` their :func:`conformal_quantile` at ``hi - lo``, so that
    the interval covers with that probability. ``"level"`` adds to every quantile the conformal quantile of
    :math:`y_i - q_\tau(x_i)` at its level: :math:`P(Y \le q_\tau(X)) \ge \tau`, and at most :math:`1 / (n + 1)` more.

    Args:
        quantiles: ``[*batch, n, k]`` predicted for the calibration data, which the model was not trained on.
        y: ``[*batch, n]`` what came.
        new: ``[*batch, m, k]`` predictions to calibrate.
        levels: ``[k]`` of the quantiles, increasing within (0, 1). For ``"interval"`` they are taken in pairs from
            outside; a middle one is not shifted.
        method: ``"interval"`` or ``"level"``.

    Returns:
        Quantiles, sorted, the shifts and how many neighbours crossed.

    Raises:
        TypeError: no floating tensors, or of different dtypes.
        ValueError: shapes do not fit, levels do not increase within (0, 1), a NaN, ``method`` is unknown.

    Example:
        >>> known, y = torch.zeros(4, 2), torch.tensor([-1.0, 2.0, 0.5, -3.0])
        >>> result = conformalize_quantiles(known, y, torch.tensor([[-1.0, 1.0]]), torch.tensor([0.1, 0.7]))
        >>> result.quantiles, result.shift
        (tensor([[-3.,  3.]]), tensor([-2.,  2.]))

    References:
        Romano, Patterson, Candes (2019), Conformalized quantile regression, algorithm 1; Dheur, Ben Taieb (2023),
        A large-scale study of probabilistic calibration in neural network regression, section 4.
    """
    check_choice("method", method, ("interval", "level"))
    levels = check_increasing_levels("levels", levels)
    tensors = {"quantiles": quantiles, "y": y, "new": new}
    for name, value in tensors.items():
        check_known(name, check_floating(name, value))
    check_same_dtype(**tensors)
    k = len(levels)
    if not k or quantiles.ndim < 2 or tuple(quantiles.shape[-2:]) != (*y.shape[-1:], k):
        raise ValueError(f"quantiles must have shape [..., n, {k}], y [..., n]; got {_came(quantiles)} and {_came(y)}")
    if new.ndim < 2 or new.shape[-1] != k:
        raise ValueError(f"new must have shape [..., m, {k}], got {_came(new)}")
    batch = check_broadcast(quantiles=quantiles.shape[:-2], y=y.shape[:-1], new=new.shape[:-2])
    if method == "level":
        shift = conformal_quantile((y[..., None] - quantiles).transpose(-1, -2), levels.detach())
    else:
        low, high = quantiles[..., : k // 2], quantiles.flip(-1)[..., : k // 2]
        misses = torch.maximum(low - y[..., None], y[..., None] - high).transpose(-1, -2)
        wider = conformal_quantile(misses, (levels.flip(-1) - levels).detach()[: k // 2])
        middle = torch.zeros_like(wider[..., :1]) if k > 1 else quantiles.new_zeros(*misses.shape[:-2], 1)
        shift = torch.cat([-wider, middle[..., : k % 2], wider.flip(-1)], -1)
    shift = shift.expand(*batch, k)
    moved = new + shift[..., None, :]
    crossings = (moved[..., 1:] < moved[..., :-1]).sum((-1, -2))
    return ConformalQuantiles(moved.sort(-1).values, shift, crossings)


class Interval(NamedTuple):
    """Bounds of what comes.

    Attributes:
        lower: ``[*batch]`` in the unit of ``y``.
        upper: ``[*batch]``.
    """

    lower: Any
    upper: Any

    def contains(self, y: Any) -> Any:
        """Return which of ``y`` are within the bounds."""
        return (self.lower <= y) & (y <= self.upper)


@dataclass(frozen=True)
class ConformalPredictor:
    """A model with intervals around its predictions, by :func:`split_conformal`.

    Attributes:
        predict: from inputs to predictions.
        radius: half a width, in units of ``scale``; infinite where calibration data was too scarce.
        level: of coverage.
        scale: from inputs to the size of errors expected there, or ``None``.
    """

    predict: Callable[[Any], Any]
    radius: float
    level: float
    scale: Callable[[Any], Any] | None = None

    @property
    def bounded(self) -> bool:
        """Whether there was data enough for the level."""
        return math.isfinite(self.radius)

    def interval(self, x: Any) -> Interval:
        """Return the interval of each row of ``x``.

        Args:
            x: inputs as the model takes them.

        Returns:
            Bounds of the kind that the model predicts: arrays or tensors.
        """
        centre = from_array("the predictions", predictions := self.predict(x))
        reach = self.radius * torch.ones_like(centre) if self.scale is None else self.radius * _scales(self.scale(x))
        reach = reach.to(centre)
        return Interval(as_given(centre - reach, predictions), as_given(centre + reach, predictions))


def split_conformal(
    model: Any,
    x: Any,
    y: Any,
    *,
    level: float = 0.9,
    scale: Any = None,
) -> ConformalPredictor:
    r"""Return a trained model with intervals that cover at least a share ``level`` of what comes, for every law.

    .. math:: C(x) = f(x) \pm \hat q\, s(x), \qquad
              \hat q = \text{conformal\_quantile}\big(|y_i - f(x_i)| / s(x_i)\big)

    Args:
        model: a function of inputs, or an object with ``predict`` such as one of scikit-learn's.
        x: inputs of the calibration data, on which the model was not trained; as the model takes them.
        y: ``[n]`` what came: a tensor, an array or a column.
        level: probability of coverage in (0, 1).
        scale: the same for the size > 0 of errors that is expected at each input; 1 by default.

    Returns:
        The predictor; ``.interval(x)``. Arrays where the model gives arrays.

    Raises:
        TypeError: the model is neither a function nor has ``predict``; ``y`` is not made of numbers.
        ValueError: predictions have another shape than ``y``, there is a NaN, a scale is not > 0, the level is out of
            range.

    Example:
        >>> import numpy as np
        >>> x = np.arange(9.0)
        >>> predictor = split_conformal(lambda x: 2 * x, x, 2 * x + [1, -1, 2, -2, 3, -3, 4, -4, 5], level=0.8)
        >>> predictor.radius, predictor.interval(np.array([10.0]))
        (4.0, Interval(lower=array([16.]), upper=array([24.])))

    References:
        Papadopoulos, Proedrou, Vovk, Gammerman (2002), Inductive confidence machines for regression; Lei, G'Sell,
        Rinaldo, Tibshirani, Wasserman (2018), Distribution-free predictive inference for regression, section 2.2.
    """
    check_level("level", level, ndim=0)
    predict = _predictor("model", model)
    spread = None if scale is None else _predictor("scale", scale)
    target = from_array("y", y)
    with torch.no_grad():
        prediction = from_array("the predictions", predict(x)).to(target)
        if prediction.shape != target.shape or target.ndim != 1:
            raise ValueError(
                f"y must have shape [n] and the predictions the same, got {_came(target)}, {_came(prediction)}"
            )
        scores = (target - prediction).abs()
        if spread is not None:
            scales = _scales(spread(x)).to(target)
            if scales.shape != scores.shape:
                raise ValueError(f"scale must give shape {_came(scores)}, got {_came(scales)}")
            scores = scores / scales
        radius = float(conformal_quantile(scores, float(level)))
    return ConformalPredictor(predict, radius, float(level), spread)


def _predictor(name: str, model: Any) -> Callable[[Any], Any]:
    predict = getattr(model, "predict", model)
    check_callable(name, predict)
    return predict


def _scales(value: Any) -> Tensor:
    scales = from_array("scale", value)
    check_positive("scale", scales.detach())
    return scales


def _ceil(value: float) -> int:
    """Round up, but not from what only rounding put above a whole number."""
    return math.ceil(value * (1 - 1e-14))


def _check_weights(scores: Tensor, weights: Any, test_weight: Any) -> None:
    if weights is not None:
        check_same_dtype(scores=scores, weights=check_floating("weights", weights))
        if not weights.ndim or weights.shape[-1] != scores.shape[-1]:
            raise ValueError(f"weights must have shape [..., {scores.shape[-1]}], got {_came(weights)}")
        if can_look(weights):
            check_positive("weights", weights.detach(), zero=True)
    if not isinstance(test_weight, Tensor):
        check_positive("test_weight", test_weight, zero=True)
    elif can_look(check_floating("test_weight", test_weight)):
        check_positive("test_weight", test_weight.detach(), zero=True)


def _came(value: Tensor) -> tuple[int, ...]:
    return tuple(value.shape)
