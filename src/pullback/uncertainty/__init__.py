"""Uncertainty with a gradient: weighted particles, filters, Gaussian processes, calibration, regions."""

from __future__ import annotations

from pullback.uncertainty.density import kernel_density
from pullback.uncertainty.resampling import DegenerateWeights, Resampled, resample
from pullback.uncertainty.weights import effective_sample_size

__all__ = [
    "DegenerateWeights",
    "Resampled",
    "effective_sample_size",
    "kernel_density",
    "resample",
]
