"""Weights of particles as logarithms."""

from __future__ import annotations

import torch

from pullback.core.checks import check_dim, check_floating
from pullback.core.shapes import Float, Tensor

__all__ = ["effective_sample_size"]


def effective_sample_size(log_weights: Float[Tensor, "*shape"], *, dim: int = -1) -> Float[Tensor, "*rest"]:
    r"""Return how many equally weighted particles are worth as much as these.

    .. math:: \mathrm{ESS} = \frac{(\sum_i w_i)^2}{\sum_i w_i^2}

    It does not depend on the scale of the weights; 1 where one particle has all, n where all weigh the same, and 0
    where none has any.

    Args:
        log_weights: logarithms of weights, -inf for a particle without any; not NaN, not +inf.
        dim: the dimension of the particles, of at least one entry.

    Returns:
        The shape of ``log_weights`` without ``dim``, in 1..n, or 0.

    Raises:
        TypeError: log_weights is no floating tensor.
        IndexError: there is no dimension ``dim``.
        ValueError: there are no particles.

    Example:
        >>> effective_sample_size(torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log())
        tensor([2., 1.])

    References:
        Kong, Liu, Wong (1994), Sequential imputations and Bayesian missing data problems, section 4.1.
    """
    dim = check_dim(check_floating("log_weights", log_weights), dim)
    if not log_weights.ndim or not log_weights.shape[dim]:
        raise ValueError("log_weights must have at least one particle, got none")
    wide = log_weights.to(torch.promote_types(log_weights.dtype, torch.float32))
    none = (wide == -torch.inf).all(dim, keepdim=True)
    size = 1 / torch.where(none, 0.0, wide).softmax(dim).square().sum(dim)
    return torch.where(none.squeeze(dim), 0.0, size).to(log_weights.dtype)
