"""What every structure learner is and returns: a loop whose state can be saved; a graph with its order and score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pullback.causal.distances import varsortability
from pullback.causal.graphs import find_cycle, is_acyclic, threshold_to_dag, topological_order
from pullback.causal.knowledge import check_knowledge
from pullback.causal.least_squares import check_data_sets, least_squares_score, second_moments
from pullback.core.checks import check_scalar
from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Bool, Float, Int, Tensor

__all__ = ["StructureLearner", "StructureResult"]


@dataclass(frozen=True)
class StructureResult:
    """A learned graph.

    Attributes:
        weights: ``[*batch, d, d]`` of the best restart; ``W[i, j]`` is the effect of ``i`` on ``j``.
        order: ``[*batch, d]`` a topological order of ``weights``, causes first; where they have cycles, of the largest
            graph without one that a threshold leaves.
        score: ``[*batch]`` least-squares score of ``weights``, see :func:`least_squares_score`; of a nonlinear model
            its mean squared error.
        restart_weights: ``[*batch, restarts, d, d]`` of all restarts.
        restart_scores: ``[*batch, restarts]`` the objective by which the best restart was chosen.
        history: named curves over the iterations, each ``[points, ...]``.
        converged: ``[*batch]`` whether the learner's own criterion was met, not only its number of steps.
        required: ``[d, d]`` arcs that are in every graph, whatever their weight; ``None``: none.
        varsortability: ``[*batch]`` of the data and the graph at the least threshold from 0.3 on that leaves no cycle:
            the share of its paths along which the variance grows. Near one, the order could have been read off the
            variances, and holds for the scale of the data alone. NaN without an arc, and for models of counts and bits.
    """

    weights: Float[Tensor, "*batch d d"]
    order: Int[Tensor, "*batch d"]
    score: Float[Tensor, "*batch"]
    restart_weights: Float[Tensor, "*batch restarts d d"]
    restart_scores: Float[Tensor, "*batch restarts"]
    history: dict[str, Tensor] = field(default_factory=dict)
    converged: Bool[Tensor, "*batch"] = field(default_factory=lambda: torch.tensor(True))
    required: Bool[Tensor, "d d"] | None = None
    varsortability: Float[Tensor, "*batch"] = field(default_factory=lambda: torch.tensor(torch.nan))

    def graph(self, threshold: float = 0.3) -> Bool[Tensor, "*batch d d"]:
        """Return ``[*batch, d, d]`` booleans: arcs with ``|weight| > threshold``, and those that are required.

        Args:
            threshold: >= 0, in the unit of the weights.

        Raises:
            ConvergenceError: the thresholded graph has a cycle (it is named).
        """
        check_scalar("threshold", threshold, zero=True)
        arcs = self.weights.abs() > threshold
        if self.required is not None:
            arcs = arcs | self.required
        acyclic = is_acyclic(arcs)
        if not bool(acyclic.all()):
            first = arcs.reshape(-1, *arcs.shape[-2:])[int((~acyclic.reshape(-1)).nonzero()[0])]
            cycle = " -> ".join(map(str, find_cycle(first) or []))
            raise ConvergenceError(f"the graph at threshold {threshold} has the cycle {cycle}", self)
        return arcs


class StructureLearner(ABC):
    """A structure learner that is stepped from outside, so that whoever steps it can stop, watch and save it.

    ``learner.run()`` takes all steps. A loop that may be interrupted takes them itself::

        learner = causal.DAGMA(data)
        for _ in range(learner.steps):
            learner.step()
        result = learner.result()

    A learner of the same data and options that loads ``state_dict()`` goes on to the same result, bit for bit.

    Attributes:
        steps: steps after which the learner ends at the latest.
        taken: steps taken so far.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.taken = 0

    @property
    def finished(self) -> bool:
        """Whether more steps would change nothing."""
        return self.taken >= self.steps or self._ended()

    def step(self) -> None:
        """Take a step; nothing happens once the learner has finished.

        Raises:
            ConvergenceError: the numbers are no longer finite.
        """
        if not self.finished:
            self._advance()
            self.taken += 1

    def run(self) -> StructureResult:
        """Take all steps that are left and return the result."""
        while not self.finished:
            self.step()
        return self.result()

    def result(self) -> StructureResult:
        """Return what was learned so far.

        Raises:
            ConvergenceError: it is not finite.
        """
        return self._answer()

    def state_dict(self) -> dict[str, Any]:
        """Return all that the steps change, as tensors, numbers and containers of them."""
        return {"taken": self.taken, **self._state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that a learner of the same data and options returned.

        Raises:
            ValueError: the state is of another learner, or of other data.
        """
        own = self.state_dict()
        if set(state) != set(own):
            raise ValueError(f"state must have the entries {sorted(own)} of {type(self).__name__}, got {sorted(state)}")
        self._load(state)
        self.taken = int(state["taken"])

    @abstractmethod
    def _ended(self) -> bool:
        """Whether the learner's own criterion is met."""

    @abstractmethod
    def _advance(self) -> None: ...

    @abstractmethod
    def _answer(self) -> StructureResult: ...

    @abstractmethod
    def _state(self) -> dict[str, Any]: ...

    @abstractmethod
    def _load(self, state: Mapping[str, Any]) -> None: ...


class TableLearner(StructureLearner):
    """A learner whose state is a table, with one row a graph, and the history of its steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(steps)
        self._history: list[Tensor] = []
        self._table: dict[str, Tensor] = {}

    def _state(self) -> dict[str, Any]:
        table = {name: tensor.clone() for name, tensor in self._table.items()}
        return {"history": list(self._history), "table": table}

    def _load(self, state: Mapping[str, Any]) -> None:
        for name, own in self._table.items():
            new = state["table"].get(name)
            if not isinstance(new, Tensor) or new.shape != own.shape or new.dtype != own.dtype:
                raise ValueError(f"state: {name} must be {own.dtype} of shape {tuple(own.shape)}, of the same data")
        self._table = {name: state["table"][name].to(own.device, copy=True) for name, own in self._table.items()}
        self._history = list(state["history"])


class CovarianceLearner(TableLearner):
    """A learner that needs second moments alone: in double precision, its state a table with one row a graph.

    Args:
        data, covariance: of :func:`second_moments`.
        steps: of :class:`StructureLearner`.
        allowed, required: of :func:`check_knowledge`.

    Attributes:
        curve: name of what ``history`` holds of every step.
    """

    curve: str

    def __init__(
        self, data: Tensor, covariance: bool, steps: int, allowed: Tensor | None = None, required: Tensor | None = None
    ) -> None:
        super().__init__(steps)
        check_data_sets("data", data)
        moments = second_moments(data, covariance=covariance).detach()
        self._allowed, self._required = check_knowledge(moments.shape[-1], allowed, required, moments.device)
        self._dtype, self._batch = moments.dtype, moments.shape[:-2]
        self._moments = moments.double().reshape(-1, *moments.shape[-2:])

    def _keep(self, rows: Tensor, new: Mapping[str, Tensor]) -> None:
        """Write rows of the table."""
        for name, tensor in new.items():
            self._table[name] = self._table[name].index_copy(0, rows, tensor)

    def _answer(self) -> StructureResult:
        shape = (*self._batch, *self._moments.shape[-2:])
        weights = self._table["weights"].reshape(shape)
        score = least_squares_score(weights, self._moments.reshape(shape)).to(self._dtype)
        weights = weights.to(self._dtype)
        if not bool(weights.isfinite().all() and score.isfinite().all()):
            raise ConvergenceError(
                f"{type(self).__name__}: the learned weights are not finite; scale the data", weights
            )
        curves = {self.curve: torch.stack(self._history).reshape(-1, *self._batch)} if self._history else {}
        return StructureResult(
            weights=weights,
            order=order_of(weights, self._required),
            score=score,
            restart_weights=weights.unsqueeze(-3),
            restart_scores=score.unsqueeze(-1),
            history=curves,
            converged=self._table["converged"].reshape(self._batch),
            required=self._required,
            varsortability=sortability(self._moments.reshape(shape), weights, self._required),
        )


def order_of(weights: Tensor, required: Tensor | None) -> Tensor:
    """Return ``[*batch, d]`` an order of the largest graph without a cycle that a threshold leaves, causes first."""
    graphs = lifted_dag(weights, required).reshape(-1, *weights.shape[-2:])
    return torch.stack([topological_order(graph) for graph in graphs]).reshape(weights.shape[:-1]).to(weights.device)


def sortability(moments: Tensor, weights: Tensor, required: Tensor | None, floor: float = 0.3) -> Tensor:
    """Return ``[*batch]`` the varsortability of the graph at the least threshold from ``floor`` on without a cycle."""
    graphs = lifted_dag(weights * (weights.abs() > floor), required)
    return varsortability(moments, graphs).to(weights)


def lifted_dag(weights: Tensor, required: Tensor | None) -> Tensor:
    """Return :func:`threshold_to_dag` of the weights, in which no threshold drops a required arc."""
    size = weights.abs()
    if required is not None:
        size = torch.where(required, size.amax((-2, -1), keepdim=True) + 1, size)
    return threshold_to_dag(size).graph


def positive(name: str, value: Any, *, zero: bool = False) -> float:
    """Return an option of a learner as a number: a float or a tensor without dimensions, > 0 (>= 0 with ``zero``)."""
    number = check_scalar(name, value, zero=zero)
    if number is None:
        raise TypeError(f"{name} must be a number: a learner runs neither compiled nor under a transform")
    return number
