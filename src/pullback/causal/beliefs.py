"""Independent beliefs about every arc: masks and graphs drawn from them, and how the likelihood of masks moves them."""

from __future__ import annotations

import math

import torch
from torch import nn

from pullback.causal.graphs import check_square
from pullback.core.checks import check_floating, check_integer, check_positive, check_scalar, check_tensor
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Scalar, Shaped, Tensor
from pullback.core.transforms import can_look

__all__ = ["GraphBelief", "belief_gradient", "sample_dags_from_beliefs"]


class GraphBelief(nn.Module):
    r"""A probability :math:`\sigma(\gamma_{ij})` for every arc, the arcs independent, with what keeps them few.

    Args:
        nodes: ``d`` >= 2.
        batch: leading shape of independent beliefs.
        sparsity: weight of the sum of all probabilities, >= 0.
        cycles: weight of :math:`\sum_{i<j} (\cosh(\sigma(\gamma_{ij}) \sigma(\gamma_{ji})) - 1)`, which is 0 only where
            no pair of nodes may have arcs both ways, >= 0.

    Raises:
        ValueError: arguments out of range.

    Example:
        >>> belief = GraphBelief(3, sparsity=0.5, cycles=0.0)
        >>> belief().sum().item(), belief.penalty().item()  # six arcs, one half each
        (3.0, 1.5)

    References:
        Ke et al. (2019), Learning Neural Causal Models from Unknown Interventions, sections 3.3 and 3.5.
    """

    def __init__(self, nodes: int, *, batch: tuple[int, ...] = (), sparsity: float = 0.1, cycles: float = 0.5) -> None:
        super().__init__()
        check_integer("nodes", nodes, 2)
        check_positive("sparsity", sparsity, zero=True)
        check_positive("cycles", cycles, zero=True)
        self.sparsity, self.cycles = sparsity, cycles
        self.logits = nn.Parameter(torch.zeros(*batch, nodes, nodes))

    def forward(self) -> Float[Tensor, "*batch d d"]:
        """Return the probabilities, zero on the diagonal."""
        loops = torch.eye(self.logits.shape[-1], dtype=torch.bool, device=self.logits.device)
        return self.logits.sigmoid().masked_fill(loops, 0.0)

    def sample(self, count: int, *, generator: torch.Generator | None = None) -> Bool[Tensor, "count *batch d d"]:
        """Draw masks of arcs, each arc by itself; they may have cycles.

        Args:
            count: masks, >= 1.
            generator: source of the draws.
        """
        check_integer("count", count, 1)
        probability = self().detach()
        return _uniform((count, *probability.shape), probability, generator) < probability

    def penalty(self) -> Float[Tensor, "*batch"]:
        """Return the two penalties of every belief, weighted and added."""
        probability = self()
        both = (probability * probability.mT).cosh() - 1
        return self.sparsity * probability.sum((-2, -1)) + self.cycles * both.sum((-2, -1)) / 2


def belief_gradient(
    log_likelihoods: Float[Tensor, "m *batch d"],
    masks: Shaped[Tensor, "m *batch d d"],
    beliefs: Float[Tensor, "*batch d d"],
    *,
    targets: Bool[Tensor, "*#batch d"] | None = None,
) -> Float[Tensor, "*batch d d"]:
    r"""Estimate how to move the logits of beliefs so that masks of higher likelihood become more probable.

    .. math:: g_{ij} = \sum_m w_j^m\, (\sigma(\gamma_{ij}) - c_{ij}^m), \qquad
        w_j^m = \frac{\exp L_j^m}{\sum_n \exp L_j^n}

    with masks :math:`c^m` drawn from the beliefs. It tends to the gradient of
    :math:`-\log E_c\,[\exp L_j(c)]`, the belief less the posterior probability of the arc, as their number grows; with
    ``m`` masks it is biased towards zero by a share of order ``1/m``.

    Args:
        log_likelihoods: ``[m, *batch, d]`` of each node given its parents in each mask: the sum over the samples for
            a posterior, less for a flatter one.
        masks: ``[m, *batch, d, d]`` zeros and ones, ``m >= 2``.
        beliefs: ``[*batch, d, d]`` probabilities of arcs from which the masks were drawn.
        targets: ``[*batch, d]`` nodes that were set: their own mechanism was not seen, so that the arcs into them have
            gradient 0.

    Returns:
        ``[*batch, d, d]``, to descend along.

    Raises:
        ValueError: shapes that do not fit, fewer than two masks.

    Example:
        >>> masks = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
        >>> likelihoods = torch.tensor([[0.0, 2.0], [0.0, 0.0]])  # the second node is likelier with the arc
        >>> beliefs = torch.full((2, 2), 0.5).fill_diagonal_(0.0)
        >>> belief_gradient(likelihoods, masks, beliefs)[0, 1].item() < 0
        True

    References:
        Ke et al. (2019), Learning Neural Causal Models from Unknown Interventions, equation 3; Bengio et al. (2020).
    """
    check_square("beliefs", check_floating("beliefs", beliefs))
    check_floating("log_likelihoods", log_likelihoods)
    if check_tensor("masks", masks).ndim == 0 or masks.shape[1:] != beliefs.shape:
        wanted = ", ".join(map(str, ("m", *beliefs.shape)))
        raise ValueError(f"masks must have shape ({wanted}), got {tuple(masks.shape)}")
    check_integer("the number of masks", len(masks), 2)
    if log_likelihoods.shape != masks.shape[:-1]:
        raise ValueError(
            f"log_likelihoods must have shape {tuple(masks.shape[:-1])}, got {tuple(log_likelihoods.shape)}"
        )
    weights = log_likelihoods.softmax(0).unsqueeze(-2)  # a weight for the arcs into a node: its columns
    gradient = beliefs - (weights * masks).sum(0)
    return gradient if targets is None else gradient.masked_fill(targets.unsqueeze(-2), 0.0)


def sample_dags_from_beliefs(
    beliefs: Float[Tensor, "*batch d d"],
    count: int,
    *,
    temperature: Scalar = 0.1,
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "count *batch d d"]:
    r"""Draw graphs without cycles from beliefs about single arcs, which may contradict each other.

    First an order: the next node ``j`` is drawn from those that are left, :math:`R`, with probability proportional to
    :math:`\exp(-\max_{i \in R} p_{ij} / t)`, so that nodes that hardly have parents among the others come first.
    Then every arc that goes along the order is drawn with its own probability.

    Args:
        beliefs: ``[*batch, d, d]`` probabilities of arcs; the diagonal is ignored.
        count: graphs of each, >= 1.
        temperature: > 0; the smaller, the more the order follows the beliefs.
        generator: source of the draws.

    Returns:
        ``[count, *batch, d, d]`` booleans.

    Raises:
        ValueError: not square, probabilities outside of [0, 1], options out of range.

    Example:
        >>> beliefs = torch.tensor([[0.0, 0.9], [0.2, 0.0]])
        >>> graphs = sample_dags_from_beliefs(beliefs, 1000, generator=torch.Generator().manual_seed(0))
        >>> bool((graphs & graphs.mT).any()), round(graphs[:, 0, 1].double().mean().item(), 1)
        (False, 0.9)

    References:
        Scherrer et al. (2021), Learning Neural Causal Models with Active Interventions, section 4 (two-phase sampling).
    """
    nodes = check_square("beliefs", check_floating("beliefs", beliefs))
    check_integer("count", count, 1)
    check_scalar("temperature", temperature)
    beliefs = beliefs.detach()
    if can_look(beliefs) and not bool(((beliefs >= 0) & (beliefs <= 1)).all()):
        raise ValueError(f"beliefs must be in [0, 1], got {beliefs.min().item():.4g} to {beliefs.max().item():.4g}")
    loops = torch.eye(nodes, dtype=torch.bool, device=beliefs.device)
    probability = beliefs.masked_fill(loops, 0.0).expand(count, *beliefs.shape)
    uniform = _uniform((count, *beliefs.shape[:-1], nodes), beliefs, generator)  # one row for each place of the order
    gumbel = -(-uniform.clamp_min(torch.finfo(beliefs.dtype).tiny).log()).log()
    left = torch.ones(probability.shape[:-1], dtype=torch.bool, device=beliefs.device)
    place = torch.zeros(probability.shape[:-1], dtype=torch.int64, device=beliefs.device)
    for turn in range(nodes):
        strongest = probability.masked_fill(~left.unsqueeze(-1), 0.0).amax(-2)
        score = -strongest / temperature + gumbel[..., turn, :]
        root = score.masked_fill(~left, -math.inf).argmax(-1, keepdim=True)
        place.scatter_(-1, root, turn)
        left = left.scatter(-1, root, False)
    along = place.unsqueeze(-1) < place.unsqueeze(-2)
    return (_uniform(probability.shape, beliefs, generator) < probability) & along


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = drawing_device(generator, like)
    return torch.rand(shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
