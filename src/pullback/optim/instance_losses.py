"""One loss for every example of a batch: the objectives of instance-wise risk minimisation."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from pullback.core.checks import check_callable
from pullback.core.shapes import Float, Tensor

__all__ = ["instance_losses"]


def instance_losses(criterion: Callable[..., Tensor], prediction: Tensor, target: Tensor) -> Float[Tensor, "n"]:
    """Return the loss of every example, averaged over what is left of an example's dimensions.

    Args:
        criterion: a loss module such as ``nn.CrossEntropyLoss()`` or a function such as ``F.mse_loss``, with an
            argument or attribute ``reduction``; its own reduction plays no part.
        prediction: ``[n, ...]`` first dimension the examples.
        target: ``[n, ...]`` as ``criterion`` takes it.

    Returns:
        ``[n]`` losses, whose mean is that of ``criterion`` where all examples have the same size and weight.

    Raises:
        TypeError: ``criterion`` cannot be called.
        ValueError: it gives no loss for each example, or ``prediction`` and ``target`` do not match.

    Example:
        >>> import torch
        >>> instance_losses(nn.MSELoss(), torch.tensor([[1.0, 3.0], [0.0, 2.0]]), torch.zeros(2, 2))
        tensor([5., 2.])

    References:
        Quinton, Rey (2024), Jacobian descent for multi-objective optimization, arXiv 2406.16232, section 3.1.
    """
    check_callable("criterion", criterion)
    if not prediction.ndim or not target.ndim or len(prediction) != len(target):
        raise ValueError(
            f"prediction and target must hold the same number of examples, got shapes {tuple(prediction.shape)} and "
            f"{tuple(target.shape)}"
        )
    if prediction.ndim == target.ndim and prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must have one shape where they have as many dimensions, got "
            f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        )
    if isinstance(criterion, nn.Module) and hasattr(criterion, "reduction"):
        criterion = copy.copy(criterion)
        setattr(criterion, "reduction", "none")  # noqa: B010 (what modules hold is typed as tensors)
        losses = criterion(prediction, target)
    else:
        losses = criterion(prediction, target, reduction="none")
    if not losses.ndim or len(losses) != len(prediction):
        raise ValueError(
            f"criterion must return a loss for each of {len(prediction)} examples with reduction='none', got shape "
            f"{tuple(losses.shape)}"
        )
    return losses.reshape(len(losses), -1).mean(1) if len(losses) else losses.reshape(0)
