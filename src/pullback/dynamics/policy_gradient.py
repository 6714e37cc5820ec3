"""Learning a policy from what its actions brought: advantages and a clipped surrogate of the return."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from pullback.core.checks import (
    check_callable,
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_range,
    check_same_dtype,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["Advantages", "PolicyLoss", "PolicyUpdates", "generalized_advantage", "ppo_loss", "ppo_update"]

Judge = Callable[[Tensor], tuple[Tensor, ...]]


_FARTHEST = 20.0
"""Largest logarithm of a ratio: no single action makes the loss overflow."""


class Advantages(NamedTuple):
    """How much better the actions were than expected.

    Attributes:
        advantage: ``[*batch, t]`` in the unit of the rewards.
        target: ``[*batch, t]`` of the values, the advantage added to them.
    """

    advantage: Float[Tensor, "*batch t"]
    target: Float[Tensor, "*batch t"]


def generalized_advantage(
    rewards: Float[Tensor, "*batch t"],
    values: Float[Tensor, "*batch t_plus_1"],
    *,
    discount: float = 0.99,
    trace: float = 0.95,
    ended: Bool[Tensor, "*batch t"] | None = None,
) -> Advantages:
    r"""Return exponentially weighted sums of temporal differences.

    .. math::
        \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \sum_{k \ge 0} (\gamma \lambda)^k \delta_{t+k}

    With ``trace`` 1 it is the return minus the value, unbiased and noisy; with 0 a single difference.

    Args:
        rewards: ``[*batch, t]`` of each step.
        values: ``[*batch, t + 1]`` of the states before each step and after the last (0 where an episode ends there).
        discount: gamma in [0, 1].
        trace: lambda in [0, 1].
        ended: ``[*batch, t]`` whether an episode ended with that step: nothing behind it counts.

    Returns:
        ``advantage`` and ``target``, ``[*batch, t]``.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: the shapes do not fit, a number is out of range, a reward is not finite (not under transforms).

    Example:
        >>> generalized_advantage(torch.tensor([0.0, 1.0]), torch.zeros(3), discount=0.5, trace=1.0).advantage
        tensor([0.5000, 1.0000])

    References:
        Schulman, Moritz, Levine, Jordan, Abbeel (2016), High-dimensional continuous control using generalized
        advantage estimation, equation 16.
    """
    check_same_dtype(rewards=check_floating("rewards", rewards), values=check_floating("values", values))
    check_range("discount", discount, 0, 1)
    check_range("trace", trace, 0, 1)
    if rewards.ndim < 1 or values.shape != (*rewards.shape[:-1], rewards.shape[-1] + 1):
        raise ValueError(
            f"values must have one more step than rewards, got {tuple(values.shape)} and {tuple(rewards.shape)}"
        )
    if ended is not None and ended.shape != rewards.shape:
        raise ValueError(f"ended must have the shape of rewards, {tuple(rewards.shape)}, got {tuple(ended.shape)}")
    if can_look(rewards):
        check_finite("rewards", rewards)
    before, after = values[..., :-1], values[..., 1:]
    going = torch.ones_like(rewards) if ended is None else (~ended).to(rewards)
    difference = rewards + discount * going * after - before
    carried, found = rewards.new_zeros(rewards.shape[:-1]), []
    for t in reversed(range(rewards.shape[-1])):
        carried = difference[..., t] + discount * trace * going[..., t] * carried
        found.append(carried)
    advantage = torch.stack(found[::-1], -1) if found else torch.zeros_like(rewards)
    return Advantages(advantage, advantage + before)


class PolicyLoss(NamedTuple):
    """The loss of a policy and what it is made of.

    Attributes:
        total: the weighted sum, to be minimised.
        policy: minus the clipped surrogate of the return.
        value: mean squared error of the values.
        entropy: mean entropy of the policy, 0 where none was given.
        clipped: share of the actions whose ratio lies outside of the interval; without gradient.
    """

    total: Float[Tensor, ""]
    policy: Float[Tensor, ""]
    value: Float[Tensor, ""]
    entropy: Float[Tensor, ""]
    clipped: Float[Tensor, ""]


def ppo_loss(
    log_prob: Float[Tensor, "*batch"],
    old_log_prob: Float[Tensor, "*batch"],
    advantage: Float[Tensor, "*batch"],
    value: Float[Tensor, "*batch"],
    target: Float[Tensor, "*batch"],
    *,
    clip: float = 0.15,
    value_weight: float = 1.0,
    entropy: Float[Tensor, "*batch"] | None = None,
    entropy_weight: float = 0.0,
) -> PolicyLoss:
    r"""Return the clipped loss of proximal policy optimisation, the mean over all actions.

    .. math::
        L = -\overline{\min(\rho A, \mathrm{clip}(\rho, 1-\epsilon, 1+\epsilon) A)} + w\,\overline{(V - R)^2}
            - w_H \overline{H}, \qquad \rho = \pi / \pi_{\mathrm{old}}

    At the old policy its gradient is that of the return. An action whose ratio has left the interval on the side that
    its advantage favours has no gradient: several steps can be taken on the same data. A ratio counts as at most e^20.

    Args:
        log_prob: ``[*batch]`` logarithms of the policy's probabilities of the actions taken.
        old_log_prob: ``[*batch]`` the same when they were taken; no gradient flows into them.
        advantage: ``[*batch]`` often normalised; no gradient flows into it.
        value: ``[*batch]`` predicted returns.
        target: ``[*batch]`` what they should be; no gradient flows into it.
        clip: epsilon in [0, 1].
        value_weight: w >= 0.
        entropy: ``[*batch]`` of the policy.
        entropy_weight: >= 0.

    Returns:
        The total and its parts, scalars.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: the shapes differ, there is no action, or a weight is out of range.

    Example:
        >>> log_prob = torch.tensor([0.5, 0.2]).log().requires_grad_()
        >>> one, zero = torch.ones(2), torch.zeros(2)
        >>> loss = ppo_loss(log_prob, torch.tensor([0.5, 0.1]).log(), one, zero, zero)
        >>> loss.total.item(), torch.autograd.grad(loss.total, log_prob)[0]  # the second has doubled already
        (-1.0750000476837158, tensor([-0.5000, 0.0000]))

    References:
        Schulman, Wolski, Dhariwal, Radford, Klimov (2017), Proximal policy optimization algorithms, equations 7 and 9.
    """
    check_range("clip", clip, 0, 1)
    check_range("value_weight", value_weight, 0, torch.inf)
    check_range("entropy_weight", entropy_weight, 0, torch.inf)
    given = {"log_prob": log_prob, "old_log_prob": old_log_prob, "advantage": advantage, "value": value}
    given |= {"target": target} if entropy is None else {"target": target, "entropy": entropy}
    for name, tensor in given.items():
        if check_floating(name, tensor).shape != log_prob.shape:
            raise ValueError(
                f"{name} must have the shape of log_prob, {tuple(log_prob.shape)}, got {tuple(tensor.shape)}"
            )
    check_same_dtype(**given)
    if not log_prob.numel():
        raise ValueError("log_prob must hold at least one action, got none")
    ratio = (log_prob - old_log_prob.detach()).clamp_max(_FARTHEST).exp()
    advantage = advantage.detach()
    policy = -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()
    error = (value - target.detach()).square().mean()
    spread = log_prob.new_zeros(()) if entropy is None else entropy.mean()
    clipped = ((ratio.detach() - 1).abs() > clip).to(log_prob).mean()
    return PolicyLoss(policy + value_weight * error - entropy_weight * spread, policy, error, spread, clipped)


class PolicyUpdates(NamedTuple):
    """What the steps on one batch of experience did; nothing of it has a gradient.

    Attributes:
        total: ``[steps]`` loss before each step, of its minibatch.
        policy: ``[steps]`` minus the clipped surrogate.
        value: ``[steps]`` mean squared error of the values.
        entropy: ``[steps]``, 0 where none was given.
        clipped: ``[steps]`` share of the ratios outside of the interval.
        divergence: ``[steps]`` estimate of KL(old policy, policy), never negative.
        stopped: whether the divergence ended the epochs before their time.
    """

    total: Float[Tensor, " steps"]
    policy: Float[Tensor, " steps"]
    value: Float[Tensor, " steps"]
    entropy: Float[Tensor, " steps"]
    clipped: Float[Tensor, " steps"]
    divergence: Float[Tensor, " steps"]
    stopped: bool


def ppo_update(
    judge: Judge,
    optimizer: torch.optim.Optimizer,
    old_log_prob: Float[Tensor, " n"],
    advantage: Float[Tensor, " n"],
    target: Float[Tensor, " n"],
    *,
    epochs: int = 4,
    minibatches: int = 4,
    clip: float = 0.2,
    value_weight: float = 1.0,
    entropy_weight: float = 0.0,
    normalize: bool = True,
    max_norm: float | None = 0.5,
    max_divergence: float | None = None,
    generator: torch.Generator | None = None,
) -> PolicyUpdates:
    r"""Take the steps of proximal policy optimisation on one batch of experience.

    Every epoch deals all n actions anew into minibatches, and each of these takes one step of the optimizer down
    :func:`ppo_loss`. The estimate of how far the policy has gone, whose sign is sure, is

    .. math:: \mathrm{KL}(\pi_{\mathrm{old}}, \pi) \approx \overline{\rho - 1 - \log \rho},
              \qquad \rho = \pi / \pi_{\mathrm{old}} .

    Args:
        judge: ``judge(chosen)`` with indices ``[k]`` into the batch gives what policy and critic say now of these
            actions: log-probabilities and values, and as a third the entropies where they count; each ``[k]``.
        optimizer: of all parameters that are to learn, those of the critic too.
        old_log_prob: ``[n]`` of the actions when they were taken.
        advantage: ``[n]``, such as :func:`generalized_advantage` gives them.
        target: ``[n]`` of the values.
        epochs: >= 1.
        minibatches: of an epoch, in 1..n, equal to one action.
        clip: epsilon in [0, 1].
        value_weight: >= 0.
        entropy_weight: >= 0; above 0 ``judge`` must give entropies.
        normalize: bring the advantages of the batch to mean 0 and standard deviation 1 (at least 1e-6 before).
        max_norm: > 0, of the gradient of all parameters together; ``None`` for no bound.
        max_divergence: > 0; a minibatch whose divergence is larger takes no step, and ends the epochs.
        generator: of the order.

    Returns:
        What every step saw, in order; of ``stopped`` epochs the last is the minibatch that took none.

    Raises:
        TypeError: ``judge`` cannot be called, ``optimizer`` is none, or a tensor is not floating.
        ValueError: shapes do not fit, a number is out of range, an advantage, a target, the loss or its
            gradient is not finite (then the parameters are those of the step before).

    Example:
        >>> mean = torch.nn.Parameter(torch.zeros(()))
        >>> draws = torch.Generator().manual_seed(0)
        >>> for _ in range(60):  # rewards are highest at 2
        ...     action = mean.detach() + torch.randn(64, generator=draws)
        ...     def judge(chosen):
        ...         return -(action[chosen] - mean).square() / 2, torch.zeros(len(chosen))
        ...     old = judge(torch.arange(64))[0].detach()
        ...     reward = -(action - 2).square()
        ...     _ = ppo_update(judge, torch.optim.SGD([mean], 0.1), old, reward, torch.zeros(64), generator=draws)
        >>> bool((mean - 2).abs() < 0.2)
        True

    References:
        Schulman, Wolski, Dhariwal, Radford, Klimov (2017), Proximal policy optimization algorithms, algorithm 1;
        Schulman (2020), Approximating KL divergence, for the estimate.
    """
    check_callable("judge", judge)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
    given = {"old_log_prob": old_log_prob, "advantage": advantage, "target": target}
    for name, tensor in given.items():
        if check_floating(name, tensor).ndim != 1 or tensor.shape != old_log_prob.shape or not tensor.numel():
            raise ValueError(f"{name} must have shape [n] with n >= 1 as the others, got {tuple(tensor.shape)}")
        check_finite(name, tensor)
    check_same_dtype(**given)
    check_integer("epochs", epochs, 1)
    check_integer("minibatches", minibatches, 1, len(target))
    for name, bound in (("max_norm", max_norm), ("max_divergence", max_divergence)):
        if bound is not None:
            check_positive(name, bound)
    old, advantage, target = old_log_prob.detach(), advantage.detach(), target.detach()
    if normalize:
        advantage = (advantage - advantage.mean()) / advantage.std(correction=0).clamp_min(1e-6)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    seen: list[Tensor] = []
    for _ in range(epochs):
        order = torch.randperm(len(target), generator=generator, device=drawing_device(generator, target))
        for chosen in order.to(target.device).tensor_split(minibatches):
            log_prob, value, *rest = judge(chosen)
            if entropy_weight > 0 and not rest:
                raise ValueError(f"judge must give entropies as a third where entropy_weight is {entropy_weight}")
            loss = ppo_loss(
                log_prob,
                old[chosen],
                advantage[chosen],
                value,
                target[chosen],
                clip=clip,
                value_weight=value_weight,
                entropy=rest[0] if rest else None,
                entropy_weight=entropy_weight,
            )
            if not bool(loss.total.detach().isfinite()):
                raise ValueError(f"the loss must be finite, got {float(loss.total.detach())} in step {len(seen)}")
            change = (log_prob.detach() - old[chosen]).clamp_max(_FARTHEST)
            divergence = (change.expm1() - change).mean()
            seen.append(torch.stack([*(part.detach() for part in loss), divergence]))
            if max_divergence is not None and float(divergence) > max_divergence:
                return _updates(seen, stopped=True)
            optimizer.zero_grad()
            loss.total.backward()
            norm = float(torch.nn.utils.clip_grad_norm_(parameters, torch.inf if max_norm is None else max_norm))
            if not math.isfinite(norm):
                raise ValueError(f"the gradient must be finite, got a norm of {norm} in step {len(seen) - 1}")
            optimizer.step()
    return _updates(seen, stopped=False)


def _updates(seen: list[Tensor], *, stopped: bool) -> PolicyUpdates:
    total, policy, value, entropy, clipped, divergence = torch.stack(seen).unbind(1)
    return PolicyUpdates(total, policy, value, entropy, clipped, divergence, stopped)
