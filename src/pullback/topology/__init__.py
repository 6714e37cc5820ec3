"""Topology with a gradient: persistence, Euler transforms, learned graphs and cell complexes."""

from __future__ import annotations

from pullback.topology.attention_heads import HeadAttention, head_importance, head_similarity
from pullback.topology.bifiltration import Bifiltration, codensity, function_rips, graph_bifiltration
from pullback.topology.cell_complex import CellComplex
from pullback.topology.complexes import Complex, flag_simplices
from pullback.topology.cycles import chordless_cycles
from pullback.topology.diagrams import bottleneck_distance, diagram_wasserstein
from pullback.topology.distances import pairwise_distances
from pullback.topology.embedding import (
    RankResiduals,
    continuity,
    density_divergence,
    rank_residuals,
    trustworthiness,
)
from pullback.topology.encodings import PaddedNodes, laplacian_encoding, pad_nodes, random_walk_encoding
from pullback.topology.euler import EulerTransform, euler_curve, euler_transform, sphere_directions
from pullback.topology.graph_convolution import graph_convolution
from pullback.topology.graph_families import (
    GraphBatch,
    HubColours,
    batch_graphs,
    hub_colours,
    join_graphs,
    max_degree,
    random_graphs,
    shortest_path_length,
)
from pullback.topology.graph_network import GraphNetwork, SetNetwork
from pullback.topology.graph_transformer import GraphTransformer
from pullback.topology.latent_complex import (
    CellConvolution,
    DifferentiableCellComplex,
    latent_graph_entmax,
    topology_reward,
)
from pullback.topology.learned_graph import Edges, LearnedGraph
from pullback.topology.neighborhoods import (
    DifferentiableGraphGenerator,
    Neighbors,
    adaptive_neighborhood,
    neighbor_candidates,
    smooth_first_k,
)
from pullback.topology.norm_pool import norm_pool
from pullback.topology.persistence import Diagram, persistence
from pullback.topology.pooling import Exponents, GeneralizedNormPool, SegmentPool, replace_pooling
from pullback.topology.reduction import pair_simplices
from pullback.topology.rips import rips_pairs
from pullback.topology.segments import segment_reduce
from pullback.topology.signature import topological_signature_loss
from pullback.topology.signed_measure import (
    HilbertFunction,
    SignedMeasure,
    convolve_signed_measure,
    hilbert_function,
    signed_measure,
    signed_measure_distance,
)
from pullback.topology.token_pruning import KeptTokens, LayerSelector, stochastic_depth, token_prune
from pullback.topology.weight_pruning import GradualMagnitudePruner

__all__ = [
    "Bifiltration",
    "CellComplex",
    "CellConvolution",
    "Complex",
    "Diagram",
    "DifferentiableCellComplex",
    "DifferentiableGraphGenerator",
    "Edges",
    "EulerTransform",
    "Exponents",
    "GeneralizedNormPool",
    "GradualMagnitudePruner",
    "GraphBatch",
    "GraphNetwork",
    "GraphTransformer",
    "HeadAttention",
    "HilbertFunction",
    "HubColours",
    "KeptTokens",
    "LayerSelector",
    "LearnedGraph",
    "Neighbors",
    "PaddedNodes",
    "RankResiduals",
    "SegmentPool",
    "SetNetwork",
    "SignedMeasure",
    "adaptive_neighborhood",
    "batch_graphs",
    "bottleneck_distance",
    "chordless_cycles",
    "codensity",
    "continuity",
    "convolve_signed_measure",
    "density_divergence",
    "diagram_wasserstein",
    "euler_curve",
    "euler_transform",
    "flag_simplices",
    "function_rips",
    "graph_bifiltration",
    "graph_convolution",
    "head_importance",
    "head_similarity",
    "hilbert_function",
    "hub_colours",
    "join_graphs",
    "laplacian_encoding",
    "latent_graph_entmax",
    "max_degree",
    "neighbor_candidates",
    "norm_pool",
    "pad_nodes",
    "pair_simplices",
    "pairwise_distances",
    "persistence",
    "random_graphs",
    "random_walk_encoding",
    "rank_residuals",
    "replace_pooling",
    "rips_pairs",
    "segment_reduce",
    "shortest_path_length",
    "signed_measure",
    "signed_measure_distance",
    "smooth_first_k",
    "sphere_directions",
    "stochastic_depth",
    "token_prune",
    "topological_signature_loss",
    "topology_reward",
    "trustworthiness",
]
