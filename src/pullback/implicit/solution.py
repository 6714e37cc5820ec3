"""What every solver returns: the solution, how good it is, and why the solver stopped, problem by problem."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple, Protocol

from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Bool, Float, Int, Tensor

__all__ = ["Reason", "Solution", "describe", "raise_unless_converged"]


class Reason(IntEnum):
    """Why a solver stopped, the numbers in ``Solution.reason``.

    Attributes:
        CONVERGED: the residual is within the tolerance.
        MAX_ITERATIONS: the iterations were used up.
        STALLED: no step makes the residual smaller: a singular or inconsistent system, a step below the resolution of
            the arithmetic, a function without the root or minimum that was asked for.
        DIVERGED: the iteration reached a number that is infinite or NaN; the solution is the last point before it.

    Example:
        >>> Reason(2).name
        'STALLED'
    """

    CONVERGED = 0
    MAX_ITERATIONS = 1
    STALLED = 2
    DIVERGED = 3


class Solution(NamedTuple):
    """What a solver returns.

    Attributes:
        value: the solution, shaped like the initial guess or the right side; with its derivatives.
        residual: ``[*batch]`` norm of what should be zero.
        iterations: ``[*batch]`` int64, iterations (for Krylov methods: products with the matrix).
        reason: ``[*batch]`` int64, why each problem stopped: the numbers of :class:`Reason`.
        aux: with ``has_aux`` what the function returned beside its value at the solution, with derivatives.
    """

    value: Any
    residual: Float[Tensor, "*batch"]
    iterations: Int[Tensor, "*batch"]
    reason: Int[Tensor, "*batch"]
    aux: Any = ()

    @property
    def converged(self) -> Bool[Tensor, "*batch"]:
        """``[*batch]`` whether the residual is within the tolerance."""
        return self.reason == Reason.CONVERGED


class _Stopped(Protocol):
    """Any result that says where a solver stopped."""

    @property
    def residual(self) -> Tensor: ...
    @property
    def iterations(self) -> Tensor: ...
    @property
    def reason(self) -> Tensor: ...
    @property
    def converged(self) -> Tensor: ...


_IN_WORDS = {
    Reason.MAX_ITERATIONS: "the iterations were used up",
    Reason.STALLED: "no step reduces the residual",
    Reason.DIVERGED: "a number became infinite or NaN",
}


def describe(name: str, solution: _Stopped) -> str:
    """Return the message of a solver that did not converge, with its numbers and the reasons that occur."""
    failed = ~solution.converged
    count, total = int(failed.sum()), failed.numel()
    who = f"{count} of {total} systems" if total > 1 else "the system"
    why = " or ".join(words for reason, words in _IN_WORDS.items() if bool((solution.reason == reason).any()))
    residual, iterations = float(solution.residual[failed].max()), int(solution.iterations[failed].max())
    return f"{name}: {who} did not converge, residual {residual:.3g} after {iterations} iterations: {why}"


def raise_unless_converged(name: str, solution: _Stopped, detail: str = "") -> None:
    """Raise ``ConvergenceError``, which carries the solution, unless every problem converged."""
    if not bool(solution.converged.all()):
        raise ConvergenceError(describe(name, solution) + detail, solution)
