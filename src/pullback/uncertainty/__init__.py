"""Uncertainty with a gradient: weighted particles, filters, Gaussian processes, calibration, regions."""

from __future__ import annotations

from pullback.uncertainty.acquisition import expected_improvement
from pullback.uncertainty.bar_distribution import BarDistribution
from pullback.uncertainty.black_box import BlackBoxTasks, Search
from pullback.uncertainty.calibration import (
    calibration_error,
    pce_sort_loss,
    quantile_calibration_error,
    spacing_entropy,
)
from pullback.uncertainty.chow_liu import chow_liu_tree
from pullback.uncertainty.conformal import (
    ConformalPredictor,
    ConformalQuantiles,
    Interval,
    conformal_quantile,
    conformalize_quantiles,
    split_conformal,
)
from pullback.uncertainty.crps import crps, crps_from_quantiles, crps_from_samples
from pullback.uncertainty.density import kernel_density
from pullback.uncertainty.detection import Detection, detection_metrics
from pullback.uncertainty.ensembles import BestMembers, MLPEnsemble
from pullback.uncertainty.gaussian_evidence import kalman_evidence
from pullback.uncertainty.gaussian_filters import (
    Filtered,
    Smoothed,
    extended_kalman_filter,
    kalman_filter,
    rts_smoother,
    unscented_kalman_filter,
)
from pullback.uncertainty.gaussian_models import LinearGaussian, NonlinearGaussian
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
from pullback.uncertainty.leave_one_out import leave_one_out_residuals
from pullback.uncertainty.log_einsum import log_einsum_exp
from pullback.uncertainty.mixtures import MixtureOfGaussians
from pullback.uncertainty.neural_process import Choice, Decision, NeuralAcquisition, TransformerNeuralProcess
from pullback.uncertainty.online import OnlineFilter, OnlineStep, online_adapt
from pullback.uncertainty.outliers import OutlierState, fit_ood_score, linear_head, ood_score
from pullback.uncertainty.particle_filters import ParticleFiltered, StateSpaceModel, particle_filter
from pullback.uncertainty.quadrature import Quadrature, quadrature
from pullback.uncertainty.recalibration import RecalibratedDistribution, Recalibrator
from pullback.uncertainty.resampling import DegenerateWeights, Resampled, resample
from pullback.uncertainty.reweighting import density_ratio, kernel_mean_matching
from pullback.uncertainty.scoring import pinball_loss
from pullback.uncertainty.search_policy import Played, decide, play, replay
from pullback.uncertainty.shaping import Shaping, feature_contributions, optimal_shaping
from pullback.uncertainty.target_shift import (
    TargetShift,
    Tikhonov,
    conditional_expectation_matrix,
    reference_bandwidth,
    target_shift_weights,
    tikhonov_solve,
)
from pullback.uncertainty.tree_circuit import CircuitWeights, TreeCircuit, circuit_em_step
from pullback.uncertainty.weights import effective_sample_size

__all__ = [
    "RBF",
    "BarDistribution",
    "BestMembers",
    "BlackBoxTasks",
    "Choice",
    "Cholesky",
    "CircuitWeights",
    "ConformalPredictor",
    "ConformalQuantiles",
    "Decision",
    "DegenerateWeights",
    "Detection",
    "Filtered",
    "GaussianProcess",
    "IntegralCircuit",
    "Interval",
    "Kernel",
    "LinearGaussian",
    "MLPEnsemble",
    "Matern",
    "MixtureOfGaussians",
    "NeuralAcquisition",
    "NonlinearGaussian",
    "OnlineFilter",
    "OnlineStep",
    "OutlierState",
    "ParticleFiltered",
    "Periodic",
    "Played",
    "Prediction",
    "Quadrature",
    "RecalibratedDistribution",
    "Recalibrator",
    "Resampled",
    "Search",
    "Shaping",
    "Smoothed",
    "StateSpaceModel",
    "TargetShift",
    "Tikhonov",
    "TransformerNeuralProcess",
    "TreeCircuit",
    "calibration_error",
    "cholesky",
    "chow_liu_tree",
    "circuit_em_step",
    "conditional_expectation_matrix",
    "conformal_quantile",
    "conformalize_quantiles",
    "crps",
    "crps_from_quantiles",
    "crps_from_samples",
    "decide",
    "density_ratio",
    "detection_metrics",
    "effective_sample_size",
    "expected_improvement",
    "extended_kalman_filter",
    "feature_contributions",
    "fit_ood_score",
    "kalman_evidence",
    "kalman_filter",
    "kernel_density",
    "kernel_mean_matching",
    "leave_one_out_residuals",
    "linear_head",
    "log_einsum_exp",
    "online_adapt",
    "ood_score",
    "optimal_shaping",
    "particle_filter",
    "pce_sort_loss",
    "pinball_loss",
    "play",
    "quadrature",
    "quantile_calibration_error",
    "reference_bandwidth",
    "replay",
    "resample",
    "rts_smoother",
    "spacing_entropy",
    "split_conformal",
    "target_shift_weights",
    "tikhonov_solve",
    "unscented_kalman_filter",
]
