"""Time with a gradient: ODE solvers and their adjoints, events, neural and latent ODEs, continuous flows."""

from __future__ import annotations

from pullback.dynamics.adjoints import ADJOINTS
from pullback.dynamics.chaotic import colliding_discs, double_pendulum, lorenz, rk4_step
from pullback.dynamics.continuous_flow import ContinuousFlow, FlowSample, GatedField
from pullback.dynamics.convergence import ConvergenceOrder, convergence_order
from pullback.dynamics.events import Event
from pullback.dynamics.latent_ode import BackwardsEncoder, EvidenceLowerBound, LatentODE
from pullback.dynamics.methods import METHODS
from pullback.dynamics.networks import ConvolutionalField, NeuralField, ResidualBlock
from pullback.dynamics.neural_ode import NeuralODE
from pullback.dynamics.odeint import ODESolution, odeint
from pullback.dynamics.oscillators import duffing, lotka_volterra, van_der_pol
from pullback.dynamics.planar_flow import PlanarFlow
from pullback.dynamics.policy_gradient import Advantages, PolicyLoss, generalized_advantage, ppo_loss
from pullback.dynamics.recurrent import AutoregressiveRNN, LatentRNN
from pullback.dynamics.tableaux import Tableau

__all__ = [
    "ADJOINTS",
    "METHODS",
    "Advantages",
    "AutoregressiveRNN",
    "BackwardsEncoder",
    "ContinuousFlow",
    "ConvergenceOrder",
    "ConvolutionalField",
    "Event",
    "EvidenceLowerBound",
    "FlowSample",
    "GatedField",
    "LatentODE",
    "LatentRNN",
    "NeuralField",
    "NeuralODE",
    "ODESolution",
    "PlanarFlow",
    "PolicyLoss",
    "ResidualBlock",
    "Tableau",
    "colliding_discs",
    "convergence_order",
    "double_pendulum",
    "duffing",
    "generalized_advantage",
    "lorenz",
    "lotka_volterra",
    "odeint",
    "ppo_loss",
    "rk4_step",
    "van_der_pol",
]
