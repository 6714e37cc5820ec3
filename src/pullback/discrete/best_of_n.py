"""Best of n: draw n times, keep the draw of largest reward. The law of what is kept, its price and what it gains.

With the outcomes in the order of their reward, ``F`` the probability of an outcome or a worse one, and ``P`` its own
(for tied outcomes, that of all of them), the winner of n draws has the law

    pi_n(y) = p(y) / P (F^n - (F - P)^n),

a smooth function of the log-probabilities. Everything is computed in logarithms and in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from pullback.core.checks import (
    check_callable,
    check_choice,
    check_floating,
    check_integer,
    check_tensor,
)
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.outcomes import (
    divergence,
    finished,
    log_any,
    log_complement,
    read_law,
    refuse_nan,
    tolerance,
    winners_law,
)

__all__ = ["KLEstimate", "Selection", "best_of_n", "best_of_n_kl", "best_of_n_log_prob"]


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
    refuse_nan("reward", rewards)
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
    log_p, reward = read_law(log_prob, reward)
    check_integer("n", n, 1)
    check_choice("ties", ties, ("order", "split"))
    return finished(winners_law(log_p, reward, n, ties), log_p).to(log_prob.dtype)


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
    refuse_nan("log_prob", log_prob)
    if method == "bound":
        value = torch.full_like(log_prob[..., 0], math.log(n) - (n - 1) / n)
        return KLEstimate(value, torch.zeros_like(value))
    if method == "exact":
        assert reward is not None
        check_choice("ties", ties, ("order", "split"))
        log_p, reward = read_law(log_prob, reward)
        value = divergence(winners_law(log_p, reward, n, ties), log_p).to(log_prob.dtype)
        return KLEstimate(value, torch.zeros_like(value))
    if can_look(log_prob) and bool((log_prob > tolerance(log_prob)).any()):
        raise ValueError(f"log_prob must be <= 0, got maximum {float(log_prob.max())}")
    each = _per_winner(log_prob.double().clamp(max=0), n)
    count = each.shape[-1]
    mean = each.mean(-1)
    error = each.detach().std(-1) / math.sqrt(count) if count > 1 else torch.full_like(mean.detach(), math.inf)
    return KLEstimate(mean.to(log_prob.dtype), error.to(log_prob.dtype))


def _per_winner(log_p: Tensor, n: int) -> Tensor:
    """Return what a winner of this probability adds to the estimate of the divergence."""
    log_p = log_p.clamp(min=-600)  # the limit of rare winners is reached long before
    log_rest = log_complement(log_p)
    all_miss = (n * log_rest).exp()
    without_atoms = math.log(n) + (n - 1) * log_rest - (n - 1) / n
    return all_miss * without_atoms + (1 - all_miss) * (log_any(log_p, n) - log_p)
