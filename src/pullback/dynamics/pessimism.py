"""Policies from records alone: value iteration that believes no more than the records bear out."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from pullback.core.checks import check_floating, check_integer, check_positive
from pullback.core.shapes import Bool, Float, Int, Shaped, Tensor
from pullback.dynamics.decision_process import MarkovDecisionProcess, Transitions
from pullback.dynamics.regression import Regression, d2_divergence, estimate_variance, weighted_regression

__all__ = ["PessimisticValues", "Suboptimality", "pessimistic_value_iteration", "suboptimality"]


class PessimisticValues(NamedTuple):
    """What :func:`pessimistic_value_iteration` returns, step by step.

    Attributes:
        values: ``[*batch, horizon, states]``, what the policy is believed to earn from here to the end at least.
        action_values: ``[*batch, horizon, states, actions]``, the same of an action.
        policy: ``[*batch, horizon, states]``, the action of the largest one.
        bonus: ``[*batch, horizon, states, actions]``, what was taken off the fit: doubt.
        variance: ``[*batch, horizon, states, actions]`` of the targets, by which the regressions were weighted.
        converged: ``[*batch]`` whether every regression did.
    """

    values: Float[Tensor, "*batch horizon states"]
    action_values: Float[Tensor, "*batch horizon states actions"]
    policy: Int[Tensor, "*batch horizon states"]
    bonus: Float[Tensor, "*batch horizon states actions"]
    variance: Float[Tensor, "*batch horizon states actions"]
    converged: Bool[Tensor, "*batch"]


class Suboptimality(NamedTuple):
    """What :func:`suboptimality` returns.

    Attributes:
        gap: ``[*batch, states]``, what the policy earns less than the best one, by the state it starts in; >= 0.
        values: ``[*batch, horizon, states]`` of the policy, from each step on.
        optimal: ``[*batch, horizon, states]`` of the best policy.
    """

    gap: Float[Tensor, "*batch states"]
    values: Float[Tensor, "*batch horizon states"]
    optimal: Float[Tensor, "*batch horizon states"]


def pessimistic_value_iteration(
    seen: Transitions,
    features: Float[Tensor, "states actions d"],
    *,
    beta: float = 1.0,
    ridge: float = 1.0,
    highest: float = 1.0,
    variance: Float[Tensor, "horizon states actions"] | float | None = None,
    floor: float = 0.05,
    function: Callable[[Tensor, Tensor], Tensor] | None = None,
    params: Float[Tensor, "p"] | None = None,
) -> PessimisticValues:
    r"""Return the policy that is best where every value counts by its lower bound.

    Backwards from the last step, :math:`\hat f_{h+1}` being the values that follow,

    .. math:: \tilde f_h = \arg\min_f \sum_k \frac{(f(z_k)-r_k-\hat f_{h+1}(s'_k))^2}{\sigma_h^2(z_k)}, \qquad
       \hat f_h = \operatorname{clip}(\tilde f_h - \beta D(z; \sigma_h),\ 0,\ r_{\max}(H-h+1)),

    with :math:`D` the root of :func:`~pullback.dynamics.d2_divergence`. The variance of the targets comes from the odd
    episodes (regressions of targets and of their squares, with values of their own, without weights), the rest from the
    even ones, so that the weights do not depend on the noise they weigh. The class should hold the squares too. What
    the paper takes off the variance and off the values beyond this (terms that vanish as episodes grow) is 0 here.
    Regressions are of the mean targets of states and actions, weighted by how often each was seen: the same minimum.

    Args:
        seen: of episodes of equally many steps: numbers of states and actions ``[*batch, episodes, horizon]``, rewards
            of the same shape. ``done`` plays no part: an episode ends with the horizon.
        features: ``[states, actions, d]``, the inputs of the functions.
        beta: >= 0, how much doubt is taken off, in standard deviations; 0 believes the fit.
        ridge: > 0, of the regressions and of D.
        highest: > 0, the largest reward of a step.
        variance: of the targets, > 0, where it is known: ``[horizon, states, actions]`` or a number; then all episodes
            go into the regressions. A number weighs all alike. ``None``: estimated from the odd half.
        floor: > 0, the least estimated variance.
        function: ``f(params, inputs)``, values ``[n]`` of inputs ``[n, d]``: the class. By default linear in the
            features; else regressions go by Levenberg and Marquardt and D by gradients.
        params: ``[p]``, where they start.

    Returns:
        :class:`PessimisticValues`.

    Raises:
        TypeError: a tensor of another kind.
        ValueError: shapes that do not fit, a state or an action without features, an option out of range, less than
            two episodes to split.
        ConvergenceError: a regression has no answer.

    Example:
        >>> zero, action = torch.zeros(9, 1, dtype=torch.int64), torch.tensor([[0]] * 8 + [[1]])
        >>> seen = Transitions(zero, action, torch.where(action == 0, 0.5, 1.0), zero, zero == 0)
        >>> features = torch.eye(2)[None]  # a table: one state, two actions
        >>> for beta in (0.0, 0.5):  # the second action is better where it was tried, which was once
        ...     print(pessimistic_value_iteration(seen, features, beta=beta, variance=1.0).policy.tolist())
        [[1]]
        [[0]]

    References:
        Di, Zhao, He, Gu (2024), Pessimistic nonlinear least-squares value iteration for offline reinforcement learning,
        algorithm 1; Jin, Yang, Wang (2021), Is pessimism provably efficient for offline RL? (one variance for all).
    """
    check_positive("beta", beta, zero=True)
    for name, option in (("ridge", ridge), ("highest", highest), ("floor", floor)):
        check_positive(name, option)
    features = check_floating("features", features)
    state, action, reward, following = _episodes(seen, features)
    episodes, horizon = action.shape[-2:]
    cells = features.shape[:2]
    known: Tensor | None = None
    if variance is not None:
        known = torch.as_tensor(variance, dtype=features.dtype, device=features.device)
        if known.ndim and known.shape != (horizon, *cells):
            raise ValueError(f"variance must have shape {(horizon, *cells)} or be a number, got {tuple(known.shape)}")
        if not bool((known > 0).all()):
            raise ValueError(f"variance must be > 0, got {known.min().item()}")
        known = known.expand(horizon, *cells)
    elif episodes < 2:
        raise ValueError(f"seen must have at least 2 episodes to split where variance is None, got {episodes}")
    table = features.flatten(0, 1)

    def regress(targets: Tensor, weights: Tensor) -> Tensor:
        """Values of all states and actions."""
        if function is None:
            fit = weighted_regression(table, targets, weights=weights, ridge=ridge)
            return (table @ fit.params[..., None])[..., 0]
        method = "levenberg_marquardt"
        fit = weighted_regression(
            table, targets, function=function, params=params, weights=weights, ridge=ridge, method=method
        )
        fits.append(fit)
        return targets + fit.residual

    def doubt(weights: Tensor) -> Tensor:
        noise = weights.reciprocal()  # infinite where nothing was seen
        if function is None:
            return d2_divergence(table, table, variance=noise, ridge=ridge)
        last = fits[-1].params.detach()
        return d2_divergence(
            table, table, function=function, params=last, variance=noise, ridge=ridge, method="gradient"
        )

    def backwards(half: slice, noise: Tensor | None, moments: bool) -> tuple[list[Tensor], ...]:
        """Values, what was taken off, and variances, from the last step to the first."""
        values = features.new_zeros(*action.shape[:-2], cells[0])
        found: tuple[list[Tensor], ...] = ([], [], [])
        for h in reversed(range(horizon)):
            at = (state * cells[1] + action)[..., half, h]
            targets = reward[..., half, h] + values.gather(-1, following[..., half, h])
            none = features.new_zeros(*at.shape[:-1], len(table))
            count = none.scatter_add(-1, at, torch.ones_like(targets))
            weights = count if noise is None else count / noise[..., h, :, :].flatten(-2)
            mean = regress(none.scatter_add(-1, at, targets) / count.clamp_min(1), weights)
            bonus = beta * doubt(weights).sqrt()
            if moments:
                squares = regress(none.scatter_add(-1, at, targets.square()) / count.clamp_min(1), weights)
                found[2].insert(0, estimate_variance(mean, squares, floor=floor).unflatten(-1, cells))
            best = (mean - bonus).clamp(0, highest * (horizon - h)).unflatten(-1, cells)
            found[0].insert(0, best)
            found[1].insert(0, bonus.unflatten(-1, cells))
            values = best.amax(-1)
        return found

    fits: list[Regression] = []
    if known is None:
        known = torch.stack(backwards(slice(1, None, 2), None, True)[2], -3).detach()
        half = slice(0, None, 2)
    else:
        half = slice(None)
    parts = backwards(half, known, False)
    action_values, bonus = (torch.stack(part, -3) for part in parts[:2])
    best = action_values.max(-1)
    converged = torch.ones(action.shape[:-2], dtype=torch.bool, device=features.device)
    for fit in fits:
        converged = converged & fit.converged
    return PessimisticValues(best.values, action_values, best.indices, bonus, known.expand_as(action_values), converged)


def suboptimality(process: MarkovDecisionProcess, policy: Shaped[Tensor, "..."], horizon: int) -> Suboptimality:
    r"""Return what a policy earns less than the best one in a number of steps, exactly.

    .. math:: V^*_1(s)-V^\pi_1(s), \qquad V_h(s)=R(s,\pi_h(s))+\gamma\sum_tP(t|s,\pi_h(s))V_{h+1}(t),\ V_{H+1}=0.

    Args:
        process: whose rewards are summed; a discount of 1 for plain sums.
        policy: the action of each step and state, numbers ``[*batch, horizon, states]`` or laws
            ``[*batch, horizon, states, actions]``.
        horizon: number of steps, >= 1.

    Raises:
        TypeError: ``policy`` is no tensor, ``horizon`` no integer.
        ValueError: ``policy`` has another shape, an action that is not there, or is no law.

    Example:
        >>> transition = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])  # go to 0, to 1
        >>> process = MarkovDecisionProcess(transition, torch.tensor([[0.0, 0.0], [0.0, 1.0]]), 1.0)
        >>> found = suboptimality(process, torch.zeros(3, 2, dtype=torch.int64), 3)
        >>> found.gap.tolist(), found.optimal[0].tolist()
        ([2.0, 3.0], [2.0, 3.0])
    """
    check_integer("horizon", horizon, 1)
    if not isinstance(policy, Tensor):
        raise TypeError(f"policy must be a torch.Tensor, got {type(policy).__name__}")
    law = policy.is_floating_point()
    states = process.reward.shape[-2]
    if tuple(policy.shape[-3:-1] if law else policy.shape[-2:]) != (horizon, states):
        raise ValueError(
            f"policy must have shape (..., {horizon}, {states}) of actions or (..., {horizon}, {states}, actions) of "
            f"laws, got {tuple(policy.shape)}"
        )
    value = best = torch.zeros_like(process.reward[..., 0])
    values: list[Tensor] = []
    optimal: list[Tensor] = []
    for h in reversed(range(horizon)):
        value = (process.laws(policy.select(-3 if law else -2, h)) * process.action_values(value)).sum(-1)
        best = process.action_values(best).amax(-1)
        values.insert(0, value)
        optimal.insert(0, best)
    mine = torch.stack(torch.broadcast_tensors(*values), -2)
    limit = torch.stack(optimal, -2).expand_as(mine)
    return Suboptimality((limit - mine)[..., 0, :].clamp_min(0), mine, limit)


def _episodes(seen: Transitions, features: Tensor) -> tuple[Tensor, ...]:
    """States, actions, rewards and next states, ``[*batch, episodes, horizon]`` each."""
    if features.ndim != 3:
        raise ValueError(f"features must have shape (states, actions, d), got {tuple(features.shape)}")
    shape = tuple(seen.action.shape)
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"seen.action must have shape (..., episodes, horizon), none of them 0, got {shape}")
    counts = {"state": len(features), "action": features.shape[1], "next_state": len(features)}
    for name, count in counts.items():
        value = getattr(seen, name)
        if value.is_floating_point():
            raise TypeError(f"seen.{name} must hold numbers of states or actions, got {value.dtype}")
        if tuple(value.shape) != shape:
            raise ValueError(f"seen.{name} must have shape {shape}, got {tuple(value.shape)}")
        if bool(((value < 0) | (value >= count)).any()):
            raise ValueError(f"seen.{name} must be in 0..{count - 1}, got {value.min()}..{value.max()}")
    check_floating("seen.reward", seen.reward)
    if tuple(seen.reward.shape) != shape:
        raise ValueError(f"seen.reward must have shape {shape}, got {tuple(seen.reward.shape)}")
    reward = seen.reward.to(features.dtype)
    return seen.state.long(), seen.action.long(), reward, seen.next_state.long()
