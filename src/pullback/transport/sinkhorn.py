r"""Entropic optimal transport in the log domain, differentiated at its fixed point.

With :math:`P_{ij} = a_ib_j\exp((f_i+g_j-C_{ij})/\varepsilon)`, one sweep sets f such that the row sums are right, then
g such that the column sums are. The sweeps run without autograd. Two Newton steps on g from where they end,
differentiated as they stand, carry the derivatives: a Newton step takes an error e to one of order e^2, so what cost
and masses change is exact to first order after one step and to third order after two, in every mode of autograd.

References:
    Cuturi (2013), Sinkhorn distances. Peyre, Cuturi (2019), Computational optimal transport, chapter 4. Feydy et al.
    (2019), Interpolating between optimal transport and MMD. Cuturi, Teboul, Niles-Weed, Vert (2020), Supervised
    quantile normalization, section 3 (implicit differentiation).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from pullback.core.checks import check_broadcast, check_choice, check_integer, check_positive, check_scalar
from pullback.core.errors import ConvergenceError
from pullback.core.numerics import solve
from pullback.core.shapes import Bool, Float, Int, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.transport.masses import check_cost, masses

__all__ = ["Transport", "sinkhorn"]


class Transport(NamedTuple):
    """An entropic plan; one problem each entry of the batch.

    Attributes:
        plan: ``[*batch, n, m]``, ``a_i b_j exp((f_i + g_j - cost_ij) / epsilon)``.
        f: ``[*batch, n]`` potential of the rows, in the unit of the cost.
        g: ``[*batch, m]`` potential of the columns. Only f + g is determined: both have the same mean over the masses.
        value: ``[*batch]``, ``<plan, cost> + epsilon KL(plan | a b^T)``, equal to ``<f, a> + <g, b>`` when converged.
        residual: ``[*batch]`` sum of ``|column sums - b|``, as a part of all mass; the row sums are exact.
        iterations: ``[*batch]`` sweeps until the residual was small enough.
        converged: ``[*batch]`` whether it was.
    """

    plan: Float[Tensor, "*batch n m"]
    f: Float[Tensor, "*batch n"]
    g: Float[Tensor, "*batch m"]
    value: Float[Tensor, "*batch"]
    residual: Float[Tensor, "*batch"]
    iterations: Int[Tensor, "*batch"]
    converged: Bool[Tensor, "*batch"]


def sinkhorn(
    cost: Float[Tensor, "*#batch n m"],
    a: Float[Tensor, "*#batch n"] | None = None,
    b: Float[Tensor, "*#batch m"] | None = None,
    *,
    epsilon: Scalar,
    max_iterations: int = 2000,
    tolerance: float = 1e-6,
    gradient: str = "implicit",
    check: bool = False,
) -> Transport:
    r"""Ship masses with entropy: :math:`\min_P\langle P,C\rangle+\varepsilon\,KL(P|ab^T)`, row sums a, column sums b.

    Sweeps in the log domain and in double precision, from a larger epsilon down to the given one (which saves most of
    them where epsilon is small), each problem until its residual is small enough. O(n m) a sweep.

    Args:
        cost: ``[*batch, n, m]``; ``inf`` forbids a pair.
        a: ``[*batch, n]`` masses >= 0 of the rows; uniform by default.
        b: ``[*batch, m]`` masses >= 0 of the columns, of the same sum (scaled to it where they differ by rounding).
        epsilon: > 0, in the unit of the cost; a number or a differentiable tensor without dimensions.
        max_iterations: sweeps at most, >= 0.
        tolerance: > 0, of the residual.
        gradient: ``"implicit"``: of the exact solution, for plan, potentials and value, to third order; one linear
            solve of size m, memory that does not grow with the sweeps. ``"envelope"``: of the value alone (the plan for
            the cost, f and g for the masses), to first order; plan and potentials are constant. ``"unrolled"``: of the
            sweeps as they ran; memory grows with them.
        check: raise where a problem did not converge.

    Returns:
        :class:`Transport`. The implicit form polishes by Newton steps, so its residual is usually far below
        ``tolerance``.

    Raises:
        TypeError: ``cost`` is no floating tensor, or another argument has another dtype.
        ValueError: ``epsilon`` or ``tolerance`` is not positive, the cost is NaN or ``-inf`` somewhere, masses are
            negative or of different sums, shapes do not fit.
        ConvergenceError: ``check`` is set and a problem did not converge; carries the result.

    Example:
        >>> found = sinkhorn(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), epsilon=0.5)
        >>> found.plan[0], bool(found.converged)
        (tensor([0.4404, 0.0596]), True)

    References:
        Cuturi (2013), Sinkhorn distances, algorithm 1. Schmitzer (2019), Stabilized sparse scaling algorithms, section
        3 (scaling of epsilon).
    """
    check_cost(cost)
    check_scalar("epsilon", epsilon)
    check_integer("max_iterations", max_iterations, 0)
    check_positive("tolerance", tolerance)
    check_choice("gradient", gradient, ("implicit", "envelope", "unrolled"))
    n, m = cost.shape[-2:]
    if n == 0 or m == 0:
        raise ValueError(f"cost must have at least one row and one column, got shape {tuple(cost.shape)}")
    given = {name: tuple(t.shape[:-1]) for name, t in (("a", a), ("b", b)) if isinstance(t, Tensor)}
    batch = check_broadcast(cost=tuple(cost.shape[:-2]), **given)
    a, b = masses(a, b, sizes=(n, m), batch=batch, like=cost, what="cost")
    # Potentials are differences of numbers of size cost / epsilon: single precision has no digits for that.
    problem = _Problem.of(cost.expand(*batch, n, m), a, b, epsilon)
    if gradient == "unrolled":
        g, sweeps = _unrolled(problem, max_iterations, tolerance)
    else:
        constants = (problem.cost.detach(), problem.a.detach(), problem.b.detach(), problem.epsilon.detach())
        g, sweeps = _sweeps(*constants, max_iterations, tolerance)
        if gradient == "implicit":
            g = _polish(problem, g)
    result = _result(problem, g, sweeps, tolerance, constant=gradient == "envelope")
    result = Transport(*(x.to(cost.dtype) if x.is_floating_point() else x for x in result))
    if check and can_look(result.converged) and not bool(result.converged.all()):
        raise ConvergenceError(
            f"sinkhorn: {int((~result.converged).sum())} of {result.converged.numel()} problems have a residual above "
            f"{tolerance:g} after at most {max_iterations} sweeps, the largest {result.residual.max().item():.3g}; "
            "a larger epsilon needs fewer",
            result,
        )
    return result


class _Problem(NamedTuple):
    """Costs ``[*batch, n, m]``, masses, their logarithms (-inf for no mass) and epsilon ``[*batch, 1, 1]``."""

    cost: Tensor
    a: Tensor
    b: Tensor
    log_a: Tensor
    log_b: Tensor
    epsilon: Tensor

    @staticmethod
    def of(cost: Tensor, a: Tensor, b: Tensor, epsilon: Scalar) -> _Problem:
        a, b = a.double(), b.double()
        b = b * (a.sum(-1, keepdim=True) / b.sum(-1, keepdim=True))  # sums in double precision too
        scale = torch.as_tensor(epsilon, dtype=torch.float64, device=cost.device).expand(*cost.shape[:-2], 1, 1)
        return _Problem(cost.double(), a, b, _log(a), _log(b), scale)

    def row_logits(self, g: Tensor) -> Tensor:
        """Return what a softmax along a row makes the plan of, as parts of the row's mass."""
        return _kernel(g.unsqueeze(-2), self) + self.log_b.unsqueeze(-2)

    def column_logits(self, f: Tensor) -> Tensor:
        """Return what a softmax along a column makes the plan of, as parts of the column's mass."""
        return _kernel(f.unsqueeze(-1), self) + self.log_a.unsqueeze(-1)

    def rows(self, g: Tensor) -> Tensor:
        """Return the f that makes row sums right."""
        return -self.epsilon.squeeze(-1) * torch.logsumexp(self.row_logits(g), -1)

    def columns(self, f: Tensor) -> Tensor:
        """Return the g that makes column sums right."""
        return -self.epsilon.squeeze(-1) * torch.logsumexp(self.column_logits(f), -2)


def _log(x: Tensor) -> Tensor:
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).log(), -torch.inf)


def _kernel(potential: Tensor, problem: _Problem) -> Tensor:
    allowed = problem.cost < torch.inf
    # A forbidden pair: its cost has no part in any derivative.
    return torch.where(allowed, (potential - torch.where(allowed, problem.cost, 0)) / problem.epsilon, -torch.inf)


def _unrolled(problem: _Problem, count: int, tolerance: float) -> tuple[Tensor, Tensor]:
    g = torch.zeros_like(problem.b)
    f = torch.zeros_like(problem.a)
    sweeps = torch.zeros(g.shape[:-1], dtype=torch.int64, device=g.device)
    done = torch.zeros_like(sweeps, dtype=torch.bool)
    for k in range(count):
        before, f = f, problem.rows(g)
        if k:
            done = done | (_row_error(problem, before, f) <= tolerance)
            if can_look(done) and bool(done.all()):
                break
        g = torch.where(done.unsqueeze(-1), g, problem.columns(f))
        sweeps = torch.where(done, sweeps, k + 1)
    return g, sweeps


def _row_error(problem: _Problem, before: Tensor, f: Tensor) -> Tensor:
    """With ``before`` as the potential of the rows, their sums are ``a exp((before - f) / epsilon)``."""
    change = ((before - f).detach() / problem.epsilon.detach().squeeze(-1)).expm1().abs()
    return (problem.a.detach() * change).sum(-1) / problem.a.detach().sum(-1)


def _polish(problem: _Problem, g: Tensor) -> Tensor:
    """Two Newton steps on g; where they lead away (far from the solution), two sweeps."""
    error, swept, newton = [], g, g
    for _ in range(2):
        f = problem.rows(newton)
        gap = newton - problem.columns(f)
        error.append(gap.detach().abs().amax(-1))
        # d wanted / d g, and what holds the constant that g is free by. The small number is for plans that fall apart
        # into blocks, each with a constant of its own.
        slope = torch.softmax(problem.column_logits(f), -2).mT @ torch.softmax(problem.row_logits(newton), -1)
        identity = torch.eye(slope.shape[-1], dtype=slope.dtype, device=slope.device)
        held = (problem.b / problem.b.sum(-1, keepdim=True)).unsqueeze(-2)
        newton = newton - solve((1 + 1e-10) * identity - slope + held, gap.unsqueeze(-1)).squeeze(-1)
        swept = problem.columns(problem.rows(swept))
    last = (newton - problem.columns(problem.rows(newton.detach()))).detach().abs().amax(-1)
    better = (last <= error[0]) | (last <= 1e-9 * problem.epsilon.detach().squeeze((-2, -1)))
    return torch.where(better.unsqueeze(-1), newton, swept)


def _result(problem: _Problem, g: Tensor, sweeps: Tensor, tolerance: float, constant: bool) -> Transport:
    f = problem.rows(g)
    value = (f * problem.a).sum(-1) + (g * problem.b).sum(-1)
    plan = problem.a.unsqueeze(-1) * torch.softmax(problem.row_logits(g), -1)
    if constant:
        plan, f, g = plan.detach(), f.detach(), g.detach()
    mass = problem.b.sum(-1)
    residual = ((plan.sum(-2) - problem.b).abs().sum(-1) / mass).detach()
    shift = (((f * problem.a).sum(-1) - (g * problem.b).sum(-1)) / (2 * mass)).unsqueeze(-1)
    shift = shift.detach() if constant else shift
    return Transport(plan, f - shift, g + shift, value, residual, sweeps, residual <= tolerance)


@torch.library.custom_op(
    "pullback::sinkhorn",
    mutates_args=(),
    schema="(Tensor cost, Tensor a, Tensor b, Tensor epsilon, int count, float tolerance) -> (Tensor, Tensor)",
)
def _sweeps(cost: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, count: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """Sweep until each problem is done; epsilon comes down by halves from the spread of the costs."""
    with torch.no_grad():
        problem = _Problem.of(cost, a, b, 1.0)._replace(epsilon=epsilon)
        allowed = cost < torch.inf
        most, least = (torch.where(allowed, cost, x).flatten(-2) for x in (-torch.inf, torch.inf))
        spread = (most.amax(-1) - least.amin(-1))[..., None, None]
        g, f = torch.zeros_like(b), torch.zeros_like(a)
        sweeps = torch.zeros(g.shape[:-1], dtype=torch.int64, device=g.device)
        done = torch.zeros_like(sweeps, dtype=torch.bool)
        for k in range(count):
            current = torch.maximum(epsilon, spread * 0.5 ** (k + 2))
            problem = problem._replace(epsilon=current)
            before, f = f, problem.rows(g)
            last = (current <= epsilon).squeeze((-2, -1))
            done = done | (last & (_row_error(problem, before, f) <= tolerance)) if k else done
            if bool(done.all()):
                break
            g = torch.where(done.unsqueeze(-1), g, problem.columns(f))
            sweeps = torch.where(done, sweeps, k + 1)
        return g.clone(), sweeps


@_sweeps.register_fake
def _(cost: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, count: int, tolerance: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(b), b.new_empty(b.shape[:-1], dtype=torch.int64)


@_sweeps.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
    moved = [
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(arguments[:4], in_dims[:4], strict=True)
    ]
    return _sweeps(*moved, *arguments[4:]), (0, 0)
