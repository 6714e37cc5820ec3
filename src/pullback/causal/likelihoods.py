"""Losses of predictions by the kind of the data: measurements, bits, counts; under interventions too."""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from pullback.causal.logistic import check_binary, check_counts
from pullback.core.checks import check_tensor
from pullback.core.shapes import Float, Tensor

__all__ = ["MODELS", "check_observations", "check_targets", "prediction_losses"]

MODELS = ("least-squares", "logistic", "poisson")


def check_observations(model: str, data: Tensor) -> None:
    """Refuse data of which a model has no density."""
    if model == "logistic":
        check_binary(data)
    elif model == "poisson":
        check_counts(data)


def check_targets(data: Tensor, targets: Tensor | None) -> Tensor | None:
    """Return which values a mechanism made, ``[*batch, n, d]``, or ``None`` where nothing was set."""
    if targets is None:
        return None
    if check_tensor("targets", targets).dtype != torch.bool:
        raise TypeError(f"targets must be booleans, got {targets.dtype}")
    if targets.shape != data.shape:
        raise ValueError(f"targets must have the shape of data, {tuple(data.shape)}, got {tuple(targets.shape)}")
    free = ~targets.to(data.device)
    if not bool(free.any(-2).all()):
        node = int((~free.any(-2)).nonzero()[0][-1])
        raise ValueError(f"targets must leave every node free in some sample, got none of node {node}")
    return free


def prediction_losses(
    model: str, predicted: Float[Tensor, "*batch n d"], x: Tensor, free: Tensor | None = None
) -> Float[Tensor, "*batch d"]:
    r"""Return the mean negative log-likelihood of every node, up to a constant.

    ``"least-squares"`` :math:`\tfrac12 (x - m)^2`, ``"logistic"`` :math:`\log(1 + e^m) - xm`, ``"poisson"``
    :math:`e^m - xm`; over the samples in which nobody set the node (``free``): an ideal intervention replaces its
    mechanism, and the factor of the likelihood with it.
    """
    if model == "least-squares":
        losses = 0.5 * (x - predicted).square()
    elif model == "logistic":
        losses = softplus(predicted) - x * predicted
    else:
        losses = predicted.exp() - x * predicted
    if free is None:
        return losses.mean(-2)
    return torch.where(free, losses, torch.zeros_like(losses)).sum(-2) / free.sum(-2).clamp(min=1)
