"""Recorded tracks and traces."""

from __future__ import annotations

import numpy as np
import torch

from pullback.core.checks import check_integer, check_positive
from pullback.core.shapes import Float, Tensor
from pullback.data.cache import load

__all__ = ["even_windows", "glucose_trace", "ride"]

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

    52 281 readings in float64 in order of time, 5 minutes apart as a rule; 125 gaps are longer than half an hour, three
    readings bear the minute of the one before. The monitor shows 40 to 400 mg/dl. What was eaten and injected was not
    kept.

    Raises:
        DataMissingError: the set was not fetched.
    """
    stored = load("glucose")
    return torch.from_numpy(stored["minutes"]), torch.from_numpy(stored["glucose"])


def even_windows(
    times: Float[Tensor, "n"], values: Float[Tensor, "n"], *, step: float, length: int
) -> Float[Tensor, "windows length"]:
    """Cut a trace into windows without gaps that do not overlap.

    Within a window two readings are ``step`` apart, give or take 30 %; a longer or shorter way ends a run.

    Args:
        times: ``[n]`` in order.
        values: ``[n]``.
        step: > 0, in the units of times.
        length: readings of a window, >= 1.

    Returns:
        ``[windows, length]`` in order of time; none where no run is long enough.

    Raises:
        ValueError: times and values of other shapes, a number out of range.

    Example:
        >>> even_windows(torch.tensor([0.0, 1, 2, 3, 9, 10, 11]), torch.arange(7.0), step=1.0, length=2).tolist()
        [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    """
    if times.ndim != 1 or times.shape != values.shape:
        raise ValueError(f"times and values must have one shape [n], got {tuple(times.shape)}, {tuple(values.shape)}")
    check_positive("step", step)
    check_integer("length", length, 1)
    ends = ((times.diff() - step).abs() > 0.3 * step).nonzero()[:, 0] + 1
    runs = values.tensor_split(ends)
    return torch.cat([run[: len(run) // length * length].reshape(-1, length) for run in runs])
