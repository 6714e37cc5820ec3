"""Uncertainty with a gradient: weighted particles, filters, Gaussian processes, calibration, regions."""

from __future__ import annotations

from pullback.uncertainty.acquisition import expected_improvement
from pullback.uncertainty.attacks import fgsm, pgd
from pullback.uncertainty.bar_distribution import BarDistribution
from pullback.uncertainty.belief_propagation import nonparametric_belief_propagation
from pullback.uncertainty.black_box import BlackBoxTasks, Search
from pullback.uncertainty.bottleneck import BottleneckLoss, InformationBottleneck
from pullback.uncertainty.calibration import (
    calibration_error,
    pce_sort_loss,
    quantile_calibration_error,
    spacing_entropy,
)
from pullback.uncertainty.chow_liu import chow_liu_tree
from pullback.uncertainty.conditional_vae import ConditionalVAE, LatentLaw
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
from pullback.uncertainty.directional import DirectionalQuantiles, directional_quantile_loss
from pullback.uncertainty.directions import unit_directions
from pullback.uncertainty.divergences import (
    cauchy_schwarz_divergence,
    conditional_cauchy_schwarz,
    gaussian_cauchy_schwarz,
    hsic,
    median_bandwidth,
    mmd,
    quadratic_mutual_information,
)
from pullback.uncertainty.ensembles import BestMembers, MLPEnsemble
from pullback.uncertainty.factors import PairwiseFactor, UnaryFactor
from pullback.uncertainty.gaussian_beliefs import GaussianBeliefs, gaussian_belief_propagation
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
from pullback.uncertainty.histogram_filter import (
    FilteredBeliefs,
    belief_loss,
    compass_turns,
    egocentric_kernels,
    expected_distance,
    histogram_filter,
    motion_kernel,
    shift_belief,
)
from pullback.uncertainty.instructions import Attended, DecodedSteps, InstructionDecoder, LingUNet, attend
from pullback.uncertainty.integral_circuit import IntegralCircuit
from pullback.uncertainty.leave_one_out import leave_one_out_residuals
from pullback.uncertainty.log_einsum import log_einsum_exp
from pullback.uncertainty.messages import Beliefs, EdgePotential, FactorLosses, PulledMessages, pull_messages
from pullback.uncertainty.mixtures import MixtureOfGaussians
from pullback.uncertainty.neural_process import Choice, Decision, NeuralAcquisition, TransformerNeuralProcess
from pullback.uncertainty.online import OnlineFilter, OnlineStep, online_adapt
from pullback.uncertainty.outliers import OutlierState, fit_ood_score, linear_head, ood_score
from pullback.uncertainty.particle_filters import ParticleFiltered, StateSpaceModel, particle_filter
from pullback.uncertainty.potentials import DistancePotential, NormalPotential
from pullback.uncertainty.proposals import propose_points
from pullback.uncertainty.quadrature import Quadrature, quadrature
from pullback.uncertainty.recalibration import RecalibratedDistribution, Recalibrator
from pullback.uncertainty.region_calibration import ConformalRegion, conformalize_region, region_area
from pullback.uncertainty.regions import (
    BoxRegion,
    EllipsoidRegion,
    HalfspaceRegion,
    InteriorPoint,
    PointCloudRegion,
    Region,
)
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
from pullback.uncertainty.tracking import BeliefTracker
from pullback.uncertainty.tree_circuit import CircuitWeights, TreeCircuit, circuit_em_step
from pullback.uncertainty.unary_maps import ImageFactors, UnaryMaps
from pullback.uncertainty.weights import effective_sample_size

__all__ = [
    "RBF",
    "Attended",
    "BarDistribution",
    "BeliefTracker",
    "Beliefs",
    "BestMembers",
    "BlackBoxTasks",
    "BottleneckLoss",
    "BoxRegion",
    "Choice",
    "Cholesky",
    "CircuitWeights",
    "ConditionalVAE",
    "ConformalPredictor",
    "ConformalQuantiles",
    "ConformalRegion",
    "Decision",
    "DecodedSteps",
    "DegenerateWeights",
    "Detection",
    "DirectionalQuantiles",
    "DistancePotential",
    "EdgePotential",
    "EllipsoidRegion",
    "FactorLosses",
    "Filtered",
    "FilteredBeliefs",
    "GaussianBeliefs",
    "GaussianProcess",
    "HalfspaceRegion",
    "ImageFactors",
    "InformationBottleneck",
    "InstructionDecoder",
    "IntegralCircuit",
    "InteriorPoint",
    "Interval",
    "Kernel",
    "LatentLaw",
    "LinearGaussian",
    "LingUNet",
    "MLPEnsemble",
    "Matern",
    "MixtureOfGaussians",
    "NeuralAcquisition",
    "NonlinearGaussian",
    "NormalPotential",
    "OnlineFilter",
    "OnlineStep",
    "OutlierState",
    "PairwiseFactor",
    "ParticleFiltered",
    "Periodic",
    "Played",
    "PointCloudRegion",
    "Prediction",
    "PulledMessages",
    "Quadrature",
    "RecalibratedDistribution",
    "Recalibrator",
    "Region",
    "Resampled",
    "Search",
    "Shaping",
    "Smoothed",
    "StateSpaceModel",
    "TargetShift",
    "Tikhonov",
    "TransformerNeuralProcess",
    "TreeCircuit",
    "UnaryFactor",
    "UnaryMaps",
    "attend",
    "belief_loss",
    "calibration_error",
    "cauchy_schwarz_divergence",
    "cholesky",
    "chow_liu_tree",
    "circuit_em_step",
    "compass_turns",
    "conditional_cauchy_schwarz",
    "conditional_expectation_matrix",
    "conformal_quantile",
    "conformalize_quantiles",
    "conformalize_region",
    "crps",
    "crps_from_quantiles",
    "crps_from_samples",
    "decide",
    "density_ratio",
    "detection_metrics",
    "directional_quantile_loss",
    "effective_sample_size",
    "egocentric_kernels",
    "expected_distance",
    "expected_improvement",
    "extended_kalman_filter",
    "feature_contributions",
    "fgsm",
    "fit_ood_score",
    "gaussian_belief_propagation",
    "gaussian_cauchy_schwarz",
    "histogram_filter",
    "hsic",
    "kalman_evidence",
    "kalman_filter",
    "kernel_density",
    "kernel_mean_matching",
    "leave_one_out_residuals",
    "linear_head",
    "log_einsum_exp",
    "median_bandwidth",
    "mmd",
    "motion_kernel",
    "nonparametric_belief_propagation",
    "online_adapt",
    "ood_score",
    "optimal_shaping",
    "particle_filter",
    "pce_sort_loss",
    "pgd",
    "pinball_loss",
    "play",
    "propose_points",
    "pull_messages",
    "quadratic_mutual_information",
    "quadrature",
    "quantile_calibration_error",
    "reference_bandwidth",
    "region_area",
    "replay",
    "resample",
    "rts_smoother",
    "shift_belief",
    "spacing_entropy",
    "split_conformal",
    "target_shift_weights",
    "tikhonov_solve",
    "unit_directions",
    "unscented_kalman_filter",
]
