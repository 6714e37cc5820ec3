"""COSMO: structure learning by smooth orientations; no acyclicity constraint is ever evaluated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from pullback.causal.graphs import topological_order
from pullback.causal.knowledge import check_knowledge
from pullback.causal.least_squares import check_data_sets, least_squares_score, second_moments
from pullback.causal.likelihoods import MODELS, check_observations, check_targets, prediction_losses
from pullback.causal.orders import fit_order
from pullback.causal.orientation import cosine_temperature, orientation
from pullback.causal.structure import StructureLearner, StructureResult, positive, sortability
from pullback.core.checks import check_broadcast, check_choice, check_floating, check_integer, check_shape
from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Bool, Float, Shaped, Tensor
from pullback.kernels.smooth_orientation import Annealed, Penalties, anneal

__all__ = ["COSMO", "SmoothAcyclicSCM", "cosmo"]


_DRAWN = 1 << 20
"""Numbers of all minibatches that are drawn at once."""


class SmoothAcyclicSCM(nn.Module):
    r"""A structural causal model whose arcs are oriented by priorities: :math:`W = H \circ S(p)`.

    Linear (``hidden=None``): ``forward(x) = x W``. Nonlinear: node ``v`` is an MLP with one hidden layer whose first
    layer :math:`H_{uvk}` is multiplied by :math:`S_{uv}`.

    Args:
        nodes: ``d >= 1``.
        hidden: hidden units of every node's MLP, ``None`` for the linear model.
        shift: ``epsilon > 0``.
        temperature: initial value of the buffer ``temperature``, annealed from outside.
        restarts: models trained side by side; every parameter has shape ``[*batch, restarts, ...]``.
        batch: leading shape, for several data sets at once.
        allowed: ``[d, d]`` booleans, arcs that there may be; all by default.
        generator: source of the initial weights.

    Raises:
        TypeError, ValueError: sizes below one, shift or temperature not positive.

    Example:
        >>> model = SmoothAcyclicSCM(3, restarts=2, generator=torch.Generator().manual_seed(0))
        >>> model(torch.zeros(5, 3)).shape, model.weights().shape
        (torch.Size([2, 5, 3]), torch.Size([2, 3, 3]))

    References:
        Massidda et al. (2024), section 4; initialisation as in section 5.
    """

    temperature: Tensor
    allowed: Tensor | None

    def __init__(
        self,
        nodes: int,
        *,
        hidden: int | None = None,
        shift: float = 0.01,
        temperature: float = 0.45,
        restarts: int = 1,
        batch: tuple[int, ...] = (),
        allowed: Bool[Tensor, "d d"] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("nodes", nodes, 1)
        check_integer("restarts", restarts, 1)
        if hidden is not None:
            check_integer("hidden", hidden, 1)
        self.shift = positive("shift", shift)
        self.hidden = hidden
        self.register_buffer("allowed", None if allowed is None else check_knowledge(nodes, allowed, None)[0])
        self.register_buffer("temperature", torch.tensor(positive("temperature", temperature)))
        lead = (*batch, restarts)
        device = None if generator is None else generator.device

        def uniform(*shape: int, fan_in: int) -> nn.Parameter:
            bound = math.sqrt(3 / fan_in)  # Kaiming, linear gain
            return nn.Parameter((2 * torch.rand((*lead, *shape), generator=generator, device=device) - 1) * bound)

        # Differences of priorities then have standard deviation `shift`.
        start = torch.randn((*lead, nodes), generator=generator, device=device)
        self.priority = nn.Parameter(start * self.shift / math.sqrt(2))
        if hidden is None:
            self.strength = uniform(nodes, nodes, fan_in=nodes)
        else:
            self.strength = uniform(nodes, nodes, hidden, fan_in=nodes)
            self.first_bias = nn.Parameter(torch.zeros((*lead, nodes, hidden), device=device))
            self.second = uniform(nodes, hidden, fan_in=hidden)
            self.second_bias = nn.Parameter(torch.zeros((*lead, nodes), device=device))

    def orientation(self) -> Float[Tensor, "*lead d d"]:
        """Return ``S`` at the current temperature, zero where no arc is allowed."""
        oriented = orientation(self.priority, temperature=self.temperature, shift=self.shift)
        return oriented if self.allowed is None else oriented * self.allowed

    def weights(self) -> Float[Tensor, "*lead d d"]:
        """Return the arc weights: ``H * S``, for the nonlinear model the norm over the hidden units."""
        if self.hidden is None:
            return self.strength * self.orientation()
        oriented = self.strength * self.orientation().unsqueeze(-1)
        return oriented.square().sum(-1).clamp_min(1e-24).sqrt()

    def forward(self, x: Float[Tensor, "*data n d"]) -> Float[Tensor, "*lead n d"]:
        """Predict every node from its parents; ``x`` is shared by the restarts (``[*batch, n, d]``).

        Raises:
            TypeError: ``x`` is no floating tensor of the model's dtype.
            ValueError: another number of nodes, or another batch than the model's.
        """
        check_shape("x", check_floating("x", x), (None, self.priority.shape[-1]))
        if x.dtype != self.priority.dtype:
            raise TypeError(f"x must have the dtype of the model, {self.priority.dtype}, got {x.dtype}")
        check_broadcast(x=tuple(x.shape[:-2]), model=tuple(self.priority.shape[:-2]))
        x = x.unsqueeze(-3)
        if self.hidden is None:
            return x @ self.weights()
        oriented = self.strength * self.orientation().unsqueeze(-1)
        pre = torch.einsum("...nu,...uvk->...nvk", x, oriented) + self.first_bias.unsqueeze(-3)
        return (torch.sigmoid(pre) * self.second.unsqueeze(-3)).sum(-1) + self.second_bias.unsqueeze(-2)


class COSMO(StructureLearner):
    r"""Learn a DAG by smooth orientations, annealed until they are hard.

    Minimises :math:`\mathrm{MSE} + l_1\|H\|_1 + l_2\|H\|_2 + l_p\|p\|_2` with Adam, a hundredth of the iterations each
    :meth:`step`. The linear model needs only second moments (one ``d^3`` product an iteration, in double precision);
    ``minibatch`` draws samples instead, ``hidden`` fits MLPs (on samples).

    The result is identifiable for equal noise variances; on standardised data the order is not determined by the score.

    Args:
        data: ``[*batch, n, d]`` samples, or with ``covariance=True`` their ``[*batch, d, d]`` covariance.
        covariance: whether ``data`` is a covariance.
        restarts: independent starts trained as one tensor program; the one with the lowest final objective is returned.
        iterations: Adam steps; the temperature falls along a cosine over all of them.
        lr: step size of Adam, > 0.
        l1, l2, priority_penalty: penalties, >= 0, of the norms (not their squares).
        shift: ``epsilon > 0`` of :func:`orientation`.
        temperature: start and end of the annealing, both > 0. ``shift / end >= 20`` keeps cycle products below 1e-8.
        minibatch: samples an iteration, drawn with replacement, >= 1; ``None`` uses all of them, of the linear model
            through their covariance.
        hidden: hidden units of the nonlinear model, >= 1.
        refit: solve least squares for the weights along the learned order (linear model of measurements).
        model: ``"least-squares"``, ``"logistic"`` for bits, ``"poisson"`` for counts, fitted to samples.
        targets: ``[*batch, n, d]`` booleans, which nodes were set in which sample: their mechanism has no part in it.
        allowed: ``[d, d]`` booleans, arcs that there may be; all by default.
        required: ``[d, d]`` booleans, arcs that there are: after each step the priorities are moved, as little as makes
            them point forward; they are in every graph of the result.
        generator: source of initial weights and minibatches, on the CPU or the device of the data.

    Attributes:
        model: the :class:`SmoothAcyclicSCM` that is trained, ``temperature`` as of the last step.

    Raises:
        TypeError: not a floating tensor, options that are no numbers.
        ValueError: bad data (see :func:`second_moments`), options out of range; a covariance with ``minibatch`` or
            ``hidden``, ``model`` or ``targets``; required arcs with a cycle.

    References:
        Massidda, Landolfi, Cinquini, Bacciu (2024), Constraint-Free Structure Learning with Smooth Acyclic
        Orientations, equation 11 and section 5.
    """

    def __init__(
        self,
        data: Shaped[Tensor, "*batch n d"],
        *,
        covariance: bool = False,
        restarts: int = 8,
        iterations: int = 6000,
        lr: float = 1e-2,
        l1: float = 1e-3,
        l2: float = 1e-3,
        priority_penalty: float = 3e-3,
        shift: float = 1e-2,
        temperature: tuple[float, float] = (0.45, 5e-4),
        minibatch: int | None = None,
        hidden: int | None = None,
        refit: bool = False,
        model: str = "least-squares",
        targets: Shaped[Tensor, "*batch n d"] | None = None,
        allowed: Bool[Tensor, "d d"] | None = None,
        required: Bool[Tensor, "d d"] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self._iterations = check_integer("iterations", iterations, 1)
        self._chunk = max(1, iterations // 100)
        super().__init__(math.ceil(iterations / self._chunk))
        self._penalties = (
            positive("l1", l1, zero=True),
            positive("l2", l2, zero=True),
            positive("priority_penalty", priority_penalty, zero=True),
        )
        start, end = temperature
        self._temperature = (positive("start of temperature", start), positive("end of temperature", end))
        check_choice("model", model, MODELS)
        sampled = minibatch is not None or hidden is not None or model != "least-squares" or targets is not None
        if covariance and sampled:
            raise ValueError("minibatch, hidden, model and targets need samples, got covariance=True")
        if refit and (model != "least-squares" or any(known is not None for known in (targets, allowed, required))):
            raise ValueError("refit solves least squares along an order: not with model, targets, allowed or required")
        self._minibatch = None if minibatch is None else check_integer("minibatch", minibatch, 1)
        self._refit, self._generator = refit, generator
        check_data_sets("data", data)
        self._moments = second_moments(data, covariance=covariance).detach()
        self._dtype = self._moments.dtype
        self._model = model
        possible, self._required = check_knowledge(data.shape[-1], allowed, required, data.device)
        self._samples: Tensor | None = None
        self._free: Tensor | None = None
        self._rows: Tensor | None = None
        if sampled:
            check_observations(model, data)
            self._free = check_targets(data, targets)
            samples = data.detach().to(self._dtype)
            self._samples = samples - samples.mean(-2, keepdim=True) if model == "least-squares" else samples
        if (
            minibatch is not None
            and hidden is targets is None
            and model == "least-squares"
            and minibatch >= data.shape[-1]
        ):
            self._rows, self._samples = self._samples, None  # a batch's loss and gradient depend on its moments alone
        if self._samples is None:
            self._moments = self._moments.double()
        self.model = SmoothAcyclicSCM(
            data.shape[-1],
            hidden=hidden,
            shift=shift,
            temperature=self._temperature[0],
            restarts=restarts,
            batch=tuple(data.shape[:-2]),
            allowed=None if allowed is None and required is None else possible.cpu(),
            generator=generator,
        ).to(self._moments)
        self._lr = positive("lr", lr)
        self._optimizer = None if self._samples is None else torch.optim.Adam(self.model.parameters(), lr=self._lr)
        self._averages = {
            f"{kind} of {name}": torch.zeros_like(value)
            for name, value in self.model.named_parameters()
            for kind in ("mean", "square")
            if self._optimizer is None
        }
        self._history: dict[str, list[Tensor]] = {"temperature": [], "objective": [], "priority": []}

    def _ended(self) -> bool:
        return False

    def _advance(self) -> None:
        first = self.taken * self._chunk
        start, end = self._temperature
        temperatures = [
            cosine_temperature(place / max(self._iterations - 1, 1), start=start, end=end)
            for place in range(first, min(first + self._chunk, self._iterations))
        ]
        if self._optimizer is None or self._samples is None:
            self._anneal(temperatures, first)
        else:
            for temperature in temperatures:
                self._descend(self._samples, temperature, self._optimizer)
        self.model.temperature.fill_(temperatures[-1])
        self._order_required()
        with torch.no_grad():
            objective = self._objective(self._samples, self._free)
        if not bool(objective.isfinite().all()):
            raise ConvergenceError(
                f"COSMO: the objective is not finite at {temperatures[-1]:.3g}; lower lr, scale the data"
            )
        self._history["temperature"].append(self.model.temperature.clone())
        self._history["objective"].append(objective)
        self._history["priority"].append(self.model.priority.detach().clone())

    @torch.no_grad()
    def _anneal(self, temperatures: list[float], taken: int) -> None:
        """Iterate on the second moments."""
        parameters = {"strength": self.model.strength, "priority": self.model.priority}
        places = [("strength", 2), ("priority", 1)]
        table = [parameters[name].flatten(0, -1 - kept) for name, kept in places]
        table += [
            self._averages[f"{kind} of {name}"].flatten(0, -1 - kept)
            for name, kept in places
            for kind in ("mean", "square")
        ]
        state = Annealed(*table)
        penalties = Penalties(*self._penalties, self.model.shift)
        for moments, part in self._schedule(temperatures):
            steps = moments.new_tensor(part)
            state = anneal(state, moments, steps, taken, self._lr, penalties, self.model.allowed)
            taken += len(part)
        for (name, _), value in zip(places, state[:2], strict=True):
            parameters[name].copy_(value.view_as(parameters[name]))
        averages = [f"{kind} of {name}" for name, _ in places for kind in ("mean", "square")]
        for key, value in zip(averages, state[2:], strict=True):
            self._averages[key] = value.view_as(self._averages[key])

    def _schedule(self, temperatures: list[float]) -> Iterator[tuple[Tensor, list[float]]]:
        """Yield second moments, ``[1 or steps, data sets, d, d]``, and the temperatures at which they are used."""
        rows, size = self._rows, self._minibatch
        if rows is None or size is None:
            yield self._moments.reshape(1, -1, *self._moments.shape[-2:]), temperatures
            return
        rows = rows.reshape(-1, *rows.shape[-2:])
        device = rows.device if self._generator is None else self._generator.device
        block = max(1, _DRAWN // (size * len(rows) * rows.shape[-1]))
        for first in range(0, len(temperatures), block):
            part = temperatures[first : first + block]
            chosen = torch.randint(rows.shape[1], (len(part), size), generator=self._generator, device=device)
            drawn = rows[:, chosen.to(rows.device)].double().transpose(0, 1)  # [steps, data sets, size, d]
            yield drawn.mT @ drawn / size, part

    def _descend(self, rows: Tensor, temperature: float, optimizer: torch.optim.Optimizer) -> None:
        """Iterate once on samples."""
        self.model.temperature.fill_(temperature)
        free = self._free
        if self._minibatch is not None:
            device = rows.device if self._generator is None else self._generator.device
            chosen = torch.randint(rows.shape[-2], (self._minibatch,), generator=self._generator, device=device)
            rows = rows[..., chosen.to(rows.device), :]
            free = None if free is None else free[..., chosen.to(rows.device), :]
        optimizer.zero_grad(set_to_none=True)
        prior = self._penalties[2] * torch.linalg.vector_norm(self.model.priority, dim=-1)
        (self._objective(rows, free) + prior).sum().backward()
        optimizer.step()

    @torch.no_grad()
    def _order_required(self) -> None:
        """Move effects of required arcs behind their causes where they are not."""
        if self._required is None:
            return
        priority = self.model.priority
        for node in topological_order(self._required).tolist():
            causes = self._required[:, node].nonzero()[:, 0]
            if len(causes):
                least = priority[..., causes].amax(-1) + 2 * self.model.shift
                priority[..., node] = torch.maximum(priority[..., node], least)

    def _objective(self, rows: Tensor | None, free: Tensor | None) -> Tensor:
        """Mean squared error, or mean loss of the model, and the penalties of the weights, ``[*batch, restarts]``."""
        if rows is None:
            fit = least_squares_score(self.model.weights(), self._moments.unsqueeze(-3))
        else:
            given = None if free is None else free.unsqueeze(-3)
            fit = prediction_losses(self._model, self.model(rows), rows.unsqueeze(-3), given).mean(-1)
            fit = 2 * fit if self._model == "least-squares" else fit
        strength = self.model.strength.flatten(self.model.priority.ndim - 1)
        l1, l2, _ = self._penalties
        return fit + l1 * strength.abs().sum(-1) + l2 * torch.linalg.vector_norm(strength, dim=-1)

    @torch.no_grad()
    def _answer(self) -> StructureResult:
        weights, scores = self.model.weights(), self._objective(self._samples, self._free)
        if not bool(weights.isfinite().all() and scores.isfinite().all()):
            raise ConvergenceError("COSMO: the learned weights are not finite; lower lr, scale the data")
        best = _best_restart(weights, scores)
        order = _best_restart(self.model.priority, scores).argsort(-1)
        linear = self.model.hidden is None and self._model == "least-squares" and self._free is None
        if self._refit and linear:
            best = fit_order(self._moments, order, covariance=True)
        place = order.argsort(-1)
        sortable = sortability(self._moments, best, self._required)
        against = best.abs() * (place.unsqueeze(-1) >= place.unsqueeze(-2))
        return StructureResult(
            weights=best.to(self._dtype),
            order=order,
            score=(least_squares_score(best, self._moments) if linear else scores.amin(-1)).to(self._dtype),
            restart_weights=weights.to(self._dtype),
            restart_scores=scores.to(self._dtype),
            history={name: torch.stack(values) for name, values in self._history.items() if values},
            converged=against.amax((-2, -1)) <= 1e-6,
            required=self._required,
            varsortability=(sortable if self._model == "least-squares" else sortable * torch.nan).to(self._dtype),
        )

    def _state(self) -> dict[str, Any]:
        generator = self._generator if self._minibatch is not None else None
        return {
            "model": self.model.state_dict(),
            "optimizer": None if self._optimizer is None else self._optimizer.state_dict(),
            "averages": dict(self._averages),
            "generator": None if generator is None else generator.get_state(),
            "history": {name: list(values) for name, values in self._history.items()},
        }

    def _load(self, state: Mapping[str, Any]) -> None:
        try:
            self.model.load_state_dict(state["model"])
            if self._optimizer is not None:
                self._optimizer.load_state_dict(state["optimizer"])
            self._averages = {name: state["averages"][name].to(own) for name, own in self._averages.items()}
            self._history = {name: list(state["history"][name]) for name in self._history}
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"state must be one of COSMO with the same data and options: {error}") from error
        if state["generator"] is not None and self._generator is not None:
            self._generator.set_state(state["generator"])


def _best_restart(values: Tensor, scores: Tensor) -> Tensor:
    """Pick along the restart axis (last of ``scores``) the entry of ``values`` with the lowest score."""
    best = scores.argmin(-1)
    index = best[(..., *[None] * (values.ndim - best.ndim))]
    expanded = index.expand(*best.shape, 1, *values.shape[scores.ndim :])
    return values.gather(scores.ndim - 1, expanded).squeeze(scores.ndim - 1)


def cosmo(data: Shaped[Tensor, "*batch n d"], **options: Any) -> StructureResult:
    """Learn a DAG by smooth orientations, annealed until they are hard: :class:`COSMO` run to its end.

    Args:
        data: ``[*batch, n, d]`` samples or, with ``covariance=True``, ``[*batch, d, d]`` covariance.
        **options: those of :class:`COSMO`.

    Returns:
        :class:`StructureResult` in the dtype of the data (half precision: float32); its graph is acyclic by
        construction at thresholds above ``max|H| sigmoid(-shift/t)``. ``converged`` says whether every weight against
        the order is at most 1e-6.

    Raises:
        TypeError: not a floating tensor, options that are no numbers or do not exist.
        ValueError: bad data (see :func:`second_moments`), options out of range; a covariance with ``minibatch`` or
            ``hidden``, ``model`` or ``targets``; required arcs with a cycle.
        ConvergenceError: the objective did not stay finite.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> cause = torch.randn(500, 1, generator=g)
        >>> x = torch.cat([2 * cause + torch.randn(500, 1, generator=g), cause], 1)
        >>> cosmo(x, restarts=4, iterations=800, lr=3e-2, generator=g).graph().tolist()
        [[False, False], [True, False]]

    References:
        Massidda, Landolfi, Cinquini, Bacciu (2024), Constraint-Free Structure Learning with Smooth Acyclic
        Orientations, equation 11 and section 5.
    """
    return COSMO(data, **options).run()
