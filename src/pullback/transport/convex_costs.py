"""Convex costs of displacements, with their conjugates: what flows that are optimal for a cost are made of."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from pullback.core.checks import check_floating, check_positive
from pullback.core.shapes import Float, Tensor
from pullback.transport.costs import check_clouds

__all__ = ["ConvexCost", "PowerCost"]


@runtime_checkable
class ConvexCost(Protocol):
    """A strictly convex function c of a displacement, and its conjugate: c*(y), the largest z . y - c(z).

    Anything with these three methods serves as a cost of :func:`conjugate_flow_loss` and :class:`PotentialVelocity`.
    """

    def value(self, z: Tensor) -> Tensor:
        """Return c(z), ``[*batch]`` for displacements ``[*batch, d]``."""

    def conjugate(self, y: Tensor) -> Tensor:
        """Return c*(y), ``[*batch]``."""

    def conjugate_gradient(self, y: Tensor) -> Tensor:
        """Return the gradient of c* at y, ``[*batch, d]``: the displacement whose gradient of c is y."""


class PowerCost:
    r"""The cost :math:`c(z)=|z|^p/p`, whose conjugate is :math:`c^*(y)=|y|^q/q` with :math:`1/p+1/q=1`.

    Called with two clouds it gives the costs of all pairs, so it is also a ``cost`` of :func:`pairwise_cost`,
    :func:`sinkhorn_divergence` and :func:`monge_gap`.

    Args:
        p: > 1; 2 is half of the squared distance.

    Raises:
        TypeError, ValueError: ``p`` is no number > 1.

    Example:
        >>> cost = PowerCost(4)
        >>> z = torch.tensor([1.0, 2.0])
        >>> round(cost.value(z).item(), 4)  # 5^2 / 4
        6.25
        >>> torch.allclose(cost.conjugate_gradient(5 * z), z)  # the gradient of c at z is |z|^2 z
        True
        >>> cost(torch.zeros(1, 2), z.expand(1, 2))
        tensor([[6.2500]])

    References:
        Liu (2022), Rectified flow: a marginal preserving approach to optimal transport, section 2.
    """

    def __init__(self, p: float = 2.0) -> None:
        check_positive("p", p)
        if p <= 1:
            raise ValueError(f"p must be > 1, got {p}")
        self.p = float(p)
        self.q = self.p / (self.p - 1)

    def __repr__(self) -> str:
        """The cost with its power."""
        return f"PowerCost({self.p:g})"

    def __call__(self, x: Float[Tensor, "*#batch n d"], y: Float[Tensor, "*#batch m d"]) -> Float[Tensor, "*batch n m"]:
        """Return c(y_j - x_i) of all pairs."""
        check_clouds(x, y)
        return self.value(y.unsqueeze(-3) - x.unsqueeze(-2))

    def value(self, z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Return c(z)."""
        return _power(_checked("z", z), self.p)

    def gradient(self, z: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return the gradient of c, :math:`|z|^{p-2}z`."""
        return _direction(_checked("z", z), self.p)

    def conjugate(self, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Return c*(y)."""
        return _power(_checked("y", y), self.q)

    def conjugate_gradient(self, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return :math:`|y|^{q-2}y`; where y is 0, 0 with the derivative 0 (for p > 2 it has none there)."""
        return _direction(_checked("y", y), self.q)


def _checked(name: str, z: Tensor) -> Tensor:
    if check_floating(name, z).ndim < 1 or not z.shape[-1]:
        raise ValueError(f"{name} must have shape (..., d) with d >= 1, got {tuple(z.shape)}")
    return z


def _parts(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``z / u``, its length and u, the largest entry (1 where z is 0), in float32 or wider: no square overflows."""
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    unit = z.detach().abs().amax(-1, keepdim=True)
    some = unit > 0
    unit = torch.where(some, unit, 1)
    way = z / unit
    return way, torch.where(some, way.square().sum(-1, keepdim=True), 1).sqrt(), unit


def _power(z: Tensor, p: float) -> Tensor:
    if p == 2:
        return z.square().sum(-1) / 2
    way, length, unit = _parts(z)
    found = length**p * unit**p / p
    return torch.where(way.any(-1), found.squeeze(-1), 0).to(z.dtype)


def _direction(z: Tensor, p: float) -> Tensor:
    if p == 2:
        return z
    way, length, unit = _parts(z)
    found = way * length ** (p - 2) * unit ** (p - 1)
    return torch.where(way.any(-1, keepdim=True), found, 0).to(z.dtype)
