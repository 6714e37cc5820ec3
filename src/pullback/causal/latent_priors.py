"""Log-priors of the latents of graphs and of intervention targets, as DiBS and BaCaDI anneal them."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import logsigmoid

from pullback.causal.latent_graphs import edge_probabilities, latent_graph, latent_targets
from pullback.core.shapes import Float, Tensor

__all__: list[str] = []

SPREAD = 0.1
"""Variance of the latents of targets."""


def of_graphs(
    z: Float[Tensor, "*batch 2 d k"],
    noise: Float[Tensor, "*batch m d d"],
    *,
    alpha: float,
    beta: float,
    prior: str,
    edge_probability: float,
) -> Float[Tensor, ""]:
    """Return the normal prior, the expected penalty of cycles over the noise, and the prior of soft graphs, summed."""
    nodes = z.shape[-2]
    value = -0.5 * nodes * z.square().sum()
    value = value + GRAPH_PRIORS[prior](edge_probabilities(z, alpha), edge_probability).sum()
    graphs = latent_graph(z.unsqueeze(-4), noise=noise, alpha=alpha)
    shifted = torch.eye(nodes, dtype=z.dtype, device=z.device) + graphs.detach() / nodes
    slope = torch.linalg.matrix_power(shifted, nodes - 1).mT  # of tr (I + G/d)^d
    return value - beta * (slope * graphs).sum() / noise.shape[-3]


def of_targets(
    gamma: Float[Tensor, "*batch e d"], noise: Float[Tensor, "*batch m e d"], *, alpha: float, sparsity: float
) -> Float[Tensor, ""]:
    """Return the Beta prior with one target expected, the normal prior, and the penalty of targets, summed."""
    nodes, logits = gamma.shape[-1], alpha * gamma / 2
    expected = latent_targets(gamma.unsqueeze(-3), noise=noise, alpha=alpha).sum() / noise.shape[-3]
    beta_prior = (1 / nodes - 1) * logsigmoid(logits) - 1 / nodes * logsigmoid(-logits)
    return beta_prior.sum() - gamma.square().sum() / (2 * SPREAD) - sparsity * expected


def _erdos_renyi(graph: Tensor, probability: float) -> Tensor:
    return graph.sum((-2, -1)) * math.log(probability / (1 - probability))


def _scale_free(graph: Tensor, probability: float) -> Tensor:
    return -3 * (1 + graph.sum(-2)).log().sum(-1)


GRAPH_PRIORS = {"er": _erdos_renyi, "scale-free": _scale_free}
"""Logarithms of priors of graphs ``[*batch, d, d]``, soft ones too, up to a constant."""
