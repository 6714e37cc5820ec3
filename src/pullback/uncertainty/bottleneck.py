"""Codes that keep what tells of the target, and little else of the input."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import (
    check_choice,
    check_finite,
    check_floating,
    check_positive,
    check_same_dtype,
    check_scalar,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.uncertainty.divergences import (
    conditional_cauchy_schwarz,
    hsic,
    quadratic_mutual_information,
)

__all__ = ["BottleneckLoss", "InformationBottleneck"]

_PREDICTIONS = ("cs", "mse", "nll")
_COMPRESSIONS = ("cs", "vib", "nib", "hsic")


class BottleneckLoss(NamedTuple):
    """Loss of a bottleneck and its terms.

    Attributes:
        total: prediction + beta compression.
        prediction: how far predictions are from targets.
        compression: what the code knows of the input.
    """

    total: Float[Tensor, ""]
    prediction: Float[Tensor, ""]
    compression: Float[Tensor, ""]


class InformationBottleneck(nn.Module):
    r"""An encoder and a decoder of its code t, with the loss prediction(y, t) + beta compression(x, t).

    ======================  ============================================================================================
    prediction ``"cs"``     :func:`conditional_cauchy_schwarz` of targets and predictions, given x
    ``"mse"``               mean over samples of squared errors
    ``"nll"``               of a normal law: the decoder returns means and logarithms of variances
    compression ``"cs"``    normalised :func:`quadratic_mutual_information` of x and t
    ``"hsic"``              :func:`hsic` of x and t
    ``"vib"``               mean divergence of the normal law of the code from a standard one
    ``"nib"``               a bound on I(x;t) from distances between the normal laws of codes,
                            :math:`-\frac1n\sum_i\log\frac1n\sum_je^{-KL(p_i\|p_j)}`
    ``None``                nothing
    ======================  ============================================================================================

    With ``stochastic=True`` (needed by ``"vib"`` and ``"nib"``) the encoder returns means and logarithms of variances,
    and the code is drawn; predictions are made from the means. Logarithms of variances are held within 30 of 0.

    Args:
        encoder: from ``[n, d]`` to codes ``[n, k]``, or ``[n, 2 k]`` where it is stochastic.
        decoder: from codes to predictions ``[n, q]``, or ``[n, 2 q]`` with ``"nll"``.
        prediction: see above.
        compression: see above.
        beta: weight of the compression, >= 0; may be a tensor without dimensions.
        bandwidths: of the kernels of inputs, codes and targets, each > 0.
        stochastic: draw the code.

    Raises:
        ValueError: a name is unknown, a number out of range, or ``"vib"`` or ``"nib"`` is asked of a code that is not
            drawn.

    Example:
        >>> model = InformationBottleneck(nn.Linear(3, 2), nn.Linear(2, 1), beta=0.1)
        >>> x, y = torch.randn(16, 3), torch.randn(16, 1)
        >>> loss = model.loss(x, y)
        >>> bool(loss.total == loss.prediction + 0.1 * loss.compression), model(x).shape
        (True, torch.Size([16, 1]))

    References:
        Tishby, Pereira, Bialek (1999), The information bottleneck method. Yu, Yu, Lokse, Jenssen, Principe (2024),
        Cauchy-Schwarz divergence information bottleneck for regression. Alemi, Fischer, Dillon, Murphy (2017), vib.
        Kolchinsky, Tracey, Wolpert (2019), nib, equation 10. Wang, Zhan, Wang, Lu (2021), HSIC bottleneck.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        prediction: str = "cs",
        compression: str | None = "cs",
        beta: Scalar = 1e-2,
        bandwidths: tuple[float, float, float] = (1.0, 1.0, 1.0),
        stochastic: bool = False,
    ) -> None:
        super().__init__()
        check_choice("prediction", prediction, _PREDICTIONS)
        if compression is not None:
            check_choice("compression", compression, _COMPRESSIONS)
        check_scalar("beta", beta, zero=True)
        for width in bandwidths:
            check_positive("bandwidths", width)
        if compression in ("vib", "nib") and not stochastic:
            raise ValueError(f"compression {compression!r} needs a code that is drawn: stochastic=True")
        self.encoder, self.decoder = encoder, decoder
        self.prediction, self.compression, self.beta = prediction, compression, beta
        self.bandwidths, self.stochastic = bandwidths, stochastic

    def code(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Return the (mean) code of inputs ``[n, d]``."""
        encoded: Tensor = self.encoder(x)
        return encoded.chunk(2, -1)[0] if self.stochastic else encoded

    def forward(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n q"]:
        """Return predictions from the mean code of inputs ``[n, d]``."""
        decoded: Tensor = self.decoder(self.code(x))
        return decoded.chunk(2, -1)[0] if self.prediction == "nll" else decoded

    def loss(
        self,
        x: Float[Tensor, "n d"],
        y: Float[Tensor, "n q"],
        *,
        beta: Scalar | None = None,
        noise: Float[Tensor, "n k"] | None = None,
        generator: torch.Generator | None = None,
    ) -> BottleneckLoss:
        """Return the loss of a batch.

        Args:
            x: ``[n, d]`` inputs, n >= 4.
            y: ``[n, q]`` targets.
            beta: in place of the module's.
            noise: ``[n, k]`` standard normal draws for the code, in place of fresh ones.
            generator: of fresh ones.

        Returns:
            :class:`BottleneckLoss`.

        Raises:
            ValueError: shapes do not fit, or x or t is constant where its information is asked.
        """
        beta = self.beta if beta is None else beta
        for name, value in (("x", x), ("y", y)):
            if check_floating(name, value).ndim != 2 or not len(value):
                raise ValueError(f"{name} must have shape (n, d) with n >= 1, got {tuple(value.shape)}")
            if can_look(value):
                check_finite(name, value)
        check_same_dtype(x=x, y=y)
        first = self.encoder[0] if isinstance(self.encoder, nn.Sequential) and len(self.encoder) else self.encoder
        if isinstance(first, nn.Linear) and x.shape[-1] != first.in_features:
            raise ValueError(f"x must have shape (n, {first.in_features}), got {tuple(x.shape)}")
        encoded: Tensor = self.encoder(x)
        mean, log_variance = encoded.chunk(2, -1) if self.stochastic else (encoded, encoded)
        log_variance = log_variance.clamp(-_LARGEST, _LARGEST)
        t = mean
        if self.stochastic:
            if noise is None:
                device = drawing_device(generator, mean)
                noise = torch.randn(mean.shape, dtype=mean.dtype, device=device, generator=generator).to(mean.device)
            t = mean + (log_variance / 2).exp() * noise
        prediction = self._prediction(x, y, self.decoder(t))
        width_x, width_t, _ = self.bandwidths
        if self.compression is None:
            compression = torch.zeros_like(prediction)
        elif self.compression == "cs":
            widths = (width_x, width_t)
            compression = quadratic_mutual_information(x, t, bandwidths=widths, normalize=True)
        elif self.compression == "hsic":
            compression = hsic(x, t, bandwidths=(width_x, width_t))
        elif self.compression == "vib":
            compression = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean()
        else:
            compression = _mixture_information(mean, log_variance)
        return BottleneckLoss(prediction + beta * compression, prediction, compression)

    def plane(self, x: Float[Tensor, "n d"], y: Float[Tensor, "n q"]) -> tuple[Tensor, Tensor]:
        """Return the coordinates I_CS(x; t) and I_CS(t; y) of the mean code, normalised.

        Args:
            x: ``[n, d]`` inputs, n >= 4.
            y: ``[n, q]`` targets.

        Returns:
            Two tensors without dimensions.
        """
        width_x, width_t, width_y = self.bandwidths
        t = self.code(x)
        of_input = quadratic_mutual_information(x, t, bandwidths=(width_x, width_t), normalize=True)
        return of_input, quadratic_mutual_information(t, y, bandwidths=(width_t, width_y), normalize=True)

    def _prediction(self, x: Tensor, y: Tensor, decoded: Tensor) -> Tensor:
        outputs = decoded.chunk(2, -1)[0] if self.prediction == "nll" else decoded
        if outputs.shape != y.shape:
            raise ValueError(f"y must have the shape of the predictions, {tuple(outputs.shape)}, got {tuple(y.shape)}")
        if self.prediction == "cs":
            widths = (self.bandwidths[0], self.bandwidths[2])
            return conditional_cauchy_schwarz(x, y, decoded, bandwidths=widths)
        if self.prediction == "mse":
            return (decoded - y).square().sum(-1).mean()
        mean, log_variance = decoded.chunk(2, -1)
        log_variance = log_variance.clamp(-_LARGEST, _LARGEST)
        return 0.5 * ((y - mean).square() * (-log_variance).exp() + log_variance).sum(-1).mean()


def _mixture_information(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Bound by pairwise divergences: ``KL(p_i || p_j)`` of normal laws with diagonal covariances."""
    ratio = log_variance.unsqueeze(-2) - log_variance.unsqueeze(-3)  # by differences: no cancellation
    apart = (mean.unsqueeze(-2) - mean.unsqueeze(-3)).square() * (-log_variance).exp().unsqueeze(-3)
    divergences = 0.5 * (ratio.exp() + apart - 1 - ratio).sum(-1)
    n = torch.tensor(float(mean.shape[-2]), dtype=mean.dtype, device=mean.device)
    return -((-divergences).logsumexp(-1) - n.log()).mean()


_LARGEST = 30.0
"""Beyond it the logarithm of a variance is held: its exponential stays finite."""
