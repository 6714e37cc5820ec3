"""First-order methods for more than one smooth loss: many losses at once, and games."""

from pullback.core.elementwise import FunctionalOptimizer, functional
from pullback.optim.aggregation import Aggregation, aggregate, aggregation_weights
from pullback.optim.averaging import IterateAverage, ScheduleFreeSGD
from pullback.optim.complex_momentum import ComplexMomentumAdam, ComplexMomentumSGD
from pullback.optim.conflict import (
    AggregatorProperties,
    Conflict,
    ParetoStationarity,
    conflict,
    pareto_stationarity,
    properties_of,
)
from pullback.optim.games import Round, game_gradient, game_spectrum, play
from pullback.optim.goldstein import goldstein_norm
from pullback.optim.gramian import LossGramian, loss_gramian
from pullback.optim.instance_losses import instance_losses
from pullback.optim.jacobian_descent import JacobianBackward, jacobian_backward
from pullback.optim.metric_projection import projection_ball_in_metric
from pullback.optim.mirror import MirrorDescent, bregman, mirror_step
from pullback.optim.momentum_radius import TunedMomentum, momentum_radius, tune_momentum
from pullback.optim.normalized_momentum import NormalizedMomentumSGD
from pullback.optim.online_descent import OnlineDescent
from pullback.optim.online_ensemble import OnlineEnsemble
from pullback.optim.online_to_nonconvex import HorizonPlan, OnlineToNonconvex, horizon_plan
from pullback.optim.optimistic import Extragradient, OptimisticAdam, OptimisticSGD
from pullback.optim.optimistic_mirror import OptimisticMirrorDescent
from pullback.optim.regret import Regret, online_regret
from pullback.optim.schedules import LinearDecay, SqrtDecay, step_sizes, worst_case_subgradient
from pullback.optim.upgrad import upgrad_weights

__all__ = [
    "Aggregation",
    "AggregatorProperties",
    "ComplexMomentumAdam",
    "ComplexMomentumSGD",
    "Conflict",
    "Extragradient",
    "FunctionalOptimizer",
    "HorizonPlan",
    "IterateAverage",
    "JacobianBackward",
    "LinearDecay",
    "LossGramian",
    "MirrorDescent",
    "NormalizedMomentumSGD",
    "OnlineDescent",
    "OnlineEnsemble",
    "OnlineToNonconvex",
    "OptimisticAdam",
    "OptimisticMirrorDescent",
    "OptimisticSGD",
    "ParetoStationarity",
    "Regret",
    "Round",
    "ScheduleFreeSGD",
    "SqrtDecay",
    "TunedMomentum",
    "aggregate",
    "aggregation_weights",
    "bregman",
    "conflict",
    "functional",
    "game_gradient",
    "game_spectrum",
    "goldstein_norm",
    "horizon_plan",
    "instance_losses",
    "jacobian_backward",
    "loss_gramian",
    "mirror_step",
    "momentum_radius",
    "online_regret",
    "pareto_stationarity",
    "play",
    "projection_ball_in_metric",
    "properties_of",
    "step_sizes",
    "tune_momentum",
    "upgrad_weights",
    "worst_case_subgradient",
]
