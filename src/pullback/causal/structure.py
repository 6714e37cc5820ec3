"""What every structure learner takes and returns, and the least-squares score they share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pullback.causal.graphs import find_cycle, is_acyclic
from pullback.core.checks import check_finite, check_floating, check_positive
from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Float, Tensor

__all__ = ["StructureResult", "least_squares_score", "ridge_weights", "second_moments"]


@dataclass(frozen=True)
class StructureResult:
    """A learned graph.

    Attributes:
        weights: ``[*batch, d, d]`` of the best restart; ``W[i, j]`` is the effect of ``i`` on ``j``.
        order: ``[*batch, d]`` a topological order of ``weights``, causes first.
        score: ``[*batch]`` least-squares score of ``weights``, see :func:`least_squares_score`.
        restart_weights: ``[*batch, restarts, d, d]`` of all restarts.
        restart_scores: ``[*batch, restarts]`` the objective by which the best restart was chosen.
        history: named curves over the iterations, each ``[points, ...]``.
        converged: ``False`` if the iterations ran out first.
    """

    weights: Tensor
    order: Tensor
    score: Tensor
    restart_weights: Tensor
    restart_scores: Tensor
    history: dict[str, Tensor]
    converged: bool = True

    def graph(self, threshold: float = 0.3) -> Tensor:
        """Return ``[*batch, d, d]`` booleans: arcs with ``|weight| > threshold``.

        Raises:
            ConvergenceError: the thresholded graph has a cycle (it is named).
        """
        arcs = self.weights.abs() > threshold
        acyclic = is_acyclic(arcs)
        if not bool(acyclic.all()):
            first = arcs.reshape(-1, *arcs.shape[-2:])[int((~acyclic.reshape(-1)).nonzero()[0])]
            cycle = " -> ".join(map(str, find_cycle(first) or []))
            raise ConvergenceError(f"the graph at threshold {threshold} has the cycle {cycle}", self)
        return arcs


def second_moments(data: Float[Tensor, "*batch n d"], *, covariance: bool = False) -> Float[Tensor, "*batch d d"]:
    """Return the second moments ``C = X^T X / n`` of centred data, checked; with ``covariance`` the input is ``C``.

    Args:
        data: ``[*batch, n, d]`` samples, or ``[*batch, d, d]`` with ``covariance=True``.
        covariance: whether ``data`` already is a covariance.

    Raises:
        ValueError: NaN or infinity, a constant column (named), a covariance that is not square and symmetric.

    Example:
        >>> second_moments(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
        tensor([[1., 2.],
                [2., 4.]])
    """
    check_finite("data", check_floating("data", data))
    if data.ndim < 2:
        raise ValueError(f"data must have shape (..., n, d), got {tuple(data.shape)}")
    if covariance:
        if data.shape[-1] != data.shape[-2]:
            raise ValueError(f"covariance must be square, got {tuple(data.shape)}")
        if not torch.allclose(data, data.mT, rtol=1e-4, atol=1e-6 * float(data.abs().max())):
            raise ValueError("covariance must be symmetric")
        moments = data
    else:
        centred = data - data.mean(-2, keepdim=True)
        moments = centred.mT @ centred / data.shape[-2]
    spread = moments.diagonal(dim1=-2, dim2=-1)
    reference = data.abs().amax().square() if not covariance else spread.amax()
    constant = spread <= 1e-12 * reference
    if bool(constant.any()):
        column = int(constant.nonzero()[0][-1])
        raise ValueError(f"data column {column} is constant; remove it (it can have no cause in the data)")
    return moments


def least_squares_score(
    weights: Float[Tensor, "*#batch d d"], covariance: Float[Tensor, "*#batch d d"]
) -> Float[Tensor, "*batch"]:
    r"""Mean squared error of predicting every node from the others, from second moments alone.

    .. math:: \mathrm{tr}\big((I-W)^T C (I-W)\big) / d = \|X - XW\|_F^2 / (nd)

    Example:
        >>> least_squares_score(torch.zeros(2, 2), torch.eye(2)).item()
        1.0
    """
    nodes = weights.shape[-1]
    residual = torch.eye(nodes, dtype=weights.dtype, device=weights.device) - weights
    return (residual * (covariance @ residual)).sum((-2, -1)) / nodes


def ridge_weights(covariance: Float[Tensor, "*batch d d"], *, penalty: float = 1e-3) -> Float[Tensor, "*batch d d"]:
    r"""Regress every node on all the others: the cyclic baseline, ``w_j = (C_{-j,-j} + penalty I)^{-1} C_{-j,j}``.

    From one inverse: with :math:`P = (C + \lambda I)^{-1}`, :math:`W_{ij} = -P_{ij} / P_{jj}` off the diagonal.

    Example:
        >>> ridge_weights(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), penalty=1e-9)
        tensor([[0.0000, 0.5000],
                [0.5000, 0.0000]])
    """
    check_positive("penalty", penalty)
    nodes = covariance.shape[-1]
    identity = torch.eye(nodes, dtype=covariance.dtype, device=covariance.device)
    precision = torch.linalg.inv(covariance + penalty * identity)
    weights = -precision / precision.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
    return weights.masked_fill(identity.bool(), 0.0)


def best_restart(values: Tensor, scores: Tensor) -> Tensor:
    """Pick along the restart axis (last of ``scores``) the entry of ``values`` with the lowest score."""
    best = scores.argmin(-1)
    index = best[(..., *[None] * (values.ndim - best.ndim))]
    expanded = index.expand(*best.shape, 1, *values.shape[scores.ndim :])
    return values.gather(scores.ndim - 1, expanded).squeeze(scores.ndim - 1)
