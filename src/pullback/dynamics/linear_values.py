"""Linear values of a Markov chain: where TD ends, how far it is off, and the best features for it."""

from __future__ import annotations

from typing import Any

import torch

from pullback.core.checks import (
    check_broadcast,
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_same_dtype,
)
from pullback.core.errors import ConvergenceError
from pullback.core.numerics import solve
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.dynamics.markov import MarkovChain

__all__ = [
    "linear_td",
    "lyapunov_value_error",
    "optimal_features",
    "predicted",
    "prepare",
    "solution",
    "value_error",
]


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
    d, applied = prepare(chain, rewards, features, law)
    size = features.detach().abs().amax((-2, -1), keepdim=True)
    scaled = features / torch.where(size > 0, size, 1.0)  # so that no product overflows
    return solution(d * scaled, applied(scaled), rewards) / torch.where(size > 0, size, 1.0)


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
    d, applied = prepare(chain, rewards, features, law)
    gap = chain.values(rewards) - predicted(features, weights, rewards)
    return (gap * (d * applied(gap))).sum((-1, -2)) / 2


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
    d, _ = prepare(chain, rewards, features, law)
    return (d * (chain.values(rewards) - predicted(features, weights, rewards)).square()).sum((-1, -2))


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
    d, _ = prepare(chain, rewards, torch.zeros_like(p[..., :1]), None)
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


def prepare(chain: MarkovChain, rewards: Tensor, features: Tensor, law: Tensor | None) -> Any:
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


def predicted(features: Tensor, weights: Tensor, rewards: Tensor) -> Tensor:
    """The values of these weights, whose shape is checked."""
    check_same_dtype(features=features, weights=check_floating("weights", weights))
    if weights.ndim < 2 or weights.shape[-2:] != (features.shape[-1], rewards.shape[-1]):
        wanted = f"(..., {features.shape[-1]}, {rewards.shape[-1]})"
        raise ValueError(f"weights must have shape {wanted}, got {tuple(weights.shape)}")
    check_broadcast(weights=weights.shape[:-2], features=features.shape[:-2], rewards=rewards.shape[:-2])
    return features @ weights


def solution(weighted: Tensor, moved: Tensor, rewards: Tensor) -> Tensor:
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
