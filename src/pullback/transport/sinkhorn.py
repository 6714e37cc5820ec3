"""Entropic optimal transport between masses, given the costs of all pairs."""

from __future__ import annotations

import torch

from pullback.core.checks import (
    check_broadcast,
    check_choice,
    check_integer,
    check_positive,
    check_same_dtype,
    check_scalar,
)
from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.transport.entropic import Problem, Transport, solve_entropic
from pullback.transport.masses import check_cost, masses

__all__ = ["check_solver", "raise_unless_converged", "relative_to_mean", "sinkhorn"]


def sinkhorn(
    cost: Float[Tensor, "*#batch n m"],
    a: Float[Tensor, "*#batch n"] | None = None,
    b: Float[Tensor, "*#batch m"] | None = None,
    *,
    epsilon: Scalar | None = None,
    relative_epsilon: Scalar | None = None,
    reach: Scalar | None = None,
    max_iterations: int = 2000,
    tolerance: float = 1e-6,
    gradient: str = "implicit",
    start: Float[Tensor, "*#batch m"] | None = None,
    check: bool = False,
) -> Transport:
    r"""Ship masses with entropy: :math:`\min_P\langle P,C\rangle+\varepsilon\,KL(P|ab^T)`, row sums a, column sums b.

    With ``reach`` :math:`\rho` sums may differ from the masses, at the price
    :math:`\rho\,KL(P1|a)+\rho\,KL(P^T1|b)`, where :math:`KL(p|q)=\sum p\log(p/q)-p+q` (so mass is rather lost than
    shipped for more than about 2 rho); a and b may then have different sums. Without it the constant
    :math:`-\sum p+\sum q` is left out.

    Sweeps in double precision, from a larger epsilon down to the given one (which saves most of them where epsilon is
    small), each problem until its residual is small enough. O(n m) a sweep: in the log domain where numbers would
    leave their range, else products with a kernel.

    Args:
        cost: ``[*batch, n, m]``; ``inf`` forbids a pair.
        a: ``[*batch, n]`` masses >= 0 of the rows; uniform by default.
        b: ``[*batch, m]`` masses >= 0 of the columns; without ``reach`` of the same sum (scaled to it where they differ
            by rounding).
        epsilon: > 0, in the unit of the cost; a number or a differentiable tensor without dimensions.
        relative_epsilon: > 0, the same as a part of the mean size of the finite costs of each problem, which is held
            constant in derivatives. One of both is given.
        reach: > 0, in the unit of the cost; ``None`` holds the masses.
        max_iterations: sweeps at most, >= 0.
        tolerance: > 0, of the residual.
        gradient: ``"implicit"``: of the exact solution, for plan, potentials and value, to third order; one linear
            solve of size m, memory that does not grow with the sweeps. ``"envelope"``: of the value alone (the plan for
            the cost, f and g for the masses), to first order; plan and potentials are constant. ``"unrolled"``: of the
            sweeps as they ran; memory grows with them.
        start: ``[*batch, m]`` potential of the columns to begin with, such as ``g`` of a similar problem; epsilon is
            then the given one from the beginning.
        check: raise where a problem did not converge.

    Returns:
        :class:`~pullback.transport.Transport`. The implicit form polishes by Newton steps, so its residual is usually
        far below ``tolerance``.

    Raises:
        TypeError: ``cost`` is no floating tensor, or another argument has another dtype.
        ValueError: ``epsilon``, ``reach`` or ``tolerance`` is not positive, the cost is NaN or ``-inf`` somewhere,
            masses are negative or (without ``reach``) of different sums, shapes do not fit.
        ConvergenceError: ``check`` is set and a problem did not converge; carries the result.

    Example:
        >>> found = sinkhorn(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), epsilon=0.5)
        >>> found.plan[0], bool(found.converged)
        (tensor([0.4404, 0.0596]), True)
        >>> far = sinkhorn(torch.tensor([[0.0, 9.0], [9.0, 9.0]]), epsilon=0.1, reach=1.0)
        >>> far.plan.sum() < 0.6  # the second row and the second column are too far from each other
        tensor(True)

    References:
        Cuturi (2013), Sinkhorn distances, algorithm 1. Schmitzer (2019), Stabilized sparse scaling algorithms, section
        3. Chizat, Peyre, Schmitzer, Vialard (2018), Scaling algorithms for unbalanced optimal transport problems.
    """
    check_cost(cost)
    check_solver(epsilon, relative_epsilon, reach, max_iterations, tolerance, gradient)
    n, m = cost.shape[-2:]
    if n == 0 or m == 0:
        raise ValueError(f"cost must have at least one row and one column, got shape {tuple(cost.shape)}")
    given = {name: tuple(t.shape[:-1]) for name, t in (("a", a), ("b", b), ("start", start)) if isinstance(t, Tensor)}
    batch = check_broadcast(cost=tuple(cost.shape[:-2]), **given)
    if start is not None:
        check_same_dtype(cost=cost, start=start)
        if start.ndim < 1 or start.shape[-1] != m:
            raise ValueError(f"start must have shape (..., {m}), got {tuple(start.shape)}")
    a, b = masses(a, b, sizes=(n, m), batch=batch, like=cost, what="cost", held=reach is None)
    scale = epsilon if relative_epsilon is None else relative_to_mean(cost, relative_epsilon)
    problem = Problem.of(cost.expand(*batch, n, m), a, b, scale, reach)  # type: ignore[arg-type]
    options = {"gradient": gradient, "max_iterations": max_iterations, "tolerance": tolerance}
    result = solve_entropic(problem, start=start, **options)  # type: ignore[arg-type]
    result = Transport(*(x.to(cost.dtype) if x.is_floating_point() else x for x in result))
    if check:
        raise_unless_converged("sinkhorn", result.converged, result.residual, tolerance, max_iterations, result)
    return result


def check_solver(
    epsilon: Scalar | None,
    relative_epsilon: Scalar | None,
    reach: Scalar | None,
    max_iterations: int,
    tolerance: float,
    gradient: str,
) -> None:
    """Raise unless the options that all entropic blocks share are right."""
    if (epsilon is None) == (relative_epsilon is None):
        raise ValueError("epsilon or relative_epsilon must be given, and not both")
    for name, value in (("epsilon", epsilon), ("relative_epsilon", relative_epsilon), ("reach", reach)):
        if value is not None:
            check_scalar(name, value)
    check_integer("max_iterations", max_iterations, 0)
    check_positive("tolerance", tolerance)
    check_choice("gradient", gradient, ("implicit", "envelope", "unrolled"))


def relative_to_mean(cost: Tensor, part: Scalar, mean: Tensor | None = None) -> Tensor:
    """Return ``part`` of the mean size of the finite costs ``[*batch]``, constant; 1 of that where all are 0.

    Example:
        >>> relative_to_mean(torch.tensor([[0.0, 2.0], [4.0, torch.inf]]), 0.1).item()
        0.2
    """
    if mean is None:
        wide = cost.detach().double()
        finite = wide.isfinite()
        mean = torch.where(finite, wide, 0).abs().sum((-2, -1)) / finite.sum((-2, -1)).clamp(min=1)
    return part * torch.where(mean > 0, mean, 1)


def raise_unless_converged(
    name: str, converged: Tensor, residual: Tensor, tolerance: float, max_iterations: int, result: object
) -> None:
    """Raise :class:`ConvergenceError` with the result where a problem's residual is too large."""
    if can_look(converged) and not bool(converged.all()):
        raise ConvergenceError(
            f"{name}: {int((~converged).sum())} of {converged.numel()} problems have a residual above "
            f"{tolerance:g} after at most {max_iterations} sweeps, the largest {residual.max().item():.3g}; "
            "a larger epsilon needs fewer",
            result,
        )
