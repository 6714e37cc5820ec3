"""Operations of matrix products, as they are executed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from pullback.lab.measured import Measured

__all__ = ["operations"]


def operations(call: Callable[[], Any], *, of: str = "") -> Measured:
    """Return how many multiplications and additions matrix products, convolutions and attention do inside ``call``.

    They are counted as they are executed, for the shapes that are there: padding counts, what is masked counts, what
    was gathered away does not. Sums, softmax and other operations of single entries are not counted.

    Args:
        call: what to measure; it is called once.
        of: the arm, in the label of the number.

    Returns:
        The number of operations; a product of ``[n, k]`` and ``[k, m]`` has ``2 n k m``.

    Example:
        >>> import torch
        >>> int(operations(lambda: torch.ones(2, 3) @ torch.ones(3, 5)))
        60
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return Measured(counter.get_total_flops(), "operations", of)
