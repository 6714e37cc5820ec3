"""Best of n: draw n times, keep the draw of largest reward. The law of what is kept, its price and what it gains.

With the outcomes in the order of their reward, ``F`` the probability of an outcome or a worse one, and ``P`` its own
(for tied outcomes, that of all of them), the winner of n draws has the law

    pi_n(y) = p(y) / P (F^n - (F - P)^n),

a smooth function of the log-probabilities. Everything is computed in logarithms and in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from pullback.core.checks import (
    check_broadcast,
    check_callable,
    check_choice,
    check_floating,
    check_integer,
    check_scalar,
    check_tensor,
)
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look

__all__ = [
    "AlignmentCurve",
    "KLEstimate",
    "Selection",
    "alignment_curve",
    "best_of_n",
    "best_of_n_kl",
    "best_of_n_log_prob",
    "rewind_and_repeat_log_prob",
    "tilted",
    "win_probability",
    "win_rate",
]

_IMPOSSIBLE = -1e250  # the logarithm of a probability that is 0, with a gradient that is not NaN


class Selection(NamedTuple):
    """The winners of n draws.

    Attributes:
        sample: ``[*batch, *event]`` the draw of largest reward.
        reward: ``[*batch]`` its reward.
        index: ``[*batch]`` its number among the draws.
        candidates: ``[n, *batch, *event]`` all draws.
    """

    sample: Tensor
    reward: Tensor
    index: Tensor  # type: ignore[assignment]
    candidates: Tensor


def best_of_n(
    sampler: Callable[[int, torch.Generator | None], Tensor],
    reward: Callable[[Tensor], Tensor],
    n: int,
    *,
    generator: torch.Generator | None = None,
) -> Selection:
    """Draw ``n`` times and keep the draw of largest reward, of equal ones the first.

    Args:
        sampler: ``sampler(n, generator)`` returns ``[n, *batch, *event]`` independent draws, of any dtype.
        reward: takes all draws and returns ``[n, *batch]`` floating, without NaN.
        n: >= 1, the number of draws.
        generator: handed to ``sampler``.

    Returns:
        :class:`Selection`: ``sample``, ``reward``, ``index``, ``candidates``; gradients flow into the winning draw.

    Raises:
        TypeError: ``sampler`` or ``reward`` is not callable or returns no (floating) tensor, ``n`` is not an integer.
        ValueError: ``n`` < 1, the draws are not ``n``, the rewards do not fit them, or are NaN.

    Example:
        >>> dice = lambda n, generator: torch.randint(1, 7, (n,), generator=generator)
        >>> int(best_of_n(dice, lambda faces: faces.float(), 100).sample)
        6

    References:
        Stiennon et al. (2020), Learning to summarize from human feedback. Beirami et al. (2025), equation 1.
    """
    check_callable("sampler", sampler)
    check_callable("reward", reward)
    check_integer("n", n, 1)
    candidates = check_tensor("the draws of sampler", sampler(n, generator))
    if not candidates.ndim or candidates.shape[0] != n:
        raise ValueError(f"sampler must return {n} draws, got shape {tuple(candidates.shape)}")
    rewards = check_floating("the rewards", reward(candidates))
    if not rewards.ndim or rewards.shape != candidates.shape[: rewards.ndim]:
        raise ValueError(
            f"reward must return one number a draw, got shape {tuple(rewards.shape)} for draws of shape "
            f"{tuple(candidates.shape)}"
        )
    _refuse_nan("reward", rewards)
    index = rewards.detach().argmax(0)
    event = candidates.ndim - rewards.ndim
    of_winner = index.reshape(1, *index.shape, *[1] * event).expand(1, *candidates.shape[1:])
    best = rewards.gather(0, index.unsqueeze(0)).squeeze(0)
    return Selection(candidates.gather(0, of_winner).squeeze(0), best, index, candidates)


def best_of_n_log_prob(
    log_prob: Float[Tensor, "*#batch outcomes"],
    reward: Float[Tensor, "*#batch outcomes"],
    n: int,
    *,
    ties: str = "split",
) -> Float[Tensor, "*batch outcomes"]:
    r"""Return the log-probability with which each outcome is the best of ``n`` draws.

    .. math:: \log \pi_n(y) = \log \big( F(y)^n - (F(y) - P(y))^n \big) + \log p(y) - \log P(y)

    Args:
        log_prob: ``[*batch, outcomes]`` log-probabilities of all outcomes, normalised; ``-inf`` is impossible.
        reward: broadcasts with it; what is larger wins. Only its order matters, so it gets no gradient.
        n: >= 1, the number of draws.
        ties: of equal rewards the first draw wins, which divides the group's probability in proportion to ``p``
            (``"split"``, what :func:`best_of_n` does), or the outcome of higher index counts as better (``"order"``).

    Returns:
        ``[*batch, outcomes]``, normalised, differentiable in ``log_prob``.

    Raises:
        TypeError: ``log_prob`` or ``reward`` is not a floating tensor, ``n`` is not an integer.
        ValueError: ``n`` < 1, the shapes do not broadcast, the log-probabilities do not sum to 1, a value is NaN,
            ``ties`` is unknown.

    Example:
        >>> coin = torch.tensor([0.5, 0.5]).log()
        >>> best_of_n_log_prob(coin, torch.tensor([0.0, 1.0]), 2).exp()
        tensor([0.2500, 0.7500])

    References:
        Beirami et al. (2025), Theoretical guarantees on the best-of-n alignment policy, lemma 1.
    """
    log_p, reward = _law(log_prob, reward)
    check_integer("n", n, 1)
    check_choice("ties", ties, ("order", "split"))
    return _finished(_best_of(log_p, reward, n, ties), log_p).to(log_prob.dtype)


class KLEstimate(NamedTuple):
    """A divergence in nats.

    Attributes:
        value: ``[*batch]`` the divergence, its bound or the mean over winners.
        standard_error: ``[*batch]`` of that mean; 0 where nothing was drawn, infinite for a single winner.
    """

    value: Tensor
    standard_error: Tensor


def best_of_n_kl(
    log_prob: Float[Tensor, "*#batch outcomes"],
    n: int,
    *,
    method: str = "estimate",
    reward: Float[Tensor, "*#batch outcomes"] | None = None,
    ties: str = "split",
) -> KLEstimate:
    r"""Return KL(pi_n || p), the divergence of best-of-n from the law that is drawn from: exact, bound or estimate.

    ``"bound"``: ``log n - (n - 1) / n``, the value without atoms. ``"estimate"``, from winners alone, with
    ``e = p(winner)`` the mean of

    .. math:: (1 - e)^n \big( \log n + (n - 1) \log(1 - e) - \tfrac{n - 1}{n} \big)
              + \big( 1 - (1 - e)^n \big) \log \tfrac{1 - (1 - e)^n}{e},

    whose expectation lies between the exact value and the bound. ``"exact"``: the sum over all outcomes.

    Args:
        log_prob: for ``"estimate"`` the log-probabilities of ``[*batch, winners]``; for ``"exact"`` those of all
            outcomes, normalised; ``"bound"`` takes its batch shape alone.
        n: >= 1, the number of draws.
        method: ``"bound"``, ``"estimate"`` or ``"exact"``.
        reward: of all outcomes, for ``"exact"`` alone.
        ties: as in :func:`best_of_n_log_prob`, for ``"exact"``.

    Returns:
        :class:`KLEstimate`: ``value``, ``standard_error``.

    Raises:
        TypeError: a tensor is not floating, ``n`` is not an integer, ``reward`` is missing or not wanted.
        ValueError: ``n`` < 1, no winners, a log-probability is positive or NaN, or as in :func:`best_of_n_log_prob`.

    Example:
        >>> coin = torch.tensor([0.5, 0.5]).log()
        >>> exact = best_of_n_kl(coin, 512, method="exact", reward=torch.tensor([0.0, 1.0]))
        >>> round(float(exact.value), 3), round(float(best_of_n_kl(coin, 512, method="bound").value), 3)
        (0.693, 5.24)

    References:
        Beirami et al. (2025), theorems 1 and 2 (the bound), equation 14 (the estimator).
    """
    check_floating("log_prob", log_prob)
    check_integer("n", n, 1)
    check_choice("method", method, ("bound", "estimate", "exact"))
    if (reward is not None) != (method == "exact"):
        raise TypeError(f"method {method!r} {'wants' if method == 'exact' else 'takes no'} reward")
    if not log_prob.ndim or not log_prob.shape[-1]:
        raise ValueError(f"log_prob must have at least one entry in its last dimension, got {tuple(log_prob.shape)}")
    _refuse_nan("log_prob", log_prob)
    if method == "bound":
        value = torch.full_like(log_prob[..., 0], math.log(n) - (n - 1) / n)
        return KLEstimate(value, torch.zeros_like(value))
    if method == "exact":
        assert reward is not None
        check_choice("ties", ties, ("order", "split"))
        log_p, reward = _law(log_prob, reward)
        value = _divergence(_best_of(log_p, reward, n, ties), log_p).to(log_prob.dtype)
        return KLEstimate(value, torch.zeros_like(value))
    if can_look(log_prob) and bool((log_prob > _tolerance(log_prob)).any()):
        raise ValueError(f"log_prob must be <= 0, got maximum {float(log_prob.max())}")
    each = _per_winner(log_prob.double().clamp(max=0), n)
    count = each.shape[-1]
    mean = each.mean(-1)
    error = each.detach().std(-1) / math.sqrt(count) if count > 1 else torch.full_like(mean.detach(), math.inf)
    return KLEstimate(mean.to(log_prob.dtype), error.to(log_prob.dtype))


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
    ours, order = _law(policy, reward, "policy")
    theirs, order = _law(reference, order, "reference")
    ours = ours.expand(check_broadcast(policy=ours.shape, reference=theirs.shape))
    if n > 1:
        ours = _best_of(ours, order, n, "split")
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
    law, order = _law(reference, reward, "reference")
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
    log_p, wide = _law(log_prob, reward)
    check_scalar("beta", beta)
    if can_look(wide) and not bool(wide.isfinite().all()):
        raise ValueError("reward must be finite")
    possible = log_p > _IMPOSSIBLE / 2
    best = torch.where(possible, wide, -torch.inf).detach().amax(-1, keepdim=True)
    ratio = (wide - best) / (beta.double() if isinstance(beta, Tensor) else float(beta))
    law = torch.log_softmax(torch.where(possible, log_p + torch.where(possible, ratio, 0.0), _IMPOSSIBLE), -1)
    return _finished(law, log_p).to(log_prob.dtype)


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
    log_p, reward = _law(log_prob, reward)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise TypeError(f"threshold must be a number, got {type(threshold).__name__}")
    if math.isnan(threshold):
        raise ValueError("threshold must be a number, got nan")
    check_integer("tries", tries, 1)
    enough = reward >= threshold
    log_pass = torch.where(enough, log_p, _IMPOSSIBLE).logsumexp(-1, keepdim=True)
    log_fail = torch.where(enough, _IMPOSSIBLE, log_p).logsumexp(-1, keepdim=True)
    passed = log_p + _log_any(log_pass.clamp(max=0), tries) - log_pass
    law = torch.where(enough, passed, log_p + (tries - 1) * log_fail.clamp(min=_IMPOSSIBLE))
    return _finished(law.clamp(min=2 * _IMPOSSIBLE), log_p).to(log_prob.dtype)


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
    log_p, order = _law(log_prob, reward)
    if can_look(order) and not bool(order.isfinite().all()):
        raise ValueError("reward must be finite")
    laws = [best_of_n_log_prob(log_p, order, n) for n in ns] + [tilted(log_p, order, b) for b in betas]
    laws += [rewind_and_repeat_log_prob(log_p, order, threshold, tries) for threshold in thresholds]
    rows = torch.stack(laws, -2)
    log_p, order = log_p.unsqueeze(-2), order.unsqueeze(-2)
    return AlignmentCurve(
        tuple(kind for kind, _ in points),
        tuple(float(value) for _, value in points),
        _divergence(rows.clamp(min=_IMPOSSIBLE), log_p).to(log_prob.dtype),
        win_rate(rows, log_p, order).to(log_prob.dtype),
        (rows.exp() * order).sum(-1).to(log_prob.dtype),
    )


def _tolerance(log_prob: Tensor) -> float:
    return 0.1 if torch.finfo(log_prob.dtype).bits < 32 else 1e-3


def _refuse_nan(name: str, x: Tensor) -> None:
    if can_look(x) and bool(x.isnan().any()):
        raise ValueError(f"{name} must not be NaN")


def _law(log_prob: Tensor, reward: Tensor, name: str = "log_prob") -> tuple[Tensor, Tensor]:
    """Check a law and the rewards of its outcomes; both in double precision, the law of their common shape.

    The law is normalised anew, so that the two ways to write a probability, as itself and as what is left to 1, are
    one function of ``log_prob``; what is impossible gets a finite logarithm.
    """
    check_floating(name, log_prob)
    check_floating("reward", reward)
    shape = check_broadcast(**{name: log_prob.shape, "reward": reward.shape})
    if not log_prob.ndim or not shape[-1]:
        raise ValueError(f"{name} must have at least one outcome, got shape {tuple(log_prob.shape)}")
    if log_prob.shape[-1] != shape[-1]:
        raise ValueError(f"{name} must have {shape[-1]} outcomes as reward has, got {log_prob.shape[-1]}")
    _refuse_nan(name, log_prob)
    _refuse_nan("reward", reward)
    wide = log_prob.double()
    if can_look(log_prob):
        total = wide.detach().logsumexp(-1)
        if bool((total.abs() > _tolerance(log_prob)).any()):
            worst = float(total.flatten()[total.abs().argmax()])
            raise ValueError(
                f"{name} must be normalised, got probabilities that sum to {math.exp(min(worst, 700)):.4g}"
            )
    law = torch.log_softmax(torch.where(wide == -torch.inf, _IMPOSSIBLE, wide), -1)
    return law.expand(shape), reward.double().expand(*reward.shape[:-1], shape[-1])


def _finished(law: Tensor, log_p: Tensor) -> Tensor:
    """Return -inf, with gradient 0, where the outcome is impossible."""
    possible = (log_p > _IMPOSSIBLE / 2) & (law > _IMPOSSIBLE / 2)
    return torch.where(possible, law, -torch.inf)


def _places(reward: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order of ascending rewards, stable, and for each place the last place of equal reward."""
    order = reward.argsort(dim=-1, stable=True)
    ordered = reward.gather(-1, order)
    ends = torch.cat([ordered[..., 1:] != ordered[..., :-1], torch.ones_like(ordered[..., :1], dtype=torch.bool)], -1)
    places = torch.arange(reward.shape[-1], device=reward.device).expand_as(order)
    last = torch.where(ends, places, reward.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    return order.expand_as(like), last.expand_as(like)


def _best_of(log_p: Tensor, reward: Tensor, n: int, ties: str) -> Tensor:
    if n == 1:
        return log_p
    order, last = _places(reward, log_p)
    group = own = log_p.gather(-1, order)
    up_to = own.logcumsumexp(-1)
    if ties == "split":
        up_to = up_to.gather(-1, last)
        lowest = torch.full_like(own, -torch.inf).detach()
        likeliest = lowest.scatter_reduce(-1, last, own.detach(), "amax").gather(-1, last)
        share = (own - likeliest).exp()
        group = likeliest + torch.zeros_like(share).scatter_add(-1, last, share).gather(-1, last).log()
    law = n * up_to + _log_any((group - up_to).clamp(max=0), n) + own - group
    return torch.zeros_like(law).scatter(-1, order, law)


def _beats(law: Tensor, reward: Tensor) -> Tensor:
    order, last = _places(reward, law)
    p = law.exp().gather(-1, order)
    tied = torch.zeros_like(p).scatter_add(-1, last, p).gather(-1, last)
    return torch.zeros_like(p).scatter(-1, order, p.cumsum(-1).gather(-1, last) - tied / 2)


def _log_any(log_p: Tensor, n: int) -> Tensor:
    """Return ``log(1 - (1 - p)^n)``: of n draws at least one hits."""
    if n == 1:
        return log_p
    rare = log_p < -34 - math.log(n)  # there it is log n + log p to the last digit
    return torch.where(rare, math.log(n) + log_p, _log_complement(n * _log_complement(torch.where(rare, -1.0, log_p))))


def _log_complement(log_p: Tensor) -> Tensor:
    """Return ``log(1 - p)``; of p = 1 a number so low that its powers are 0."""
    log_p = log_p.clamp(max=-1e-300)
    likely = log_p > -math.log(2)
    near = (-torch.where(likely, log_p, -1.0).expm1()).log()
    return torch.where(likely, near, torch.log1p(-torch.where(likely, -1.0, log_p).exp()))


def _per_winner(log_p: Tensor, n: int) -> Tensor:
    """Return what a winner of this probability adds to the estimate of the divergence."""
    log_p = log_p.clamp(min=-600)  # the limit of rare winners is reached long before
    log_rest = _log_complement(log_p)
    all_miss = (n * log_rest).exp()
    without_atoms = math.log(n) + (n - 1) * log_rest - (n - 1) / n
    return all_miss * without_atoms + (1 - all_miss) * (_log_any(log_p, n) - log_p)


def _divergence(law: Tensor, reference: Tensor) -> Tensor:
    return (law.exp() * (law - reference)).sum(-1)


def _win_rate_of_draws(policy: Tensor, reference: Tensor, n: int) -> Tensor:
    """Return the U-statistic: the i-th of all draws is the best of C(i - 1, n - 1) subsets of n."""
    for name, rewards in (("policy", policy), ("reference", reference)):
        check_floating(name, rewards)
        if not rewards.ndim or not rewards.shape[-1]:
            raise ValueError(f"{name} must have at least one draw, got shape {tuple(rewards.shape)}")
        _refuse_nan(name, rewards)
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
