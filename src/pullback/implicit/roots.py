r"""Implicit differentiation of a root: any solver becomes differentiable.

At ``F(x, theta) = 0`` with ``A = -dF/dx`` and ``B = dF/dtheta`` the Jacobian ``J = dx/dtheta`` solves ``A J = B``.
Forward mode solves ``A u = B v``; reverse mode solves ``A^T u = w`` and returns ``B^T u``. Only products with ``A`` and
``A^T`` are needed (a dense ``A`` is built up to 512 unknowns, where that is faster), and one graph of ``F`` at the
solution is all the memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.func import vjp
from torch.utils import _pytree as pytree

from pullback.core.gradients import nested_forward_mode, primals
from pullback.core.rows import Rows
from pullback.core.shapes import Tensor
from pullback.implicit.arguments import check_function
from pullback.implicit.iteration import Map
from pullback.implicit.linear_solve import LinearOptions, Operator, loop_over_batch, solve_system
from pullback.implicit.solution import Solution

__all__ = ["custom_fixed_point", "custom_root", "root_jvp", "root_vjp"]

Optimality = Callable[..., Any]


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
            problem = _Problem(optimality, options, solver)
            return problem.solve(init, theta)

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
        >>> a = torch.tensor(4.0)
        >>> root_jvp(lambda x, a: x**2 - a, torch.tensor(2.0), (a,), (torch.tensor(1.0),))
        tensor(0.2500)
    """
    _check_tuple("theta", theta)
    _check_tuple("v", v)
    check_function("optimality", optimality)
    options = LinearOptions(method=solve, tolerance=tolerance, ridge=ridge, batch_ndim=batch_ndim, argument="solve")
    problem = _Problem(optimality, options)
    return torch.func.jvp(lambda *t: problem.attach(x, t), theta, v)[1]


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
        Cotangents, structured like ``theta``.

    Example:
        >>> a = torch.tensor(4.0)
        >>> root_vjp(lambda x, a: x**2 - a, torch.tensor(2.0), (a,), torch.tensor(1.0))
        (tensor(0.2500),)
    """
    _check_tuple("theta", theta)
    check_function("optimality", optimality)
    options = LinearOptions(method=solve, tolerance=tolerance, ridge=ridge, batch_ndim=batch_ndim, argument="solve")
    problem = _Problem(optimality, options)
    result: tuple[Any, ...] = vjp(lambda *t: problem.attach(x, t), *theta)[1](w)
    return result


@dataclass
class _Problem:
    """A root problem while it is solved: what is no tensor, and how tensors are put together and taken apart."""

    optimality: Optimality
    options: LinearOptions
    solver: Callable[..., Any] | None = None
    rebuild: Callable[..., tuple[Any, tuple[Any, ...]]] = field(init=False)
    result: pytree.TreeSpec = field(init=False)
    rows: Rows = field(init=False)

    def solve(self, init: Any, theta: tuple[Any, ...]) -> Any:
        """Run the solver and return its result, differentiable in ``theta``."""
        leaves, spec = pytree.tree_flatten((init, theta))
        chosen = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        first_theta = len(pytree.tree_leaves(init))
        heads = sum(i < first_theta for i in chosen)

        def rebuild(*tensors: Tensor) -> tuple[Any, tuple[Any, ...]]:
            filled = list(leaves)
            for i, tensor in zip(chosen, tensors, strict=True):
                filled[i] = tensor
            built: tuple[Any, tuple[Any, ...]] = pytree.tree_unflatten(filled, spec)
            return built

        self.rebuild = rebuild
        initial = tuple(leaves[i].detach() for i in chosen[:heads])
        outputs = _Root.apply(self, heads, *initial, *(leaves[i] for i in chosen[heads:]))
        return pytree.tree_unflatten(list(outputs), self.result)

    def attach(self, x: Any, theta: tuple[Any, ...]) -> Any:
        """Return ``x`` itself with the derivative of the root."""
        self.solver = lambda init, *theta: pytree.tree_map(lambda leaf: leaf.clone(), init)
        return self.solve(x, theta)

    def run(self, heads: int, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Call the solver on detached tensors, check its result and return its leaves, ``x`` first."""
        assert self.solver is not None  # set by custom_root and attach
        with torch.enable_grad():
            init, theta = self.rebuild(*(t.detach() for t in tensors))
            found = self.solver(init, *theta)
        found = pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, found)
        x = found.value if isinstance(found, Solution) else found
        self.rows = Rows.of(x, self.options.batch_ndim, "the result of the solver")
        with torch.enable_grad():
            _, theta = self.rebuild(*(t.detach() for t in tensors))
            value = self.optimality(x, *theta)
        self.rows.check(value, "optimality")
        if any(leaf.requires_grad for leaf in pytree.tree_leaves(value)) and not _own_graph(self, x, tensors):
            raise ValueError(
                "optimality uses a tensor that requires grad and is no argument; pass it to the solver as part of theta"
            )
        outputs, self.result = pytree.tree_flatten(found)
        inputs = {id(t) for t in tensors}
        return tuple(o.clone() if id(o) in inputs else o for o in outputs)

    def flat(self, heads: int, tensors: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        """Return ``F`` on rows: ``(x [problems, n], *theta leaves) -> [problems, n]``."""
        initial = tensors[:heads]

        def function(rows: Tensor, *theta_leaves: Tensor) -> Tensor:
            _, theta = self.rebuild(*initial, *theta_leaves)
            return self.rows.pack(self.optimality(self.rows.unpack(rows), *theta))

        return function

    def jacobian(self, heads: int, initial: tuple[Tensor, ...]) -> Operator:
        """Return ``dF/dx`` as an operator at ``(x rows, *theta leaves)``."""
        function = self.flat(heads, initial)

        # The vjp is taken in x and theta together, also where only x is wanted: an F that calls torch.autograd.grad
        # needs its x to require grad, and nothing else is differentiated through it.
        def adjoint_at(rows: Tensor, *theta: Tensor) -> Map:
            pull = vjp(function, rows, *theta)[1]
            return lambda w: pull(w)[0]

        def at(rows: Tensor, *theta: Tensor) -> Map:
            pull = adjoint_at(rows, *theta)
            push = vjp(pull, torch.zeros_like(rows))[1]
            return lambda v: push(v)[0]

        return Operator(at, adjoint_at, bool(getattr(self.optimality, "symmetric", False)))


class _Root(torch.autograd.Function):
    """The solver forward; the implicit function theorem backward and along tangents."""

    @staticmethod
    def forward(problem: _Problem, heads: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return problem.run(heads, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.problem, ctx.heads, *tensors = inputs
        ctx.unknowns = len(ctx.problem.rows.shapes)
        ctx.mark_non_differentiable(*output[ctx.unknowns :])
        ctx.save_for_backward(*output[: ctx.unknowns], *tensors)
        ctx.save_for_forward(*output[: ctx.unknowns], *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        problem, heads, rows, initial, theta = _saved(ctx)
        w = problem.rows.pack(list(cotangents[: ctx.unknowns]))
        options = _rows_options(problem, "the backward pass of a root")
        solution = solve_system(problem.jacobian(heads, initial).transposed(), w, (rows, *theta), options)
        pulled = vjp(problem.flat(heads, initial), rows, *theta)[1](-solution.value)[1:]
        return None, None, *(None,) * heads, *pulled

    @staticmethod
    def jvp(ctx: Any, _problem: Any, _heads: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        with nested_forward_mode():
            problem, heads, rows, initial, theta = _saved(ctx, forward_mode=True)
            filled = tuple(
                torch.zeros_like(p) if t is None else t for p, t in zip(theta, tangents[heads:], strict=True)
            )
            pull = vjp(problem.flat(heads, initial), rows, *theta)[1]
            right = vjp(lambda w: pull(w)[1:], torch.zeros_like(rows))[1](filled)[0]
            options = _rows_options(problem, "the forward derivative of a root")
            solution = solve_system(problem.jacobian(heads, initial), -right, (rows, *theta), options)
            tangent = pytree.tree_leaves(problem.rows.unpack(solution.value))
        return (*tangent, *(None,) * (problem.result.num_leaves - ctx.unknowns))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], problem: _Problem, heads: int, *tensors: Tensor) -> Any:
        return loop_over_batch(info.batch_size, in_dims[2:], tensors, lambda *t: _Root.apply(problem, heads, *t))


def _saved(
    ctx: Any, forward_mode: bool = False
) -> tuple[_Problem, int, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    saved = primals(ctx.saved_tensors) if forward_mode else ctx.saved_tensors
    x, tensors = saved[: ctx.unknowns], saved[ctx.unknowns :]
    return ctx.problem, ctx.heads, ctx.problem.rows.pack(list(x)), tensors[: ctx.heads], tensors[ctx.heads :]


def _rows_options(problem: _Problem, warn: str) -> LinearOptions:
    """Return the options of a solve on the matrix of rows."""
    given, rows = problem.options.preconditioner, problem.rows

    def precondition(v: Tensor) -> Tensor:
        assert given is not None  # only used then
        return given(v.reshape(*rows.batch, rows.size)).reshape(v.shape)

    return replace(problem.options, preconditioner=None if given is None else precondition, batch_ndim=1, warn=warn)


def _own_graph(problem: _Problem, x: Any, tensors: tuple[Tensor, ...]) -> bool:
    """Return whether an F on detached tensors made its graph itself (``autograd.grad`` inside) or captured a tensor."""
    fresh = pytree.tree_map(lambda leaf: leaf.detach().requires_grad_(), x)
    with torch.enable_grad():
        _, theta = problem.rebuild(*(t.detach() for t in tensors))
        value = [leaf for leaf in pytree.tree_leaves(problem.optimality(fresh, *theta)) if leaf.requires_grad]
    known = {id(leaf) for leaf in pytree.tree_leaves(fresh)}
    return all(id(variable) in known for leaf in value for variable in _leaves_of(leaf))


def _leaves_of(value: Tensor) -> list[Tensor]:
    seen, stack, found = set(), [value.grad_fn], []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        stack.extend(following for following, _ in node.next_functions)
    return found


def _check_tuple(name: str, value: Any) -> None:
    if not isinstance(value, tuple):
        raise TypeError(f"{name} must be a tuple with one entry an argument after x, got {type(value).__name__}")
