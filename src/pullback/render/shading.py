"""Neural shading: from rendered features to colours."""

from __future__ import annotations

import torch
from torch import nn

from pullback.core.checks import check_floating, check_integer, check_same_dtype, check_shape
from pullback.core.shapes import Float, Tensor

__all__ = ["NeuralShader"]


class NeuralShader(nn.Module):
    """A small U-Net that turns a rendered feature map into an RGB image.

    Two 3 x 3 convolutions at full size, two at half size, their result brought back and joined with the first, and a
    sigmoid. The first three channels are not treated as colours: all channels are features.

    Args:
        channels: of the feature map, >= 1.
        hidden: width of the full-size layers, >= 1; twice that at half size.

    Raises:
        ValueError: ``channels`` or ``hidden`` < 1.

    Example:
        >>> NeuralShader(8, 16)(torch.zeros(8, 5, 7)).shape
        torch.Size([3, 5, 7])

    References:
        Lassner, Zollhoefer (CVPR 2021), Pulsar, section 4.3; Ronneberger, Fischer, Brox (2015), U-Net.
    """

    def __init__(self, channels: int, hidden: int = 16) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("hidden", hidden)):
            check_integer(name, value, 1)
        self.channels = channels
        self.fine = _twice(channels, hidden)
        self.coarse = _twice(hidden, 2 * hidden)
        self.joined = nn.Sequential(_twice(3 * hidden, hidden), nn.Conv2d(hidden, 3, 1))

    def forward(
        self, features: Float[Tensor, "*batch channels height width"]
    ) -> Float[Tensor, "*batch 3 height width"]:
        """Return colours in (0, 1), ``[*batch, 3, height, width]``.

        Raises:
            TypeError: ``features`` is not floating, or of another dtype than the weights.
            ValueError: another number of channels, no pixels, or on another device than the weights.
        """
        check_shape("features", check_floating("features", features), (self.channels, None, None))
        if not all(features.shape[-2:]):
            raise ValueError(f"features must have pixels, got shape {tuple(features.shape)}")
        check_same_dtype(features=features, weights=next(self.parameters()))
        flat = features.reshape(features.shape[:-3].numel(), *features.shape[-3:])
        fine = self.fine(flat)
        # ceil_mode keeps the last row and column of odd sizes, and an image of one pixel.
        coarse = self.coarse(nn.functional.avg_pool2d(fine, 2, ceil_mode=True))
        back = nn.functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        shaded = torch.sigmoid(self.joined(torch.cat([fine, back], 1)))
        return shaded.reshape(*features.shape[:-3], *shaded.shape[-3:])


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.SiLU()
    )
