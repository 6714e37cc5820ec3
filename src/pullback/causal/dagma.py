"""DAGMA: structure learning behind the log-determinant barrier of the M-matrices."""

from __future__ import annotations

import math
from typing import Any

import torch

from pullback.causal.acyclicity import acyclicity
from pullback.causal.least_squares import least_squares_score
from pullback.causal.parallel import MECHANISMS
from pullback.causal.sampled_dagma import SampledDAGMA
from pullback.causal.structure import CovarianceLearner, StructureResult, positive
from pullback.core.checks import check_choice, check_integer
from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Bool, Shaped, Tensor
from pullback.kernels.barrier import BarrierState, barrier_steps

__all__ = ["DAGMA", "dagma"]

_PATH = ((1.0, 1.0), (0.1, 0.9), (0.01, 0.8), (0.001, 0.7), (0.0001, 0.6))


class DAGMA(CovarianceLearner):
    r"""Learn a DAG on the central path of the log-determinant barrier.

    For every ``(mu, s)`` of the path, from the last solution,

    .. math:: \min_W\; \mu\big(\tfrac12\mathrm{tr}((I-W)^TC(I-W)) + \lambda\|W\|_1\big)
              - \log\det(sI - W\circ W) + d\log s

    by Adam. A graph whose step leaves the domain (the M-matrices) takes it back and halves its step size; with
    ``s <= 0.9`` it starts the point anew with a larger ``s``. Every graph of a batch walks along the path by itself.

    The result is identifiable for equal noise variances; on standardised data the order is not determined by the score.

    Args:
        data: ``[*batch, n, d]`` samples or ``[*batch, d, d]`` covariance. Solved in double precision.
        covariance: whether ``data`` is a covariance.
        penalty: ``lambda >= 0``, in the unit of the covariance.
        path: pairs ``(mu, s)``, both > 0.
        iterations: Adam steps a pair; the last pair gets twice as many.
        lr: step size, > 0.
        tolerance: relative change of the objective between checks below which a pair is finished, > 0.
        check_every: Adam steps between checks: one :meth:`step`.
        allowed: ``[d, d]`` booleans, arcs that there may be; all by default.
        required: ``[d, d]`` booleans, arcs that there are: not penalised, in every graph of the result, and counted as
            present in the determinant.

    Raises:
        TypeError: not a floating tensor, options that are no numbers.
        ValueError: bad data (see :func:`second_moments`), options out of range, required arcs with a cycle.

    References:
        Bello, Aragam, Ravikumar (2022), DAGMA: Learning DAGs via M-matrices, algorithm 1 and section 4.
    """

    curve = "objective"

    def __init__(
        self,
        data: Shaped[Tensor, "*batch n d"],
        *,
        covariance: bool = False,
        penalty: float = 0.03,
        path: tuple[tuple[float, float], ...] = _PATH,
        iterations: int = 30_000,
        lr: float = 3e-4,
        tolerance: float = 1e-6,
        check_every: int = 1000,
        allowed: Bool[Tensor, "d d"] | None = None,
        required: Bool[Tensor, "d d"] | None = None,
    ) -> None:
        self._penalty = positive("penalty", penalty, zero=True)
        self._lr = positive("lr", lr)
        self._tolerance = positive("tolerance", tolerance)
        self._check_every = min(
            check_integer("check_every", check_every, 1), check_integer("iterations", iterations, 1)
        )
        if not path:
            raise ValueError("path must have at least one pair (mu, s)")
        points = [(positive("mu of path", mu), positive("s of path", s)) for mu, s in path]
        chunks = [math.ceil(iterations * passes / self._check_every) for passes in (*[1] * (len(path) - 1), 2)]
        super().__init__(data, covariance, sum(chunks), allowed, required)
        self._mu, self._scale = self._moments.new_tensor(points).unbind(-1)
        self._budget = torch.tensor(chunks, device=self._moments.device)
        zeros, row = torch.zeros_like(self._moments), self._moments.new_zeros(len(self._moments))
        self._table = {
            "weights": zeros,
            "start": zeros.clone(),  # of this point of the path
            "mean": zeros.clone(),
            "square": zeros.clone(),
            "direction": zeros.clone(),
            "rate": row + self._lr,
            "first_rate": row + self._lr,
            "scale": row + self._scale[0],
            "objective": row + math.inf,
            "step": row.long(),
            "point": row.long(),
            "chunk": row.long(),
            "converged": row.bool(),
        }

    def _ended(self) -> bool:
        return bool((self._table["point"] >= len(self._mu)).all())

    def _advance(self) -> None:
        rows = (self._table["point"] < len(self._mu)).nonzero().squeeze(-1)
        now = {name: tensor[rows] for name, tensor in self._table.items()}
        mu, moments = self._mu[now["point"]], self._moments[rows]
        walk = BarrierState(
            now["weights"],
            now["mean"],
            now["square"],
            now["direction"],
            now["rate"],
            now["step"],
            torch.zeros_like(rows, dtype=torch.bool),
        )
        walk = barrier_steps(
            walk,
            moments,
            mu,
            now["scale"],
            self._penalty,
            self._check_every,
            allowed=self._allowed,
            required=self._required,
        )
        objective = self._objective(walk.weights, moments, mu, now["scale"])
        if not bool((objective.isfinite() | walk.left).all()):
            raise ConvergenceError("DAGMA: the objective is no longer finite; scale the data", None)
        change = (objective - now["objective"]).abs()
        settled = ~walk.left & ((change <= self._tolerance * now["objective"].abs()) & now["objective"].isfinite())
        settled |= walk.rate <= 1e-16
        now |= walk._asdict() | {"objective": objective, "chunk": now["chunk"] + 1}
        left = now.pop("left")
        self._restart(now, left, now["start"], 0.5 * now["first_rate"], now["scale"] + 0.1)
        advance = settled | (now["chunk"] >= self._budget[now["point"]])
        now["point"] = now["point"] + advance
        now["chunk"] = torch.where(advance, 0, now["chunk"])
        following = self._scale[now["point"].clamp(max=len(self._mu) - 1)]
        self._restart(now, advance, now["weights"], torch.full_like(now["rate"], self._lr), following)
        now["converged"] = advance & settled
        self._keep(rows, now)
        self._history.append(self._table["objective"].index_copy(0, rows, objective))

    def _objective(self, weights: Tensor, moments: Tensor, mu: Tensor, scale: Tensor) -> Tensor:
        fit = 0.5 * weights.shape[-1] * least_squares_score(weights, moments)
        size = weights.abs()
        if self._required is not None:
            weights = torch.where(self._required, (weights.square() + 1).sqrt(), weights)
            size = size * ~self._required
        # h of scale s is h of scale 1 of the weights over sqrt(s)
        barrier = acyclicity(weights / scale.sqrt()[:, None, None])
        return mu * (fit + self._penalty * size.sum((-2, -1))) + barrier

    @staticmethod
    def _restart(now: dict[str, Tensor], where: Tensor, start: Tensor, rate: Tensor, scale: Tensor) -> None:
        """Begin a point of the path: Adam without memory, from ``start``."""
        matrix = where[:, None, None]
        for name in ("mean", "square", "direction"):
            now[name] = now[name].masked_fill(matrix, 0.0)
        for name in ("weights", "start"):
            now[name] = torch.where(matrix, start, now[name])
        for name in ("rate", "first_rate"):
            now[name] = torch.where(where, rate, now[name])
        now["scale"] = torch.where(where, scale, now["scale"])
        now["step"] = now["step"].masked_fill(where, 0)
        now["objective"] = now["objective"].masked_fill(where, math.inf)


def dagma(
    data: Shaped[Tensor, "*batch n d"],
    *,
    mechanism: str = "linear",
    model: str = "least-squares",
    targets: Shaped[Tensor, "*batch n d"] | None = None,
    **options: Any,
) -> StructureResult:
    """Learn a DAG on the central path of the log-determinant barrier.

    The linear model of measurements needs second moments alone: :class:`DAGMA` run to its end. The others need samples:
    :class:`SampledDAGMA`.

    Args:
        data: ``[*batch, n, d]`` samples or, with ``covariance=True``, ``[*batch, d, d]`` covariance.
        mechanism: ``"linear"``; ``"mlp"`` or ``"sobolev"``, whose weights are norms, without signs.
        model: ``"least-squares"``, ``"logistic"`` for bits, ``"poisson"`` for counts.
        targets: ``[*batch, n, d]`` booleans, which nodes were set in which sample.
        **options: those of :class:`DAGMA` or :class:`SampledDAGMA`.

    Returns:
        :class:`StructureResult` in the dtype of the data (half precision: float32). ``converged`` says whether the
        tolerance was met at the last point of the path. Threshold with ``result.graph(0.3)``.

    Raises:
        TypeError: not a floating tensor, options that are no numbers or do not exist.
        ValueError: bad data (see :func:`second_moments`), options out of range, an unknown mechanism or model.
        ConvergenceError: the weights did not stay finite.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> cause = torch.randn(500, 1, generator=g)
        >>> x = torch.cat([2 * cause + torch.randn(500, 1, generator=g), cause], 1)
        >>> dagma(x, iterations=4000, lr=1e-3).graph().tolist()
        [[False, False], [True, False]]

    References:
        Bello, Aragam, Ravikumar (2022), DAGMA: Learning DAGs via M-matrices, algorithm 1 and section 4.
    """
    if mechanism == "linear" and model == "least-squares" and targets is None:
        return DAGMA(data, **options).run()
    check_choice("mechanism", mechanism, MECHANISMS)
    if options.pop("covariance", False):
        raise ValueError(f"mechanism {mechanism!r}, model {model!r} and targets need samples, got covariance=True")
    return SampledDAGMA(data, mechanism=mechanism, model=model, targets=targets, **options).run()
