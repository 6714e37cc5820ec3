"""Solvers with implicit gradients built in: roots, fixed points, minima.

Each runs without a graph and returns a :class:`~pullback.implicit.Solution` whose ``value`` has the derivatives of the
exact solution in ``theta`` (reverse, forward, every order, ``vmap``); the memory does not grow with the iterations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch.utils import _pytree as pytree

from pullback.core.checks import check_choice, check_integer
from pullback.core.rows import Rows
from pullback.core.shapes import Tensor
from pullback.implicit import optimality
from pullback.implicit.arguments import check_function, check_number
from pullback.implicit.bounds import bounds_like
from pullback.implicit.descent import (
    FIRE,
    BlockCoordinate,
    NewtonMinimum,
    NonlinearCG,
    Objective,
    ProximalGradient,
    Slope,
)
from pullback.implicit.iteration import Map, Method
from pullback.implicit.linear_solve import LinearOptions
from pullback.implicit.quasi_newton import BFGS, LBFGS, BoundedLBFGS
from pullback.implicit.root_finding import Anderson, Broyden, NewtonRoot, Picard
from pullback.implicit.roots import custom_fixed_point, custom_root
from pullback.implicit.running import Function, Run, jacobian_of, on_rows, value_alone, with_aux
from pullback.implicit.solution import Solution

__all__ = ["find_root", "fixed_point", "minimize"]

FixedPointMethod = Literal["picard", "anderson", "newton"]
RootMethod = Literal["newton", "broyden"]
MinimizeMethod = Literal[
    "lbfgs", "bfgs", "newton", "nonlinear_cg", "gradient", "fire", "proximal_gradient", "block_coordinate", "lbfgsb"
]


def find_root(
    function: Function,
    init: Any,
    *theta: Any,
    method: str = "newton",
    tolerance: float | None = None,
    max_iterations: int = 100,
    solve: str = "auto",
    ridge: float = 0.0,
    batch_ndim: int = 0,
    has_aux: bool = False,
    check: bool = False,
) -> Solution:
    r"""Solve ``function(x, *theta) = 0`` by Newton's or Broyden's method, with backtracking.

    Args:
        function: ``F(x, *theta)``, with the structure and the shapes of ``x``; differentiable.
        init: where to start, floating tensors of any nesting.
        theta: what the solution is differentiated in, tensors of any nesting.
        method: ``"newton"``; ``"broyden"`` takes one Jacobian and updates it, for functions that are cheap beside their
            Jacobian.
        tolerance: converged when ``|F|_2 <= tolerance``; default 1e-10 in float64, 1e-5 in float32.
        max_iterations: of the method.
        solve: linear solver of the Newton steps and of the derivative, see :func:`~pullback.implicit.linear_solve`.
        ridge: >= 0, added to the diagonal of the Jacobian in both.
        batch_ndim: number of leading dimensions of ``x`` that are independent problems: their linear systems are small.
        has_aux: whether ``function`` returns a pair ``(value, aux)``; ``aux`` at the solution is in the result.
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
        Dennis, Schnabel (1983), Numerical methods for unconstrained optimization and nonlinear equations, chapters 6
        and 8.
    """
    check_function("function", function)
    pair, function = function, value_alone(function, "function", has_aux)
    check_choice("method", method, get_args(RootMethod))
    run = Run("find_root", tolerance, max_iterations, check)
    linear = LinearOptions(method=solve, ridge=ridge, batch_ndim=1, argument="solve")

    @custom_root(function, solve=solve, ridge=ridge, batch_ndim=batch_ndim)
    def solver(init: Any, *theta: Any) -> Solution:
        rows = Rows.of(init, batch_ndim, "init")
        gap = on_rows(function, rows, theta, "function")
        jacobian = jacobian_of(gap)
        chosen: Method = Broyden(gap, jacobian) if method == "broyden" else NewtonRoot(gap, jacobian, linear)
        return run(chosen, rows, init)

    return with_aux(solver(init, *theta), pair, theta, "function", has_aux)


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
    has_aux: bool = False,
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
        has_aux: whether ``map`` returns a pair ``(value, aux)``; ``aux`` at the solution is in the result.
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
    pair, map = map, value_alone(map, "map", has_aux)
    check_choice("method", method, get_args(FixedPointMethod))
    check_number("damping", damping)
    if damping > 1:
        raise ValueError(f"damping must be in (0, 1], got {damping}")
    check_integer("memory", memory, 1)
    run = Run("fixed_point", tolerance, max_iterations, check)
    linear = LinearOptions(method=solve, ridge=ridge, batch_ndim=1, argument="solve")

    @custom_fixed_point(map, solve=solve, ridge=ridge, batch_ndim=batch_ndim)
    def solver(init: Any, *theta: Any) -> Solution:
        rows = Rows.of(init, batch_ndim, "init")
        update = on_rows(map, rows, theta, "map")

        def gap(x: Tensor) -> Tensor:
            return x - update(x)

        methods: dict[str, Method] = {
            "picard": Picard(update, damping),
            "anderson": Anderson(update, damping, memory),
            "newton": NewtonRoot(gap, jacobian_of(gap), linear),
        }
        return run(methods[method], rows, init)

    return with_aux(solver(init, *theta), pair, theta, "map", has_aux)


def minimize(
    objective: Function,
    init: Any,
    *theta: Any,
    method: str | None = None,
    prox: Function | None = None,
    bounds: tuple[Any, Any] | None = None,
    tolerance: float | None = None,
    max_iterations: int = 1000,
    step: float = 0.1,
    solve: str = "auto",
    ridge: float = 0.0,
    batch_ndim: int = 0,
    has_aux: bool = False,
    check: bool = False,
) -> Solution:
    r"""Minimise ``objective(x, *theta)``, between bounds, or ``objective + g`` with the proximal operator of ``g``.

    Derivatives come from ``grad f = 0``; with ``prox`` from the fixed point ``x = prox(x - step grad f, step)``, with
    ``bounds`` from ``x = clip(x - grad f, low, high)``.

    Args:
        objective: ``f(x, *theta)``, a scalar (``[*batch]`` with ``batch_ndim``), differentiable twice.
        init: where to start.
        theta: what the solution is differentiated in.
        method: ``"lbfgs"`` (default), ``"bfgs"`` (dense, for few unknowns), ``"newton"`` (few unknowns, fast near the
            minimum), ``"nonlinear_cg"`` (least memory), ``"gradient"`` (accelerated, step found by backtracking),
            ``"fire"`` (inertial relaxation of molecular dynamics: for rough potentials); with ``prox``
            ``"proximal_gradient"`` (accelerated); with ``prox`` or without it ``"block_coordinate"``: one block after
            another by a step of its own length, for blocks of very different scale (the tensors of ``init``; of one
            tensor the slices of its first dimension behind the batch; ``prox`` must act on each block by itself); with
            ``bounds`` ``"lbfgsb"``.
        prox: ``prox(y, step, *theta)`` of ``step * g``, such as ``lambda y, step, lam: prox_lasso(y, step * lam)``, or
            a projection.
        bounds: ``(low, high)``, each a number or like ``init`` (a tensor that broadcasts, or the same nesting); may be
            infinite. Their tensors have derivatives too.
        tolerance: converged when the gradient's 2-norm (with ``prox`` the norm of ``(x - prox(x - step grad f)) /
            step``, with ``bounds`` of ``x - clip(x - grad f)``) is at most this; default 1e-8 in float64, 1e-4 in
            float32.
        max_iterations: of the method.
        step: first time step of ``"fire"``.
        solve: linear solver of the derivative (and of ``"newton"``).
        ridge: >= 0, added to its diagonal, for a flat minimum.
        batch_ndim: number of leading dimensions of ``x`` that are independent problems.
        has_aux: whether ``objective`` returns a pair ``(value, aux)``; ``aux`` at the solution is in the result.
        check: raise when a problem did not converge.

    Returns:
        ``Solution``: ``value`` like ``init``; ``residual``, ``iterations``, ``reason`` and ``converged``, ``[*batch]``
        each.

    Raises:
        TypeError: ``init`` holds something else than floating tensors.
        ValueError: ``objective`` returns another shape, ``prox`` or ``bounds`` with another method (or the reverse),
            low bounds above high ones; a bad option.
        ConvergenceError: ``check`` is set and a problem did not converge; carries the ``Solution``.

    Example:
        >>> a = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
        >>> objective = lambda x, a: ((x - a) ** 2).sum() + (x**2).sum()
        >>> solution = minimize(objective, torch.zeros(2, dtype=torch.float64), a)
        >>> torch.autograd.grad(solution.value.sum(), a)[0]
        tensor([0.5000, 0.5000], dtype=torch.float64)

    References:
        Nocedal, Wright (2006); Byrd et al. (1995); Hager, Zhang (2005); Beck, Teboulle (2009); Bitzek et al. (2006);
        Beck, Tetruashvili (2013); Blondel et al. (2022) for the derivatives.
    """
    check_function("objective", objective)
    pair, objective = objective, value_alone(objective, "objective", has_aux)
    chosen = method or ("proximal_gradient" if prox is not None else "lbfgs" if bounds is None else "lbfgsb")
    check_choice("method", chosen, get_args(MinimizeMethod))
    if prox is not None and chosen not in ("proximal_gradient", "block_coordinate"):
        raise ValueError(f"prox and method {chosen!r} do not go together: 'proximal_gradient', 'block_coordinate' do")
    if prox is None and chosen == "proximal_gradient":
        raise ValueError("method 'proximal_gradient' needs prox")
    if (bounds is not None) != (chosen == "lbfgsb"):
        raise ValueError(f"method {chosen!r} and bounds do not go together: 'lbfgsb' takes them, the others do not")
    if prox is not None:
        check_function("prox", prox)
    check_number("step", step)
    arguments = theta
    run = Run("minimize", tolerance, max_iterations, check, loosen=100.0)
    linear = LinearOptions(method=solve, ridge=ridge, batch_ndim=1, argument="solve")
    if prox is not None:
        fixed = optimality.proximal_gradient(objective, prox)
        decorate = custom_fixed_point(fixed, solve=solve, ridge=ridge, batch_ndim=batch_ndim)
    elif bounds is not None:
        theta = (*theta, bounds_like(init, bounds, batch_ndim))
        decorate = custom_fixed_point(_between(objective), solve=solve, ridge=ridge, batch_ndim=batch_ndim)
    else:
        decorate = custom_root(optimality.stationary(objective), solve=solve, ridge=ridge, batch_ndim=batch_ndim)

    @decorate
    def solver(init: Any, *theta: Any) -> Solution:
        rows = Rows.of(init, batch_ndim, "init")
        limits = [rows.pack(v) for v in theta[-1]] if bounds is not None else []
        given = theta if bounds is None else theta[:-1]
        evaluate = _objective(objective, rows, given)

        def near(y: Tensor, length: float) -> Tensor:
            return y if prox is None else rows.pack(prox(rows.unpack(y), length, *given))

        methods: dict[str, Callable[[], Method]] = {
            "lbfgs": lambda: LBFGS(evaluate),
            "bfgs": lambda: BFGS(evaluate),
            "newton": lambda: NewtonMinimum(
                evaluate, jacobian_of(_slope(objective, rows, given), symmetric=True), linear
            ),
            "nonlinear_cg": lambda: NonlinearCG(evaluate),
            "gradient": lambda: ProximalGradient(evaluate, near),
            "proximal_gradient": lambda: ProximalGradient(evaluate, near),
            "block_coordinate": lambda: BlockCoordinate(
                evaluate, _partial(objective, rows, given), near, _blocks(rows)
            ),
            "fire": lambda: FIRE(evaluate, step),
            "lbfgsb": lambda: BoundedLBFGS(evaluate, limits[0], limits[1]),
        }
        return run(methods[chosen](), rows, init)

    return with_aux(solver(init, *theta), pair, arguments, "objective", has_aux)


def _between(objective: Function) -> Function:
    """Return the map ``clip(x - grad f, low, high)`` of ``(x, *theta, bounds)``."""
    slope = optimality.stationary(objective)

    def update(x: Any, *theta: Any) -> Any:
        *given, (low, high) = theta
        moved = pytree.tree_map(lambda a, b: a - b, x, slope(x, *given))
        return pytree.tree_map(lambda v, a, b: torch.minimum(torch.maximum(v, a), b), moved, low, high)

    return update


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


def _partial(objective: Function, rows: Rows, theta: tuple[Any, ...]) -> Callable[[Tensor, slice], Slope]:
    """Return value and gradient in one block of columns."""
    total = _total(objective, rows, theta)

    def evaluate(x: Tensor, block: slice) -> Slope:
        with torch.enable_grad():
            part = x[:, block].detach().requires_grad_()
            sum_of_all, value = total(torch.cat([x[:, : block.start], part, x[:, block.stop :]], 1))
            if not sum_of_all.requires_grad:  # constant in this block
                return Slope(value, torch.zeros_like(part))
            (slope,) = torch.autograd.grad(sum_of_all, part, materialize_grads=True)
        return Slope(value.detach(), slope)

    return evaluate


def _blocks(rows: Rows) -> list[slice]:
    """Return the columns of each tensor, of a single one those of each slice of its first dimension."""
    sizes = list(rows.sizes)
    if rows.single and rows.shapes[0]:
        count = rows.shapes[0][0]
        sizes = [rows.size // count] * count if count else []
    ends = list(itertools.accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _total(objective: Function, rows: Rows, theta: tuple[Any, ...]) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def total(x: Tensor) -> tuple[Tensor, Tensor]:
        value = objective(rows.unpack(x), *theta)
        if not isinstance(value, Tensor) or tuple(value.shape) != rows.batch:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"objective must return one value a problem, shape {rows.batch}, got {got}")
        return value.sum(), value.reshape(rows.count)

    return total
