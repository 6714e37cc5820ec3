"""Topological orders: exact scores by Cholesky factors, least squares along an order, search by swaps."""

from __future__ import annotations

import torch

from pullback.causal.graphs import check_square
from pullback.causal.least_squares import factorised, second_moments
from pullback.causal.structure import StructureResult
from pullback.core.checks import check_floating, check_integer
from pullback.core.shapes import Float, Int, Shaped, Tensor

__all__ = ["fit_order", "score_order", "topological_swaps"]


def score_order(covariance: Float[Tensor, "*#batch d d"], order: Int[Tensor, "*#batch d"]) -> Float[Tensor, "*batch"]:
    r"""Return the least-squares score of the best weights for an order, without computing them.

    With the nodes permuted into the order, the residual variance of node ``k`` given its predecessors is the squared
    diagonal of the Cholesky factor: :math:`\min_W \mathrm{tr}((I-W)^TC(I-W))/d = \sum_k L_{kk}^2 / d`.

    Args:
        covariance: ``[*batch, d, d]`` positive definite.
        order: ``[*batch, d]`` causes first; broadcasts against the covariance's batch.

    Returns:
        ``[*batch]``, the value of :func:`least_squares_score` at the optimum.

    Raises:
        ValueError: an order that is not a permutation (the missing node is named), a singular covariance.

    Example:
        >>> score_order(torch.tensor([[1.0, 1.0], [1.0, 2.0]]), torch.tensor([0, 1])).item()
        1.0

    References:
        Deng, Bello, Aragam, Ravikumar (2023), Optimizing NOTEARS Objectives via Topological Swaps (inner problem).
    """
    check_square("covariance", check_floating("covariance", covariance))
    order = _checked_order(covariance, order)
    return _factor(covariance, order).diagonal(dim1=-2, dim2=-1).square().mean(-1)


def fit_order(
    data: Shaped[Tensor, "*#batch n d"], order: Int[Tensor, "*#batch d"], *, covariance: bool = False
) -> Float[Tensor, "*batch d d"]:
    r"""Regress every node on its predecessors in an order.

    With :math:`C = LL^T` in the order, :math:`I-W = L^{-T} \mathrm{diag}(L)`: one triangular solve for all nodes.

    Args:
        data: ``[*batch, n, d]`` samples or ``[*batch, d, d]`` covariance.
        order: ``[*batch, d]`` causes first.
        covariance: whether ``data`` is a covariance.

    Returns:
        ``[*batch, d, d]`` weights, zero wherever the order forbids an arc.

    Raises:
        ValueError: bad data (see :func:`second_moments`), an order that is not a permutation, a singular covariance.

    Example:
        >>> fit_order(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), torch.tensor([1, 0]), covariance=True)
        tensor([[0.0000, 0.0000],
                [0.5000, 0.0000]])
    """
    moments = second_moments(data, covariance=covariance)
    order = _checked_order(moments, order)
    factor = _factor(moments, order)
    identity = torch.eye(moments.shape[-1], dtype=moments.dtype, device=moments.device).expand_as(factor)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    within = identity - inverse.mT * factor.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    within = within.triu(1)
    return _permuted(within, order.argsort(-1))


def topological_swaps(
    data: Shaped[Tensor, "n d"],
    *,
    covariance: bool = False,
    order: Int[Tensor, " d"] | None = None,
    restarts: int = 1,
    small: int = 100,
    large: int = 400,
    large_searches: int = 1,
    generator: torch.Generator | None = None,
) -> StructureResult:
    r"""Search the orders by swapping pairs of nodes that the gradients of score and acyclicity point out.

    For the fitted weights of the current order, a forbidden arc ``i -> j`` with a small
    :math:`[\nabla h]_{ij} = [(I - |W|)^{-T}]_{ij}` (it closes almost no cycle) and a non-zero gradient of the score
    is a candidate: swap ``i`` and ``j``. All candidates are scored at once by batched Cholesky factors; the best one
    that lowers the score is taken. Without one, ``large`` candidates are tried, at most ``large_searches`` times.

    Args:
        data: ``[n, d]`` samples, ``n > d``, or ``[d, d]`` covariance, positive definite. Solved in double precision.
        covariance: whether ``data`` is a covariance.
        order: where to start; a random order if ``None``.
        restarts: random orders to start from (the first is ``order`` if given); the best result is returned.
        small, large: candidates of the two searches; larger than the number of forbidden pairs means all.
        large_searches: how often the wide search may be used a restart.
        generator: source of the random orders.

    Returns:
        :class:`StructureResult` in the dtype of the data (half precision: float32); ``history["score"]`` is the path of
        the best restart. No swap that the gradients point out lowers its score.

    Raises:
        TypeError: not a floating tensor, options that are no integers.
        ValueError: bad data (see :func:`second_moments`), fewer samples than nodes, a singular covariance; options
            below one, an order that is not a permutation.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> cause = torch.randn(500, 1, generator=g)
        >>> x = torch.cat([2 * cause + torch.randn(500, 1, generator=g), cause], 1)
        >>> topological_swaps(x, generator=g).order.tolist()
        [1, 0]

    References:
        Deng et al. (2023), algorithms 1 and 2 (least-squares loss).
    """
    for name, value in (("restarts", restarts), ("small", small), ("large", large)):
        check_integer(name, value, 1)
    check_integer("large_searches", large_searches, 0)
    given = second_moments(data, covariance=covariance)
    if given.ndim != 2:
        raise ValueError(f"data must have shape (n, d), got {tuple(data.shape)}")
    if not covariance and len(data) <= data.shape[-1]:
        raise ValueError(f"data must have more samples than nodes, got shape {tuple(data.shape)}")
    moments = given.detach().double().cpu()  # many small factorisations: no work for another device
    if order is not None:
        order = _checked_order(moments, order)
    nodes = moments.shape[-1]
    results = []
    for restart in range(restarts):
        start = order
        if start is None or restart > 0:
            device = None if generator is None else generator.device
            start = torch.randperm(nodes, generator=generator, device=device).cpu()
        results.append(_search(moments, start, small, large, large_searches))
    scores = torch.stack([path[-1] for _, path in results])
    weights = torch.stack([fit_order(moments, found, covariance=True) for found, _ in results])
    best = int(scores.argmin())
    return StructureResult(
        weights=weights[best].to(given),
        order=results[best][0].to(given.device),
        score=scores[best].to(given),
        restart_weights=weights.to(given),
        restart_scores=scores.to(given),
        history={"score": torch.stack(results[best][1]).to(given)},
        converged=torch.tensor(True, device=given.device),
    )


def _search(moments: Tensor, order: Tensor, small: int, large: int, large_searches: int) -> tuple[Tensor, list[Tensor]]:
    path = [score_order(moments, order)]
    wide_left = large_searches
    count = small
    while True:
        candidates = _candidates(moments, order, count)
        improved = False
        if len(candidates):
            swapped = _swap(order, candidates)
            scores = score_order(moments, swapped)
            best = int(scores.argmin())
            if scores[best] < path[-1] * (1 - 1e-12):
                order = swapped[best]
                path.append(scores[best])
                improved = True
        if improved:
            count = small
        elif count == small and wide_left > 0 and large > small:
            wide_left -= 1
            count = large
        else:
            return order, path


def _candidates(moments: Tensor, order: Tensor, count: int) -> Tensor:
    """Pairs of positions ``[k, 2]`` whose forbidden arc closes the fewest cycles and lowers the score."""
    nodes = order.shape[-1]
    weights = fit_order(moments, order, covariance=True)
    identity = torch.eye(nodes, dtype=moments.dtype)
    # Gradient of h = -log det(I - |W|), (I - |W|)^{-T}: the walks j ~> i that an arc i -> j would close.
    walks = torch.linalg.solve_triangular(_permuted(identity - weights.abs(), order), identity, upper=True)
    barrier = walks.mT
    slope = _permuted(moments @ (weights - identity), order).abs()
    rows, columns = torch.ones(nodes, nodes).tril(-1).nonzero(as_tuple=True)  # later position -> earlier one
    useful = slope[rows, columns] > 1e-10 * moments.diagonal().max()
    rows, columns = rows[useful], columns[useful]
    keep = barrier[rows, columns].argsort(stable=True)[:count]
    return torch.stack([rows[keep], columns[keep]], -1)


def _swap(order: Tensor, pairs: Tensor) -> Tensor:
    swapped = order.repeat(len(pairs), 1)
    index = torch.arange(len(pairs))
    swapped[index, pairs[:, 0]], swapped[index, pairs[:, 1]] = order[pairs[:, 1]], order[pairs[:, 0]]
    return swapped


def _factor(covariance: Tensor, order: Tensor) -> Tensor:
    """Return the Cholesky factor in the order, in at least single precision."""
    permuted = _permuted(covariance, order).to(torch.promote_types(covariance.dtype, torch.float32))
    factor, definite = factorised(permuted)
    if not bool(definite.all()):
        raise ValueError("covariance is singular; add a ridge (covariance + 1e-6 I)")
    return factor


def _permuted(matrix: Tensor, order: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(matrix.shape[:-2], order.shape[:-1])
    matrix = matrix.expand(*shape, *matrix.shape[-2:])
    order = order.expand(*shape, order.shape[-1])
    rows = order.unsqueeze(-1).expand(matrix.shape)
    columns = order.unsqueeze(-2).expand(matrix.shape)
    return matrix.gather(-2, rows).gather(-1, columns)


def _checked_order(covariance: Tensor, order: Tensor) -> Tensor:
    """Return the order where the covariance is, or say what is wrong with it."""
    nodes = covariance.shape[-1]
    if not isinstance(order, Tensor) or order.is_floating_point() or order.dtype == torch.bool:
        raise TypeError(f"order must be an integer tensor, got {getattr(order, 'dtype', type(order).__name__)}")
    expected = torch.arange(nodes, device=order.device)
    if order.ndim < 1 or order.shape[-1] != nodes:
        raise ValueError(f"order must have shape (..., {nodes}), got {tuple(order.shape)}")
    if not bool((order.sort(-1).values == expected).all()):
        present = set(order.reshape(-1, nodes)[0].tolist())
        missing = sorted(set(range(nodes)) - present)
        raise ValueError(f"order must be a permutation of 0..{nodes - 1}; missing {missing[:5] or 'in a later row'}")
    return order.to(covariance.device)
