"""Densities that are constant on buckets: what a network says about a number when it classifies it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pullback.core.checks import check_broadcast, check_choice, check_floating, check_range, check_same_dtype
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["BarDistribution"]

_TAILS = ("bounded", "half-normal")
_SCALE = math.sqrt(2) * torch.erfinv(torch.tensor(0.5, dtype=torch.float64)).item()
"""The median of a half-normal with scale 1."""


class BarDistribution:
    r"""A histogram with learned heights, with the interface of ``torch.distributions``.

    .. math:: p(y) = \frac{\mathrm{softmax}(\mathrm{logits})_k}{b_{k+1} - b_k}, \qquad b_k \le y < b_{k+1}

    Every method is a closed form of one density, so they agree with each other to rounding, and is differentiable in
    the logits; :meth:`rsample` too, and :meth:`cdf`, :meth:`expected_improvement` in their argument. With tails
    ``"half-normal"`` the outermost buckets reach to infinity: there the density falls off as a normal one from the
    inner border on, with half of the bucket's mass inside of its width.

    Args:
        logits: ``[*batch, n]``, one a bucket.
        borders: ``[n + 1]`` strictly increasing, in the unit of y.
        tails: ``"bounded"``: no mass outside of the borders; ``"half-normal"``, which needs two buckets.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: the borders do not increase, or their number does not fit.

    Example:
        >>> law = BarDistribution(torch.zeros(2), torch.tensor([0.0, 1.0, 3.0]))
        >>> law.mean, law.cdf(torch.tensor(2.0)), law.log_prob(torch.tensor(0.5)).exp()
        (tensor(1.2500), tensor(0.7500), tensor(0.5000))
        >>> law.expected_improvement(torch.tensor(2.0))  # of (y - 2) where it is positive
        tensor(0.1250)

    References:
        Mueller, Hollmann, Pineda Arango, Grabocka, Hutter (2022), Transformers can do Bayesian inference, section 5 and
        appendix E (tails).
    """

    def __init__(
        self,
        logits: Float[Tensor, "*batch n"],
        borders: Float[Tensor, "edges"] | Sequence[float],
        *,
        tails: str = "bounded",
    ) -> None:
        if not isinstance(borders, Tensor):
            borders = torch.tensor(borders, dtype=logits.dtype, device=logits.device)
        check_same_dtype(logits=check_floating("logits", logits), borders=check_floating("borders", borders))
        check_choice("tails", tails, _TAILS)
        fewest = 1 if tails == "bounded" else 2
        if logits.ndim < 1 or logits.shape[-1] < fewest:
            raise ValueError(f"logits must have at least {fewest} buckets, got shape {tuple(logits.shape)}")
        if borders.shape != (logits.shape[-1] + 1,):
            raise ValueError(
                f"borders must be one more than the {logits.shape[-1]} buckets, got shape {tuple(borders.shape)}"
            )
        widths = borders.diff()
        if can_look(widths) and not bool(((widths > 0) & widths.isfinite()).all()):
            raise ValueError(f"borders must increase strictly and stay finite, got {borders.tolist()}")
        self.logits, self.borders, self.tails, self._widths = logits, borders, tails, widths

    @property
    def log_probs(self) -> Float[Tensor, "*batch n"]:
        """Logarithms of the mass of each bucket."""
        return self.logits.log_softmax(-1)

    @property
    def probs(self) -> Float[Tensor, "*batch n"]:
        """The mass of each bucket."""
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """The expectation of y."""
        return (self.probs * self._centres).sum(-1)

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """The variance of y: that within buckets and that between their means."""
        within = self._widths.square() / 12
        if self.tails == "half-normal":
            normal = (self._widths / _SCALE).square() * (1 - 2 / math.pi)
            within = torch.cat([normal[:1], within[1:-1], normal[-1:]])
        return (self.probs * (within + (self._centres - self.mean[..., None]).square())).sum(-1)

    def log_prob(self, y: Float[Tensor, "*#batch"]) -> Float[Tensor, "*batch"]:
        """Return the logarithm of the density.

        Args:
            y: ``[*batch]``, within the borders where the tails are bounded.

        Raises:
            ValueError: a value lies outside of bounded borders; it is named (not under transforms: the outermost
                bucket counts for it there).
        """
        y, bucket = self._locate(y, within=True)
        height = _at(self.log_probs, bucket) - self._widths.log()[bucket]
        if self.tails == "bounded":
            return height
        # Where the bucket is a tail, a half-normal stands in for its constant height.
        far = self._distance(y, bucket)
        tail = math.log(2 * _SCALE) - 0.5 * math.log(2 * math.pi) - 0.5 * far.square()
        return height + torch.where(self._is_tail(bucket), tail, 0)

    def cdf(self, y: Float[Tensor, "*#batch"]) -> Float[Tensor, "*batch"]:
        """Return the mass below y: 0 and 1 outside of bounded borders.

        Args:
            y: ``[*batch]``.
        """
        y, bucket = self._locate(y)
        below = _at(self._below, bucket)
        part = ((y - self.borders[bucket]) / self._widths[bucket]).clamp(0, 1)
        if self.tails == "half-normal":
            inside = torch.erf(self._distance(y, bucket) / math.sqrt(2))
            lower, upper = bucket == 0, bucket == self.logits.shape[-1] - 1
            part = torch.where(lower, 1 - inside, torch.where(upper, inside, part))
        found = below + _at(self.probs, bucket) * part
        return found if self.tails == "half-normal" else torch.where(y >= self.borders[-1], 1, found)

    def icdf(self, mass: Float[Tensor, "*#batch"]) -> Float[Tensor, "*batch"]:
        """Return the number below which a given mass lies, the inverse of :meth:`cdf`.

        Args:
            mass: ``[*batch]`` in [0, 1].

        Raises:
            ValueError: a mass lies outside of [0, 1] (not under transforms).
        """
        check_same_dtype(mass=check_floating("mass", mass), logits=self.logits)
        if can_look(mass) and not bool(((mass >= 0) & (mass <= 1)).all()):
            raise ValueError(f"mass must be in [0, 1], got values from {mass.min().item()} to {mass.max().item()}")
        mass = mass.expand(check_broadcast(mass=tuple(mass.shape), logits=tuple(self.logits.shape[:-1])))
        ends = self.probs.detach().cumsum(-1)
        bucket = (mass.detach()[..., None] >= ends[..., :-1]).sum(-1)
        share = _at(self.probs, bucket)
        # Where rounding leaves a mass beside its bucket, the border is the answer.
        part = ((mass - _at(self._below, bucket)) / share.clamp_min(torch.finfo(share.dtype).tiny)).clamp(0, 1)
        found = self.borders[bucket] + self._widths[bucket] * part
        if self.tails == "bounded":
            return found
        lower, upper = bucket == 0, bucket == self.logits.shape[-1] - 1
        inside = torch.where(lower, 1 - part, torch.where(upper, part, 0))
        far = self._scales(bucket) * math.sqrt(2) * torch.erfinv(inside)
        return torch.where(lower, self.borders[1] - far, torch.where(upper, self.borders[-2] + far, found))

    def rsample(
        self, count: int | None = None, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*samples"]:
        """Draw by the inverse of the distribution function, whose gradient the draws have.

        Args:
            count: draws of each distribution; ``None``: one, without a dimension for it.
            generator: source of the draws.

        Returns:
            ``[count, *batch]``.
        """
        shape = self.logits.shape[:-1] if count is None else (count, *self.logits.shape[:-1])
        drawn = torch.rand(
            shape, dtype=torch.float64, device=drawing_device(generator, self.logits), generator=generator
        )
        largest = 1 - torch.finfo(self.logits.dtype).eps  # rounding up to 1 would be the end of a tail
        return self.icdf(drawn.to(self.logits).clamp_max(largest))

    def expected_improvement(self, best: Float[Tensor, "*#batch"]) -> Float[Tensor, "*batch"]:
        r"""Return :math:`E \max(y - \mathrm{best}, 0)`.

        Args:
            best: ``[*batch]``, what has been reached, in the unit of y.
        """
        check_same_dtype(best=check_floating("best", best), logits=self.logits)
        check_broadcast(best=tuple(best.shape), logits=tuple(self.logits.shape[:-1]))
        best = best[..., None]
        low, high = self.borders[:-1], self.borders[1:]
        start = torch.minimum(torch.maximum(best, low), high)
        gain = (high - start) * ((high - start) / (2 * self._widths)) + (low - best).clamp_min(0)
        if self.tails == "half-normal":
            gain = torch.cat([self._lower_gain(best), gain[..., 1:-1], self._upper_gain(best)], -1)
        return (self.probs * gain).sum(-1)

    def upper_confidence_bound(self, weight: float) -> Float[Tensor, "*batch"]:
        """Return the mean and ``weight`` standard deviations.

        Args:
            weight: of the standard deviation, >= 0.
        """
        check_range("weight", weight, 0, math.inf)
        return self.mean + weight * self.variance.sqrt()

    @property
    def _centres(self) -> Tensor:
        """Means of the buckets."""
        centres = self.borders[:-1] + self._widths / 2
        if self.tails == "bounded":
            return centres
        far = self._widths / _SCALE * math.sqrt(2 / math.pi)
        return torch.cat([self.borders[1:2] - far[:1], centres[1:-1], self.borders[-2:-1] + far[-1:]])

    @property
    def _below(self) -> Tensor:
        """Mass below each bucket."""
        probs = self.probs
        return torch.cat([torch.zeros_like(probs[..., :1]), probs.cumsum(-1)[..., :-1]], -1)

    def _locate(self, y: Tensor, *, within: bool = False) -> tuple[Tensor, Tensor]:
        """``y`` in the shape of the batch, and the number of its bucket."""
        check_same_dtype(y=check_floating("y", y), logits=self.logits)
        low, high = self.borders[0], self.borders[-1]
        if within and self.tails == "bounded" and can_look(y):
            outside = ~((y >= low) & (y <= high))
            if bool(outside.any()):
                worst = y[outside].flatten()[0].item()
                raise ValueError(f"y must be in the range of the bars, [{low.item()}, {high.item()}], got {worst}")
        y = y.expand(check_broadcast(y=tuple(y.shape), logits=tuple(self.logits.shape[:-1])))
        return y, (y.detach()[..., None] >= self.borders[1:-1]).sum(-1)

    def _is_tail(self, bucket: Tensor) -> Tensor:
        return (bucket == 0) | (bucket == self.logits.shape[-1] - 1)

    def _scales(self, bucket: Tensor) -> Tensor:
        return self._widths[bucket] / _SCALE

    def _distance(self, y: Tensor, bucket: Tensor) -> Tensor:
        """From the inner border of a tail, in scales of its half-normal; 0 in the other buckets."""
        away = torch.where(bucket == 0, self.borders[1] - y, y - self.borders[-2])
        return torch.where(self._is_tail(bucket), away / self._scales(bucket), 0)

    def _upper_gain(self, best: Tensor) -> Tensor:
        scale = self._widths[-1] / _SCALE
        start = (best - self.borders[-2]) / scale
        beyond = start.clamp_min(0)
        return scale * (2 * (_phi(beyond) - beyond * _normal_cdf(-beyond)) + (-start).clamp_min(0))

    def _lower_gain(self, best: Tensor) -> Tensor:
        scale = self._widths[0] / _SCALE
        reach = ((self.borders[1] - best) / scale).clamp_min(0)
        return scale * 2 * (reach * (_normal_cdf(reach) - 0.5) + _phi(reach) - 1 / math.sqrt(2 * math.pi))


def _at(values: Tensor, bucket: Tensor) -> Tensor:
    """The entry of each bucket: ``[*batch, n]`` and ``[*batch]`` to ``[*batch]``."""
    return values.expand(*bucket.shape, values.shape[-1]).gather(-1, bucket[..., None])[..., 0]


def _phi(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-z / math.sqrt(2))
