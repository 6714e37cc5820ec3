"""Messages between continuous variables as weighted points, which the receiver draws and the sender's side weighs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch

from pullback.core.checks import check_callable, check_finite, check_floating, check_integer, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.uncertainty.density import kernel_density
from pullback.uncertainty.gaussian_beliefs import Edges, check_graph
from pullback.uncertainty.resampling import DegenerateWeights, check_weights

__all__ = [
    "Beliefs",
    "EdgePotential",
    "FactorLosses",
    "Factors",
    "PulledMessages",
    "check_beliefs",
    "normalised",
    "pull_messages",
]

_Unary = Callable[[int, Tensor], Tensor]


@runtime_checkable
class EdgePotential(Protocol):
    """What is known of the difference of two nodes: its density, and draws of it."""

    def log_prob(self, difference: Tensor) -> Tensor:
        """Return the log density (up to a constant) of ``x_s - x_t`` ``[..., d]`` of an edge (s, t)."""
        ...

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Draw differences ``[*shape, d]``."""
        ...


class Beliefs(NamedTuple):
    """Weighted points of each node.

    Attributes:
        points: ``[*batch, nodes, M, d]``.
        log_weights: ``[*batch, nodes, M]`` of sum one in each node.
    """

    points: Float[Tensor, "*batch nodes M d"]
    log_weights: Float[Tensor, "*batch nodes M"]

    @property
    def means(self) -> Tensor:
        """Weighted means ``[*batch, nodes, d]``."""
        return (self.log_weights.exp().unsqueeze(-1) * self.points).sum(-2)

    @property
    def variances(self) -> Tensor:
        """Weighted variances ``[*batch, nodes, d]``."""
        return (self.log_weights.exp().unsqueeze(-1) * (self.points - self.means.unsqueeze(-2)).square()).sum(-2)


class FactorLosses(NamedTuple):
    """One loss for each kind of factor.

    Attributes:
        unary: of the unary factors.
        sender: of the samplers of the edges.
        neighbours: of the densities of the edges.
    """

    unary: Float[Tensor, ""]
    sender: Float[Tensor, ""]
    neighbours: Float[Tensor, ""]


class PulledMessages(NamedTuple):
    """Messages into each node, one after the other along M, and apart what their points are weighed by.

    All weights have sum one in each node, of which each of its messages has the same share.

    Attributes:
        points: ``[*batch, nodes, M, d]``.
        log_weights: ``[*batch, nodes, M]`` of the belief, the product of the three below.
        log_unary: by the unary factor of the node itself alone.
        log_sender: by the unary factors of the senders alone, at draws of the edge's sampler.
        log_neighbours: by the densities of the edges alone, at the points of the messages into the senders.
        sizes: of each node, the number of points of each message, in the order of the edges; empty without neighbours.
    """

    points: Float[Tensor, "*batch nodes M d"]
    log_weights: Float[Tensor, "*batch nodes M"]
    log_unary: Float[Tensor, "*batch nodes M"]
    log_sender: Float[Tensor, "*batch nodes M"]
    log_neighbours: Float[Tensor, "*batch nodes M"]
    sizes: tuple[tuple[int, ...], ...]

    @property
    def beliefs(self) -> Beliefs:
        """What the nodes believe."""
        return Beliefs(self.points, self.log_weights)

    @property
    def told(self) -> Beliefs:
        """What they were told: without the unary factor of the node itself."""
        rows = []
        for s, sizes in enumerate(self.sizes):
            total = (self.log_sender + self.log_neighbours)[..., s, :]
            parts = total.split(sizes, -1) if sizes else (total,)
            rows.append(torch.cat([normalised(part, s, "") - math.log(len(parts)) for part in parts], -1))
        return Beliefs(self.points, torch.stack(rows, -2))

    def losses(self, truth: Float[Tensor, "*batch nodes d"], *, bandwidth: float) -> FactorLosses:
        r"""Return :math:`-\log\sum_iw_iN(x;\mu_i,\sigma^2I)` by each kind of weights alone, mean over batch and nodes.

        Args:
            truth: true places x.
            bandwidth: sigma > 0.
        """
        place, kinds = truth.unsqueeze(-2), (self.log_unary, self.log_sender, self.log_neighbours)
        return FactorLosses(*(-kernel_density(self.points, w, place, bandwidth=bandwidth).mean() for w in kinds))


def pull_messages(
    unary: _Unary,
    pairwise: EdgePotential | Sequence[EdgePotential],
    graph: Edges,
    points: Float[Tensor, "*batch nodes M d"],
    *,
    into: Beliefs | None = None,
    truth: Float[Tensor, "*batch nodes d"] | None = None,
    sender: _Unary | None = None,
    samples: int = 10,
    generator: torch.Generator | None = None,
) -> PulledMessages:
    r"""Weigh points at the receivers by what the senders' side says: an update of nonparametric belief propagation.

    The M points :math:`\mu_i` of a node s are shared out among its neighbours t, in the order of the edges (the first
    have one more where it leaves a rest). Those of the message from t are weighed by

    .. math:: w_i\propto\phi_s(\mu_i)\;\frac1L\sum_{l\le L}\phi_t(\mu_i+\delta_l)\;
        \prod_{u\ne s}\sum_jw_{ut}^j\,\psi_{ts}(\mu_{ut}^j-\mu_i),\quad\delta_l\sim\psi_{ts},\ L=\mathtt{samples}

    and the three factors are returned apart too: each kind of factor can be learned by a loss of its own
    (:meth:`PulledMessages.losses`).

    Args:
        unary: ``(node, x)``, log potentials ``[*batch, m]`` of points ``[*batch, m, d]``; -inf where it is none.
        pairwise: of all edges, or one for each: a density and a sampler of ``x_s - x_t`` for an edge (s, t).
        graph: edges as pairs of nodes; loops are allowed.
        points: ``[*batch, nodes, M, d]``, M at least the number of neighbours of every node.
        into: the messages into the senders: points ``[*batch, nodes, M, d]`` shared out likewise, and log weights.
            Without them neighbours of senders say nothing.
        truth: places ``[*batch, nodes, d]`` of the senders in place of ``into``: a message is weighed by
            :math:`\psi_{ts}(x_t-\mu_i)`, for training.
        sender: the unary factors asked at the senders; ``unary`` by default. One of constant weights keeps what the
            samplers learn from what the unary factors learn.
        samples: L >= 1 draws of the sender for each point.
        generator: of these draws.

    Returns:
        :class:`PulledMessages`, differentiable in the potentials, the draws and the points.

    Raises:
        TypeError: a function is not callable, a potential lacks a method, points are no floating tensors.
        ValueError: shapes do not fit, an edge names an unknown node, ``samples`` < 1, fewer points than neighbours,
            both ``into`` and ``truth``.
        DegenerateWeights: no point of a message has any weight; the node is named.

    Example:
        >>> class Near:
        ...     def log_prob(self, difference): return -difference.square().sum(-1) / 2
        ...     def sample(self, shape, generator=None): return torch.zeros(*shape, 1)
        >>> def unary(node, x): return -(x[..., 0] - 4.0 * node).square() / 2  # at 0 and at 4
        >>> found = pull_messages(unary, Near(), [(0, 1)], torch.tensor([[[0.0], [2.0]], [[2.0], [4.0]]]))
        >>> found.log_unary.exp()
        tensor([[0.8808, 0.1192],
                [0.1192, 0.8808]])
        >>> found.log_sender.exp()
        tensor([[0.0025, 0.9975],
                [0.9975, 0.0025]])

    References:
        Desingh, Lu, Opipari, Jenkins (2019), Efficient nonparametric belief propagation for pose estimation and
        manipulation of articulated objects, algorithm 1. Opipari, Pavlasek, Chen, Wang, Desingh, Jenkins (2023), DNBP.
    """
    check_callable("unary", unary)
    if sender is not None:
        check_callable("sender", sender)
    if check_floating("points", points).ndim < 3:
        raise ValueError(f"points must have shape [*batch, nodes, M, d], got {tuple(points.shape)}")
    if can_look(points):
        check_finite("points", points.detach())
    check_integer("samples", samples, 1)
    factors = Factors(unary, pairwise, graph, points.shape[-3], samples, generator)
    factors.check_count(points.shape[-2])
    if into is not None and truth is not None:
        raise ValueError("into and truth must not both be given")
    if into is not None:
        check_beliefs(into, "into")
        if into.points.shape[:-2] != points.shape[:-2] or into.points.shape[-1] != points.shape[-1]:
            raise ValueError(f"into must have points of {_nodes(points)}, got {_nodes(into.points)}")
        factors.check_count(into.points.shape[-2])
    if truth is not None:
        if check_floating("truth", truth).shape != (*points.shape[:-2], points.shape[-1]):
            raise ValueError(
                f"truth must have shape {(*points.shape[:-2], points.shape[-1])}, got {tuple(truth.shape)}"
            )
        check_same_dtype(points=points, truth=truth)
    return factors.pull(points, into, truth, sender or unary, "")


class Factors:
    """The factors of a graph, and what they say of points."""

    def __init__(
        self,
        unary: _Unary,
        pairwise: EdgePotential | Sequence[EdgePotential],
        graph: Edges,
        nodes: int,
        samples: int,
        generator: torch.Generator | None,
    ) -> None:
        edges = check_graph(graph, nodes)
        factors = list(pairwise) if isinstance(pairwise, Sequence) else [pairwise] * len(edges)
        if len(factors) != len(edges):
            raise ValueError(f"pairwise must have a factor for each of {len(edges)} edges, got {len(factors)}")
        for factor in factors:
            for name in ("log_prob", "sample"):
                if not callable(getattr(factor, name, None)):
                    raise TypeError(f"pairwise must have a method {name}, got {type(factor).__name__}")
        self.unary, self.samples, self.generator = unary, samples, generator
        self.edges = dict(zip(edges, factors, strict=True))
        self.neighbours = [[b if a == s else a for a, b in edges if s in (a, b)] for s in range(nodes)]

    def check_count(self, count: int) -> None:
        """Raise if there are fewer points than messages into a node."""
        most = max((len(around) for around in self.neighbours), default=0)
        if count < max(1, most):
            raise ValueError(f"points must have M >= {max(1, most)}, one for each neighbour of a node, got {count}")

    def score(self, node: int, x: Tensor, unary: _Unary | None = None) -> Tensor:
        """Return log potentials of points of a node."""
        score = (unary or self.unary)(node, x)
        if not isinstance(score, Tensor) or score.shape != x.shape[:-1]:
            got = tuple(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(f"unary must return a tensor of shape {tuple(x.shape[:-1])}, got {got}")
        return score

    def pair(self, s: int, t: int, difference: Tensor) -> Tensor:
        """Return the log density of ``x_s - x_t``, of whichever order the edge has."""
        if (s, t) in self.edges:
            return self.edges[s, t].log_prob(difference)
        return self.edges[t, s].log_prob(-difference)

    def drawn(self, s: int, t: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Draw ``samples`` differences ``x_s - x_t`` for each point."""
        edge, sign = ((s, t), 1) if (s, t) in self.edges else ((t, s), -1)
        return sign * self.edges[edge].sample((*shape, self.samples), generator=self.generator).to(like)

    def pull(
        self, points: Tensor, into: Beliefs | None, truth: Tensor | None, sender: _Unary, where: str
    ) -> PulledMessages:
        """Weigh points of all nodes; ``where`` ends the message of an error."""
        sizes = tuple(_shares(points.shape[-2], len(around)) for around in self.neighbours)
        found: list[list[Tensor]] = []
        for s, around in enumerate(self.neighbours):
            x = points[..., s, :, :]
            score, rest = self.score(s, x), points.new_zeros(points.shape[:-3] + points.shape[-2:-1])
            if not around:
                belief = normalised(score, s, where)
                found.append([belief, belief, rest.log_softmax(-1), rest.log_softmax(-1)])
                continue
            parts: list[list[Tensor]] = []
            for t, mine, own in zip(around, x.split(sizes[s], -2), score.split(sizes[s], -1), strict=True):
                there = (mine.unsqueeze(-2) - self.drawn(s, t, tuple(mine.shape[:-1]), x)).flatten(-3, -2)
                told = self.score(t, there, sender).unflatten(-1, (-1, self.samples)).logsumexp(-1)
                said = self._said(s, t, mine, into, truth)
                # Where the product has a weight, each of its factors has.
                kinds = [normalised(own + told + said, s, where), *(w.log_softmax(-1) for w in (own, told, said))]
                parts.append([w - math.log(len(around)) for w in kinds] if len(around) > 1 else kinds)
            found.append([torch.cat(kind, -1) for kind in zip(*parts, strict=True)])
        weights = [torch.stack(kind, -2) for kind in zip(*found, strict=True)]
        return PulledMessages(points, weights[0], weights[1], weights[2], weights[3], sizes)

    def _said(self, s: int, t: int, mine: Tensor, into: Beliefs | None, truth: Tensor | None) -> Tensor:
        """Return what neighbours of t other than s say of points of s; or the true place of t."""
        if truth is not None:
            return self.pair(t, s, truth[..., t, None, :] - mine)
        said: Tensor | None = None
        if into is not None:
            around = self.neighbours[t]
            parts = _shares(into.points.shape[-2], len(around))
            places = into.points[..., t, :, :].split(parts, -2)
            for u, others, weights in zip(around, places, into.log_weights[..., t, :].split(parts, -1), strict=True):
                if u != s:
                    apart = self.pair(t, s, others.unsqueeze(-3) - mine.unsqueeze(-2))
                    heard = (weights.log_softmax(-1).unsqueeze(-2) + apart).logsumexp(-1)
                    said = heard if said is None else said + heard
        return torch.zeros_like(mine[..., 0]) if said is None else said


def check_beliefs(beliefs: Beliefs, name: str) -> None:
    """Raise unless these are finite points of nodes with their log weights.

    Example:
        >>> check_beliefs(Beliefs(torch.zeros(2, 3, 1), torch.zeros(3)), "into")
        Traceback (most recent call last):
        ValueError: log_weights of into must have shape (2, 3), got (3,)
    """
    points, log_weights = beliefs
    of = "" if name == "beliefs" else f" of {name}"
    if check_floating(f"points{of}", points).ndim < 3 or points.shape[-2] < 2:
        raise ValueError(f"points{of} must have shape [*batch, nodes, M, d] with M >= 2, got {tuple(points.shape)}")
    if check_floating(f"log_weights{of}", log_weights).shape != points.shape[:-1]:
        raise ValueError(f"log_weights{of} must have shape {tuple(points.shape[:-1])}, got {tuple(log_weights.shape)}")
    check_same_dtype(points=points, log_weights=log_weights)
    if can_look(points):
        check_finite(f"points{of}", points.detach())
    check_weights(log_weights)


def normalised(log_weights: Tensor, node: int, where: str) -> Tensor:
    """Return log weights of sum one, or raise where there are none.

    Example:
        >>> normalised(torch.zeros(4), 0, "").exp()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    if can_look(log_weights) and not bool(log_weights.detach().amax(-1).isfinite().all()):
        raise DegenerateWeights(
            f"no point of node {node} has any weight{where}: points over a wider box, a larger explore or bandwidth "
            "may reach where the weight is"
        )
    return torch.log_softmax(log_weights, -1)


def _shares(count: int, messages: int) -> tuple[int, ...]:
    """Share points out among messages."""
    return tuple(count // messages + (i < count % messages) for i in range(messages))


def _nodes(points: Tensor) -> str:
    return f"{tuple(points.shape[:-2])} nodes in {points.shape[-1]} dimensions"
