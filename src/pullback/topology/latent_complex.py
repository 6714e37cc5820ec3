"""A graph and its polygons inferred from features, sparse and with a gradient, and message passing over edges."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import nn

from pullback.core.checks import (
    check_choice,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_scalar,
    check_shape,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.discrete import entmax
from pullback.topology.cell_complex import CellComplex
from pullback.topology.cycles import chordless_cycles
from pullback.topology.distances import pairwise_distances
from pullback.topology.learned_graph import LearnedGraph, kept_log_prob
from pullback.topology.neighborhoods import neighbor_candidates
from pullback.topology.segments import segment_reduce

__all__ = ["CellConvolution", "DifferentiableCellComplex", "latent_graph_entmax", "topology_reward"]


def latent_graph_entmax(
    z: Float[Tensor, "*batch n d"],
    *,
    scale: Scalar,
    alpha: Scalar = 1.5,
    symmetric: bool = True,
    candidates: int | None = None,
) -> LearnedGraph:
    r"""Connect every node to a few others, by a sparse distribution over the distances of their embeddings.

    .. math:: s_{ij} = \gamma \frac{-\lVert z_i - z_j \rVert - \mu_i}{\sigma_i + 10^{-6}}, \qquad
              p_i = \mathrm{entmax}_\alpha(s_i), \qquad A = (p + p^T) / 2

    with the mean and the standard deviation over ``j`` different from ``i``. Entmax has exact zeros: each node has a
    degree of its own, and none is chosen beforehand. A shift of ``s_i``, which the paper learns beside the scale,
    leaves entmax as it is and has gradient 0; so there is none.

    Args:
        z: ``[*batch, n, d]`` embeddings, finite, ``n >= 2``.
        scale: the gain, > 0; larger is sparser.
        alpha: of entmax, >= 1, or a tensor to be learned; at 1, softmax, every node is a neighbour.
        symmetric: return ``A``; else ``p``. Only without candidates.
        candidates: look at that many nearest nodes only, in memory ``n * candidates``.

    Returns:
        The graph. Its degree counts the neighbours, without gradient.

    Raises:
        TypeError: ``z`` is not a floating tensor.
        ValueError: fewer than two nodes, an embedding that is not finite, ``scale`` not > 0, ``alpha`` below 1,
            ``candidates`` out of range or with ``symmetric``.

    Example:
        >>> z = torch.tensor([[0.0], [0.1], [5.0], [5.1]])
        >>> latent_graph_entmax(z, scale=5.0).weights
        tensor([[0., 1., 0., 0.],
                [1., 0., 0., 0.],
                [0., 0., 0., 1.],
                [0., 0., 1., 0.]])

    References:
        Battiloro, Spinelli, Telyatnikov, Bronstein, Scardapane, Di Lorenzo (2024), From latent graph to latent topology
        inference: differentiable cell complex module, section 3.
    """
    check_shape("z", check_floating("z", z), (None, None))
    check_scalar("scale", scale)
    least = check_scalar("alpha", alpha)
    if least is not None and least < 1:  # entmax itself goes below, where nothing is exactly 0
        raise ValueError(f"alpha must be a finite number >= 1, got {least}")
    n = z.shape[-2]
    if n < 2:
        raise ValueError(f"z must have at least two nodes, got {n}: a graph with no edge")
    if can_look(z) and not bool(torch.isfinite(z).all()):
        raise ValueError("z must be finite everywhere, got NaN or infinity")
    if candidates is not None and symmetric:
        raise ValueError("symmetric must be False with candidates: lists of neighbours hold one direction")
    wide = z.to(torch.promote_types(z.dtype, torch.float32))
    if candidates is None:
        distances = pairwise_distances(wide)
        other = ~torch.eye(n, dtype=torch.bool, device=z.device)
        index = torch.arange(n, device=z.device).expand(distances.shape)
    else:
        index, distances = neighbor_candidates(wide, candidates)
        other = torch.ones(distances.shape[-2:], dtype=torch.bool, device=z.device)
    count = other.sum(-1, keepdim=True)
    unit = distances.detach().amax((-2, -1), keepdim=True)
    unit = torch.where(unit > 0, unit, 1.0)  # in it, sums do not overflow
    s = torch.where(other, -distances / unit, 0.0)
    centred = torch.where(other, s - s.sum(-1, keepdim=True) / count, 0.0)
    variance = centred.square().sum(-1, keepdim=True) / count
    spread = torch.where(variance > 0, torch.where(variance > 0, variance, 1.0).sqrt(), 0.0)
    scores = scale * centred / (spread + 1e-6 / unit)
    p = entmax(scores.masked_fill(~other, -torch.inf), alpha).to(z.dtype)
    weights = (p + p.mT) / 2 if symmetric else p
    kept = weights.detach() > 0
    return LearnedGraph(weights, index, kept.sum(-1).to(z.dtype), kept_log_prob(weights, kept))


class CellConvolution(nn.Module):
    r"""Message passing between edges: over those that share a node, and those that bound a common polygon.

    .. math:: y_e = \mathrm{relu}\Big(W x_e + W_{down} \frac{\sum_{f \sim e} w_f x_f}{\sum_{f \sim e} w_f}
              + W_{up} \frac{\sum_{P \ni e} w_P \sum_{f \in P} x_f}{\sum_{P \ni e} w_P |P|} + b\Big)

    where :math:`f \sim e` goes over the edges at each end of ``e``, itself among them (a mean of the others alone would
    be a difference of nearly equal sums where their weights are small). No matrix of edges by edges is made: edges are
    summed at their nodes, and at their polygons.

    Args:
        features: of an edge.
        out: features of the result.
        generator: draws the initial weights.

    Example:
        >>> cells = CellComplex(3, torch.tensor([[0, 0, 1], [1, 2, 2]]), torch.tensor([[0, 1, 2]]))
        >>> CellConvolution(4, 5, generator=torch.Generator().manual_seed(0))(torch.ones(3, 4), cells).shape
        torch.Size([3, 5])

    References:
        Battiloro, Spinelli, Telyatnikov, Bronstein, Scardapane, Di Lorenzo (2024), From latent graph to latent topology
        inference: differentiable cell complex module, section 3.
    """

    def __init__(self, features: int, out: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        check_integer("features", features, 1)
        check_integer("out", out, 1)
        self.own, self.down, self.up = (nn.Linear(features, out, bias=i == 0) for i in range(3))
        _draw(self, generator)

    def forward(self, x: Float[Tensor, "edges features"], cells: CellComplex) -> Float[Tensor, "edges out"]:
        """Return the edges' features after one step.

        Args:
            x: ``[edges, features]``.
            cells: the complex, its edges in the order of the rows of ``x``.

        Raises:
            TypeError: ``x`` is not a floating tensor, or not of the dtype of the weights.
            ValueError: ``x`` has another number of rows or features.
        """
        wanted = (cells.edges.shape[1], self.own.in_features)
        if check_floating("x", x).shape != wanted:
            raise ValueError(f"x must have shape {wanted}, a row an edge, got {tuple(x.shape)}")
        check_same_dtype(x=x, edge_weights=cells.edge_weights, cell_weights=cells.cell_weights)
        return torch.relu(self.own(x) + self.down(_lower(x, cells)) + self.up(_upper(x, cells)))


class DifferentiableCellComplex(nn.Module):
    r"""Infer edges and polygons from the features of nodes, in two sparse steps through which a gradient flows.

    An embedding ``z`` gives a graph by :func:`latent_graph_entmax`. The chordless cycles of this graph are the possible
    polygons; one is likely where its edges are alike,

    .. math:: s_P = -\mathrm{mean}_{e, f \in P} \lVert z_e - z_f \rVert, \qquad z_e = V \,\mathrm{relu}(U (z_i + z_j)),
              \qquad p = \mathrm{entmax}_\alpha(\gamma_2 \,\mathrm{standardised}(s)),

    and those of probability 0 vanish. Which cells exist is a discrete function of the features; what carries a gradient
    is said by ``gradient``:

    * ``"weights"``: the probabilities are the weights of edges and polygons, and the log-probabilities are there for a
      reward (:func:`topology_reward`);
    * ``"reward"``: weights are 1, so the gradient comes through the reward alone;
    * ``"integer"``: weights are 1 and the reward multiplies whole numbers, as in public copies of the code: nothing
      reaches the embedding. Kept to be held against the others.

    Args:
        features: of a node.
        hidden: features of the embeddings.
        max_length: nodes of the largest polygon, >= 3; 2 infers the graph alone.
        gradient: ``"weights"``, ``"reward"`` or ``"integer"``.
        alpha: of both entmax, > 1.
        scale: initial gain of the graph, > 0, learned; larger is sparser.
        cell_scale: initial gain of the polygons, > 0, learned.
        limit: polygons a node that are looked at: those of the largest smallest edge weight.
        candidates: as in :func:`latent_graph_entmax`.
        embedding: of the nodes: ``"network"``, of two layers, or ``"linear"``, which starts as the features themselves
            (``hidden`` is ``features`` then).
        generator: draws the initial weights.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> infer = DifferentiableCellComplex(3, 8, scale=2.0, generator=torch.Generator().manual_seed(0))
        >>> cells = infer(torch.randn(12, 3, generator=torch.Generator().manual_seed(1)))
        >>> cells.edge_weights.requires_grad, len(cells.cycles) > 0
        (True, True)

    References:
        Battiloro, Spinelli, Telyatnikov, Bronstein, Scardapane, Di Lorenzo (2024), From latent graph to latent topology
        inference: differentiable cell complex module, section 3.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        max_length: int = 4,
        gradient: str = "weights",
        alpha: float = 1.5,
        scale: float = 10.0,
        cell_scale: float = 1.0,
        limit: int = 4,
        candidates: int | None = None,
        embedding: str = "network",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("features", features, 1)
        check_integer("hidden", hidden, 1)
        check_integer("max_length", max_length, 2)
        check_integer("limit", limit, 1)
        if candidates is not None:
            check_integer("candidates", candidates, 1)
        check_choice("gradient", gradient, ("weights", "reward", "integer"))
        check_choice("embedding", embedding, ("network", "linear"))
        if embedding == "linear" and hidden != features:
            raise ValueError(f"hidden must be features for a linear embedding, {features}, got {hidden}")
        for name, value in (("alpha", alpha), ("scale", scale), ("cell_scale", cell_scale)):
            check_positive(name, value)
        if alpha <= 1:
            raise ValueError(f"alpha must be > 1, got {alpha}: softmax has no zeros, every pair would be an edge")
        self.max_length, self.gradient, self.alpha = max_length, gradient, alpha
        self.limit, self.candidates = limit, candidates
        self.features = features
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log())
        if max_length > 2:
            self.embed_edges = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
            self.log_cell_scale = nn.Parameter(torch.tensor(float(cell_scale)).log())
        self.embed = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        if embedding == "linear":
            self.embed = nn.Sequential(linear := nn.Linear(features, hidden))
        _draw(self, generator)
        if embedding == "linear":
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "n features"]) -> CellComplex:
        """Return the complex of the nodes ``x [n, features]``.

        Raises:
            TypeError: ``x`` is not a floating tensor.
            ValueError: ``x`` has other features, is not finite, or has fewer than two nodes.

        Warns:
            RuntimeWarning: there were more polygons than ``limit`` a node.
        """
        if check_floating("x", x).ndim != 2 or x.shape[1] != self.features:
            raise ValueError(f"x must have shape (nodes, {self.features}), got {tuple(x.shape)}")
        z = self.embed(x)
        graph = latent_graph_entmax(
            z,
            scale=self.log_scale.exp(),
            alpha=self.alpha,
            symmetric=self.candidates is None,
            candidates=self.candidates,
        )
        edges = graph.to_undirected()
        cells = CellComplex(len(x), edges.index, edges.index.new_empty(0, max(self.max_length, 3)), edges.weights)
        if self.max_length > 2:
            cells = self._with_polygons(z, cells)
        if self.gradient == "weights":
            return cells
        edge_weights, cell_weights = (torch.ones_like(w) for w in (cells.edge_weights, cells.cell_weights))
        hard = replace(cells, edge_weights=edge_weights, cell_weights=cell_weights)
        if self.gradient == "reward":
            return hard
        return replace(hard, edge_log_prob=edge_weights, cell_log_prob=cell_weights)

    def _with_polygons(self, z: Tensor, cells: CellComplex) -> CellComplex:
        cycles = chordless_cycles(cells.edges, cells.nodes, max_length=self.max_length)
        if not len(cycles):
            return cells
        found = CellComplex(cells.nodes, cells.edges, cycles, cells.edge_weights.detach())
        most = self.limit * cells.nodes
        if len(cycles) > most:
            edge, cell, _ = found.sides
            weakest = segment_reduce(found.edge_weights[edge], cell, len(cycles), reduce="min")
            cycles = cycles[weakest.topk(most).indices.sort().values]
            message = f"{len(found.cycles)} polygons, {most} of which are looked at; raise limit or scale"
            warnings.warn(message, RuntimeWarning, stacklevel=4)
            found = CellComplex(cells.nodes, cells.edges, cycles, cells.edge_weights.detach())
        z_edges = self.embed_edges(z[cells.edges[0]] + z[cells.edges[1]])
        s = -_mean_distance_of_sides(z_edges, found)
        standard = (s - s.mean()) / (s.var(correction=0) + 1e-12).sqrt()
        p = entmax(self.log_cell_scale.exp() * standard, self.alpha)
        kept = p.detach() > 0
        return CellComplex(cells.nodes, cells.edges, cycles[kept], cells.edge_weights, p[kept])


def topology_reward(
    cells: CellComplex, correct: Bool[Tensor, "nodes"], expected: Float[Tensor, "nodes"], *, nodes: Tensor | None = None
) -> Float[Tensor, ""]:
    r"""Return the loss that makes cells likely where the task went better than expected: the score-function term.

    .. math:: \frac{1}{|N|} \sum_{i \in N} (\bar a_i - a_i) \Big(\sum_{e \ni i} \log p_e + \sum_{P \ni i} \log p_P\Big)

    Args:
        cells: with log-probabilities of edges and polygons.
        correct: ``[nodes]`` whether the answer for the node was right, ``a``.
        expected: ``[nodes]`` in [0, 1] a running mean of it, a baseline that lowers the variance.
        nodes: ``[nodes]`` bool, which have an answer (default: all).

    Returns:
        A scalar to be added to the loss of the task.

    Raises:
        ValueError: ``correct`` or ``expected`` has another shape.

    Example:
        >>> edges, weights = torch.tensor([[0], [1]]), torch.tensor([0.5], requires_grad=True)
        >>> cells = CellComplex(2, edges, torch.empty(0, 3, dtype=torch.int64), weights)
        >>> topology_reward(cells, torch.tensor([True, False]), torch.tensor([0.2, 0.2])).backward()
        >>> weights.grad  # one of two was right, more than expected: descent raises the weight
        tensor([-0.6000])

    References:
        Kazi, Cosmo, Ahmadi, Navab, Bronstein (2022), Differentiable graph module (DGM) for graph convolutional
        networks, equation 6.
    """
    for name, value in (("correct", correct), ("expected", expected)):
        if value.shape != (cells.nodes,):
            raise ValueError(f"{name} must have shape ({cells.nodes},), got {tuple(value.shape)}")
    advantage = expected - correct.to(expected.dtype)
    if nodes is not None:
        advantage = torch.where(nodes, advantage, 0.0)
    total = (advantage[cells.edges].sum(0) * cells.edge_log_prob).sum()
    present = cells.cycles >= 0
    corners = torch.where(present, advantage[cells.cycles.clamp(min=0)], 0.0).sum(1)
    total = total + (corners * cells.cell_log_prob).sum()
    return total / (cells.nodes if nodes is None else nodes.sum())


def _lower(x: Tensor, cells: CellComplex) -> Tensor:
    """Return the weighted mean over the edges at both ends of an edge."""
    weights = cells.edge_weights.unsqueeze(-1)
    weighted = torch.cat([x * weights, weights], -1)
    at_nodes = segment_reduce(torch.cat([weighted, weighted]), cells.edges.flatten(), cells.nodes)
    return _mean(at_nodes[cells.edges[0]] + at_nodes[cells.edges[1]])


def _upper(x: Tensor, cells: CellComplex) -> Tensor:
    """Return the weighted mean over the sides of the polygons that an edge bounds."""
    edge, cell, _ = cells.sides
    of_cells = segment_reduce(torch.cat([x, x.new_ones(len(x), 1)], -1)[edge], cell, len(cells.cycles))
    weighted = of_cells * cells.cell_weights.unsqueeze(-1)
    return _mean(segment_reduce(weighted[cell], edge, len(x)))


def _mean(sums: Tensor) -> Tensor:
    """Return the first columns over the last one, 0 where that one is 0."""
    total = sums[..., -1:]
    return torch.where(total > 0, sums[..., :-1] / torch.where(total > 0, total, 1.0), 0.0)


def _mean_distance_of_sides(z: Tensor, cells: CellComplex) -> Tensor:
    """Return the mean distance of two sides of every polygon, over its pairs of sides."""
    edge = cells.sides[0]
    length = (cells.cycles >= 0).sum(1)
    sides = torch.zeros_like(cells.cycles)
    sides[cells.cycles >= 0] = edge
    distances = pairwise_distances(z[sides])
    present = (cells.cycles >= 0).to(z.dtype)
    pairs = present.unsqueeze(-1) * present.unsqueeze(-2)
    return (distances * pairs).sum((-2, -1)) / (length * (length - 1))


def _draw(module: nn.Module, generator: torch.Generator | None) -> None:
    """Draw every linear layer anew, as torch does, from the generator."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            with torch.no_grad():
                for parameter in (layer.weight, layer.bias):
                    if parameter is not None:
                        draws = torch.rand(
                            parameter.shape, generator=generator, device=drawing_device(generator, parameter)
                        )
                        parameter.copy_(draws * 2 * bound - bound)
