r"""The entropic problem and its solution, differentiated at its fixed point.

With :math:`P_{ij} = a_ib_j\exp((f_i+g_j-C_{ij})/\varepsilon)`, one sweep sets f such that the row sums are right, then
g such that the column sums are. The sweeps run without autograd (:mod:`pullback.transport.sweeps`). Two Newton steps on
g from where they end, differentiated as they stand, carry the derivatives: a Newton step takes an error e to one of
order e^2, so what cost and masses change is exact to first order after one step and to third order after two, in every
mode of autograd.

Where masses may differ from a and b at a price (``reach`` :math:`\rho`), the right row sums are
:math:`a_i\exp(-f_i/\rho)`, and so for columns.

References:
    Cuturi (2013), Sinkhorn distances. Peyre, Cuturi (2019), Computational optimal transport, chapter 4. Feydy et al.
    (2019), Interpolating between optimal transport and MMD. Chizat, Peyre, Schmitzer, Vialard (2018), Scaling
    algorithms for unbalanced optimal transport problems. Cuturi, Teboul, Niles-Weed, Vert (2020), Supervised
    quantile normalization, section 3 (implicit differentiation).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from pullback.core.gradients import replace_gradient
from pullback.core.numerics import solve
from pullback.core.shapes import Bool, Float, Int, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.kernels.sinkhorn import plan_loops
from pullback.transport.sweeps import log_masses, sweep

__all__ = ["Problem", "Transport", "partials", "solve_entropic"]


class Transport(NamedTuple):
    """An entropic plan; one problem each entry of the batch.

    Attributes:
        plan: ``[*batch, n, m]``, ``a_i b_j exp((f_i + g_j - cost_ij) / epsilon)``.
        f: ``[*batch, n]`` potential of the rows, in the unit of the cost.
        g: ``[*batch, m]`` potential of the columns. Where masses are held, only f + g is determined: both have the same
            mean over the masses.
        value: ``[*batch]``, ``<plan, cost> + epsilon KL(plan | a b^T)``, equal to ``<f, a> + <g, b>`` when converged;
            with ``reach`` the prices of the changed masses are added.
        residual: ``[*batch]`` sum of what column sums miss, as a part of all mass; the row sums are exact.
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


class Problem(NamedTuple):
    """Costs ``[*batch, n, m]``, masses, their logarithms (-inf for no mass), epsilon and reach ``[*batch, 1, 1]``.

    In double precision: potentials are differences of numbers of size cost / epsilon, for which single has no digits.
    """

    cost: Tensor
    a: Tensor
    b: Tensor
    log_a: Tensor
    log_b: Tensor
    epsilon: Tensor
    reach: Tensor | None

    @staticmethod
    def of(cost: Tensor, a: Tensor, b: Tensor, epsilon: Scalar | Tensor, reach: Scalar | None = None) -> Problem:
        """Widen what the problem is made of; ``epsilon`` is a scalar, or one number each problem."""
        a, b = a.double(), b.double()
        if reach is None:
            b = b * (a.sum(-1, keepdim=True) / b.sum(-1, keepdim=True))  # sums in double precision too
        wide = [
            None if x is None else torch.as_tensor(x, dtype=torch.float64, device=cost.device)[..., None, None]
            for x in (epsilon, reach)
        ]
        scale, far = (None if x is None else x.expand(*cost.shape[:-2], 1, 1) for x in wide)
        assert scale is not None
        return Problem(cost.double(), a, b, log_masses(a), log_masses(b), scale, far)

    @property
    def step(self) -> Tensor:
        """``[*batch, 1, 1]`` epsilon, or ``epsilon reach / (epsilon + reach)``: of the softmin that is a sweep."""
        return self.epsilon if self.reach is None else self.epsilon / (1 + self.epsilon / self.reach)

    def row_logits(self, g: Tensor) -> Tensor:
        """Return what a softmax along a row makes the plan of, as parts of the row's mass."""
        return self._kernel(g.unsqueeze(-2)) + self.log_b.unsqueeze(-2)

    def column_logits(self, f: Tensor) -> Tensor:
        """Return what a softmax along a column makes the plan of, as parts of the column's mass."""
        return self._kernel(f.unsqueeze(-1)) + self.log_a.unsqueeze(-1)

    def rows(self, g: Tensor) -> Tensor:
        """Return the f that makes row sums right."""
        return -self.step.squeeze(-1) * torch.logsumexp(self.row_logits(g), -1)

    def columns(self, f: Tensor) -> Tensor:
        """Return the g that makes column sums right."""
        return -self.step.squeeze(-1) * torch.logsumexp(self.column_logits(f), -2)

    def kept(self, masses: Tensor, potential: Tensor) -> Tensor:
        """Return the right sums: the masses, or what of them is worth its price."""
        return masses if self.reach is None else masses * torch.exp(-potential / self.reach.squeeze(-1))

    def dual(self, f: Tensor, g: Tensor) -> Tensor:
        """Return the value ``[*batch]`` of potentials of which f is the best one for g."""
        if self.reach is None:
            return (f * self.a).sum(-1) + (g * self.b).sum(-1)
        reach, epsilon = self.reach.squeeze((-2, -1)), self.epsilon.squeeze((-2, -1))
        lost = [(x * torch.expm1(-p / reach.unsqueeze(-1))).sum(-1) for x, p in ((self.a, f), (self.b, g))]
        shipped = lost[0] + self.a.sum(-1)  # the row sums are right
        return -reach * (lost[0] + lost[1]) - epsilon * (shipped - self.a.sum(-1) * self.b.sum(-1))

    def _kernel(self, potential: Tensor) -> Tensor:
        allowed = self.cost < torch.inf
        # A forbidden pair: its cost has no part in any derivative.
        return torch.where(allowed, (potential - torch.where(allowed, self.cost, 0)) / self.epsilon, -torch.inf)


def solve_entropic(
    problem: Problem,
    *,
    gradient: str,
    max_iterations: int,
    tolerance: float,
    start: Tensor | None = None,
    symmetric: bool = False,
) -> Transport:
    """Solve, with the derivatives that :func:`~pullback.transport.sinkhorn` describes."""
    if gradient == "unrolled":
        g, sweeps = _unrolled(problem, start, max_iterations, tolerance)
    else:
        begin = torch.zeros_like(problem.b) if start is None else start.double().expand_as(problem.b)
        tensors = [t.detach() for t in (problem.cost, problem.a, problem.b, problem.epsilon, _far(problem), begin)]
        g, sweeps = sweep(*tensors, start is None, symmetric, max_iterations, tolerance)
        if gradient == "implicit":
            g = _polish(problem, g)
    return (_envelope if gradient == "envelope" else _result)(problem, g, sweeps, tolerance)


def _unrolled(problem: Problem, start: Tensor | None, count: int, tolerance: float) -> tuple[Tensor, Tensor]:
    g = torch.zeros_like(problem.b) if start is None else start.double().expand_as(problem.b)
    f = torch.zeros_like(problem.a)
    sweeps = torch.zeros(g.shape[:-1], dtype=torch.int64, device=g.device)
    done = torch.zeros_like(sweeps, dtype=torch.bool)
    for k in range(count):
        before, f = f, problem.rows(g)
        if k:
            done = done | (_row_error(problem, before.detach(), f.detach()) <= tolerance)
            if can_look(done) and bool(done.all()):
                break
        g = torch.where(done.unsqueeze(-1), g, problem.columns(f))
        sweeps = torch.where(done, sweeps, k + 1)
    return g, sweeps


def _row_error(problem: Problem, before: Tensor, f: Tensor) -> Tensor:
    """With ``before`` for f, the row sums are ``exp((before - f) / step)`` times the right ones."""
    change = ((before - f) / problem.step.detach().squeeze(-1)).expm1().abs()
    return (problem.kept(problem.a, before).detach() * change).sum(-1) / problem.a.detach().sum(-1)


def _polish(problem: Problem, g: Tensor) -> Tensor:
    """Two Newton steps on g; where they lead away (far from the solution), two sweeps."""
    error, swept, newton = [], g, g
    damping = (problem.step / problem.epsilon).square()
    for _ in range(2):
        f = problem.rows(newton)
        gap = newton - problem.columns(f)
        error.append(gap.detach().abs().amax(-1))
        # d wanted / d g, and what holds the constant that g is free by where masses are held. The small number is for
        # plans that fall apart into blocks, each with a constant of its own.
        slope = torch.softmax(problem.column_logits(f), -2).mT @ torch.softmax(problem.row_logits(newton), -1)
        identity = torch.eye(slope.shape[-1], dtype=slope.dtype, device=slope.device)
        held = (problem.b / problem.b.sum(-1, keepdim=True)).unsqueeze(-2) if problem.reach is None else 0
        newton = newton - solve((1 + 1e-10) * identity - damping * slope + held, gap.unsqueeze(-1)).squeeze(-1)
        swept = problem.columns(problem.rows(swept))
    last = (newton - problem.columns(problem.rows(newton.detach()))).detach().abs().amax(-1)
    better = (last <= error[0]) | (last <= 1e-9 * problem.epsilon.detach().squeeze((-2, -1)))
    return torch.where(better.unsqueeze(-1), newton, swept)


def _result(problem: Problem, g: Tensor, sweeps: Tensor, tolerance: float) -> Transport:
    f = problem.rows(g)
    value = problem.dual(f, g)
    plan = problem.kept(problem.a, f).unsqueeze(-1) * torch.softmax(problem.row_logits(g), -1)
    residual = _residual(problem, plan, g).detach()
    return Transport(plan, *_centred(problem, f, g), value, residual, sweeps, residual <= tolerance)


def _envelope(problem: Problem, g: Tensor, sweeps: Tensor, tolerance: float) -> Transport:
    """The value with its partial derivatives at constant potentials: it is stationary in them."""
    tensors = [t.detach() for t in (problem.cost, problem.a, problem.b, problem.epsilon, _far(problem), g)]
    plan, f, g, value, residual, *slopes = evaluate(*tensors)
    linear = (plan * torch.where(plan > 0, problem.cost, 0)).sum((-2, -1))
    scalars = [x.squeeze(-1) for x in (problem.epsilon, problem.reach) if x is not None]
    for slope, x in zip(slopes, (problem.a, problem.b, *scalars), strict=False):
        linear = linear + (slope * x).sum(-1)
    return Transport(plan, f, g, replace_gradient(value, linear), residual, sweeps, residual <= tolerance)


def _far(problem: Problem) -> Tensor:
    return torch.full_like(problem.epsilon, torch.inf) if problem.reach is None else problem.reach


@torch.library.custom_op(
    "pullback::entropic_value",
    mutates_args=(),
    schema="(Tensor cost, Tensor a, Tensor b, Tensor epsilon, Tensor reach, Tensor g) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def evaluate(
    cost: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, reach: Tensor, g: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return plan, f, g, value and residual of a potential, and the slopes of the value.

    These are along a, b, epsilon ``[*batch, 1]`` and reach ``[*batch, 1]``; that along the costs is the plan. A reach
    of inf holds the masses.
    """
    with torch.no_grad():
        held = bool(reach.isinf().all())
        problem = Problem(cost, a, b, log_masses(a), log_masses(b), epsilon, None if held else reach)
        found = _planned(cost, a, b, epsilon, g) if held and cost.device.type == "cpu" else None
        if found is not None:
            plan, f, spent = found
            return plan, *partials(problem, f, g.clone(), a, plan.sum(-2), spent)
        logits = (g.unsqueeze(-2) - cost) / epsilon + problem.log_b.unsqueeze(-2)
        f = -problem.step.squeeze(-1) * torch.logsumexp(logits, -1)
        plan = problem.kept(a, f).unsqueeze(-1) * torch.softmax(logits, -1)
        spent = (plan * torch.where(plan > 0, cost, 0)).sum((-2, -1))
        return plan, *partials(problem, f, g.clone(), plan.sum(-1), plan.sum(-2), spent)


def _planned(cost: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Plan, potential of the rows and cost of the plan by compiled loops, where there are some."""
    n, m = cost.shape[-2:]
    if 0 in cost.shape:
        return None
    sizes = ((-1, n, m), (-1, n), (-1, m), (-1,), (-1, m))
    given = zip((cost, a, b, epsilon, g), sizes, strict=True)
    found = plan_loops(*(x.reshape(size).contiguous().numpy() for x, size in given))
    if found is None:
        return None
    plan, f, spent = (torch.from_numpy(x) for x in found)
    return plan.reshape(cost.shape), f.reshape(a.shape), spent.reshape(a.shape[:-1])


def partials(
    problem: Problem, f: Tensor, g: Tensor, rows: Tensor, columns: Tensor, spent: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return f, g, value, residual and the slopes of the value along a, b, epsilon and reach.

    Args:
        problem: whose costs are not looked at.
        f, g: potentials, f the best one for g.
        rows, columns: sums of the plan.
        spent: ``[*batch]`` its cost.
    """
    a, b, e = problem.a, problem.b, problem.epsilon.squeeze(-1)
    residual = (columns - problem.kept(b, g)).abs().sum(-1) / b.sum(-1)
    f, g = _centred(problem, f, g)
    along = ((rows * f).sum(-1) + (columns * g).sum(-1) - spent).unsqueeze(-1) / e  # the sum of P log(P / ab)
    value = problem.dual(f, g)
    if problem.reach is None:  # b has the sum of a, and twice both masses is four times the mass of a b^T
        return f, g, value, residual, f.clone(), g - e, along, torch.zeros_like(e)
    mass, far = (a.sum(-1, keepdim=True), b.sum(-1, keepdim=True)), problem.reach.squeeze(-1)
    along = along - rows.sum(-1, keepdim=True) + mass[0] * mass[1]
    x, y = -f / far, -g / far
    prices = [(w * (p * torch.exp(p) - torch.expm1(p))).sum(-1, True) for w, p in ((a, x), (b, y))]
    first, second = (-far * torch.expm1(p) - e * (torch.exp(p) - other) for p, other in ((x, mass[1]), (y, mass[0])))
    return f, g, value, residual, first, second, along, prices[0] + prices[1]


@evaluate.register_fake
def _(
    cost: Tensor, a: Tensor, b: Tensor, epsilon: Tensor, reach: Tensor, g: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    one, scalar = a.new_empty(a.shape[:-1]), a.new_empty((*a.shape[:-1], 1))
    like = torch.empty_like
    return like(cost), like(a), like(b), one, like(one), like(a), like(b), scalar, like(scalar)


@evaluate.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> Any:
    moved = [
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(tensors, in_dims, strict=True)
    ]
    return evaluate(*moved), (0,) * 9


def _residual(problem: Problem, plan: Tensor, g: Tensor) -> Tensor:
    return (plan.sum(-2) - problem.kept(problem.b, g)).abs().sum(-1) / problem.b.sum(-1)


def _centred(problem: Problem, f: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the same mean over the masses, where only their sum is determined."""
    if problem.reach is not None:
        return f, g
    difference = (f * problem.a).sum(-1) - (g * problem.b).sum(-1)
    shift = (difference / (2 * problem.b.sum(-1))).unsqueeze(-1)
    return f - shift, g + shift
