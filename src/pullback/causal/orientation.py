"""COSMO: smooth orientations by one priority a node; no acyclicity constraint is ever evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from pullback.causal.orders import fit_order
from pullback.causal.structure import StructureResult, best_restart, least_squares_score, second_moments
from pullback.core.checks import check_floating, check_positive
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Shaped, Tensor

__all__ = ["SmoothAcyclicSCM", "cosine_temperature", "cosmo", "orientation"]


def orientation(
    priority: Float[Tensor, "*batch d"],
    *,
    temperature: float | Float[Tensor, ""],
    shift: float = 0.01,
    hard: bool = False,
) -> Float[Tensor, "*batch d d"]:
    r"""Orient every pair of nodes by their priorities.

    .. math:: S_{uv} = \sigma\big((p_v - p_u - \varepsilon) / t\big),\quad S_{uu} = 0

    Every cycle has an arc with :math:`p_v \le p_u`, so the product of ``S`` along it is at most
    :math:`\sigma(-\varepsilon/t)`, which vanishes as ``t -> 0``.

    Args:
        priority: ``[*batch, d]`` in the unit of ``shift``.
        temperature: ``t > 0``; a scalar tensor is not checked (it may be part of a compiled loop).
        shift: ``epsilon > 0``, the margin by which a cause precedes its effect.
        hard: ``1`` exactly where ``p_v - p_u > shift``, with the gradient of the smooth orientation.

    Returns:
        ``[*batch, d, d]`` in [0, 1].

    Raises:
        ValueError: temperature or shift not positive.

    Example:
        >>> orientation(torch.tensor([0.0, 1.0]), temperature=0.1, hard=True)
        tensor([[0., 1.],
                [0., 0.]])

    References:
        Massidda, Landolfi, Cinquini, Bacciu (2024), Constraint-Free Structure Learning with Smooth Acyclic
        Orientations, definition 3.
    """
    check_floating("priority", priority)
    if not isinstance(temperature, Tensor):
        check_positive("temperature", temperature)
    check_positive("shift", shift)
    difference = priority.unsqueeze(-2) - priority.unsqueeze(-1) - shift
    off_diagonal = 1 - torch.eye(priority.shape[-1], dtype=priority.dtype, device=priority.device)
    soft = torch.sigmoid(difference / temperature) * off_diagonal
    return replace_gradient((difference > 0).to(soft.dtype) * off_diagonal, soft) if hard else soft


def cosine_temperature(progress: float, *, start: float = 0.45, end: float = 5e-4) -> float:
    """Cosine annealing: ``end + (start - end) (1 + cos(pi progress)) / 2`` for ``progress`` in [0, 1].

    Example:
        >>> [round(cosine_temperature(p), 4) for p in (0.0, 0.5, 1.0)]
        [0.45, 0.2253, 0.0005]
    """
    return end + (start - end) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2


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
        generator: source of the initial weights.

    Raises:
        ValueError: sizes below one, shift or temperature not positive.

    Example:
        >>> model = SmoothAcyclicSCM(3, restarts=2, generator=torch.Generator().manual_seed(0))
        >>> model(torch.zeros(5, 3)).shape, model.weights().shape
        (torch.Size([2, 5, 3]), torch.Size([2, 3, 3]))

    References:
        Massidda et al. (2024), section 4; initialisation as in section 5.
    """

    temperature: Tensor

    def __init__(
        self,
        nodes: int,
        *,
        hidden: int | None = None,
        shift: float = 0.01,
        temperature: float = 0.45,
        restarts: int = 1,
        batch: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_positive("nodes", nodes)
        check_positive("restarts", restarts)
        check_positive("shift", shift)
        check_positive("temperature", temperature)
        if hidden is not None:
            check_positive("hidden", hidden)
        self.shift = shift
        self.hidden = hidden
        self.register_buffer("temperature", torch.tensor(temperature))
        lead = (*batch, restarts)

        def uniform(*shape: int, fan_in: int) -> nn.Parameter:
            bound = math.sqrt(3 / fan_in)  # Kaiming, linear gain
            return nn.Parameter((2 * torch.rand((*lead, *shape), generator=generator) - 1) * bound)

        # Differences of priorities then have standard deviation `shift`.
        self.priority = nn.Parameter(torch.randn((*lead, nodes), generator=generator) * shift / math.sqrt(2))
        if hidden is None:
            self.strength = uniform(nodes, nodes, fan_in=nodes)
        else:
            self.strength = uniform(nodes, nodes, hidden, fan_in=nodes)
            self.first_bias = nn.Parameter(torch.zeros((*lead, nodes, hidden)))
            self.second = uniform(nodes, hidden, fan_in=hidden)
            self.second_bias = nn.Parameter(torch.zeros((*lead, nodes)))

    def orientation(self) -> Float[Tensor, "*lead d d"]:
        """Return ``S`` at the current temperature."""
        return orientation(self.priority, temperature=self.temperature, shift=self.shift)

    def weights(self) -> Float[Tensor, "*lead d d"]:
        """Return the arc weights: ``H * S``, for the nonlinear model the norm over the hidden units."""
        if self.hidden is None:
            return self.strength * self.orientation()
        oriented = self.strength * self.orientation().unsqueeze(-1)
        return oriented.square().sum(-1).clamp_min(1e-24).sqrt()

    def forward(self, x: Float[Tensor, "*data n d"]) -> Float[Tensor, "*lead n d"]:
        """Predict every node from its parents; ``x`` is shared by the restarts (``[*batch, n, d]``)."""
        x = x.unsqueeze(-3)
        if self.hidden is None:
            return x @ self.weights()
        oriented = self.strength * self.orientation().unsqueeze(-1)
        pre = torch.einsum("...nu,...uvk->...nvk", x, oriented) + self.first_bias.unsqueeze(-3)
        return (torch.sigmoid(pre) * self.second.unsqueeze(-3)).sum(-1) + self.second_bias.unsqueeze(-2)


def cosmo(
    data: Shaped[Tensor, "*batch n d"],
    *,
    covariance: bool = False,
    restarts: int = 8,
    steps: int = 6000,
    lr: float = 1e-2,
    l1: float = 1e-3,
    l2: float = 1e-3,
    priority_penalty: float = 1e-3,
    shift: float = 1e-2,
    temperature: tuple[float, float] = (0.45, 5e-4),
    minibatch: int | None = None,
    hidden: int | None = None,
    refit: bool = False,
    generator: torch.Generator | None = None,
    callback: Callable[[int, SmoothAcyclicSCM], None] | None = None,
) -> StructureResult:
    r"""Learn a DAG by smooth orientations, annealed until they are hard.

    Minimises :math:`\mathrm{MSE} + l_1\|H\|_1 + l_2\|H\|_2 + l_p\|p\|_2` with Adam. The linear model needs only second
    moments (one ``d^3`` product a step); ``minibatch`` draws samples instead, ``hidden`` fits MLPs (on samples).

    The result is identifiable for equal noise variances; on standardised data the order is not determined by the score.

    Args:
        data: ``[*batch, n, d]`` samples, or with ``covariance=True`` their ``[*batch, d, d]`` covariance.
        covariance: whether ``data`` is a covariance.
        restarts: independent starts trained as one tensor program; the one with the lowest final objective is returned.
        steps: Adam steps, the temperature falls along a cosine over all of them.
        lr: step size of Adam.
        l1, l2, priority_penalty: penalties, >= 0, of the norms (not their squares).
        shift: ``epsilon`` of :func:`orientation`.
        temperature: start and end of the annealing. ``shift / end >= 20`` keeps cycle products below 1e-8.
        minibatch: samples a step; ``None`` uses all through their covariance (linear) or all samples (nonlinear).
        hidden: hidden units of the nonlinear model.
        refit: solve least squares for the weights along the learned order (linear model).
        generator: source of initial weights and minibatches.
        callback: called as ``callback(step, model)`` before each step.

    Returns:
        :class:`StructureResult`; its graph is acyclic by construction at thresholds above ``max|H| sigmoid(-shift/t)``.

    Raises:
        ValueError: bad data (see :func:`second_moments`), sizes or penalties out of range; a covariance with
            ``minibatch`` or ``hidden``.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> cause = torch.randn(500, 1, generator=g)
        >>> x = torch.cat([2 * cause + torch.randn(500, 1, generator=g), cause], 1)
        >>> cosmo(x, restarts=4, steps=800, lr=3e-2, generator=g).graph().tolist()
        [[False, False], [True, False]]

    References:
        Massidda et al. (2024), equation 11 and section 5.
    """
    check_positive("steps", steps)
    check_positive("lr", lr)
    for name, penalty in (("l1", l1), ("l2", l2), ("priority_penalty", priority_penalty)):
        check_positive(name, penalty, zero=True)
    if covariance and (minibatch is not None or hidden is not None):
        raise ValueError("minibatch and hidden need samples, got covariance=True")
    moments = second_moments(data, covariance=covariance).detach()
    samples = None if covariance else (data - data.mean(-2, keepdim=True)).detach()
    from_moments = minibatch is None and hidden is None
    nodes, batch = data.shape[-1], tuple(data.shape[:-2])
    model = SmoothAcyclicSCM(
        nodes,
        hidden=hidden,
        shift=shift,
        temperature=temperature[0],
        restarts=restarts,
        batch=batch,
        generator=generator,
    ).to(data)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def objective(samples_now: Tensor | None) -> Tensor:
        if from_moments:
            fit = least_squares_score(model.weights(), moments.unsqueeze(-3))
        else:
            assert samples_now is not None
            fit = (model(samples_now) - samples_now.unsqueeze(-3)).square().mean((-2, -1))
        strength = model.strength.flatten(len(batch) + 1)
        return fit + l1 * strength.abs().sum(-1) + l2 * torch.linalg.vector_norm(strength, dim=-1)

    history: dict[str, list[Tensor]] = {"temperature": [], "objective": [], "priority": []}
    every = max(1, steps // 100)
    for step in range(steps):
        model.temperature.fill_(cosine_temperature(step / max(steps - 1, 1), start=temperature[0], end=temperature[1]))
        if callback is not None:
            callback(step, model)
        rows = samples
        if minibatch is not None and samples is not None:
            rows = samples[..., torch.randint(samples.shape[-2], (minibatch,), generator=generator), :]
        optimizer.zero_grad(set_to_none=True)
        value = objective(rows)
        (value + priority_penalty * torch.linalg.vector_norm(model.priority, dim=-1)).sum().backward()
        optimizer.step()
        if step % every == 0 or step == steps - 1:
            history["temperature"].append(model.temperature.clone())
            history["objective"].append(value.detach())
            history["priority"].append(model.priority.detach().clone())
    with torch.no_grad():
        weights, scores = model.weights(), objective(samples)
    best = best_restart(weights, scores)
    priority = best_restart(model.priority.detach(), scores)
    order = priority.argsort(-1)
    if refit and hidden is None:
        best = fit_order(moments, order, covariance=True)
    return StructureResult(
        weights=best,
        order=order,
        score=least_squares_score(best, moments) if hidden is None else scores.amin(-1),
        restart_weights=weights,
        restart_scores=scores,
        history={name: torch.stack(values) for name, values in history.items()},
    )
