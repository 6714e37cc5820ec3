"""Causal discovery: graphs from data by gradients. Adjacency convention: ``A[i, j]`` is the arc ``i -> j``."""

from __future__ import annotations

from pullback.causal.acyclicity import acyclicity
from pullback.causal.constrained import dagma, notears
from pullback.causal.graphs import EdgeMetrics, edge_metrics, find_cycle, is_acyclic, random_dag, topological_order
from pullback.causal.orders import fit_order, score_order, topological_swaps
from pullback.causal.orientation import SmoothAcyclicSCM, cosine_temperature, cosmo, orientation
from pullback.causal.scm import LinearSCM, NonlinearSCM, random_weights
from pullback.causal.structure import StructureResult, least_squares_score, ridge_weights, second_moments

__all__ = [
    "EdgeMetrics",
    "LinearSCM",
    "NonlinearSCM",
    "SmoothAcyclicSCM",
    "StructureResult",
    "acyclicity",
    "cosine_temperature",
    "cosmo",
    "dagma",
    "edge_metrics",
    "find_cycle",
    "fit_order",
    "is_acyclic",
    "least_squares_score",
    "notears",
    "orientation",
    "random_dag",
    "random_weights",
    "ridge_weights",
    "score_order",
    "second_moments",
    "topological_order",
    "topological_swaps",
]
