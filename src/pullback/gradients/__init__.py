"""Probes of gradients: what audit measures with, each a function of its own."""

from pullback.gradients import selective_ops
from pullback.gradients.activations import interpolated_activation
from pullback.gradients.activity import ActivityGradient, activity_forward_gradient
from pullback.gradients.analog import AnalogLayer, leakage_to_std, reduce_precision, std_to_leakage
from pullback.gradients.attribution import Attribution, integrated_gradients, shapley_values
from pullback.gradients.clarke import ClarkeMembership, clarke_contains, nonnegative_least_squares
from pullback.gradients.estimator_error import EstimatorError, estimator_error
from pullback.gradients.evolution import EvolutionGradient, evolution_gradient
from pullback.gradients.forward import ForwardGradient, ForwardGradientDescent, forward_gradient
from pullback.gradients.forward_rules import MissingRule, missing_forward_rules
from pullback.gradients.gradient_noise import gradient_cosine, gradient_noise
from pullback.gradients.horizon import GradientHorizon, gradient_horizon
from pullback.gradients.impossibility import (
    AdversarialPair,
    OperatingCurve,
    adversarial_pair,
    hypothesis_test_curve,
)
from pullback.gradients.kink_report import KinkReport, OneSidedSlopes, TouchedKink, kink_report
from pullback.gradients.kinks import KINKS, Kink, kink_distance
from pullback.gradients.landscape import LossSlice, loss_slice
from pullback.gradients.local_behaviour import LocalBehaviour, local_behaviour
from pullback.gradients.lyapunov import LyapunovSpectrum, lyapunov_spectrum
from pullback.gradients.machine_parameters import NondifferentiableCount, count_nondifferentiable, minifloats
from pullback.gradients.memory import SavedBytes, saved_bytes
from pullback.gradients.needed import needed_for_backward
from pullback.gradients.permutation import permutation_importance
from pullback.gradients.profile import DerivativeProfile, SensitivityRanking, derivative_profile, sensitivity_ranking
from pullback.gradients.proximal import ProximalSGD
from pullback.gradients.rank_correlation import rank_correlation
from pullback.gradients.rates import ConvergenceRate, convergence_rate, oscillation_amplitude
from pullback.gradients.selective import Conversion, restore, selective
from pullback.gradients.sharpness import Sharpness, sharpness
from pullback.gradients.signal import GradientSignal, LayerSignal, gradient_signal, signal_propagation
from pullback.gradients.smoothness import LocalSmoothness, RelaxedSmoothness, fit_smoothness, local_smoothness
from pullback.gradients.spectrum import JacobianSpectrum, jacobian_spectrum
from pullback.gradients.unrolled import unrolled_losses
from pullback.gradients.variance import GradientVariance, gradient_variance

__all__ = [
    "KINKS",
    "ActivityGradient",
    "AdversarialPair",
    "AnalogLayer",
    "Attribution",
    "ClarkeMembership",
    "ConvergenceRate",
    "Conversion",
    "DerivativeProfile",
    "EstimatorError",
    "EvolutionGradient",
    "ForwardGradient",
    "ForwardGradientDescent",
    "GradientHorizon",
    "GradientSignal",
    "GradientVariance",
    "JacobianSpectrum",
    "Kink",
    "KinkReport",
    "LayerSignal",
    "LocalBehaviour",
    "LocalSmoothness",
    "LossSlice",
    "LyapunovSpectrum",
    "MissingRule",
    "NondifferentiableCount",
    "OneSidedSlopes",
    "OperatingCurve",
    "ProximalSGD",
    "RelaxedSmoothness",
    "SavedBytes",
    "SensitivityRanking",
    "Sharpness",
    "TouchedKink",
    "activity_forward_gradient",
    "adversarial_pair",
    "clarke_contains",
    "convergence_rate",
    "count_nondifferentiable",
    "derivative_profile",
    "estimator_error",
    "evolution_gradient",
    "fit_smoothness",
    "forward_gradient",
    "gradient_cosine",
    "gradient_horizon",
    "gradient_noise",
    "gradient_signal",
    "gradient_variance",
    "hypothesis_test_curve",
    "integrated_gradients",
    "interpolated_activation",
    "jacobian_spectrum",
    "kink_distance",
    "kink_report",
    "leakage_to_std",
    "local_behaviour",
    "local_smoothness",
    "loss_slice",
    "lyapunov_spectrum",
    "minifloats",
    "missing_forward_rules",
    "needed_for_backward",
    "nonnegative_least_squares",
    "oscillation_amplitude",
    "permutation_importance",
    "rank_correlation",
    "reduce_precision",
    "restore",
    "saved_bytes",
    "selective",
    "selective_ops",
    "sensitivity_ranking",
    "shapley_values",
    "sharpness",
    "signal_propagation",
    "std_to_leakage",
    "unrolled_losses",
]
