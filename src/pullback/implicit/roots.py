r"""Implicit differentiation of a root: any solver becomes differentiable.

At ``F(x, theta) = 0`` with ``A = -dF/dx`` and ``B = dF/dtheta`` the Jacobian ``J = dx/dtheta`` solves ``A J = B``.
Forward mode solves ``A u = B v``; reverse mode solves ``A^T u = w`` and returns ``B^T u``. Only products with ``A`` and
``A^T`` are needed (a dense ``A`` is built up to 512 unknowns, where that is faster), and one graph of ``F`` at the
solution is all the memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch.utils import _pytree as pytree

from pullback.core.rows import Rows
from pullback.implicit.arguments import check_function
from pullback.implicit.iteration import Map
from pullback.implicit.linear_solve import LinearOptions
from pullback.implicit.root_problem import Optimality, RootProblem

__all__ = ["custom_fixed_point", "custom_root", "root_jvp", "root_vjp"]


def custom_root(
    optimality: Optimality,
    *,
    solve: str = "auto",
    ridge: float = 0.0,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    preconditioner: Map | None = None,
    batch_ndim: int = 0,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    r"""Return a decorator that makes ``solver(init, *theta)`` differentiable in ``theta``.

    ``x* = solver(init, *theta)`` is taken to satisfy ``optimality(x*, *theta) = 0``; how it was found does not matter:
    the solver runs without a graph of ours. Reverse mode, forward mode, ``torch.func.grad/jvp/vmap`` and derivatives of
    every order work. At an inexact solution ``x`` the Jacobian is that of the formula at ``x``, with an error of the
    order of ``|x - x*|`` (theorem 1 of the paper).

    Args:
        optimality: ``F(x, *theta)``, returning the structure and the shapes of ``x``. It may itself contain
            derivatives: ``torch.func.grad``, or ``torch.autograd.grad(..., create_graph=True)`` with respect to ``x``.
        solve: linear solver of the derivative, see :func:`~pullback.implicit.linear_solve`; ``"auto"`` is dense up to
            512 unknowns, above it ``"cg"`` for a symmetric optimality (``optimality.stationary``) and ``"gmres"`` else.
        ridge: >= 0, added to the diagonal of ``dF/dx`` in the solve, for a singular one.
        tolerance: relative tolerance of the linear solve.
        max_iterations: of a Krylov method.
        preconditioner: for the linear solve, symmetric, on tensors of shape ``[*batch, n]``.
        batch_ndim: number of leading dimensions of ``x`` that are independent problems; solves then are small and
            batched.

    Returns:
        A decorator. ``theta`` and ``x`` are tensors or any nesting of tuples, lists and dicts of tensors; ``init`` gets
        no derivative. The solver returns ``x``, or a :class:`Solution` whose ``value`` is ``x``.

    Raises:
        ValueError: (when called) ``optimality`` returns another structure or shape than ``x``, or uses a tensor that
            requires a derivative and is no argument.

    Warns:
        RuntimeWarning: a linear solve of the derivative did not converge; the message has its residual.

    Example:
        >>> import torch
        >>> @custom_root(lambda x, a: x**2 - a)
        ... def square_root(init, a):
        ...     return a.sqrt()
        >>> a = torch.tensor([4.0, 9.0], requires_grad=True)
        >>> torch.autograd.grad(square_root(None, a).sum(), a)[0]
        tensor([0.2500, 0.1667])

    References:
        Blondel, Berthet, Cuturi, Frostig, Hoyer, Llinares-Lopez, Pedregosa, Vert (2022), Efficient and modular implicit
        differentiation, equations 2 to 4.
    """
    check_function("optimality", optimality)
    options = LinearOptions(
        method=solve,
        tolerance=tolerance,
        max_iterations=max_iterations,
        preconditioner=preconditioner,
        ridge=ridge,
        batch_ndim=batch_ndim,
        argument="solve",
    )

    def decorate(solver: Callable[..., Any]) -> Callable[..., Any]:
        check_function("solver", solver)

        @functools.wraps(solver)
        def differentiable(init: Any, *theta: Any) -> Any:
            return RootProblem(optimality, options, solver).solve(init, theta)

        return differentiable

    return decorate


def custom_fixed_point(
    map: Callable[..., Any],
    *,
    solve: str = "auto",
    ridge: float = 0.0,
    tolerance: float | None = None,
    max_iterations: int | None = None,
    preconditioner: Map | None = None,
    batch_ndim: int = 0,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that makes ``solver(init, *theta)`` differentiable, its result being ``map(x, *theta) = x``.

    The optimality is ``F = x - map(x, *theta)``; everything else is as in :func:`custom_root`.

    Example:
        >>> import torch
        >>> @custom_fixed_point(lambda x, a: (x + a / x) / 2)
        ... def square_root(init, a):
        ...     return a.sqrt()
        >>> a = torch.tensor(4.0, requires_grad=True)
        >>> torch.autograd.grad(square_root(None, a), a)[0]
        tensor(0.2500)

    References:
        Blondel et al. (2022), equation 5.
    """

    check_function("map", map)

    def optimality(x: Any, *theta: Any) -> Any:
        # x - T rather than T - x: the root is the same, and its Jacobian I - dT/dx is what a ridge makes more definite.
        value = map(x, *theta)
        Rows.of(x, batch_ndim).check(value, "map")
        return pytree.tree_map(lambda a, b: a - b, x, value)

    return custom_root(
        optimality,
        solve=solve,
        ridge=ridge,
        tolerance=tolerance,
        max_iterations=max_iterations,
        preconditioner=preconditioner,
        batch_ndim=batch_ndim,
    )


def root_jvp(
    optimality: Optimality,
    x: Any,
    theta: tuple[Any, ...],
    v: tuple[Any, ...],
    *,
    solve: str = "auto",
    ridge: float = 0.0,
    tolerance: float | None = None,
    batch_ndim: int = 0,
) -> Any:
    """Return ``J v``, the derivative of the root along ``v``: solves ``A u = B v``.

    Args:
        optimality: ``F(x, *theta)``.
        x: the root.
        theta: the arguments after ``x``.
        v: tangents, structured like ``theta``.
        solve: linear solver, as in :func:`custom_root`.
        ridge: as in :func:`custom_root`.
        tolerance: relative tolerance of the linear solve.
        batch_ndim: as in :func:`custom_root`.

    Returns:
        A tangent structured like ``x``.

    Example:
        >>> import torch
        >>> a = torch.tensor(4.0)
        >>> root_jvp(lambda x, a: x**2 - a, torch.tensor(2.0), (a,), (torch.tensor(1.0),))
        tensor(0.2500)
    """
    _check_tuple("theta", theta)
    _check_tuple("v", v)
    check_function("optimality", optimality)
    options = LinearOptions(method=solve, tolerance=tolerance, ridge=ridge, batch_ndim=batch_ndim, argument="solve")
    problem = RootProblem(optimality, options)
    live = problem.attach(x, theta)
    initial, tensors = problem.split(problem.tensors_of(x, theta))
    _, tangents = problem.split(problem.tensors_of(x, v))
    u = problem.push_forward(problem.rows.pack(live), initial, tensors, tangents, "root_jvp")
    return problem.rows.unpack(u)


def root_vjp(
    optimality: Optimality,
    x: Any,
    theta: tuple[Any, ...],
    w: Any,
    *,
    solve: str = "auto",
    ridge: float = 0.0,
    tolerance: float | None = None,
    batch_ndim: int = 0,
) -> tuple[Any, ...]:
    """Return ``J^T w``, structured like ``theta``: solves ``A^T u = w`` and returns ``B^T u``.

    Args:
        optimality: ``F(x, *theta)``.
        x: the root.
        theta: the arguments after ``x``.
        w: cotangent, structured like ``x``.
        solve: linear solver, as in :func:`custom_root`.
        ridge: as in :func:`custom_root`.
        tolerance: relative tolerance of the linear solve.
        batch_ndim: as in :func:`custom_root`.

    Returns:
        Cotangents, structured like ``theta`` (what is no floating tensor in it is returned as it is).

    Example:
        >>> import torch
        >>> a = torch.tensor(4.0)
        >>> root_vjp(lambda x, a: x**2 - a, torch.tensor(2.0), (a,), torch.tensor(1.0))
        (tensor(0.2500),)
    """
    _check_tuple("theta", theta)
    check_function("optimality", optimality)
    options = LinearOptions(method=solve, tolerance=tolerance, ridge=ridge, batch_ndim=batch_ndim, argument="solve")
    problem = RootProblem(optimality, options)
    live = problem.attach(x, theta)
    problem.rows.check(w, "w", "x")
    initial, tensors = problem.split(problem.tensors_of(x, theta))
    pulled = problem.pull_back(problem.rows.pack(live), initial, tensors, problem.rows.pack(w), "root_vjp")
    cotangents: tuple[Any, ...] = problem.rebuild((*initial, *pulled))[1]
    return cotangents


def _check_tuple(name: str, value: Any) -> None:
    if not isinstance(value, tuple):
        raise TypeError(f"{name} must be a tuple with one entry an argument after x, got {type(value).__name__}")
