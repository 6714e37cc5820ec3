r"""Is a predicted law right as often as it says? Measures of that, as metrics and as terms of a loss.

The probability integral transform (PIT) of what came, :math:`Z = F(Y \mid X)`, is uniform where the law is right. All
functions here take PITs.
"""

from __future__ import annotations

from typing import Any

import torch

from pullback import discrete
from pullback.core.checks import (
    check_broadcast,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_scalar,
)
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.uncertainty.levels import check_increasing_levels

__all__ = ["calibration_error", "pce_sort_loss", "quantile_calibration_error", "spacing_entropy"]


def calibration_error(
    pit: Float[Tensor, "*batch n"],
    *,
    levels: int | Float[Tensor, "k"] = 100,
    p: float = 1.0,
    smooth: Scalar | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Return the probabilistic calibration error: how far shares below a level are from the level.

    .. math:: \frac{1}{M} \sum_{j = 1}^M \Big| \tau_j - \frac{1}{n} \sum_i H(\tau_j - Z_i) \Big|^p, \qquad
              H(t) = 1[t \ge 0] \text{ or } \sigma(s t)

    Args:
        pit: ``[*batch, n]`` probability integral transforms in [0, 1].
        levels: ``M`` for the levels ``j / (M + 1)``, or ``[k]`` levels increasing within (0, 1).
        p: power >= 1; 1 is a mean distance in probability.
        smooth: ``s`` > 0 of the sigmoid, for a gradient (PCE-KDE). ``None`` counts: no gradient.

    Returns:
        ``[*batch]`` in [0, 1]. ``n`` PITs of a perfect law have a mean of about ``0.31 / sqrt(n)`` for ``p = 1``.

    Raises:
        TypeError: ``pit`` is no floating tensor, ``levels`` neither an integer nor a floating tensor.
        ValueError: a PIT is outside [0, 1], there are none, levels do not increase within (0, 1), ``p`` or ``smooth``
            is out of range.

    Example:
        >>> calibration_error(torch.tensor([0.1, 0.2, 0.3, 0.4]), levels=3)
        tensor(0.3333)

    References:
        Kuleshov, Fenner, Ermon (2018), Accurate uncertainties for deep learning using calibrated regression, equation
        9; Dheur, Ben Taieb (2023), A large-scale study of probabilistic calibration in neural network regression,
        equations 4 and 9.
    """
    check_pit("pit", pit)
    _check_power(p)
    tau = _levels(levels, pit)
    if smooth is None:
        ordered = pit.detach().sort(-1).values
        wanted = tau.expand(*pit.shape[:-1], len(tau)).contiguous()
        share = torch.searchsorted(ordered.contiguous(), wanted, right=True).to(pit.dtype) / pit.shape[-1]
    else:
        check_scalar("smooth", smooth)
        share = torch.sigmoid(smooth * (tau[:, None] - pit[..., None, :])).mean(-1)
    return _power((tau - share).abs(), p).mean(-1)


def quantile_calibration_error(
    quantiles: Float[Tensor, "*#batch n k"],
    y: Float[Tensor, "*#batch n"],
    levels: Float[Tensor, "k"],
    *,
    p: float = 1.0,
    smooth: Scalar | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Return the probabilistic calibration error of predicted quantiles.

    .. math:: \frac{1}{k} \sum_j \Big| \tau_j - \frac{1}{n} \sum_i H\big(q_{\tau_j}(x_i) - y_i\big) \Big|^p

    Args:
        quantiles: ``[*batch, n, k]`` predicted.
        y: ``[*batch, n]`` what came.
        levels: ``[k]`` increasing within (0, 1).
        p: power >= 1.
        smooth: ``s`` > 0 of the sigmoid :math:`H(t) = \sigma(s t)`, in one over the unit of ``y``. ``None`` counts: no
            gradient.

    Returns:
        ``[*batch]`` in [0, 1].

    Raises:
        TypeError: no floating tensors, or of different dtypes.
        ValueError: shapes do not fit, levels do not increase within (0, 1), ``p`` or ``smooth`` is out of range.

    Example:
        >>> quantiles, y = torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([0.5, 2.0])
        >>> quantile_calibration_error(quantiles, y, torch.tensor([0.2, 0.7]))
        tensor(0.2000)

    References:
        Dheur, Ben Taieb (2023), A large-scale study of probabilistic calibration in neural network regression,
        section 4.
    """
    tau = check_increasing_levels("levels", levels)
    check_same_dtype(quantiles=check_floating("quantiles", quantiles), y=check_floating("y", y))
    _check_power(p)
    if not y.ndim or not y.shape[-1] or not len(tau) or tuple(quantiles.shape[-2:]) != (y.shape[-1], len(tau)):
        shape = f"(..., {y.shape[-1] if y.ndim else 'n'}, {len(tau)})"
        raise ValueError(f"quantiles must have shape {shape} of at least one row, got {tuple(quantiles.shape)}")
    check_broadcast(quantiles=tuple(quantiles.shape[:-2]), y=tuple(y.shape[:-1]))
    above = quantiles - y[..., None]
    if smooth is None:
        share = (above.detach() >= 0).to(y.dtype).mean(-2)
    else:
        check_scalar("smooth", smooth)
        share = torch.sigmoid(smooth * above).mean(-2)
    return _power((tau.to(share) - share).abs(), p).mean(-1)


def pce_sort_loss(
    pit: Float[Tensor, "*batch n"], *, p: float = 1.0, temperature: Scalar = 0.0
) -> Float[Tensor, "*batch"]:
    r"""Return how far sorted PITs are from even spacing.

    .. math:: \frac{1}{n} \sum_i \Big| Z_{(i)} - \frac{i}{n + 1} \Big|^p

    For ``p = 1`` that is the 1-Wasserstein distance from a uniform law, up to ``1 / n``.

    Args:
        pit: ``[*batch, n]`` in [0, 1].
        p: power >= 1.
        temperature: >= 0 of :func:`pullback.discrete.sort`; 0 sorts, with a gradient to each PIT in its place.

    Returns:
        ``[*batch]`` in [0, 1].

    Raises:
        TypeError: ``pit`` is no floating tensor.
        ValueError: a PIT is outside [0, 1], there are none, ``p`` or ``temperature`` is out of range.

    Example:
        >>> pce_sort_loss(torch.tensor([0.75, 0.25, 0.9]))
        tensor(0.1333)

    References:
        Dheur, Ben Taieb (2023), A large-scale study of probabilistic calibration in neural network regression,
        equation 10.
    """
    check_pit("pit", pit)
    _check_power(p)
    n = pit.shape[-1]
    hard = check_scalar("temperature", temperature, zero=True) == 0
    ordered = pit.sort(-1).values if hard else discrete.sort(pit, temperature=temperature).values
    even = torch.arange(1, n + 1, dtype=pit.dtype, device=pit.device) / (n + 1)
    return _power((ordered - even).abs(), p).mean(-1)


def spacing_entropy(pit: Float[Tensor, "*batch n"], *, m: int, floor: float = 1e-5) -> Float[Tensor, "*batch"]:
    r"""Return an estimate of the differential entropy of PITs: 0 at most, for a uniform law, up to its error.

    .. math:: \frac{1}{n - m} \sum_{i = 1}^{n - m} \log\Big(\frac{n + 1}{m} \big(Z_{(i + m)} - Z_{(i)} + \epsilon
              \big)\Big)

    Added to a loss with a minus it spreads PITs (quantile regularisation). It sees their order only: it passes a
    gradient to the two ends of each spacing.

    Args:
        pit: ``[*batch, n]`` in [0, 1].
        m: of the spacing, in ``1..n - 1``; about the square root of ``n``. More is smoother and more biased.
        floor: epsilon > 0, for PITs that are equal.

    Returns:
        ``[*batch]`` in nats.

    Raises:
        TypeError: ``pit`` is no floating tensor, ``m`` is no integer.
        ValueError: a PIT is outside [0, 1], ``m`` or ``floor`` is out of range.

    Example:
        >>> even = torch.arange(1.0, 100.0) / 100
        >>> float(spacing_entropy(even, m=10)) < 1e-3, float(spacing_entropy(even / 2, m=10))  # log 2 less
        (True, -0.692...)

    References:
        Vasicek (1976), A test for normality based on sample entropy; Utpala, Rai (2020), Quantile regularization:
        towards implicit calibration of regression models.
    """
    check_pit("pit", pit)
    n = pit.shape[-1]
    check_integer("m", m, 1, n - 1)
    check_positive("floor", floor)
    ordered = pit.sort(-1).values
    return torch.log((ordered[..., m:] - ordered[..., :-m] + floor) * ((n + 1) / m)).mean(-1)


def check_pit(name: str, pit: Any) -> Tensor:
    """Return PITs ``[..., n]``, at least one, all in [0, 1]; else raise."""
    check_floating(name, pit)
    if not pit.ndim or not pit.shape[-1]:
        raise ValueError(f"{name} must have a last dimension of at least one PIT, got shape {tuple(pit.shape)}")
    if can_look(pit) and not bool(((pit >= 0) & (pit <= 1)).all()):
        low, high = pit.detach().aminmax()
        raise ValueError(f"{name} must be in [0, 1] everywhere, got {float(low)} to {float(high)}")
    return pit


def _levels(levels: Any, pit: Tensor) -> Tensor:
    if isinstance(levels, Tensor):
        if not len(check_increasing_levels("levels", levels)):
            raise ValueError("levels must have at least one level, got none")
        return levels.detach().to(pit)
    check_integer("levels", levels, 1)
    return torch.arange(1, levels + 1, dtype=pit.dtype, device=pit.device) / (levels + 1)


def _check_power(p: Any) -> None:
    check_positive("p", p)
    if p < 1:
        raise ValueError(f"p must be >= 1, got {p}")


def _power(distance: Tensor, p: float) -> Tensor:
    return distance if p == 1 else distance**p
