"""What temporal differences do to a representation: the flow of end-to-end TD learning, exactly, and its loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from pullback.core.checks import (
    check_broadcast,
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_same_dtype,
    check_scalar,
)
from pullback.core.errors import ConvergenceError
from pullback.core.numerics import solve
from pullback.core.shapes import Bool, Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.dynamics.markov import MarkovChain
from pullback.dynamics.odeint import odeint

__all__ = [
    "TDField",
    "TDFlow",
    "linear_td",
    "lyapunov_value_error",
    "optimal_features",
    "td_field",
    "td_flow",
    "td_loss",
    "value_error",
]


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


def linear_td(
    chain: MarkovChain,
    rewards: Float[Tensor, "*#batch states h"],
    features: Float[Tensor, "*#batch states k"],
    *,
    law: Float[Tensor, "*#batch states"] | None = None,
) -> Float[Tensor, "*batch k h"]:
    r"""Return the weights at which linear TD ends: :math:`w=(\Phi^TDA\Phi)^{-1}\Phi^TDR`, :math:`A=I-\gamma P`.

    Args:
        chain: P and gamma.
        rewards: R, ``[*batch, states, h]`` of h tasks.
        features: :math:`\Phi`, ``[*batch, states, k]``.
        law: D, ``[*batch, states]`` how often a state is updated; by default the stationary law.

    Returns:
        ``[*batch, k, h]``.

    Raises:
        TypeError: a tensor of another kind.
        ValueError: shapes that do not fit; without ``law``, a stationary law that is not unique.
        ConvergenceError: the matrix is singular; the message says its condition number.

    Example:
        >>> chain = MarkovChain(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), 0.5)
        >>> linear_td(chain, torch.tensor([[1.0], [3.0]]), torch.eye(2)).flatten().tolist()  # the values: R + 2
        [3.0, 5.0]

    References:
        Tsitsiklis, Van Roy (1997), An analysis of temporal-difference learning with function approximation.
    """
    d, applied = _prepare(chain, rewards, features, law)
    size = features.detach().abs().amax((-2, -1), keepdim=True)
    scaled = features / torch.where(size > 0, size, 1.0)  # so that no product overflows
    return _solution(d * scaled, applied(scaled), rewards) / torch.where(size > 0, size, 1.0)


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
    d, applied = _prepare(chain, rewards, features, law)
    delta = d * (rewards - applied(_predicted(features, weights, rewards)))
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
        ConvergenceError: of :func:`linear_td`, or of the solver.

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
    d, applied = _prepare(chain, rewards, features, law)
    if fast and weights is not None:
        raise ValueError("weights must be None where fast=True: they are those of linear TD at all times")
    start = linear_td(chain, rewards, features, law=law)
    if weights is not None:
        check_same_dtype(features=features, weights=check_floating("weights", weights))
        if weights.ndim < 2 or weights.shape[-2:] != start.shape[-2:]:
            raise ValueError(f"weights must have shape {tuple(start.shape)}, got {tuple(weights.shape)}")
        check_broadcast(weights=weights.shape[:-2], rewards=start.shape[:-2])
        start = weights.expand(torch.broadcast_shapes(weights.shape, start.shape))
    batch = start.shape[:-2]
    phi = features.expand(*batch, *features.shape[-2:])
    # a copy, which the law d does not lead back to: a step is differentiated for each by itself
    p = chain.transition.clone()

    def field(_: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        phi = state[0]
        moved = phi - chain.discount * (p @ phi)
        w = _solution(d * phi, moved, rewards) if fast else state[1]
        delta = d * (rewards - moved @ w)
        return (delta @ w.mT,) if fast else (delta @ w.mT, phi.mT @ delta)

    y0 = (phi,) if fast else (phi, start)
    held = [x for x in (p, chain.discount, d, rewards) if isinstance(x, Tensor)]
    path = odeint(field, y0, t, batch_ndim=len(batch), params=held, **solver).y
    states = path[0]
    w = _solution(d * states, applied(states), rewards) if fast else path[1]
    gap = chain.values(rewards) - states @ w
    energy = (gap * (d * applied(gap))).sum((-1, -2)) / 2
    return TDFlow(states, w, energy, (d * gap.square()).sum((-1, -2)))


def lyapunov_value_error(
    chain: MarkovChain,
    rewards: Float[Tensor, "*#batch states h"],
    features: Float[Tensor, "*#batch states k"],
    weights: Float[Tensor, "*#batch k h"],
    *,
    law: Float[Tensor, "*#batch states"] | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Return :math:`E=\frac12\mathrm{tr}\,(V-\Phi w)^TDA(V-\Phi w)`, which falls along TD on a reversible chain.

    There DA is symmetric and positive definite, and TD is the gradient flow of E: :math:`\dot\Phi=-\nabla_\Phi E`,
    :math:`\dot w=-\nabla_w E`.

    Args:
        chain: P and gamma.
        rewards: R, ``[*batch, states, h]``.
        features: :math:`\Phi`, ``[*batch, states, k]``.
        weights: w, ``[*batch, k, h]``.
        law: D, by default the stationary law.

    Returns:
        ``[*batch]``, summed over tasks.

    Raises:
        TypeError: a tensor of another kind.
        ValueError: shapes that do not fit; without ``law``, a stationary law that is not unique.

    Example:
        >>> chain = MarkovChain(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), 0.5)
        >>> nothing = lyapunov_value_error(chain, torch.ones(2, 1), torch.zeros(2, 1), torch.zeros(1, 1))
        >>> round(float(nothing), 6)  # V = (2, 2), A V = R, E = V . R / 4
        1.0

    References:
        Tang, Munos (2023), arXiv 2305.18491, section 4.
    """
    d, applied = _prepare(chain, rewards, features, law)
    gap = chain.values(rewards) - _predicted(features, weights, rewards)
    return (gap * (d * applied(gap))).sum((-1, -2)) / 2


def optimal_features(
    chain: MarkovChain, rewards: Float[Tensor, "*#batch states h"], count: int
) -> Float[Tensor, "*batch states count"]:
    r"""Return the features with the least :func:`lyapunov_value_error` of all, where :func:`td_flow` tends to end.

    On a reversible chain :math:`B=DA=LL^T` is symmetric, and the columns are :math:`L^{-T}U`, U the leading left
    singular vectors of :math:`L^{-1}DR`: a PCA of the values in the norm of B. With uniform D and rewards that are
    uncorrelated between states, :math:`RR^T\propto I`, they span the leading eigenvectors of P.

    Args:
        chain: P and gamma, reversible.
        rewards: R, ``[*batch, states, h]``.
        count: of features, 1 <= count <= min(states, h).

    Returns:
        ``[*batch, states, count]``; only their span means something.

    Raises:
        TypeError: a tensor of another kind.
        ValueError: shapes that do not fit, a chain that is not reversible, a count out of range.
        ConvergenceError: other features are as good: the rewards are 0, or two directions are equal.

    Example:
        >>> chain = MarkovChain(torch.tensor([[0.75, 0.25], [0.25, 0.75]]), 0.5)
        >>> leading = optimal_features(chain, torch.eye(2), 1)
        >>> round(float(leading[0] / leading[1]), 4)  # the eigenvector (1, 1)
        1.0

    References:
        Tang, Munos (2023), arXiv 2305.18491, section 5.
    """
    p = chain.transition
    d, _ = _prepare(chain, rewards, torch.zeros_like(p[..., :1]), None)
    if can_look(p) and not bool(chain.is_reversible(1e-4).all()):
        raise ValueError("chain must be reversible: elsewhere the energy has no such minimum")
    check_integer("count", count, 1, min(rewards.shape[-2:]))
    matrix = d * (torch.eye(p.shape[-1], dtype=p.dtype, device=p.device) - chain.discount * p)
    wide = torch.promote_types(p.dtype, torch.float32)
    lower = torch.linalg.cholesky(((matrix + matrix.mT) / 2).to(wide))
    scaled = torch.linalg.solve_triangular(lower, (d * rewards).to(wide), upper=False)
    leading, sizes, _ = torch.linalg.svd(scaled, full_matrices=False)
    if can_look(sizes):
        least = 10 * torch.finfo(wide).eps * sizes[..., 0]
        after = sizes[..., count] if count < sizes.shape[-1] else torch.zeros_like(least)
        if not bool((sizes[..., count - 1] - after > least).all()):
            raise ConvergenceError(f"the best {count} features are not determined: others are as good", sizes)
    leading = leading[..., :count]
    return torch.linalg.solve_triangular(lower.mT, leading, upper=True).to(p.dtype)


def value_error(
    chain: MarkovChain,
    rewards: Float[Tensor, "*#batch states h"],
    features: Float[Tensor, "*#batch states k"],
    weights: Float[Tensor, "*#batch k h"],
    *,
    norm: str = "stationary",
) -> Float[Tensor, "*batch"]:
    r"""Return :math:`\sum_s d_s\,|V(s)-\Phi(s)w|^2`, summed over tasks.

    Args:
        chain: P and gamma.
        rewards: R, ``[*batch, states, h]``.
        features: :math:`\Phi`, ``[*batch, states, k]``.
        weights: w, ``[*batch, k, h]``.
        norm: d is the ``"stationary"`` law, or ``"uniform"``.

    Returns:
        ``[*batch]``.

    Raises:
        TypeError: a tensor of another kind.
        ValueError: shapes that do not fit, an unknown norm, a stationary law that is not unique.

    Example:
        >>> chain = MarkovChain(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), 0.5)
        >>> round(float(value_error(chain, torch.ones(2, 1), torch.zeros(2, 1), torch.zeros(1, 1))), 6)
        4.0
    """
    check_choice("norm", norm, ("stationary", "uniform"))
    p = chain.transition
    law = None if norm == "stationary" else torch.full_like(p[..., 0], 1 / p.shape[-1])
    d, _ = _prepare(chain, rewards, features, law)
    return (d * (chain.values(rewards) - _predicted(features, weights, rewards)).square()).sum((-1, -2))


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


def _prepare(chain: MarkovChain, rewards: Tensor, features: Tensor, law: Tensor | None) -> Any:
    """Check the tensors; return ``[*batch, states, 1]`` weights and the product with A."""
    p = chain.transition
    check_same_dtype(transition=p, rewards=check_floating("rewards", rewards))
    check_same_dtype(transition=p, features=check_floating("features", features))
    for name, value in (("rewards", rewards), ("features", features)):
        if value.ndim < 2 or value.shape[-2] != p.shape[-1] or not value.shape[-1]:
            raise ValueError(f"{name} must have shape (..., {p.shape[-1]}, any), got {tuple(value.shape)}")
        if can_look(value):
            check_finite(name, value)
    check_broadcast(transition=p.shape[:-2], rewards=rewards.shape[:-2], features=features.shape[:-2])
    if law is None:
        law = chain.stationary()
    elif check_floating("law", law).shape[-1:] != p.shape[-1:]:
        raise ValueError(f"law must have shape (..., {p.shape[-1]}), got {tuple(law.shape)}")
    return law[..., None], lambda x: x - chain.discount * (p @ x)


def _predicted(features: Tensor, weights: Tensor, rewards: Tensor) -> Tensor:
    check_same_dtype(features=features, weights=check_floating("weights", weights))
    if weights.ndim < 2 or weights.shape[-2:] != (features.shape[-1], rewards.shape[-1]):
        wanted = f"(..., {features.shape[-1]}, {rewards.shape[-1]})"
        raise ValueError(f"weights must have shape {wanted}, got {tuple(weights.shape)}")
    check_broadcast(weights=weights.shape[:-2], features=features.shape[:-2], rewards=rewards.shape[:-2])
    return features @ weights


def _solution(weighted: Tensor, moved: Tensor, rewards: Tensor) -> Tensor:
    """w of linear TD, from D Phi and A Phi."""
    matrix = weighted.mT @ moved
    if can_look(matrix):
        if not bool(torch.isfinite(matrix.detach()).all()):
            raise ConvergenceError("linear TD has no solution: products of the features are not finite", matrix)
        condition = torch.linalg.cond(matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32)))
        worst = float(condition.max()) if condition.numel() else 0.0
        if not worst < 1 / torch.finfo(condition.dtype).eps:
            raise ConvergenceError(
                f"linear TD has no single solution: features with a condition number of {worst:.3g}", condition
            )
    return solve(matrix, weighted.mT @ rewards)
