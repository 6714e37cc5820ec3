"""Causal discovery: graphs from data by gradients. Adjacency convention: ``A[i, j]`` is the arc ``i -> j``."""

from __future__ import annotations

from pullback.causal.acyclicity import acyclicity
from pullback.causal.augmented_lagrangian import AugmentedLagrangian, Constrained, augmented_lagrangian_fit
from pullback.causal.bacadi import BaCaDI, bacadi, dibs
from pullback.causal.bayesian_network import BayesianNetwork, random_bayesian_network
from pullback.causal.beliefs import GraphBelief, belief_gradient, sample_dags_from_beliefs
from pullback.causal.categorical import CategoricalMechanisms
from pullback.causal.cosmo import COSMO, SmoothAcyclicSCM, cosmo
from pullback.causal.d_struct import DStruct, d_struct
from pullback.causal.dag_distribution import DAGDistribution, DAGLogProb, bernoulli_kl
from pullback.causal.dagma import DAGMA, dagma
from pullback.causal.design import Design, InterventionPolicy, expected_information_gain, optimize_design
from pullback.causal.design_search import bayesian_value_search, greedy_design, random_design
from pullback.causal.distances import edge_auprc, structural_intervention_distance, varsortability
from pullback.causal.ensemble import ModelPosterior, bootstrap_posterior
from pullback.causal.estimator import StructureEstimator
from pullback.causal.graphs import (
    EdgeMetrics,
    ThresholdedDAG,
    descendants,
    edge_metrics,
    find_cycle,
    is_acyclic,
    random_dag,
    threshold_to_dag,
    topological_order,
)
from pullback.causal.interventional import InterventionalGaussian
from pullback.causal.latent_graphs import (
    ScoreRatio,
    edge_probabilities,
    latent_graph,
    latent_targets,
    logistic_noise,
    score_ratio_gradient,
)
from pullback.causal.least_squares import interventional_moments, least_squares_score, ridge_weights, second_moments
from pullback.causal.logistic import LogisticSCM
from pullback.causal.mechanisms import MaskedMechanisms
from pullback.causal.notears import NOTEARS, notears
from pullback.causal.order_search import OrderSearch, insertion_scores, order_search
from pullback.causal.orders import fit_order, score_order
from pullback.causal.orientation import cosine_temperature, orientation
from pullback.causal.parallel import ParallelStructureLearner, beta_subsets, consensus_penalty
from pullback.causal.posterior import GraphPosterior, enumerate_dags, exact_graph_posterior, expected_shd, expected_sid
from pullback.causal.sampled_dagma import SampledDAGMA
from pullback.causal.scm import LinearSCM, NonlinearSCM, random_weights
from pullback.causal.structure import StructureLearner, StructureResult
from pullback.causal.svgd import SVGD, Particles, SquaredExponential, svgd
from pullback.causal.swaps import kkt_violation, swap_candidates, topological_swaps
from pullback.causal.targeting import Discrepancy, TargetChoice, intervention_discrepancy, next_target

__all__ = [
    "COSMO",
    "DAGMA",
    "NOTEARS",
    "SVGD",
    "AugmentedLagrangian",
    "BaCaDI",
    "BayesianNetwork",
    "CategoricalMechanisms",
    "Constrained",
    "DAGDistribution",
    "DAGLogProb",
    "DStruct",
    "Design",
    "Discrepancy",
    "EdgeMetrics",
    "GraphBelief",
    "GraphPosterior",
    "InterventionPolicy",
    "InterventionalGaussian",
    "LinearSCM",
    "LogisticSCM",
    "MaskedMechanisms",
    "ModelPosterior",
    "NonlinearSCM",
    "OrderSearch",
    "ParallelStructureLearner",
    "Particles",
    "SampledDAGMA",
    "ScoreRatio",
    "SmoothAcyclicSCM",
    "SquaredExponential",
    "StructureEstimator",
    "StructureLearner",
    "StructureResult",
    "TargetChoice",
    "ThresholdedDAG",
    "acyclicity",
    "augmented_lagrangian_fit",
    "bacadi",
    "bayesian_value_search",
    "belief_gradient",
    "bernoulli_kl",
    "beta_subsets",
    "bootstrap_posterior",
    "consensus_penalty",
    "cosine_temperature",
    "cosmo",
    "d_struct",
    "dagma",
    "descendants",
    "dibs",
    "edge_auprc",
    "edge_metrics",
    "edge_probabilities",
    "enumerate_dags",
    "exact_graph_posterior",
    "expected_information_gain",
    "expected_shd",
    "expected_sid",
    "find_cycle",
    "fit_order",
    "greedy_design",
    "insertion_scores",
    "intervention_discrepancy",
    "interventional_moments",
    "is_acyclic",
    "kkt_violation",
    "latent_graph",
    "latent_targets",
    "least_squares_score",
    "logistic_noise",
    "next_target",
    "notears",
    "optimize_design",
    "order_search",
    "orientation",
    "random_bayesian_network",
    "random_dag",
    "random_design",
    "random_weights",
    "ridge_weights",
    "sample_dags_from_beliefs",
    "score_order",
    "score_ratio_gradient",
    "second_moments",
    "structural_intervention_distance",
    "svgd",
    "swap_candidates",
    "threshold_to_dag",
    "topological_order",
    "topological_swaps",
    "varsortability",
]
