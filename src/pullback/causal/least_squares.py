"""Second moments of data, and linear models scored and fitted by them."""

from __future__ import annotations

import torch

from pullback.causal.graphs import check_square
from pullback.core.checks import check_broadcast, check_finite, check_floating, check_scalar, check_shape, check_tensor
from pullback.core.shapes import Float, Shaped, Tensor
from pullback.core.transforms import can_look, physical

__all__ = ["interventional_moments", "least_squares_score", "ridge_weights", "second_moments"]


def second_moments(data: Float[Tensor, "*batch n d"], *, covariance: bool = False) -> Float[Tensor, "*batch d d"]:
    """Return the second moments ``C = X^T X / n`` of centred data, checked; with ``covariance`` the input is ``C``.

    Args:
        data: ``[*batch, n, d]`` with ``n >= 2`` samples of ``d >= 1`` nodes, or ``[*batch, d, d]`` with
            ``covariance=True``.
        covariance: whether ``data`` already is a covariance.

    Returns:
        ``[*batch, d, d]`` in the dtype of the data, half precision in float32 (squares leave its range).

    Raises:
        TypeError: not a floating tensor.
        ValueError: NaN or infinity, too few samples, a constant column (named), moments that overflow the dtype; a
            covariance that is not square, symmetric and positive semi-definite.

    Example:
        >>> second_moments(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
        tensor([[1., 2.],
                [2., 4.]])
    """
    check_shape("data", check_floating("data", data), (None, None))
    check_finite("data", data)
    if data.shape[-1] == 0:
        raise ValueError(f"data must have at least one column, got shape {tuple(data.shape)}")
    data = data.to(torch.promote_types(data.dtype, torch.float32))
    if covariance:
        _check_covariance(data)
        return data
    if data.shape[-2] < 2:
        raise ValueError(f"data must have at least two samples (rows), got shape {tuple(data.shape)}")
    centred = data - data.mean(-2, keepdim=True)
    moments = centred.mT @ centred / data.shape[-2]
    if not bool(moments.isfinite().all()):
        raise ValueError(f"data is too large: its second moments overflow {moments.dtype}; scale it")
    spread = moments.diagonal(dim1=-2, dim2=-1)
    rounding = 4 * torch.finfo(data.dtype).eps * data.abs().amax(-2)
    _refuse_constant((data.amax(-2) == data.amin(-2)) | (spread <= rounding.square()))
    return moments


def interventional_moments(
    data: Shaped[Tensor, "*batch n d"], targets: Shaped[Tensor, "*batch n d"]
) -> Float[Tensor, "*batch d d d"]:
    r"""Return for every node the second moments of the samples in which nobody set it.

    .. math:: C_j = \frac{1}{n_j} \sum_{r:\, j \notin I_r} x_r x_r^T

    A node is regressed on others where its own mechanism was at work: a value that was set says nothing about its
    causes, and everything about its effects. Not centred, since interventions move the means: subtract the
    observational mean before, if it is not zero.

    Args:
        data: ``[*batch, n, d]`` samples.
        targets: ``[*batch, n, d]`` booleans: which nodes were set in which sample.

    Returns:
        ``[*batch, d, d, d]``, one matrix a node.

    Raises:
        TypeError: not a floating tensor, targets that are not booleans.
        ValueError: NaN or infinity, other shapes, a node that was set in every sample (named).

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> interventional_moments(x, torch.tensor([[False, False], [False, True]]))[1]
        tensor([[1., 2.],
                [2., 4.]])

    References:
        Hauser, Buehlmann (2012), Characterization and greedy learning of interventional Markov equivalence classes.
    """
    check_shape("data", check_floating("data", data), (None, None))
    check_finite("data", data)
    check_tensor("targets", targets)
    if targets.dtype != torch.bool:
        raise TypeError(f"targets must be booleans, got {targets.dtype}")
    if targets.shape != data.shape:
        raise ValueError(f"targets must have the shape of data, {tuple(data.shape)}, got {tuple(targets.shape)}")
    data = data.to(torch.promote_types(data.dtype, torch.float32))
    free = (~targets).to(data)
    sizes = free.sum(-2)
    if bool((sizes == 0).any()):
        node = int((sizes == 0).nonzero()[0][-1])
        raise ValueError(f"targets must leave every node free in some sample, got none of node {node}")
    weighted = free.mT.unsqueeze(-1) * data.unsqueeze(-3)
    return weighted.mT @ data.unsqueeze(-3) / sizes[..., None, None]


def check_data_sets(name: str, data: Tensor) -> None:
    """Refuse what no learner takes: a batch of no data sets, and one that vmap hides."""
    if physical(check_floating(name, data)).shape != data.shape:
        raise ValueError(
            f"{name} must not be mapped over by vmap, as its values decide when to stop; give it the batch"
        )
    if 0 in data.shape[:-2]:
        raise ValueError(f"{name} must hold at least one data set, got shape {tuple(data.shape)}")


def _check_covariance(moments: Tensor) -> None:
    if moments.shape[-1] != moments.shape[-2]:
        raise ValueError(f"covariance must be square, got {tuple(moments.shape)}")
    spread = moments.detach().diagonal(dim1=-2, dim2=-1)
    if bool((spread < 0).any()):
        column = int((spread < 0).nonzero()[0][-1])
        raise ValueError(f"covariance must be positive semi-definite, got a negative variance of column {column}")
    _refuse_constant(spread == 0)
    deviation = spread.sqrt()
    correlation = moments.detach() / deviation.unsqueeze(-1) / deviation.unsqueeze(-2)
    if not torch.allclose(correlation, correlation.mT, rtol=0, atol=1e-4):
        raise ValueError("covariance must be symmetric")
    if bool((torch.linalg.eigvalsh(correlation)[..., 0] < -1e-4).any()):
        raise ValueError("covariance must be positive semi-definite")


def factorised(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Cholesky factor of ``[*batch, d, d]`` and whether the matrix is positive definite beyond rounding."""
    factor, information = torch.linalg.cholesky_ex(matrix)
    # A node that the ones before it determine up to rounding has no residual variance to speak of.
    left, whole = (m.detach().diagonal(dim1=-2, dim2=-1) for m in (factor, matrix))
    rounding = matrix.shape[-1] * torch.finfo(matrix.dtype).eps
    return factor, (information == 0) & (left.square() > rounding * whole).all(-1)


def _refuse_constant(constant: Tensor) -> None:
    if bool(constant.any()):
        column = int(constant.nonzero()[0][-1])
        raise ValueError(f"data column {column} is constant; remove it (it can have no cause in the data)")


def least_squares_score(
    weights: Float[Tensor, "*#batch d d"], covariance: Float[Tensor, "*#batch d d"]
) -> Float[Tensor, "*batch"]:
    r"""Mean squared error of predicting every node from the others, from second moments alone.

    .. math:: \mathrm{tr}\big((I-W)^T C (I-W)\big) / d = \|X - XW\|_F^2 / (nd)

    Args:
        weights: ``[*batch, d, d]``, ``W[i, j]`` the effect of ``i`` on ``j``.
        covariance: ``[*batch, d, d]`` second moments ``C`` of the data.

    Returns:
        ``[*batch]``, >= 0.

    Raises:
        TypeError: not floating tensors of one dtype.
        ValueError: matrices that are not square or of different sizes.

    Example:
        >>> least_squares_score(torch.zeros(2, 2), torch.eye(2)).item()
        1.0
    """
    nodes = check_square("weights", check_floating("weights", weights))
    check_shape("covariance", check_floating("covariance", covariance), (nodes, nodes))
    if covariance.dtype != weights.dtype:
        raise TypeError(f"weights and covariance must have one dtype, got {weights.dtype} and {covariance.dtype}")
    check_broadcast(weights=tuple(weights.shape), covariance=tuple(covariance.shape))
    residual = torch.eye(nodes, dtype=weights.dtype, device=weights.device) - weights
    return (residual * (covariance @ residual)).sum((-2, -1)) / nodes


def ridge_weights(
    covariance: Float[Tensor, "*batch d d"], *, penalty: float | Float[Tensor, ""] = 1e-3
) -> Float[Tensor, "*batch d d"]:
    r"""Regress every node on all the others: the cyclic baseline, ``w_j = (C_{-j,-j} + penalty I)^{-1} C_{-j,j}``.

    From one inverse: with :math:`P = (C + \lambda I)^{-1}`, :math:`W_{ij} = -P_{ij} / P_{jj}` off the diagonal.

    Args:
        covariance: ``[*batch, d, d]`` positive semi-definite.
        penalty: ``lambda > 0``.

    Returns:
        ``[*batch, d, d]`` weights with zero diagonal.

    Raises:
        ValueError: not square, ``penalty`` not positive, or too small for ``covariance + penalty I`` to be positive
            definite.

    Example:
        >>> ridge_weights(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), penalty=1e-9)
        tensor([[0.0000, 0.5000],
                [0.5000, 0.0000]])
    """
    check_scalar("penalty", penalty)
    nodes = check_square("covariance", check_floating("covariance", covariance))
    # In double precision: a small penalty would vanish beside large variances.
    identity = torch.eye(nodes, dtype=torch.float64, device=covariance.device)
    ridge = covariance.double() + penalty * identity
    if can_look(ridge) and not bool(factorised(ridge.detach())[1].all()):
        raise ValueError("covariance + penalty I must be positive definite; raise the penalty")
    precision = torch.linalg.inv_ex(ridge).inverse
    weights = -precision / precision.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    return weights.masked_fill(identity.bool(), 0.0).to(covariance.dtype)
