"""What temporal differences do to a representation: the flow of end-to-end TD learning, exactly, and its loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from pullback.core.checks import check_floating, check_same_dtype, check_scalar
from pullback.core.shapes import Bool, Float, Scalar, Tensor
from pullback.dynamics.linear_values import linear_td, predicted, prepare, solution
from pullback.dynamics.markov import MarkovChain
from pullback.dynamics.odeint import odeint

__all__ = ["TDField", "TDFlow", "td_field", "td_flow", "td_loss"]


class TDField(NamedTuple):
    """What :func:`td_field` returns.

    Attributes:
        features: ``[*batch, states, k]`` how the features move.
        weights: ``[*batch, k, h]`` how the weights move.
    """

    features: Float[Tensor, "*batch states k"]
    weights: Float[Tensor, "*batch k h"]


class TDFlow(NamedTuple):
    """What :func:`td_flow` returns.

    Attributes:
        features: ``[times, *batch, states, k]``.
        weights: ``[times, *batch, k, h]``.
        energy: ``[times, *batch]`` of :func:`lyapunov_value_error`.
        error: ``[times, *batch]`` of :func:`value_error`.
    """

    features: Float[Tensor, "times *batch states k"]
    weights: Float[Tensor, "times *batch k h"]
    energy: Float[Tensor, "times *batch"]
    error: Float[Tensor, "times *batch"]


def td_field(
    chain: MarkovChain,
    rewards: Float[Tensor, "*#batch states h"],
    features: Float[Tensor, "*#batch states k"],
    weights: Float[Tensor, "*#batch k h"],
    *,
    law: Float[Tensor, "*#batch states"] | None = None,
) -> TDField:
    r"""Return the expected semi-gradient step of TD(0): :math:`\dot\Phi=\delta w^T`, :math:`\dot w=\Phi^T\delta`.

    :math:`\delta=D(R-A\Phi w)` with :math:`A=I-\gamma P`. On a reversible chain this is minus the gradient of
    :func:`lyapunov_value_error`, and of nothing at all elsewhere.

    Args:
        chain: P and gamma.
        rewards: R, ``[*batch, states, h]`` of h tasks.
        features: :math:`\Phi`, ``[*batch, states, k]``.
        weights: w, ``[*batch, k, h]``.
        law: D, ``[*batch, states]`` how often a state is updated; by default the stationary law.

    Returns:
        :class:`TDField`.

    Raises:
        TypeError: a tensor of another kind.
        ValueError: shapes that do not fit; without ``law``, a stationary law that is not unique.

    Example:
        >>> chain = MarkovChain(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), 0.5)
        >>> td_field(chain, torch.tensor([[1.0], [3.0]]), torch.eye(2), torch.zeros(2, 1)).weights.flatten().tolist()
        [0.5, 1.5]

    References:
        Tang, Munos (2023), arXiv 2305.18491, section 3.
    """
    d, applied = prepare(chain, rewards, features, law)
    delta = d * (rewards - applied(predicted(features, weights, rewards)))
    return TDField(delta @ weights.mT, features.mT @ delta)


def td_flow(
    chain: MarkovChain,
    rewards: Float[Tensor, "*#batch states h"],
    features: Float[Tensor, "*#batch states k"],
    *,
    weights: Float[Tensor, "*#batch k h"] | None = None,
    fast: bool = True,
    t: Float[Tensor, "times"],
    law: Float[Tensor, "*#batch states"] | None = None,
    **solver: Any,
) -> TDFlow:
    r"""Follow expected TD(0) on features and weights in continuous time.

    With :math:`A=I-\gamma P` and the error :math:`\delta=D(R-A\Phi w)` both move along the semi-gradient,

    .. math:: \dot\Phi=\delta w^T,\qquad\dot w=\Phi^T\delta,

    or, ``fast``, the weights are those of linear TD at all times (:func:`linear_td`), which conserves
    :math:`\Phi^T\Phi`. On a reversible chain both are gradient flows of :func:`lyapunov_value_error`; elsewhere nothing
    has to fall.

    Args:
        chain: P and gamma.
        rewards: R, ``[*batch, states, h]`` of h tasks.
        features: :math:`\Phi` at the first time, ``[*batch, states, k]``.
        weights: w at the first time, ``[*batch, k, h]``; those of linear TD by default, and always if ``fast``.
        fast: the weights are at their solution at all times.
        t: two or more times, rising.
        law: D, ``[*batch, states]`` how often a state is updated; by default the stationary law.
        solver: options of :func:`odeint`, such as ``method`` and ``rtol``.

    Returns:
        :class:`TDFlow`, differentiable in rewards, features and weights.

    Raises:
        TypeError: a tensor of another kind.
        ValueError: shapes that do not fit; ``weights`` with ``fast``; a stationary law that is not unique.
        ConvergenceError: of :func:`linear_td`, where no weights are given, or of the solver.

    Example:
        >>> chain = MarkovChain(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), 0.5)
        >>> start = torch.tensor([[1.0], [0.0]])
        >>> flow = td_flow(chain, torch.tensor([[1.0], [3.0]]), start, t=torch.tensor([0.0, 50.0]))
        >>> [round(e, 4) for e in flow.energy.tolist()], round(float(flow.features[-1].square().sum()), 4)
        ([4.1667, 0.0], 1.0)

    References:
        Tang, Munos (2023), Towards a better understanding of representation dynamics under TD-learning, arXiv
        2305.18491.
    """
    d, applied = prepare(chain, rewards, features, law)
    if fast and weights is not None:
        raise ValueError("weights must be None where fast=True: they are those of linear TD at all times")
    if weights is None:
        start = linear_td(chain, rewards, features, law=law)
    else:  # which need no solution of linear TD: features may be zero, or depend on each other
        told = predicted(features, weights, rewards)
        sides = (d, chain.transition, rewards, told)
        start = weights.expand(*torch.broadcast_shapes(*(x.shape[:-2] for x in sides)), *weights.shape[-2:])
    batch = start.shape[:-2]
    phi = features.expand(*batch, *features.shape[-2:])
    # a copy, which the law d does not lead back to: a step is differentiated for each by itself
    p = chain.transition.clone()

    def field(_: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        phi = state[0]
        moved = phi - chain.discount * (p @ phi)
        w = solution(d * phi, moved, rewards) if fast else state[1]
        delta = d * (rewards - moved @ w)
        return (delta @ w.mT,) if fast else (delta @ w.mT, phi.mT @ delta)

    y0 = (phi,) if fast else (phi, start)
    held = [x for x in (p, chain.discount, d, rewards) if isinstance(x, Tensor)]
    path = odeint(field, y0, t, batch_ndim=len(batch), params=held, **solver).y
    states = path[0]
    w = solution(d * states, applied(states), rewards) if fast else path[1]
    gap = chain.values(rewards) - states @ w
    energy = (gap * (d * applied(gap))).sum((-1, -2)) / 2
    return TDFlow(states, w, energy, (d * gap.square()).sum((-1, -2)))


def td_loss(
    values: Float[Tensor, "*batch"],
    rewards: Float[Tensor, "*batch"],
    next_values: Float[Tensor, "*batch"],
    *,
    discount: Scalar = 0.99,
    done: Bool[Tensor, "..."] | None = None,
) -> Float[Tensor, ""]:
    r"""Return the loss whose gradient is the semi-gradient of TD(0): :math:`\frac12\,\overline{(v-r-\gamma v')^2}`.

    The target :math:`r+\gamma v'` counts as a number: no gradient reaches ``next_values``, whatever made them.

    Args:
        values: v, of the states left, any shape: several tasks stand in the last dimension.
        rewards: r, of the same shape.
        next_values: v', of the states reached.
        discount: gamma in [0, 1].
        done: where an episode ended: nothing follows. The shape of ``values``, or without its last dimension.

    Returns:
        The mean over everything.

    Raises:
        TypeError: a tensor of another kind.
        ValueError: shapes that differ, a discount out of range.

    Example:
        >>> v = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> loss = td_loss(v, torch.tensor([0.0, 1.0]), torch.tensor([2.0, 9.0]), discount=0.5,
        ...                done=torch.tensor([False, True]))
        >>> loss.item(), torch.autograd.grad(loss, v)[0].tolist()
        (0.25, [0.0, 0.5])

    References:
        Sutton, Barto (2018), Reinforcement learning, equation 9.7 and section 9.3.
    """
    for name, value in (("values", values), ("rewards", rewards), ("next_values", next_values)):
        check_floating(name, value)
        if value.shape != values.shape or not value.numel():
            raise ValueError(
                f"{name} must have entries and the shape of values, {tuple(values.shape)}, got {tuple(value.shape)}"
            )
    check_same_dtype(values=values, rewards=rewards, next_values=next_values)
    number = check_scalar("discount", discount, zero=True)
    if number is not None and number > 1:
        raise ValueError(f"discount must be in [0, 1], got {number}")
    follows = next_values.detach()
    if done is not None:
        if done.dtype != torch.bool:
            raise TypeError(f"done must be a tensor of torch.bool, got {done.dtype}")
        if done.shape not in (values.shape, values.shape[:-1]):
            raise ValueError(f"done must have shape {tuple(values.shape)}, got {tuple(done.shape)}")
        if done.ndim < values.ndim:
            done = done.unsqueeze(-1)
        follows = follows.masked_fill(done, 0.0)
    return (values - rewards.detach() - discount * follows).square().mean() / 2
