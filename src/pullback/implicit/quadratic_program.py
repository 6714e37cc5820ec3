"""Convex quadratic programs as a layer: batched, exact on the active constraints, differentiable to every order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from pullback.core.checks import check_broadcast, check_floating, check_integer, check_same_dtype
from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.core.transforms import can_look
from pullback.implicit.arguments import check_number
from pullback.implicit.interior_point import Interior, InteriorPoint
from pullback.implicit.iteration import iterate
from pullback.implicit.saddle import factor_saddle, solve_saddle, stacked
from pullback.implicit.solution import Reason, raise_unless_converged
from pullback.kernels.interior_point import InteriorSolution, interior_point

__all__ = ["QuadraticSolution", "quadratic_program"]

Constraints = tuple[Tensor, Tensor]


class QuadraticSolution(NamedTuple):
    """The answer to a quadratic program, one a problem of the batch.

    Attributes:
        value: ``[*batch, n]`` the solution.
        equality: ``[*batch, p]`` multipliers of the equalities.
        inequality: ``[*batch, m]`` >= 0, multipliers of the inequalities, 0 where one is not active.
        residual: ``[*batch]`` the largest violation of an optimality condition, relative to its terms.
        iterations: ``[*batch]`` steps of the interior point method.
        reason: ``[*batch]`` why it stopped: the numbers of :class:`Reason`. A program without a feasible point, or
            unbounded below, does not converge.
    """

    value: Float[Tensor, "*batch n"]
    equality: Float[Tensor, "*batch p"]
    inequality: Float[Tensor, "*batch m"]
    residual: Float[Tensor, "*batch"]
    iterations: Int[Tensor, "*batch"]
    reason: Int[Tensor, "*batch"]

    @property
    def converged(self) -> Bool[Tensor, "*batch"]:
        """``[*batch]`` whether the conditions hold within the tolerance."""
        return self.reason == Reason.CONVERGED


def quadratic_program(
    quadratic: Float[Tensor, "*#batch n n"],
    linear: Float[Tensor, "*#batch n"],
    equality: Constraints | None = None,
    inequality: Constraints | None = None,
    *,
    tolerance: float | None = None,
    max_iterations: int = 50,
    check: bool = False,
) -> QuadraticSolution:
    r"""Minimise :math:`\tfrac12 x^T Q x + c^T x` subject to :math:`A x = b` and :math:`G x \le h`.

    An interior point method finds which inequalities are active, without a graph; the solution is then that of a
    linear system, which carries the derivatives:

    .. math:: Q x + c + A^T \nu + G_a^T \lambda_a = 0, \quad A x = b, \quad G_a x = h_a .

    Linear programs (``Q = 0``) are allowed. Where a constraint is active with multiplier 0 the solution has a kink, and
    the derivative is that of one side. Redundant active constraints share their multiplier; directions that nothing
    decides have derivative 0.

    Args:
        quadratic: ``[*batch, n, n]`` ``Q``, positive semidefinite; its symmetric part is used.
        linear: ``[*batch, n]`` ``c``.
        equality: ``A`` ``[*batch, p, n]`` and ``b`` ``[*batch, p]``.
        inequality: ``G`` ``[*batch, m, n]`` and ``h`` ``[*batch, m]``; an infinite bound is no constraint.
        tolerance: of the relative residual; default 1e-8. The method works in float64 whatever the tensors are in.
        max_iterations: of the interior point method, most need 8 to 20.
        check: raise when a problem did not converge (not under ``torch.func`` transforms).

    Returns:
        :class:`QuadraticSolution`: value and multipliers have derivatives of every order in all tensors.

    Raises:
        TypeError: an argument is no floating tensor, or their dtypes differ.
        ValueError: shapes do not fit, a number is NaN or infinite (but an upper bound), or ``quadratic`` is not
            positive semidefinite.
        ConvergenceError: ``check`` is set and a problem did not converge (infeasible, unbounded); carries the result.

    Example:
        >>> height = torch.tensor([0.5, 2.0], requires_grad=True)  # the point of a box nearest to (1, 1)
        >>> found = quadratic_program(torch.eye(2), -torch.ones(2), inequality=(torch.eye(2), height))
        >>> found.value.tolist(), torch.autograd.grad(found.value.sum(), height)[0].tolist()
        ([0.5, 1.0], [1.0, 0.0])

    References:
        Amos, Kolter (2017), OptNet: differentiable optimization as a layer in neural networks, equation 6.
    """
    if tolerance is not None:
        check_number("tolerance", tolerance)
    check_integer("max_iterations", max_iterations, 1)
    q, c, rows, target, fixed = _together(quadratic, linear, equality, inequality)
    goal = 1e-8 if tolerance is None else tolerance
    curved, slope, length = _sizes(*(v.detach() for v in (q, c, rows)))
    rows, target = rows / length[..., None], target / length
    found = _search(fixed, goal, max_iterations, *(v.detach() for v in (q, c, rows, target)))
    inside, multiplier, active, factor, iterations, reason, unit = found
    price = _price(curved, slope, unit)
    q, c, target = q * (unit / price)[..., None, None], c / price[..., None], target / unit[..., None]
    x, y = solve_saddle(q, rows, active, -c, target, factor)
    # Where the search failed its last point is nearer than what follows from a wrong guess of active constraints.
    given = [v.detach() for v in (q, c, rows, target)]
    exact, near = (_violation(fixed, given, *point) for point in ((x.detach(), y.detach()), (inside, multiplier)))
    better = (exact <= near)[..., None]
    x = torch.where(better, x, inside + (x - x.detach()))
    y = torch.where(better, y, multiplier + (y - y.detach()))
    residual = torch.minimum(exact, near)
    missed = torch.where(reason == _CONVERGED, int(Reason.STALLED), reason)
    reason = torch.where(residual <= goal, _CONVERGED, missed)

    y = y * price[..., None] / length
    value, residual = (x * unit[..., None]).to(linear.dtype), residual.to(linear.dtype)
    y = y.to(linear.dtype)
    result = QuadraticSolution(value, y[..., :fixed], y[..., fixed:].clamp(min=0), residual, iterations, reason)
    if check and can_look(residual):
        raise_unless_converged("quadratic_program", result, f" (tolerance {goal:.3g}): infeasible or unbounded?")
    return result


def _search(fixed: int, tolerance: float, limit: int, *program: Tensor) -> Any:
    return _Search.apply(fixed, tolerance, limit, *program)


_search._torchdynamo_disable = True  # type: ignore[attr-defined] # a loop of unknown length


class _Search(torch.autograd.Function):
    """Which constraints are active: the interior point method on scaled problems. Nothing of it has derivatives."""

    @staticmethod
    def forward(
        fixed: int, tolerance: float, limit: int, q: Tensor, c: Tensor, rows: Tensor, target: Tensor
    ) -> tuple[Tensor, ...]:
        batch = c.shape[:-1]
        count = batch.numel()
        q, c, rows, target = (v.reshape((count, *v.shape[len(batch) :])) for v in (q, c, rows, target))
        curved, slope, _ = _sizes(q, c, rows)
        unit, least = _units(curved, slope, target)
        search = partial(_search_at, fixed, tolerance / 10, limit)  # the residual that is asked for is another one
        found = search(*_scaled(unit, q, c, rows, target))
        # Where numbers of several sizes meet, such as a far bound and near ones, the first unit may be far too large,
        # and what is small in it is not small for the solution.
        for _ in range(_RESCALINGS if target.shape[1] > fixed else 0):
            size = torch.maximum(found.x.abs().amax(-1) * unit, least)
            again = (size < _SMALL * unit).nonzero()[:, 0]
            if not len(again):
                break
            closer = size[again]
            new = search(*_scaled(closer, *(v[again] for v in (q, c, rows, target))))
            better = new.reason == _CONVERGED
            if not bool(better.any()):
                break
            again = again[better]
            unit = unit.index_put((again,), closer[better])
            found = _Found(*(old.index_put((again,), v[better]) for old, v in zip(found, new, strict=True)))
        q, *_ = _scaled(unit, q, c, rows, target)
        outputs = (*found[:3], factor_saddle(q, rows, found.active), *found[3:], unit)
        return tuple(v.reshape((*batch, *v.shape[1:])) for v in outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[None, ...]:
        return (None,) * 7

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[None, ...]:
        return (None,) * 7

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], fixed: int, tolerance: float, limit: int, *tensors: Tensor) -> Any:
        return _Search.apply(fixed, tolerance, limit, *stacked(info.batch_size, in_dims[3:], tensors)), (0,) * 7


def _together(
    quadratic: Tensor, linear: Tensor, equality: Constraints | None, inequality: Constraints | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Check the arguments; return ``Q``, ``c``, all constraints as rows and numbers, and how many are equalities."""
    check_floating("quadratic", quadratic)
    check_floating("linear", linear)
    n = linear.shape[-1] if linear.ndim else 0
    if n == 0 or quadratic.shape[-2:] != (n, n):
        got = f"got {tuple(quadratic.shape)} and {tuple(linear.shape)}"
        raise ValueError(f"quadratic must be [*, n, n] and linear [*, n] with n >= 1, {got}")
    given = {"quadratic": quadratic, "linear": linear}
    shapes = {"quadratic": tuple(quadratic.shape[:-2]), "linear": tuple(linear.shape[:-1])}
    for name, pair in (("equality", equality), ("inequality", inequality)):
        if pair is None:
            continue
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(v, Tensor) for v in pair):
            raise TypeError(f"{name} must be a pair (matrix, right side) of tensors, got {type(pair).__name__}")
        matrix, right = pair
        if matrix.ndim < 2 or matrix.shape[-1] != n or right.shape[-1:] != matrix.shape[-2:-1]:
            got = f"got {tuple(matrix.shape)} and {tuple(right.shape)}"
            raise ValueError(f"{name} must be a matrix [*, m, {n}] and a right side [*, m], {got}")
        given |= {f"{name} matrix": matrix, f"{name} right side": right}
        shapes |= {f"{name} matrix": tuple(matrix.shape[:-2]), f"{name} right side": tuple(right.shape[:-1])}
    check_same_dtype(**given)
    batch = check_broadcast(**shapes)
    for name, value in given.items():
        upper = name == "inequality right side"
        bad = ~(value > -torch.inf) if upper else ~value.isfinite()
        if can_look(bad) and bool(bad.any()):
            raise ValueError(f"{name} must be finite{' or inf' * upper}, got NaN or {'-' * upper}infinity")
    given = {name: value.double() for name, value in given.items()}
    q, c = (given["quadratic"] + given["quadratic"].mT) / 2, given["linear"]
    _check_semidefinite(q, torch.finfo(linear.dtype).eps)
    pairs = [name for name, pair in (("equality", equality), ("inequality", inequality)) if pair is not None]
    matrices = [given[f"{name} matrix"].expand(*batch, -1, n) for name in pairs]
    rights = [given[f"{name} right side"].expand(*batch, -1) for name in pairs]
    rows = torch.cat([*matrices, q.new_zeros(*batch, 0, n)], -2)
    target = torch.cat([*rights, q.new_zeros(*batch, 0)], -1)
    fixed = 0 if equality is None else equality[0].shape[-2]
    return q.expand(*batch, n, n), c.expand(*batch, n), rows, target, fixed


def _check_semidefinite(q: Tensor, rounding: float) -> None:
    """Raise where a symmetric ``q`` bends down by more than what rounding of its entries explains."""
    n, given = q.shape[-1], q.detach()
    size = given.abs().amax((-2, -1))[..., None, None]
    eye = torch.eye(n, dtype=q.dtype, device=q.device)
    down = torch.linalg.cholesky_ex(given + 4 * n * rounding * torch.where(size > 0, size, 1) * eye).info > 0
    if can_look(down) and bool(down.any()):
        raise ValueError("quadratic must be positive semidefinite: of another matrix no minimum can be promised")


class _Found(NamedTuple):
    x: Tensor
    multiplier: Tensor
    active: Tensor
    iterations: Tensor
    reason: Tensor


def _search_at(fixed: int, tolerance: float, limit: int, q: Tensor, c: Tensor, rows: Tensor, target: Tensor) -> _Found:
    """Return where the interior point method stops, of scaled problems ``[count, ...]``."""
    count, m = target.shape
    held = torch.ones(count, fixed, dtype=torch.bool, device=c.device)
    if m == fixed:
        iterations = torch.zeros(count, dtype=torch.int64, device=c.device)
        reason = torch.full_like(iterations, int(Reason.STALLED))  # unless the linear system says otherwise
        return _Found(torch.zeros_like(c), torch.zeros_like(target), held, iterations, reason)
    ties, bounds = (rows[:, :fixed], target[:, :fixed]), (rows[:, fixed:], target[:, fixed:].clamp(max=_NO_BOUND))
    found = interior_point(q, c, ties, bounds, tolerance, limit)
    if found is None:
        method = InteriorPoint(q, c, *ties, *bounds)
        x, _, iterations, reason, point = iterate(method, torch.zeros_like(c), tolerance, limit)
        found = InteriorSolution(x, *Interior(*point), iterations=iterations, reason=reason)
    x, nu, slack, multiplier, iterations, reason = found
    active = torch.cat([held, multiplier > slack], -1)
    return _Found(x, torch.cat([nu, multiplier], -1), active, iterations, reason)


def _sizes(q: Tensor, c: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the largest numbers ``[*batch]`` of ``Q`` and of ``c``, and the lengths ``[*batch, m]`` of rows."""
    length = torch.linalg.vector_norm(rows, dim=-1)
    return q.abs().amax((-2, -1)), c.abs().amax(-1), torch.where(length > 0, length, 1)


def _price(curved: Tensor, slope: Tensor, unit: Tensor) -> Tensor:
    """Return what the objective is divided by for each unit of ``x``."""
    return torch.where(curved > 0, curved * unit, torch.where(slope > 0, slope, 1))


def _units(curved: Tensor, slope: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest and the smallest length ``[*batch]`` in which ``x`` may be measured."""
    free = torch.where(curved > 0, slope / torch.where(curved > 0, curved, 1), 0)
    lengths = torch.cat([target.masked_fill(target.isinf(), 0).abs(), free[..., None]], -1)
    most = lengths.amax(-1)
    least = torch.where(lengths > 0, lengths, torch.inf).amin(-1)
    return torch.where(most > 0, most, 1), torch.where(most > 0, least, 1)


def _scaled(unit: Tensor, q: Tensor, c: Tensor, rows: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    curved, slope, _ = _sizes(q, c, rows)
    price = _price(curved, slope, unit)
    return q * (unit / price)[..., None, None], c / price[..., None], rows, target / unit[..., None]


def _violation(fixed: int, program: Sequence[Tensor], x: Tensor, y: Tensor) -> Float[Tensor, "*batch"]:
    """Return the largest violation of an optimality condition, of a scaled problem."""
    q, c, rows, target = program
    curved, pulled = (q @ x[..., None])[..., 0], (rows.mT @ y[..., None])[..., 0]
    size = 1 + torch.stack([c.abs(), curved.abs(), pulled.abs()]).amax((0, -1))
    gap = (rows @ x[..., None])[..., 0] - target
    free, price = gap[..., fixed:], y[..., fixed:]
    value = 1 + (x * c).sum(-1).abs()
    parts = [
        (curved + c + pulled).abs() / size[..., None],
        gap[..., :fixed].abs(),
        free.clamp(min=0),
        (-price).clamp(min=0) / size[..., None],
        torch.where(price == 0, 0, price * free).abs() / value[..., None],
    ]
    return torch.cat(parts, -1).amax(-1).nan_to_num(nan=torch.inf)


_CONVERGED = int(Reason.CONVERGED)
_NO_BOUND = 1e12  # of scaled problems: what the interior point method takes for infinity
_RESCALINGS = 3
_SMALL = 1e-2  # a solution so much smaller than the unit is sought again in a smaller one
