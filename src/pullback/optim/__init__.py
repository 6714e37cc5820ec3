"""First-order methods for more than one smooth loss: many losses at once, and games."""

from pullback.optim.aggregation import Aggregation, aggregate, aggregation_weights
from pullback.optim.conflict import (
    AggregatorProperties,
    Conflict,
    ParetoStationarity,
    conflict,
    pareto_stationarity,
    properties_of,
)
from pullback.optim.gramian import LossGramian, loss_gramian
from pullback.optim.instance_losses import instance_losses
from pullback.optim.jacobian_descent import JacobianBackward, jacobian_backward
from pullback.optim.upgrad import upgrad_weights

__all__ = [
    "Aggregation",
    "AggregatorProperties",
    "Conflict",
    "JacobianBackward",
    "LossGramian",
    "ParetoStationarity",
    "aggregate",
    "aggregation_weights",
    "conflict",
    "instance_losses",
    "jacobian_backward",
    "loss_gramian",
    "pareto_stationarity",
    "properties_of",
    "upgrad_weights",
]
