"""Scores of features for the transfer operator of a stochastic process: how much of its leading space they span."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from pullback.core.checks import (
    check_broadcast,
    check_callable,
    check_finite,
    check_floating,
    check_positive,
    check_same_dtype,
    check_scalar,
)
from pullback.core.numerics import solve
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look

__all__ = [
    "FeatureCovariances",
    "covariances",
    "generator_covariance",
    "generator_score",
    "metric_distortion",
    "projection_score",
    "relaxed_score",
    "vamp2_score",
]


class FeatureCovariances(NamedTuple):
    """Second moments of features of pairs.

    Attributes:
        cx: ``[*batch, r, r]`` of the features now.
        cy: ``[*batch, r, r]`` of the features one step later.
        cxy: ``[*batch, r, r]`` across the step, now along the rows.
    """

    cx: Float[Tensor, "*batch r r"]
    cy: Float[Tensor, "*batch r r"]
    cxy: Float[Tensor, "*batch r r"]


def covariances(
    x: Float[Tensor, "*#batch n r"], y: Float[Tensor, "*#batch n r"], *, center: bool = False
) -> FeatureCovariances:
    r"""Return :math:`C_x=\frac1nX^TX`, :math:`C_y=\frac1nY^TY` and :math:`C_{xy}=\frac1nX^TY`.

    They are means over pairs: processes that hold equally many pairs each average theirs (not with ``center``).

    Args:
        x: ``[*batch, n, r]`` features of the states now, of any size whose square fits the dtype.
        y: ``[*batch, n, r]`` features of the states one step later.
        center: whether the means of the features are taken off first.

    Returns:
        The three matrices.

    Raises:
        TypeError: a tensor that is not floating, or two dtypes.
        ValueError: shapes that do not fit, or no pairs.

    Example:
        >>> covariances(torch.eye(2), torch.eye(2).flip(0)).cxy.tolist()
        [[0.0, 0.5], [0.5, 0.0]]

    References:
        Kostic, Novelli, Grazzi, Lounici, Pontil (2024), arXiv 2307.09912, section 3.
    """
    check_same_dtype(x=check_floating("x", x), y=check_floating("y", y))
    if x.ndim < 2 or not x.shape[-2] or not x.shape[-1]:
        raise ValueError(f"x must have shape (..., n, r) with n, r >= 1, got {tuple(x.shape)}")
    if y.shape[-2:] != x.shape[-2:]:
        raise ValueError(f"y must have the shape of x {tuple(x.shape)}, got {tuple(y.shape)}")
    check_broadcast(x=x.shape, y=y.shape)
    x, y = torch.broadcast_tensors(x, y)
    wide = torch.promote_types(x.dtype, torch.float32)
    a, b = x.to(wide), y.to(wide)
    if center:
        a, b = a - a.mean(-2, keepdim=True), b - b.mean(-2, keepdim=True)
    left, right = a / x.shape[-2], b / x.shape[-2]
    return FeatureCovariances(
        (left.mT @ a).to(x.dtype),
        (right.mT @ b).to(x.dtype),
        (left.mT @ b).to(x.dtype),
    )


def projection_score(
    cx: Float[Tensor, "*#batch r r"],
    cy: Float[Tensor, "*#batch r r"],
    cxy: Float[Tensor, "*#batch r r"],
    *,
    ridge: Scalar = 0.0,
) -> Float[Tensor, "*batch"]:
    r"""Return :math:`P=\|C_x^{-1/2}C_{xy}C_y^{-1/2}\|_{HS}^2`, which the leading singular functions make largest.

    For exact covariances it is at most the sum of the r largest squared singular values of the transfer operator. It
    depends on the spans of the features alone, and its gradient grows without bound as features begin to depend on each
    other: :func:`relaxed_score` is the form without an inverse.

    Args:
        cx: ``[*batch, r, r]`` symmetric and positive definite, of any scale.
        cy: ``[*batch, r, r]``, likewise.
        cxy: ``[*batch, r, r]``.
        ridge: added to the diagonals of ``cx`` and ``cy``, >= 0, in their units; may be differentiated.

    Returns:
        ``[*batch]`` in [0, r].

    Raises:
        TypeError: a tensor that is not floating, or several dtypes.
        ValueError: shapes that do not fit, ``ridge`` out of range, or a matrix that is singular to rounding (fewer
            pairs than features, say) with ``ridge`` 0.

    Example:
        >>> c = torch.eye(2)
        >>> projection_score(c, 4 * c, torch.diag(torch.tensor([2.0, 1.0]))).item()  # cosines 1 and 1/2
        1.25

    References:
        Kostic, Novelli, Grazzi, Lounici, Pontil (2024), arXiv 2307.09912, equation 5.
    """
    _check(cx=cx, cy=cy, cxy=cxy)
    check_scalar("ridge", ridge, zero=True)
    (a, x_size), (b, y_size) = _inverted("cx", cx, ridge), _inverted("cy", cy, ridge)
    across = cxy.to(a.dtype) / x_size.sqrt() / y_size.sqrt()
    return (solve(a, across) * solve(b, across.mT).mT).sum((-1, -2)).to(cx.dtype)


def relaxed_score(
    cx: Float[Tensor, "*#batch r r"], cy: Float[Tensor, "*#batch r r"], cxy: Float[Tensor, "*#batch r r"]
) -> Float[Tensor, "*batch"]:
    r"""Return :math:`S=\|C_{xy}\|_{HS}^2/(\|C_x\|\,\|C_y\|)` with operator norms: a lower bound without an inverse.

    :math:`S\le P`, the :func:`projection_score`, with equality where both covariances are multiples of the identity.
    It is differentiable where features depend on each other; where the largest eigenvalue of a covariance is multiple,
    its gradient is one of several and its second derivative does not exist.

    Args:
        cx: ``[*batch, r, r]`` symmetric and positive semi-definite, of any scale.
        cy: ``[*batch, r, r]``, likewise.
        cxy: ``[*batch, r, r]``.

    Returns:
        ``[*batch]`` in [0, r]; 0 where a covariance is 0.

    Raises:
        TypeError: a tensor that is not floating, or several dtypes.
        ValueError: shapes that do not fit.

    Example:
        >>> c = torch.diag(torch.tensor([1.0, 0.25]))
        >>> relaxed_score(c, c, c).item()
        1.0625

    References:
        Kostic, Novelli, Grazzi, Lounici, Pontil (2024), arXiv 2307.09912, equation 6.
    """
    _check(cx=cx, cy=cy, cxy=cxy)
    (a, x_size), (b, y_size) = _scaled(cx), _scaled(cy)
    across = cxy.to(a.dtype) / x_size.sqrt() / y_size.sqrt()
    norms = _largest(a) * _largest(b)
    return (across.square().sum((-1, -2)) / torch.where(norms > 0, norms, 1.0)).to(cx.dtype)


def vamp2_score(
    x: Float[Tensor, "*#batch n r"], y: Float[Tensor, "*#batch n r"], *, ridge: Scalar = 0.0
) -> Float[Tensor, "*batch"]:
    r"""Return the VAMP-2 score: 1 for the constant function and the projection score of the centred features.

    Args:
        x: ``[*batch, n, r]`` features of the states now.
        y: ``[*batch, n, r]`` features one step later.
        ridge: added to the diagonals of both covariances, >= 0; may be differentiated.

    Returns:
        ``[*batch]`` in [1, r + 1].

    Raises:
        TypeError: a tensor that is not floating, or two dtypes.
        ValueError: shapes that do not fit, ``ridge`` out of range, or dependent features with ``ridge`` 0.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
        >>> vamp2_score(x, 2 * x + 1).item()  # fully determined
        2.0

    References:
        Wu, Noe (2020), Variational approach for learning Markov processes from time series data, arXiv 1707.04659;
        Mardt, Pasquali, Wu, Noe (2018), VAMPnets, arXiv 1710.06012.
    """
    cx, cy, cxy = covariances(x, y, center=True)
    return 1 + projection_score(cx, cy, cxy, ridge=ridge)


def metric_distortion(c: Float[Tensor, "*batch r r"], *, floor: float = 1e-7) -> Float[Tensor, "*batch"]:
    r"""Return :math:`R(C)=\mathrm{tr}(C^2-C-\log C)\ge0`, which is 0 only where features are orthonormal.

    Args:
        c: ``[*batch, r, r]`` symmetric and positive semi-definite, such as the covariance of features.
        floor: under which an eigenvalue counts as this one in the logarithm, > 0; the gradient of the logarithm is 0
            there.

    Returns:
        ``[*batch]``. The second derivative needs distinct eigenvalues.

    Raises:
        TypeError: ``c`` is not a floating tensor.
        ValueError: ``c`` is not square, or ``floor`` is out of range.

    Example:
        >>> round(metric_distortion(torch.diag(torch.tensor([1.0, 2.0]))).item(), 4)  # 4 - 2 - log 2
        1.3069

    References:
        Kostic, Novelli, Grazzi, Lounici, Pontil (2024), arXiv 2307.09912, section 3.
    """
    _check(c=c)
    check_positive("floor", floor)
    eigenvalues = torch.linalg.eigvalsh(c.to(torch.promote_types(c.dtype, torch.float32)))
    return (eigenvalues * (eigenvalues - 1) - eigenvalues.clamp_min(floor).log()).sum(-1).to(c.dtype)


def generator_covariance(
    features: Callable[[Tensor], Tensor],
    x: Float[Tensor, "n d"],
    drift: Float[Tensor, "n d"] | None,
    diffusion: Float[Tensor, "n d m"],
    *,
    reversible: bool = False,
) -> Float[Tensor, "r r"]:
    r"""Return :math:`C_\partial=E\,\psi(x)(L\psi)(x)^T` for the generator L of :math:`dX=a\,dt+b\,dW`.

    :math:`L\psi_i=a\cdot\nabla\psi_i+\frac12\mathrm{tr}(b^T\nabla^2\psi_i\,b)` (Ito), by forward derivatives of forward
    derivatives along the columns of b: no Hessian is formed. Where x is from the stationary law of a reversible process
    the same expectation is :math:`-\frac12E\,\nabla\psi\,bb^T\nabla\psi^T`, which needs first derivatives only, is
    symmetric, and has no positive eigenvalue on any sample.

    Args:
        features: :math:`\psi`, from ``[n, d]`` to ``[n, r]``, row by row, and twice differentiable (once, for
            ``reversible``); smooth units, not ReLU.
        x: ``[n, d]`` states.
        drift: ``[n, d]`` a at the states, units of x over time; ``None`` only with ``reversible``, which ignores it.
        diffusion: ``[n, d, m]`` b at the states, units of x over the root of time.
        reversible: which of the two forms.

    Returns:
        ``[r, r]``, units of one over time for features without units.

    Raises:
        TypeError: ``features`` is not callable, a tensor is not floating, or several dtypes.
        ValueError: shapes that do not fit, no states, or no ``drift``.

    Example:
        >>> x = torch.tensor([[1.0], [-1.0]])  # dX = -X dt + 2^(1/2) dW: L x = -x
        >>> generator_covariance(lambda x: x, x, -x, torch.full((2, 1, 1), 2**0.5)).tolist()
        [[-1.0]]

    References:
        Kostic, Novelli, Grazzi, Lounici, Pontil (2024), arXiv 2307.09912, section 4.
    """
    check_callable("features", features)
    check_same_dtype(x=check_floating("x", x), diffusion=check_floating("diffusion", diffusion))
    if x.ndim != 2 or not x.shape[0]:
        raise ValueError(f"x must have shape (n, d) with n >= 1, got {tuple(x.shape)}")
    if diffusion.ndim != 3 or diffusion.shape[:2] != x.shape:
        raise ValueError(f"diffusion must have shape ({x.shape[0]}, {x.shape[1]}, m), got {tuple(diffusion.shape)}")

    def along(direction: Tensor, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda z: torch.func.jvp(function, (z,), (direction,))[1]

    x = x.resolve_neg()
    columns = [column.resolve_neg() for column in diffusion.unbind(-1)]
    if reversible:
        total = None
        for column in columns:
            slopes = along(column, features)(x)
            total = slopes.mT @ slopes if total is None else total + slopes.mT @ slopes
        if total is None:
            raise ValueError("diffusion must have m >= 1 columns for reversible=True, got 0")
        return -total / (2 * len(x))
    if drift is None:
        raise ValueError("drift must be given unless reversible=True")
    check_same_dtype(x=x, drift=check_floating("drift", drift))
    if drift.shape != x.shape:
        raise ValueError(f"drift must have the shape of x {tuple(x.shape)}, got {tuple(drift.shape)}")
    value, moved = torch.func.jvp(features, (x,), (drift.resolve_neg(),))[:2]
    for column in columns:
        moved = moved + along(column, along(column, features))(x) / 2
    return value.mT @ moved / len(x)


def generator_score(
    cx: Float[Tensor, "*#batch r r"], cd: Float[Tensor, "*#batch r r"], *, ridge: Scalar = 0.0, relaxed: bool = False
) -> Float[Tensor, "*batch"]:
    r"""Return the partial trace :math:`\mathrm{tr}(C_x^{-1}C_\partial)` of a generator, or its relaxed form.

    For a reversible process it is at most the sum of the r largest eigenvalues (0 for the constant function, the others
    negative), where the features span the slowest eigenfunctions. Relaxed it is
    :math:`\mathrm{tr}\,C_\partial/\|C_x\|` with the operator norm: no inverse, but also not below the other form.

    Args:
        cx: ``[*batch, r, r]`` covariance of the features, symmetric and positive definite.
        cd: ``[*batch, r, r]`` of :func:`generator_covariance`.
        ridge: added to the diagonal of ``cx``, >= 0; may be differentiated; without effect on the relaxed form.
        relaxed: which form.

    Returns:
        ``[*batch]``, one over time; relaxed 0 where ``cx`` is 0.

    Raises:
        TypeError: a tensor that is not floating, or two dtypes.
        ValueError: shapes that do not fit, ``ridge`` out of range, or a singular ``cx`` with ``ridge`` 0.

    Example:
        >>> generator_score(torch.eye(2), torch.diag(torch.tensor([0.0, -3.0]))).item()
        -3.0

    References:
        Kostic, Novelli, Grazzi, Lounici, Pontil (2024), arXiv 2307.09912, section 4.
    """
    _check(cx=cx, cd=cd)
    check_scalar("ridge", ridge, zero=True)
    if relaxed:
        a, size = _scaled(cx)
        norm = _largest(a)
        trace = (cd.to(a.dtype) / size).diagonal(dim1=-2, dim2=-1).sum(-1)
        return (trace / torch.where(norm > 0, norm, 1.0)).to(cx.dtype)
    a, size = _inverted("cx", cx, ridge)
    return solve(a, cd.to(a.dtype) / size).diagonal(dim1=-2, dim2=-1).sum(-1).to(cx.dtype)


def _check(**matrices: Tensor) -> None:
    """Square matrices of one shape and dtype."""
    first = next(iter(matrices.values()))
    for name, value in matrices.items():
        check_floating(name, value)
        if value.ndim < 2 or value.shape[-1] != value.shape[-2] or not value.shape[-1]:
            raise ValueError(f"{name} must have shape (..., r, r) with r >= 1, got {tuple(value.shape)}")
        if value.shape[-2:] != first.shape[-2:]:
            raise ValueError(f"{name} must have shape (..., {', '.join(map(str, first.shape[-2:]))}), "
                             f"got {tuple(value.shape)}")  # fmt: skip
        if can_look(value):
            check_finite(name, value)
    check_same_dtype(**matrices)
    check_broadcast(**{name: value.shape for name, value in matrices.items()})


def _scaled(c: Tensor) -> tuple[Tensor, Tensor]:
    """``c`` over the size of its largest entry, and that size ``[*batch, 1, 1]``: products stay within the dtype."""
    wide = c.to(torch.promote_types(c.dtype, torch.float32))
    size = wide.detach().abs().amax((-1, -2), keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    return wide / size, size


def _inverted(name: str, c: Tensor, ridge: Scalar) -> tuple[Tensor, Tensor]:
    """The scaled ``c`` with its ridge, refused where it cannot be inverted."""
    scaled, size = _scaled(c)
    scaled = scaled + ridge / size * torch.eye(c.shape[-1], dtype=scaled.dtype, device=c.device)
    if can_look(scaled):
        values = torch.linalg.eigvalsh(scaled.detach())
        limit = c.shape[-1] * torch.finfo(scaled.dtype).eps * values[..., -1]
        if not bool((values[..., 0] > limit).all()):
            raise ValueError(f"{name} must be positive definite, but is singular to rounding: a ridge is needed")
    return scaled, size


def _largest(c: Tensor) -> Tensor:
    """Operator norm of a symmetric positive semi-definite matrix."""
    return torch.linalg.eigvalsh(c)[..., -1]
