"""Designing interventions: how much an experiment would tell about a causal model, and policies that raise it."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import nn

from pullback.causal.ensemble import ModelPosterior
from pullback.core.checks import check_choice, check_finite, check_floating, check_integer, check_scalar, check_shape
from pullback.core.numerics import solve
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.discrete import bernoulli, multinomial

__all__ = [
    "Design",
    "InterventionPolicy",
    "expected_information_gain",
    "optimize_design",
]

ESTIMATORS = ("exact-finite", "nmc", "pce", "covariance")


class Design(NamedTuple):
    """A batch of interventions.

    Attributes:
        targets: ``[b, d]`` zeros and ones: which nodes each intervention sets.
        values: ``[b, d]`` what to.
        gain: expected information gain in nats, estimated with samples that had no part in the choice; NaN where no
            posterior was asked.
        history: ``[steps]`` estimates on the way, empty for designs that were not optimised.
    """

    targets: Float[Tensor, "b d"]
    values: Float[Tensor, "b d"]
    gain: Float[Tensor, ""]
    history: Float[Tensor, "steps"]


def expected_information_gain(
    posterior: ModelPosterior,
    targets: Float[Tensor, "*designs b d"],
    values: Float[Tensor, "*designs b d"],
    *,
    samples: int = 16,
    estimator: str = "exact-finite",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*designs"]:
    r"""Return the mutual information of the model and what a batch of interventions would show, in nats.

    .. math:: I = \sum_l w_l\, E_{y \sim p(y|l)} \Big[\log p(y|l) - \log \sum_m w_m\, p(y|m)\Big], \qquad
        \log p(y|l) = \sum_{b} \log p(y_b | l)

    with one sample ``y_b`` of each of the ``b`` interventions, scored jointly. By estimator of the sum over ``m``:

    * ``"exact-finite"``: as written, exact for a finite posterior; at most the entropy of the weights, ``log m``;
    * ``"nmc"``: without ``m = l``: nested Monte Carlo, biased upwards;
    * ``"pce"``: with ``m = l`` and equal weights: prior contrastive estimation, below the truth for an infinite one;
    * ``"covariance"``: of the Gaussian with the mixture's covariance, an upper bound without sampling.

    Args:
        posterior: the models.
        targets: ``[*designs, b, d]`` in [0, 1], soft or hard.
        values: ``[*designs, b, d]``.
        samples: draws of ``y`` a model, >= 1.
        estimator: of the four.
        generator: source of the noise, the same for all designs (so that they are compared fairly).

    Returns:
        ``[*designs]``, differentiable in targets and values.

    Raises:
        ValueError: shapes that do not fit, an unknown estimator, ``"nmc"`` of a single model.

    Example:
        >>> weights = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]])
        >>> posterior = ModelPosterior(weights, 0.1 * torch.ones(2, 2), torch.full((2,), 0.5).log())
        >>> gain = expected_information_gain(posterior, torch.tensor([[1.0, 0.0]]), torch.tensor([[9.0, 0.0]]))
        >>> round(gain.item() / math.log(2), 3)
        1.0

    References:
        Annadani, Tigas, Ivanova et al. (2023), DiffCBED, equations 5 and 8; Foster et al. (2020) for ``"pce"``.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    check_integer("samples", samples, 1)
    nodes = posterior.noise.shape[-1]
    check_shape("targets", check_floating("targets", targets), (None, nodes))
    if values.shape != targets.shape:
        raise ValueError(f"values must have the shape of targets, {tuple(targets.shape)}, got {tuple(values.shape)}")
    if targets.dtype != posterior.noise.dtype or values.dtype != posterior.noise.dtype:
        raise TypeError(
            f"targets and values must have the posterior's dtype, {posterior.noise.dtype}, got {targets.dtype} and "
            f"{values.dtype}"
        )
    if can_look(targets) and not bool(((targets >= 0) & (targets <= 1)).all()):
        raise ValueError(f"targets must be in [0, 1], got {targets.min().item():.4g} to {targets.max().item():.4g}")
    if can_look(values):
        check_finite("values", values)
    if estimator == "covariance":
        return _gaussian_gain(posterior, targets, values)
    return _sampled_gain(posterior, targets, values, targets, samples, estimator, generator)


def _sampled_gain(
    posterior: ModelPosterior,
    targets: Tensor,
    values: Tensor,
    scored: Tensor,
    samples: int,
    estimator: str,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw under ``targets`` and score the nodes that are not in ``scored``: the same, but it may have no gradient."""
    y = posterior.rsample(samples, targets, values, generator=generator)  # [*designs, b, m, n, d]
    density = posterior.log_prob(y.flatten(-3, -2), scored).unflatten(-2, y.shape[-3:-1])
    joint = density.sum(-4)  # over the interventions: [*designs, of, n, m]
    own = joint.diagonal(dim1=-3, dim2=-1).mT  # [*designs, m, n]
    weights = posterior.log_weights
    if estimator == "nmc":
        if len(weights) < 2:
            raise ValueError("estimator 'nmc' needs at least two models")
        itself = torch.eye(len(weights), dtype=torch.bool, device=joint.device).unsqueeze(-2)
        others = torch.log1p(-weights.exp())[:, None]
        mixture = (joint + weights).masked_fill(itself, -math.inf).logsumexp(-1) - others
    elif estimator == "pce":
        mixture = joint.logsumexp(-1) - math.log(len(weights))
    else:
        mixture = (joint + weights).logsumexp(-1)
    return (weights.exp()[:, None] * (own - mixture)).sum(-2).mean(-1)


def _gaussian_gain(posterior: ModelPosterior, targets: Tensor, values: Tensor) -> Tensor:
    """Half the log-determinant of the mixture's covariance over that of the models; set nodes have unit variance."""
    nodes = posterior.noise.shape[-1]
    free = (1 - targets).unsqueeze(-2)  # [*designs, b, 1, d]
    dtype, working = values.dtype, torch.promote_types(values.dtype, torch.float32)  # no factorisations in half
    targets, values, free = targets.to(working), values.to(working), free.to(working)
    weights, noise = posterior.log_weights.to(working).exp(), posterior.noise.to(working)
    identity = torch.eye(nodes, dtype=working, device=noise.device)
    system = identity - posterior.weights * free.unsqueeze(-2)
    inverse = solve(system, identity.expand_as(system))  # [*designs, b, m, d, d]
    mean = ((targets * values)[..., None, None, :] @ inverse).squeeze(-2) * free
    spread = inverse.mT * (free * noise).square().unsqueeze(-2) @ inverse
    set_nodes = torch.diag_embed(targets).unsqueeze(-3)
    within = spread * free.unsqueeze(-1) * free.unsqueeze(-2) + set_nodes  # [*designs, b, m, d, d]
    batch = targets.shape[-2]
    average = (weights[:, None, None] * within).sum(-3)  # [*designs, b, d, d]
    deviation = mean - (weights[:, None] * mean).sum(-2, keepdim=True)
    stacked = deviation.movedim(-3, -2).flatten(-2)  # [*designs, m, b * d]
    between = stacked.mT * weights @ stacked
    blocks = torch.zeros_like(between).unflatten(-1, (batch, nodes)).unflatten(-3, (batch, nodes))
    index = torch.arange(batch)
    blocks = blocks.movedim((-4, -2), (0, 1)).index_put((index, index), average.movedim(-3, 0))
    total = blocks.movedim((0, 1), (-4, -2)).flatten(-4, -3).flatten(-2) + between
    given = (weights * _log_determinant(within).sum(-2)).sum(-1)
    return (0.5 * (_log_determinant(total) - given)).to(dtype)


def _log_determinant(covariance: Tensor) -> Tensor:
    factor, information = torch.linalg.cholesky_ex(covariance)
    if can_look(information) and bool((information != 0).any()):
        raise ValueError("values must be smaller: the covariance of what the models show is not finite or not definite")
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


class InterventionPolicy(nn.Module):
    r"""A law over batches of interventions with a gradient: which nodes to set, and values that are parameters.

    Without ``targets`` every node is set by a relaxed Bernoulli of its logit, rounded with the gradient of the
    relaxation; with ``targets=q`` exactly ``q`` by the Gumbel top-k, one relaxed row after the other. The values are
    ``low + (high - low) hardsigmoid(v)`` of parameters ``v``.

    Args:
        nodes: >= 1.
        batch: interventions of a design, >= 1.
        targets: nodes that each intervention sets, 1 to ``nodes``; ``None`` for any number.
        value_range: ``(low, high)`` with ``low < high``.
        generator: source of the first values, uniform in the range. The logits start at 0.

    Raises:
        ValueError: arguments out of range.

    Example:
        >>> policy = InterventionPolicy(4, 2, targets=1, generator=torch.Generator().manual_seed(0))
        >>> targets, values = policy.sample(1.0, 8, generator=torch.Generator().manual_seed(0))
        >>> targets.shape, targets.sum(-1).unique().tolist()
        (torch.Size([8, 2, 4]), [1.0])

    References:
        Annadani, Tigas, Ivanova et al. (2023), DiffCBED, section 4.2; Xie, Ermon (2019) for exactly ``q`` targets.
    """

    def __init__(
        self,
        nodes: int,
        batch: int,
        *,
        targets: int | None = None,
        value_range: tuple[float, float] = (-10.0, 10.0),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("nodes", nodes, 1)
        check_integer("batch", batch, 1)
        if targets is not None:
            check_integer("targets", targets, 1, nodes)
        low, high = value_range
        if not low < high:
            raise ValueError(f"value_range must be (low, high) with low < high, got {value_range}")
        self.targets, self.value_range = targets, (float(low), float(high))
        device = None if generator is None else generator.device
        self.logits = nn.Parameter(torch.zeros(batch, nodes))
        self.raw_values = nn.Parameter(6 * torch.rand(batch, nodes, generator=generator, device=device).cpu() - 3)

    @property
    def values(self) -> Float[Tensor, "b d"]:
        """What a node is set to where it is a target."""
        low, high = self.value_range
        return low + (high - low) * (self.raw_values.clamp(-3, 3) + 3) / 6

    def sample(
        self, temperature: float | Float[Tensor, ""], count: int, *, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "count b d"], Float[Tensor, "count b d"]]:
        """Draw designs: hard targets with the gradient of the relaxation, and the values.

        Args:
            temperature: > 0 of the relaxation.
            count: designs, >= 1.
            generator: source of the draws.
        """
        check_scalar("temperature", temperature)
        check_integer("count", count, 1)
        probability = torch.sigmoid(self.logits) if self.targets is None else self.logits.softmax(-1)
        probability = probability.expand(count, *self.logits.shape)
        if self.targets is None:
            chosen = bernoulli(probability, temperature=temperature, hard=True, generator=generator)
        else:
            rows = multinomial(probability, self.targets, temperature=temperature, hard=True, generator=generator)
            chosen = rows.sum(-2)
        return chosen, self.values.expand_as(chosen)

    def log_prob(self, targets: Float[Tensor, "*count b d"]) -> Float[Tensor, "*count"]:
        """Return the log-probability of the targets of a design, differentiable in the logits.

        Args:
            targets: ``[*count, b, d]`` zeros and ones, as many ones an intervention as the policy sets.

        Raises:
            ValueError: targets of another shape or number; more than 6 targets, whose orders are too many to sum over.

        Example:
            >>> policy = InterventionPolicy(4, 2, targets=1)
            >>> round(policy.log_prob(torch.eye(4)[:2]).exp().item(), 4)  # two choices of one of four
            0.0625
        """
        check_shape("targets", targets, tuple(self.logits.shape))
        if self.targets is None:
            return -nn.functional.softplus((1 - 2 * targets) * self.logits).sum((-2, -1))
        check_integer("the number of targets of a policy with probabilities", self.targets, 1, 6)
        if can_look(targets) and not bool((targets.sum(-1) == self.targets).all()):
            raise ValueError(f"targets must have {self.targets} ones an intervention")
        # The set is drawn in any of its orders: each a product of softmaxes over what was not drawn before.
        chosen = targets.topk(self.targets, -1).indices
        orders = torch.tensor(list(itertools.permutations(range(self.targets))), device=targets.device)
        log_p = self.logits.log_softmax(-1).expand(targets.shape).gather(-1, chosen)[..., orders]
        left = 1 - nn.functional.pad(log_p.exp().cumsum(-1)[..., :-1], (1, 0))
        return (log_p - left.log()).sum(-1).logsumexp(-1).sum(-1)


def optimize_design(
    posterior: ModelPosterior,
    *,
    policy: InterventionPolicy,
    steps: int = 100,
    lr: float = 0.5,
    temperature: tuple[float, float] = (5.0, 0.5),
    samples: int = 4,
    count: int = 8,
    estimator: str = "exact-finite",
    gradient: str = "straight-through",
    generator: torch.Generator | None = None,
) -> Design:
    """Raise the expected information gain of a policy's designs by Adam, and return one of the best.

    The values have the derivative of the gain; the logits of the targets, by ``gradient``,

    * ``"straight-through"``, as in the paper: the derivative at the hard targets, by way of what they let the models
      show, times that of the relaxation, whose temperature falls linearly over four fifths of the steps. (That the
      targets say which nodes are scored adds noise but nothing on average, and has no gradient here.) It is biased:
      the gain is far from linear in a target, and with several targets of much weight it may not point uphill;
    * ``"score"``: the score function with the mean of the other designs of the step as baseline, unbiased.

    Choosing the largest of noisy estimates would flatter the design, so that the best of every step are scored again
    with fresh samples, and the one that is chosen once more for the gain that is returned.

    Args:
        posterior: the models.
        policy: changed in place.
        steps: of Adam, >= 1.
        lr: its step size, > 0.
        temperature: first and last, > 0.
        samples: draws of the outcome a model.
        count: designs a step, over which the gain is averaged.
        estimator: of :func:`expected_information_gain`.
        gradient: of the two.
        generator: source of designs and outcomes.

    Returns:
        :class:`Design`; a gain near zero means that the models agree, or that every node is set.

    Raises:
        ValueError: options out of range, a policy for another number of nodes.

    References:
        Annadani, Tigas, Ivanova et al. (2023), DiffCBED, algorithm 1; Kool, van Hoof, Welling (2019), Buy 4 REINFORCE
        samples, get a baseline for free, for ``"score"``.
    """
    check_choice("estimator", estimator, ESTIMATORS)
    check_choice("gradient", gradient, ("straight-through", "score"))
    check_integer("count", count, 2 if gradient == "score" else 1)
    check_integer("samples", samples, 1)
    check_integer("steps", steps, 1)
    check_scalar("lr", lr)
    first, last = temperature
    check_scalar("temperature", first)
    check_scalar("temperature", last)
    if policy.logits.shape[-1] != posterior.noise.shape[-1]:
        raise ValueError(f"policy must be for {posterior.noise.shape[-1]} nodes, got {policy.logits.shape[-1]}")
    policy = policy.to(posterior.noise)
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    history: list[Tensor] = []
    seen: list[tuple[Tensor, Tensor]] = []
    for step in range(steps):
        share = min(1.0, step / max(1.0, 0.8 * steps))
        targets, values = policy.sample(first + (last - first) * share, count, generator=generator)
        targets = targets if gradient == "straight-through" else targets.detach()
        if estimator == "covariance":
            gains = _gaussian_gain(posterior, targets, values)
        else:
            gains = _sampled_gain(posterior, targets, values, targets.detach(), samples, estimator, generator)
        objective = gains.mean()
        if gradient == "score":
            ahead = (gains - objective).detach() * count / (count - 1)  # of the mean of the others
            objective = objective + (ahead * policy.log_prob(targets)).mean()
        optimizer.zero_grad()
        (-objective).backward()
        optimizer.step()
        with torch.no_grad():
            policy.raw_values.clamp_(-3, 3)  # beyond its bounds a value would have no gradient, and stay there
        history.append(gains.detach().mean())
        best = int(gains.argmax())
        seen.append((targets[best].detach(), values[best].detach()))
    chosen, values = (torch.stack(each) for each in zip(*seen, strict=True))
    return _best(posterior, chosen, values, history, generator)


def _best(
    posterior: ModelPosterior, targets: Tensor, values: Tensor, history: list[Tensor], generator: torch.Generator | None
) -> Design:
    """Choose by fresh samples, few of all designs and more of the better ones, and estimate the choice by others."""
    with torch.no_grad():
        for samples, left in ((4, 16), (32, 1)):
            gains = [
                expected_information_gain(posterior, t, v, samples=samples, generator=generator)
                for t, v in zip(targets.split(32), values.split(32), strict=True)
            ]
            kept = torch.cat(gains).topk(min(left, len(targets))).indices
            targets, values = targets[kept], values[kept]
        gain = expected_information_gain(posterior, targets[0], values[0], samples=64, generator=generator)
    return Design(targets[0], values[0], gain, torch.stack(history))
