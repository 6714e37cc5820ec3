"""Recorded tracks."""

from __future__ import annotations

import numpy as np
import torch

from pullback.core.shapes import Float, Tensor
from pullback.data.cache import load

__all__ = ["ride"]

_DEGREE = 111_194.93
"""Metres of a degree of latitude, on a sphere of 6 371 km."""


def ride() -> Float[Tensor, "points 3"]:
    """Return the GPS track of a mountain bike marathon: metres to the east, to the north and up, from its start.

    978 points in float64, in the order of the ride, some 33 m apart: the logger kept more of them where the way turns.
    It did not keep their times.

    Raises:
        DataMissingError: the set was not fetched.
    """
    track = load("ride")["track"]
    away = track - track[0]
    east = away[:, 0] * _DEGREE * np.cos(np.deg2rad(track[0, 1]))
    return torch.from_numpy(np.stack([east, away[:, 1] * _DEGREE, away[:, 2]], 1))
