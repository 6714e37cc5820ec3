"""Projections on the cone of directions that hurt no objective, from inner products of gradients alone.

The gradients of m objectives are the rows of ``J [m, n]``; ``G = J J^T`` is their Gramian. A direction ``J^T w`` is
given by its weights, so that everything here is a matter of ``m`` numbers, whatever ``n`` is.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from pullback.core.checks import check_broadcast, check_choice, check_floating, check_positive, check_scalar
from pullback.core.shapes import Float, Scalar
from pullback.core.transforms import can_look
from pullback.kernels.complementarity import differentiable_complementarity

__all__ = ["upgrad_weights"]

Normalization = Literal["gradients", "trace"]
"""By what a Gramian is divided before its diagonal is regularized."""


def upgrad_weights(
    gramian: Float[Tensor, "*batch m m"],
    *,
    preference: Float[Tensor, "*#batch m"] | None = None,
    regularization: Scalar = 1e-4,
    normalize: Normalization = "trace",
) -> Float[Tensor, "*batch m"]:
    r"""Weights of the unconflicting projection: every gradient is projected on the dual cone, then they are averaged.

    With ``C = {d : J d >= 0}``, the directions along which no objective falls,

    ``A(J) = sum_i p_i proj_C(g_i) = J^T w``,  ``w = sum_i argmin_{v >= p_i e_i} v^T G v``.

    A step along ``-A(J)`` raises no objective to first order, ``A`` is linear when one gradient is scaled, and lies in
    the span of the gradients. The m quadratic programs are solved exactly, as linear complementarity problems, all of
    a batch at once; derivatives of every order hold the active constraints fixed (they are right where no constraint is
    about to change).

    Args:
        gramian: ``[*batch, m, m]`` inner products of gradients, symmetric, positive semidefinite, of any scale. A
            gradient that is 0 keeps its ``preference``.
        preference: ``[*batch, m]`` >= 0, the ``p`` above. ``None``: ``1 / m`` for each.
        regularization: added to the diagonal of the normalized Gramian, >= 0. It bounds the weights where gradients
            nearly oppose each other. Less than 500 roundings of the dtype (of float32 at least) is taken as that.
        normalize: ``"trace"`` divides the Gramian by its trace, as the authors' code does. Gradients shorter than
            ``sqrt(regularization)`` of the longest then constrain little, and the regularized ``A`` is linear in the
            scales of about equal gradients only. In training with one loss an example that is what is wanted: examples
            that are learned would else hold up all others. ``"gradients"`` divides by the lengths of both gradients,
            which leaves cosines: ``A`` is exactly linear in the scales, whatever they are.

    Returns:
        ``[*batch, m]`` weights, at least ``preference``.

    Raises:
        TypeError: a tensor is not floating.
        ValueError: ``gramian`` is not square, not finite or clearly no Gramian, ``preference`` is negative or has
            another size, or ``regularization`` is negative.

    Example:
        >>> jacobian = torch.tensor([[1.0, 0.0], [-2.0, 2.0]])  # the gradients conflict
        >>> weights = upgrad_weights(jacobian @ jacobian.T, regularization=0.0)
        >>> direction = weights @ jacobian
        >>> bool((jacobian @ direction >= -1e-3).all())
        True

    References:
        Quinton, Rey (2024), Jacobian descent for multi-objective optimization, arXiv 2406.16232, equations 4 and 5,
        proposition 1.
    """
    check_gramian(gramian)
    check_scalar("regularization", regularization, zero=True)
    check_choice("normalize", normalize, get_args(Normalization))
    m = gramian.shape[-1]
    work, lengths = normalized(gramian, regularization, normalize)
    if preference is None:
        wanted = work.new_full((m,), 1 / m)
    else:
        check_preference(preference, gramian)
        wanted = preference.to(work.dtype)
    least = torch.diag_embed(wanted * lengths)
    raised = solve(work, least @ work)
    return ((least + raised).sum(-2) / lengths).to(gramian.dtype)


def check_gramian(gramian: Tensor) -> None:
    """Refuse what is no stack of square matrices with finite entries and a non-negative diagonal."""
    check_floating("gramian", gramian)
    if gramian.ndim < 2 or gramian.shape[-1] != gramian.shape[-2]:
        raise ValueError(f"gramian must have shape (..., m, m), got {tuple(gramian.shape)}")
    if gramian.shape[-1] == 0:
        raise ValueError(f"gramian must have at least one objective, got shape {tuple(gramian.shape)}")
    if not can_look(gramian):
        return
    bad = ~torch.isfinite(gramian)
    if bool(bad.any()):
        index = tuple(bad.nonzero()[0].tolist())
        raise ValueError(f"gramian must be finite, got {gramian[index].item()} for objectives {index[-2:]}")
    if bool((gramian.diagonal(dim1=-2, dim2=-1) < 0).any()):
        raise ValueError("gramian must be positive semidefinite, got a negative number on its diagonal")


def check_preference(preference: Tensor, gramian: Tensor) -> None:
    """Refuse preferences of another number of objectives, or negative ones."""
    check_floating("preference", preference)
    if preference.shape[-1:] != gramian.shape[-1:]:
        raise ValueError(f"preference must have shape (..., {gramian.shape[-1]}), got {tuple(preference.shape)}")
    check_broadcast(preference=tuple(preference.shape), gramian=tuple(gramian.shape[:-1]))
    if can_look(preference):
        check_positive("preference", preference, zero=True)


def normalized(gramian: Tensor, regularization: Scalar, normalize: Normalization) -> tuple[Tensor, Tensor]:
    """Return ``G_ij / (d_i d_j)``, regularized, symmetric, in double precision, and the lengths ``d [*batch, m]``."""
    eps = torch.finfo(torch.promote_types(gramian.dtype, torch.float32)).eps
    work = gramian.to(torch.float64)
    limits = torch.finfo(gramian.dtype)
    vanished = work.diagonal(dim1=-2, dim2=-1) < limits.tiny / limits.eps  # too few digits for a cosine
    work = torch.where(vanished[..., None] | vanished[..., None, :], 0, work)
    own = work.diagonal(dim1=-2, dim2=-1)
    m = own.shape[-1]
    if normalize == "trace":
        own = (own / m).sum(-1, keepdim=True).expand(own.shape)  # the trace itself could overflow
    lengths = torch.where(own > 0, own, 1).sqrt() * (m**0.5 if normalize == "trace" else 1)
    work = work / lengths[..., None] / lengths[..., None, :]
    identity = torch.eye(work.shape[-1], dtype=work.dtype, device=work.device)
    ridge = torch.as_tensor(regularization, dtype=work.dtype, device=work.device).clamp(min=500 * eps)
    return (work + work.mT) / 2 + ridge * identity, lengths


def solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return ``z >= 0`` with ``M z + q >= 0`` and ``z . (M z + q) = 0``, differentiable with the free entries fixed.

    Args:
        matrix: ``[*batch, n, n]`` float64, symmetric, positive definite.
        vector: ``[*batch, k, n]``, the ``q``.

    Returns:
        ``[*batch, k, n]``.
    """
    z = differentiable_complementarity(matrix, vector)
    if can_look(z) and bool(z.isnan().any()):
        raise ValueError("gramian must be positive semidefinite, got one with a negative eigenvalue")
    return z
