"""Solvers with implicit gradients built in: roots, fixed points, minima.

Each runs without a graph and returns a :class:`~pullback.implicit.Solution` whose ``value`` has the derivatives of the
exact solution in ``theta`` (reverse, forward, every order, ``vmap``); the memory does not grow with the iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch.func import vjp

from pullback.core.checks import check_choice, check_integer
from pullback.core.rows import Rows
from pullback.core.shapes import Tensor
from pullback.implicit import optimality
from pullback.implicit.arguments import check_function, check_number
from pullback.implicit.descent import FIRE, LBFGS, NewtonMinimum, Objective, ProximalGradient
from pullback.implicit.iteration import Map, Method, iterate
from pullback.implicit.linear_solve import LinearOptions, Operator, default_tolerance
from pullback.implicit.root_finding import Anderson, NewtonRoot, Picard
from pullback.implicit.roots import custom_fixed_point, custom_root
from pullback.implicit.solution import Solution, raise_unless_converged

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
        ``Solution``: ``value`` like ``init``; ``residual`` ``|F|_2``, ``iterations``, ``reason`` and ``converged``,
        ``[*batch]`` each.

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
    check_function("function", function)
    run = _Run("find_root", tolerance, max_iterations, check)
    linear = LinearOptions(method=solve, ridge=ridge, batch_ndim=1, argument="solve")

    @custom_root(function, solve=solve, ridge=ridge, batch_ndim=batch_ndim)
    def solver(init: Any, *theta: Any) -> Solution:
        rows = Rows.of(init, batch_ndim, "init")
        gap = _on_rows(function, rows, theta, "function")
        return run(NewtonRoot(gap, _jacobian(gap), linear), rows, init)

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
    check_function("map", map)
    check_choice("method", method, get_args(FixedPointMethod))
    check_number("damping", damping)
    if damping > 1:
        raise ValueError(f"damping must be in (0, 1], got {damping}")
    check_integer("memory", memory, 1)
    run = _Run("fixed_point", tolerance, max_iterations, check)
    linear = LinearOptions(method=solve, ridge=ridge, batch_ndim=1, argument="solve")

    @custom_fixed_point(map, solve=solve, ridge=ridge, batch_ndim=batch_ndim)
    def solver(init: Any, *theta: Any) -> Solution:
        rows = Rows.of(init, batch_ndim, "init")
        update = _on_rows(map, rows, theta, "map")

        def gap(x: Tensor) -> Tensor:
            return x - update(x)

        methods: dict[str, Method] = {
            "picard": Picard(update, damping),
            "anderson": Anderson(update, damping, memory),
            "newton": NewtonRoot(gap, _jacobian(gap), linear),
        }
        return run(methods[method], rows, init)

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
        ``Solution``: ``value`` like ``init``; ``residual``, ``iterations``, ``reason`` and ``converged``, ``[*batch]``
        each.

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
    check_function("objective", objective)
    chosen = method or ("lbfgs" if prox is None else "proximal_gradient")
    check_choice("method", chosen, get_args(MinimizeMethod))
    if (prox is not None) != (chosen == "proximal_gradient"):
        raise ValueError(
            f"method {chosen!r} and prox do not go together: 'proximal_gradient' takes prox, the others do not"
        )
    if prox is not None:
        check_function("prox", prox)
    check_number("step", step)
    run = _Run("minimize", tolerance, max_iterations, check, loosen=100.0)
    linear = LinearOptions(method=solve, ridge=ridge, batch_ndim=1, argument="solve")
    if prox is None:
        decorate = custom_root(optimality.stationary(objective), solve=solve, ridge=ridge, batch_ndim=batch_ndim)
    else:
        fixed = optimality.proximal_gradient(objective, prox)
        decorate = custom_fixed_point(fixed, solve=solve, ridge=ridge, batch_ndim=batch_ndim)

    @decorate
    def solver(init: Any, *theta: Any) -> Solution:
        rows = Rows.of(init, batch_ndim, "init")
        evaluate = _objective(objective, rows, theta)

        def near(y: Tensor, length: float) -> Tensor:
            return y if prox is None else rows.pack(prox(rows.unpack(y), length, *theta))

        methods: dict[str, Method] = {
            "lbfgs": LBFGS(evaluate),
            "newton": NewtonMinimum(evaluate, _jacobian(_slope(objective, rows, theta), symmetric=True), linear),
            "gradient": ProximalGradient(evaluate, near),
            "proximal_gradient": ProximalGradient(evaluate, near),
            "fire": FIRE(evaluate, step),
        }
        return run(methods[chosen], rows, init)

    result: Solution = solver(init, *theta)
    return result


class _Run:
    """When a solver stops, and what it then says.

    Args:
        name: of the solver, for messages.
        tolerance: of the residual; ``None``: ``loosen`` times the relative tolerance of the arithmetic.
        max_iterations: steps of a method.
        check: whether to raise when a problem did not converge.
        loosen: see ``tolerance``.
    """

    def __init__(
        self, name: str, tolerance: float | None, max_iterations: int, check: bool, loosen: float = 1.0
    ) -> None:
        if tolerance is not None:
            check_number("tolerance", tolerance)
        check_integer("max_iterations", max_iterations, 1)
        self.name, self.tolerance, self.max_iterations, self.check = name, tolerance, max_iterations, check
        self.loosen = loosen

    def __call__(self, method: Method, rows: Rows, init: Any) -> Solution:
        """Iterate from ``init``; raise if asked to and a problem did not converge."""
        tolerance = self.tolerance if self.tolerance is not None else self.loosen * default_tolerance(rows.dtype)
        with torch.no_grad():
            found = iterate(method, rows.pack(init).detach(), tolerance, self.max_iterations)
        solution = Solution(rows.unpack(found.x), *(rows.per_row(v) for v in found[1:4]))
        if self.check:
            raise_unless_converged(self.name, solution, f" (tolerance {tolerance:.3g})")
        return solution


def _on_rows(function: Function, rows: Rows, theta: tuple[Any, ...], name: str) -> Map:
    """Return the function of ``x`` called ``name`` as one of rows."""

    def on_rows(x: Tensor) -> Tensor:
        value = function(rows.unpack(x), *theta)
        rows.check(value, name)
        return rows.pack(value)

    return on_rows


def _jacobian(function: Map, symmetric: bool = False) -> Operator:
    def adjoint_at(x: Tensor) -> Map:
        pull = vjp(function, x)[1]
        return lambda w: pull(w)[0]

    def at(x: Tensor) -> Map:
        if symmetric:
            return adjoint_at(x)
        push = vjp(adjoint_at(x), torch.zeros_like(x))[1]
        return lambda v: push(v)[0]

    return Operator(at, adjoint_at, symmetric)


def _slope(objective: Function, rows: Rows, theta: tuple[Any, ...]) -> Map:
    """Return the gradient on rows, as what can be differentiated again."""
    total = _total(objective, rows, theta)
    return torch.func.grad(lambda x: total(x)[0])


def _objective(objective: Function, rows: Rows, theta: tuple[Any, ...]) -> Objective:
    total = _total(objective, rows, theta)

    def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
        # torch.autograd rather than torch.func.grad_and_value: a third of the overhead on small problems.
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            sum_of_all, value = total(x)
            if not sum_of_all.requires_grad:  # a constant
                return value, torch.zeros_like(x)
            (slope,) = torch.autograd.grad(sum_of_all, x, materialize_grads=True)
        return value.detach(), slope

    return evaluate


def _total(objective: Function, rows: Rows, theta: tuple[Any, ...]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        value = objective(rows.unpack(x), *theta)
        if not isinstance(value, Tensor) or tuple(value.shape) != rows.batch:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"objective must return one value a problem, shape {rows.batch}, got {got}")
        return value.sum(), value.reshape(rows.count)

    return total
