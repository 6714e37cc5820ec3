"""Search over topological orders by swapping the pairs of nodes that two gradients point out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

from pullback.causal.graphs import check_square, topological_order
from pullback.causal.knowledge import check_knowledge
from pullback.causal.least_squares import check_data_sets, factorised, interventional_moments, second_moments
from pullback.causal.likelihoods import MODELS, check_observations
from pullback.causal.logistic import expected_values, fit_regressions, node_losses
from pullback.causal.orders import (
    checked_order,
    order_scores,
    order_weights,
    permuted,
    residual_variances,
)
from pullback.causal.structure import StructureResult, sortability
from pullback.core.checks import check_choice, check_floating, check_integer, check_scalar, check_shape
from pullback.core.shapes import Bool, Float, Int, Shaped, Tensor

__all__ = ["kkt_violation", "swap_candidates", "topological_swaps"]

CANDIDATES = ("gradient", "nearest", "random")


def topological_swaps(
    data: Shaped[Tensor, "*batch n d"],
    *,
    covariance: bool = False,
    targets: Shaped[Tensor, "*batch n d"] | None = None,
    allowed: Bool[Tensor, "d d"] | None = None,
    required: Bool[Tensor, "d d"] | None = None,
    model: str = "least-squares",
    penalty: float = 0.0,
    order: Int[Tensor, "*#batch d"] | None = None,
    restarts: int = 1,
    candidates: str = "gradient",
    small: int = 100,
    large: int = 400,
    large_searches: int = 1,
    generator: torch.Generator | None = None,
) -> StructureResult:
    r"""Minimise a convex score over DAGs: regressions along an order inside, swaps of two nodes outside.

    For the fitted weights of the current order the ``small`` forbidden arcs that close the fewest cycles are candidates
    (:func:`swap_candidates`). All are scored at once: by batched Cholesky factors (least squares) or one batch of
    regressions (logistic, Poisson); the best swap that lowers the score is taken. Without one, ``large`` candidates are
    tried, at most ``large_searches`` times. Starting from the order of another learner, the search only improves it.

    With ``candidates="gradient"`` few swaps are needed, since nodes change places that are far apart; beyond about 40
    nodes it gets stuck unless ``small`` grows too (:func:`order_search` does not). ``"nearest"`` takes small steps,
    more of them, and is stuck later.

    Args:
        data: ``[*batch, n, d]`` samples, ``n > d`` unless there is a penalty, or ``[*batch, d, d]`` covariance,
            positive definite. Solved in double precision, one data set after the other.
        covariance: whether ``data`` is a covariance.
        targets: ``[*batch, n, d]`` booleans, which nodes were set in which sample: a node is regressed on the others
            where it was not (:func:`interventional_moments`; the samples are not centred then). Least squares only.
        allowed: ``[d, d]`` booleans, arcs that there may be; all by default.
        required: ``[d, d]`` booleans, arcs that there are: every order that is tried has them forward, and every graph
            of the result holds them.
        model: ``"least-squares"``, ``"logistic"`` for nodes in {0, 1}, ``"poisson"`` for counts; see :func:`fit_order`.
        penalty: ridge of :func:`fit_order`, >= 0, in the score too.
        order: ``[*batch, d]`` where to start; a random order if ``None``.
        restarts: random orders to start from (the first is ``order`` if given); the best result is returned.
        candidates: which forbidden arcs are tried first: ``"gradient"``, those that close the fewest cycles, as in the
            paper; ``"nearest"``, those between nodes closest in the order; ``"random"``, any, as a baseline.
        small, large: candidates of the two searches; larger than the number of forbidden pairs means all.
        large_searches: how often the wide search may be used a restart.
        generator: source of the random orders, and of random candidates.

    Returns:
        :class:`StructureResult` in the dtype of the data (half precision: float32); ``history["score"]`` is the path of
        the best restart and ``history["scored"]`` how many orders were scored until each of it was left; ``converged``
        whether its weights are a KKT point (:func:`kkt_violation` at most 1e-6 of the largest variance). In a batch
        shorter paths stay at their last entry.

    Raises:
        TypeError: not a floating tensor, options that are no integers.
        ValueError: bad data (see :func:`second_moments`), no more samples than nodes or a singular covariance without a
            penalty; options below one, an order that is not a permutation; required arcs with a cycle, or against the
            given order.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> cause = torch.randn(500, 1, generator=g)
        >>> x = torch.cat([2 * cause + torch.randn(500, 1, generator=g), cause], 1)
        >>> topological_swaps(x, generator=g).order.tolist()
        [1, 0]

    References:
        Deng, Bello, Aragam, Ravikumar (2023), Optimizing NOTEARS Objectives via Topological Swaps, algorithms 1 and 2.
    """
    for name, value in (("restarts", restarts), ("small", small), ("large", large)):
        check_integer(name, value, 1)
    check_integer("large_searches", large_searches, 0)
    check_choice("model", model, MODELS)
    check_choice("candidates", candidates, CANDIDATES)
    check_scalar("penalty", penalty, zero=True)
    if targets is not None and (covariance or model != "least-squares"):
        raise ValueError("targets need samples and the least-squares model")
    check_data_sets("data", data)
    given = second_moments(data, covariance=covariance)
    if given.ndim > 2:
        return _of_each(
            data,
            targets,
            None if order is None else checked_order(given, order).expand(given.shape[:-1]),
            lambda x, its_targets, its_order: topological_swaps(
                x,
                covariance=covariance,
                targets=its_targets,
                allowed=allowed,
                required=required,
                model=model,
                penalty=penalty,
                order=its_order,
                restarts=restarts,
                candidates=candidates,
                small=small,
                large=large,
                large_searches=large_searches,
                generator=generator,
            ),
        )
    if not covariance and penalty == 0 and len(data) <= data.shape[-1]:
        raise ValueError(f"data must have more samples than nodes or a penalty, got shape {tuple(data.shape)}")
    moments = given.detach().double().cpu()  # many small factorisations: no work for another device
    nodes = moments.shape[-1]
    possible, required = check_knowledge(nodes, allowed, required)
    score: _Score
    if model != "least-squares":
        if covariance:
            raise ValueError(f"model {model!r} needs samples; a covariance has the second moments alone")
        check_observations(model, data)
        score = _Generalized(data.detach().double().cpu(), penalty, possible, model)
    elif allowed is not None:
        of_nodes = moments.expand(nodes, nodes, nodes)
        if targets is not None:
            of_nodes = interventional_moments(data.detach().double(), targets).cpu()
        score = _Masked(of_nodes, penalty, possible)
    elif targets is not None:
        score = _Interventional(interventional_moments(data.detach().double(), targets).cpu(), penalty)
    else:
        score = _LeastSquares(moments, penalty)
    if order is not None:
        order = checked_order(moments, order)
        if required is not None and not bool(_forward(order, required)):
            raise ValueError("order must have every required arc forward")
    # Where the small search tries all pairs already, the wide one would only try them again.
    wide = large_searches if small < min(large, nodes * (nodes - 1) // 2) else 0
    results = []
    for restart in range(restarts):
        start = order
        if start is None or restart > 0:
            device = None if generator is None else generator.device
            start = torch.randperm(nodes, generator=generator, device=device).cpu()
            if required is not None:  # the same nodes, moved behind what must come before them
                start = start[topological_order(required[start][:, start])]
        results.append(_search(score, start, _Candidates(candidates, small, large, generator, required), wide))
    scores = torch.stack([path[-1] for _, path, _ in results])
    weights = torch.stack([score.weights(found) for found, _, _ in results])
    best = int(scores.argmin())
    order, path, scored = results[best]
    violation = kkt_violation(weights[best], score.gradient(weights[best]) * possible)
    sortable = sortability(moments, weights[best], required)
    return StructureResult(
        weights=weights[best].to(given),
        order=order.to(given.device),
        score=scores[best].to(given),
        restart_weights=weights.to(given),
        restart_scores=scores.to(given),
        history={"score": torch.stack(path).to(given), "scored": torch.tensor(scored, device=given.device)},
        converged=(violation <= 1e-6 * moments.diagonal().max()).to(given.device),
        required=None if required is None else required.to(given.device),
        varsortability=(sortable if model == "least-squares" else sortable * torch.nan).to(given),
    )


def swap_candidates(
    weights: Float[Tensor, "d d"],
    order: Int[Tensor, " d"],
    *,
    loss_gradient: Float[Tensor, "d d"],
    tau: float | None = None,
    xi: float = 0.0,
    count: int | None = None,
) -> Int[Tensor, "pairs 2"]:
    r"""Return the arcs that an order forbids and two gradients ask for, those that close the fewest cycles first.

    .. math:: Y(W, \tau, \xi) = \{(i, j): \pi \text{ forbids } i \to j,\ [\nabla h]_{ij} \le \tau,\
        |[\nabla Q]_{ij}| > \xi\}, \qquad \nabla h = (I - |W|)^{-T}

    :math:`[\nabla h]_{ij}` sums the walks from ``j`` to ``i``, which the arc would close; swapping ``i`` and ``j`` in
    the order allows the arc. ``Y(W, 0, 0)`` of fitted weights is empty exactly at the KKT points.

    Args:
        weights: ``[d, d]``, zero where the order forbids an arc.
        order: ``[d]`` causes first.
        loss_gradient: ``[d, d]`` of the score at ``weights``.
        tau: >= 0, largest weight of the walks; ``None`` for no bound.
        xi: >= 0, the score must change faster than this.
        count: at most so many; ``None`` for all.

    Returns:
        ``[pairs, 2]`` nodes ``(i, j)``; ties keep the places of the order.

    Raises:
        ValueError: shapes that do not fit, weights that the order forbids, an order that is not a permutation.

    Example:
        >>> swap_candidates(torch.zeros(2, 2), torch.tensor([0, 1]), loss_gradient=torch.ones(2, 2)).tolist()
        [[1, 0]]

    References:
        Deng et al. (2023), definition 3 and algorithm 2.
    """
    nodes = check_square("weights", check_floating("weights", weights), batch=False)
    check_shape("loss_gradient", check_floating("loss_gradient", loss_gradient), (nodes, nodes))
    order = checked_order(weights, order)
    check_scalar("xi", xi, zero=True)
    if tau is not None:
        check_scalar("tau", tau, zero=True)
    if count is not None:
        check_integer("count", count, 1)
    working = torch.promote_types(weights.dtype, torch.float32)  # there are no triangular solves in half precision
    within = permuted(weights.detach().to(working), order)
    if bool((within.tril() != 0).any()):
        later, earlier = (order[int(place)] for place in (within.tril() != 0).nonzero()[0])
        raise ValueError(f"weights must be zero where the order forbids an arc, got one from {later} to {earlier}")
    identity = torch.eye(nodes, dtype=within.dtype, device=within.device)
    walks = torch.linalg.solve_triangular(identity - within.abs(), identity, upper=True)
    slope = permuted(loss_gradient.detach(), order).abs()
    rows, columns = torch.ones(nodes, nodes, device=within.device).tril(-1).nonzero(as_tuple=True)
    closed = walks[columns, rows]  # from an earlier place to a later one: what the arc back would close
    wanted = slope[rows, columns] > xi
    if tau is not None:
        wanted &= closed <= tau
    rows, columns, closed = rows[wanted], columns[wanted], closed[wanted]
    fewest = closed.argsort(stable=True)[:count]
    return torch.stack([order[rows[fewest]], order[columns[fewest]]], -1)


def kkt_violation(
    weights: Float[Tensor, "*batch d d"], loss_gradient: Float[Tensor, "*batch d d"], *, tolerance: float = 0.0
) -> Float[Tensor, "*batch"]:
    r"""Return how far an acyclic graph is from a KKT point: the largest slope along an arc that no cycle forbids.

    .. math:: \max\{|[\nabla Q]_{ij}| : \text{no directed walk } j \leadsto i \text{ in } W,\ i \ne j\}

    Zero means that no weight of the graph and no arc that could be added to it lowers the score to first order. It says
    little about complete graphs, which allow no other arc: along an order, least squares is always a KKT point.

    Args:
        weights: ``[*batch, d, d]``.
        loss_gradient: ``[*batch, d, d]`` of the score at ``weights``.
        tolerance: >= 0; ``|weight| <= tolerance`` is no arc.

    Returns:
        ``[*batch]``, >= 0.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> kkt_violation(torch.zeros(2, 2), torch.tensor([[0.0, -0.5], [0.2, 0.0]])).item()
        0.5

    References:
        Deng et al. (2023), theorem 1; Wei, Gao, Yu (2020), DAGs with No Fears.
    """
    nodes = check_square("weights", check_floating("weights", weights))
    check_floating("loss_gradient", loss_gradient)
    if loss_gradient.shape != weights.shape:
        raise ValueError(
            f"loss_gradient must have the shape of weights, {tuple(weights.shape)}, got {tuple(loss_gradient.shape)}"
        )
    check_scalar("tolerance", tolerance, zero=True)
    reached = (weights.detach().abs() > tolerance).float() + torch.eye(nodes, device=weights.device)
    for _ in range(max(nodes - 1, 1).bit_length()):  # walks of length 2, 4, 8, ...
        reached = (reached @ reached).clamp(max=1)
    return loss_gradient.abs().masked_fill(reached.mT > 0, 0.0).amax((-2, -1))


def _of_each(
    data: Tensor,
    targets: Tensor | None,
    orders: Tensor | None,
    learn: Callable[[Tensor, Tensor | None, Tensor | None], StructureResult],
) -> StructureResult:
    """Learn from the data sets of a batch one after the other; their results as one."""
    batch = data.shape[:-2]
    sets = data.flatten(0, -3)
    if targets is not None and targets.shape != data.shape:
        raise ValueError(f"targets must have the shape of data, {tuple(data.shape)}, got {tuple(targets.shape)}")
    its_targets = [None] * len(sets) if targets is None else list(targets.flatten(0, -3))
    its_orders = [None] * len(sets) if orders is None else list(orders.flatten(0, -2))
    found = [learn(*each) for each in zip(sets, its_targets, its_orders, strict=True)]

    def together(name: str) -> Tensor:
        values = torch.stack([getattr(one, name) for one in found])
        return values.view(*batch, *values.shape[1:])

    def curves(name: str) -> Tensor:
        paths = torch.nn.utils.rnn.pad_sequence([one.history[name] for one in found])
        last = torch.tensor([len(one.history[name]) - 1 for one in found], device=paths.device)
        step = torch.minimum(torch.arange(len(paths), device=paths.device)[:, None], last)
        return paths.gather(0, step).view(-1, *batch)

    return StructureResult(
        weights=together("weights"),
        order=together("order"),
        score=together("score"),
        restart_weights=together("restart_weights"),
        restart_scores=together("restart_scores"),
        history={name: curves(name) for name in ("score", "scored")},
        converged=together("converged"),
        required=found[0].required,
        varsortability=together("varsortability"),
    )


class _Score(Protocol):
    """What the search minimises: a convex score of the weights, fitted along orders."""

    def weights(self, order: Tensor) -> Tensor:
        """Return the best weights of an order."""

    def of_orders(self, orders: Tensor) -> Tensor:
        """Return the scores ``[k]`` of the best weights of ``[k, d]`` orders."""

    def gradient(self, weights: Tensor) -> Tensor:
        """Return the slope of the score in the weights."""


class _LeastSquares:
    def __init__(self, moments: Tensor, penalty: float) -> None:
        # tr((I-W)'(C + penalty I)(I-W)) = tr((I-W)'C(I-W)) + penalty |W|^2 + d penalty, as W has a zero diagonal.
        self._penalty, self._identity = penalty, torch.eye(len(moments)).to(moments)
        self._moments = moments + penalty * self._identity

    def weights(self, order: Tensor) -> Tensor:
        return order_weights(self._moments, order)

    def of_orders(self, orders: Tensor) -> Tensor:
        return order_scores(self._moments, orders) - self._penalty

    def gradient(self, weights: Tensor) -> Tensor:
        return 2 * self._moments @ (weights - self._identity) / len(weights)


class _Interventional:
    """Least squares of every node with moments of its own."""

    def __init__(self, moments: Tensor, penalty: float) -> None:
        self._penalty, self._identity = penalty, torch.eye(len(moments)).to(moments)
        self._moments = moments + penalty * self._identity

    def weights(self, order: Tensor) -> Tensor:
        # The column of node j of the fit with the moments of node j.
        return order_weights(self._moments, order).diagonal(dim1=0, dim2=2)

    def of_orders(self, orders: Tensor) -> Tensor:
        own = residual_variances(self._moments, orders.unsqueeze(-2)).diagonal(dim1=-2, dim2=-1)
        return own.mean(-1) - self._penalty

    def gradient(self, weights: Tensor) -> Tensor:
        slope = self._moments @ (weights - self._identity)
        return 2 * slope.diagonal(dim1=0, dim2=2) / len(weights)


class _Masked:
    """Least squares of every node on those before it that may be its causes, with moments of its own."""

    def __init__(self, moments: Tensor, penalty: float, possible: Tensor) -> None:
        self._penalty, self._identity, self._possible = penalty, torch.eye(len(moments)).to(moments), possible
        self._moments = moments + penalty * self._identity

    def weights(self, order: Tensor) -> Tensor:
        place = order.argsort(-1)
        causes = (self._possible & (place.unsqueeze(-1) < place.unsqueeze(-2))).to(self._moments).mT  # of node j: row j
        system = self._moments * causes.unsqueeze(-1) * causes.unsqueeze(-2) + torch.diag_embed(1 - causes)
        factor, definite = factorised(system)
        if not bool(definite.all()):
            raise ValueError("covariance is singular; add a ridge (covariance + 1e-6 I)")
        right = self._moments.diagonal(dim1=0, dim2=2).mT * causes  # row j: moments of node j with the others
        return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1).mT

    def of_orders(self, orders: Tensor) -> Tensor:
        residual = self._identity - self.weights(orders)
        columns = residual.mT.unsqueeze(-2)  # of node j: [*, j, 1, d]
        return (columns @ self._moments @ columns.mT).squeeze(-1).squeeze(-1).mean(-1) - self._penalty

    def gradient(self, weights: Tensor) -> Tensor:
        slope = self._moments @ (weights - self._identity)
        return 2 * slope.diagonal(dim1=0, dim2=2) / len(weights)


class _Generalized:
    """The loss of logistic or Poisson regressions."""

    def __init__(self, data: Tensor, penalty: float, possible: Tensor, model: str) -> None:
        self._data, self._penalty, self._possible, self._model = data, penalty, possible, model

    def weights(self, order: Tensor) -> Tensor:
        return fit_regressions(self._data, order, self._penalty, self._possible, self._model)

    def of_orders(self, orders: Tensor) -> Tensor:
        return node_losses(self.weights(orders), self._data, self._penalty, self._model).mean(-1)

    def gradient(self, weights: Tensor) -> Tensor:
        excess = expected_values(self._data @ weights, self._model)[0] - self._data
        return (self._data.mT @ excess / len(self._data) + self._penalty * weights) / len(weights)


class _Candidates(NamedTuple):
    """Which pairs of nodes are tried: the first ``small`` or ``large`` of some order of all forbidden arcs."""

    rule: str
    small: int
    large: int
    generator: torch.Generator | None
    required: Tensor | None = None

    def swapped(self, score: _Score, order: Tensor, wide: bool) -> Tensor:
        """Return the orders to try, those with every required arc forward."""
        orders = _swap(order, self.pairs(score, order, wide))
        return orders if self.required is None else orders[_forward(orders, self.required)]

    def pairs(self, score: _Score, order: Tensor, wide: bool) -> Tensor:
        """Return pairs of nodes ``[pairs, 2]`` to swap."""
        count = self.large if wide else self.small
        if self.rule == "gradient":
            weights = score.weights(order)
            slope = score.gradient(weights)
            flat = 1e-10 * float(slope.abs().max())
            return swap_candidates(weights, order, loss_gradient=slope, xi=flat, count=count)
        later, earlier = torch.ones(len(order), len(order)).tril(-1).nonzero().unbind(-1)
        if self.rule == "nearest":
            first = (later - earlier).argsort(stable=True)
        else:
            device = None if self.generator is None else self.generator.device
            first = torch.randperm(len(later), generator=self.generator, device=device).cpu()
        return torch.stack([order[later], order[earlier]], -1)[first[:count]]


def _search(
    score: _Score, order: Tensor, candidates: _Candidates, wide_left: int
) -> tuple[Tensor, list[Tensor], list[int]]:
    """Return the last order, the scores on the way, and how many orders were scored until each was left."""
    path, scored, wide, tried = [score.of_orders(order[None])[0]], [], False, 1
    while True:
        swapped = candidates.swapped(score, order, wide)
        improved = False
        if len(swapped):
            scores = score.of_orders(swapped)
            tried += len(swapped)
            best = int(scores.argmin())
            improved = bool(scores[best] < path[-1] * (1 - 1e-12))
        if improved:
            scored.append(tried)
            order, wide = swapped[best], False
            path.append(scores[best])
        elif not wide and wide_left > 0:
            wide_left, wide = wide_left - 1, True
        else:
            return order, path, [*scored, tried]


def _swap(order: Tensor, pairs: Tensor) -> Tensor:
    place = order.argsort()
    swapped = order.repeat(len(pairs), 1)
    index = torch.arange(len(pairs))
    swapped[index, place[pairs[:, 0]]] = pairs[:, 1]
    swapped[index, place[pairs[:, 1]]] = pairs[:, 0]
    return swapped


def _forward(orders: Tensor, required: Tensor) -> Tensor:
    """Say of which orders ``[*batch, d]`` every required arc points forward."""
    place = orders.argsort(-1)
    causes, effects = required.nonzero(as_tuple=True)
    return (place[..., causes] < place[..., effects]).all(-1)
