"""Mixtures of Gaussians with quantiles and draws that pass a gradient."""

from __future__ import annotations

import math

import torch

from pullback.core.checks import check_broadcast, check_floating, check_positive, check_same_dtype
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.uncertainty.inverse import search_level, with_derivatives

__all__ = ["MixtureOfGaussians"]


class MixtureOfGaussians:
    r"""A law on the line: :math:`F(y) = \sum_j w_j \Phi\big((y - \mu_j) / \sigma_j\big)`, with the methods of
    ``torch.distributions``.

    ``torch.distributions.MixtureSameFamily`` has neither quantiles nor draws with a gradient; both are implicit here:

    .. math:: \frac{\partial F^{-1}(u)}{\partial \theta} = -\frac{\partial_\theta F(y)}{f(y)},\quad
              \frac{\partial F^{-1}(u)}{\partial u} = \frac{1}{f(y)} \quad \text{at } y = F^{-1}(u)

    Args:
        logits: ``[*batch, k]`` logarithms of the weights, up to a constant.
        mean: ``[*batch, k]`` of the components.
        scale: ``[*batch, k]`` their standard deviations, > 0, in the unit of the means.

    Raises:
        TypeError: no floating tensors, or of different dtypes.
        ValueError: shapes do not fit, there are no components, a scale is not > 0.

    Example:
        >>> law = MixtureOfGaussians(torch.zeros(2), torch.tensor([-1.0, 1.0]), torch.ones(2))
        >>> law.mean, law.variance, law.cdf(torch.tensor(0.0))
        (tensor(0.), tensor(2.), tensor(0.5000))
        >>> law.icdf(law.cdf(torch.tensor([-2.0, 0.5])))
        tensor([-2.0000,  0.5000])

    References:
        Figurnov, Mohamed, Mnih (2018), Implicit reparameterization gradients, equation 6.
    """

    def __init__(
        self, logits: Float[Tensor, "*#batch k"], mean: Float[Tensor, "*#batch k"], scale: Float[Tensor, "*#batch k"]
    ) -> None:
        tensors = {"logits": logits, "mean": mean, "scale": scale}
        for name, value in tensors.items():
            if not check_floating(name, value).ndim or not value.shape[-1]:
                raise ValueError(f"{name} must have shape [..., k] of at least one component, got {tuple(value.shape)}")
        check_same_dtype(**tensors)
        shape = check_broadcast(**{name: tuple(value.shape) for name, value in tensors.items()})
        if can_look(scale):
            check_positive("scale", scale.detach())
        self.logits, self.component_mean, self.component_scale = (value.expand(shape) for value in tensors.values())

    @property
    def batch_shape(self) -> torch.Size:
        """Shape of the batch of laws."""
        return self.logits.shape[:-1]

    @property
    def mean(self) -> Float[Tensor, "*batch"]:
        """The mean of each law."""
        return (self.logits.softmax(-1) * self.component_mean).sum(-1)

    @property
    def variance(self) -> Float[Tensor, "*batch"]:
        """The variance of each law."""
        weights = self.logits.softmax(-1)
        between = self.component_mean - (weights * self.component_mean).sum(-1, keepdim=True)
        return (weights * (self.component_scale.square() + between.square())).sum(-1)

    def log_prob(self, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the logarithm of the density; shapes are broadcast against the batch."""
        z = self._standard(y)
        log_density = -z.square() / 2 - self.component_scale.log() - math.log(2 * math.pi) / 2
        return torch.logsumexp(self.logits.log_softmax(-1) + log_density, -1)

    def cdf(self, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the probability of what is at most ``y``."""
        below = (self.logits.softmax(-1) * torch.special.ndtr(self._standard(y))).sum(-1)
        return below.clamp(max=1)  # rounding of the sum

    def icdf(self, level: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the quantile of a level in [0, 1]: infinite at the ends. Derivatives of orders one to three are right.

        Raises:
            TypeError: ``level`` is of another dtype.
            ValueError: a level is outside [0, 1].
        """
        check_same_dtype(level=check_floating("level", level), mean=self.component_mean)
        if can_look(level) and not bool(((level >= 0) & (level <= 1)).all()):
            raise ValueError("level must be in [0, 1] everywhere")
        check_broadcast(level=tuple(level.shape), batch=tuple(self.batch_shape))
        wide = self._wide()
        inside = (level > 0) & (level < 1)
        u = torch.where(inside, level, 0.5).to(wide.logits.dtype)
        spread = wide.component_mean + wide.component_scale * torch.special.ndtri(u)[..., None]
        found = search_level(wide.cdf, wide._density, u.detach(), spread.detach().amin(-1), spread.detach().amax(-1))
        at = with_derivatives(found, lambda y: wide.cdf(y) - u, wide._density)
        ends = torch.where(level > 0, math.inf, -math.inf)
        return torch.where(inside, at.to(level.dtype), ends.to(level.dtype))

    def rsample(
        self, shape: torch.Size | tuple[int, ...] = (), *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "..."]:
        """Return draws ``[*shape, *batch]`` whose gradient in the parameters is the implicit one."""
        count = (*shape, *self.batch_shape)
        device = drawing_device(generator, self.logits)
        uniform = torch.rand(*count, 1, generator=generator, device=device, dtype=torch.float64).to(self.logits.device)
        normal = torch.randn(count, generator=generator, device=device, dtype=torch.float64).to(self.logits.device)
        wide = self._wide()
        steps = wide.logits.detach().double().softmax(-1).cumsum(-1)[..., :-1]
        chosen = (uniform > steps).sum(-1, keepdim=True)
        mean, scale = (
            x.detach().expand(*count, x.shape[-1]).gather(-1, chosen).squeeze(-1)
            for x in (wide.component_mean, wide.component_scale)
        )
        drawn = mean + scale * normal.to(scale.dtype)
        level = wide.cdf(drawn).detach()
        return with_derivatives(drawn, lambda y: wide.cdf(y) - level, wide._density).to(self.logits.dtype)

    def sample(
        self, shape: torch.Size | tuple[int, ...] = (), *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "..."]:
        """Return draws ``[*shape, *batch]`` without a gradient."""
        with torch.no_grad():
            return self.rsample(shape, generator=generator)

    def _standard(self, y: Tensor) -> Tensor:
        check_same_dtype(y=check_floating("y", y), mean=self.component_mean)
        check_broadcast(y=tuple(y.shape), batch=tuple(self.batch_shape))
        return (y[..., None] - self.component_mean) / self.component_scale

    def _wide(self) -> MixtureOfGaussians:
        """The same law in a precision in which quantiles can be told apart."""
        dtype = torch.promote_types(self.logits.dtype, torch.float32)
        return MixtureOfGaussians(self.logits.to(dtype), self.component_mean.to(dtype), self.component_scale.to(dtype))

    def _density(self, y: Tensor) -> Tensor:
        return self.log_prob(y).exp()
