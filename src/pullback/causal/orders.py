"""Models along a topological order: exact scores by Cholesky factors, least squares and logistic regressions."""

from __future__ import annotations

import torch

from pullback.causal.graphs import check_square
from pullback.causal.least_squares import factorised, second_moments
from pullback.causal.likelihoods import MODELS, check_observations
from pullback.causal.logistic import regression_weights
from pullback.core.checks import check_choice, check_floating, check_scalar
from pullback.core.shapes import Float, Int, Shaped, Tensor

__all__ = ["fit_order", "score_order"]


def score_order(covariance: Float[Tensor, "*#batch d d"], order: Int[Tensor, "*#batch d"]) -> Float[Tensor, "*batch"]:
    r"""Return the least-squares score of the best weights for an order, without computing them.

    With the nodes permuted into the order, the residual variance of node ``k`` given its predecessors is the squared
    diagonal of the Cholesky factor: :math:`\min_W \mathrm{tr}((I-W)^TC(I-W))/d = \sum_k L_{kk}^2 / d`.

    Args:
        covariance: ``[*batch, d, d]`` positive definite.
        order: ``[*batch, d]`` causes first; broadcasts against the covariance's batch.

    Returns:
        ``[*batch]``, the value of :func:`least_squares_score` at the optimum.

    Raises:
        ValueError: an order that is not a permutation (the missing node is named), a singular covariance.

    Example:
        >>> score_order(torch.tensor([[1.0, 1.0], [1.0, 2.0]]), torch.tensor([0, 1])).item()
        1.0

    References:
        Deng, Bello, Aragam, Ravikumar (2023), Optimizing NOTEARS Objectives via Topological Swaps (inner problem).
    """
    check_square("covariance", check_floating("covariance", covariance))
    return order_scores(covariance, checked_order(covariance, order))


def fit_order(
    data: Shaped[Tensor, "*#batch n d"],
    order: Int[Tensor, "*#batch d"],
    *,
    covariance: bool = False,
    model: str = "least-squares",
    penalty: float | Float[Tensor, ""] = 0.0,
) -> Float[Tensor, "*batch d d"]:
    r"""Regress every node on its predecessors in an order, with a ridge :math:`\tfrac{\lambda}{2}\|w_j\|^2` a node.

    * ``"least-squares"`` minimises :math:`\tfrac{1}{2n}\|x_j - Xw_j\|^2` of centred data. With
      :math:`C + \lambda I = LL^T` in the order, :math:`I-W = L^{-T} \mathrm{diag}(L)`: one triangular solve for all
      nodes.
    * ``"logistic"``, of nodes in {0, 1} with :math:`P(x_j = 1) = \sigma(Xw_j)`, minimises the mean of
      :math:`\log(1 + e^{Xw_j}) - x_j Xw_j`. As in the paper there is no intercept, and the data are not centred.
    * ``"poisson"``, of counts with rate :math:`e^{Xw_j}`, minimises the mean of :math:`e^{Xw_j} - x_j Xw_j` likewise.

    Args:
        data: ``[*batch, n, d]`` samples or ``[*batch, d, d]`` covariance.
        order: ``[*batch, d]`` causes first.
        covariance: whether ``data`` is a covariance (least squares only).
        model: of the three.
        penalty: ``lambda >= 0``; of logistic and Poisson regressions > 0 where the predecessors separate the values of
            a node.

    Returns:
        ``[*batch, d, d]`` weights, zero wherever the order forbids an arc; differentiable in the data.

    Raises:
        ValueError: bad data (see :func:`second_moments`), an order that is not a permutation, a singular covariance;
            nodes of a logistic model that are not 0 or 1, of a Poisson model that are no whole numbers >= 0.
        ConvergenceError: a logistic or Poisson regression without a finite answer.

    Example:
        >>> fit_order(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), torch.tensor([1, 0]), covariance=True)
        tensor([[0.0000, 0.0000],
                [0.5000, 0.0000]])

    References:
        Deng et al. (2023), the inner level; Zheng et al. (2018) for the two losses.
    """
    check_choice("model", model, MODELS)
    check_scalar("penalty", penalty, zero=True)
    if model != "least-squares":
        if covariance:
            raise ValueError(f"model {model!r} needs samples; a covariance has the second moments alone")
        check_observations(model, data)
        order = checked_order(data, order)
        return regression_weights(data.double(), order, penalty, model).to(data.dtype)
    moments = second_moments(data, covariance=covariance)
    order = checked_order(moments, order)
    return order_weights(moments + penalty * torch.eye(moments.shape[-1]).to(moments), order)


def order_scores(covariance: Tensor, order: Tensor) -> Tensor:
    """Return :func:`score_order` of arguments that are known to be right."""
    return _factor(covariance, order).diagonal(dim1=-2, dim2=-1).square().mean(-1)


def order_weights(covariance: Tensor, order: Tensor) -> Tensor:
    """Return :func:`fit_order` of a covariance and an order that are known to be right."""
    factor = _factor(covariance, order)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    within = identity - inverse.mT * factor.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    return permuted(within.triu(1), order.argsort(-1))


def _factor(covariance: Tensor, order: Tensor) -> Tensor:
    """Return the Cholesky factor in the order, in at least single precision."""
    return checked_factor(permuted(covariance, order).to(torch.promote_types(covariance.dtype, torch.float32)))


def checked_factor(ordered: Tensor) -> Tensor:
    """Return the Cholesky factor of a matrix of at least single precision, or say that it is singular."""
    factor, definite = factorised(ordered)
    if not bool(definite.all()):
        raise ValueError("covariance is singular; add a ridge (covariance + 1e-6 I)")
    return factor


def residual_variances(covariance: Tensor, order: Tensor) -> Tensor:
    """Return what is left of the variance of every node, given all before it in the order: ``[*batch, d]``."""
    left = _factor(covariance, order).diagonal(dim1=-2, dim2=-1).square()
    return left.gather(-1, order.argsort(-1).expand(left.shape))


def permuted(matrix: Tensor, order: Tensor) -> Tensor:
    """Return the matrix with rows and columns in the order."""
    if matrix.ndim == 2:
        return matrix[order.unsqueeze(-1), order.unsqueeze(-2)]
    shape = torch.broadcast_shapes(matrix.shape[:-2], order.shape[:-1])
    matrix = matrix.expand(*shape, *matrix.shape[-2:])
    order = order.expand(*shape, order.shape[-1])
    rows = order.unsqueeze(-1).expand(matrix.shape)
    columns = order.unsqueeze(-2).expand(matrix.shape)
    return matrix.gather(-2, rows).gather(-1, columns)


def checked_order(covariance: Tensor, order: Tensor) -> Tensor:
    """Return the order where the covariance is, or say what is wrong with it."""
    nodes = covariance.shape[-1]
    if not isinstance(order, Tensor) or order.is_floating_point() or order.dtype == torch.bool:
        raise TypeError(f"order must be an integer tensor, got {getattr(order, 'dtype', type(order).__name__)}")
    expected = torch.arange(nodes, device=order.device)
    if order.ndim < 1 or order.shape[-1] != nodes:
        raise ValueError(f"order must have shape (..., {nodes}), got {tuple(order.shape)}")
    if not bool((order.sort(-1).values == expected).all()):
        present = set(order.reshape(-1, nodes)[0].tolist())
        missing = sorted(set(range(nodes)) - present)
        raise ValueError(f"order must be a permutation of 0..{nodes - 1}; missing {missing[:5] or 'in a later row'}")
    return order.to(covariance.device)
