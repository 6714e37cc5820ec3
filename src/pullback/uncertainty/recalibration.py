r"""Recalibration: a map of [0, 1] to itself that makes the PITs of held-out data uniform, put after a predicted law.

The recalibrated law has the cdf :math:`R(F(y))`; with the empirical map its quantiles are those of conformal
prediction with the score :math:`F(y \mid x)`.
"""

from __future__ import annotations

from typing import Any

import torch

from pullback.core.checks import check_choice, check_positive
from pullback.core.random import drawing_device
from pullback.core.shapes import Tensor
from pullback.core.transforms import can_look
from pullback.uncertainty.calibration import check_pit
from pullback.uncertainty.conformal import conformal_quantile
from pullback.uncertainty.inverse import search_level, with_derivatives
from pullback.uncertainty.levels import as_given, from_array

__all__ = ["RecalibratedDistribution", "Recalibrator"]

_METHODS = ("empirical", "linear", "kde")


class Recalibrator:
    r"""The map :math:`R: [0, 1] \to [0, 1]` that PITs of calibration data tell.

    ``"empirical"``: :math:`\#\{Z_i \le u\} / (n + 1)`, a step function. A bound at :math:`R^{-1}(\tau)` covers with
    probability :math:`\lceil (n + 1) \tau \rceil / (n + 1)` for every law (conformal prediction).
    ``"linear"``: the line through the points :math:`(Z_{(k)}, k / (n + 1))` and the corners. Isotonic regression of the
    empirical levels gives the same, for they increase already.
    ``"kde"``: smooth, with a density: a mixture of logistic laws at the PITs, of scale ``1 / smooth``, reflected at 0
    and 1 and cut off there.

    The PITs may carry a gradient: within a training step it passes through the map (quantile recalibration training).

    Args:
        method: ``"empirical"``, ``"linear"`` or ``"kde"``.
        smooth: one over the scale of the logistic laws, > 0.

    Attributes:
        pit: ``[*batch, n]`` sorted, after :meth:`fit`.

    Raises:
        ValueError: ``method`` is unknown, ``smooth`` is not > 0.

    Example:
        >>> import numpy as np
        >>> recalibrator = Recalibrator("linear").fit(np.array([0.1, 0.2, 0.6]))
        >>> recalibrator.transform(np.array([0.1, 0.4, 1.0])), recalibrator.inverse_transform(np.array([0.625]))
        (array([0.25 , 0.625, 1.   ]), array([0.4]))

    References:
        Kuleshov, Fenner, Ermon (2018), Accurate uncertainties for deep learning using calibrated regression; Dheur, Ben
        Taieb (2023), A large-scale study of probabilistic calibration in neural network regression, section 3.2.
    """

    pit: Tensor

    def __init__(self, method: str = "linear", *, smooth: float = 100.0) -> None:
        check_choice("method", method, _METHODS)
        check_positive("smooth", smooth)
        self.method, self.smooth = method, smooth

    def fit(self, pit: Any, y: None = None) -> Recalibrator:
        """Take the PITs of calibration data, which the model was not trained on.

        Args:
            pit: ``[*batch, n]`` in [0, 1], a tensor or an array.
            y: ignored; scikit-learn's pipelines pass one.

        Returns:
            Itself.

        Raises:
            TypeError: ``pit`` is not made of floating numbers.
            ValueError: a PIT is outside [0, 1], or there are none.
        """
        self.pit = check_pit("pit", from_array("pit", pit)).sort(-1).values
        return self

    def transform(self, u: Any) -> Any:
        """Return ``R(u)``: recalibrated levels.

        Args:
            u: ``[*batch, m]`` in [0, 1], a tensor or an array.

        Returns:
            Of the same kind and shape. ``"empirical"`` passes no gradient.
        """
        level = self._input("u", u)
        if self.method == "kde":
            found = self._smooth_cdf(level)
        elif self.method == "linear":
            left, below, slope = self._segment(level, self._knots(), self._levels())
            found = torch.where(level < 1, below + slope * (level - left), 1.0)
        else:
            count = torch.searchsorted(self._rows(self.pit.detach(), level), level.detach().contiguous(), right=True)
            found = torch.where(level >= 1, 1.0, count.to(level.dtype) / (self.pit.shape[-1] + 1))
        return as_given(found, u)

    def inverse_transform(self, level: Any) -> Any:
        """Return the level that the model must be asked for, so that this one comes out.

        Args:
            level: ``[*batch, m]`` in [0, 1], a tensor or an array.

        Returns:
            Of the same kind and shape; for ``"empirical"`` 1 where calibration data is too scarce for the level.
        """
        wanted = self._input("level", level)
        if self.method == "kde":
            found = self._smooth_inverse(wanted)
        elif self.method == "linear":
            left, below, slope = self._segment(wanted, self._levels().expand_as(self._knots()), self._knots())
            found = below + slope * (wanted - left)
        else:
            inner = wanted.detach().clamp(torch.finfo(wanted.dtype).tiny, 1 - torch.finfo(wanted.dtype).eps)
            found = conformal_quantile(self.pit.to(wanted.dtype)[..., None, :], inner).clamp(max=1.0)
            found = torch.where(wanted <= 0, 0.0, torch.where(wanted >= 1, 1.0, found))
        return as_given(found, level)

    def log_derivative(self, u: Any) -> Any:
        """Return ``log R'(u)``, what is added to the log density of the law.

        Args:
            u: ``[*batch, m]`` in [0, 1], a tensor or an array.

        Raises:
            ValueError: the map is ``"empirical"``, which has no derivative.
        """
        level = self._input("u", u)
        if self.method == "kde":
            found = self._smooth_log_density(level)
        elif self.method == "linear":
            slope = self._segment(level, self._knots(), self._levels())[2]
            found = slope.clamp(min=torch.finfo(slope.dtype).tiny).log()
        else:
            raise ValueError(
                "the empirical map is a step function and has no derivative: take method='linear' or 'kde'"
            )
        return as_given(found, u)

    def _input(self, name: str, value: Any) -> Tensor:
        if not hasattr(self, "pit"):
            raise ValueError("the recalibrator must be fitted before it is used: call fit(pit)")
        level = from_array(name, value)
        if not level.ndim or not _fits(self.pit.shape[:-1], level.shape[:-1]):
            raise ValueError(f"{name} must have shape {(*self.pit.shape[:-1], 'm')}, got {tuple(level.shape)}")
        if can_look(level) and not bool(((level >= 0) & (level <= 1)).all()):
            low, high = level.detach().aminmax()
            raise ValueError(f"{name} must be in [0, 1] everywhere, got {float(low)} to {float(high)}")
        return level if isinstance(value, Tensor) else level.to(self.pit.dtype)

    def _rows(self, knots: Tensor, level: Tensor) -> Tensor:
        return knots.to(level.dtype).expand(*level.shape[:-1], knots.shape[-1]).contiguous()

    def _knots(self) -> Tensor:
        edge = torch.zeros_like(self.pit[..., :1])
        return torch.cat([edge, self.pit, edge + 1], -1)

    def _levels(self) -> Tensor:
        n = self.pit.shape[-1]
        return torch.arange(n + 2, dtype=self.pit.dtype, device=self.pit.device) / (n + 1)

    def _segment(self, at: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return left end, value there and slope of the segment of the line through ``(x, y)`` in which ``at`` is."""
        x, y = (v.expand(*at.shape[:-1], v.shape[-1]).to(at.dtype) for v in (x, y))
        right = torch.searchsorted(x.detach().contiguous(), at.detach().contiguous(), right=True)
        right = right.clamp(1, x.shape[-1] - 1)
        left, below = x.gather(-1, right - 1), y.gather(-1, right - 1)
        run, rise = x.gather(-1, right) - left, y.gather(-1, right) - below
        tiny = torch.finfo(at.dtype).tiny
        # PITs that are equal make a step: whoever is at its end is above it.
        return left, below, rise / torch.where(run > tiny, run, torch.ones_like(run))

    def _kernel(self, u: Tensor) -> Tensor:
        """Return the share of logistic laws below ``u``."""
        return torch.sigmoid(self.smooth * (u[..., None] - self.pit.to(u.dtype)[..., None, :])).mean(-1)

    def _mass(self, dtype: torch.dtype) -> Tensor:
        ends = torch.tensor([-1.0, 2.0], dtype=dtype, device=self.pit.device).expand(*self.pit.shape[:-1], 2)
        return self._kernel(ends).diff(dim=-1)

    def _smooth_cdf(self, u: Tensor) -> Tensor:
        two = torch.full_like(u, 2.0)
        folded = self._kernel(u) - self._kernel(-u) + self._kernel(two) - self._kernel(2 - u)
        return (folded / self._mass(u.dtype)).clamp(0, 1)

    def _smooth_log_density(self, u: Tensor) -> Tensor:
        gap = self.smooth * (torch.stack([u, -u, 2 - u], -1)[..., None] - self.pit.to(u.dtype)[..., None, None, :])
        kernels = torch.nn.functional.logsigmoid(gap) + torch.nn.functional.logsigmoid(-gap)
        total = torch.logsumexp(kernels.flatten(-2), -1)
        scale = torch.log(self.smooth / (self.pit.shape[-1] * self._mass(u.dtype)))
        return total + scale

    def _smooth_inverse(self, level: Tensor) -> Tensor:
        def density(u: Tensor) -> Tensor:
            return self._smooth_log_density(u).exp()

        ends = torch.zeros_like(level), torch.ones_like(level)
        found = search_level(self._smooth_cdf, density, level.detach(), *ends)
        return with_derivatives(found, lambda u: self._smooth_cdf(u) - level, density)


class RecalibratedDistribution:
    r"""A predicted law after a map of its levels: :math:`R \circ F`.

    Args:
        base: a law with ``cdf``, ``icdf`` and ``log_prob``, as those of ``torch.distributions``; of a batch ``[m]``.
        recalibrator: fitted.

    Raises:
        TypeError: the law has none of these methods, ``recalibrator`` is no :class:`Recalibrator`.

    Example:
        >>> base = torch.distributions.Normal(torch.zeros(2), torch.ones(2))
        >>> law = RecalibratedDistribution(base, Recalibrator("linear").fit(torch.tensor([0.4, 0.5, 0.6])))
        >>> law.cdf(torch.tensor([0.0, 3.0])), law.icdf(torch.tensor([0.25, 0.75]))
        (tensor([0.5000, 0.9992]), tensor([-0.2533,  0.2533]))

    References:
        Kuleshov, Fenner, Ermon (2018), Accurate uncertainties for deep learning using calibrated regression,
        algorithm 1.
    """

    def __init__(self, base: Any, recalibrator: Recalibrator) -> None:
        lacking = [name for name in ("cdf", "icdf", "log_prob") if not callable(getattr(base, name, None))]
        if lacking:
            raise TypeError(f"base must be a law with cdf, icdf and log_prob, {type(base).__name__} lacks {lacking}")
        if not isinstance(recalibrator, Recalibrator):
            raise TypeError(f"recalibrator must be a Recalibrator, got {type(recalibrator).__name__}")
        self.base, self.recalibrator = base, recalibrator

    def cdf(self, y: Tensor) -> Tensor:
        """Return the probability of what is at most ``y``."""
        return self.recalibrator.transform(self.base.cdf(y).clamp(0, 1))

    def icdf(self, level: Tensor) -> Tensor:
        """Return the quantile of a level; infinite where calibration data is too scarce for it."""
        return self.base.icdf(self.recalibrator.inverse_transform(level))

    def log_prob(self, y: Tensor) -> Tensor:
        """Return the log density.

        Raises:
            ValueError: the map is ``"empirical"``, which has no density.
        """
        return self.base.log_prob(y) + self.recalibrator.log_derivative(self.base.cdf(y).clamp(0, 1))

    def rsample(self, shape: torch.Size | tuple[int, ...] = (), *, generator: torch.Generator | None = None) -> Tensor:
        """Return draws ``[*shape, *batch]``: quantiles at uniform levels, with the gradient of these."""
        pit = self.recalibrator.pit
        count = (*shape, *self.base.batch_shape)
        uniform = torch.rand(count, generator=generator, device=drawing_device(generator, pit), dtype=pit.dtype)
        return self.icdf(uniform.to(pit.device))


def _fits(shape: torch.Size, into: torch.Size) -> bool:
    """Whether a tensor of one shape can be expanded to the other."""
    return len(shape) <= len(into) and all(a in (1, b) for a, b in zip(shape[::-1], into[::-1], strict=False))
