"""NOTEARS: structure learning by the augmented Lagrangian of the trace-exponential constraint."""

from __future__ import annotations

import math
from typing import Any

import torch

from pullback.causal.structure import CovarianceLearner, StructureResult, positive
from pullback.core.checks import check_integer
from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Shaped, Tensor
from pullback.kernels.orthantwise import minimise_lagrangian

__all__ = ["NOTEARS", "notears"]


class NOTEARS(CovarianceLearner):
    r"""Learn a DAG by the augmented Lagrangian of :math:`h(W) = \mathrm{tr}\,e^{W\circ W} - d = 0`.

    Each :meth:`step` solves the inner problem

    .. math:: \min_W \tfrac12\mathrm{tr}((I-W)^TC(I-W)) + \lambda\|W\|_1 + \alpha h + \tfrac\rho2 h^2

    by an orthant-wise quasi-Newton method, which never accepts an objective that is not finite or does not fall. Where
    ``h`` has fallen to a quarter, ``alpha`` grows by ``rho h``; elsewhere the solution is dropped and ``rho`` grows
    tenfold. Every graph of a batch has its own ``alpha`` and ``rho``.

    The result is identifiable for equal noise variances; on standardised data the order is not determined by the score.

    Args:
        data: ``[*batch, n, d]`` samples or ``[*batch, d, d]`` covariance. Solved in double precision.
        covariance: whether ``data`` is a covariance.
        penalty: ``lambda >= 0``, in the unit of the covariance.
        tolerance: stop when ``h`` is below, > 0.
        steps: inner problems at most.
        max_penalty: bound of ``rho``, > 0.
        iterations: quasi-Newton steps an inner problem.

    Raises:
        TypeError: not a floating tensor, options that are no numbers.
        ValueError: bad data (see :func:`second_moments`), options out of range.

    References:
        Zheng, Aragam, Ravikumar, Xing (2018), DAGs with NO TEARS, algorithm 1.
    """

    curve = "acyclicity"

    def __init__(
        self,
        data: Shaped[Tensor, "*batch n d"],
        *,
        covariance: bool = False,
        penalty: float = 0.1,
        tolerance: float = 1e-8,
        steps: int = 100,
        max_penalty: float = 1e16,
        iterations: int = 500,
    ) -> None:
        self._penalty = positive("penalty", penalty, zero=True)
        self._tolerance = positive("tolerance", tolerance)
        self._max_penalty = positive("max_penalty", max_penalty)
        self._iterations = check_integer("iterations", iterations, 1)
        super().__init__(data, covariance, check_integer("steps", steps, 1))
        row = self._moments.new_zeros(len(self._moments))
        self._table = {
            "weights": torch.zeros_like(self._moments),
            "alpha": row,
            "rho": row + 1,
            "acyclicity": row + math.inf,
            "ended": row.bool(),
            "converged": row.bool(),
        }

    def _ended(self) -> bool:
        return bool(self._table["ended"].all())

    def _advance(self) -> None:
        rows = (~self._table["ended"]).nonzero().squeeze(-1)
        names = ("weights", "alpha", "rho", "acyclicity")
        weights, alpha, rho, last = (self._table[name][rows] for name in names)
        solved = minimise_lagrangian(
            weights, self._moments[rows], alpha, rho, self._penalty, iterations=self._iterations
        )
        if not bool(solved.objective.isfinite().all()):
            raise ConvergenceError("NOTEARS: the objective is not finite; scale the data", None)
        falls = solved.acyclicity <= 0.25 * last
        largest = ~falls & (10 * rho >= self._max_penalty)
        taken = falls | largest
        h = torch.where(taken, solved.acyclicity, last)
        new = {
            "weights": torch.where(taken[:, None, None], solved.weights, weights),
            "alpha": torch.where(falls, alpha + rho * solved.acyclicity, alpha),
            "rho": torch.where(falls, rho, 10 * rho),
            "acyclicity": h,
            "ended": largest | (h <= self._tolerance),
            "converged": h <= self._tolerance,
        }
        self._keep(rows, new)
        self._history.append(self._table["acyclicity"])


def notears(data: Shaped[Tensor, "*batch n d"], **options: Any) -> StructureResult:
    """Learn a DAG by the augmented Lagrangian of the trace-exponential constraint: :class:`NOTEARS` run to its end.

    Args:
        data: ``[*batch, n, d]`` samples or, with ``covariance=True``, ``[*batch, d, d]`` covariance.
        **options: those of :class:`NOTEARS`.

    Returns:
        :class:`StructureResult` in the dtype of the data (half precision: float32). ``converged`` says whether
        ``h <= tolerance`` was reached. Threshold with ``result.graph(0.3)``.

    Raises:
        TypeError: not a floating tensor, options that are no numbers or do not exist.
        ValueError: bad data (see :func:`second_moments`), options out of range.
        ConvergenceError: the weights did not stay finite.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> cause = torch.randn(500, 1, generator=g)
        >>> x = torch.cat([2 * cause + torch.randn(500, 1, generator=g), cause], 1)
        >>> notears(x).graph().tolist()
        [[False, False], [True, False]]

    References:
        Zheng, Aragam, Ravikumar, Xing (2018), DAGs with NO TEARS, algorithm 1.
    """
    return NOTEARS(data, **options).run()
