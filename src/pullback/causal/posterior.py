"""Posteriors over graphs: what a weighted set of graphs says, and the exact one of a few nodes by enumeration."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

from pullback.causal.distances import structural_intervention_distance
from pullback.causal.graphs import check_square, edge_metrics, is_acyclic
from pullback.causal.interventional import count_environments, mean_evidence
from pullback.core.checks import check_finite, check_floating, check_integer, check_scalar, check_shape, check_tensor
from pullback.core.shapes import Bool, Float, Num, Shaped, Tensor

__all__ = ["GraphPosterior", "enumerate_dags", "exact_graph_posterior", "expected_shd", "expected_sid"]

LARGEST = 5
"""Nodes of which all graphs are listed: 29 281; six nodes have 3.8 million."""


@dataclass(frozen=True)
class GraphPosterior:
    """A weighted set of graphs.

    Attributes:
        graphs: ``[*batch, m, d, d]`` booleans without cycles.
        log_weights: ``[*batch, m]`` normalised: their exponentials sum to 1.
        targets: ``[*batch, m, e, d]`` probability that an environment intervenes on a node, given the graph; ``None``
            where the targets were known.
        log_evidence: ``[*batch]`` log-probability of the data, ``None`` where it is not known.
        cyclic: ``[*batch, m]`` which graphs were learned with a cycle: they are left out, empty and of weight zero, so
            that the graphs of a batch stay one tensor; ``None`` where none could have one.

    Raises:
        ValueError: shapes that do not fit, weights that do not sum to 1, a graph with a cycle.
    """

    graphs: Bool[Tensor, "*batch m d d"]
    log_weights: Float[Tensor, "*batch m"]
    targets: Float[Tensor, "*batch m e d"] | None = None
    log_evidence: Float[Tensor, "*batch"] | None = None
    cyclic: Bool[Tensor, "*batch m"] | None = None

    def __post_init__(self) -> None:
        check_square("graphs", check_tensor("graphs", self.graphs))
        if self.log_weights.shape != self.graphs.shape[:-2]:
            raise ValueError(
                f"log_weights must have shape {tuple(self.graphs.shape[:-2])}, got {tuple(self.log_weights.shape)}"
            )
        total = self.log_weights.logsumexp(-1)
        if not bool((total.abs() <= 1e-3).all()):
            raise ValueError(f"log_weights must be normalised, got weights that sum to {total.exp().flatten()[0]:.4g}")
        acyclic = is_acyclic(self.graphs)
        if not bool(acyclic.all()):
            raise ValueError(f"graphs must have no cycles, got {int((~acyclic).sum())} with one")

    def edge_probabilities(self) -> Float[Tensor, "*batch d d"]:
        """Return the probability of every arc."""
        return (self.log_weights.exp()[..., None, None] * self.graphs).sum(-3)

    def target_probabilities(self) -> Float[Tensor, "*batch e d"]:
        """Return the probability that an environment intervenes on a node.

        Raises:
            ValueError: the targets were known.
        """
        if self.targets is None:
            raise ValueError("the posterior has no targets: they were known")
        return (self.log_weights.exp()[..., None, None] * self.targets).sum(-3)


def expected_shd(
    posterior: GraphPosterior, truth: Num[Tensor, "*batch d d"] | Bool[Tensor, "*batch d d"]
) -> Float[Tensor, "*batch"]:
    """Return the mean structural Hamming distance of the graphs of a posterior to the truth.

    Args:
        posterior: over graphs of ``d`` nodes.
        truth: ``[*batch, d, d]`` non-zero where there is an arc.

    Returns:
        ``[*batch]``, >= 0.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> graphs = torch.tensor([[[0, 1], [0, 0]], [[0, 0], [0, 0]]]) != 0
        >>> expected_shd(GraphPosterior(graphs, torch.tensor([0.75, 0.25]).log()), graphs[0]).item()
        0.25
    """
    each = truth.unsqueeze(-3).expand(posterior.graphs.shape)
    shd = edge_metrics(each, posterior.graphs.to(posterior.log_weights), threshold=0.5).shd
    return (posterior.log_weights.exp() * shd).sum(-1)


def expected_sid(
    posterior: GraphPosterior, truth: Num[Tensor, "*batch d d"] | Bool[Tensor, "*batch d d"]
) -> Float[Tensor, "*batch"]:
    """Return the mean structural intervention distance of the graphs of a posterior to the truth.

    Args:
        posterior: over graphs of ``d`` nodes; graphs of weight zero are not looked at.
        truth: ``[*batch, d, d]`` acyclic, non-zero where there is an arc.

    Returns:
        ``[*batch]`` in ``[0, d (d - 1)]``.

    Raises:
        ValueError: shapes differ, the truth has a cycle.

    Example:
        >>> graphs = torch.tensor([[[0, 1], [0, 0]], [[0, 0], [1, 0]]]) != 0
        >>> expected_sid(GraphPosterior(graphs, torch.tensor([0.75, 0.25]).log()), graphs[0]).item()
        0.5

    References:
        Peters, Buehlmann (2015), Structural Intervention Distance.
    """
    if truth.shape != (*posterior.graphs.shape[:-3], *posterior.graphs.shape[-2:]):
        raise ValueError(f"truth must be a graph for each of the posterior's, got shape {tuple(truth.shape)}")
    weights = posterior.log_weights.exp().flatten(0, -2) if truth.ndim > 2 else posterior.log_weights.exp()[None]
    expected = torch.zeros_like(weights[:, 0])
    graphs = posterior.graphs.reshape(*weights.shape, *truth.shape[-2:])
    for problem, graph in enumerate(truth.reshape(-1, *truth.shape[-2:])):
        different, place = graphs[problem].unique(dim=0, return_inverse=True)
        share = weights.new_zeros(len(different)).index_add(0, place, weights[problem])
        looked_at = share > 0
        distances = structural_intervention_distance(graph, different[looked_at])
        expected[problem] = (share[looked_at] * distances).sum()
    return expected.reshape(truth.shape[:-2])


def enumerate_dags(nodes: int) -> Bool[Tensor, "m d d"]:
    """Return every directed acyclic graph of a few labelled nodes: 1, 3, 25, 543, 29 281 for 1 to 5.

    Args:
        nodes: 1 to 5.

    Returns:
        ``[m, d, d]`` booleans, the empty graph first.

    Raises:
        ValueError: more nodes.

    Example:
        >>> enumerate_dags(3).shape
        torch.Size([25, 3, 3])

    References:
        Robinson (1977), Counting Unlabeled Acyclic Digraphs, for their number.
    """
    check_integer("nodes", nodes, 1, LARGEST)
    # Node by node: a graph of k + 1 nodes is one of k nodes with parents and children of the new node.
    graphs = torch.zeros(1, 1, 1, dtype=torch.bool)
    for size in range(1, nodes):
        ways = torch.tensor(list(itertools.product((False, True), repeat=2 * size)))
        wider = torch.zeros(len(graphs), len(ways), size + 1, size + 1, dtype=torch.bool)
        wider[..., :size, :size] = graphs[:, None]
        wider[..., size, :size], wider[..., :size, size] = ways[:, :size], ways[:, size:]
        graphs = wider[is_acyclic(wider)]
    codes = (graphs.flatten(1).long() << torch.arange(nodes * nodes)).sum(1)
    return graphs[codes.argsort()]


def exact_graph_posterior(
    x: Shaped[Tensor, "n d"],
    environments: Shaped[Tensor, " n"] | None = None,
    *,
    targets: Shaped[Tensor, "e d"] | None = None,
    noise: float = 1.0,
    weight_scale: float = 1.0,
    intervention_noise: float = 1.0,
    intervention_scale: float = 10.0,
    edge_probability: float = 0.5,
    target_probability: float = 0.5,
) -> GraphPosterior:
    r"""Return the exact posterior over all graphs of a linear Gaussian model of up to five nodes.

    Node ``j`` is :math:`x_j = \sum_{i \in pa(j)} w_{ij} x_i + \sigma e`, :math:`w \sim N(0, \tau^2)`; in an environment
    that intervenes on it :math:`x_j = m_{ej} + \sigma_I e`, :math:`m \sim N(0, \tau_I^2)`, whatever its parents. The
    weights and means are integrated out, so the evidence is a product over the nodes of

    .. math:: \log N(x_j; 0, \sigma^2 I + \tau^2 X_{pa} X_{pa}^T) + \sum_{e \ni j} \log N(x_j^e; 0, \sigma_I^2 I +
        \tau_I^2 \mathbf 1 \mathbf 1^T)

    and, with unknown targets, of a sum over all sets of environments that may intervene on the node.

    Args:
        x: ``[n, d]`` samples, ``d <= 5``, not centred.
        environments: ``[n]`` whole numbers, 0 the observational one, 1 to ``e`` the others; ``None``: all are 0.
        targets: ``[e, d]`` which nodes each environment intervenes on; ``None`` if unknown.
        noise, weight_scale: ``sigma``, ``tau``, > 0.
        intervention_noise, intervention_scale: ``sigma_I``, ``tau_I``, > 0.
        edge_probability, target_probability: priors of an arc (over all DAGs, renormalised) and of a target, in (0, 1).

    Returns:
        :class:`GraphPosterior` over all DAGs with ``targets`` and ``log_evidence``, in double precision.

    Raises:
        TypeError: not floating samples.
        ValueError: more than five nodes, environments that are not 0 to ``e``, an environment with fewer than two rows,
            a parameter out of range.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> cause = torch.randn(200, 1, generator=g)
        >>> x = torch.cat([cause, cause + torch.randn(200, 1, generator=g)], 1)
        >>> exact_graph_posterior(x).edge_probabilities().max() > 0.5
        tensor(True)

    References:
        Haegele et al. (2023), BaCaDI, for the model; Bishop (2006), equation 3.86, for the evidence of a regression.
    """
    check_shape("x", check_floating("x", x), (None, None))
    check_finite("x", x)
    n, nodes = x.shape
    check_integer("the number of nodes of x", nodes, 1, LARGEST)
    check_scalar("noise", noise)
    check_scalar("weight_scale", weight_scale)
    check_scalar("intervention_noise", intervention_noise)
    check_scalar("intervention_scale", intervention_scale)
    for name, value in (("edge_probability", edge_probability), ("target_probability", target_probability)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must be in (0, 1), got {value}")
    x = x.detach().double().cpu()
    count = count_environments(n, environments)
    where = torch.zeros(n, dtype=torch.int64) if environments is None else environments.cpu()
    moments = torch.stack([x[where == e].T @ x[where == e] for e in range(count)])
    sizes = torch.tensor([int((where == e).sum()) for e in range(count)]).double()
    means = torch.stack([x[where == e].sum(0) for e in range(count)])

    # Every set of environments that could intervene on a node, and every set of parents, as masks.
    sets = torch.tensor(list(itertools.product((False, True), repeat=count - 1))).bool()
    left = torch.cat([torch.ones(len(sets), 1), (~sets).double()], 1).double()
    parents = torch.tensor(list(itertools.product((False, True), repeat=nodes)))
    regressions = _regression_evidence(
        torch.einsum("se,eij->sij", left, moments), left @ sizes, parents.double(), noise, weight_scale
    )  # [sets, nodes, parent sets]
    squares = moments.diagonal(dim1=-2, dim2=-1)
    shifted = mean_evidence(squares, means, sizes[:, None], intervention_noise, intervention_scale)[1:]  # [e, nodes]
    chosen = sets.double().sum(1)
    odds = chosen * math.log(target_probability) + (count - 1 - chosen) * math.log1p(-target_probability)
    evidence = regressions + (sets.double() @ shifted)[:, :, None] + odds[:, None, None]
    if targets is not None:
        check_shape("targets", check_tensor("targets", targets), (count - 1, nodes))
        known = (targets.cpu().bool()[None] == sets[:, :, None]).all(1)  # [sets, nodes]
        evidence = (evidence - odds[:, None, None]).masked_fill(~known[:, :, None], -math.inf)
    of_parents = evidence.logsumexp(0)  # [nodes, parent sets]
    shares = (evidence - of_parents).exp()
    targeted = torch.einsum("snp,se->pen", shares, sets.double())  # [parent sets, e, nodes]

    graphs = enumerate_dags(nodes)
    codes = (graphs.mT.long() << torch.arange(nodes).flip(0)).sum(-1)  # the set of parents of every node
    every = torch.arange(nodes).expand(codes.shape)
    arcs = graphs.sum((-2, -1)).double()
    possible = nodes * (nodes - 1)
    log_prior = arcs * math.log(edge_probability) + (possible - arcs) * math.log1p(-edge_probability)
    log_joint = of_parents[every, codes].sum(-1) + log_prior - log_prior.logsumexp(0)
    log_evidence = log_joint.logsumexp(0)
    of_graphs = targeted[codes, :, every].movedim(1, 2)  # [m, e, nodes]
    return GraphPosterior(graphs, log_joint - log_evidence, None if targets is not None else of_graphs, log_evidence)


def _regression_evidence(moments: Tensor, sizes: Tensor, parents: Tensor, noise: float, scale: float) -> Tensor:
    """Return ``[sets, nodes, parent sets]``: a Bayesian regression of every node on every set of nodes."""
    nodes = moments.shape[-1]
    ratio = (scale / noise) ** 2
    masked = moments[:, None] * parents[:, :, None] * parents[:, None, :]
    factor = torch.linalg.cholesky(torch.eye(nodes).double() + ratio * masked)
    log_determinant = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # [sets, parent sets]
    cross = moments[:, None] * parents[:, :, None]  # of the parents with every node
    explained = (cross * torch.cholesky_solve(cross, factor)).sum(-2) * ratio  # [sets, parent sets, nodes]
    squares = moments.diagonal(dim1=-2, dim2=-1)[:, None]
    misfit = (squares - explained) / noise**2
    constant = sizes * math.log(2 * math.pi * noise**2)
    evidence = -0.5 * (constant[:, None, None] + log_determinant[..., None] + misfit).mT
    itself = parents.mT.bool()  # [nodes, parent sets]: a node is no parent of its own
    return evidence.masked_fill(itself, -math.inf)
