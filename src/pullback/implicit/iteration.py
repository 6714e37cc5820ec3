"""The one loop of all solvers: a method says how it starts and how it steps, each row stops by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch.utils import _pytree as pytree

from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.implicit.solution import Reason

__all__ = ["Found", "Map", "Method", "State", "backtrack", "dot", "iterate", "norm", "ratio", "times"]

Map = Callable[[Tensor], Tensor]


class State(NamedTuple):
    """Where a method stands in each of ``count`` problems.

    Attributes:
        x: ``[count, n]`` the points.
        residual: ``[count]`` norm of what should be zero there.
        stalled: ``[count]`` whether no step leads on from there.
        memory: what else the method carries, a nesting of tensors ``[count, ...]`` (other things belong to all rows).
    """

    x: Float[Tensor, "count n"]
    residual: Float[Tensor, "count"]
    stalled: Bool[Tensor, "count"]
    memory: Any

    @staticmethod
    def moving(x: Tensor, residual: Tensor, memory: Any) -> State:
        """Return the state of a method that has not stalled anywhere."""
        return State(x, residual, torch.zeros_like(residual, dtype=torch.bool), memory)


@runtime_checkable
class Method(Protocol):
    """A method as two functions without derivatives; it need not know which rows have stopped."""

    def init(self, x: Float[Tensor, "count n"]) -> State:
        """Return the state at the start."""

    def step(self, state: State, active: Bool[Tensor, "count"]) -> State:
        """Return the next state; what it says of rows that are not ``active`` is not used."""


class Found(NamedTuple):
    """Where an iteration stopped.

    Attributes:
        x: ``[count, n]`` the points.
        residual: ``[count]`` norm of what should be zero.
        iterations: ``[count]`` steps that each row took.
        reason: ``[count]`` numbers of :class:`Reason`.
        memory: what else the method carried.
    """

    x: Float[Tensor, "count n"]
    residual: Float[Tensor, "count"]
    iterations: Int[Tensor, "count"]
    reason: Int[Tensor, "count"]
    memory: Any


def iterate(
    method: Method, x: Float[Tensor, "count n"], tolerance: float | Float[Tensor, "count"], limit: int
) -> Found:
    """Step from ``x`` until each row is within its tolerance, can go no further, or ``limit`` steps are done.

    A row that stops keeps its state while the others go on; one that runs into infinity or NaN keeps the last state
    before that.
    """
    state = method.init(x)
    iterations = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    diverged = ~torch.isfinite(state.residual)
    active = _going(state, tolerance)
    taken, everyone, anyone = 0, bool(active.all()), bool(active.any())
    while taken < limit and anyone:
        taken += 1
        new = method.step(state, active)
        going = _going(new, tolerance)
        if everyone and bool(going.all()):  # nothing to keep count of
            state = new
            continue
        going = active & going
        finite = torch.isfinite(new.residual)
        diverged = diverged | (active & ~finite)
        state = _advance(active & finite, new, state)
        iterations = torch.where(active & ~going, taken, iterations)
        active, everyone, anyone = going, False, bool(going.any())
    iterations = torch.where(active, taken, iterations)
    reason = torch.full_like(iterations, Reason.MAX_ITERATIONS)
    reason[state.stalled] = Reason.STALLED
    reason[diverged] = Reason.DIVERGED
    reason[state.residual <= tolerance] = Reason.CONVERGED
    return Found(state.x, state.residual, iterations, reason, state.memory)


def _going(state: State, tolerance: float | Tensor) -> Bool[Tensor, "count"]:
    # Of truth values, a > b is a & ~b: every operation counts in a loop over small problems.
    return ((state.residual > tolerance) & (state.residual < torch.inf)) > state.stalled


def _advance(rows: Bool[Tensor, "count"], new: State, old: State) -> State:
    """Return the new state in some rows and the old one in the others."""
    if bool(rows.all()):
        return new

    def choose(after: Any, before: Any) -> Any:
        if not isinstance(after, Tensor) or after.shape != before.shape:
            return after  # a memory that still grows: that of rows that have stopped is not used any more
        return torch.where(rows.reshape(-1, *(1,) * (after.ndim - 1)), after, before)

    result: State = pytree.tree_map(choose, new, old)
    return result


def backtrack(
    evaluate: Callable[[Tensor], tuple[Tensor, ...]],
    accept: Callable[[Tensor, tuple[Tensor, ...]], Bool[Tensor, "count"]],
    x: Float[Tensor, "count n"],
    current: tuple[Tensor, ...],
    direction: Float[Tensor, "count n"],
    searching: Bool[Tensor, "count"],
    halvings: int,
) -> tuple[Tensor, tuple[Tensor, ...], Bool[Tensor, "count"]]:
    """Halve the step of each row until it is accepted.

    Args:
        evaluate: what is computed at a point, tensors ``[count, ...]``.
        accept: of the length ``[count]`` of the steps and what was computed there; false for NaN.
        x: where to start.
        current: what was computed at ``x``.
        direction: the whole step.
        searching: rows that search; the others stay.
        halvings: after so many a row gives up.

    Returns:
        The new points, what was computed there, and which rows found none.
    """
    direction = torch.where(searching[:, None], direction, 0)
    length = x.new_ones(len(x))
    start = x
    for _ in range(halvings):
        if not bool(searching.any()):
            break
        trial = start + length[:, None] * direction
        found = evaluate(trial)
        good = searching & accept(length, found)
        if bool(good.all()):
            return trial, found, ~good
        x = torch.where(good[:, None], trial, x)
        current = tuple(
            torch.where(good.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
            for new, old in zip(found, current, strict=True)
        )
        searching = searching & ~good
        length = torch.where(searching, length / 2, length)
    return x, current, searching


def dot(a: Float[Tensor, "*batch n"], b: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Return the inner product of each row."""
    return (a * b).sum(-1)


def norm(a: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Return the 2-norm of each row."""
    return torch.linalg.vector_norm(a, dim=-1)


def ratio(top: Tensor | float, bottom: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """Return ``top / bottom``, and 0 where ``bottom`` is 0."""
    return (top / bottom).masked_fill(bottom == 0, 0)


def times(v: Float[Tensor, "*#batch m"], matrix: Float[Tensor, "*#batch m n"]) -> Float[Tensor, "*batch n"]:
    """Return each row times its matrix, ``v^T A``."""
    return (v[..., None, :] @ matrix)[..., 0, :]
