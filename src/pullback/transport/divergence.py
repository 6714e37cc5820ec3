"""Distances between clouds of points with entropy, debiased; and how far a map is from an optimal one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from pullback.core.checks import check_broadcast, check_choice, check_same_dtype
from pullback.core.shapes import Bool, Float, Scalar, Tensor
from pullback.kernels.softmin import compiled_loops
from pullback.transport.clouds import Solved, solve_clouds, solve_debiased
from pullback.transport.costs import Cost, check_clouds, mean_cost, paired_cost, pairwise_cost
from pullback.transport.entropic import Problem, Transport, solve_entropic
from pullback.transport.exact import exact_transport
from pullback.transport.masses import check_cost, masses
from pullback.transport.sinkhorn import check_solver, raise_unless_converged, relative_to_mean

__all__ = ["MongeGap", "SinkhornDivergence", "monge_gap", "sinkhorn_divergence"]


PAIRS_KEPT = 1 << 14
"""Of points, whose costs are kept. Of more they are computed anew in each sweep, which compiled loops do faster than
memory brings them."""
_PAIRS_KEPT_ALONE = 1 << 11
"""The same where there is one problem: a batch of them is solved together."""
_PAIRS_WITHOUT_LOOPS = 1 << 21


class SinkhornDivergence(NamedTuple):
    """A divergence, and the potentials from which the next one may start.

    Attributes:
        value: ``[*batch]`` >= 0 up to the tolerance, in the unit of the cost.
        g: ``[*batch, m]`` potential of y against x.
        of_x: ``[*batch, n]`` potential of x against itself.
        of_y: ``[*batch, m]`` potential of y against itself.
        residual: ``[*batch]`` the largest of the three problems.
        converged: ``[*batch]`` whether all three are.
    """

    value: Float[Tensor, "*batch"]
    g: Float[Tensor, "*batch m"]
    of_x: Float[Tensor, "*batch n"]
    of_y: Float[Tensor, "*batch m"]
    residual: Float[Tensor, "*batch"]
    converged: Bool[Tensor, "*batch"]


def sinkhorn_divergence(
    x: Float[Tensor, "*#batch n d"],
    y: Float[Tensor, "*#batch m d"],
    a: Float[Tensor, "*#batch n"] | None = None,
    b: Float[Tensor, "*#batch m"] | None = None,
    *,
    cost: Cost = "sqeuclidean",
    epsilon: Scalar | None = None,
    relative_epsilon: Scalar | None = None,
    reach: Scalar | None = None,
    max_iterations: int = 2000,
    tolerance: float = 1e-6,
    gradient: str = "envelope",
    start: tuple[Tensor, Tensor, Tensor] | None = None,
    check: bool = False,
) -> SinkhornDivergence:
    r"""Return :math:`OT_\varepsilon(a,b)-\tfrac12OT_\varepsilon(a,a)-\tfrac12OT_\varepsilon(b,b)` of weighted points.

    It is 0 for two equal clouds (:math:`OT_\varepsilon` is not), convex in the masses, between the transport distance
    (epsilon to 0) and a kernel distance (to infinity). With ``reach`` half of epsilon times the squared difference of
    the sums is added, and unequal masses may be compared.

    Args:
        x: ``[*batch, n, d]`` points.
        y: ``[*batch, m, d]`` points.
        a: ``[*batch, n]`` masses >= 0; uniform by default.
        b: ``[*batch, m]`` masses >= 0, without ``reach`` of the same sum.
        cost: ``"sqeuclidean"``, ``"euclidean"`` or a function, see :func:`pairwise_cost`.
        epsilon, relative_epsilon, reach, max_iterations, tolerance, check: see :func:`sinkhorn`; a part of the mean
            cost between x and y.
        gradient: ``"envelope"``: of first order, to points and masses; beyond some thousand pairs, with a named cost,
            in memory for the points alone. ``"implicit"``: to third order, one linear solve a problem.
            ``"unrolled"``: of the sweeps as they ran.
        start: potentials ``(g, of_x, of_y)`` of similar points to begin with.

    Returns:
        :class:`SinkhornDivergence`.

    Raises:
        TypeError: points or masses are no floating tensors of one dtype.
        ValueError: shapes, masses or options do not fit, points are not finite.
        ConvergenceError: ``check`` is set and a problem did not converge; carries the result.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> found = sinkhorn_divergence(x, x + 2.0, epsilon=0.1)  # a shift by 2
        >>> round(float(found.value), 3), round(float(sinkhorn_divergence(x, x, epsilon=0.1).value), 3)
        (4.0, 0.0)

    References:
        Feydy, Sejourne, Vialard, Amari, Trouve, Peyre (2019), Interpolating between optimal transport and MMD using
        Sinkhorn divergences, equation 3. Sejourne, Feydy, Vialard, Trouve, Peyre (2019), Sinkhorn divergences for
        unbalanced optimal transport, definition 3.
    """
    check_clouds(x, y)
    check_solver(epsilon, relative_epsilon, reach, max_iterations, tolerance, gradient)
    given = {name: tuple(t.shape[:-1]) for name, t in (("a", a), ("b", b)) if isinstance(t, Tensor)}
    batch = check_broadcast(x=tuple(x.shape[:-2]), y=tuple(y.shape[:-2]), **given)
    n, m = x.shape[-2], y.shape[-2]
    a, b = masses(a, b, sizes=(n, m), batch=batch, like=x, what="x", held=reach is None)
    first, second = (t.double().expand(*batch, *t.shape[-2:]) for t in (x, y))
    _check_start(start, x, (m, n, m))
    few = _kept(first, second, cost, gradient)
    between = _checked(first, second, cost) if few else first.new_zeros(*batch, 0, 0)
    scale = epsilon
    if relative_epsilon is not None:
        mean = None if few else mean_cost(first, second, str(cost))
        scale = relative_to_mean(between, relative_epsilon, mean)
    total = [w.double().sum(-1, keepdim=True) for w in (a, b)]
    b = b if reach is not None else b.double() * (total[0] / total[1])
    if few:
        value, residual, g, of_x, of_y = _of_kept(
            first, second, a, b, between, cost, scale, reach, start, gradient, max_iterations, tolerance
        )
    else:
        scale, far = (
            None if s is None else torch.as_tensor(s, dtype=first.dtype, device=x.device) for s in (scale, reach)
        )
        assert scale is not None
        words: dict[str, Any] = {"start": start, "count": max_iterations, "tolerance": tolerance}
        value, residual, g, of_x, of_y = solve_debiased(
            first, second, a.double(), b.double(), scale, far, str(cost), **words
        )
    if reach is not None:
        price = torch.as_tensor(scale, dtype=value.dtype, device=value.device)
        value = value + price / 2 * (total[0] - total[1]).squeeze(-1).square()
    value, g, of_x, of_y, missed = (t.to(x.dtype) for t in (value, g, of_x, of_y, residual))
    result = SinkhornDivergence(value, g, of_x, of_y, missed, residual <= tolerance)
    if check:
        raise_unless_converged("sinkhorn_divergence", result.converged, residual, tolerance, max_iterations, result)
    return result


def _of_kept(
    x: Tensor,
    y: Tensor,
    a: Tensor,
    b: Tensor,
    between: Tensor,
    cost: Cost,
    scale: Any,
    reach: Scalar | None,
    start: tuple[Tensor, Tensor, Tensor] | None,
    gradient: str,
    count: int,
    tolerance: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Value, residual and potentials, with the costs of all pairs."""
    found = []
    for place, (left, right, supply, demand) in enumerate(((x, y, a, b), (x, x, a, a), (y, y, b, b))):
        costs = _checked(left, right, cost) if place else between
        problem = Problem.of(costs, supply, demand, scale, reach)
        begin, alike = None if start is None else start[place], place > 0 and isinstance(cost, str)
        options: dict[str, Any] = {"gradient": gradient, "max_iterations": count, "tolerance": tolerance}
        found.append(solve_entropic(problem, start=begin, symmetric=alike, **options))
    value = found[0].value - (found[1].value + found[2].value) / 2
    residual = torch.stack([t.residual for t in found]).amax(0)
    return value, residual, *(t.g.detach() for t in found)  # type: ignore[return-value]


def _kept(x: Tensor, y: Tensor, cost: Cost, gradient: str) -> bool:
    """Whether the costs of all pairs are computed once and kept."""
    most = PAIRS_KEPT if compiled_loops(x) else max(PAIRS_KEPT, _PAIRS_WITHOUT_LOOPS)
    if compiled_loops(x) and x.shape[:-2].numel() == 1:
        most = min(most, _PAIRS_KEPT_ALONE)
    return callable(cost) or gradient != "envelope" or x.shape[-2] * y.shape[-2] <= most


def _check_start(start: tuple[Tensor, Tensor, Tensor] | None, like: Tensor, sizes: tuple[int, int, int]) -> None:
    if start is None:
        return
    if not isinstance(start, tuple) or len(start) != 3:
        raise TypeError("start must be a tuple of three potentials (g, of_x, of_y)")
    for name, potential, size in zip(("g", "of_x", "of_y"), start, sizes, strict=True):
        check_same_dtype(x=like, **{f"start: {name}": potential})
        if potential.ndim < 1 or potential.shape[-1] != size:
            raise ValueError(f"start: {name} must have shape (..., {size}), got {tuple(potential.shape)}")


def _checked(x: Tensor, y: Tensor, cost: Cost) -> Tensor:
    found = pairwise_cost(x, y, cost)
    if callable(cost):
        check_cost(found)
    return found


class MongeGap(NamedTuple):
    """How far a map is from an optimal one.

    Attributes:
        value: ``[*batch]`` in the unit of the cost.
        g: ``[*batch, n]`` potential of the images, from which the next problem may start.
        residual: ``[*batch]`` of the entropic problem, 0 of the exact one.
        converged: ``[*batch]`` whether it is small enough.
    """

    value: Float[Tensor, "*batch"]
    g: Float[Tensor, "*batch n"]
    residual: Float[Tensor, "*batch"]
    converged: Bool[Tensor, "*batch"]


def monge_gap(
    x: Float[Tensor, "*#batch n d"],
    y: Float[Tensor, "*#batch n d"],
    *,
    cost: Cost = "sqeuclidean",
    epsilon: Scalar | None = None,
    relative_epsilon: Scalar | None = None,
    entropy: str = "shannon",
    max_iterations: int = 2000,
    tolerance: float = 1e-6,
    gradient: str = "envelope",
    start: Float[Tensor, "*#batch n"] | None = None,
    check: bool = False,
) -> MongeGap:
    r"""Return what the pairs :math:`y_i=T(x_i)` cost more than the best matching of the same points.

    :math:`\tfrac1n\sum_ic(x_i,y_i)-W_\varepsilon(x,y)` with
    :math:`W_\varepsilon=\min_P\langle P,C\rangle-\varepsilon H(P)` over plans between uniform masses: 0 with epsilon 0
    if and only if the pairs are an optimal matching. With Shannon's entropy :math:`H(P)=-\sum P\log P` it is at least
    :math:`\varepsilon\log n`, as the pairs are a plan of that entropy; with :math:`-KL(P|ab^T)` in its place at least
    :math:`-\varepsilon\log n`.

    Args:
        x: ``[*batch, n, d]`` points.
        y: ``[*batch, n, d]`` their images, in the same order.
        cost: ``"sqeuclidean"``, ``"euclidean"`` or a function, see :func:`pairwise_cost`.
        epsilon: >= 0, in the unit of the cost; 0 is the exact gap, by an assignment.
        relative_epsilon: > 0, as a part of the mean cost of all pairs. One of both is given.
        entropy: ``"shannon"`` or ``"kl"``.
        max_iterations, tolerance, check: see :func:`sinkhorn`.
        gradient: ``"envelope"`` (the identity less n times the plan, for n times the costs), ``"implicit"`` or
            ``"unrolled"``, see :func:`sinkhorn`.
        start: ``[*batch, n]`` the potential ``g`` of a similar problem to begin with.

    Returns:
        :class:`MongeGap`.

    Raises:
        TypeError: x or y is no floating tensor, or their dtypes differ.
        ValueError: shapes or options do not fit, points are not finite.
        ConvergenceError: ``check`` is set and a problem did not converge; carries the result.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> float(monge_gap(x, 2 * x, epsilon=0).value), float(monge_gap(x, -x, epsilon=0).value) > 1
        (0.0, True)

    References:
        Uscidda, Cuturi (2023), The Monge gap: a regularizer to learn all transport maps, equations 5 and 7.
    """
    check_clouds(x, y)
    check_choice("entropy", entropy, ("shannon", "kl"))
    exact = isinstance(epsilon, int | float) and not isinstance(epsilon, bool) and epsilon == 0
    check_solver(1.0 if exact else epsilon, relative_epsilon, None, max_iterations, tolerance, gradient)
    n = x.shape[-2]
    if y.shape[-2] != n:
        raise ValueError(f"y must have an image for each of the {n} points of x, got {y.shape[-2]}")
    shapes = {"x": tuple(x.shape[:-2]), "y": tuple(y.shape[:-2])}
    if start is not None:
        check_same_dtype(x=x, start=start)
        if start.ndim < 1 or start.shape[-1] != n:
            raise ValueError(f"start must have shape (..., {n}), got {tuple(start.shape)}")
        shapes["start"] = tuple(start.shape[:-1])
    batch = check_broadcast(**shapes)
    points, images = (t.double().expand(*batch, n, t.shape[-1]) for t in (x, y))
    few = exact or _kept(points, images, cost, gradient)
    costs = _checked(points, images, cost) if few else points.new_zeros(*batch, 0, 0)
    paid = costs.diagonal(dim1=-2, dim2=-1).mean(-1) if few else paired_cost(points, images, str(cost)).mean(-1)
    if exact:
        plan = exact_transport(costs)
        value, g, residual = paid - plan.value, plan.g, torch.zeros_like(paid)
        converged = torch.ones_like(residual, dtype=torch.bool)
    else:
        mean = None if few or relative_epsilon is None else mean_cost(points, images, str(cost))
        scale = epsilon if relative_epsilon is None else relative_to_mean(costs, relative_epsilon, mean)
        held = masses(None, None, sizes=(n, n), batch=batch, like=points, what="x")
        problem = Problem.of(costs, *held, scale)  # type: ignore[arg-type]
        found: Transport | Solved
        if few:
            options = {"gradient": gradient, "max_iterations": max_iterations, "tolerance": tolerance}
            found = solve_entropic(problem, start=start, **options)  # type: ignore[arg-type]
        else:
            words = {"start": start, "symmetric": False, "count": max_iterations, "tolerance": tolerance}
            found = solve_clouds(points, images, problem, str(cost), **words)  # type: ignore[arg-type]
        value, g, residual, converged = paid - found.value, found.g.detach(), found.residual, found.converged
        if entropy == "shannon":  # H(P) = 2 log n - KL(P | 1/n^2)
            value = value + 2 * problem.epsilon.squeeze((-2, -1)) * math.log(n)
    result = MongeGap(value.to(x.dtype), g.to(x.dtype), residual.to(x.dtype), converged)
    if check:
        raise_unless_converged("monge_gap", converged, residual, tolerance, max_iterations, result)
    return result
