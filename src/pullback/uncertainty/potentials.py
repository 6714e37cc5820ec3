"""Edge potentials that are known: differences of a normal law, and neighbours at a distance."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pullback.core.checks import check_finite, check_floating, check_integer, check_positive
from pullback.core.shapes import Float, Tensor

__all__ = ["DistancePotential", "NormalPotential"]


@dataclass(frozen=True, eq=False)
class NormalPotential:
    r"""Differences of two nodes of a normal law: :math:`\psi(\delta)=\exp(-|\delta-m|^2/2\sigma^2)`.

    With :func:`nonparametric_belief_propagation` and normal unary factors, a Gaussian model of precision
    :math:`1/\sigma^2` on each edge, whose marginals :func:`gaussian_belief_propagation` has.

    Args:
        mean: m ``[d]``.
        scale: > 0, the standard deviation in each dimension.

    Raises:
        TypeError: ``mean`` is no floating tensor.
        ValueError: it has another shape or is not finite, or ``scale`` is out of range.

    Example:
        >>> potential = NormalPotential(torch.tensor([1.0]), 0.5)
        >>> potential.log_prob(torch.tensor([[1.0], [2.0]])).round(decimals=4)
        tensor([-0., -2.])
        >>> potential.sample((3, 2), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2, 1])
    """

    mean: Tensor
    scale: float

    def __post_init__(self) -> None:
        if check_floating("mean", self.mean).ndim != 1 or not len(self.mean):
            raise ValueError(f"mean must have shape [d], got {tuple(self.mean.shape)}")
        check_finite("mean", self.mean.detach())
        check_positive("scale", self.scale)

    def log_prob(self, difference: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Return the log density of differences ``[*batch, d]``, up to a constant."""
        away = ((difference - self.mean) / (2**0.5 * self.scale)).square()
        return -(away[..., 0] if len(self.mean) == 1 else away.sum(-1))

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Float[Tensor, "*shape d"]:
        """Draw differences ``[*shape, d]``."""
        noise = torch.randn(*shape, len(self.mean), generator=generator, dtype=self.mean.dtype)
        return self.mean + self.scale * noise.to(self.mean.device)


@dataclass(frozen=True)
class DistancePotential:
    r"""Two nodes about as far apart as a rod is long: :math:`\psi(\delta)=\exp(-(|\delta|-l)^2/2\sigma^2)`.

    Draws have any direction, evenly, and a length of the normal law of mean l and deviation :math:`\sigma`.

    Args:
        length: l > 0.
        scale: > 0, in the same unit.
        dim: d >= 1 of the nodes.

    Raises:
        TypeError: ``dim`` is no integer.
        ValueError: a number is out of range.

    Example:
        >>> rod = DistancePotential(2.0, 0.1)
        >>> rod.log_prob(torch.tensor([[0.0, 2.0], [2.1, 0.0]]))
        tensor([-0.0000, -0.5000])
        >>> bool((rod.sample((50,), generator=torch.Generator().manual_seed(0)).norm(dim=-1) - 2).abs().max() < 0.5)
        True
    """

    length: float
    scale: float
    dim: int = 2

    def __post_init__(self) -> None:
        check_positive("length", self.length)
        check_positive("scale", self.scale)
        check_integer("dim", self.dim, 1)

    def log_prob(self, difference: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Return the log density of differences ``[*batch, d]``, up to a constant.

        Raises:
            TypeError: ``difference`` is no floating tensor.
            ValueError: it has another last dimension.
        """
        if check_floating("difference", difference).ndim < 1 or difference.shape[-1] != self.dim:
            raise ValueError(f"difference must have shape [*batch, {self.dim}], got {tuple(difference.shape)}")
        return -((torch.linalg.vector_norm(difference, dim=-1) - self.length) / self.scale).square() / 2

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Float[Tensor, "*shape d"]:
        """Draw differences ``[*shape, d]``."""
        drawn = torch.randn(*shape, self.dim, generator=generator)
        away = self.length + self.scale * torch.randn(*shape, 1, generator=generator)
        return away * drawn / torch.linalg.vector_norm(drawn, dim=-1, keepdim=True).clamp_min(1e-30)
