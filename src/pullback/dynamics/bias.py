"""Bias potentials that push simulations out of their wells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, func, nn
from torch.nn.functional import silu

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive, check_shape
from pullback.core.shapes import Float

__all__ = ["GaussianGridBias", "NeuralBias"]


class GaussianGridBias(nn.Module):
    r"""Gaussians of one width on a grid, whose heights are learned: :math:`B(x)=\sum_kh_ke^{-|x-c_k|^2/2w^2}`.

    Gaussians on a grid are products along the axes, so that a point costs one product of a matrix an axis, not one
    exponential a centre.

    Args:
        low: one number an axis, the first centre.
        high: the last centre, above ``low``.
        resolution: centres along each axis, >= 2.
        width: w > 0, in the units of x.
        height: of all Gaussians at the start.

    Raises:
        TypeError: an option of another kind.
        ValueError: an option out of range, or ``low`` and ``high`` of different lengths.

    Example:
        >>> bias = GaussianGridBias((0.0, 0.0), (1.0, 1.0), resolution=2, width=0.1, height=3.0)
        >>> round(float(bias(torch.tensor([0.0, 1.0])).detach()), 4)
        3.0

    References:
        Sipka, Dietschreit, Grajciar, Gomez-Bombarelli (2023), Differentiable simulations for enhanced sampling of rare
        events, arXiv 2301.03480, section 4.1.
    """

    centres: Tensor

    def __init__(
        self, low: Sequence[float], high: Sequence[float], *, resolution: int, width: float, height: float = 0.0
    ) -> None:
        super().__init__()
        if len(low) != len(high) or not low:
            raise ValueError(f"low and high must have one number an axis, got {len(low)} and {len(high)}")
        if any(not a < b for a, b in zip(low, high, strict=True)) or not all(map(math.isfinite, (*low, *high))):
            raise ValueError(f"high must be above low and both finite, got {tuple(low)} and {tuple(high)}")
        check_integer("resolution", resolution, 2)
        check_positive("width", width)
        if not math.isfinite(height):
            raise ValueError(f"height must be finite, got {height}")
        self.width = float(width)
        rows = [torch.linspace(a, b, resolution) for a, b in zip(low, high, strict=True)]
        self.register_buffer("centres", torch.stack(rows))
        self.heights = nn.Parameter(torch.full((resolution,) * len(low), float(height)))

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Return the bias at ``x``: ``[*batch, d]`` to ``[*batch]``, in the units of the heights."""
        along = torch.exp(-self._off(x).square() / 2)
        return self._sum(list(along.unbind(-2)))

    def force(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return minus the gradient at ``x``, differentiable in ``x`` and in the heights."""
        off = self._off(x)
        along = torch.exp(-off.square() / 2)
        plain, turned = along.unbind(-2), (off * along / self.width).unbind(-2)
        rows = [[*plain[:axis], slope, *plain[axis + 1 :]] for axis, slope in enumerate(turned)]
        return torch.stack([self._sum(factors) for factors in rows], -1)

    def _off(self, x: Tensor) -> Tensor:
        check_shape("x", check_floating("x", x), (len(self.centres),))
        return ((x[..., None] - self.centres) / self.width).clamp(-40, 40)  # further away a Gaussian is 0 in any dtype

    def _sum(self, factors: list[Tensor]) -> Tensor:
        """The heights, each times the product of its factors of all axes, added up."""
        if len(factors) == 1:
            return factors[0] @ self.heights
        total = factors[0] @ self.heights.flatten(1)
        for factor in factors[1:]:
            total = (factor[..., None] * total.unflatten(-1, (factor.shape[-1], -1))).sum(-2)
        return total.squeeze(-1)


class NeuralBias(nn.Module):
    r"""A network of descriptors as a bias: :math:`B(x)=w\cdot h_L`, :math:`h_{l+1}=\mathrm{SiLU}(W_lh_l+b_l)`.

    :math:`h_0` are the descriptors of x, for molecules such ones as do not change when the molecule is moved or turned.
    The network needs them of order 1.

    Args:
        descriptors: from ``[*batch, *state]`` to ``[*batch, features]``, differentiable.
        features: how many descriptors there are, >= 1.
        hidden: width of the layers, >= 1.
        layers: how many, >= 1.

    Raises:
        TypeError: ``descriptors`` cannot be called, or another option is no integer.
        ValueError: an option out of range.

    Example:
        >>> bias = NeuralBias(torch.cos, 2, hidden=8)
        >>> bias(torch.zeros(5, 2)).shape, bias.force(torch.zeros(5, 2)).shape
        (torch.Size([5]), torch.Size([5, 2]))

    References:
        Sipka, Dietschreit, Grajciar, Gomez-Bombarelli (2023), Differentiable simulations for enhanced sampling of rare
        events, arXiv 2301.03480, section 4.2 (three layers of 150).
    """

    def __init__(
        self, descriptors: Callable[[Tensor], Tensor], features: int, *, hidden: int = 150, layers: int = 3
    ) -> None:
        super().__init__()
        check_callable("descriptors", descriptors)
        check_integer("features", features, 1)
        check_integer("hidden", hidden, 1)
        check_integer("layers", layers, 1)
        self.descriptors = descriptors
        self.features = features
        self.hidden = nn.ModuleList(nn.Linear(hidden if layer else features, hidden) for layer in range(layers))
        self.outward = nn.Parameter((2 * torch.rand(hidden) - 1) / math.sqrt(hidden))

    def forward(self, x: Float[Tensor, "*state"]) -> Float[Tensor, "*batch"]:
        """Return the bias at states ``x``: ``[*batch, *state]`` to ``[*batch]``."""
        h = self._described(x)
        for layer in self.hidden:
            h = silu(layer(h))
        return h @ self.outward

    def force(self, x: Float[Tensor, "*state"]) -> Float[Tensor, "*state"]:
        """Return minus the gradient at ``x``, of its shape, differentiable in ``x`` and in the weights."""
        h, pull = func.vjp(self._described, x)[:2]
        slopes = []
        for layer in self.hidden:
            z = layer(h)
            gate = torch.sigmoid(z)
            slopes.append((layer.weight, gate * (1 + z * (1 - gate))))
            h = z * gate
        back = self.outward
        for weight, slope in reversed(slopes):
            back = (back * slope) @ weight
        pushed: Tensor = pull(-back)[0]
        return pushed

    def _described(self, x: Tensor) -> Tensor:
        found = self.descriptors(check_floating("x", x))
        if not isinstance(found, Tensor) or found.ndim < 1 or found.shape[-1] != self.features:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"descriptors must return a tensor of shape (..., {self.features}), got {got}")
        return found
