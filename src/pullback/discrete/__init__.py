"""Discrete choices with a gradient: sorting, ranking, top-k, comparisons, logic, rounding, indexing, sampling."""

from __future__ import annotations

from pullback.discrete.alignment import (
    AlignmentCurve,
    alignment_curve,
    rewind_and_repeat_log_prob,
    tilted,
    win_probability,
    win_rate,
)
from pullback.discrete.assign import assign
from pullback.discrete.attention import RelativePositionBias, local_attention, masked_attention
from pullback.discrete.autoencoders import CategoricalBottleneck, DiscreteVAE, SemiSupervisedVAE
from pullback.discrete.best_of_n import KLEstimate, Selection, best_of_n, best_of_n_kl, best_of_n_log_prob
from pullback.discrete.boundaries import bucketize, searchsorted
from pullback.discrete.branching import BranchingLayer, BranchingNetwork, Search, grouping_score, search_branching
from pullback.discrete.choice import choose, embedding, gather, index_select, lookup, one_hot, take, take_along_dim
from pullback.discrete.clusters import MappingRank, Matching, mapping_rank, match_clusters
from pullback.discrete.comparisons import equal, greater, greater_equal, isclose, less, less_equal, not_equal
from pullback.discrete.continual import (
    ClassStream,
    ContinualMetrics,
    class_incremental_stream,
    continual_metrics,
)
from pullback.discrete.contrastive import (
    ViewSimilarities,
    info_nce,
    nearest_neighbour_accuracy,
    triplet_loss,
    view_similarities,
)
from pullback.discrete.control import Controlled, ControlledBlock, ControlledNet, GateRouter, opening_rates
from pullback.discrete.counting import Histogram, Unique, bincount, histc, histogram, unique
from pullback.discrete.cumulative import Cumulative, cummax, cummin
from pullback.discrete.detection import Detections, DetectionScores, center_heatmap_loss, detection_scores, find_centers
from pullback.discrete.energy import EnergyInterpreter, Explanation, StructuredEnergy, margin_energy_loss, mask_recovery
from pullback.discrete.ensemble import KeyedEnsemble, Vote, key_loss, score_loss, sinkhorn_topk
from pullback.discrete.episodes import EpisodeAllocation, episode_loss
from pullback.discrete.estimator_statistics import estimator_statistics
from pullback.discrete.estimators import (
    CATEGORICAL_METHODS,
    Sample,
    categorical,
    reinmax,
    straight_through_softmax,
)
from pullback.discrete.expectation import ESTIMATORS, RunningBaseline, exact_categorical_gradient, expectation
from pullback.discrete.fenchel_young import entmax_loss
from pullback.discrete.filters import median_filter, rank_filter
from pullback.discrete.gated_model import BudgetPressure, GatedModel, NetworkCost, attach_gates
from pullback.discrete.gates import TrainableGate, budget_loss, gate, trainable_gate
from pullback.discrete.group_ordering import group_mass, group_ordering_loss
from pullback.discrete.halting import HaltingOutput, HaltingTransformer, halting_gate, sparsity_loss, transformer_macs
from pullback.discrete.hungarian_net import (
    AssignmentProblems,
    HungarianNet,
    assignment_problems,
    fit_hungarian_net,
    hungarian_net_loss,
)
from pullback.discrete.information_gain import information_gain
from pullback.discrete.isotonic import project_permutahedron
from pullback.discrete.k_hot import k_hot_sample
from pullback.discrete.logic import (
    all,
    any,
    count,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    masked_fill,
    masked_mean,
    where,
)
from pullback.discrete.memory import memory_read, memory_write
from pullback.discrete.methods import ORDERINGS, OrderingMethod
from pullback.discrete.modality_tokenizer import ModalityTokenizer, Tokens, embed_names
from pullback.discrete.networks import NETWORKS, Swap, comparators, soft_swap, sorting_network
from pullback.discrete.normmax import normmax
from pullback.discrete.operator_tables import integer_operators, operator_table
from pullback.discrete.ordering import OrderingMetrics, ordering_metrics, permutation_loss, reordered_loss
from pullback.discrete.perturbation import AdaptivePerturbation
from pullback.discrete.piecewise import RAMPS, abs, clamp, heaviside, maximum, minimum, relu, sign
from pullback.discrete.plackett_luce import PlackettLuce
from pullback.discrete.polygons import (
    CoordinateTokenizer,
    EncodedPolygons,
    PairwiseScores,
    permutation_to_polygons,
    polygons_to_permutation,
)
from pullback.discrete.programs import AmortizedSynthesizer, ProgramLogits, RelaxedProgram
from pullback.discrete.pruning import close_smallest, prune_closed, unit_importance
from pullback.discrete.rationales import (
    RationaleLosses,
    RationaleMetrics,
    RationaleModel,
    Rationales,
    average_precision,
    comprehensiveness,
    comprehensiveness_loss,
    normalized_relative_gain,
    plausibility_loss,
    rationale_losses,
    rationale_metrics,
    rationale_size,
    sufficiency,
    sufficiency_loss,
)
from pullback.discrete.relaxed_one_hot import RelaxedOneHot
from pullback.discrete.result import Sorted
from pullback.discrete.rounding import ceil, floor, fmod, frac, remainder, round, trunc
from pullback.discrete.routing import Macs, Router, Routing, dispatch, expected_macs
from pullback.discrete.rule_transition import (
    MatchedActions,
    RuleTransition,
    RuleUpdate,
    SymbolicAttributes,
    match_actions,
)
from pullback.discrete.sampling import bernoulli, gumbel_noise, gumbel_softmax, multinomial, straight_through
from pullback.discrete.schedules import temperature_schedule
from pullback.discrete.score_function import BASELINES, score_function
from pullback.discrete.segmentation import (
    FrontierPredictor,
    GradientTokenizer,
    Tokenized,
    pool_blocks,
    segmentation_f1,
    soft_segment,
)
from pullback.discrete.selection import (
    Partition,
    argmax,
    argmedian,
    argmin,
    argquantile,
    kthvalue,
    max,
    median,
    min,
    partition,
    quantile,
    soft_topk,
)
from pullback.discrete.sequence_to_sequence import Decoded, Generated, SequenceDecoder, SequenceToSequence
from pullback.discrete.set_scorer import SetScorer
from pullback.discrete.slots import (
    AssignedSlots,
    DecodedSlots,
    ObjectScorer,
    RetrievalMetrics,
    SlotAutoencoder,
    assign_slots,
    object_crops,
    retrieval_metrics,
)
from pullback.discrete.sorting import argsort, permutation_matrix, rank, sort, sort_by, topk
from pullback.discrete.sparse import entmax, entmax15, sparsemax
from pullback.discrete.steps import STEP_ERRORS, soft_step
from pullback.discrete.straight_line import Line, Program, enumerate_programs
from pullback.discrete.subset import SUBSET_METHODS, Subset, subset_expectation, subset_gradients, subset_sample
from pullback.discrete.subset_mask import SubsetMask
from pullback.discrete.tracking import TrackingLoss, TrackingMetrics, clear_mot, soft_tracking_loss
from pullback.discrete.trees import HardForest, ResponseForest, SoftTree
from pullback.discrete.trellis import Trellis, TrellisOutput

__all__ = [
    "BASELINES",
    "CATEGORICAL_METHODS",
    "ESTIMATORS",
    "NETWORKS",
    "ORDERINGS",
    "RAMPS",
    "STEP_ERRORS",
    "SUBSET_METHODS",
    "AdaptivePerturbation",
    "AlignmentCurve",
    "AmortizedSynthesizer",
    "AssignedSlots",
    "AssignmentProblems",
    "BranchingLayer",
    "BranchingNetwork",
    "BudgetPressure",
    "CategoricalBottleneck",
    "ClassStream",
    "ContinualMetrics",
    "Controlled",
    "ControlledBlock",
    "ControlledNet",
    "CoordinateTokenizer",
    "Cumulative",
    "Decoded",
    "DecodedSlots",
    "DetectionScores",
    "Detections",
    "DiscreteVAE",
    "EncodedPolygons",
    "EnergyInterpreter",
    "EpisodeAllocation",
    "Explanation",
    "FrontierPredictor",
    "GateRouter",
    "GatedModel",
    "Generated",
    "GradientTokenizer",
    "HaltingOutput",
    "HaltingTransformer",
    "HardForest",
    "Histogram",
    "HungarianNet",
    "KLEstimate",
    "KeyedEnsemble",
    "Line",
    "Macs",
    "MappingRank",
    "MatchedActions",
    "Matching",
    "ModalityTokenizer",
    "NetworkCost",
    "ObjectScorer",
    "OrderingMethod",
    "OrderingMetrics",
    "PairwiseScores",
    "Partition",
    "PlackettLuce",
    "Program",
    "ProgramLogits",
    "RationaleLosses",
    "RationaleMetrics",
    "RationaleModel",
    "Rationales",
    "RelativePositionBias",
    "RelaxedOneHot",
    "RelaxedProgram",
    "ResponseForest",
    "RetrievalMetrics",
    "Router",
    "Routing",
    "RuleTransition",
    "RuleUpdate",
    "RunningBaseline",
    "Sample",
    "Search",
    "Selection",
    "SemiSupervisedVAE",
    "SequenceDecoder",
    "SequenceToSequence",
    "SetScorer",
    "SlotAutoencoder",
    "SoftTree",
    "Sorted",
    "StructuredEnergy",
    "Subset",
    "SubsetMask",
    "Swap",
    "SymbolicAttributes",
    "Tokenized",
    "Tokens",
    "TrackingLoss",
    "TrackingMetrics",
    "TrainableGate",
    "Trellis",
    "TrellisOutput",
    "Unique",
    "ViewSimilarities",
    "Vote",
    "abs",
    "alignment_curve",
    "all",
    "any",
    "argmax",
    "argmedian",
    "argmin",
    "argquantile",
    "argsort",
    "assign",
    "assign_slots",
    "assignment_problems",
    "attach_gates",
    "average_precision",
    "bernoulli",
    "best_of_n",
    "best_of_n_kl",
    "best_of_n_log_prob",
    "bincount",
    "bucketize",
    "budget_loss",
    "categorical",
    "ceil",
    "center_heatmap_loss",
    "choose",
    "clamp",
    "class_incremental_stream",
    "clear_mot",
    "close_smallest",
    "comparators",
    "comprehensiveness",
    "comprehensiveness_loss",
    "continual_metrics",
    "count",
    "cummax",
    "cummin",
    "detection_scores",
    "dispatch",
    "embed_names",
    "embedding",
    "entmax",
    "entmax15",
    "entmax_loss",
    "enumerate_programs",
    "episode_loss",
    "equal",
    "estimator_statistics",
    "exact_categorical_gradient",
    "expectation",
    "expected_macs",
    "find_centers",
    "fit_hungarian_net",
    "floor",
    "fmod",
    "frac",
    "gate",
    "gather",
    "greater",
    "greater_equal",
    "group_mass",
    "group_ordering_loss",
    "grouping_score",
    "gumbel_noise",
    "gumbel_softmax",
    "halting_gate",
    "heaviside",
    "histc",
    "histogram",
    "hungarian_net_loss",
    "index_select",
    "info_nce",
    "information_gain",
    "integer_operators",
    "isclose",
    "k_hot_sample",
    "key_loss",
    "kthvalue",
    "less",
    "less_equal",
    "local_attention",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "lookup",
    "mapping_rank",
    "margin_energy_loss",
    "mask_recovery",
    "masked_attention",
    "masked_fill",
    "masked_mean",
    "match_actions",
    "match_clusters",
    "max",
    "maximum",
    "median",
    "median_filter",
    "memory_read",
    "memory_write",
    "min",
    "minimum",
    "multinomial",
    "nearest_neighbour_accuracy",
    "normalized_relative_gain",
    "normmax",
    "not_equal",
    "object_crops",
    "one_hot",
    "opening_rates",
    "operator_table",
    "ordering_metrics",
    "partition",
    "permutation_loss",
    "permutation_matrix",
    "permutation_to_polygons",
    "plausibility_loss",
    "polygons_to_permutation",
    "pool_blocks",
    "project_permutahedron",
    "prune_closed",
    "quantile",
    "rank",
    "rank_filter",
    "rationale_losses",
    "rationale_metrics",
    "rationale_size",
    "reinmax",
    "relu",
    "remainder",
    "reordered_loss",
    "retrieval_metrics",
    "rewind_and_repeat_log_prob",
    "round",
    "score_function",
    "score_loss",
    "search_branching",
    "searchsorted",
    "segmentation_f1",
    "sign",
    "sinkhorn_topk",
    "soft_segment",
    "soft_step",
    "soft_swap",
    "soft_topk",
    "soft_tracking_loss",
    "sort",
    "sort_by",
    "sorting_network",
    "sparsemax",
    "sparsity_loss",
    "straight_through",
    "straight_through_softmax",
    "subset_expectation",
    "subset_gradients",
    "subset_sample",
    "sufficiency",
    "sufficiency_loss",
    "take",
    "take_along_dim",
    "temperature_schedule",
    "tilted",
    "topk",
    "trainable_gate",
    "transformer_macs",
    "triplet_loss",
    "trunc",
    "unique",
    "unit_importance",
    "view_similarities",
    "where",
    "win_probability",
    "win_rate",
]
