"""Uncertainty with a gradient: weighted particles, filters, Gaussian processes, calibration, regions."""

from __future__ import annotations

from pullback.uncertainty.chow_liu import chow_liu_tree
from pullback.uncertainty.conformal import (
    ConformalPredictor,
    ConformalQuantiles,
    Interval,
    conformal_quantile,
    conformalize_quantiles,
    split_conformal,
)
from pullback.uncertainty.density import kernel_density
from pullback.uncertainty.integral_circuit import IntegralCircuit
from pullback.uncertainty.log_einsum import log_einsum_exp
from pullback.uncertainty.quadrature import Quadrature, quadrature
from pullback.uncertainty.resampling import DegenerateWeights, Resampled, resample
from pullback.uncertainty.scoring import pinball_loss
from pullback.uncertainty.tree_circuit import CircuitWeights, TreeCircuit, circuit_em_step
from pullback.uncertainty.weights import effective_sample_size

__all__ = [
    "CircuitWeights",
    "ConformalPredictor",
    "ConformalQuantiles",
    "DegenerateWeights",
    "IntegralCircuit",
    "Interval",
    "Quadrature",
    "Resampled",
    "TreeCircuit",
    "chow_liu_tree",
    "circuit_em_step",
    "conformal_quantile",
    "conformalize_quantiles",
    "effective_sample_size",
    "kernel_density",
    "log_einsum_exp",
    "pinball_loss",
    "quadrature",
    "resample",
    "split_conformal",
]
