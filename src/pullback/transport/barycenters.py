r"""Barycentres: the measure from which the weighted sum of transport costs to several given ones is least.

On a grid, entropic ones by the fixed point of Bregman projections; as a cloud of points, exact ones by moving every
point to the mean of what it ships to.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import (
    check_broadcast,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_scalar,
)
from pullback.core.shapes import Bool, Float, Int, Scalar, Tensor
from pullback.core.transforms import can_look, is_transformed, physical
from pullback.kernels.barycenter import barycenter_loops
from pullback.transport.costs import check_clouds, pairwise_cost
from pullback.transport.exact import free_plans
from pullback.transport.masses import check_cost, masses
from pullback.transport.sinkhorn import raise_unless_converged
from pullback.transport.sweeps import log_masses

__all__ = ["Barycenter", "FreeBarycenter", "barycenter", "free_support_barycenter"]

_RANGE = 200.0
"""Of costs by epsilon, up to which sums of products stay in the range of numbers."""


class Barycenter(NamedTuple):
    """A barycentre on a grid.

    Attributes:
        masses: ``[*batch, m]`` of the sum of the inputs.
        residual: ``[*batch]`` what the columns of a plan miss of it in all, as a part of all mass, of the worst.
        iterations: ``[*batch]`` steps it took.
        converged: ``[*batch]`` whether the residual is within the tolerance.
    """

    masses: Float[Tensor, "*batch m"]
    residual: Float[Tensor, "*batch"]
    iterations: Int[Tensor, "*batch"]
    converged: Bool[Tensor, "*batch"]


class FreeBarycenter(NamedTuple):
    """A barycentre of points.

    Attributes:
        points: ``[*batch, m, d]``, each of mass 1 / m.
        value: ``[*batch]`` the weighted sum of the squared distances to the inputs at the last plans.
        iterations: ``[*batch]`` updates until the points stood still.
    """

    points: Float[Tensor, "*batch m d"]
    value: Float[Tensor, "*batch"]
    iterations: Int[Tensor, "*batch"]


def barycenter(
    a: Float[Tensor, "*#batch k m"],
    cost: Float[Tensor, "*#batch m m"],
    weights: Float[Tensor, "*#batch k"] | None = None,
    *,
    epsilon: Scalar,
    debiased: bool = True,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
    check: bool = False,
) -> Barycenter:
    r"""Return the entropic barycentre :math:`\arg\min_b\sum_k\lambda_k\,OT_\varepsilon(a_k,b)` of masses on one grid.

    With :math:`K=e^{-C/\varepsilon}` it is the fixed point of :math:`b=d\odot\prod_k(K^Tu_k)^{\lambda_k}`,
    :math:`u_k=a_k/(Kv_k)`, :math:`v_k=b/(K^Tu_k)`. Plain (d = 1) it is blurred by about :math:`\sqrt\varepsilon`.
    Debiased, :math:`d=b/(Kd)`, it minimises the sum of Sinkhorn divergences: of one input it is that input.

    Derivatives are those of the steps as they ran; memory grows with them, by k m numbers each.

    Args:
        a: ``[*batch, k, m]`` masses >= 0 of the inputs, of one sum each.
        cost: ``[*batch, m, m]`` between the points of the grid, finite, symmetric.
        weights: ``[*batch, k]`` lambda >= 0, taken as parts of their sum; equal by default.
        epsilon: > 0, in the unit of the cost; a number or a differentiable tensor without dimensions.
        debiased: whether the blur of the entropy is taken out.
        max_iterations: steps at most, >= 1.
        tolerance: > 0, of the residual.
        check: raise where a problem did not converge.

    Returns:
        :class:`Barycenter`.

    Raises:
        TypeError: an argument is no floating tensor, or of another dtype.
        ValueError: ``epsilon`` or ``tolerance`` is not positive, masses are negative, empty or of different sums, costs
            are not finite or not symmetric, shapes do not fit.
        ConvergenceError: ``check`` is set and a problem did not converge; carries the result.

    Example:
        >>> place = torch.arange(5.0)
        >>> ends = torch.eye(5)[[0, 4]]
        >>> found = barycenter(ends + 1e-9, (place[:, None] - place).square(), epsilon=0.5)
        >>> found.masses.argmax().item()  # half way
        2

    References:
        Benamou, Carlier, Cuturi, Nenna, Peyre (2015), Iterative Bregman projections, section 3.2. Janati, Cuturi,
        Gramfort (2020), Debiased Sinkhorn barycenters, algorithm 1.
    """
    check_cost(cost)
    check_scalar("epsilon", epsilon)
    check_integer("max_iterations", max_iterations, 1)
    check_positive("tolerance", tolerance)
    k, m = _sizes(a, cost)
    given = {"a": tuple(a.shape[:-2]), "cost": tuple(cost.shape[:-2])}
    shares = _shares(weights, a, given)
    batch = check_broadcast(**given)
    inputs = masses(a, None, sizes=(m, m), batch=(*batch, k), like=cost, what="cost")[0].double()
    total = inputs.sum(-1, keepdim=True)
    kernel, parts = -cost.double().expand(*batch, m, m) / epsilon, inputs / total
    narrow = can_look(kernel) and kernel.numel() > 0 and float(kernel.detach().abs().amax()) <= _RANGE
    options = (debiased, max_iterations, tolerance)
    solved = _by_products(kernel.exp(), parts, shares, *options) if narrow else None
    share, residual, iterations = solved or _by_logarithms(kernel, parts, shares, *options)
    found = (share * total.mean(-2)).to(cost.dtype)
    result = Barycenter(found, residual.to(cost.dtype), iterations, residual <= tolerance)
    if check:
        raise_unless_converged("barycenter", result.converged, residual, tolerance, max_iterations, result)
    return result


def free_support_barycenter(
    y: Float[Tensor, "*#batch k n d"],
    a: Float[Tensor, "*#batch k n"] | None = None,
    weights: Float[Tensor, "*#batch k"] | None = None,
    *,
    start: Float[Tensor, "*#batch m d"],
    max_iterations: int = 100,
) -> FreeBarycenter:
    r"""Return points x of mass 1 / m with the least :math:`\sum_k\lambda_k\,W_2^2(x,(y_k,a_k))`, from a start.

    Each update solves the k transport problems exactly and moves every point to the weighted mean of what it ships to,
    :math:`x_j=m\sum_k\lambda_k\sum_iP^k_{ij}y_{ki}`, which is the best place for these plans; it ends where the plans
    stay, in a local minimum. There the plans are locally constant, so the derivative of that formula is exact.

    Args:
        y: ``[*batch, k, n, d]`` the points of the inputs.
        a: ``[*batch, k, n]`` their masses >= 0, taken as parts of their sum; uniform by default. Constant in
            derivatives.
        weights: ``[*batch, k]`` lambda >= 0, taken as parts of their sum; equal by default.
        start: ``[*batch, m, d]`` points to begin with.
        max_iterations: updates at most, >= 1.

    Returns:
        :class:`FreeBarycenter`, differentiable in y and ``weights``.

    Raises:
        TypeError: an argument is no floating tensor, or of another dtype.
        ValueError: a point is not finite, masses are negative or empty, or shapes do not fit.

    Example:
        >>> corner = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> both = torch.stack([corner, corner + 4.0])
        >>> free_support_barycenter(both, start=corner).points
        tensor([[2., 2.],
                [4., 2.],
                [2., 4.]])

    References:
        Cuturi, Doucet (2014), Fast computation of Wasserstein barycenters, algorithm 2.
    """
    check_clouds(y, start, names=("y", "start"))
    check_integer("max_iterations", max_iterations, 1)
    if y.ndim < 3 or y.shape[-3] == 0:
        raise ValueError(f"y must have shape (..., inputs, points, dimensions), got {tuple(y.shape)}")
    given = {"y": tuple(y.shape[:-3]), "start": tuple(start.shape[:-2])}
    shares = _shares(weights, y, given, inputs=y.shape[-3])
    if a is not None:
        check_same_dtype(y=y, a=a)
        if a.ndim < 2 or a.shape[-2:] != y.shape[-3:-1]:
            raise ValueError(f"a must have shape (..., {y.shape[-3]}, {y.shape[-2]}), got {tuple(a.shape)}")
        given["a"] = tuple(a.shape[:-2])
    batch = check_broadcast(**given)
    wide = torch.promote_types(y.dtype, torch.float32)
    points, m = y.to(wide).expand(*batch, *y.shape[-3:]), start.shape[-2]
    even = a is None and y.shape[-2] == m  # assignments, which are faster than plans
    supply = masses(a, None, sizes=(y.shape[-2], m), batch=(*batch, y.shape[-3]), like=y, what="y")[0].detach()
    supply = supply / supply.sum(-1, keepdim=True)
    x = start.detach().to(wide).expand(*batch, m, start.shape[-1])
    parts = shares.detach().to(wide).expand(*batch, y.shape[-3])
    plan, iterations = free_plans(points.detach(), supply.to(wide), parts, x, even, max_iterations)
    x = _means(plan, points, shares.to(wide))
    paid = (plan * pairwise_cost(points, x.unsqueeze(-3))).sum((-2, -1))
    return FreeBarycenter(x.to(y.dtype), (shares.to(wide) * paid).sum(-1).to(y.dtype), iterations)


def _sizes(a: Tensor, cost: Tensor) -> tuple[int, int]:
    m = cost.shape[-1]
    if cost.shape[-2] != m or m == 0:
        raise ValueError(f"cost must have shape (..., m, m), m >= 1, got {tuple(cost.shape)}")
    if can_look(cost) and not bool(cost.isfinite().all()):
        raise ValueError("cost must be finite")
    if can_look(cost) and cost.numel():
        given = cost.detach().double()
        if bool(((given - given.mT).abs().amax((-2, -1)) > 1e-3 * given.abs().amax((-2, -1))).any()):
            raise ValueError("cost must be symmetric: inputs and barycentre lie on one grid")
    check_same_dtype(cost=cost, a=check_floating("a", a))
    if a.ndim < 2 or a.shape[-1] != m or a.shape[-2] == 0:
        raise ValueError(f"a must have shape (..., inputs, {m}), got {tuple(a.shape)}")
    return a.shape[-2], m


def _shares(
    weights: Tensor | None, like: Tensor, given: dict[str, tuple[int, ...]], inputs: int | None = None
) -> Tensor:
    """Return the weights ``[..., k]`` as parts of their sum, in double precision."""
    k = like.shape[-2] if inputs is None else inputs
    if weights is None:
        return torch.full((k,), 1 / k, dtype=torch.float64, device=like.device)
    check_same_dtype(**{next(iter(given)): like, "weights": check_floating("weights", weights)})
    if weights.ndim < 1 or weights.shape[-1] != k:
        raise ValueError(f"weights must have shape (..., {k}), got {tuple(weights.shape)}")
    if can_look(weights) and not bool(((weights >= 0) & weights.isfinite()).all() & (weights.sum(-1) > 0).all()):
        raise ValueError("weights must be >= 0 and finite, of a positive sum")
    given["weights"] = tuple(weights.shape[:-1])
    return weights.double() / weights.double().sum(-1, keepdim=True)


def _by_products(
    kernel: Tensor, a: Tensor, shares: Tensor, debiased: bool, count: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the barycentre, what columns miss of it, and the steps; ``None`` where numbers leave their range.

    Where nothing is differentiated the steps are compiled.
    """
    given, k, batch = (kernel, a, shares), a.shape[-2], a.shape[:-2]
    tracked = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    if not tracked and kernel.device.type == "cpu" and not any(is_transformed(t) for t in given):
        flat = (
            kernel.reshape(-1, *kernel.shape[-2:]),
            a.reshape(-1, *a.shape[-2:]),
            shares.expand(*batch, k).reshape(-1, k),
        )
        products, inputs, powers = (t.contiguous().numpy() for t in flat)
        solved = barycenter_loops(products, inputs, powers, debiased, count, tolerance)
        if solved is not None:
            b, residual, iterations = (torch.from_numpy(t).reshape((*batch, *t.shape[1:])) for t in solved)
            return (b, residual, iterations) if bool(residual.isfinite().all()) else None
    scales = torch.ones(*batch, k + debiased, a.shape[-1], dtype=a.dtype, device=a.device)
    iterations = torch.zeros(batch, dtype=torch.int64, device=a.device)
    for step in range(count + 1):
        spread = scales @ kernel
        reach = (a / spread[..., :k, :]) @ kernel
        b = (shares.unsqueeze(-1) * reach.log()).sum(-2, keepdim=True).exp()
        b = b * scales[..., k:, :] if debiased else b
        b = b / b.sum(-1, keepdim=True)
        columns = scales * (torch.cat([reach, spread[..., k:, :]], -2) if debiased else reach)
        residual = (columns.detach() - b.detach()).abs().sum(-1).amax(-1)
        left = residual > tolerance
        if step == count or not bool(physical(left).any()):
            break
        iterations = iterations + left
        ratio = b / columns
        scales = scales * (torch.cat([ratio[..., :k, :], ratio[..., k:, :].sqrt()], -2) if debiased else ratio)
    return (b.squeeze(-2), residual, iterations) if bool(physical(residual).isfinite().all()) else None


def _by_logarithms(
    kernel: Tensor, a: Tensor, shares: Tensor, debiased: bool, count: int, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, of any range; the kernel is given by its logarithm."""
    log_a = log_masses(a)
    h = torch.zeros(*a.shape[:-2], a.shape[-2] + debiased, a.shape[-1], dtype=torch.float64, device=a.device)
    iterations = torch.zeros(a.shape[:-2], dtype=torch.int64, device=a.device)
    for step in range(count + 1):
        log_v = h[..., :-1, :] if debiased else h
        reach = _applied(kernel, log_a - _applied(kernel, log_v))
        log_b = (shares.unsqueeze(-1) * reach).sum(-2)
        log_b = torch.log_softmax(log_b + h[..., -1, :] if debiased else log_b, -1)
        columns = log_v + reach
        if debiased:
            log_d = h[..., -1:, :]
            columns = torch.cat([columns, log_d + _applied(kernel, log_d)], -2)
        residual = (columns - log_b.unsqueeze(-2)).detach().expm1().abs().mul(log_b.detach().exp().unsqueeze(-2))
        residual = residual.sum(-1).amax(-1)
        left = residual > tolerance
        if step == count or (can_look(left) and not bool(left.any())):
            break
        iterations = iterations + left
        h = _advance(h, log_b, columns, debiased)
    return log_b.exp(), residual, iterations


def _advance(h: Tensor, log_b: Tensor, columns: Tensor, debiased: bool) -> Tensor:
    """Return the next log v ``[*batch, k, m]``, each of mean 0 (its scale is free), and below them log d."""
    off = log_b.unsqueeze(-2) - columns
    if not debiased:
        new = h + off
        return new - new.mean(-1, keepdim=True)
    new = (h + off)[..., :-1, :]
    return torch.cat([new - new.mean(-1, keepdim=True), (h + off / 2)[..., -1:, :]], -2)


def _applied(kernel: Tensor, w: Tensor) -> Tensor:
    """Return ``log(K exp(w))`` of rows w ``[*batch, k, m]``, K symmetric and given by its logarithm."""
    return torch.logsumexp(kernel.unsqueeze(-3) + w.unsqueeze(-2), -1)


def _means(plan: Tensor, points: Tensor, shares: Tensor) -> Tensor:
    """Return the weighted means of what each column ships to: ``[*batch, m, d]``."""
    return plan.shape[-1] * (shares[..., None, None] * (plan.mT @ points)).sum(-3)
