"""Designs of interventions without a gradient: drawn, chosen from a grid, or by Bayesian optimisation of the value."""

from __future__ import annotations

import itertools
import math

import torch

from pullback.causal.design import Design, InterventionPolicy, expected_information_gain
from pullback.causal.ensemble import ModelPosterior
from pullback.core.checks import check_integer, check_positive
from pullback.core.shapes import Tensor

__all__ = ["bayesian_value_search", "greedy_design", "random_design"]


def random_design(
    nodes: int,
    batch: int,
    *,
    targets: int | None = None,
    value_range: tuple[float, float] = (-10.0, 10.0),
    generator: torch.Generator | None = None,
) -> Design:
    """Draw a design: every node a target with probability 1/2 (or exactly ``targets`` of them), values uniform.

    Args:
        nodes, batch, targets, value_range: as of :class:`InterventionPolicy`.
        generator: source of the draws.
    """
    policy = InterventionPolicy(nodes, batch, targets=targets, value_range=value_range, generator=generator)
    with torch.no_grad():
        chosen, values = policy.sample(1.0, 1, generator=generator)
    return Design(chosen[0], values[0], torch.tensor(math.nan), torch.zeros(0))


def greedy_design(
    posterior: ModelPosterior,
    *,
    batch: int,
    value_grid: tuple[float, ...] = (-10.0, -5.0, 5.0, 10.0),
    single: bool = True,
    samples: int = 16,
    generator: torch.Generator | None = None,
) -> Design:
    """Choose interventions one after the other from a grid of targets and values, each the best beside those before it.

    Args:
        posterior: the models.
        batch: interventions, >= 1.
        value_grid: what a target may be set to; all targets of an intervention have one value.
        single: one target an intervention; else every set of targets (``2^d - 1`` of them, ``d <= 12``).
        samples: draws of the outcome a model.
        generator: source of the outcomes.

    Returns:
        :class:`Design`.

    Raises:
        ValueError: an empty grid, too many sets.

    References:
        Tigas et al. (2022), Interventions, Where and How?, the greedy batches that DiffCBED compares with.
    """
    check_integer("batch", batch, 1)
    nodes = posterior.noise.shape[-1]
    if not value_grid:
        raise ValueError("value_grid must have at least one value")
    if single:
        sets = torch.eye(nodes)
    else:
        check_integer("the number of nodes with single=False", nodes, 1, 12)
        sets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=nodes)))[1:]
    options = sets.to(posterior.noise).repeat(len(value_grid), 1)
    grid = torch.tensor(value_grid).to(posterior.noise).repeat_interleave(len(sets))[:, None].expand(options.shape)
    chosen = Design(options.new_zeros(0, nodes), options.new_zeros(0, nodes), *_unknown(options))
    for _ in range(batch):
        gains = _gains(posterior, chosen, options, grid, samples, generator)
        chosen = _added(chosen, options, grid, int(gains.argmax()))
    return _estimated(posterior, chosen, generator)


def bayesian_value_search(
    posterior: ModelPosterior,
    *,
    batch: int,
    value_range: tuple[float, float] = (-10.0, 10.0),
    evaluations: int = 12,
    exploration: int = 5,
    confidence: float = 2.5,
    samples: int = 16,
    generator: torch.Generator | None = None,
) -> Design:
    r"""Choose single targets one after the other, the value of each by Bayesian optimisation.

    For every node a Gaussian process describes how the gain depends on the value :math:`s`, with a Matern kernel of
    smoothness 5/2 whose length and noise have the largest marginal likelihood of a grid. After some random values the
    next one is where the upper bound :math:`\mu(s) + \kappa\,\sigma(s)` is largest. The target and value with the
    largest gain that was seen are taken, and the next intervention is chosen beside them.

    Args:
        posterior: the models.
        batch: interventions, >= 1, each with one target.
        value_range: ``(low, high)`` with ``low < high``.
        evaluations: values tried for every node and intervention, >= 2.
        exploration: of them, how many are random at first, 2 to ``evaluations``.
        confidence: the factor :math:`\kappa` >= 0 of the standard deviation.
        samples: draws of the outcome a model.
        generator: source of first values and outcomes.

    Returns:
        :class:`Design`; its history holds the largest gain seen after each evaluation, of each intervention.

    Raises:
        ValueError: options out of range.

    Example:
        >>> weights = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]])
        >>> posterior = ModelPosterior(weights, torch.ones(2, 2), torch.full((2,), 0.5).log())
        >>> g = torch.Generator().manual_seed(0)
        >>> design = bayesian_value_search(posterior, batch=1, value_range=(-4.0, 4.0), generator=g)
        >>> design.targets.sum().item(), design.values.abs().max().item() > 3  # the larger, the more it tells
        (1.0, True)

    References:
        Tigas et al. (2022), Interventions, Where and How?; Srinivas et al. (2010) for the upper bound.
    """
    check_integer("batch", batch, 1)
    check_integer("evaluations", evaluations, 2)
    check_integer("exploration", exploration, 2, evaluations)
    check_positive("confidence", confidence, zero=True)
    low, high = value_range
    if not low < high:
        raise ValueError(f"value_range must be (low, high) with low < high, got {value_range}")
    nodes = posterior.noise.shape[-1]
    single = torch.eye(nodes).to(posterior.noise)
    device = None if generator is None else generator.device
    places = torch.linspace(0, 1, 101).to(single)
    chosen = Design(single.new_zeros(0, nodes), single.new_zeros(0, nodes), *_unknown(single))
    history: list[Tensor] = []
    for _ in range(batch):
        tried = torch.rand(nodes, exploration, generator=generator, device=device).to(single)  # as shares of the range
        seen = single.new_zeros(nodes, 0)
        for turn in range(evaluations):
            if turn >= exploration:
                tried = torch.cat([tried, places[_upper_bound(tried, seen, places, confidence).argmax(-1)][:, None]], 1)
            values = single * (low + (high - low) * tried[:, turn])
            gains = _gains(posterior, chosen, single, values, samples, generator)
            seen = torch.cat([seen, gains.unsqueeze(-1)], 1)
            history.append(seen.max())
        node, turn = divmod(int(seen.argmax()), evaluations)
        chosen = _added(chosen, single, single * (low + (high - low) * tried[:, turn]), node)
    return _estimated(posterior, chosen._replace(history=torch.stack(history)), generator)


def _gains(
    posterior: ModelPosterior,
    chosen: Design,
    targets: Tensor,
    values: Tensor,
    samples: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Score every option as the intervention after those that are chosen, in parts that fit into memory."""
    designs = [
        torch.cat([before.expand(len(new), *before.shape), new.unsqueeze(1)], 1).split(64)
        for before, new in ((chosen.targets, targets), (chosen.values, values))
    ]
    with torch.no_grad():
        parts = [
            expected_information_gain(posterior, t, v, samples=samples, generator=generator)
            for t, v in zip(*designs, strict=True)
        ]
    return torch.cat(parts)


def _added(chosen: Design, targets: Tensor, values: Tensor, option: int) -> Design:
    targets, values = torch.cat([chosen.targets, targets[[option]]]), torch.cat([chosen.values, values[[option]]])
    return chosen._replace(targets=targets, values=values)


def _unknown(like: Tensor) -> tuple[Tensor, Tensor]:
    """The gain and the history of a design that was not scored."""
    return like.new_tensor(math.nan), like.new_zeros(0)


def _estimated(posterior: ModelPosterior, design: Design, generator: torch.Generator | None) -> Design:
    """Score with samples that had no part in the choice."""
    with torch.no_grad():
        gain = expected_information_gain(posterior, design.targets, design.values, samples=64, generator=generator)
    return design._replace(gain=gain)


def _upper_bound(tried: Tensor, seen: Tensor, places: Tensor, confidence: float) -> Tensor:
    """The mean plus so many standard deviations of one Gaussian process a row, [rows, places]."""
    spread = seen.std(-1, keepdim=True).clamp_min(torch.finfo(seen.dtype).tiny)
    y = ((seen - seen.mean(-1, keepdim=True)) / spread).unsqueeze(-1)
    options = torch.cartesian_prod(torch.tensor([0.1, 0.2, 0.4, 0.8]), torch.tensor([1e-3, 1e-2, 1e-1])).to(seen)
    length, noise = options.T[:, :, None, None, None]  # [options, 1, 1, 1]
    kernel = _matern((tried.unsqueeze(-1) - tried.unsqueeze(-2)) / length)  # [options, rows, k, k]
    factor = torch.linalg.cholesky(kernel + noise * torch.eye(tried.shape[-1]).to(kernel))
    white = torch.linalg.solve_triangular(factor, y.expand(*factor.shape[:-1], 1), upper=False)
    evidence = -0.5 * white.square().sum((-2, -1)) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    across = _matern((tried.unsqueeze(-1) - places) / length)  # [options, rows, k, places]
    whitened = torch.linalg.solve_triangular(factor, across, upper=False)
    mean = (whitened * white).sum(-2)
    deviation = (1 - whitened.square().sum(-2)).clamp_min(0).sqrt()
    best = evidence.argmax(0)
    bound = (mean + confidence * deviation)[best, torch.arange(len(tried), device=best.device)]
    return seen.mean(-1, keepdim=True) + spread * bound


def _matern(distance: Tensor) -> Tensor:
    scaled = math.sqrt(5) * distance.abs()
    return (1 + scaled + scaled.square() / 3) * (-scaled).exp()
