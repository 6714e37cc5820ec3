"""How much a loss rises when one input no longer belongs to its row."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_integer, check_tensor
from pullback.core.random import drawing_device
from pullback.core.shapes import Num

__all__ = ["permutation_importance"]


def permutation_importance(
    loss: Callable[[Tensor], Tensor],
    inputs: Num[Tensor, "rows features"],
    *,
    repeats: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Return by how much the mean loss rises when the values of one feature are permuted among the rows.

    ``I_j = mean L(x with column j permuted) - mean L(x)``. It needs no derivative; features that are correlated stand
    in for each other, and get less than they deserve.

    Args:
        loss: maps ``inputs`` to losses of any shape, whose mean is taken. It runs under ``torch.no_grad``.
        inputs: ``[rows, features]``, left unchanged.
        repeats: permutations of each feature, whose mean is returned, >= 1.
        generator: of the permutations.

    Returns:
        ``[features]``, in units of the loss; below 0 where chance helped.

    Raises:
        TypeError: ``loss`` is not callable, ``inputs`` is no tensor, or ``repeats`` is no integer.
        ValueError: ``inputs`` is no matrix or has no rows, or ``repeats`` is below 1.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
        >>> permutation_importance(lambda x: (x[:, 0] - torch.arange(4)).square(), x, repeats=500,
        ...                        generator=torch.Generator().manual_seed(0)).round(decimals=1)
        tensor([2.5000, 0.0000])

    References:
        Breiman (2001), Random forests, section 10.
        Fisher, Rudin, Dominici (2019), All models are wrong, but many are useful, JMLR 20.
    """
    check_callable("loss", loss)
    check_integer("repeats", repeats, 1)
    if check_tensor("inputs", inputs).ndim != 2 or not len(inputs):
        raise ValueError(f"inputs must have shape (rows, features) with rows, got {tuple(inputs.shape)}")
    device = drawing_device(generator, inputs)
    with torch.no_grad():
        plain = loss(inputs).mean()
        found = []
        for j in range(inputs.shape[1]):
            rises = []
            for _ in range(repeats):
                moved = inputs.detach().clone()
                moved[:, j] = moved[torch.randperm(len(moved), generator=generator, device=device).to(moved.device), j]
                rises.append(loss(moved).mean() - plain)
            found.append(torch.stack(rises).mean())
    return torch.stack(found) if found else plain.new_zeros(0)
