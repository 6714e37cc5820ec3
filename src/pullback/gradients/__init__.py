"""Probes of gradients: what audit measures with, each a function of its own."""

from pullback.gradients.activity import ActivityGradient, activity_forward_gradient
from pullback.gradients.attribution import Attribution, integrated_gradients, shapley_values
from pullback.gradients.estimator_error import EstimatorError, estimator_error
from pullback.gradients.evolution import EvolutionGradient, evolution_gradient
from pullback.gradients.forward import ForwardGradient, ForwardGradientDescent, forward_gradient
from pullback.gradients.forward_rules import MissingRule, missing_forward_rules
from pullback.gradients.impossibility import (
    AdversarialPair,
    OperatingCurve,
    adversarial_pair,
    hypothesis_test_curve,
)
from pullback.gradients.kinks import KINKS, kink_distance
from pullback.gradients.local_behaviour import LocalBehaviour, local_behaviour
from pullback.gradients.lyapunov import LyapunovSpectrum, lyapunov_spectrum
from pullback.gradients.memory import SavedBytes, saved_bytes
from pullback.gradients.proximal import ProximalSGD
from pullback.gradients.rates import ConvergenceRate, convergence_rate, oscillation_amplitude
from pullback.gradients.sharpness import Sharpness, sharpness

__all__ = [
    "KINKS",
    "ActivityGradient",
    "AdversarialPair",
    "Attribution",
    "ConvergenceRate",
    "EstimatorError",
    "EvolutionGradient",
    "ForwardGradient",
    "ForwardGradientDescent",
    "LocalBehaviour",
    "LyapunovSpectrum",
    "MissingRule",
    "OperatingCurve",
    "ProximalSGD",
    "SavedBytes",
    "Sharpness",
    "activity_forward_gradient",
    "adversarial_pair",
    "convergence_rate",
    "estimator_error",
    "evolution_gradient",
    "forward_gradient",
    "hypothesis_test_curve",
    "integrated_gradients",
    "kink_distance",
    "local_behaviour",
    "lyapunov_spectrum",
    "missing_forward_rules",
    "oscillation_amplitude",
    "saved_bytes",
    "shapley_values",
    "sharpness",
]
