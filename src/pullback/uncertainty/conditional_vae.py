"""A conditional variational autoencoder of outcomes: a latent law that is simple at every input."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_floating, check_integer, check_positive, check_same_dtype
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor
from pullback.uncertainty.directional import linear

__all__ = ["ConditionalVAE", "LatentLaw"]


class LatentLaw(NamedTuple):
    """A Gaussian with independent coordinates.

    Attributes:
        mean: ``[*batch, latent]``.
        scale: ``[*batch, latent]`` standard deviations, > 0.
    """

    mean: Float[Tensor, "*batch latent"]
    scale: Float[Tensor, "*batch latent"]

    def rsample(self, *, generator: torch.Generator | None = None) -> Float[Tensor, "*batch latent"]:
        """Return a draw of each code, with the gradient of mean and scale."""
        device = drawing_device(generator, self.mean)
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=torch.float32)
        return self.mean + self.scale * noise.to(self.mean)


class ConditionalVAE(nn.Module):
    r"""Encoder :math:`q(z \mid y, x)` and decoder :math:`y(z, x)`, trained by

    .. math:: |y - y(z, x)|^2 / d + \beta\, \mathrm{KL}\big(q(z \mid y, x)\,\|\, N(0, I)\big), \qquad z \sim q

    With a small ``beta`` outcomes are kept and ``z`` given ``x`` is about Gaussian, however bent ``y`` given ``x`` is:
    convex regions of ``z``, decoded, bend with ``y``. That holds of draws of ``z``. Its means are flat where the
    outcome needs fewer coordinates than the code has.

    Args:
        features: of ``x``.
        dim: of the outcome.
        latent: of ``z``; more than ``dim`` gives room to unfold.
        hidden: units of each of three layers of both networks.
        generator: of the initial weights.

    Raises:
        TypeError: a number is no integer.
        ValueError: one is below 1.

    Example:
        >>> vae = ConditionalVAE(4, 2, latent=3)
        >>> law = vae.encode(torch.zeros(5, 2), torch.zeros(5, 4))
        >>> law.mean.shape, vae.decode(law.mean, torch.zeros(5, 4)).shape
        (torch.Size([5, 3]), torch.Size([5, 2]))

    References:
        Sohn, Lee, Yan (2015), Learning structured output representation using deep conditional generative models;
        Feldman, Bates, Romano (2023), Calibrated multiple-output quantile regression with representation learning,
        section 3.
    """

    def __init__(
        self, features: int, dim: int, *, latent: int, hidden: int = 64, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        for name, size in {"features": features, "dim": dim, "latent": latent, "hidden": hidden}.items():
            check_integer(name, size, 1)
        self.features, self.dim, self.latent = features, dim, latent
        self.encoder = _perceptron((dim + features, hidden, hidden, hidden, 2 * latent), generator)
        self.decoder = _perceptron((latent + features, hidden, hidden, hidden, dim), generator)

    def encode(self, y: Float[Tensor, "*batch dim"], x: Float[Tensor, "*batch features"]) -> LatentLaw:
        """Return the law of ``z``.

        Raises:
            TypeError: no floating tensors, or of different dtypes.
            ValueError: shapes do not fit.
        """
        mean, raw = self.encoder(_joined("y", y, self.dim, x, self.features)).chunk(2, -1)
        return LatentLaw(mean, nn.functional.softplus(raw) + 1e-4)

    def decode(
        self, z: Float[Tensor, "*#batch latent"], x: Float[Tensor, "*#batch features"]
    ) -> Float[Tensor, "*batch dim"]:
        """Return the outcome of a code; ``x`` is broadcast against it.

        Raises:
            TypeError: no floating tensors, or of different dtypes.
            ValueError: shapes do not fit.
        """
        outcome: Tensor = self.decoder(_joined("z", z, self.latent, x, self.features))
        return outcome

    def loss(
        self,
        y: Float[Tensor, "*batch dim"],
        x: Float[Tensor, "*batch features"],
        *,
        beta: float = 0.01,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean loss of a batch, with one draw of each code.

        Args:
            y: ``[*batch, dim]``.
            x: ``[*batch, features]``.
            beta: price of the divergence, > 0.
            generator: of the draws.
        """
        check_positive("beta", beta)
        mean, scale = law = self.encode(y, x)
        missed = (y - self.decode(law.rsample(generator=generator), x)).square().mean(-1)
        divergence = (mean.square() + scale.square() - 1).sum(-1) / 2 - scale.log().sum(-1)
        return (missed + beta * divergence).mean()


def _perceptron(sizes: tuple[int, ...], generator: torch.Generator | None) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan, out in itertools.pairwise(sizes):
        layers += [linear(fan, out, generator), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def _joined(name: str, value: Tensor, size: int, x: Tensor, features: int) -> Tensor:
    check_same_dtype(**{name: check_floating(name, value), "x": check_floating("x", x)})
    for what, tensor, expected in ((name, value, size), ("x", x, features)):
        if not tensor.ndim or tensor.shape[-1] != expected:
            raise ValueError(f"{what} must have shape [..., {expected}], got {tuple(tensor.shape)}")
    try:
        batch = torch.broadcast_shapes(value.shape[:-1], x.shape[:-1])
    except RuntimeError:
        came = f"{tuple(value.shape)} and {tuple(x.shape)}"
        raise ValueError(f"{name} and x must have batches that broadcast, got {came}") from None
    return torch.cat([value.expand(*batch, size), x.expand(*batch, features)], -1)
