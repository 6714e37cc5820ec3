"""Belief propagation between continuous variables, whose messages are weighted points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from pullback.core.checks import check_callable, check_choice, check_integer, check_positive, check_range
from pullback.core.random import drawing_device
from pullback.core.shapes import Tensor
from pullback.uncertainty.density import kernel_density
from pullback.uncertainty.gaussian_beliefs import Edges
from pullback.uncertainty.messages import Beliefs, EdgePotential, Factors, PulledMessages, check_beliefs, normalised
from pullback.uncertainty.resampling import ancestors

__all__ = ["nonparametric_belief_propagation"]

_PAIRS = 1 << 18
"""Differences of points at a time, which stay in the processor's cache."""


def nonparametric_belief_propagation(
    unary: Callable[[int, Tensor], Tensor],
    pairwise: EdgePotential | Sequence[EdgePotential],
    graph: Edges,
    beliefs: Beliefs,
    *,
    iterations: int = 1,
    method: str = "exact",
    samples: int = 10,
    explore: float = 0.1,
    bandwidth: float = 0.1,
    generator: torch.Generator | None = None,
) -> Beliefs:
    r"""Find the marginals of :math:`p(x)\propto\prod_s\phi_s(x_s)\prod_{(s,t)}\psi_{st}(x_s-x_t)` by weighted points.

    In each iteration every node draws M new points from :math:`q_s`: a part ``explore`` evenly from the box of its last
    points, the rest from its last belief, smoothed by a Gaussian kernel. Then

    ``"exact"``: with the points of the sender, their weights without what the receiver has told, and the density of
    the proposal taken off,

    .. math:: m_{t\to s}(x)=\sum_jW_j\,\psi_{st}(x-x_t^j),\quad
        W_j\propto\frac{\phi_t(x_t^j)\prod_{u\ne s}m_{u\to t}(x_t^j)}{q_t(x_t^j)},\quad
        b_s^i\propto\frac{\phi_s(x_s^i)\prod_tm_{t\to s}(x_s^i)}{q_s(x_s^i)},

    which tends to belief propagation as M grows, hence to the exact marginals of a tree.

    ``"pull"``: as published for articulated bodies (:func:`pull_messages` is one iteration). Each message has
    M / neighbours points of its own (M >= neighbours; the first messages have one more where it leaves a rest), drawn
    at the receiver and weighed by what the sender's side says of them,

    .. math:: w_i\propto\frac1L\sum_{l\le L}\phi_t(\mu_i+\delta_l)\ \prod_{u\ne s}\sum_jw_{ut}^j\,
        \psi_{ts}(\mu_{ut}^j-\mu_i),\quad\delta_l\sim\psi_{ts},\ L=\mathtt{samples},

    with the points :math:`\mu_{ut}` of the last messages into the sender (in the first iteration there are none). The
    belief is the union of its messages, each weighed by :math:`\phi_s` too. The proposal is not taken off, neighbours
    add instead of multiplying, and each iteration weighs the last belief again: beliefs are too narrow, also in the
    limit (after six iterations the ends of a chain of five have .2 of the exact variance, its inner nodes .7 to 1).

    Args:
        unary: ``(node, x)``, log potentials ``[*batch, M]`` of points ``[*batch, M, d]``; -inf where it is none.
        pairwise: of all edges, or one for each: a density and a sampler of ``x_s - x_t`` for an edge (s, t).
        graph: edges as pairs of nodes; loops are allowed.
        beliefs: points to begin with; their number M is kept.
        iterations: >= 1; ``"exact"`` needs as many as the longest path has edges, and one more.
        method: one of these.
        samples: >= 1 draws of the sender for each point of ``"pull"``.
        explore: in 0..1.
        bandwidth: > 0 of the kernel, as a part of the spread of the last points of a node.
        generator: of all draws.

    Returns:
        :class:`Beliefs`, differentiable in the potentials at the drawn points; points are constant.

    Raises:
        TypeError: ``unary`` is not callable, a potential lacks a method, points are no floating tensors.
        ValueError: shapes do not fit, an edge names an unknown node, an option is out of range, fewer than 2 points,
            or for ``"pull"`` than neighbours of a node.
        DegenerateWeights: no point of a node has any weight; node and iteration are named.

    Example:
        >>> class Near:
        ...     def log_prob(self, difference): return -difference.square().sum(-1) / 2
        ...     def sample(self, shape, generator=None): return torch.randn(*shape, 1, generator=generator)
        >>> def unary(node, x): return -(x[..., 0] - 4.0 * node).square() / 2  # at 0 and at 4
        >>> g = torch.Generator().manual_seed(0)
        >>> start = Beliefs(8 * torch.rand(2, 1000, 1, generator=g) - 2, torch.full((2, 1000), -6.9078))
        >>> nonparametric_belief_propagation(unary, Near(), [(0, 1)], start, iterations=2, generator=g).means.round()
        tensor([[1.],
                [3.]])

    References:
        Sudderth, Ihler, Freeman, Willsky (2003), Nonparametric belief propagation. Desingh, Lu, Opipari, Jenkins
        (2019), Efficient nonparametric belief propagation for pose estimation and manipulation of articulated objects
        (pull). Opipari, Pavlasek, Chen, Wang, Desingh, Jenkins (2023), DNBP, algorithms 1 and 2.
    """
    check_callable("unary", unary)
    check_beliefs(beliefs, "beliefs")
    check_integer("samples", samples, 1)
    factors = Factors(unary, pairwise, graph, beliefs.points.shape[-3], samples, generator)
    check_integer("iterations", iterations, 1)
    check_choice("method", method, ("exact", "pull"))
    check_range("explore", explore, 0.0, 1.0)
    check_positive("bandwidth", bandwidth)
    step = _Step(factors, explore, bandwidth)
    if method == "pull":
        factors.check_count(beliefs.points.shape[-2])
    sweep = step.exact if method == "exact" else step.pull
    for iteration in range(iterations):
        beliefs = sweep(beliefs, iteration)
    return beliefs


class _Step:
    """What stays the same over iterations, and the messages of the last one."""

    def __init__(self, factors: Factors, explore: float, bandwidth: float) -> None:
        self.factors, self.explore, self.bandwidth = factors, explore, bandwidth
        self.generator = factors.generator
        self.senders: list[tuple[Tensor, Tensor, dict[int, Tensor]]] = []
        self.pulled: PulledMessages | None = None

    def exact(self, beliefs: Beliefs, iteration: int) -> Beliefs:
        """Return beliefs at new points, by messages from the points of the last iteration."""
        found, senders = [], []
        for s, around in enumerate(self.factors.neighbours):
            x, law = self._proposed(beliefs.points[..., s, :, :], beliefs.log_weights[..., s, :])
            told = {t: self._message(t, s, x) for t in around} if self.senders else {}
            base = self.factors.score(s, x) - law(x)
            total = base + sum(told.values()) if told else base
            found.append((x, normalised(total, s, f" in iteration {iteration}")))
            senders.append((x, total, told))
        self.senders = senders
        return Beliefs(torch.stack([x for x, _ in found], -3), torch.stack([w for _, w in found], -2))

    def _message(self, t: int, s: int, x: Tensor) -> Tensor:
        """Return the logarithm of what t says of points of s, by what it knew without s."""
        points, total, told = self.senders[t]
        log_w = torch.log_softmax(total - told[s] if s in told else total, -1)
        rows = max(1, _PAIRS // max(1, points.numel()))
        parts = [
            torch.logsumexp(
                log_w.unsqueeze(-2) + self.factors.pair(s, t, block.unsqueeze(-2) - points.unsqueeze(-3)), -1
            )
            for block in x.split(rows, -2)
        ]
        return torch.cat(parts, -1)

    def pull(self, beliefs: Beliefs, iteration: int) -> Beliefs:
        """Return unions of the messages that each receiver draws and its neighbours weigh."""
        where, unary = f" in iteration {iteration}", self.factors.unary
        proposed = [
            self._proposed(beliefs.points[..., s, :, :], beliefs.log_weights[..., s, :])
            for s in range(len(self.factors.neighbours))
        ]
        into = self.pulled.told if self.pulled is not None else None
        self.pulled = self.factors.pull(torch.stack([x for x, _ in proposed], -3), into, None, unary, where)
        weights = [
            w if around else normalised(w - law(x), s, where)
            for s, (around, w, (x, law)) in enumerate(
                zip(self.factors.neighbours, self.pulled.log_weights.unbind(-2), proposed, strict=True)
            )
        ]
        return Beliefs(self.pulled.points, torch.stack(weights, -2))

    def _proposed(self, points: Tensor, log_weights: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Draw as many points of a node as it has, and return the log density of the law that they come from too."""
        points, log_weights = points.detach(), log_weights.detach()
        count, generator = points.shape[-2], self.generator
        device, dtype = drawing_device(generator, points), points.dtype
        low, high = points.amin(-2, keepdim=True), points.amax(-2, keepdim=True)
        weights = log_weights.exp().unsqueeze(-1)
        middle = (weights * points).sum(-2, keepdim=True)
        spread = (weights * (points - middle).square()).sum(-2, keepdim=True).sqrt()
        tiny = torch.finfo(dtype).eps * (1 + points.abs().amax(-2, keepdim=True))
        h, box = (self.bandwidth * spread).clamp(min=tiny), (high - low).clamp(min=tiny)
        chosen = ancestors(log_weights, count, generator=generator).unsqueeze(-1).expand(points.shape)
        noise = torch.randn(points.shape, dtype=dtype, device=device, generator=generator).to(points.device)
        near = points.gather(-2, chosen) + h * noise
        even = low + box * torch.rand(points.shape, dtype=dtype, device=device, generator=generator).to(points.device)
        which = torch.rand(points.shape[:-1], dtype=dtype, device=device, generator=generator).to(points.device)
        x = torch.where((which < self.explore).unsqueeze(-1), even, near)

        def law(x: Tensor) -> Tensor:
            inside = ((x >= low) & (x <= high)).all(-1)
            flat = torch.where(inside, math.log(self.explore or 1) - box.log().sum(-1), -torch.inf)
            dense = kernel_density(points, log_weights, x, bandwidth=h) + math.log1p(-min(self.explore, 1 - 1e-12))
            return torch.logaddexp(flat, dense) if self.explore else dense

        return x, law
