"""Topology with a gradient: persistence, Euler transforms, learned graphs and cell complexes."""

from __future__ import annotations

from pullback.topology.cell_complex import CellComplex
from pullback.topology.cycles import chordless_cycles
from pullback.topology.distances import pairwise_distances
from pullback.topology.graph_convolution import graph_convolution
from pullback.topology.graph_families import GraphBatch, batch_graphs, max_degree, random_graphs, shortest_path_length
from pullback.topology.graph_network import GraphNetwork
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
from pullback.topology.pooling import Exponents, GeneralizedNormPool, SegmentPool, replace_pooling
from pullback.topology.segments import segment_reduce

__all__ = [
    "CellComplex",
    "CellConvolution",
    "DifferentiableCellComplex",
    "DifferentiableGraphGenerator",
    "Edges",
    "Exponents",
    "GeneralizedNormPool",
    "GraphBatch",
    "GraphNetwork",
    "LearnedGraph",
    "Neighbors",
    "SegmentPool",
    "adaptive_neighborhood",
    "batch_graphs",
    "chordless_cycles",
    "graph_convolution",
    "latent_graph_entmax",
    "max_degree",
    "neighbor_candidates",
    "norm_pool",
    "pairwise_distances",
    "random_graphs",
    "replace_pooling",
    "segment_reduce",
    "shortest_path_length",
    "smooth_first_k",
    "topology_reward",
]
