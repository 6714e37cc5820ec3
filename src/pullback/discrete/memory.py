"""An external memory of rows that soft addresses read and write: the read and the write of a neural Turing machine."""

from __future__ import annotations

import torch

from pullback.core.checks import check_broadcast, check_floating
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["memory_read", "memory_write"]


def memory_read(
    memory: Float[Tensor, "*#batch rows width"], weights: Float[Tensor, "*#batch rows"]
) -> Float[Tensor, "*batch width"]:
    r"""Return the mean of the rows under the weights of an address, :math:`r = \sum_j w_j M_j`.

    Args:
        memory: ``[*batch, rows, width]``.
        weights: ``[*batch, rows]``, >= 0, sums to 1. Batch dimensions broadcast: many addresses read one memory.

    Returns:
        ``[*batch, width]``.

    Raises:
        TypeError: an argument is not a floating tensor.
        ValueError: the rows differ in number, batches do not broadcast, or the weights do not sum to 1 (to 1e-4, in
            half precision to 0.02).

    Example:
        >>> memory_read(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([0.5, 0.5]))
        tensor([2., 4.])

    References:
        Graves, Wayne, Danihelka (2014), Neural Turing machines, equation 2.
    """
    _check_rows(memory, weights)
    check_broadcast(memory=memory.shape[:-2], weights=weights.shape[:-1])
    if can_look(weights):
        total = weights.detach().double().sum(-1)
        if not bool(((total - 1).abs() <= (1e-4 if torch.finfo(weights.dtype).bits >= 32 else 0.02)).all()):
            raise ValueError(f"weights must sum to 1, got {float(total.flatten()[(total - 1).abs().argmax()]):.6g}")
    return torch.einsum("...r,...rw->...w", weights, memory.to(weights.dtype))


def memory_write(
    memory: Float[Tensor, "*#batch rows width"],
    weights: Float[Tensor, "*#batch rows"],
    erase: Float[Tensor, "*#batch width"],
    add: Float[Tensor, "*#batch width"],
) -> Float[Tensor, "*batch rows width"]:
    r"""Return the memory after a write, :math:`M_j (1 - w_j e) + w_j a`; the given one is not changed.

    Args:
        memory: ``[*batch, rows, width]``.
        weights: ``[*batch, rows]`` in [0, 1]: how much of each row is written; the weights of an address sum to 1.
        erase: ``[*batch, width]`` in [0, 1], e.
        add: ``[*batch, width]``, a. With ``erase`` 1 a row moves to it by the share ``w``.

    Returns:
        ``[*batch, rows, width]``.

    Raises:
        TypeError: an argument is not a floating tensor.
        ValueError: ``weights`` or ``erase`` is outside [0, 1], rows or width differ, batches do not broadcast.

    Example:
        >>> memory_write(torch.zeros(2, 1), torch.tensor([0.25, 0.75]), torch.ones(1), torch.tensor([4.0]))
        tensor([[1.],
                [3.]])

    References:
        Graves, Wayne, Danihelka (2014), Neural Turing machines, equations 3 and 4.
    """
    _check_rows(memory, weights)
    for name, vector in (("erase", erase), ("add", add)):
        check_floating(name, vector)
        if not vector.ndim or vector.shape[-1] != memory.shape[-1]:
            raise ValueError(f"{name} must have {memory.shape[-1]} entries a row, got shape {tuple(vector.shape)}")
    batches = {"weights": weights.shape[:-1], "erase": erase.shape[:-1], "add": add.shape[:-1]}
    check_broadcast(memory=memory.shape[:-2], **batches)
    for name, share in (("weights", weights), ("erase", erase)):
        if can_look(share) and not bool(((share >= 0) & (share <= 1)).all()):
            raise ValueError(f"{name} must be in [0, 1], got {float(share.min()):.4g} to {float(share.max()):.4g}")
    address = weights.unsqueeze(-1)
    return memory * (1 - address * erase.unsqueeze(-2)) + address * add.unsqueeze(-2)


def _check_rows(memory: Tensor, weights: Tensor) -> None:
    check_floating("memory", memory)
    check_floating("weights", weights)
    if memory.ndim < 2 or not weights.ndim or memory.shape[-2] != weights.shape[-1]:
        came = f"{tuple(memory.shape)} and {tuple(weights.shape)}"
        raise ValueError(f"memory must have a row for each of the weights, got shapes {came}")
