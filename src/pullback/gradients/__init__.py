"""Probes of gradients: what audit measures with, each a function of its own."""

from pullback.gradients.estimator_error import EstimatorError, estimator_error
from pullback.gradients.evolution import EvolutionGradient, evolution_gradient
from pullback.gradients.kinks import KINKS, kink_distance
from pullback.gradients.lyapunov import LyapunovSpectrum, lyapunov_spectrum
from pullback.gradients.memory import SavedBytes, saved_bytes

__all__ = [
    "KINKS",
    "EstimatorError",
    "EvolutionGradient",
    "LyapunovSpectrum",
    "SavedBytes",
    "estimator_error",
    "evolution_gradient",
    "kink_distance",
    "lyapunov_spectrum",
    "saved_bytes",
]
