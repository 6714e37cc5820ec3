r"""Exact optimal transport between finitely many points: assignments, and plans between any masses.

Solved by shortest augmenting paths and by the network simplex (:mod:`pullback.kernels.transport`) on the CPU. The
derivatives are those of a linear program: the value changes with a cost by what the plan ships there, with a mass by
its potential.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from pullback.core.checks import check_broadcast, check_floating
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Int, Tensor
from pullback.core.transforms import can_look, is_transformed
from pullback.kernels import transport as kernels
from pullback.transport.masses import check_cost, masses

__all__ = ["Assignment", "ExactTransport", "assignment", "exact_transport"]


class Assignment(NamedTuple):
    """The best matching of rows and columns, ``k = min(n, m)`` pairs.

    Attributes:
        rows: ``[*batch, k]`` ascending indices.
        columns: ``[*batch, k]`` the column of each of these rows.
        value: ``[*batch]`` the sum of the chosen costs; its gradient is the (partial) permutation matrix.
    """

    rows: Int[Tensor, "*batch k"]
    columns: Int[Tensor, "*batch k"]
    value: Float[Tensor, "*batch"]


class ExactTransport(NamedTuple):
    """An optimal plan.

    Attributes:
        plan: ``[*batch, n, m]`` with row sums ``a`` and column sums ``b``, at most n + m - 1 entries positive for
            costs in general position; constant between jumps, so without gradient.
        f: ``[*batch, n]`` potential of the rows, without gradient.
        g: ``[*batch, m]`` potential of the columns; ``f_i + g_j <= cost_ij``, equal where the plan is positive.
        value: ``[*batch]`` the total cost, with gradients for the cost (the plan) and the masses (the potentials).
    """

    plan: Float[Tensor, "*batch n m"]
    f: Float[Tensor, "*batch n"]
    g: Float[Tensor, "*batch m"]
    value: Float[Tensor, "*batch"]


def assignment(cost: Float[Tensor, "*batch n m"], *, maximize: bool = False) -> Assignment:
    r"""Match rows with columns at the least total cost: :math:`\min_\pi \sum_i C_{i\pi(i)}`, exactly.

    Shortest augmenting paths, O(n^2 m) at worst, as ``scipy.optimize.linear_sum_assignment``, for every problem of a
    batch. With more rows than columns each column gets a row of its own.

    Args:
        cost: ``[*batch, n, m]``; ``inf`` forbids a pair (``-inf`` with ``maximize``).
        maximize: find the largest total instead.

    Returns:
        :class:`Assignment`.

    Raises:
        TypeError: ``cost`` is no floating tensor.
        ValueError: ``cost`` is NaN or of the wrong infinity somewhere, a row (or column, where they are fewer) has no
            finite entry, or no matching avoids the forbidden pairs (not checked under ``torch.func`` transforms: all
            columns of such a problem are then 0 and its value is infinite).

    Example:
        >>> found = assignment(torch.tensor([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]]))
        >>> found.columns.tolist(), found.value.item()
        ([1, 0, 2], 5.0)

    References:
        Jonker, Volgenant (1987), A shortest augmenting path algorithm for dense and sparse linear assignment problems.
        Crouse (2016), On implementing 2D rectangular assignment algorithms.
    """
    check_cost(-check_floating("cost", cost) if maximize else cost)
    least = -cost if maximize else cost
    n, m = cost.shape[-2:]
    wide = least.mT if n > m else least
    found: Tensor = _assign(wide.detach())[0]
    solved = (found >= 0).all(-1, keepdim=True)
    _check_solved(solved.squeeze(-1), "matching")
    found = torch.where(solved, found, 0)
    chosen = torch.where(solved, wide.gather(-1, found.unsqueeze(-1)).squeeze(-1), torch.inf)
    value = chosen.to(torch.promote_types(cost.dtype, torch.float32)).sum(-1).to(cost.dtype)
    value = -value if maximize else value
    if n > m:  # by ascending rows
        return Assignment(*found.sort(-1), value)
    return Assignment(torch.arange(n, device=cost.device).expand_as(found), found, value)


def exact_transport(
    cost: Float[Tensor, "*#batch n m"],
    a: Float[Tensor, "*#batch n"] | None = None,
    b: Float[Tensor, "*#batch m"] | None = None,
) -> ExactTransport:
    r"""Ship masses at the least total cost: :math:`\min_P \langle P, C\rangle` with row sums a and column sums b.

    Equal masses and n = m are an assignment; all else is solved by the network simplex.

    Args:
        cost: ``[*batch, n, m]``; ``inf`` forbids a pair.
        a: ``[*batch, n]`` masses >= 0 of the rows; uniform by default.
        b: ``[*batch, m]`` masses >= 0 of the columns, of the same sum; differences up to a hundredth are
            taken for rounding, and ``b`` is scaled.

    Returns:
        :class:`ExactTransport`. Given neither, masses are 1/n and 1/m. The value has second derivatives (0 almost
        everywhere) in the costs and in the masses, but none mixed of both: the plan is constant to autograd.

    Raises:
        TypeError: ``cost`` is no floating tensor, or the masses have another dtype.
        ValueError: ``cost`` is NaN or ``-inf`` somewhere, the shapes do not fit, masses are negative or of different
            sums, or the forbidden pairs leave no plan.

    Example:
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 5.0]])
        >>> found = exact_transport(cost, torch.tensor([0.5, 0.5]), torch.tensor([0.75, 0.25]))
        >>> found.plan.tolist(), found.value.item()
        ([[0.25, 0.25], [0.5, 0.0]], 0.75)

    References:
        Peyre, Cuturi (2019), Computational optimal transport, chapter 3. Ahuja, Magnanti, Orlin (1993), section 9.7.
    """
    check_cost(cost)
    n, m = cost.shape[-2:]
    if n == 0 or m == 0:
        raise ValueError(f"cost must have at least one row and one column, got shape {tuple(cost.shape)}")
    batches = {name: tuple(x.shape[:-1]) for name, x in (("a", a), ("b", b)) if isinstance(x, Tensor)}
    batch = check_broadcast(cost=tuple(cost.shape[:-2]), **batches)
    supply, demand = masses(a, b, sizes=(n, m), batch=batch, like=cost, what="cost")
    return solve_exact(cost.expand(*batch, n, m), supply, demand, even=a is None and b is None and n == m)


def solve_exact(cost: Tensor, supply: Tensor, demand: Tensor, *, even: bool = False) -> ExactTransport:
    """Return what :func:`exact_transport` does, of arguments that are checked and of one batch; even: all masses equal.

    Example:
        >>> solve_exact(torch.tensor([[1.0, 2.0]]), torch.tensor([3.0]), torch.tensor([1.0, 2.0])).value.item()
        5.0
    """
    if even:
        columns, f, g = _assign(cost.detach())
        solved, plan = (columns >= 0).all(-1), _matched(columns, f)
    else:
        plan, f, g = _ship(cost.detach(), supply.detach(), demand.detach())
        solved = ~plan[..., 0, 0].isnan()  # all of a plan is, or nothing
    _check_solved(solved, "plan")
    value = (torch.where(plan > 0, cost, 0).to(plan.dtype) * plan).sum((-2, -1))
    given = (cost, supply, demand)
    if any(t.requires_grad for t in given) or any(is_transformed(t) for t in given) or torch.compiler.is_compiling():
        priced = value + (f * supply).sum(-1) + (g * demand).sum(-1)  # has the derivatives, in costs and masses
        value = replace_gradient(value, priced)
    return ExactTransport(*(x.to(cost.dtype) for x in (plan, f, g, value)))


def _matched(columns: Tensor, like: Tensor) -> Tensor:
    """Return the plan of equal masses in which each row ships to its column."""
    n = columns.shape[-1]
    empty = torch.zeros_like(like).unsqueeze(-1).expand(*columns.shape, n)
    return empty.scatter(-1, columns.clamp(min=0).unsqueeze(-1), 1 / n)


def _check_solved(solved: Tensor, what: str) -> None:
    if can_look(solved) and not bool(solved.all()):
        index = tuple((~solved).nonzero()[0].tolist())
        where = f" in problem {index}" if solved.ndim else ""
        raise ValueError(f"cost must allow a {what}, but its infinite entries leave none{where}")


@torch.library.custom_op("pullback::assign", mutates_args=(), schema="(Tensor cost) -> (Tensor, Tensor, Tensor)")
def _assign(cost: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    columns, f, g = _solve(kernels.assign, cost)
    return columns, f, g


@torch.library.custom_op(
    "pullback::ship", mutates_args=(), schema="(Tensor cost, Tensor supply, Tensor demand) -> (Tensor, Tensor, Tensor)"
)
def _ship(cost: Tensor, supply: Tensor, demand: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    plan, f, g = _solve(kernels.ship, cost, supply, demand)
    return plan, f, g


@torch.library.custom_op(
    "pullback::free_plans",
    mutates_args=(),
    schema="(Tensor y, Tensor supply, Tensor shares, Tensor start, bool even, int count) -> (Tensor, Tensor)",
)
def free_plans(
    y: Tensor, supply: Tensor, shares: Tensor, start: Tensor, even: bool, count: int
) -> tuple[Tensor, Tensor]:
    """Move points to the mean of what they ship to until they stand: the last plans, and how often they moved.

    Args:
        y: ``[*batch, k, n, d]`` points.
        supply: ``[*batch, k, n]`` their masses, of sum 1.
        shares: ``[*batch, k]`` weights of sum 1.
        start: ``[*batch, m, d]`` the points that move, of mass 1 / m.
        even: whether all masses are equal, and n = m.
        count: updates at most.
    """
    batch, (k, n, d), m = y.shape[:-3], y.shape[-3:], start.shape[-2]
    p = math.prod(batch)
    sizes = ((p, k, n, d), (p, k, n), (p, k), (p, m, d))
    flat = zip((y, supply, shares, start), sizes, strict=True)
    arrays = [t.detach().to("cpu", torch.float64).reshape(size).numpy() for t, size in flat]
    plans, moves = np.zeros((len(arrays[0]), k, n, m)), np.zeros(len(arrays[0]), np.int64)
    demand = np.full((k, m), 1 / m)
    for index, (points, weights, parts, x) in enumerate(zip(*arrays, strict=True)):
        centre = points.mean((0, 1))
        points, x = points - centre, x - centre
        squares, along = (points * points).sum(-1)[:, :, None], np.arange(n)
        for step in range(count + 1):
            cost = squares + (x * x).sum(-1) - 2 * points @ x.T
            cost = cost / max(float(np.abs(cost).max()), 1e-300)
            if even:
                plans[index] = 0
                for plan, columns in zip(plans[index], kernels.assign(cost)[0], strict=True):
                    plan[along, columns] = 1 / m
            else:
                plans[index] = kernels.ship(cost, weights, demand)[0]
            new = m * (parts[:, None, None] * (plans[index].transpose(0, 2, 1) @ points)).sum(0)
            if step == count or np.abs(new - x).max() <= 1e-6 * np.abs(new + centre).max():
                break
            x, moves[index] = new, moves[index] + 1
    found = torch.from_numpy(plans).reshape((*batch, k, n, m)), torch.from_numpy(moves).reshape(batch)
    return found[0].to(y.device, y.dtype), found[1].to(y.device)


@free_plans.register_fake
def _(y: Tensor, supply: Tensor, shares: Tensor, start: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return y.new_empty((*y.shape[:-1], start.shape[-2])), y.new_empty(y.shape[:-3], dtype=torch.int64)


@free_plans.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
    moved = [
        t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(arguments[:4], in_dims[:4], strict=True)
    ]
    return free_plans(*moved, *arguments[4:]), (0, 0)


def _solve(kernel: Callable[..., tuple[np.ndarray, ...]], cost: Tensor, *sums: Tensor) -> list[Tensor]:
    """Call a kernel on flattened problems whose costs are scaled, exactly, to at most 1: no potential overflows."""
    dtype, batch, count = torch.promote_types(cost.dtype, torch.float32), cost.shape[:-2], math.prod(cost.shape[:-2])
    rows, *right = (
        x.detach().to("cpu", torch.float64).reshape(count, *x.shape[len(batch) :]).numpy() for x in (cost, *sums)
    )
    sizes = np.abs(rows)
    largest = sizes.max((1, 2), initial=0)
    if not (largest < np.inf).all():
        largest = sizes.max((1, 2), initial=0, where=sizes < np.inf)
    exponent = np.frexp(largest)[1].clip(-1000)
    right = [x * (right[0].sum(-1, keepdims=True) / x.sum(-1, keepdims=True)) for x in right]
    answer, f, g = kernel(rows * np.ldexp(1.0, -exponent)[:, None, None], *right)
    # Only f + g is determined: the middle keeps both small.
    means = [x.sum(-1, keepdims=True) / max(x.shape[-1], 1) for x in (f, g)]
    shift = np.nan_to_num(means[0] - means[1]) / 2
    most = torch.finfo(dtype).max
    with np.errstate(over="ignore"):
        f, g = (np.ldexp(x, exponent[:, None]).clip(-most, most) for x in (f - shift, g + shift))
    parts = [torch.from_numpy(x) for x in (answer, f, g)]
    return [
        x.reshape(*batch, *x.shape[1:]).to(cost.device, dtype if x.is_floating_point() else x.dtype).contiguous()
        for x in parts
    ]


def _empty(cost: Tensor, *sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(cost.dtype, torch.float32)
    f, g = cost.new_empty(cost.shape[:-1], dtype=dtype), cost.new_empty((*cost.shape[:-2], cost.shape[-1]), dtype=dtype)
    return (cost.new_empty(cost.shape, dtype=dtype) if sums else torch.empty_like(f, dtype=torch.int64)), f, g


def _mapped(operation: Callable[..., Any]) -> Callable[..., Any]:
    """A batch is more leading dimensions; what is not mapped over is repeated."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *tensors: Tensor) -> Any:
        moved = [
            t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0)
            for t, dim in zip(tensors, in_dims, strict=True)
        ]
        return operation(*moved), (0, 0, 0)

    return rule


for _operation in (_assign, _ship):
    _operation.register_fake(_empty)
    _operation.register_vmap(_mapped(_operation))
