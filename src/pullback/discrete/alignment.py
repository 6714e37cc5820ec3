"""What a policy gains by its reward and what it costs: win rates, tilting, rewind-and-repeat, and their curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from pullback.core.checks import (
    check_broadcast,
    check_floating,
    check_integer,
    check_scalar,
)
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.best_of_n import best_of_n_log_prob
from pullback.discrete.outcomes import (
    IMPOSSIBLE,
    divergence,
    finished,
    log_any,
    read_law,
    refuse_nan,
    reward_order,
    winners_law,
)

__all__ = ["AlignmentCurve", "alignment_curve", "rewind_and_repeat_log_prob", "tilted", "win_probability", "win_rate"]


def win_rate(
    policy: Float[Tensor, "*#batch a"],
    reference: Float[Tensor, "*#batch b"],
    reward: Float[Tensor, "*#batch _"] | None = None,
    *,
    n: int = 1,
) -> Float[Tensor, "*batch"]:
    r"""Return the probability that a draw from a policy has a larger reward than one from a reference, ties one half.

    With ``reward`` policy and reference are the log-probabilities of the same outcomes, and the answer is exact.
    Without, they are the rewards of independent draws, and the answer is the unbiased mean over all pairs, for
    ``n > 1`` over all subsets of n draws of the policy, whose best is compared.

    Args:
        policy: ``[*batch, a]``.
        reference: ``[*batch, b]``.
        reward: broadcasts with both; only its order matters.
        n: >= 1; the policy is the best of n.

    Returns:
        ``[*batch]`` in [0, 1]; of log-probabilities, differentiable.

    Raises:
        TypeError: a tensor is not floating, ``n`` is not an integer.
        ValueError: ``n`` is < 1 or above the number of draws of the policy, there are none, shapes do not broadcast,
            a value is NaN, log-probabilities do not sum to 1.

    Example:
        >>> fair = torch.full((6,), 1 / 6).log()
        >>> round(float(win_rate(fair, fair, torch.arange(6.0), n=2)), 4)
        0.662
        >>> win_rate(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0]), n=2)
        tensor(0.8333)

    References:
        Beirami et al. (2025), section 5. Hoeffding (1948), A class of statistics with asymptotically normal
        distribution.
    """
    check_integer("n", n, 1)
    if reward is None:
        return _win_rate_of_draws(policy, reference, n)
    ours, order = read_law(policy, reward, "policy")
    theirs, order = read_law(reference, order, "reference")
    ours = ours.expand(check_broadcast(policy=ours.shape, reference=theirs.shape))
    if n > 1:
        ours = winners_law(ours, order, n, "split")
    return (ours.exp() * _beats(theirs.expand_as(ours), order)).sum(-1).to(policy.dtype)


def win_probability(
    reference: Float[Tensor, "*#batch outcomes"], reward: Float[Tensor, "*#batch outcomes"]
) -> Float[Tensor, "*batch outcomes"]:
    """Return the probability with which each outcome beats a draw of a reference, ties one half: the calibrated reward.

    A policy's :func:`win_rate` is its mean. It keeps the order of the rewards and forgets their scale.

    Args:
        reference: ``[*batch, outcomes]`` log-probabilities of all outcomes, normalised; ``-inf`` is impossible.
        reward: broadcasts with it; only its order matters.

    Returns:
        ``[*batch, outcomes]`` in [0, 1], differentiable in ``reference``.

    Raises:
        TypeError, ValueError: as in :func:`best_of_n_log_prob`.

    Example:
        >>> win_probability(torch.tensor([0.2, 0.3, 0.5]).log(), torch.tensor([5.0, 0.0, 0.0]))
        tensor([0.9000, 0.4000, 0.4000])

    References:
        Balashankar et al. (2024), InfAlign: inference-aware language model alignment, definition 2.
    """
    law, order = read_law(reference, reward, "reference")
    return _beats(law, order).to(reference.dtype)


def tilted(
    log_prob: Float[Tensor, "*#batch outcomes"], reward: Float[Tensor, "*#batch outcomes"], beta: Scalar
) -> Float[Tensor, "*batch outcomes"]:
    r"""Return the tilted law ``p(y) exp(r(y) / beta) / Z``: of all laws at its divergence the one of largest reward.

    Args:
        log_prob: ``[*batch, outcomes]`` log-probabilities of all outcomes, normalised; ``-inf`` is impossible.
        reward: broadcasts with it, finite; differentiated too.
        beta: > 0, the price of a nat, in units of the reward; a number or a differentiable tensor without dimensions.

    Returns:
        ``[*batch, outcomes]`` log-probabilities.

    Raises:
        TypeError: ``log_prob``, ``reward`` or ``beta`` is not floating.
        ValueError: as in :func:`best_of_n_log_prob`; a reward is infinite; ``beta`` is not > 0 or has dimensions.

    Example:
        >>> tilted(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.0, 1.0]), 0.5).exp()
        tensor([0.1192, 0.8808])

    References:
        Csiszar (1975), I-divergence geometry of probability distributions and minimization problems.
    """
    log_p, wide = read_law(log_prob, reward)
    check_scalar("beta", beta)
    if can_look(wide) and not bool(wide.isfinite().all()):
        raise ValueError("reward must be finite")
    possible = log_p > IMPOSSIBLE / 2
    best = torch.where(possible, wide, -torch.inf).detach().amax(-1, keepdim=True)
    ratio = (wide - best) / (beta.double() if isinstance(beta, Tensor) else float(beta))
    law = torch.log_softmax(torch.where(possible, log_p + torch.where(possible, ratio, 0.0), IMPOSSIBLE), -1)
    return finished(law, log_p).to(log_prob.dtype)


def rewind_and_repeat_log_prob(
    log_prob: Float[Tensor, "*#batch outcomes"],
    reward: Float[Tensor, "*#batch outcomes"],
    threshold: float,
    tries: int,
) -> Float[Tensor, "*batch outcomes"]:
    r"""Return the law of the first of at most ``tries`` draws whose reward reaches a threshold, else of the last draw.

    With ``A`` the probability to reach it: ``p (1 - (1 - A)^m) / A`` where the threshold is reached, else
    ``p (1 - A)^(m - 1)``.

    Args:
        log_prob: ``[*batch, outcomes]`` log-probabilities of all outcomes, normalised; ``-inf`` is impossible.
        reward: broadcasts with it.
        threshold: the reward that is enough.
        tries: m >= 1.

    Returns:
        ``[*batch, outcomes]`` log-probabilities, differentiable in ``log_prob``.

    Raises:
        TypeError: a tensor is not floating, ``threshold`` is no number, ``tries`` no integer.
        ValueError: as in :func:`best_of_n_log_prob`, ``threshold`` is NaN, or ``tries`` < 1.

    Example:
        >>> rewind_and_repeat_log_prob(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.0, 1.0]), 1.0, 3).exp()
        tensor([0.1250, 0.8750])

    References:
        Beirami et al. (2025), section 6 (rewind-and-repeat, here of whole draws).
    """
    log_p, reward = read_law(log_prob, reward)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise TypeError(f"threshold must be a number, got {type(threshold).__name__}")
    if math.isnan(threshold):
        raise ValueError("threshold must be a number, got nan")
    check_integer("tries", tries, 1)
    enough = reward >= threshold
    log_pass = torch.where(enough, log_p, IMPOSSIBLE).logsumexp(-1, keepdim=True)
    log_fail = torch.where(enough, IMPOSSIBLE, log_p).logsumexp(-1, keepdim=True)
    passed = log_p + log_any(log_pass.clamp(max=0), tries) - log_pass
    law = torch.where(enough, passed, log_p + (tries - 1) * log_fail.clamp(min=IMPOSSIBLE))
    return finished(law.clamp(min=2 * IMPOSSIBLE), log_p).to(log_prob.dtype)


class AlignmentCurve(NamedTuple):
    """What policies gain and what they cost, one point a policy.

    Attributes:
        policy: ``"best of n"``, ``"tilted"`` or ``"rewind and repeat"`` of each point.
        parameter: n, beta or threshold of each point.
        kl: ``[*batch, points]`` divergence from the reference, nats.
        win_rate: ``[*batch, points]`` against the reference.
        reward: ``[*batch, points]`` expected reward.
    """

    policy: tuple[str, ...]
    parameter: tuple[float, ...]
    kl: Tensor
    win_rate: Tensor
    reward: Tensor


def alignment_curve(
    log_prob: Float[Tensor, "*#batch outcomes"],
    reward: Float[Tensor, "*#batch outcomes"],
    *,
    ns: Sequence[int] = (),
    betas: Sequence[float] = (),
    thresholds: Sequence[float] = (),
    tries: int = 1000,
) -> AlignmentCurve:
    """Return divergence, win rate and expected reward of best-of-n, of tilting and of rewind-and-repeat, all exact.

    Args:
        log_prob: ``[*batch, outcomes]`` log-probabilities of the reference, normalised.
        reward: broadcasts with it, finite.
        ns: numbers of draws of :func:`best_of_n_log_prob`.
        betas: prices of :func:`tilted`.
        thresholds: of :func:`rewind_and_repeat_log_prob`.
        tries: the most draws of the latter.

    Returns:
        :class:`AlignmentCurve`: ``policy``, ``parameter``, ``kl``, ``win_rate``, ``reward``.

    Raises:
        TypeError, ValueError: as these; no point is asked for.

    Example:
        >>> curve = alignment_curve(torch.full((4,), 0.25).log(), torch.arange(4.0), ns=[1, 2], betas=[1.0])
        >>> curve.policy, curve.kl
        (('best of n', 'best of n', 'tilted'), tensor([0.0000, 0.1740, 0.4388]))

    References:
        Beirami et al. (2025), figures 5 and 6.
    """
    points = [("best of n", n) for n in ns] + [("tilted", b) for b in betas]
    points += [("rewind and repeat", threshold) for threshold in thresholds]
    if not points:
        raise ValueError("one of ns, betas, thresholds must have an entry")
    log_p, order = read_law(log_prob, reward)
    if can_look(order) and not bool(order.isfinite().all()):
        raise ValueError("reward must be finite")
    laws = [best_of_n_log_prob(log_p, order, n) for n in ns] + [tilted(log_p, order, b) for b in betas]
    laws += [rewind_and_repeat_log_prob(log_p, order, threshold, tries) for threshold in thresholds]
    rows = torch.stack(laws, -2)
    log_p, order = log_p.unsqueeze(-2), order.unsqueeze(-2)
    return AlignmentCurve(
        tuple(kind for kind, _ in points),
        tuple(float(value) for _, value in points),
        divergence(rows.clamp(min=IMPOSSIBLE), log_p).to(log_prob.dtype),
        win_rate(rows, log_p, order).to(log_prob.dtype),
        (rows.exp() * order).sum(-1).to(log_prob.dtype),
    )


def _beats(law: Tensor, reward: Tensor) -> Tensor:
    order, last = reward_order(reward, law)
    p = law.exp().gather(-1, order)
    tied = torch.zeros_like(p).scatter_add(-1, last, p).gather(-1, last)
    return torch.zeros_like(p).scatter(-1, order, p.cumsum(-1).gather(-1, last) - tied / 2)


def _win_rate_of_draws(policy: Tensor, reference: Tensor, n: int) -> Tensor:
    """Return the U-statistic: the i-th of all draws is the best of C(i - 1, n - 1) subsets of n."""
    for name, rewards in (("policy", policy), ("reference", reference)):
        check_floating(name, rewards)
        if not rewards.ndim or not rewards.shape[-1]:
            raise ValueError(f"{name} must have at least one draw, got shape {tuple(rewards.shape)}")
        refuse_nan(name, rewards)
    count = policy.shape[-1]
    if n > count:
        raise ValueError(f"n must be at most the {count} draws of the policy, got {n}")
    check_broadcast(policy=policy.shape[:-1], reference=reference.shape[:-1])
    i = torch.arange(1, count + 1, dtype=torch.float64, device=policy.device)
    below = torch.where(i >= n, i - n, 0.0)
    log_subsets = i.lgamma() - (below + 1).lgamma() - math.lgamma(n)  # log C(i - 1, n - 1)
    weights = torch.where(i >= n, log_subsets, -torch.inf).softmax(-1)
    difference = policy.sort(-1).values.unsqueeze(-1) - reference.unsqueeze(-2)
    wins = (difference > 0).double() + (difference == 0).double() / 2
    return (weights * wins.mean(-1)).sum(-1).to(policy.dtype)
