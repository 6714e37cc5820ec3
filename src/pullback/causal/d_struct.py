"""NOTEARS with any mechanism and likelihood; D-Struct: several such learners on parts of the data, held together."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.func import functional_call

from pullback.causal.acyclicity import acyclicity
from pullback.causal.augmented_lagrangian import AugmentedLagrangian
from pullback.causal.knowledge import check_knowledge
from pullback.causal.least_squares import second_moments
from pullback.causal.likelihoods import MODELS, check_observations, check_targets, prediction_losses
from pullback.causal.parallel import ParallelStructureLearner, beta_subsets, consensus_penalty
from pullback.causal.structure import StructureLearner, StructureResult, order_of, positive, sortability
from pullback.core.checks import check_choice, check_integer
from pullback.core.shapes import Bool, Int, Shaped, Tensor

__all__ = ["DStruct", "d_struct"]


class DStruct(StructureLearner):
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
        check_choice("model", model, MODELS)
        self._model, self._detach_mean = model, detach_mean
        self._consensus = positive("consensus", consensus, zero=True)
        self._ridge = positive("ridge", ridge, zero=True)
        strength = positive("penalty", penalty, zero=True)
        super().__init__(check_integer("steps", steps, 1))
        moments = second_moments(data).detach()
        *batch, n, nodes = data.shape
        check_observations(model, data)
        if check_integer("learners", learners, 1) > n:
            raise ValueError(f"learners must be at most the number of samples, {n}, got {learners}")
        free = check_targets(data, targets)
        self._batch, self._dtype = tuple(batch), moments.dtype
        possible, self._required = check_knowledge(nodes, allowed, required, data.device)
        self._moments = moments.double()
        rows = _subsets(subsets, self._batch, n, learners, generator).to(data.device)
        if rows.shape[-1] < 2 * nodes:
            warnings.warn(
                f"a subset has {rows.shape[-1]} samples, fewer than twice the {nodes} nodes", UserWarning, stacklevel=2
            )
        x = data.detach().double()
        if model == "least-squares":
            x = x - x.mean(-2, keepdim=True)
        self.module = ParallelStructureLearner(
            nodes,
            learners,
            mechanism=mechanism,
            hidden=hidden,
            batch=self._batch,
            allowed=possible,
            dtype=torch.float64,
            generator=generator,
        ).to(data.device)
        given = [_rows(x, rows)]
        if free is not None:
            given.append(_rows(free, rows))
            if not bool(given[1].any(-2).all()):
                raise ValueError("targets must leave every node free in some sample of each subset")
        count = math.prod(self._batch)
        flat = [value.reshape(count, *value.shape[len(batch) :]) for value in given]
        start = {k: v.reshape(count, *v.shape[len(batch) :]) for k, v in self.module.named_parameters()}
        self._given = flat
        self._solver = AugmentedLagrangian(
            start,
            self._loss,
            lambda parameters, *_: self._cyclicity(parameters["first"]),
            data=flat,
            batch_ndim=1,
            l1=self._strengths(strength),
            tolerance=tolerance,
            max_rho=max_rho,
            steps=steps,
            iterations=iterations,
            relative=relative,
        )

    def _ended(self) -> bool:
        return self._solver.finished

    def _advance(self) -> None:
        self._solver.step()

    def _losses(self, parameters: Mapping[str, Tensor], x: Tensor, free: Tensor | None = None) -> Tensor:
        """Return the loss of every learner, ``[rows, K]``."""
        predicted = functional_call(self.module, dict(parameters), (x,))
        return prediction_losses(self._model, predicted, x, free).sum(-1)

    def _loss(self, parameters: Mapping[str, Tensor], x: Tensor, free: Tensor | None = None) -> Tensor:
        """Return the objective of every problem but for the constraint and the absolute values, ``[rows]``."""
        value = self._losses(parameters, x, free).sum(-1)
        if self._ridge > 0:
            layers = [parameters[name] for name in ("first", "second") if name in parameters]
            value = value + 0.5 * self._ridge * sum(layer.square().flatten(1).sum(-1) for layer in layers)
        if self._consensus > 0 and self.module.learners > 1:
            graphs = self.module.graph_of(parameters["first"])
            value = value + self._consensus * consensus_penalty(graphs, detach_mean=self._detach_mean)
        return value

    def _cyclicity(self, first: Tensor) -> Tensor:
        graphs = self.module.graph_of(first)
        if self._required is not None:
            graphs = torch.where(self._required, (graphs.square() + 1).sqrt(), graphs)
        return acyclicity(graphs, method="exponential")

    def _strengths(self, penalty: float) -> dict[str, Tensor]:
        penalised = torch.full_like(self._moments[(0,) * len(self._batch)], penalty)
        if self._required is not None:
            penalised = penalised * ~self._required
        return {"first": penalised if self.module.mechanism == "linear" else penalised.unsqueeze(-1)}

    @torch.no_grad()
    def _answer(self) -> StructureResult:
        found = self._solver.result()
        shape = (*self._batch, self.module.learners)
        losses = self._losses(found.parameters, *self._given).reshape(shape)
        for name, value in self.module.named_parameters():
            value.copy_(found.parameters[name].view_as(value))
        graphs = self.module.adjacency()
        mean, nodes = graphs.mean(-3), graphs.shape[-1]
        score = losses.mean(-1) / nodes * (2 if self._model == "least-squares" else 1)
        sortable = sortability(self._moments, mean, self._required)
        return StructureResult(
            weights=mean.to(self._dtype),
            order=order_of(mean, self._required),
            score=score.to(self._dtype),
            restart_weights=graphs.to(self._dtype),
            restart_scores=losses.to(self._dtype),
            history={"acyclicity": found.history.reshape(-1, *shape)},
            converged=found.converged.reshape(self._batch),
            required=self._required,
            varsortability=(sortable if self._model == "least-squares" else sortable * torch.nan).to(self._dtype),
        )

    def _state(self) -> dict[str, Any]:
        return {"solver": self._solver.state_dict()}

    def _load(self, state: Mapping[str, Any]) -> None:
        self._solver.load_state_dict(state["solver"])


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


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """Take rows ``[*batch, K, size]`` of ``[*batch, n, d]``."""
    index = rows.unsqueeze(-1).expand(*rows.shape, values.shape[-1])
    return values.unsqueeze(-3).expand(*rows.shape[:-1], *values.shape[-2:]).gather(-2, index)
