"""Photographs, and views of a calibration board."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from pullback.core.checks import check_choice
from pullback.core.shapes import Float, Tensor
from pullback.data.cache import DataMissingError, load

__all__ = ["Calibration", "calibration", "photo", "picture"]


class Calibration(NamedTuple):
    """Two cameras that look at a chessboard of 9 x 6 inner corners.

    Attributes:
        left: ``[13, 480, 640]`` float32 grey in [0, 1].
        right: ``[13, 480, 640]`` the same moments.
        matrix: ``[3, 3]`` float64 reference intrinsics of the left camera, pixels.
        distortion: ``[5]`` float64 reference distortion of the left camera: k1, k2, p1, p2, k3.
    """

    left: Float[Tensor, "views height width"]
    right: Float[Tensor, "views height width"]
    matrix: Float[Tensor, "3 3"]
    distortion: Float[Tensor, "5"]


def calibration() -> Calibration:
    """Return the chessboard views of the OpenCV examples with the published intrinsics.

    Raises:
        DataMissingError: the set was not fetched.
    """
    stored = load("calibration")
    return Calibration(
        _unit(stored["left"]),
        _unit(stored["right"]),
        torch.from_numpy(stored["matrix"]),
        torch.from_numpy(stored["distortion"]),
    )


def photo(name: str) -> Float[Tensor, "height width 3"]:
    """Return a picture, float32 RGB in [0, 1]: ``"fruits"``, ``"home"``, ``"baboon"``, ``"starry_night"``, ...

    Raises:
        DataMissingError: the set ``photos`` was not fetched.
        ValueError: ``name`` is unknown.
    """
    stored = load("photos")
    check_choice("name", name, sorted(stored))
    return _unit(stored[name])


def picture(name: str) -> Float[Tensor, "height width 3"]:
    """Return a picture that ships with scikit-image, float32 RGB in [0, 1].

    ``"coffee"`` (400 x 600, a cup on a table, brown), ``"astronaut"`` (512 x 512, a portrait, orange and blue),
    ``"chelsea"`` (300 x 451, a cat), or one of the grey textures ``"brick"``, ``"grass"``, ``"gravel"`` (512 x 512,
    three equal channels).

    Raises:
        DataMissingError: scikit-image is not installed.
        ValueError: ``name`` is unknown.
    """
    check_choice("name", name, ("coffee", "astronaut", "chelsea", "brick", "grass", "gravel"))
    try:
        from skimage import data as pictures
    except ModuleNotFoundError:
        raise DataMissingError("pictures", "pip install 'pullback[lab]'") from None
    pixels = _unit(getattr(pictures, name)())
    return pixels if pixels.ndim == 3 else pixels.unsqueeze(-1).repeat(1, 1, 3)


def _unit(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(255))
