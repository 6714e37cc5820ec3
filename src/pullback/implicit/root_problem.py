"""A root problem while it is solved: the solver forward, the implicit function theorem backward and along tangents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.func import vjp
from torch.utils import _pytree as pytree

from pullback.core.gradients import nested_forward_mode, primals
from pullback.core.rows import Rows
from pullback.core.shapes import Tensor
from pullback.implicit.iteration import Map
from pullback.implicit.linear_solve import LinearOptions, Operator, loop_over_batch, solve_system
from pullback.implicit.solution import Solution

__all__ = ["Optimality", "RootProblem"]

Optimality = Callable[..., Any]


@dataclass
class RootProblem:
    """The conditions, how their linear systems are solved, and how tensors are put together and taken apart.

    The tensors of a call are the floating ones of ``init`` (``initial``) and of ``theta``, in the order of the nesting.

    Attributes:
        optimality: ``F(x, *theta)``.
        options: of the linear solves of the derivatives, ``batch_ndim`` that of ``x``.
        solver: ``solver(init, *theta)``.
    """

    optimality: Optimality
    options: LinearOptions
    solver: Callable[..., Any] | None = None
    rows: Rows = field(init=False)
    result: pytree.TreeSpec = field(init=False)
    _leaves: list[Any] = field(init=False)
    _structure: pytree.TreeSpec = field(init=False)
    _places: list[int] = field(init=False)
    _initial: int = field(init=False)

    def solve(self, init: Any, theta: tuple[Any, ...]) -> Any:
        """Run the solver and return its result, differentiable in ``theta``."""
        self._leaves, self._structure = pytree.tree_flatten((init, theta))
        floating = [isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in self._leaves]
        self._places = [i for i, chosen in enumerate(floating) if chosen]
        self._initial = sum(floating[: len(pytree.tree_leaves(init))])
        tensors = [self._leaves[i] for i in self._places]
        outputs = _Root.apply(self, *(t.detach() for t in tensors[: self._initial]), *tensors[self._initial :])
        return pytree.tree_unflatten(list(outputs), self.result)

    def attach(self, x: Any, theta: tuple[Any, ...]) -> Any:
        """Return ``x`` itself with the derivative of the root."""
        self.solver = lambda init, *theta: pytree.tree_map(lambda leaf: leaf.clone(), init)
        return self.solve(x, theta)

    def split(self, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return the tensors of ``init`` and those of ``theta``."""
        return tuple(tensors[: self._initial]), tuple(tensors[self._initial :])

    def tensors_of(self, init: Any, theta: tuple[Any, ...]) -> list[Tensor]:
        """Return the tensors of arguments that are built like those of the call."""
        leaves, structure = pytree.tree_flatten((init, theta))
        if structure != self._structure:
            raise ValueError(f"a tangent must have the structure of theta, {self._structure}, got {structure}")
        return [leaves[i] for i in self._places]

    def rebuild(self, tensors: Sequence[Tensor]) -> tuple[Any, tuple[Any, ...]]:
        """Return ``(init, theta)`` of the call with other tensors in it."""
        filled = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            filled[place] = tensor
        built: tuple[Any, tuple[Any, ...]] = pytree.tree_unflatten(filled, self._structure)
        return built

    def run(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Call the solver on detached tensors, check its result and return its leaves, ``x`` first."""
        assert self.solver is not None  # set by custom_root and attach
        with torch.enable_grad():
            init, theta = self.rebuild([t.detach() for t in tensors])
            found = self.solver(init, *theta)
        found = pytree.tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, found)
        x = found.value if isinstance(found, Solution) else found
        self.rows = Rows.of(x, self.options.batch_ndim, "the result of the solver")
        with torch.enable_grad():
            _, theta = self.rebuild([t.detach() for t in tensors])
            value = self.optimality(x, *theta)
        self.rows.check(value, "optimality")
        if any(leaf.requires_grad for leaf in pytree.tree_leaves(value)) and not _own_graph(self, x, tensors):
            raise ValueError(
                "optimality uses a tensor that requires grad and is no argument; pass it to the solver as part of theta"
            )
        outputs, self.result = pytree.tree_flatten(found)
        inputs = {id(t) for t in tensors}
        return tuple(o.clone() if id(o) in inputs else o for o in outputs)

    def flat(self, initial: tuple[Tensor, ...]) -> Callable[..., Tensor]:
        """Return ``F`` on rows: ``(x [problems, n], *theta tensors) -> [problems, n]``."""

        def function(rows: Tensor, *tensors: Tensor) -> Tensor:
            _, theta = self.rebuild((*initial, *tensors))
            return self.rows.pack(self.optimality(self.rows.unpack(rows), *theta))

        return function

    def pull_back(
        self, rows: Tensor, initial: tuple[Tensor, ...], theta: tuple[Tensor, ...], w: Tensor, warn: str = ""
    ) -> tuple[Tensor, ...]:
        """Solve ``A^T u = w`` and return ``B^T u``, one cotangent a tensor of theta."""
        operator = self._jacobian(initial).transposed()
        solution = solve_system(operator, w, (rows, *theta), self._linear(warn))
        pulled: tuple[Tensor, ...] = vjp(self.flat(initial), rows, *theta)[1](-solution.value)[1:]
        return pulled

    def push_forward(
        self,
        rows: Tensor,
        initial: tuple[Tensor, ...],
        theta: tuple[Tensor, ...],
        v: tuple[Tensor, ...],
        warn: str = "",
    ) -> Tensor:
        """Solve ``A u = B v`` and return ``u`` as rows."""
        # B v as the transpose of the vjp: double backward, which every F supports, gives it.
        pull = vjp(self.flat(initial), rows, *theta)[1]
        right = vjp(lambda w: pull(w)[1:], torch.zeros_like(rows))[1](v)[0]
        result: Tensor = solve_system(self._jacobian(initial), -right, (rows, *theta), self._linear(warn)).value
        return result

    def _jacobian(self, initial: tuple[Tensor, ...]) -> Operator:
        """Return ``dF/dx`` as an operator at ``(x rows, *theta tensors)``."""
        function = self.flat(initial)

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

    def _linear(self, warn: str) -> LinearOptions:
        """Return the options of a solve on the matrix of rows."""
        given, rows = self.options.preconditioner, self.rows
        if given is None:
            return replace(self.options, batch_ndim=1, warn=warn)

        def precondition(v: Tensor) -> Tensor:
            return given(v.reshape(*rows.batch, rows.size)).reshape(v.shape)

        return replace(self.options, preconditioner=precondition, batch_ndim=1, warn=warn)


class _Root(torch.autograd.Function):
    """The result of the solver, ``x`` first, as a function of the tensors."""

    @staticmethod
    def forward(problem: RootProblem, *tensors: Tensor) -> tuple[Tensor, ...]:
        return problem.run(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.problem, *tensors = inputs
        ctx.unknowns = len(ctx.problem.rows.shapes)
        ctx.mark_non_differentiable(*output[ctx.unknowns :])
        ctx.save_for_backward(*output[: ctx.unknowns], *tensors)
        ctx.save_for_forward(*output[: ctx.unknowns], *tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        problem: RootProblem = ctx.problem
        x, (initial, theta) = ctx.saved_tensors[: ctx.unknowns], problem.split(ctx.saved_tensors[ctx.unknowns :])
        rows, w = problem.rows.pack(list(x)), problem.rows.pack(list(cotangents[: ctx.unknowns]))
        pulled = problem.pull_back(rows, initial, theta, w, "the backward pass of a root")
        return None, *(None,) * len(initial), *pulled

    @staticmethod
    def jvp(ctx: Any, _problem: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        with nested_forward_mode():
            problem: RootProblem = ctx.problem
            saved = primals(ctx.saved_tensors)
            x, (initial, theta) = saved[: ctx.unknowns], problem.split(saved[ctx.unknowns :])
            v = tuple(
                torch.zeros_like(p) if t is None else t for p, t in zip(theta, tangents[len(initial) :], strict=True)
            )
            rows = problem.rows.pack(list(x))
            u = problem.push_forward(rows, initial, theta, v, "the forward derivative of a root")
            tangent = pytree.tree_leaves(problem.rows.unpack(u))
        return (*tangent, *(None,) * (problem.result.num_leaves - ctx.unknowns))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], problem: RootProblem, *tensors: Tensor) -> Any:
        return loop_over_batch(info.batch_size, in_dims[1:], tensors, lambda *t: _Root.apply(problem, *t))


def _own_graph(problem: RootProblem, x: Any, tensors: tuple[Tensor, ...]) -> bool:
    """Return whether an F on detached tensors made its graph itself (``autograd.grad`` inside) or captured a tensor."""
    fresh = pytree.tree_map(lambda leaf: leaf.detach().requires_grad_(), x)
    with torch.enable_grad():
        _, theta = problem.rebuild([t.detach() for t in tensors])
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
