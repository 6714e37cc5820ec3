"""Nonlinear least squares: Gauss-Newton and Levenberg-Marquardt, batched, with implicit gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch.utils import _pytree as pytree

from pullback.core.checks import check_choice
from pullback.core.rows import Rows
from pullback.core.shapes import Float, Tensor
from pullback.implicit import optimality
from pullback.implicit.arguments import check_function, check_number
from pullback.implicit.iteration import Map, Method, State, backtrack, dot, norm
from pullback.implicit.linear_solve import dense
from pullback.implicit.roots import custom_root
from pullback.implicit.running import Function, Run, jacobian_of, value_alone, with_aux
from pullback.implicit.solution import Solution

__all__ = ["least_squares"]

LeastSquaresMethod = Literal["levenberg_marquardt", "gauss_newton"]


def least_squares(
    residual: Function,
    init: Any,
    *theta: Any,
    method: str = "levenberg_marquardt",
    damping: float = 1e-3,
    tolerance: float | None = None,
    max_iterations: int = 100,
    solve: str = "auto",
    ridge: float = 0.0,
    batch_ndim: int = 0,
    has_aux: bool = False,
    check: bool = False,
) -> Solution:
    r"""Minimise :math:`\tfrac12 |r(x, \theta)|^2`.

    .. math:: (J^T J + \lambda \operatorname{diag}(J^T J)) \, \delta = -J^T r, \quad J = \partial r / \partial x .

    Derivatives come from ``J^T r = 0``, with the second derivatives of ``r`` (they matter where ``r`` is not 0).

    Args:
        residual: ``r(x, *theta)``, a floating tensor or a nesting of them, ``[*batch, ...]`` each, differentiable
            twice.
        init: where to start, floating tensors of any nesting; up to some hundred unknowns a problem (``J`` is dense).
        theta: what the solution is differentiated in.
        method: ``"levenberg_marquardt"``, which raises the damping where a step does not help and lowers it where it
            does; ``"gauss_newton"``: no damping, shorter steps instead.
        damping: > 0, the first ``lambda``.
        tolerance: converged when ``|J^T r|_2 <= tolerance``; default 1e-8 in float64, 1e-4 in float32.
        max_iterations: of the method.
        solve: linear solver of the derivative, see :func:`~pullback.implicit.linear_solve`.
        ridge: >= 0, added to its diagonal: for directions that the residual does not decide.
        batch_ndim: number of leading dimensions of ``x`` that are independent problems.
        has_aux: whether ``residual`` returns a pair ``(value, aux)``; ``aux`` at the solution is in the result.
        check: raise when a problem did not converge.

    Returns:
        ``Solution``: ``value`` like ``init``; ``residual`` ``|J^T r|_2``, ``iterations``, ``reason`` and ``converged``,
        ``[*batch]`` each.

    Raises:
        TypeError: ``init`` holds something else than floating tensors, or ``residual`` returns another type.
        ValueError: ``residual`` returns no tensors with the leading dimensions of the batch; a bad option.
        ConvergenceError: ``check`` is set and a problem did not converge; carries the ``Solution``.

    Example:
        >>> x, y = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([1.0, 0.5, 0.25]).double()
        >>> model = lambda p, y: p[0] * torch.exp(-p[1] * x) - y
        >>> found = least_squares(model, torch.tensor([0.5, 0.1]).double(), y, check=True)
        >>> [round(v, 4) for v in found.value.tolist()]
        [1.0, 0.6931]

    References:
        Marquardt (1963); Nielsen (1999), Damping parameter in Marquardt's method; Pineda et al. (2022), Theseus.
    """
    check_function("residual", residual)
    pair, residual = residual, value_alone(residual, "residual", has_aux)
    check_choice("method", method, get_args(LeastSquaresMethod))
    check_number("damping", damping)
    run = Run("least_squares", tolerance, max_iterations, check, loosen=100.0)

    def half_square(x: Any, *theta: Any) -> Tensor:
        rows = Rows.of(x, batch_ndim, "init")
        value = _pack(residual(x, *theta), rows)
        return rows.per_row((value * value).sum(-1) / 2)

    @custom_root(optimality.stationary(half_square), solve=solve, ridge=ridge, batch_ndim=batch_ndim)
    def solver(init: Any, *theta: Any) -> Solution:
        rows = Rows.of(init, batch_ndim, "init")

        def on_rows(x: Tensor) -> Tensor:
            return _pack(residual(rows.unpack(x), *theta), rows)

        chosen: Method = LevenbergMarquardt(on_rows, damping) if method != "gauss_newton" else GaussNewton(on_rows)
        return run(chosen, rows, init)

    return with_aux(solver(init, *theta), pair, theta, "residual", has_aux)


def _pack(value: Any, rows: Rows) -> Float[Tensor, "count m"]:
    leaves = pytree.tree_leaves(value)
    parts = []
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or tuple(leaf.shape[: len(rows.batch)]) != rows.batch:
            got = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ValueError(f"residual must return tensors with the leading dimensions {rows.batch}, got {got}")
        if leaf.dtype != rows.dtype:
            raise TypeError(f"residual must return tensors of the type of init, {rows.dtype}, got {leaf.dtype}")
        parts.append(leaf.reshape(rows.count, -1))
    if not parts or sum(part.shape[1] for part in parts) == 0:
        raise ValueError("residual must return at least one number a problem")
    return torch.cat(parts, 1)


class _Linear(NamedTuple):
    """The residual ``[count, m]``, its Jacobian ``[count, m, n]``, damping and its growth ``[count]``."""

    residual: Tensor
    jacobian: Tensor
    damping: Tensor
    growth: Tensor


def _linearise(residual: Map, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the residual and its Jacobian, by rows or by columns, whichever are fewer."""
    value = residual(x)
    operator = jacobian_of(residual)
    if value.shape[1] <= 2 * x.shape[1]:
        return value, dense(operator.adjoint_at(x), value).mT
    return value, dense(_along(residual, x, value), x)


def _along(residual: Map, x: Tensor, value: Tensor) -> Map:
    """Return ``v -> J v`` as the transpose of the transposed product: double backward, which every residual has."""
    pull = torch.func.vjp(residual, x)[1]
    push = torch.func.vjp(lambda w: pull(w)[0], torch.zeros_like(value))[1]
    return lambda v: push(v)[0]


def _slope(value: Tensor, jacobian: Tensor) -> Tensor:
    return (value[:, None] @ jacobian)[:, 0]


@dataclass(frozen=True)
class LevenbergMarquardt:
    """Levenberg-Marquardt with Marquardt's scale and Nielsen's damping.

    References:
        Marquardt (1963), An algorithm for least-squares estimation of nonlinear parameters; Nielsen (1999).
    """

    residual: Map
    damping: float

    def init(self, x: Tensor) -> State:
        """Linearise at the start."""
        value, jacobian = _linearise(self.residual, x)
        one = x.new_ones(len(x))
        return State.moving(x, self._steepness(value, jacobian), _Linear(value, jacobian, self.damping * one, 2 * one))

    def step(self, state: State, active: Tensor) -> State:
        """Try one damped step; keep it where it brings enough of what the linear model promises."""
        value, jacobian, damping, growth = state.memory
        slope, gram = _slope(value, jacobian), jacobian.mT @ jacobian
        diagonal = gram.diagonal(dim1=-2, dim2=-1)
        scale = torch.maximum(diagonal, 1e-16 * diagonal.amax(-1, keepdim=True)).clamp(min=1e-30)
        step = -_solve_definite(gram, damping[:, None] * scale, slope)
        promised = (damping * dot(step, scale * step) - dot(step, slope)) / 2
        trial = state.x + step
        found = self.residual(trial)
        gained = (dot(value, value) - dot(found, found)) / 2
        gain = gained / promised.clamp(min=1e-300)
        rounding = 10 * torch.finfo(value.dtype).eps * dot(value, value)
        good = active & torch.isfinite(found).all(-1) & ((gain > 1e-4) | (gained.abs() <= rounding))
        x = torch.where(good[:, None], trial, state.x)
        lower = damping * (1 - (2 * gain.clamp(0, 1) - 1) ** 3).clamp(min=1 / 3)
        damping = torch.where(good, lower.clamp(min=1e-12), damping * growth)
        if bool(good.any()):
            value, jacobian = _linearise(self.residual, x)
        new = State.moving(
            x, self._steepness(value, jacobian), _Linear(value, jacobian, damping, torch.where(good, 2, 2 * growth))
        )
        return new._replace(stalled=damping > 1 / torch.finfo(value.dtype).eps)

    def _steepness(self, value: Tensor, jacobian: Tensor) -> Tensor:
        return norm(_slope(value, jacobian)) + 0 * norm(value)


@dataclass(frozen=True)
class GaussNewton:
    """Gauss-Newton with backtracking; the smallest step where the Jacobian does not decide it.

    References:
        Nocedal, Wright (2006), Numerical optimization, section 10.3.
    """

    residual: Map

    def init(self, x: Tensor) -> State:
        """Linearise at the start."""
        value, jacobian = _linearise(self.residual, x)
        return State.moving(x, norm(_slope(value, jacobian)), (value, jacobian))

    def step(self, state: State, active: Tensor) -> State:
        """Solve the linear problem and step, shorter until the sum of squares falls enough."""
        value, jacobian = state.memory
        slope = _slope(value, jacobian)
        direction = -_least_squares(jacobian, value)
        square, descent = dot(value, value), 2 * dot(direction, slope)

        def accept(length: Tensor, found: tuple[Tensor, ...]) -> Tensor:
            slack = 10 * torch.finfo(value.dtype).eps * square
            return dot(found[0], found[0]) <= square + 1e-4 * length * descent + slack

        evaluate: Callable[[Tensor], tuple[Tensor, ...]] = lambda x: (self.residual(x),)  # noqa: E731
        x, _, failed = backtrack(evaluate, accept, state.x, (value,), direction, active, halvings=30)
        new = self.init(x)
        return new._replace(stalled=failed)


def _least_squares(matrix: Tensor, right: Tensor) -> Tensor:
    """Return the smallest of the ``x`` with the least ``|matrix x - right|``; NaN where a number is not finite."""
    wide = torch.promote_types(right.dtype, torch.float32)  # torch factorises nothing narrower
    sound = (torch.isfinite(matrix).all((1, 2)) & torch.isfinite(right).all(1))[:, None]
    a, b = torch.where(sound[..., None], matrix, 0).to(wide), torch.where(sound, right, 0).to(wide)
    gram = a.mT @ a
    factor, failed = torch.linalg.cholesky_ex(gram)
    pivot, size = (m.diagonal(dim1=-2, dim2=-1) for m in (factor, gram))
    decided = (failed == 0) & (pivot**2 > 100 * a.shape[-1] * torch.finfo(wide).eps * size).all(-1)
    x = torch.cholesky_solve((b[:, None] @ a).mT, factor)[..., 0]
    if not bool(decided.all()):
        x = torch.where(decided[:, None], x, (torch.linalg.pinv(a) @ b[..., None])[..., 0])
    return torch.where(sound, x, torch.nan).to(right.dtype)


def _solve_definite(gram: Tensor, diagonal: Tensor, right: Tensor) -> Tensor:
    """Return ``(gram + diag(diagonal))^-1 right``; NaN where that matrix is not definite."""
    wide = torch.promote_types(right.dtype, torch.float32)  # torch factorises nothing narrower
    factor, failed = torch.linalg.cholesky_ex((gram + torch.diag_embed(diagonal)).to(wide))
    solution = torch.cholesky_solve(right[..., None].to(wide), factor)[..., 0]
    return torch.where((failed > 0)[:, None], torch.nan, solution).to(right.dtype)
