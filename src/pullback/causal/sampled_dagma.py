"""DAGMA with any mechanism and likelihood: the central path, each point by a quasi-Newton method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pullback.causal.acyclicity import acyclicity
from pullback.causal.sampled import SampleLearner
from pullback.causal.structure import StructureResult, positive
from pullback.core.checks import check_integer
from pullback.core.errors import ConvergenceError
from pullback.core.rows import Rows
from pullback.core.shapes import Bool, Shaped, Tensor
from pullback.kernels.orthantwise import minimise_orthantwise

__all__ = ["SampledDAGMA"]

_PATH = ((1.0, 1.0), (0.1, 1.0), (0.01, 1.0), (0.001, 1.0), (0.0001, 1.0))


class SampledDAGMA(SampleLearner):
    r"""Learn a DAG on the central path of the log-determinant barrier, from samples.

    For every ``(mu, s)`` of the path, one :meth:`step`, from the last solution,

    .. math:: \min \mu\big(\ell(D, f) + \lambda_1 \|\text{first}\|_1
              + \tfrac{\lambda_2}{2} (\|\text{first}\|^2 + \|\text{second}\|^2)\big)
              - \log\det(sI - A\circ A) + d\log s

    with ``A`` read off the first layer (:class:`ParallelStructureLearner`), by an orthant-wise quasi-Newton method,
    which accepts no point outside of the domain. First layers begin at zero, inside of it.

    Args:
        data: ``[*batch, n, d]`` samples. Solved in double precision; measurements are centred.
        mechanism, hidden: of :class:`ParallelStructureLearner`.
        model, intercept, targets, allowed, required: of :class:`DStruct`.
        penalty, ridge: ``lambda_1, lambda_2 >= 0``.
        path: pairs ``(mu, s)``, both > 0; where a solution is outside of the domain of the next ``s``, the last stays.
        iterations: quasi-Newton steps a pair.
        relative: a pair is finished after two steps in a row that lower the objective by less than this part, > 0.
        generator: source of the initial weights.

    Raises:
        TypeError: not a floating tensor, options that are no numbers.
        ValueError: bad data (see :func:`second_moments`), options out of range, required arcs with a cycle.

    References:
        Bello, Aragam, Ravikumar (2022), DAGMA, algorithm 1 and section 5 (there by Adam).
    """

    def __init__(
        self,
        data: Shaped[Tensor, "*batch n d"],
        *,
        mechanism: str = "mlp",
        hidden: int = 10,
        model: str = "least-squares",
        targets: Shaped[Tensor, "*batch n d"] | None = None,
        allowed: Bool[Tensor, "d d"] | None = None,
        required: Bool[Tensor, "d d"] | None = None,
        penalty: float = 0.02,
        ridge: float = 0.005,
        intercept: bool | None = None,
        path: tuple[tuple[float, float], ...] = _PATH,
        iterations: int = 300,
        relative: float = 1e-6,
        generator: torch.Generator | None = None,
    ) -> None:
        if not path:
            raise ValueError("path must have at least one pair (mu, s)")
        self._path = [(positive("mu of path", mu), positive("s of path", s)) for mu, s in path]
        self._iterations, self._relative = check_integer("iterations", iterations, 1), positive("relative", relative)
        super().__init__(
            data,
            subsets=None,
            steps=len(path),
            mechanism=mechanism,
            hidden=hidden,
            model=model,
            penalty=penalty,
            ridge=ridge,
            intercept=intercept,
            allowed=allowed,
            required=required,
            targets=targets,
            generator=generator,
        )
        start = self._start()
        start["first"] = torch.zeros_like(start["first"])
        self._rows = Rows.of(start, 1)
        self._strength = self._rows.pack(
            {name: torch.zeros_like(value) + self._strengths().get(name, 0.0) for name, value in start.items()}
        )[0]
        self._x = self._rows.pack(start)
        self._scale = self._x.new_full((len(self._x),), self._path[0][1])
        self._history: list[Tensor] = []

    def _ended(self) -> bool:
        return False

    def _advance(self) -> None:
        mu, scale = self._path[self.taken]
        everything = torch.arange(len(self._x), device=self._x.device)
        with torch.no_grad():
            inside = self._barrier(self._named(self._x)["first"], torch.full_like(self._scale, scale)).isfinite()
        self._scale = torch.where(inside, scale, self._scale)

        def evaluate(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                parameters = self._named(x)
                barrier = self._barrier(parameters["first"], self._scale[rows])
                value = mu * self._fit(parameters, *(given[rows] for given in self._given)) + barrier
                (gradient,) = torch.autograd.grad(value.sum(), x)
            return value.detach(), gradient, barrier.detach()

        self._x, value, barrier = minimise_orthantwise(
            evaluate, self._x, mu * self._strength, iterations=self._iterations, tolerance=self._relative
        )
        if not bool(value.isfinite().all()):
            raise ConvergenceError("DAGMA: the objective is not finite; scale the data", None)
        self._history.append(barrier[everything])

    def _named(self, x: Tensor) -> dict[str, Tensor]:
        parts = x.split(list(self._rows.sizes), -1)
        names = [name for name, _ in self.module.named_parameters()]
        return {
            name: part.reshape(len(x), *shape)
            for name, part, shape in zip(names, parts, self._rows.shapes, strict=True)
        }

    def _barrier(self, first: Tensor, scale: Tensor) -> Tensor:
        """Return the log-determinants ``[rows]``: h of scale s is h of scale 1 of the weights over sqrt(s)."""
        return acyclicity(self._graphs(first).squeeze(1) / scale.sqrt()[:, None, None])

    def _answer(self) -> StructureResult:
        curve = torch.stack(self._history).reshape(-1, *self._batch) if self._history else self._scale.new_zeros(0)
        converged = torch.full_like(self._scale, self.taken == self.steps, dtype=torch.bool)
        return self._found(self._named(self._x), {"acyclicity": curve}, converged)

    def _state(self) -> dict[str, Any]:
        return {"x": self._x, "scale": self._scale, "history": list(self._history)}

    def _load(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state["x"], Tensor) or state["x"].shape != self._x.shape:
            raise ValueError(f"state: x must have shape {tuple(self._x.shape)}, of the same data and options")
        self._x, self._scale = state["x"].to(self._x, copy=True), state["scale"].to(self._scale, copy=True)
        self._history = list(state["history"])
