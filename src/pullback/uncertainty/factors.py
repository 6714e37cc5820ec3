"""Learned factors of belief propagation between continuous variables."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import nn

from pullback.core.checks import check_broadcast, check_floating, check_integer, check_positive, check_same_dtype
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor
from pullback.uncertainty.directional import linear

__all__ = ["PairwiseFactor", "UnaryFactor", "floored"]


class PairwiseFactor(nn.Module):
    r"""What is learned of the difference of two nodes: a density of it, and draws of it; an ``EdgePotential``.

    .. math:: \psi(\delta)=c+(1-c)\,\sigma(g(\delta/h')),\qquad \delta=h\,G(z),\quad z\sim N(0,I),

    with two networks of two hidden layers each that share nothing: one may learn while the other is used. Only the
    sampler is a law; the density has no constant of its own. With ``sample`` alone it is a motion from step to step.

    Args:
        dim: d of the nodes, >= 1.
        hidden: width of the layers, >= 1.
        noise: dimensions of z, >= 1.
        scale: h > 0, how large draws are at first, in the unit of the differences.
        detail: h' > 0, how near to each other differences are that the density soon tells apart, in their unit; h by
            default. A few of it to the size of the differences: with much less of them a ring is learned as a disk.
        floor: c in (0, 1): no difference is impossible, so that no weight is 0.
        generator: of the initial weights, uniform within one over the square root of a layer's input.

    Raises:
        TypeError: a number is no integer.
        ValueError: an option is out of range.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> factor = PairwiseFactor(2, generator=g)
        >>> factor.log_prob(torch.zeros(5, 3, 2)).shape, factor.sample((5, 3), generator=g).shape
        (torch.Size([5, 3]), torch.Size([5, 3, 2]))

    References:
        Opipari, Pavlasek, Chen, Wang, Desingh, Jenkins (2023), DNBP: Differentiable nonparametric belief propagation,
        section 4.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: int = 64,
        noise: int = 64,
        scale: float = 1.0,
        detail: float | None = None,
        floor: float = 0.005,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, number in (("dim", dim), ("hidden", hidden), ("noise", noise)):
            check_integer(name, number, 1)
        _check_range(scale, floor)
        self.dim, self.noise, self.scale, self.floor = dim, noise, scale, floor
        self.detail = scale if detail is None else detail
        check_positive("detail", self.detail)
        self.density = _perceptron(dim, hidden, 1, generator)
        self.sampler = _perceptron(noise, hidden, dim, generator)

    def log_prob(self, difference: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Return the logarithm of the density of differences ``[*batch, d]``, between log(floor) and 0.

        Raises:
            TypeError: ``difference`` is no floating tensor.
            ValueError: it has another last dimension.
        """
        if check_floating("difference", difference).ndim < 1 or difference.shape[-1] != self.dim:
            raise ValueError(f"difference must have shape [*batch, {self.dim}], got {tuple(difference.shape)}")
        return floored(self.floor, self.density(difference / self.detail)[..., 0])

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Float[Tensor, "*shape d"]:
        """Draw differences ``[*shape, d]``, differentiable in the weights of the sampler.

        Args:
            shape: of the draws.
            generator: of the noise.
        """
        like = next(self.sampler.parameters())
        z = torch.randn(*shape, self.noise, generator=generator, device=drawing_device(generator, like))
        found: Tensor = self.scale * self.sampler(z.to(like))
        return found


class UnaryFactor(nn.Module):
    r"""What is learned of a node from what was seen: :math:`\phi(x)=c+(1-c)\,\sigma(g(x/h, \text{features}))`.

    Args:
        dim: d of the node, >= 1.
        features: of the observation, >= 1.
        hidden: width of the two hidden layers, >= 1.
        scale: h > 0, how large places are, in their unit.
        floor: c in (0, 1): no place is impossible.
        generator: of the initial weights, uniform within one over the square root of a layer's input.

    Raises:
        TypeError: a number is no integer.
        ValueError: an option is out of range.

    Example:
        >>> factor = UnaryFactor(2, 16, generator=torch.Generator().manual_seed(0))
        >>> factor(torch.zeros(5, 100, 2), torch.zeros(5, 16)).shape
        torch.Size([5, 100])

    References:
        Opipari et al. (2023), DNBP, section 4.
    """

    def __init__(
        self,
        dim: int,
        features: int,
        *,
        hidden: int = 64,
        scale: float = 1.0,
        floor: float = 0.005,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, number in (("dim", dim), ("features", features), ("hidden", hidden)):
            check_integer(name, number, 1)
        _check_range(scale, floor)
        self.dim, self.features, self.scale, self.floor = dim, features, scale, floor
        self.density = _perceptron(dim + features, hidden, 1, generator)

    def forward(
        self, x: Float[Tensor, "*#batch points d"], features: Float[Tensor, "*#batch features"]
    ) -> Float[Tensor, "*batch points"]:
        """Return log potentials of points.

        Args:
            x: ``[*batch, points, d]``.
            features: ``[*batch, features]`` of what all the points of a row are judged by.

        Raises:
            TypeError: a tensor is not floating, or of another dtype than the other.
            ValueError: shapes do not fit.
        """
        if check_floating("x", x).ndim < 2 or x.shape[-1] != self.dim:
            raise ValueError(f"x must have shape [*batch, points, {self.dim}], got {tuple(x.shape)}")
        if check_floating("features", features).ndim < 1 or features.shape[-1] != self.features:
            raise ValueError(f"features must have shape [*batch, {self.features}], got {tuple(features.shape)}")
        check_same_dtype(x=x, features=features)
        check_broadcast(x=x.shape[:-2], features=features.shape[:-1])
        first, *rest = cast("list[nn.Linear]", list(self.density.children()))
        seen = nn.functional.linear(features, first.weight[:, self.dim :], first.bias)  # once for all points
        hidden = nn.functional.linear(x / self.scale, first.weight[:, : self.dim]) + seen.unsqueeze(-2)
        for layer in rest:
            hidden = layer(hidden)
        return floored(self.floor, hidden[..., 0])


def _check_range(scale: float, floor: float) -> None:
    check_positive("scale", scale)
    check_positive("floor", floor)
    if not floor < 1:
        raise ValueError(f"floor must be in (0, 1), got {floor}")


def floored(floor: float, logit: Tensor) -> Tensor:
    """Return ``log(floor + (1 - floor) sigmoid(logit))``.

    Example:
        >>> floored(0.5, torch.zeros(1)).exp()
        tensor([0.7500])
    """
    least = torch.full_like(logit, math.log(floor))
    return torch.logaddexp(least, nn.functional.logsigmoid(logit) + math.log1p(-floor))


def _perceptron(inputs: int, hidden: int, outputs: int, generator: torch.Generator | None) -> nn.Sequential:
    return nn.Sequential(
        linear(inputs, hidden, generator),
        nn.ReLU(),
        linear(hidden, hidden, generator),
        nn.ReLU(),
        linear(hidden, outputs, generator),
    )
