"""Uncertainty with a gradient: weighted particles, filters, Gaussian processes, calibration, regions."""

from __future__ import annotations

from pullback.uncertainty.acquisition import expected_improvement
from pullback.uncertainty.bar_distribution import BarDistribution
from pullback.uncertainty.black_box import BlackBoxTasks, Search
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
from pullback.uncertainty.detection import Detection, detection_metrics
from pullback.uncertainty.gaussian_process import (
    RBF,
    Cholesky,
    GaussianProcess,
    Kernel,
    Matern,
    Periodic,
    Prediction,
    cholesky,
)
from pullback.uncertainty.integral_circuit import IntegralCircuit
from pullback.uncertainty.log_einsum import log_einsum_exp
from pullback.uncertainty.neural_process import Choice, Decision, NeuralAcquisition, TransformerNeuralProcess
from pullback.uncertainty.outliers import OutlierState, fit_ood_score, linear_head, ood_score
from pullback.uncertainty.quadrature import Quadrature, quadrature
from pullback.uncertainty.resampling import DegenerateWeights, Resampled, resample
from pullback.uncertainty.scoring import pinball_loss
from pullback.uncertainty.shaping import Shaping, feature_contributions, optimal_shaping
from pullback.uncertainty.tree_circuit import CircuitWeights, TreeCircuit, circuit_em_step
from pullback.uncertainty.weights import effective_sample_size

__all__ = [
    "RBF",
    "BarDistribution",
    "BlackBoxTasks",
    "Choice",
    "Cholesky",
    "CircuitWeights",
    "ConformalPredictor",
    "ConformalQuantiles",
    "Decision",
    "DegenerateWeights",
    "Detection",
    "GaussianProcess",
    "IntegralCircuit",
    "Interval",
    "Kernel",
    "Matern",
    "NeuralAcquisition",
    "OutlierState",
    "Periodic",
    "Prediction",
    "Quadrature",
    "Resampled",
    "Search",
    "Shaping",
    "TransformerNeuralProcess",
    "TreeCircuit",
    "cholesky",
    "chow_liu_tree",
    "circuit_em_step",
    "conformal_quantile",
    "conformalize_quantiles",
    "detection_metrics",
    "effective_sample_size",
    "expected_improvement",
    "feature_contributions",
    "fit_ood_score",
    "kernel_density",
    "linear_head",
    "log_einsum_exp",
    "ood_score",
    "optimal_shaping",
    "pinball_loss",
    "quadrature",
    "resample",
    "split_conformal",
]
