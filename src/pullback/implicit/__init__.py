"""Solvers as layers: roots, optima, projections and linear systems, differentiated without unrolling the iterations."""

from __future__ import annotations

from pullback.implicit import optimality
from pullback.implicit.averaged_multipliers import AveragedMultipliers, MultiplierState, kkt_residual
from pullback.implicit.best_response import BestResponse, BestResponseConv2d, BestResponseLinear
from pullback.implicit.best_response_model import BestResponseModel, replace_with_best_response
from pullback.implicit.bilevel import BilevelDescent, BilevelProblem, BilevelState
from pullback.implicit.bracketed import find_bracketed_root
from pullback.implicit.constrained import AugmentedLagrangian, ConstrainedProblem, DualAscent, DualState
from pullback.implicit.decision_map import DecisionMap
from pullback.implicit.dispatch import Dispatch, economic_dispatch
from pullback.implicit.fairness import counterfactual_gap, demographic_parity, equal_opportunity
from pullback.implicit.feasibility import FeasibilityReport, feasibility_report
from pullback.implicit.half_spaces import (
    projection_box_section,
    projection_halfspace,
    projection_hyperplane,
    projection_polyhedron,
)
from pullback.implicit.hard_constraint import ConstrainedField, HardConstraint
from pullback.implicit.hypergradients import Hypergradient, hypergradient
from pullback.implicit.hyperparameters import Hyperparameter, Hyperparameters, dropout_by_example
from pullback.implicit.inverse_hessian import inverse_hessian_product
from pullback.implicit.least_squares import least_squares
from pullback.implicit.linear_least_squares import linear_least_squares
from pullback.implicit.linear_solve import linear_solve
from pullback.implicit.multiclass_svm import MulticlassSVM
from pullback.implicit.multipliers import InfeasibleError, Multipliers
from pullback.implicit.nesting import on_nesting
from pullback.implicit.newsvendor import newsvendor_action, newsvendor_cost
from pullback.implicit.normalized_momentum import NormalizedBilevelMomentum, NormalizedState
from pullback.implicit.optimality import KKTPoint
from pullback.implicit.partition import DomainPartition, partition_domain
from pullback.implicit.perturbed import knapsack_layer, perturbed_argmax
from pullback.implicit.point_cloud import (
    PointCloudGraph,
    gradient_energy,
    graph_lipschitz,
    point_cloud_laplacian,
    weighted_laplacian_penalty,
)
from pullback.implicit.polytopes import projection_birkhoff, projection_transport
from pullback.implicit.projections import (
    projection_affine,
    projection_box,
    projection_l1_ball,
    projection_l2_ball,
    projection_simplex,
)
from pullback.implicit.proximal import (
    prox_elastic_net,
    prox_group_lasso,
    prox_l0,
    prox_lasso,
    prox_non_negative_lasso,
    prox_non_negative_ridge,
    prox_ridge,
)
from pullback.implicit.quadratic_program import QuadraticSolution, quadratic_program
from pullback.implicit.roots import custom_fixed_point, custom_root, root_jvp, root_vjp
from pullback.implicit.selective_ensemble import Selected, SelectiveEnsemble, average_vote, majority_vote
from pullback.implicit.self_tuning import self_tuning_training
from pullback.implicit.smooth_learning import SmoothManifoldLearning, SmoothState
from pullback.implicit.soft_discs import soft_disc_energy
from pullback.implicit.solution import Reason, Solution
from pullback.implicit.solvers import find_root, fixed_point, minimize
from pullback.implicit.sorption import retardation_factor, solve_diffusion_sorption, total_concentration
from pullback.implicit.sparse_matrices import SparseMatrix, SparsePattern
from pullback.implicit.spheres import (
    projection_l1_sphere,
    projection_l2_sphere,
    projection_linf_ball,
    projection_non_negative,
    projection_sparse_simplex,
)
from pullback.implicit.tridiagonal import tridiagonal_solve
from pullback.implicit.worst_case import WorstCase, cvar, kl_worst_case

__all__ = [
    "AugmentedLagrangian",
    "AveragedMultipliers",
    "BestResponse",
    "BestResponseConv2d",
    "BestResponseLinear",
    "BestResponseModel",
    "BilevelDescent",
    "BilevelProblem",
    "BilevelState",
    "ConstrainedField",
    "ConstrainedProblem",
    "DecisionMap",
    "Dispatch",
    "DomainPartition",
    "DualAscent",
    "DualState",
    "FeasibilityReport",
    "HardConstraint",
    "Hypergradient",
    "Hyperparameter",
    "Hyperparameters",
    "InfeasibleError",
    "KKTPoint",
    "MulticlassSVM",
    "MultiplierState",
    "Multipliers",
    "NormalizedBilevelMomentum",
    "NormalizedState",
    "PointCloudGraph",
    "QuadraticSolution",
    "Reason",
    "Selected",
    "SelectiveEnsemble",
    "SmoothManifoldLearning",
    "SmoothState",
    "Solution",
    "SparseMatrix",
    "SparsePattern",
    "WorstCase",
    "average_vote",
    "counterfactual_gap",
    "custom_fixed_point",
    "custom_root",
    "cvar",
    "demographic_parity",
    "dropout_by_example",
    "economic_dispatch",
    "equal_opportunity",
    "feasibility_report",
    "find_bracketed_root",
    "find_root",
    "fixed_point",
    "gradient_energy",
    "graph_lipschitz",
    "hypergradient",
    "inverse_hessian_product",
    "kkt_residual",
    "kl_worst_case",
    "knapsack_layer",
    "least_squares",
    "linear_least_squares",
    "linear_solve",
    "majority_vote",
    "minimize",
    "newsvendor_action",
    "newsvendor_cost",
    "on_nesting",
    "optimality",
    "partition_domain",
    "perturbed_argmax",
    "point_cloud_laplacian",
    "projection_affine",
    "projection_birkhoff",
    "projection_box",
    "projection_box_section",
    "projection_halfspace",
    "projection_hyperplane",
    "projection_l1_ball",
    "projection_l1_sphere",
    "projection_l2_ball",
    "projection_l2_sphere",
    "projection_linf_ball",
    "projection_non_negative",
    "projection_polyhedron",
    "projection_simplex",
    "projection_sparse_simplex",
    "projection_transport",
    "prox_elastic_net",
    "prox_group_lasso",
    "prox_l0",
    "prox_lasso",
    "prox_non_negative_lasso",
    "prox_non_negative_ridge",
    "prox_ridge",
    "quadratic_program",
    "replace_with_best_response",
    "retardation_factor",
    "root_jvp",
    "root_vjp",
    "self_tuning_training",
    "soft_disc_energy",
    "solve_diffusion_sorption",
    "total_concentration",
    "tridiagonal_solve",
    "weighted_laplacian_penalty",
]
