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
from pullback.transport.langevin import LangevinSamples, langevin
from pullback.transport.maps import FittedMap, TransportMapFit, fit_transport_map, unexplained_variance
from pullback.transport.mean_field import (
    DualityGap,
    EntropicFictitiousPlay,
    MeanFieldLangevin,
    duality_gap,
    proximal_gibbs_potential,
)
from pullback.transport.one_dimensional import wasserstein_1d
from pullback.transport.proximal import ProximalState, proximal_sinkhorn
from pullback.transport.pruning import MaskedModel, TransportMask, attach_masks
from pullback.transport.sinkhorn import sinkhorn
from pullback.transport.sliced import sliced_wasserstein

__all__ = [
    "Assignment",
    "DualityGap",
    "EntropicFictitiousPlay",
    "ExactTransport",
    "FittedMap",
    "HessianDefect",
    "InputConvexGradient",
    "InputConvexNetwork",
    "LangevinSamples",
    "MaskedModel",
    "MeanFieldLangevin",
    "MongeGap",
    "ProximalState",
    "SinkhornDivergence",
    "Transport",
    "TransportMapFit",
    "TransportMask",
    "assignment",
    "attach_masks",
    "duality_gap",
    "exact_transport",
    "fit_transport_map",
    "hessian_defect",
    "langevin",
    "line_integral_field",
    "monge_gap",
    "pairwise_cost",
    "proximal_gibbs_potential",
    "proximal_sinkhorn",
    "sinkhorn",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "unexplained_variance",
    "wasserstein_1d",
]
