r"""Proximal operators ``prox(x) = argmin_y |y - x|^2 / 2 + g(y)``: batched, differentiable almost everywhere.

Each is right for finite points of any size; an infinite entry gives the limit, NaN gives NaN.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from pullback.core.checks import check_floating
from pullback.core.shapes import Float, Tensor
from pullback.implicit.arguments import positive
from pullback.implicit.projections import check_points, compared, scaled, widened

__all__ = [
    "prox_elastic_net",
    "prox_group_lasso",
    "prox_l0",
    "prox_lasso",
    "prox_non_negative_lasso",
    "prox_non_negative_ridge",
    "prox_ridge",
]

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
        >>> prox_lasso(torch.tensor([3.0, 0.5, -2.0]), 1.0)
        tensor([ 2.,  0., -1.])

    References:
        Parikh, Boyd (2014), Proximal algorithms, section 6.5.2.
    """
    check_floating("x", x)
    threshold = positive("weight", weight, x, x.shape, zero=True)
    if not isinstance(weight, Tensor) and 0 < weight <= torch.finfo(x.dtype).max:
        return F.softshrink(x, float(weight))  # one pass; at weight 0 it would have no gradient at 0
    return torch.where(x.abs() < threshold, 0, x - threshold * x.sign())


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
    check_floating("x", x)
    return x / (1 + positive("weight", weight, x, x.shape, zero=True))


def prox_elastic_net(x: Float[Tensor, "*batch n"], weight: Weight = 1.0, ridge: Weight = 1.0) -> Tensor:
    r"""Soft thresholding and shrinkage, the prox of ``g(y) = weight * sum |y| + ridge / 2 * sum y^2``.

    :math:`\operatorname{sign}(x) \max(|x| - \text{weight}, 0) / (1 + \text{ridge})`.

    Args:
        x: ``[*batch, n]`` the points.
        weight: >= 0 of the absolute values, a number or a tensor that broadcasts against ``x``.
        ridge: >= 0 of the squares, the same.

    Returns:
        ``[*batch, n]``.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: a weight is negative.

    Example:
        >>> prox_elastic_net(torch.tensor([3.0, 0.5, -2.0]), 1.0, ridge=1.0)
        tensor([ 1.0000,  0.0000, -0.5000])

    References:
        Zou, Hastie (2005), Regularization and variable selection via the elastic net; Parikh, Boyd (2014), 6.5.3.
    """
    check_floating("x", x)
    return prox_lasso(x, weight) / (1 + positive("ridge", ridge, x, x.shape, zero=True))


def prox_non_negative_lasso(x: Float[Tensor, "*batch n"], weight: Weight = 1.0) -> Tensor:
    r"""The prox of ``g(y) = weight * sum y`` on ``y >= 0``: ``max(x - weight, 0)``.

    Args:
        x: ``[*batch, n]`` the points.
        weight: >= 0, a number or a tensor that broadcasts against ``x``.

    Returns:
        ``[*batch, n]``.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: ``weight`` is negative.

    Example:
        >>> prox_non_negative_lasso(torch.tensor([3.0, 0.5, -2.0]), 1.0)
        tensor([2., 0., 0.])

    References:
        Parikh, Boyd (2014), Proximal algorithms, section 6.5.2.
    """
    check_floating("x", x)
    return torch.relu(x - positive("weight", weight, x, x.shape, zero=True))


def prox_non_negative_ridge(x: Float[Tensor, "*batch n"], weight: Weight = 1.0) -> Tensor:
    r"""The prox of ``g(y) = weight / 2 * sum y^2`` on ``y >= 0``: ``max(x, 0) / (1 + weight)``.

    Args:
        x: ``[*batch, n]`` the points.
        weight: >= 0, a number or a tensor that broadcasts against ``x``.

    Returns:
        ``[*batch, n]``.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: ``weight`` is negative.

    Example:
        >>> prox_non_negative_ridge(torch.tensor([3.0, -2.0]), 0.5)
        tensor([2., 0.])
    """
    check_floating("x", x)
    return torch.relu(x) / (1 + positive("weight", weight, x, x.shape, zero=True))


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
    check_points(x)
    work = widened(x)
    threshold = positive("weight", weight, work, x.shape[:-1], zero=True)[..., None]
    unit, scale = scaled(work, threshold)
    out, length = compared(unit, threshold / scale)
    return torch.where(out, 0, work * (1 - threshold / scale / length)).to(x.dtype)


def prox_l0(x: Float[Tensor, "*batch n"], weight: Weight = 1.0) -> Tensor:
    r"""Hard thresholding, the prox of ``g(y) = weight * number of entries other than 0``.

    ``x`` where ``|x| > sqrt(2 weight)``, 0 elsewhere. It jumps there, so its derivative in ``weight`` is 0.

    Args:
        x: ``[*batch, n]`` the points.
        weight: >= 0, a number or a tensor that broadcasts against ``x``.

    Returns:
        ``[*batch, n]``; of the two answers at ``|x| = sqrt(2 weight)`` it is 0.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: ``weight`` is negative.

    Example:
        >>> prox_l0(torch.tensor([3.0, -0.5, -2.0]), 0.5)
        tensor([ 3.,  0., -2.])

    References:
        Parikh, Boyd (2014), Proximal algorithms, section 6.1; Blumensath, Davies (2008), Iterative thresholding for
        sparse approximations.
    """
    check_floating("x", x)
    squared = positive("weight", weight, x, x.shape, zero=True)
    if not isinstance(weight, Tensor) and weight > 0 and math.sqrt(2 * weight) <= torch.finfo(x.dtype).max:
        return F.hardshrink(x, math.sqrt(2 * weight))
    threshold = math.sqrt(2) * squared.sqrt()  # 2 weight might overflow
    return torch.where(x.abs() <= threshold, 0, x)
