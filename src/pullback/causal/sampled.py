"""What NOTEARS and DAGMA share where they need samples: mechanisms, likelihoods, interventions, what is known."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch.func import functional_call

from pullback.causal.knowledge import check_knowledge
from pullback.causal.least_squares import check_data_sets, second_moments
from pullback.causal.likelihoods import MODELS, check_observations, check_targets, prediction_losses
from pullback.causal.parallel import ParallelStructureLearner
from pullback.causal.structure import StructureLearner, StructureResult, order_of, positive, sortability
from pullback.core.checks import check_choice, check_integer
from pullback.core.shapes import Tensor

__all__ = ["SampleLearner"]


class SampleLearner(StructureLearner):
    """A learner whose graphs are read off the first layers of models that are fitted to samples.

    Args:
        data: ``[*batch, n, d]``.
        subsets: ``[*batch, K, size]`` samples of each of ``K`` learners; ``None``: one learner, all samples.
        steps: of :class:`StructureLearner`.
        mechanism, hidden: of :class:`ParallelStructureLearner`.
        model, penalty, ridge, intercept, allowed, required, targets, generator: of :class:`DStruct`.

    Attributes:
        module: the models.
    """

    def __init__(
        self,
        data: Tensor,
        *,
        subsets: Tensor | None,
        steps: int,
        mechanism: str,
        hidden: int,
        model: str,
        penalty: float,
        ridge: float,
        intercept: bool | None,
        allowed: Tensor | None,
        required: Tensor | None,
        targets: Tensor | None,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__(check_integer("steps", steps, 1))
        check_choice("model", model, MODELS)
        self._model, self._penalty = model, positive("penalty", penalty, zero=True)
        self._ridge = positive("ridge", ridge, zero=True)
        if not (intercept is None or isinstance(intercept, bool)):
            raise TypeError(f"intercept must be True, False or None, got {type(intercept).__name__}")
        self._intercept = (mechanism, model) != ("linear", "logistic") if intercept is None else intercept
        check_data_sets("data", data)
        moments = second_moments(data).detach()
        *batch, _, nodes = data.shape
        check_observations(model, data)
        free = check_targets(data, targets)
        self._batch, self._dtype, self._moments = tuple(batch), moments.dtype, moments.double()
        possible, self._required = check_knowledge(nodes, allowed, required, data.device)
        x = data.detach().double()
        if model == "least-squares":
            x = x - x.mean(-2, keepdim=True)
        self._samples = [x] if free is None else [x, free]
        given = self._taken_rows(subsets)
        if free is not None and not bool(given[1].any(-2).all()):
            raise ValueError("targets must leave every node free in some sample of each subset")
        self.module = ParallelStructureLearner(
            nodes,
            given[0].shape[1],
            mechanism=mechanism,
            hidden=hidden,
            batch=self._batch,
            allowed=possible,
            dtype=torch.float64,
            generator=generator,
        ).to(data.device)
        self._given = given

    def _taken_rows(self, subsets: Tensor | None) -> list[Tensor]:
        """Return what each learner is fitted to, problem by problem: ``[problems, K, size, d]``."""
        if subsets is None:
            return [self._flat(value.unsqueeze(-3)) for value in self._samples]
        return [self._flat(_rows(value, subsets)) for value in self._samples]

    def _flat(self, value: Tensor) -> Tensor:
        """One leading dimension for all problems of the batch."""
        return value.reshape(math.prod(self._batch), *value.shape[len(self._batch) :])

    def _start(self) -> dict[str, Tensor]:
        return {name: self._flat(value.detach()) for name, value in self.module.named_parameters()}

    def _losses(self, parameters: Mapping[str, Tensor], x: Tensor, free: Tensor | None = None) -> Tensor:
        """Return the loss of every learner, ``[rows, K]``."""
        parameters = dict(parameters)
        if not self._intercept:
            parameters["bias"] = torch.zeros_like(parameters["bias"])
        predicted = functional_call(self.module, parameters, (x,))
        return prediction_losses(self._model, predicted, x, free).sum(-1)

    def _fit(self, parameters: Mapping[str, Tensor], x: Tensor, free: Tensor | None = None) -> Tensor:
        """Return the losses with the squares of the layers, ``[rows]``."""
        value = self._losses(parameters, x, free).sum(-1)
        if self._ridge > 0:
            layers = [parameters[name] for name in ("first", "second") if name in parameters]
            value = value + 0.5 * self._ridge * sum(layer.square().flatten(1).sum(-1) for layer in layers)
        return value

    def _graphs(self, first: Tensor) -> Tensor:
        """Return the weights in which cycles are looked for: required arcs are there, whatever their weight."""
        graphs = self.module.graph_of(first)
        return graphs if self._required is None else torch.where(self._required, (graphs.square() + 1).sqrt(), graphs)

    def _strengths(self) -> dict[str, Tensor]:
        """Return the penalty of every weight of a first layer."""
        penalised = torch.full_like(self._moments[(0,) * len(self._batch)], self._penalty)
        if self._required is not None:
            penalised = penalised * ~self._required
        return {"first": penalised if self.module.mechanism == "linear" else penalised.unsqueeze(-1)}

    @torch.no_grad()
    def _found(
        self, parameters: Mapping[str, Tensor], history: dict[str, Tensor], converged: Tensor
    ) -> StructureResult:
        shape = (*self._batch, self.module.learners)
        losses = self._losses(parameters, *self._given).reshape(shape)
        for name, value in self.module.named_parameters():
            value.copy_(parameters[name].view_as(value))
        graphs = self.module.adjacency()
        mean, nodes = graphs.mean(-3), graphs.shape[-1]
        sortable = sortability(self._moments, mean, self._required)
        return StructureResult(
            weights=mean.to(self._dtype),
            order=order_of(mean, self._required),
            score=(losses.mean(-1) / nodes * (2 if self._model == "least-squares" else 1)).to(self._dtype),
            restart_weights=graphs.to(self._dtype),
            restart_scores=losses.to(self._dtype),
            history=history,
            converged=converged.reshape(self._batch),
            required=self._required,
            varsortability=(sortable if self._model == "least-squares" else sortable * torch.nan).to(self._dtype),
        )


def _rows(values: Tensor, rows: Tensor) -> Tensor:
    """Take rows ``[*batch, K, size]`` of ``[*batch, n, d]``."""
    index = rows.unsqueeze(-1).expand(*rows.shape, values.shape[-1])
    return values.unsqueeze(-3).expand(*rows.shape[:-1], *values.shape[-2:]).gather(-2, index)
