r"""Proximal operators ``prox(x) = argmin_y |y - x|^2 / 2 + g(y)``: batched, differentiable almost everywhere."""

from __future__ import annotations

import torch

from pullback.core.checks import check_floating, check_positive
from pullback.core.shapes import Float, Tensor

__all__ = ["prox_group_lasso", "prox_lasso", "prox_ridge"]

Weight = float | Float[Tensor, "..."]


def prox_lasso(x: Float[Tensor, "*batch n"], weight: Weight = 1.0) -> Tensor:
    r"""Soft thresholding, the prox of ``g(y) = weight * sum |y|``: ``sign(x) max(|x| - weight, 0)``.

    Args:
        x: ``[*batch, n]`` the points.
        weight: >= 0, a number or a tensor that broadcasts against ``x``.

    Returns:
        ``[*batch, n]``.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: ``weight`` is negative.

    Example:
        >>> prox_lasso(torch.tensor([3.0, -0.5, -2.0]), 1.0)
        tensor([ 2.,  0., -1.])

    References:
        Parikh, Boyd (2014), Proximal algorithms, section 6.5.2.
    """
    _check(x, weight)
    return torch.where(x >= weight, x - weight, torch.where(x <= -weight, x + weight, 0))


def prox_ridge(x: Float[Tensor, "*batch n"], weight: Weight = 1.0) -> Tensor:
    r"""Shrinkage, the prox of ``g(y) = weight / 2 * sum y^2``: ``x / (1 + weight)``.

    Args:
        x: ``[*batch, n]`` the points.
        weight: >= 0, a number or a tensor that broadcasts against ``x``.

    Returns:
        ``[*batch, n]``.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: ``weight`` is negative.

    Example:
        >>> prox_ridge(torch.tensor([3.0]), 0.5)
        tensor([2.])
    """
    _check(x, weight)
    return x / (1 + weight)


def prox_group_lasso(x: Float[Tensor, "*batch n"], weight: Weight = 1.0) -> Tensor:
    r"""Shrinkage of whole groups, the prox of ``g(y) = weight * sum |y_group|_2``: ``max(1 - weight / |x|, 0) x``.

    Args:
        x: ``[*batch, n]``, a group along the last dimension.
        weight: >= 0, a number or a tensor that broadcasts against ``[*batch]``.

    Returns:
        ``[*batch, n]``; a group no longer than ``weight`` becomes 0.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: ``weight`` is negative.

    Example:
        >>> prox_group_lasso(torch.tensor([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])

    References:
        Yuan, Lin (2006), Model selection and estimation in regression with grouped variables.
    """
    _check(x, weight)
    threshold = torch.as_tensor(weight, dtype=x.dtype, device=x.device)[..., None]
    out = torch.linalg.vector_norm(x, dim=-1, keepdim=True) <= threshold
    length = torch.linalg.vector_norm(torch.where(out, 1, x), dim=-1, keepdim=True)  # no NaN derivative at 0
    return torch.where(out, 0, x * (1 - threshold / length))


def _check(x: Tensor, weight: Weight) -> None:
    check_floating("x", x)
    if isinstance(weight, int | float):
        check_positive("weight", weight, zero=True)
