"""Time with a gradient: ODE solvers and their adjoints, events, neural and latent ODEs, continuous flows."""

from __future__ import annotations

from pullback.dynamics.comparison import AdjointComparison, compare_adjoints
from pullback.dynamics.continuous_flow import ContinuousFlow, FlowSample, GatedField
from pullback.dynamics.convergence import ConvergenceOrder, convergence_order
from pullback.dynamics.events import Event
from pullback.dynamics.latent_ode import BackwardsEncoder, EvidenceLowerBound, LatentODE
from pullback.dynamics.networks import ConvolutionalField, NeuralField
from pullback.dynamics.neural_ode import NeuralODE
from pullback.dynamics.odeint import ODESolution, odeint
from pullback.dynamics.planar_flow import PlanarFlow

__all__ = [
    "AdjointComparison",
    "BackwardsEncoder",
    "ContinuousFlow",
    "ConvergenceOrder",
    "ConvolutionalField",
    "Event",
    "EvidenceLowerBound",
    "FlowSample",
    "GatedField",
    "LatentODE",
    "NeuralField",
    "NeuralODE",
    "ODESolution",
    "PlanarFlow",
    "compare_adjoints",
    "convergence_order",
    "odeint",
]
