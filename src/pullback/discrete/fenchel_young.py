"""Fenchel-Young losses: to each sparse softmax its own loss, zero exactly where the prediction is the target."""

from __future__ import annotations

import torch

from pullback.core.checks import check_dim, check_floating, check_tensor
from pullback.core.shapes import Float, Shaped, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.softness import widen
from pullback.discrete.sparse import entmax

__all__ = ["entmax_loss"]


def entmax_loss(
    scores: Float[Tensor, "..."], target: Shaped[Tensor, "..."], alpha: float = 1.5, dim: int = -1
) -> Float[Tensor, "..."]:
    r"""Return the Fenchel-Young loss of alpha-entmax.

    .. math:: L(x, y) = \Omega^*(x) + \Omega(y) - \langle x, y \rangle, \qquad
              \Omega(p) = \frac{\sum_i p_i^\alpha - 1}{\alpha (\alpha - 1)}

    It is >= 0, 0 where ``entmax(x, alpha)`` is the target, convex in the scores, and its gradient is
    ``entmax(x, alpha) - y``. ``alpha = 1`` is the cross entropy (less the entropy of the target), 2 the sparsemax loss.

    Args:
        scores: ``[..., n, ...]`` x.
        target: integers, the classes, of the shape of ``scores`` without ``dim``; or floating, distributions of its
            shape, which may want a gradient.
        alpha: > 0, a number.
        dim: the dimension of the classes.

    Returns:
        ``[...]`` one loss a sample; infinite where the score of the target is ``-inf``, NaN where one is ``inf``.

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: ``scores`` is not a floating tensor, ``alpha`` is not a number, classes are boolean.
        ValueError: there are no classes, ``target`` has another shape, is no class or no distribution (sums to 1 to
            1e-4, in half precision to 0.02), ``alpha`` is not > 0.

    Example:
        >>> scores = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.5, 0.0]], requires_grad=True)
        >>> loss = entmax_loss(scores, torch.tensor([0, 0]), alpha=2)
        >>> loss
        tensor([0.0000, 0.5833], grad_fn=<SubBackward0>)
        >>> torch.autograd.grad(loss.sum(), scores)[0][1]
        tensor([-0.8333,  0.6667,  0.1667])

    References:
        Blondel, Martins, Niculae (2020), Learning with Fenchel-Young losses, equation 5 and table 1.
        Peters, Niculae, Martins (2019), Sparse sequence-to-sequence models, equation 11.
    """
    dim = check_dim(check_floating("scores", scores), dim)
    check_tensor("target", target)
    n = scores.shape[dim] if scores.ndim else 0
    if not n:
        raise ValueError(f"scores must have at least one class, got shape {tuple(scores.shape)}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise TypeError(f"alpha must be a number, got {type(alpha).__name__}")
    x = widen(scores).movedim(dim, -1)
    y = _distribution(x, target, n, dim)
    prediction = entmax(x, alpha)
    gap = prediction - y
    finite = x.isfinite()
    product = (gap * torch.where(finite, x, 0.0)).sum(-1)
    # A score of -inf counts, with gradient 0, where the target has weight.
    product = product + torch.where(finite | (gap == 0), 0.0, gap * x).detach().sum(-1)
    return (product + _entropy(y, alpha) - _entropy(prediction, alpha)).to(scores.dtype)


def _distribution(x: Tensor, target: Tensor, n: int, dim: int) -> Tensor:
    if target.dtype == torch.bool:
        raise TypeError("target must be classes or distributions, got torch.bool")
    wanted = x.shape if target.is_floating_point() else x.shape[:-1]
    came = target.movedim(dim, -1) if target.is_floating_point() and target.ndim == x.ndim else target
    if came.shape != wanted:
        raise ValueError(f"target must have shape {tuple(wanted)} (classes last), got {tuple(came.shape)}")
    if not target.is_floating_point():
        if can_look(target) and not bool(((target >= 0) & (target < n)).all()):
            raise ValueError(f"target must be in 0..{n - 1}, got {int(target.min())} to {int(target.max())}")
        return torch.zeros_like(x).detach().scatter(-1, target.unsqueeze(-1), 1.0)
    if can_look(came):
        slack = 1e-4 if torch.finfo(target.dtype).bits >= 32 else 0.02
        if not bool(((came >= 0).all(-1) & ((came.double().sum(-1) - 1).abs() <= slack)).all()):
            raise ValueError("target must be distributions: >= 0, with sum 1")
    return came.to(x)


def _entropy(p: Tensor, alpha: float) -> Tensor:
    """The regulariser Omega of a distribution, convex; a power of 0 has derivative 0."""
    inside = torch.where(p > 0, p, 1.0)
    if abs(alpha - 1) < 1e-8:
        return (p * inside.log()).sum(-1)
    powers = torch.where(p > 0, inside**alpha, 0.0)
    return (powers.sum(-1) - 1) / (alpha * (alpha - 1))
