r"""Weights for a law of responses that has changed, while that of the features given a response has not.

A source has pairs (x, y), the target features alone. With :math:`\omega(y)=p_t(y)/p_s(y)` it holds that
:math:`E_s[\omega(Y)\mid X=x]=p_t(x)/p_s(x)`: an integral equation of the first kind, which has to be regularised.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from pullback.core.checks import (
    check_broadcast,
    check_callable,
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_scalar,
)
from pullback.core.numerics import solve
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.implicit import linear_solve
from pullback.uncertainty.density import gaussian_kernel, kernel_density
from pullback.uncertainty.weights import effective_sample_size

__all__ = [
    "TargetShift",
    "Tikhonov",
    "conditional_expectation_matrix",
    "reference_bandwidth",
    "target_shift_weights",
    "tikhonov_solve",
]

_ROWS = 10
_FEW = 0.05
"""Part of the sample that must be left as effective sample size."""
_FAR = 0.1
"""Part of the target that may be where the source has no rows."""
ALPHAS = tuple(10 ** (-k / 2) for k in range(8, 0, -1))
"""What is tried where alpha is not given: from 1e-4 to 0.3."""
_FOLDS = 2
_DENSE = 800
"""Rows up to which the matrix of the equation is formed."""


def reference_bandwidth(x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch d"]:
    r"""Return :math:`1.06\,\hat\sigma n^{-1/5}` for each column: what is best for the density of a normal variable.

    Args:
        x: ``[*batch, n, d]``, n >= 2, no column constant.

    Returns:
        ``[*batch, d]`` > 0 in the units of the columns.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: there are fewer than two rows, a number is not finite, or a column is constant.

    Example:
        >>> reference_bandwidth(torch.tensor([[0.0], [2.0]])).round(decimals=3)
        tensor([1.3050])

    References:
        Silverman (1986), Density estimation for statistics and data analysis, equation 3.28.
    """
    if check_floating("x", x).ndim < 2 or x.shape[-2] < 2:
        raise ValueError(f"x must have shape (..., n >= 2, d), got {tuple(x.shape)}")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    top = wide.detach().abs().amax(-2, keepdim=True).clamp(min=torch.finfo(wide.dtype).tiny)
    spread = (wide / top).std(-2)
    if can_look(spread):
        check_finite("x", x)
        if not bool((spread > 0).all()):
            raise ValueError("x must vary in every column, one is constant")
    return (1.06 * x.shape[-2] ** -0.2 * top.squeeze(-2) * spread).to(x.dtype)


def conditional_expectation_matrix(
    x: Float[Tensor, "*#batch n d"],
    query: Float[Tensor, "*#batch m d"] | None = None,
    *,
    bandwidth: Scalar | Float[Tensor, "..."],
) -> Float[Tensor, "*batch m n"]:
    r"""Return C with :math:`(C\psi)_i\approx E[\psi\mid X=x_i]` for numbers :math:`\psi_j` of the rows of x.

    .. math:: C_{ij}=\frac{K((q_i-x_j)/h)}{\sum_k K((q_i-x_k)/h)},\qquad K(u)=e^{-|u|^2/2}

    Rows sum to 1, however far the query is (then the nearest row counts alone).

    Args:
        x: ``[*batch, n, d]`` finite.
        query: ``[*batch, m, d]`` where the expectation is wanted; x by default.
        bandwidth: h > 0 in the unit of x: a number, or a tensor that broadcasts against ``[*batch, 1, d]``.

    Returns:
        ``[*batch, m, n]``.

    Raises:
        TypeError: x or query are no floating tensors of one dtype.
        ValueError: shapes do not fit, or the bandwidth is not > 0.

    Example:
        >>> conditional_expectation_matrix(torch.tensor([[0.0], [0.0], [1.0]]), bandwidth=0.5)
        tensor([[0.4683, 0.4683, 0.0634],
                [0.4683, 0.4683, 0.0634],
                [0.1065, 0.1065, 0.7870]])

    References:
        Nadaraya (1964), On estimating regression. Watson (1964), Smooth regression analysis.
    """
    query = x if query is None else query
    for name, value in (("x", x), ("query", query)):
        if check_floating(name, value).ndim < 2:
            raise ValueError(f"{name} must have shape (..., n, d), got {tuple(value.shape)}")
    check_same_dtype(x=x, query=query)
    if not x.shape[-2] or x.shape[-1] != query.shape[-1]:
        raise ValueError(f"x and query must have rows of one length, got {tuple(x.shape)} and {tuple(query.shape)}")
    batch = check_broadcast(x=tuple(x.shape[:-2]), query=tuple(query.shape[:-2]))
    check_positive("bandwidth", bandwidth)
    wide = torch.promote_types(x.dtype, torch.float32)
    h = torch.as_tensor(bandwidth, dtype=wide, device=x.device)
    shape = (*batch, 1, x.shape[-1])
    if check_broadcast(x=shape, bandwidth=tuple(h.shape)) != shape:
        raise ValueError(f"bandwidth must broadcast against {shape}, got {tuple(h.shape)}")
    gap = (query.to(wide).unsqueeze(-2) - x.to(wide).unsqueeze(-3)) / h.expand(shape).unsqueeze(-2)
    distance = gap.square().sum(-1)
    return (-distance / 2).softmax(-1).to(x.dtype)


class Tikhonov(NamedTuple):
    """A regularised solution.

    Attributes:
        value: ``[*batch, n]``.
        residual: ``[*batch]`` root of the mean square of ``T value - right side``.
        alpha: ``[]`` the regularisation that was used.
    """

    value: Float[Tensor, "*batch n"]
    residual: Float[Tensor, "*batch"]
    alpha: Float[Tensor, ""]


Operator = Float[Tensor, "..."] | Callable[..., Tensor]


def tikhonov_solve(
    operator: Operator,
    adjoint: Operator,
    right: Float[Tensor, "*#batch m"],
    *,
    alpha: Scalar | None,
    iterated: int = 1,
    noise: float | None = None,
    parameters: Sequence[Float[Tensor, "..."]] = (),
) -> Tikhonov:
    r"""Return :math:`\rho=(\alpha I+T^*T)^{-1}T^*\eta`, a stable answer to :math:`T\rho=\eta`.

    It minimises :math:`|T\rho-\eta|^2+\alpha|\rho|^2` in the products of which :math:`T^*` is the adjoint of T.
    Iterated, :math:`\rho_k=(\alpha I+T^*T)^{-1}(T^*\eta+\alpha\rho_{k-1})` from 0 on, it is biased less at the same
    alpha. Without alpha the discrepancy principle takes the largest of 1, 1/2, 1/4, ... whose residual is not above the
    noise.

    Args:
        operator: T, ``[*batch, m, n]`` or a linear function ``[n] -> [m]``, called with the parameters behind.
        adjoint: its adjoint, ``[*batch, n, m]`` or a function ``[m] -> [n]``.
        right: ``[*batch, m]`` the right side; ``[m]`` with functions.
        alpha: > 0, a number or a tensor without dimensions; None for the discrepancy principle.
        iterated: how often, >= 1.
        noise: root mean square of the error of the right side, > 0, for the discrepancy principle.
        parameters: every tensor that the functions use and that needs a derivative.

    Returns:
        :class:`Tikhonov`, differentiable in all tensors (matrices, right side, alpha).

    Raises:
        TypeError: an argument is of another kind, the dtypes differ.
        ValueError: shapes do not fit, alpha is not > 0, noise is missing or given beside alpha, or no alpha above
            2^-40 reaches it.

    Example:
        >>> steep = torch.diag(torch.tensor([1.0, 1e-4]))
        >>> tikhonov_solve(steep, steep.T, torch.tensor([1.0, 0.01]), alpha=1e-4).value  # without: 1 and 100
        tensor([0.9999, 0.0100])

    References:
        Engl, Hanke, Neubauer (1996), Regularization of inverse problems, sections 4.3 and 5.1.
    """
    check_floating("right", right)
    check_integer("iterated", iterated, 1)
    if callable(operator) != callable(adjoint):
        raise TypeError("operator and adjoint must both be matrices or both functions")
    if not callable(operator) and not callable(adjoint):
        _check_matrices(operator, adjoint, right)
    elif right.ndim != 1:
        raise ValueError(f"right must have shape [m] with functions, got {tuple(right.shape)}")
    if (alpha is None) == (noise is None):
        raise ValueError("alpha, or noise for the discrepancy principle, must be given, and not both")
    if alpha is not None:
        check_scalar("alpha", alpha)
        strength = torch.as_tensor(alpha, dtype=right.dtype, device=right.device)
        return _tikhonov(operator, adjoint, right, strength, iterated, parameters)
    assert noise is not None
    check_positive("noise", noise)
    for halvings in range(41):
        found = _tikhonov(operator, adjoint, right, right.new_tensor(2.0**-halvings), iterated, parameters)
        if bool((found.residual <= noise).all()):
            return found
    raise ValueError(
        f"noise must be reached by some alpha >= 2^-40, got {noise}, residual {found.residual.max().item()}"
    )


def _check_matrices(operator: Tensor, adjoint: Tensor, right: Tensor) -> None:
    for name, value in (("operator", operator), ("adjoint", adjoint)):
        if check_floating(name, value).ndim < 2:
            raise ValueError(f"{name} must be a matrix or a function, got shape {tuple(value.shape)}")
    check_same_dtype(operator=operator, adjoint=adjoint, right=right)
    m, n = operator.shape[-2:]
    if adjoint.shape[-2:] != (n, m) or right.shape[-1:] != (m,) or not m or not n:
        came = f"{tuple(operator.shape)}, {tuple(adjoint.shape)} and {tuple(right.shape)}"
        raise ValueError(f"operator, adjoint and right must be [m, n], [n, m] and [m], got {came}")
    batch = (tuple(t.shape[:-2]) for t in (operator, adjoint))
    check_broadcast(**dict(zip(("operator", "adjoint"), batch, strict=True)), right=tuple(right.shape[:-1]))


def _tikhonov(
    operator: Operator, adjoint: Operator, right: Tensor, alpha: Tensor, iterated: int, parameters: Sequence[Tensor]
) -> Tikhonov:
    value = torch.zeros_like(right)
    if callable(operator) and callable(adjoint):
        pulled = adjoint(right, *parameters)
        value = torch.zeros_like(pulled)

        def normal(v: Tensor, strength: Tensor, *held: Tensor) -> Tensor:
            return strength * v + adjoint(operator(v, *held), *held)

        for _ in range(iterated):
            goal = pulled + alpha * value
            value = linear_solve(normal, goal, method="gmres", parameters=(alpha, *parameters), check=True).value
        found = operator(value, *parameters)
    else:
        assert isinstance(operator, Tensor)
        assert isinstance(adjoint, Tensor)
        wide = torch.promote_types(right.dtype, torch.float32)
        forward, back, goal = (t.to(wide) for t in (operator, adjoint, right.unsqueeze(-1)))
        strength = alpha.to(wide)
        pulled, product = back @ goal, back @ forward
        matrix = product + strength * torch.eye(product.shape[-1], dtype=wide, device=right.device)
        column = torch.zeros_like(pulled)
        for _ in range(iterated):
            column = solve(matrix, pulled + strength * column)
        value, found = column.squeeze(-1).to(right.dtype), (forward @ column).squeeze(-1)
    return Tikhonov(value, (found - right).square().mean(-1).sqrt().to(right.dtype), alpha)


class TargetShift(NamedTuple):
    """Weights of the source sample, and how far to trust them.

    Attributes:
        values: ``[n]`` >= 0, estimates of p_t(y) / p_s(y).
        alpha: ``[]`` the regularisation; the solve has a condition number of about (1 + alpha) / alpha.
        residual: ``[]`` root mean square of the equation's error on the source sample.
        effective: ``[]`` effective sample size of the weights, 1..n.
        outside: ``[]`` part of the target where the source is less dense than at any of its own rows.
    """

    values: Float[Tensor, "n"]
    alpha: Float[Tensor, ""]
    residual: Float[Tensor, ""]
    effective: Float[Tensor, ""]
    outside: Float[Tensor, ""]


def target_shift_weights(
    x_source: Float[Tensor, "n p"],
    y_source: Float[Tensor, "n"],
    x_target: Float[Tensor, "m p"],
    *,
    alpha: Scalar | None = None,
    black_box: Callable[[Tensor], Tensor] | None = None,
) -> TargetShift:
    r"""Return weights :math:`\omega_i\approx p_t(y_i)/p_s(y_i)` from features of the target without responses.

    With :math:`C_x, C_y` the matrices of conditional expectations on the source sample and :math:`\eta` the ratio of
    smoothed densities of the target and the source, minus 1, at the source's features:

    .. math:: (\alpha I+C_yC_x)\,\rho=C_y\eta,\qquad\omega=\max(\rho+1,0).

    All bandwidths are those of :func:`reference_bandwidth`. Features of many dimensions go through a black box, such as
    a regression that was fitted on the source: what it predicts is all that is used of them.

    Args:
        x_source: ``[n, p]`` features, n >= 10, no column constant.
        y_source: ``[n]`` responses, not constant.
        x_target: ``[m, p]``, m >= 10.
        alpha: > 0, a number or a tensor without dimensions. None tries 1e-4 to 0.3 and takes the one whose weights,
            found on one half of the data, bring the other half of the source nearest to the other half of the target
            (by the maximum mean discrepancy): the largest within 1 / n of the best.
        black_box: from ``[k, p]`` to ``[k]`` or ``[k, few]``.

    Returns:
        :class:`TargetShift`, differentiable in the data (one linear solve), but for alpha where it is chosen. A warning
        says when less than 5 % of the sample is left, or a tenth of the target is outside of the source.

    Raises:
        TypeError: the data are no floating tensors of one dtype, the black box no function.
        ValueError: shapes do not fit, there are fewer than 10 rows, a number is not finite, alpha is not > 0.

    Example:
        >>> y = torch.linspace(-2, 2, 200)
        >>> noise = 0.3 * torch.randn(200, generator=torch.Generator().manual_seed(0))
        >>> found = target_shift_weights((y + noise)[:, None], y, (y + noise)[100:, None], alpha=0.03)
        >>> found.values[:80].mean() < 0.5, found.values[120:].mean() > 1.5  # the target has the upper half
        (tensor(True), tensor(True))

    References:
        Kim, Zhang, Zhao, Tian (2024), ReTaSA: a nonparametric functional estimation approach for addressing continuous
        target shift, section 3.
    """
    u, y, v = _scalars(x_source, y_source, x_target, black_box)
    wide = torch.promote_types(u.dtype, torch.float32)
    if alpha is None:
        chosen = _chosen_alpha(u.detach().to(wide), y.detach().to(wide), v.detach().to(wide))
        alpha = torch.as_tensor(chosen, dtype=wide, device=u.device)
    else:
        check_scalar("alpha", alpha)
    parts = _Estimate.of(u.to(wide), y.to(wide), v.to(wide))
    if len(u) <= _DENSE:
        found = tikhonov_solve(parts.forward, parts.back, parts.ratio, alpha=alpha)
    else:  # a few products with the matrices instead of one of them
        found = tikhonov_solve(
            lambda v, forward, back: forward @ v,
            lambda v, forward, back: back @ v,
            parts.ratio,
            alpha=alpha,
            parameters=(parts.forward, parts.back),
        )
    values = (found.value + 1).clamp(min=0)
    effective = effective_sample_size(values.log())
    outside = (parts.at_target < parts.at_source.min()).to(wide).mean()
    if can_look(effective) and (float(effective) < _FEW * len(u) or float(outside) > _FAR):
        warnings.warn(
            f"the weights leave an effective sample of {float(effective):.1f} of {len(u)} rows; "
            f"{float(outside):.1%} of the target is where the source has no rows",
            stacklevel=2,
        )
    return TargetShift(values.to(u.dtype), found.alpha, *(n.to(u.dtype) for n in (found.residual, effective, outside)))


class _Estimate(NamedTuple):
    """Matrices of the source sample, and the right side of the equation."""

    forward: Tensor
    back: Tensor
    ratio: Tensor
    at_source: Tensor
    at_target: Tensor

    @staticmethod
    def of(u: Tensor, y: Tensor, v: Tensor) -> _Estimate:
        width = reference_bandwidth(u)
        forward = conditional_expectation_matrix(u, bandwidth=width)
        back = conditional_expectation_matrix(y, bandwidth=reference_bandwidth(y))
        source = kernel_density(u, None, torch.cat([u, v]), bandwidth=width)
        target = kernel_density(v, None, u, bandwidth=reference_bandwidth(v))
        ratio = torch.expm1(target - source[: len(u)])
        return _Estimate(forward, back, ratio, source[: len(u)].detach(), source[len(u) :].detach())


def _chosen_alpha(u: Tensor, y: Tensor, v: Tensor) -> float:
    """Return the alpha whose weights carry over best from one half of the data to the other."""
    totals = u.new_zeros(len(ALPHAS))
    for fold in range(_FOLDS):
        held, held_target = (torch.arange(len(t), device=t.device) % _FOLDS == fold for t in (u, v))
        a, b = _Estimate.of(u[~held], y[~held], v[~held_target]), u[held]
        others = conditional_expectation_matrix(y[~held], y[held], bandwidth=reference_bandwidth(y[~held]))
        width = u.std(0) / 2
        own, cross = gaussian_kernel(b, b, width), gaussian_kernel(b, v[held_target], width).mean(1)
        product, pulled = a.back @ a.forward, (a.back @ a.ratio).unsqueeze(1)
        eye = torch.eye(len(product), dtype=u.dtype, device=u.device)
        for i, alpha in enumerate(ALPHAS):
            rho = solve(alpha * eye + product, pulled).squeeze(1)
            # T* (eta - T rho) = alpha rho holds on the sample, and says what rho is elsewhere
            weights = (others @ (a.ratio - a.forward @ rho) / alpha + 1).clamp(min=0) / len(b)
            totals[i] += (weights @ own @ weights - 2 * weights @ cross) / _FOLDS
    near = totals <= totals.min() + 1 / len(u)  # what differs by less is noise: the largest of them varies least
    return ALPHAS[int(near.nonzero().max())]


def _scalars(
    x_source: Tensor, y_source: Tensor, x_target: Tensor, black_box: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Check the data, and return what is used of the features, and the responses as a column."""
    for name, value, ndim in (("x_source", x_source, 2), ("y_source", y_source, 1), ("x_target", x_target, 2)):
        if check_floating(name, value).ndim != ndim or len(value) < _ROWS:
            raise ValueError(f"{name} must have {ndim} dimensions and at least {_ROWS} rows, got {tuple(value.shape)}")
        if can_look(value):
            check_finite(name, value)
    check_same_dtype(x_source=x_source, y_source=y_source, x_target=x_target)
    if len(y_source) != len(x_source) or x_source.shape[1] != x_target.shape[1] or not x_source.shape[1]:
        came = ", ".join(str(tuple(t.shape)) for t in (x_source, y_source, x_target))
        raise ValueError(f"x_source, y_source, x_target must be [n, p], [n], [m, p], got {came}")
    if black_box is None:
        return x_source, y_source.unsqueeze(1), x_target
    check_callable("black_box", black_box)
    used = []
    for x in (x_source, x_target):
        u = check_floating("black_box(x)", black_box(x))
        u = u.unsqueeze(1) if u.ndim == 1 else u
        if u.ndim != 2 or len(u) != len(x):
            raise ValueError(f"black_box must return [rows] or [rows, few] for {len(x)} rows, got {tuple(u.shape)}")
        used.append(u)
    return used[0], y_source.unsqueeze(1), used[1]
