r"""A law over directed acyclic graphs that is sampled exactly and differentiably: an order, then arcs along it.

An arc i -> j is there where i comes before j in a random order and a coin of its own falls so:

.. math:: A = E \odot P^TMP,\quad E_{ij}\sim Bernoulli(\sigma(\phi_{ij})),\quad M_{kl}=[k<l]

with a permutation matrix P (row = place). Every sample is acyclic; nothing is penalised or projected.

References:
    Charpentier, Kibler, Guennemann (2022), Differentiable DAG sampling, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from pullback.causal.graphs import check_square, is_acyclic
from pullback.core.checks import (
    check_broadcast,
    check_choice,
    check_floating,
    check_integer,
    check_positive,
    check_range,
    check_tensor,
)
from pullback.core.gradients import replace_gradient
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Int, Num, Tensor
from pullback.core.transforms import can_look
from pullback.discrete import PlackettLuce, bernoulli, gumbel_noise
from pullback.transport import assignment, sinkhorn

__all__ = ["DAGDistribution", "DAGLogProb", "bernoulli_kl"]

LARGEST = 14
"""Nodes up to which all subsets are gone through: 16 384 of them."""


class DAGLogProb(NamedTuple):
    """The log-probability of graphs.

    Attributes:
        value: ``[*batch]``.
        exact: whether it is; else an importance estimate over orders.
        error: ``[*batch]`` standard error of the estimate of ``value``; 0 where it is exact.
    """

    value: Float[Tensor, "*batch"]
    exact: bool
    error: Float[Tensor, "*batch"]


class DAGDistribution(nn.Module):
    r"""DP-DAG: orders by Gumbel top-k or Gumbel-Sinkhorn, arcs by Bernoulli coins.

    Args:
        nodes: d >= 2.
        order: ``"topk"``: scores ``[d]`` and the Plackett-Luce law, O(d^2) and a relaxed sort. ``"sinkhorn"``: scores
            ``[d, d]`` of node and place; noise, ``iterations`` of Sinkhorn for the gradient and an exact matching for
            the value, O(d^3).
        temperature: > 0, of the relaxed order.
        edge_temperature: > 0, of the relaxed coins.
        noise: >= 0, the factor of the Gumbel noise of ``"sinkhorn"``; with ``"topk"`` and 1 the law of orders is
            Plackett-Luce, and only then are probabilities explicit, so it is fixed there.
        iterations: of Sinkhorn at most.
        allowed: ``[d, d]`` which arcs may be; all by default. The diagonal never is.
        batch: leading dimensions of the parameters, that many laws.
        generator: of the initial ``logits``, uniform in [0, 1); scores start at 0.

    Attributes:
        scores: ``psi``, ``[*batch, d]`` or ``[*batch, d, d]``: a node with a larger score comes earlier.
        logits: ``phi``, ``[*batch, d, d]``.

    Raises:
        ValueError: fewer than two nodes, a temperature that is not positive, a mask of another shape or without an
            allowed arc.

    Example:
        >>> law = DAGDistribution(3, generator=torch.Generator().manual_seed(0))
        >>> graphs = law.rsample((100,), generator=torch.Generator().manual_seed(0))
        >>> bool(is_acyclic(graphs).all()), graphs.unique().tolist()
        (True, [0.0, 1.0])
        >>> law.log_prob(graphs[:2]).exact
        True
    """

    allowed: Tensor

    def __init__(
        self,
        nodes: int,
        *,
        order: str = "topk",
        temperature: float = 1.0,
        edge_temperature: float = 1.0,
        noise: float = 1.0,
        iterations: int = 20,
        allowed: Bool[Tensor, "d d"] | None = None,
        batch: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.nodes = check_integer("nodes", nodes, 2)
        check_choice("order", order, ("topk", "sinkhorn"))
        check_positive("temperature", temperature)
        check_positive("edge_temperature", edge_temperature)
        check_positive("noise", noise, zero=True)
        if order == "topk" and noise != 1:
            raise ValueError(f"noise must be 1 with order 'topk', got {noise}")
        self.order, self.temperature, self.edge_temperature = order, temperature, edge_temperature
        self.noise, self.iterations = noise, check_integer("iterations", iterations, 1)
        arcs = ~torch.eye(nodes, dtype=torch.bool)
        if allowed is not None:
            if tuple(check_tensor("allowed", allowed).shape) != (nodes, nodes):
                raise ValueError(f"allowed must have shape ({nodes}, {nodes}), got {tuple(allowed.shape)}")
            arcs = arcs & allowed.bool().cpu()
            if not bool(arcs.any()):
                raise ValueError("allowed must allow at least one arc, got none off the diagonal")
        self.register_buffer("allowed", arcs)
        self.batch = tuple(check_integer("batch", size, 1) for size in batch)
        square = (*self.batch, nodes, nodes)
        self.scores = nn.Parameter(torch.zeros((*self.batch, nodes) if order == "topk" else square))
        self.logits = nn.Parameter(torch.empty(square).uniform_(generator=generator))

    def rsample(
        self, shape: Sequence[int] = (), *, hard: bool = True, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*any d d"]:
        """Draw graphs.

        Args:
            shape: of independent samples.
            hard: exact graphs with the gradient of the relaxation; else the relaxation, whose entries lie in [0, 1].
            generator: torch's default one if ``None``.

        Returns:
            ``[*shape, *batch, d, d]``.
        """
        shape = tuple(check_integer("shape", size, 0) for size in shape)
        precedes = self._precedes(shape, hard, generator)
        probability = torch.sigmoid(self.logits).expand(*shape, *self.logits.shape)
        coins = bernoulli(probability, temperature=self.edge_temperature, hard=hard, generator=generator)
        return coins * precedes * self.allowed

    def mode(self, threshold: float = 0.5) -> Bool[Tensor, "*batch d d"]:
        """Return the deterministic graph: the most probable order, arcs whose coin is above ``threshold``.

        Args:
            threshold: in [0, 1].

        Returns:
            ``[*batch, d, d]`` acyclic.
        """
        check_range("threshold", threshold, 0, 1)
        places = _places(self._most_probable())
        return (places.unsqueeze(-1) < places.unsqueeze(-2)) & (torch.sigmoid(self.logits) > threshold) & self.allowed

    def edge_probability(
        self, samples: int | None = None, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "*batch d d"]:
        r"""Return the probability of every arc.

        With ``"topk"`` it is :math:`\sigma(\psi_i-\psi_j)\,\sigma(\phi_{ij})` and differentiable; with ``"sinkhorn"``
        the share of ``samples`` orders, times the coin.

        Args:
            samples: orders to draw; needed with ``"sinkhorn"``, ignored with ``"topk"``.
            generator: torch's default one if ``None``.

        Raises:
            ValueError: ``samples`` is missing.
        """
        if self.order == "topk":
            before = PlackettLuce(self.scores).precedence()
        elif samples is None:
            raise ValueError("samples must be given: with order 'sinkhorn' the probability is not explicit")
        else:
            with torch.no_grad():
                before = self._precedes((check_integer("samples", samples, 1),), True, generator).mean(0)
        return before * torch.sigmoid(self.logits) * self.allowed

    def log_prob(
        self,
        adjacency: Num[Tensor, "*any d d"] | Bool[Tensor, "*any d d"],
        *,
        samples: int = 1000,
        generator: torch.Generator | None = None,
    ) -> DAGLogProb:
        r"""Return the log-probability of graphs under order ``"topk"``.

        .. math:: P(A) = \prod_{A_{ij}=1}\sigma(\phi_{ij}) \sum_\pi PL(\pi)\,[A \text{ follows } \pi]
            \prod_{i\text{ before }j,\,A_{ij}=0}(1-\sigma(\phi_{ij}))

        Up to 14 nodes the sum over orders is one over subsets: :math:`F(S+j) = \sum_j F(S)\,P(j\text{ next}|S)`.

        Args:
            adjacency: ``[*any, d, d]`` zeros and ones, acyclic; broadcast against the batch.
            samples: orders of the importance estimate for more nodes, drawn among those that the graph follows.
            generator: of these; torch's default one if ``None``.

        Returns:
            :class:`DAGLogProb`; ``-inf`` for a graph with an arc that is not allowed.

        Raises:
            ValueError: the order is ``"sinkhorn"``, whose law has no closed form; a graph is cyclic or not binary.
        """
        if self.order != "topk":
            raise ValueError("log_prob must have order 'topk': the law of Gumbel-Sinkhorn orders has no closed form")
        if check_square("adjacency", adjacency) != self.nodes:
            raise ValueError(f"adjacency must be of {self.nodes} nodes, got {tuple(adjacency.shape)}")
        if not bool(((adjacency == 0) | (adjacency == 1)).all()):
            raise ValueError("adjacency must hold zeros and ones only")
        acyclic = is_acyclic(adjacency)
        if not bool(acyclic.all()):
            raise ValueError(f"adjacency must have no cycle, got {int((~acyclic).sum())} graphs with one")
        batch = check_broadcast(adjacency=tuple(adjacency.shape[:-2]), batch=self.batch)
        arcs = (adjacency != 0).to(self.logits.device).expand(*batch, self.nodes, self.nodes)
        # A coin of an arc that is not allowed is never thrown: it neither helps nor hinders.
        present = torch.where(arcs & self.allowed, logsigmoid(self.logits), 0).sum((-2, -1))
        present = torch.where((arcs & ~self.allowed).any(-1).any(-1), -torch.inf, present)
        absent = torch.where(~arcs & self.allowed, logsigmoid(-self.logits), 0)
        scores = self.scores.expand(*batch, self.nodes)
        if self.nodes <= LARGEST:
            value = present + _over_subsets(arcs, absent, scores)
            return DAGLogProb(value, True, torch.zeros_like(value))
        terms = _sampled_orders(arcs, absent, scores, check_integer("samples", samples, 2), generator)
        weights = torch.softmax(terms.detach(), 0) * samples
        error = weights.std(0) / math.sqrt(samples)
        return DAGLogProb(present + terms.logsumexp(0) - math.log(samples), False, error)

    def _most_probable(self) -> Int[Tensor, "*batch d"]:
        """The order without noise."""
        if self.order == "topk":
            return PlackettLuce(self.scores).mode()
        return assignment(self.scores.detach().mT, maximize=True).columns

    def _precedes(self, shape: tuple[int, ...], hard: bool, generator: torch.Generator | None) -> Tensor:
        """``P^T M P``: whether i comes before j, relaxed unless ``hard``, with the gradient of the relaxation."""
        with_gradient = not hard or (torch.is_grad_enabled() and self.scores.requires_grad)
        scores = self.scores.expand(*shape, *self.scores.shape)
        if self.order == "topk":
            state = _noise(scores, generator)
            order = (torch.log_softmax(scores.detach(), -1) + state).argsort(-1, descending=True)
        else:
            state = self.noise * _noise(scores, generator)
            order = assignment((scores.detach() + state).mT, maximize=True).columns
        places = _places(order)
        exact = (places.unsqueeze(-1) < places.unsqueeze(-2)).to(scores.dtype)
        if not with_gradient:
            return exact
        if self.order == "topk":
            noisy = torch.log_softmax(scores, -1) + state
            ranked = noisy.gather(-1, order)
            soft = torch.softmax(-(ranked.unsqueeze(-1) - noisy.unsqueeze(-2)).abs() / self.temperature, -1)
        else:
            ones = torch.ones(self.nodes, dtype=scores.dtype, device=scores.device)
            options = {"epsilon": self.temperature, "max_iterations": self.iterations, "gradient": "unrolled"}
            soft = sinkhorn(-(scores + state).mT, ones, ones, tolerance=1e-6, **options).plan  # type: ignore[arg-type]
        later = soft.flip(-2).cumsum(-2).flip(-2) - soft  # (M P): the share of j in the places after k
        relaxed = soft.mT @ later
        return replace_gradient(exact, relaxed) if hard else relaxed


def bernoulli_kl(logits: Float[Tensor, "*shape"], prior: float | Float[Tensor, "..."]) -> Float[Tensor, "*shape"]:
    r"""Return :math:`KL(Bernoulli(\sigma(\phi))\,\|\,Bernoulli(p_0))`, entry by entry, in nats.

    Args:
        logits: ``[*shape]`` of the coins.
        prior: p_0 in (0, 1), a number or a tensor that broadcasts.

    Returns:
        ``[*shape]`` >= 0.

    Raises:
        TypeError: ``logits`` is no floating tensor.
        ValueError: ``prior`` is not inside (0, 1).

    Example:
        >>> bernoulli_kl(torch.tensor([0.0]), 0.5).abs().item()
        0.0
        >>> round(bernoulli_kl(torch.tensor([0.0]), 0.01).item(), 4)
        1.6145
    """
    check_floating("logits", logits)
    value = torch.as_tensor(prior, dtype=torch.promote_types(logits.dtype, torch.float32), device=logits.device)
    if can_look(value) and not bool(((value > 0) & (value < 1)).all()):
        raise ValueError(f"prior must be inside (0, 1), got {value.flatten()[0].item():g}")
    check_broadcast(logits=tuple(logits.shape), prior=tuple(value.shape))
    wide = logits.to(value.dtype)
    p = torch.sigmoid(wide)
    kept = p * (logsigmoid(wide) - value.log()) + (1 - p) * (logsigmoid(-wide) - torch.log1p(-value))
    return kept.clamp(min=0).to(logits.dtype)


def _noise(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = drawing_device(generator, like)
    return gumbel_noise(like.shape, dtype=like.dtype, device=device, generator=generator).to(like.device)


def _places(order: Tensor) -> Tensor:
    """The inverse of an order: at which place each node stands."""
    return order.argsort(-1)


@cache
def _subsets(nodes: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Membership ``[2^d, d]``; for each size the subsets of it, and for each member the subset without it."""
    members = (torch.arange(2**nodes).unsqueeze(-1) >> torch.arange(nodes)) & 1
    layers = []
    for size in range(1, nodes + 1):
        chosen = (members.sum(-1) == size).nonzero().squeeze(-1)
        last = members[chosen].nonzero()[:, 1].view(-1, size)
        layers.append((chosen, last))
    return members.bool(), layers


_NEVER = -1e30
"""Logarithm of the probability of what cannot be; finite, so that sums of such have a gradient."""


def _over_subsets(arcs: Tensor, absent: Tensor, scores: Tensor) -> Tensor:
    """Log of the sum over orders: ``F(S + j) += F(S) P(j is next after S) prod_{i in S} (coin of i -> j fell so)``."""
    members, layers = _subsets(arcs.shape[-1])
    members = members.to(arcs.device)
    inside = members.to(absent.dtype)
    remaining = torch.where(members, _NEVER, scores.unsqueeze(-2)).logsumexp(-1, keepdim=True)
    step = scores.unsqueeze(-2) - remaining + inside @ absent
    lacking = ((1 - inside) @ arcs.to(absent.dtype)) > 0.5  # a parent of j is not in S
    step = torch.where(lacking, _NEVER, step)
    total = scores.new_zeros(*scores.shape[:-1], len(members))
    for chosen, last in layers:
        chosen, last = chosen.to(arcs.device), last.to(arcs.device)
        before = chosen.unsqueeze(-1) - (1 << last)
        terms = total[..., before] + step[..., before, last]
        total = total.index_copy(-1, chosen, terms.clamp(min=_NEVER).logsumexp(-1))
    return total[..., -1]


def _sampled_orders(
    arcs: Tensor, absent: Tensor, scores: Tensor, samples: int, generator: torch.Generator | None
) -> Tensor:
    """Log-weights ``[samples, *batch]`` of orders drawn node by node among those whose parents are placed."""
    nodes = arcs.shape[-1]
    scores = scores.expand(samples, *scores.shape)
    placed = torch.zeros_like(scores, dtype=torch.bool)
    parents = arcs.to(absent.dtype)
    total = torch.zeros(scores.shape[:-1], dtype=scores.dtype, device=scores.device)
    for _ in range(nodes):
        waiting = (~placed).to(absent.dtype)
        ready = ~placed & ((waiting.unsqueeze(-2) @ parents).squeeze(-2) < 0.5)
        noisy = scores.detach() + _noise(scores, generator)  # its largest is drawn in proportion to the weights
        node = torch.where(ready, noisy, -torch.inf).argmax(-1, keepdim=True)
        law = scores - torch.where(placed, -torch.inf, scores).logsumexp(-1, keepdim=True)
        drawn_by = scores.detach() - torch.where(ready, scores.detach(), -torch.inf).logsumexp(-1, keepdim=True)
        coins = (placed.to(absent.dtype).unsqueeze(-2) @ absent).squeeze(-2)
        total = total + (law - drawn_by + coins).gather(-1, node).squeeze(-1)
        placed = placed.scatter(-1, node, True)
    return total
