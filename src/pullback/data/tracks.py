"""Recorded tracks and traces."""

from __future__ import annotations

import numpy as np
import torch

from pullback.core.shapes import Float, Tensor
from pullback.data.cache import load

__all__ = ["glucose_trace", "ride"]

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


def glucose_trace() -> tuple[Float[Tensor, "readings"], Float[Tensor, "readings"]]:
    """Return minutes since a midnight and glucose (mg/dl) of half a year of one patient's continuous monitor.

    52 281 readings in float64 in order of time, 5 minutes apart as a rule; 125 gaps are longer than half an hour. The
    monitor shows 40 to 400 mg/dl. What was eaten and injected was not kept. Some readings bear the same minute as the
    one before: the clock was set back.

    Raises:
        DataMissingError: the set was not fetched.
    """
    stored = load("glucose")
    order = np.argsort(stored["minutes"], kind="stable")
    return torch.from_numpy(stored["minutes"][order]), torch.from_numpy(stored["glucose"][order])
