"""Optimal transport with a gradient: exact and entropic plans, divergences, maps."""

from __future__ import annotations

from pullback.transport.barycenters import Barycenter, FreeBarycenter, barycenter, free_support_barycenter
from pullback.transport.convex import (
    HessianDefect,
    InputConvexGradient,
    InputConvexNetwork,
    hessian_defect,
    line_integral_field,
)
from pullback.transport.convex_costs import PowerCost
from pullback.transport.costs import pairwise_cost
from pullback.transport.distillation import (
    FeatureBank,
    LayerFeatures,
    LayerOutputs,
    LocalTransport,
    WassersteinCritic,
    distillation_loss,
    local_transport_loss,
    wasserstein_mutual_information,
)
from pullback.transport.divergence import MongeGap, SinkhornDivergence, monge_gap, sinkhorn_divergence
from pullback.transport.entropic import Transport
from pullback.transport.exact import Assignment, ExactTransport, assignment, exact_transport
from pullback.transport.functionals import (
    GeneralizedEntropy,
    JensenShannon,
    ReferenceLaw,
    RelativeEntropy,
    VariationalFunctional,
)
from pullback.transport.gradient_flow import (
    GaussianStep,
    JKOStep,
    WassersteinGradientFlow,
    barenblatt,
    gaussian_jko_step,
    jko_step,
    symmetric_kl_gaussian,
)
from pullback.transport.interpolants import Interpolated, flow_matching_loss, linear_interpolant
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
from pullback.transport.partial import partial_transport
from pullback.transport.proximal import ProximalState, proximal_sinkhorn
from pullback.transport.pruning import MaskedModel, TransportMask, attach_masks
from pullback.transport.rectified import Coupling, PotentialVelocity, conjugate_flow_loss, rectify, straightness
from pullback.transport.simplex import (
    barycentric_interpolant,
    gaussian_conditional_means,
    multimarginal_loss,
    simplex_score,
    uniform_simplex,
)
from pullback.transport.simplex_paths import SimplexPath, path_energy, simplex_velocity, transport_along
from pullback.transport.sinkhorn import sinkhorn
from pullback.transport.sliced import MaxSliced, max_sliced_wasserstein, sliced_wasserstein

__all__ = [
    "Assignment",
    "Barycenter",
    "Coupling",
    "DualityGap",
    "EntropicFictitiousPlay",
    "ExactTransport",
    "FeatureBank",
    "FittedMap",
    "FreeBarycenter",
    "GaussianStep",
    "GeneralizedEntropy",
    "HessianDefect",
    "InputConvexGradient",
    "InputConvexNetwork",
    "Interpolated",
    "JKOStep",
    "JensenShannon",
    "LangevinSamples",
    "LayerFeatures",
    "LayerOutputs",
    "LocalTransport",
    "MaskedModel",
    "MaxSliced",
    "MeanFieldLangevin",
    "MongeGap",
    "PotentialVelocity",
    "PowerCost",
    "ProximalState",
    "ReferenceLaw",
    "RelativeEntropy",
    "SimplexPath",
    "SinkhornDivergence",
    "Transport",
    "TransportMapFit",
    "TransportMask",
    "VariationalFunctional",
    "WassersteinCritic",
    "WassersteinGradientFlow",
    "assignment",
    "attach_masks",
    "barenblatt",
    "barycenter",
    "barycentric_interpolant",
    "conjugate_flow_loss",
    "distillation_loss",
    "duality_gap",
    "exact_transport",
    "fit_transport_map",
    "flow_matching_loss",
    "free_support_barycenter",
    "gaussian_conditional_means",
    "gaussian_jko_step",
    "hessian_defect",
    "jko_step",
    "langevin",
    "line_integral_field",
    "linear_interpolant",
    "local_transport_loss",
    "max_sliced_wasserstein",
    "monge_gap",
    "multimarginal_loss",
    "pairwise_cost",
    "partial_transport",
    "path_energy",
    "proximal_gibbs_potential",
    "proximal_sinkhorn",
    "rectify",
    "simplex_score",
    "simplex_velocity",
    "sinkhorn",
    "sinkhorn_divergence",
    "sliced_wasserstein",
    "straightness",
    "symmetric_kl_gaussian",
    "transport_along",
    "unexplained_variance",
    "uniform_simplex",
    "wasserstein_1d",
    "wasserstein_mutual_information",
]
