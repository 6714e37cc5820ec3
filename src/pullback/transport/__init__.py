"""Optimal transport with a gradient: exact and entropic plans, divergences, maps."""

from __future__ import annotations

from pullback.transport.convex import (
    HessianDefect,
    InputConvexGradient,
    InputConvexNetwork,
    hessian_defect,
    line_integral_field,
)
from pullback.transport.costs import pairwise_cost
from pullback.transport.divergence import MongeGap, SinkhornDivergence, monge_gap, sinkhorn_divergence
from pullback.transport.entropic import Transport
from pullback.transport.exact import Assignment, ExactTransport, assignment, exact_transport
from pullback.transport.maps import FittedMap, TransportMapFit, fit_transport_map, unexplained_variance
from pullback.transport.one_dimensional import wasserstein_1d
from pullback.transport.sinkhorn import sinkhorn
from pullback.transport.sliced import sliced_wasserstein

__all__ = [
    "Assignment",
    "ExactTransport",
    "FittedMap",
    "HessianDefect",
    "InputConvexGradient",
    "InputConvexNetwork",
    "MongeGap",
    "SinkhornDivergence",
    "Transport",
    "TransportMapFit",
    "assignment",
    "exact_transport",
    "fit_transport_map",
    "hessian_defect",
    "line_integral_field",
    "monge_gap",
    "pairwise_cost",
    "sinkhorn",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "unexplained_variance",
    "wasserstein_1d",
]
