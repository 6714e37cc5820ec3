"""Operations of matrix products, as they are executed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

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
    with _Products() as products:
        call()
    return Measured(products.total, "operations", of)


class _Products(TorchDispatchMode):
    """Adds up what torch's own table says of each operation; without its walk over modules, which costs most."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given, count = kwargs or {}, flop_registry.get(function.overloadpacket)
        if count is None:
            with self:  # an operation of others, such as linear in inference mode
                result = function.decompose(*args, **given)
            return function(*args, **given) if result is NotImplemented else result
        result = function(*args, **given)
        self.total += count(*args, **given, out_val=result)
        return result
