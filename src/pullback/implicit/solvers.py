"""Solvers with implicit gradients built in: roots, fixed points, minima.

Each runs without a graph and returns a :class:`~pullback.implicit.Solution` whose ``value`` has the derivatives of the
exact solution in ``theta`` (reverse, forward, every order, ``vmap``); the memory does not grow with the iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch.func import vjp
from torch.utils import _pytree as pytree

from pullback.core.checks import check_choice, check_positive
from pullback.core.errors import ConvergenceError
from pullback.core.rows import Rows
from pullback.core.shapes import Tensor
from pullback.implicit import descent, optimality
from pullback.implicit.linear_solve import (
    LinearOptions,
    Operator,
    Solution,
    default_tolerance,
    describe,
)
from pullback.implicit.roots import custom_fixed_point, custom_root

__all__ = ["find_root", "fixed_point", "minimize"]

FixedPointMethod = Literal["picard", "anderson", "newton"]
MinimizeMethod = Literal["lbfgs", "newton", "gradient", "proximal_gradient", "fire"]
Function = Callable[..., Any]


def find_root(
    function: Function,
    init: Any,
    *theta: Any,
    tolerance: float | None = None,
    max_iterations: int = 100,
    solve: str = "auto",
    ridge: float = 0.0,
    batch_ndim: int = 0,
    check: bool = False,
) -> Solution:
    r"""Solve ``function(x, *theta) = 0`` by Newton's method with backtracking.

    Args:
        function: ``F(x, *theta)``, with the structure and the shapes of ``x``; differentiable.
        init: where to start, floating tensors of any nesting.
        theta: what the solution is differentiated in, tensors of any nesting.
        tolerance: converged when ``|F|_2 <= tolerance``; default 1e-10 in float64, 1e-5 in float32.
        max_iterations: of Newton's method.
        solve: linear solver of the Newton steps and of the derivative, see :func:`~pullback.implicit.linear_solve`.
        ridge: >= 0, added to the diagonal of the Jacobian in both.
        batch_ndim: number of leading dimensions of ``x`` that are independent problems: their linear systems are small.
        check: raise when a problem did not converge.

    Returns:
        ``Solution``: ``value`` like ``init``, ``residual`` ``|F|_2``, ``iterations`` and ``converged``, ``[*batch]``
        each.

    Raises:
        TypeError: ``init`` holds something else than floating tensors.
        ValueError: ``function`` returns another shape than ``x``; a bad option.
        ConvergenceError: ``check`` is set and a problem did not converge; carries the ``Solution``.

    Example:
        >>> a = torch.tensor([4.0, 9.0], requires_grad=True)
        >>> root = find_root(lambda x, a: x**2 - a, torch.ones(2), a)
        >>> root.value, torch.autograd.grad(root.value.sum(), a)[0]
        (tensor([2., 3.], grad_fn=<_RootBackward>), tensor([0.2500, 0.1667]))

    References:
        Dennis, Schnabel (1983), Numerical methods for unconstrained optimization and nonlinear equations, chapter 6.
    """
    limits = _Limits(tolerance, max_iterations, check, LinearOptions(solve, None, None, None, ridge, 1))

    @custom_root(function, solve=solve, ridge=ridge, batch_ndim=batch_ndim)
    def solver(init: Any, *theta: Any) -> Solution:
        rows = Rows.of(init, batch_ndim, "init")
        return limits.run("find_root", rows, init, lambda x, t: _newton(function, rows, x, theta, t, limits))

    result: Solution = solver(init, *theta)
    return result


def fixed_point(
    map: Function,
    init: Any,
    *theta: Any,
    method: str = "anderson",
    tolerance: float | None = None,
    max_iterations: int = 1000,
    damping: float = 1.0,
    memory: int = 5,
    solve: str = "auto",
    ridge: float = 0.0,
    batch_ndim: int = 0,
    check: bool = False,
) -> Solution:
    r"""Solve ``map(x, *theta) = x``.

    Args:
        map: ``T(x, *theta)``, with the structure and the shapes of ``x``; differentiable.
        init: where to start.
        theta: what the solution is differentiated in.
        method: ``"picard"`` iterates the map; ``"anderson"`` combines the last ``memory`` steps; ``"newton"`` solves
            ``T(x) - x = 0``.
        tolerance: converged when ``|T(x) - x|_2 <= tolerance``; default 1e-10 in float64, 1e-5 in float32.
        max_iterations: of the method.
        damping: in (0, 1], the part of the step that ``"picard"`` and ``"anderson"`` take.
        memory: number of steps that ``"anderson"`` combines.
        solve: linear solver of the derivative (and of ``"newton"``).
        ridge: >= 0, added to its diagonal.
        batch_ndim: number of leading dimensions of ``x`` that are independent problems.
        check: raise when a problem did not converge.

    Returns:
        ``Solution``, as in :func:`find_root`; the residual is ``|T(x) - x|_2``.

    Raises:
        TypeError: ``init`` holds something else than floating tensors.
        ValueError: ``map`` returns another shape than ``x``; a bad option.
        ConvergenceError: ``check`` is set and a problem did not converge; carries the ``Solution``.

    Example:
        >>> a = torch.tensor(0.5, requires_grad=True)
        >>> solution = fixed_point(lambda x, a: torch.cos(a * x), torch.tensor(1.0), a, method="picard")
        >>> round(solution.value.item(), 4), bool(solution.converged)
        (0.9004, True)

    References:
        Anderson (1965); Walker, Ni (2011); Bai, Kolter, Koltun (2019), Deep equilibrium models.
    """
    check_choice("method", method, get_args(FixedPointMethod))
    check_positive("damping", damping)
    check_positive("memory", memory)
    limits = _Limits(tolerance, max_iterations, check, LinearOptions(solve, None, None, None, ridge, 1))

    @custom_fixed_point(map, solve=solve, ridge=ridge, batch_ndim=batch_ndim)
    def solver(init: Any, *theta: Any) -> Solution:
        rows = Rows.of(init, batch_ndim, "init")

        def step(x: Tensor) -> Tensor:
            return _packed(map, rows, x, theta, "map")

        def iterate(x: Tensor, t: float) -> descent.Found:
            if method == "picard":
                return descent.picard(step, x, t, max_iterations, damping)
            if method == "anderson":
                return descent.anderson(step, x, t, max_iterations, damping, memory)

            def gap(x: Any, *theta: Any) -> Any:
                value = map(x, *theta)
                rows.check(value, "map")
                return pytree.tree_map(lambda a, b: a - b, x, value)

            return _newton(gap, rows, x, theta, t, limits)

        return limits.run("fixed_point", rows, init, iterate)

    result: Solution = solver(init, *theta)
    return result


def minimize(
    objective: Function,
    init: Any,
    *theta: Any,
    method: str | None = None,
    prox: Function | None = None,
    tolerance: float | None = None,
    max_iterations: int = 1000,
    step: float = 0.1,
    solve: str = "auto",
    ridge: float = 0.0,
    batch_ndim: int = 0,
    check: bool = False,
) -> Solution:
    r"""Minimise ``objective(x, *theta)``, or ``objective + g`` with the proximal operator of ``g``.

    Derivatives come from ``grad f = 0``, or with ``prox`` from the fixed point ``x = prox(x - step grad f, step)``.

    Args:
        objective: ``f(x, *theta)``, a scalar (``[*batch]`` with ``batch_ndim``), differentiable twice.
        init: where to start.
        theta: what the solution is differentiated in.
        method: ``"lbfgs"`` (default), ``"newton"`` (few unknowns, fast near the minimum), ``"gradient"`` (accelerated,
            step found by backtracking), ``"fire"`` (inertial relaxation of molecular dynamics: for rough potentials),
            and with ``prox`` ``"proximal_gradient"`` (accelerated).
        prox: ``prox(y, step, *theta)`` of ``step * g``, such as ``lambda y, step, lam: prox_lasso(y, step * lam)``, or
            a projection.
        tolerance: converged when the gradient's 2-norm (with ``prox`` the norm of ``(x - prox(x - step grad f)) /
            step``) is at most this; default 1e-8 in float64, 1e-4 in float32.
        max_iterations: of the method.
        step: first time step of ``"fire"``.
        solve: linear solver of the derivative (and of ``"newton"``).
        ridge: >= 0, added to its diagonal, for a flat minimum.
        batch_ndim: number of leading dimensions of ``x`` that are independent problems.
        check: raise when a problem did not converge.

    Returns:
        ``Solution``: ``value`` like ``init``, ``residual``, ``iterations``, ``converged``, ``[*batch]`` each.

    Raises:
        TypeError: ``init`` holds something else than floating tensors.
        ValueError: ``objective`` returns another shape, ``prox`` with another method (or the reverse); a bad option.
        ConvergenceError: ``check`` is set and a problem did not converge; carries the ``Solution``.

    Example:
        >>> a = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        >>> objective = lambda x, a: ((x - a) ** 2).sum() + (x**2).sum()
        >>> solution = minimize(objective, torch.zeros(2, dtype=torch.float64), a)
        >>> torch.autograd.grad(solution.value.sum(), a)[0]
        tensor([0.5000, 0.5000], dtype=torch.float64)

    References:
        Nocedal, Wright (2006); Beck, Teboulle (2009); Bitzek et al. (2006); Blondel et al. (2022) for the derivatives.
    """
    chosen = method or ("lbfgs" if prox is None else "proximal_gradient")
    check_choice("method", chosen, get_args(MinimizeMethod))
    if (prox is not None) != (chosen == "proximal_gradient"):
        raise ValueError(
            f"method {chosen!r} and prox do not go together: 'proximal_gradient' takes prox, the others do not"
        )
    check_positive("step", step)
    limits = _Limits(tolerance, max_iterations, check, LinearOptions(solve, None, None, None, ridge, 1))
    if prox is None:
        decorate = custom_root(optimality.stationary(objective), solve=solve, ridge=ridge, batch_ndim=batch_ndim)
    else:
        fixed = optimality.proximal_gradient(objective, prox)
        decorate = custom_fixed_point(fixed, solve=solve, ridge=ridge, batch_ndim=batch_ndim)

    @decorate
    def solver(init: Any, *theta: Any) -> Solution:
        rows = Rows.of(init, batch_ndim, "init")
        evaluate = _objective(objective, rows, theta)

        def iterate(x: Tensor, t: float) -> descent.Found:
            if chosen == "lbfgs":
                return descent.lbfgs(evaluate, x, t, max_iterations)
            if chosen == "fire":
                return descent.fire(evaluate, x, t, max_iterations, step)
            if chosen == "newton":
                hessian = _jacobian(lambda x: evaluate(x)[1], symmetric=True)
                return descent.newton_minimum(evaluate, hessian, x, t, max_iterations, limits.linear)

            def near(y: Tensor, length: float) -> Tensor:
                return y if prox is None else rows.pack(prox(rows.unpack(y), length, *theta))

            return descent.proximal(evaluate, near, x, t, max_iterations)

        return limits.run("minimize", rows, init, iterate, default=100.0)

    result: Solution = solver(init, *theta)
    return result


class _Limits:
    """When a solver stops, and what it then says."""

    def __init__(self, tolerance: float | None, max_iterations: int, check: bool, linear: LinearOptions) -> None:
        if tolerance is not None:
            check_positive("tolerance", tolerance)
        check_positive("max_iterations", max_iterations)
        self.tolerance, self.max_iterations, self.check, self.linear = tolerance, max_iterations, check, linear

    def run(
        self,
        name: str,
        rows: Rows,
        init: Any,
        iterate: Callable[[Tensor, float], descent.Found],
        default: float = 1.0,
    ) -> Solution:
        """Iterate from ``init`` and return the result, or raise if it is asked to and did not converge."""
        start = rows.pack(init).detach()
        tolerance = self.tolerance if self.tolerance is not None else default * default_tolerance(start.dtype)
        with torch.no_grad():
            found = iterate(start, tolerance)
        residual, iterations = rows.per_row(found.residual), rows.per_row(found.iterations)
        solution = Solution(rows.unpack(found.x), residual, iterations, residual <= tolerance)
        if self.check and not bool(solution.converged.all()):
            raise ConvergenceError(f"{describe(name, solution)} (tolerance {tolerance:.3g})", solution)
        return solution


def _newton(
    function: Function, rows: Rows, x: Tensor, theta: tuple[Any, ...], tolerance: float, limits: _Limits
) -> descent.Found:
    def flat(x: Tensor) -> Tensor:
        return _packed(function, rows, x, theta, "function")

    return descent.newton_root(flat, _jacobian(flat), x, tolerance, limits.max_iterations, limits.linear)


def _packed(function: Function, rows: Rows, x: Tensor, theta: tuple[Any, ...], name: str) -> Tensor:
    value = function(rows.unpack(x), *theta)
    rows.check(value, name)
    return rows.pack(value)


def _jacobian(function: Callable[[Tensor], Tensor], symmetric: bool = False) -> Operator:
    def adjoint_at(x: Tensor) -> Callable[[Tensor], Tensor]:
        pull = vjp(function, x)[1]
        return lambda w: pull(w)[0]

    def at(x: Tensor) -> Callable[[Tensor], Tensor]:
        if symmetric:
            return adjoint_at(x)
        push = vjp(adjoint_at(x), torch.zeros_like(x))[1]
        return lambda v: push(v)[0]

    return Operator(at, adjoint_at, symmetric)


def _objective(objective: Function, rows: Rows, theta: tuple[Any, ...]) -> descent.Objective:
    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        value = objective(rows.unpack(x), *theta)
        if not isinstance(value, Tensor) or tuple(value.shape) != rows.batch:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"objective must return one value a problem, shape {rows.batch}, got {got}")
        return value.sum(), value.reshape(rows.count)

    gradient = torch.func.grad_and_value(total, has_aux=True)

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        slope, (_, value) = gradient(x)
        return value.detach(), slope

    return evaluate
