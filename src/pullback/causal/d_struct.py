"""NOTEARS with any mechanism and likelihood; D-Struct: several such learners on parts of the data, held together."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from pullback.causal.acyclicity import acyclicity
from pullback.causal.augmented_lagrangian import AugmentedLagrangian
from pullback.causal.least_squares import check_data_sets
from pullback.causal.parallel import beta_subsets, consensus_penalty
from pullback.causal.sampled import SampleLearner
from pullback.causal.structure import StructureResult, positive
from pullback.core.checks import check_floating, check_integer, check_shape
from pullback.core.shapes import Bool, Int, Shaped, Tensor

__all__ = ["DStruct", "d_struct"]


class DStruct(SampleLearner):
    r"""Learn one graph by ``K`` NOTEARS learners, each on its own subset of the samples.

    .. math:: \min \sum_k \Big[ \ell(D_k, f_k) + \lambda_1 \|\text{first}_k\|_1
              + \tfrac{\lambda_2}{2} (\|\text{first}_k\|^2 + \|\text{second}_k\|^2) \Big]
              + \lambda \sum_k \mathrm{MSE}(A_k, \bar A) \quad\text{subject to } h(A_k) = 0

    with ``A_k`` read off the first layer (:class:`ParallelStructureLearner`) and :func:`consensus_penalty`. A learner
    has its own multipliers (:class:`AugmentedLagrangian`). Subsets that lie in different parts of the data look like
    data sets of one domain with other inputs: what all of them find holds beyond one of them. With one learner on all
    samples it is NOTEARS of that mechanism, for which no covariance suffices.

    Args:
        data: ``[*batch, n, d]`` samples. Solved in double precision; measurements are centred.
        learners: ``K >= 1``.
        consensus: ``lambda >= 0``.
        subsets: ``[*#batch, K, size]`` indices of samples; :func:`beta_subsets` of ``n // K`` by default.
        mechanism, hidden: of :class:`ParallelStructureLearner`.
        model: ``"least-squares"``, ``"logistic"`` for bits, ``"poisson"`` for counts: what the mechanisms predict are
            means, logits, or logarithms of rates.
        penalty, ridge: ``lambda_1, lambda_2 >= 0``.
        intercept: whether every mechanism has a constant. ``None``: all but the linear logistic one, as in
            :class:`LogisticSCM`, :func:`fit_order` and the published programs. Bits whose causes are all 0 are then 1
            half of the time, which tells causes from effects; ``True`` for bits that are rare or frequent anyway.
        detach_mean: whether the mean graph is a constant to the gradient.
        allowed: ``[d, d]`` booleans, arcs that there may be.
        required: ``[d, d]`` booleans, arcs that there are: not penalised, in every graph of the result, and counted as
            present where cycles are looked for.
        targets: ``[*batch, n, d]`` booleans, which nodes were set in which sample: their mechanism has no part in it.
        tolerance, max_rho, steps, iterations, relative: of :class:`AugmentedLagrangian`.
        generator: source of the initial weights and of the subsets.

    Raises:
        TypeError: not a floating tensor, options that are no numbers.
        ValueError: bad data (see :func:`second_moments`), more learners than samples, options out of range, required
            arcs with a cycle.

    Warns:
        UserWarning: a subset has fewer than ``2 d`` samples.

    References:
        Berrevoets, Seedat, Imrie, van der Schaar (2023), Differentiable and Transportable Structure Learning, equation
        6; Zheng, Dan, Aragam, Ravikumar, Xing (2020), Learning Sparse Nonparametric DAGs.
    """

    def __init__(
        self,
        data: Shaped[Tensor, "*batch n d"],
        *,
        learners: int = 3,
        consensus: float = 3.0,
        subsets: Int[Tensor, "*batch learners size"] | None = None,
        mechanism: str = "mlp",
        hidden: int = 10,
        model: str = "least-squares",
        penalty: float = 0.01,
        ridge: float = 0.01,
        intercept: bool | None = None,
        detach_mean: bool = False,
        allowed: Bool[Tensor, "d d"] | None = None,
        required: Bool[Tensor, "d d"] | None = None,
        targets: Shaped[Tensor, "*batch n d"] | None = None,
        tolerance: float = 1e-8,
        max_rho: float = 1e16,
        steps: int = 100,
        iterations: int = 300,
        relative: float = 1e-5,
        generator: torch.Generator | None = None,
    ) -> None:
        self._detach_mean, self._consensus = detach_mean, positive("consensus", consensus, zero=True)
        check_shape("data", check_floating("data", data), (None, None))
        check_data_sets("data", data)
        *batch, n, nodes = data.shape
        if n < 2:
            raise ValueError(f"data must have at least two samples (rows), got shape {tuple(data.shape)}")
        if check_integer("learners", learners, 1) > n:
            raise ValueError(f"learners must be at most the number of samples, {n}, got {learners}")
        self._subsets = rows = _subsets(subsets, tuple(batch), n, learners, generator).to(data.device)
        super().__init__(
            data,
            subsets=rows,
            steps=steps,
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
        if rows.shape[-1] < 2 * nodes:
            warnings.warn(
                f"a subset has {rows.shape[-1]} samples, fewer than twice the {nodes} nodes", UserWarning, stacklevel=2
            )
        self._solver = AugmentedLagrangian(
            self._start(),
            self._loss,
            lambda parameters, *_: acyclicity(self._graphs(parameters["first"]), method="exponential"),
            data=self._given,
            batch_ndim=1,
            l1=self._strengths(),
            tolerance=tolerance,
            max_rho=max_rho,
            steps=steps,
            iterations=iterations,
            relative=relative,
            keep=mechanism != "linear",  # as the official programs do
        )

    def _ended(self) -> bool:
        return self._solver.finished

    def _advance(self) -> None:
        self._solver.step()

    def _loss(self, parameters: Mapping[str, Tensor], x: Tensor, free: Tensor | None = None) -> Tensor:
        """Return the objective of every problem but for the constraint and the absolute values, ``[rows]``."""
        value = self._fit(parameters, x, free)
        if self._consensus > 0 and self.module.learners > 1:
            graphs = self.module.graph_of(parameters["first"])
            value = value + self._consensus * consensus_penalty(graphs, detach_mean=self._detach_mean)
        return value

    def _answer(self) -> StructureResult:
        found = self._solver.result()
        curve = found.history.reshape(-1, *self._batch, self.module.learners)
        return self._found(found.parameters, {"acyclicity": curve}, found.converged)

    def _state(self) -> dict[str, Any]:
        return {"subsets": self._subsets, "solver": self._solver.state_dict()}

    def _load(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state["subsets"], Tensor) or state["subsets"].shape != self._subsets.shape:
            raise ValueError(
                f"state: subsets must have shape {tuple(self._subsets.shape)}, of the same data and options"
            )
        self._solver.load_state_dict(state["solver"])
        self._subsets = state["subsets"].to(self._subsets, copy=True)
        for own, drawn in zip(self._given, self._taken_rows(self._subsets), strict=True):
            own.copy_(drawn)  # the solver reads the same memory


def d_struct(data: Shaped[Tensor, "*batch n d"], **options: Any) -> StructureResult:
    """Learn one graph by several NOTEARS learners on parts of the data: :class:`DStruct` run to its end.

    Args:
        data: ``[*batch, n, d]`` samples.
        **options: those of :class:`DStruct`.

    Returns:
        :class:`StructureResult` in the dtype of the data (half precision: float32): ``weights`` is the mean of the
        learners' graphs, which are ``restart_weights``; ``converged`` says whether every ``h`` is within the tolerance.
        Of ``"mlp"`` and ``"sobolev"`` weights are norms, without signs.

    Raises:
        TypeError, ValueError: as :class:`DStruct`.
        ConvergenceError: the objective is not finite.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> cause = 2 * torch.randn(300, 1, generator=g)
        >>> x = torch.cat([2 * torch.sin(cause) + 0.5 * torch.randn(300, 1, generator=g), cause], 1)
        >>> d_struct(x, learners=2, generator=g).graph().tolist()
        [[False, False], [True, False]]

    References:
        Berrevoets, Seedat, Imrie, van der Schaar (2023), Differentiable and Transportable Structure Learning.
    """
    return DStruct(data, **options).run()


def _subsets(
    subsets: Tensor | None, batch: tuple[int, ...], n: int, learners: int, generator: torch.Generator | None
) -> Tensor:
    """Return the rows of every learner, ``[*batch, K, size]``."""
    if subsets is None:
        if learners == 1:
            return torch.arange(n).expand(*batch, 1, n)
        return beta_subsets(n, learners, generator=generator).expand(*batch, learners, -1)
    if not isinstance(subsets, Tensor) or subsets.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"subsets must be an integer tensor, got {getattr(subsets, 'dtype', type(subsets).__name__)}")
    if subsets.ndim < 2 or subsets.shape[-2] != learners or subsets.shape[-1] == 0:
        raise ValueError(f"subsets must have shape (..., {learners}, size), got {tuple(subsets.shape)}")
    if bool((subsets < 0).any()) or bool((subsets >= n).any()):
        raise ValueError(f"subsets must hold indices in 0..{n - 1}")
    try:
        return subsets.expand(*batch, *subsets.shape[-2:]).long()
    except RuntimeError as error:
        raise ValueError(f"subsets must fit the batch {batch} of the data, got {tuple(subsets.shape)}") from error
