"""Operators learned from values on a grid or at sensors: the usual neighbours of those between finite elements."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from pullback.core.checks import check_broadcast, check_floating, check_integer, check_same_dtype, check_shape
from pullback.core.shapes import Float, Tensor

__all__ = ["DeepOperatorNetwork", "FourierOperator"]


class FourierOperator(nn.Module):
    r"""A Fourier neural operator on a grid of the plane.

    .. math:: h \leftarrow h + \sigma\big(W h + \mathcal{F}^{-1}(R \cdot \mathcal{F} h)\big)

    R is a complex matrix for each of the lowest ``modes`` frequencies along both sides (negative ones too along the
    first), W acts at each point. Between a pointwise lift and a pointwise head there are ``layers`` of these.

    Args:
        fields: functions that go in, >= 1.
        channels: width, >= 1.
        modes: frequencies along each side, >= 1; grids must have at least ``2 * modes`` points, padding included.
        layers: >= 1.
        padding: points of zeros behind each side, >= 0: with 0 the domain is periodic.
        generator: of the weights.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is out of range.

    Example:
        >>> operator = FourierOperator(fields=2, channels=8, modes=3, padding=4)
        >>> operator(torch.randn(5, 2, 12, 16)).shape
        torch.Size([5, 12, 16])

    References:
        Li et al. (2021), Fourier neural operator for parametric partial differential equations, arXiv 2010.08895.
    """

    def __init__(
        self,
        *,
        fields: int,
        channels: int = 24,
        modes: int = 8,
        layers: int = 4,
        padding: int = 8,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.fields, self.modes = check_integer("fields", fields, 1), check_integer("modes", modes, 1)
        self.padding = check_integer("padding", padding, 0)
        check_integer("channels", channels, 1)
        check_integer("layers", layers, 1)
        self.lift, self.head = nn.Linear(fields, channels), nn.Linear(channels, 1)
        self.local = nn.ModuleList(nn.Linear(channels, channels) for _ in range(layers))
        self.spectral = nn.Parameter(torch.empty(layers, 2, 2 * modes, modes, channels, channels))  # real, imaginary
        with torch.no_grad():
            for layer in (self.lift, self.head, *self.local):
                for p in layer.parameters():
                    p.uniform_(-(layer.in_features**-0.5), layer.in_features**-0.5, generator=generator)
            self.spectral.normal_(std=0.5 / channels, generator=generator)

    def forward(self, x: Float[Tensor, "*batch fields h w"]) -> Float[Tensor, "*batch h w"]:
        """Return values on the grid ``[*batch, h, w]`` from those of the fields."""
        check_shape("x", check_floating("x", x), (self.fields, None, None))
        check_same_dtype(x=x, weight=self.lift.weight)
        height, width = x.shape[-2:]
        padded = (height + self.padding, width + self.padding)
        if min(padded) < 2 * self.modes:
            raise ValueError(
                f"x must have at least {2 * self.modes - self.padding} points a side, got {height}, {width}"
            )
        if not x.numel():  # no transform takes an empty batch
            return x.sum(-3)
        h = self.lift(x.reshape(-1, *x.shape[-3:]).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        m = self.modes
        for local, weights in zip(self.local, self.spectral, strict=True):
            waves = torch.fft.rfft2(h.to(torch.promote_types(h.dtype, torch.float32)), s=padded, norm="ortho")
            low = torch.cat([waves[..., :m, :m], waves[..., -m:, :m]], -2)
            mixed = _mixed(low, weights.to(waves.real.dtype))
            between = mixed.new_zeros(*mixed.shape[:-2], padded[0] - 2 * m, m)
            kept = F.pad(torch.cat([mixed[..., :m, :], between, mixed[..., m:, :]], -2), (0, waves.shape[-1] - m))
            far = torch.fft.irfft2(kept, s=padded, norm="ortho")[..., :height, :width].to(h.dtype)
            h = h + F.gelu(far + local(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return self.head(h.permute(0, 2, 3, 1))[..., 0].reshape(*x.shape[:-3], height, width)


def _mixed(low: Tensor, weights: Tensor) -> Tensor:
    """Channels ``[b, i, x, y]`` times matrices ``[2, x, y, i, o]``, frequency by frequency, in real numbers.

    A product of batches of complex matrices takes one copy for each on a CPU, several times what this costs.
    """
    height, width = weights.shape[1:3]
    parts = torch.view_as_real(low).permute(2, 3, 4, 0, 1).flatten(0, 1)  # [x y, 2, b, i]
    real, imaginary = (torch.bmm(parts.flatten(1, 2), w.flatten(0, 1)).unflatten(1, (2, -1)) for w in weights)
    told = torch.stack([real[:, 0] - imaginary[:, 1], real[:, 1] + imaginary[:, 0]], -1)
    return torch.view_as_complex(told.permute(1, 2, 0, 3).contiguous()).unflatten(2, (height, width))


class DeepOperatorNetwork(nn.Module):
    r"""A deep operator network: what the functions say, times what the point says.

    .. math:: G(f)(x) = \frac{1}{\sqrt p}\sum_{k=1}^p b_k\big(f(s_1),\dots,f(s_n)\big)\,t_k(x)

    Args:
        sensors: n, numbers that tell the functions, >= 1.
        dim: coordinates of a point, >= 1.
        width: of both networks, and p, >= 1.
        generator: of the weights, uniform within one over the root of the fan in.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is out of range.

    Example:
        >>> operator = DeepOperatorNetwork(20, dim=2, width=16)
        >>> operator(torch.randn(5, 20), torch.rand(7, 2)).shape
        torch.Size([5, 7])

    References:
        Lu, Jin, Pang, Zhang, Karniadakis (2021), Learning nonlinear operators via DeepONet, arXiv 1910.03193.
    """

    def __init__(
        self, sensors: int, *, dim: int = 2, width: int = 128, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.sensors, self.dim = check_integer("sensors", sensors, 1), check_integer("dim", dim, 1)
        check_integer("width", width, 1)
        self.branch = nn.Sequential(nn.Linear(sensors, width), nn.GELU(), nn.Linear(width, width))
        self.trunk = nn.Sequential(nn.Linear(dim, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    for p in layer.parameters():
                        p.uniform_(-(layer.in_features**-0.5), layer.in_features**-0.5, generator=generator)

    def forward(
        self, values: Float[Tensor, "*#batch n"], points: Float[Tensor, "*#batch p d"]
    ) -> Float[Tensor, "*batch p"]:
        """Return values at points ``[*batch, p, d]`` from those at the sensors ``[*batch, n]``."""
        check_shape("values", check_floating("values", values), (self.sensors,))
        check_shape("points", check_floating("points", points), (None, self.dim))
        check_same_dtype(values=values, points=points, weight=next(self.branch.parameters()))
        check_broadcast(values=values.shape[:-1], points=points.shape[:-2])
        told, basis = self.branch(values), self.trunk(points)
        return (basis @ told[..., None])[..., 0] / basis.shape[-1] ** 0.5
