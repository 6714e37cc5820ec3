"""NOTEARS: structure learning by the augmented Lagrangian of the trace-exponential constraint."""

from __future__ import annotations

import math
from typing import Any

import torch

from pullback.causal.d_struct import DStruct
from pullback.causal.parallel import MECHANISMS
from pullback.causal.structure import CovarianceLearner, StructureResult, positive
from pullback.core.checks import check_choice, check_integer
from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Bool, Shaped, Tensor
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
        allowed: ``[d, d]`` booleans, arcs that there may be; all by default.
        required: ``[d, d]`` booleans, arcs that there are: not penalised, in every graph of the result, and counted as
            present in ``h``.

    Raises:
        TypeError: not a floating tensor, options that are no numbers.
        ValueError: bad data (see :func:`second_moments`), options out of range, required arcs with a cycle.

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
        allowed: Bool[Tensor, "d d"] | None = None,
        required: Bool[Tensor, "d d"] | None = None,
    ) -> None:
        self._penalty = positive("penalty", penalty, zero=True)
        self._tolerance = positive("tolerance", tolerance)
        self._max_penalty = positive("max_penalty", max_penalty)
        self._iterations = check_integer("iterations", iterations, 1)
        super().__init__(data, covariance, check_integer("steps", steps, 1), allowed, required)
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
            weights,
            self._moments[rows],
            alpha,
            rho,
            self._penalty,
            allowed=self._allowed,
            required=self._required,
            iterations=self._iterations,
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


def notears(
    data: Shaped[Tensor, "*batch n d"],
    *,
    mechanism: str = "linear",
    model: str = "least-squares",
    targets: Shaped[Tensor, "*batch n d"] | None = None,
    **options: Any,
) -> StructureResult:
    """Learn a DAG by the augmented Lagrangian of the trace-exponential constraint.

    The linear model of measurements needs second moments alone: :class:`NOTEARS` run to its end. The others need
    samples: :class:`DStruct` with one learner.

    Args:
        data: ``[*batch, n, d]`` samples or, with ``covariance=True``, ``[*batch, d, d]`` covariance.
        mechanism: ``"linear"``; ``"mlp"`` or ``"sobolev"``, whose weights are norms, without signs.
        model: ``"least-squares"``, ``"logistic"`` for bits, ``"poisson"`` for counts.
        targets: ``[*batch, n, d]`` booleans, which nodes were set in which sample.
        **options: those of :class:`NOTEARS`, or of :class:`DStruct` without ``learners``, ``consensus``, ``subsets``.

    Returns:
        :class:`StructureResult` in the dtype of the data (half precision: float32). ``converged`` says whether
        ``h <= tolerance`` was reached. Threshold with ``result.graph(0.3)``.

    Raises:
        TypeError: not a floating tensor, options that are no numbers or do not exist.
        ValueError: bad data (see :func:`second_moments`), options out of range, an unknown mechanism or model.
        ConvergenceError: the weights did not stay finite.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> cause = torch.randn(500, 1, generator=g)
        >>> x = torch.cat([2 * cause + torch.randn(500, 1, generator=g), cause], 1)
        >>> notears(x).graph().tolist()
        [[False, False], [True, False]]

    References:
        Zheng, Aragam, Ravikumar, Xing (2018), DAGs with NO TEARS, algorithm 1; Zheng, Dan, Aragam, Ravikumar, Xing
        (2020), Learning Sparse Nonparametric DAGs.
    """
    if mechanism == "linear" and model == "least-squares" and targets is None:
        return NOTEARS(data, **options).run()
    check_choice("mechanism", mechanism, MECHANISMS)
    if options.pop("covariance", False):
        raise ValueError(f"mechanism {mechanism!r}, model {model!r} and targets need samples, got covariance=True")
    return DStruct(data, learners=1, consensus=0.0, mechanism=mechanism, model=model, targets=targets, **options).run()
