"""Photographs with known cameras: what a scene is fitted to."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_same_dtype, check_shape
from pullback.core.shapes import Float, Int, Tensor
from pullback.geometry import Camera

__all__ = ["Views"]


class Views(NamedTuple):
    """Images with the cameras that saw them, some of whose pixels may not be known.

    Attributes:
        cameras: a batch of ``v``.
        images: ``[v, channels, height, width]``.
        known: ``[v, 1, height, width]`` the weight of a pixel: 1 where it is known, 0 where it is not.

    Example:
        >>> cameras = Camera.pinhole(10.0, (1, 2), camera_from_world=torch.eye(4).expand(3, 4, 4))
        >>> views = Views(cameras, torch.ones(3, 1, 1, 2), torch.tensor([1.0, 0.0]).expand(3, 1, 1, 2))
        >>> views.pick([0, 2]).error(torch.tensor([[[[3.0, 9.0]]]] * 2)).item()
        4.0
    """

    cameras: Camera
    images: Float[Tensor, "v channels height width"]
    known: Float[Tensor, "v 1 height width"]

    def pick(self, chosen: list[int] | Int[Tensor, "k"]) -> Views:
        """Return the views of these numbers."""
        index = torch.as_tensor(chosen, device=self.images.device)
        return Views(self.cameras[index], self.images[index], self.known[index])

    def mean(self) -> Float[Tensor, "channels"]:
        """Return the mean colour of the known pixels."""
        return (self.images * self.known).sum((0, 2, 3)) / self.known.sum()

    def error(self, rendered: Float[Tensor, "v channels height width"]) -> Float[Tensor, ""]:
        """Return the mean squared error of the known pixels.

        Raises:
            TypeError: ``rendered`` is of another dtype.
            ValueError: ``rendered`` has another shape.
        """
        check_shape("rendered", rendered, tuple(self.images.shape))
        check_same_dtype(rendered=rendered, images=self.images)
        # Not by products: what is rendered where nothing is known may be anything.
        wrong = torch.where(self.known > 0, rendered - self.images, 0.0).square() * self.known
        return wrong.sum() / (self.images.shape[1] * self.known.sum())
