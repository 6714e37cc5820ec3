"""Policies learned in a model: the gradient of what is imagined, back through the model to the actions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_floating, check_integer
from pullback.core.shapes import Float
from pullback.dynamics.policy_gradient import generalized_advantage

__all__ = ["ImaginationLoss", "imagination_policy_loss"]


class ImaginationLoss(NamedTuple):
    """Losses of a policy and of the value that helps it.

    Attributes:
        policy: minus the mean of ``returns``: to be minimised in the policy's parameters.
        value: half of the mean squared distance of the values from ``returns``: in the value's parameters.
        returns: ``[H, *batch]`` the lambda-return of every state but the last.
        states: ``[H + 1, *batch, n]`` imagined, without gradient.
    """

    policy: Float[Tensor, ""]
    value: Float[Tensor, ""]
    returns: Float[Tensor, "H *batch"]
    states: Float[Tensor, "H_plus_1 *batch n"]


def imagination_policy_loss(
    step: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    policy: Callable[[Tensor], Tensor],
    value: Callable[[Tensor], Tensor],
    state: Float[Tensor, "*batch n"],
    *,
    horizon: int = 15,
    discount: float = 0.99,
    trace: float = 0.95,
) -> ImaginationLoss:
    r"""Return what a policy earns in the model, as a loss whose gradient runs through the model's steps.

    .. math::
        a_t = \pi(z_t), \qquad z_{t+1}, r_t = \mathrm{step}(z_t, a_t), \qquad
        V^\lambda_t = r_t + \gamma \big( (1 - \lambda) V(z_{t+1}) + \lambda V^\lambda_{t+1} \big), \qquad
        V^\lambda_H = V(z_H)

    The policy's loss is minus the mean of :math:`V^\lambda_t` over t < H and the batch. Its ``backward`` also leaves
    gradients in the model and in the value: step the optimizer of the policy alone, and clear the others.

    Args:
        step: the model, ``step(state, action)``, gives next state and reward.
        policy: ``policy(state)`` gives an action, also a random one whose noise is drawn apart from its mean.
        value: V, ``value(state)`` gives ``[*batch]``.
        state: z_0, ``[*batch, n]``; no gradient flows into it.
        horizon: H >= 1.
        discount: gamma in [0, 1].
        trace: lambda in [0, 1]: 0 trusts the value after one step, 1 only at the end.

    Returns:
        Both losses, the returns and the states.

    Raises:
        TypeError: a function cannot be called, or the state is not floating.
        ValueError: a number out of range, or rewards or values are not one a state.

    Example:
        >>> gain = torch.tensor(0.0, requires_grad=True)
        >>> loss = imagination_policy_loss(lambda z, a: (z + a, -(z + a)[..., 0] ** 2), lambda z: gain * z,
        ...                                lambda z: torch.zeros(z.shape[:-1]), torch.ones(1, 1), horizon=1)
        >>> loss.policy.backward()
        >>> loss.policy.item(), gain.grad.item()  # (1 + gain)^2 and its slope
        (1.0, 2.0)

    References:
        Hafner, Lillicrap, Ba, Norouzi (2020), Dream to control, arXiv 1912.01603, equations 6 to 8.
    """
    for name, function in (("step", step), ("policy", policy), ("value", value)):
        check_callable(name, function)
    if check_floating("state", state).ndim < 1:
        raise ValueError("state must have shape [*batch, n], got a number")
    check_integer("horizon", horizon, 1)
    states, rewards = [state.detach()], []
    for _ in range(horizon):
        after, reward = step(states[-1], policy(states[-1]))
        states.append(after)
        rewards.append(reward)
    stacked = torch.stack(states)
    earned, valued = torch.stack(rewards), value(stacked)
    for name, found, length in (("step", earned, horizon), ("value", valued, horizon + 1)):
        if found.shape != (length, *state.shape[:-1]):
            raise ValueError(f"{name} must give one number a state, {tuple(state.shape[:-1])}, got {found.shape[1:]}")
    steps = (earned.movedim(0, -1), valued.movedim(0, -1))
    returns = generalized_advantage(*steps, discount=discount, trace=trace).target.movedim(-1, 0)
    seen = stacked.detach()
    distance = (value(seen[:-1]) - returns.detach()).square().mean() / 2
    return ImaginationLoss(-returns.mean(), distance, returns, seen)
