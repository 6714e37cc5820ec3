"""Stereo pairs with true disparity."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from pullback.core.shapes import Bool, Float, Tensor
from pullback.data.cache import DataMissingError

__all__ = ["StereoPair", "motorcycle"]


class StereoPair(NamedTuple):
    """A rectified pair: the point at column ``x`` of ``left`` is at column ``x - disparity`` of ``right``.

    Depth in millimetres is ``baseline * focal / (disparity + offset)``.

    Attributes:
        left: ``[height, width, 3]`` float32 RGB in [0, 1].
        right: ``[height, width, 3]`` the other view.
        disparity: ``[height, width]`` float32 pixels, 0 where it is not known.
        mask: ``[height, width]`` true where the disparity is known.
        focal: focal length, pixels.
        baseline: distance of the two cameras, millimetres.
        offset: horizontal distance of the two principal points, pixels.
        centre: principal point ``(x, y)`` of the left camera, pixels.
    """

    left: Float[Tensor, "height width 3"]
    right: Float[Tensor, "height width 3"]
    disparity: Float[Tensor, "height width"]
    mask: Bool[Tensor, "height width"]
    focal: float
    baseline: float
    offset: float
    centre: tuple[float, float]


def motorcycle() -> StereoPair:
    """Return the Middlebury 2014 motorcycle pair (500 x 741) that ships with scikit-image.

    The camera constants are those of the published ``calib.txt`` (full size 2964 x 1988), scaled to this size by 1/4:
    focal 994.978 px, principal point (311.193, 254.877) px, offset 31.086 px, baseline 193.001 mm.

    Raises:
        DataMissingError: scikit-image is not installed.

    References:
        Scharstein, Hirschmueller, Kitajima, Krathwohl, Nesic, Wang, Westling (GCPR 2014), High-resolution stereo
        datasets with subpixel-accurate ground truth.
    """
    try:
        from skimage.data import stereo_motorcycle
    except ModuleNotFoundError:
        raise DataMissingError("motorcycle", "pip install 'pullback[lab]'") from None
    left, right, disparity = stereo_motorcycle()
    known = np.isfinite(disparity)
    return StereoPair(
        torch.from_numpy(left.astype(np.float32) / np.float32(255)),
        torch.from_numpy(right.astype(np.float32) / np.float32(255)),
        torch.from_numpy(np.where(known, disparity, 0).astype(np.float32)),
        torch.from_numpy(known),
        focal=994.978,
        baseline=193.001,
        offset=31.086,
        centre=(311.193, 254.877),
    )
