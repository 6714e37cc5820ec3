"""Calls of torch's operations, kept so that they can be repeated alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pullback.audit.trace import operations as ops
from pullback.audit.trace.private import is_wrapped
from pullback.audit.trace.sites import Site

__all__ = ["OperationCall", "copied_call"]

MOST_ELEMENTS = 100_000
"""Of one call."""
EXACT = (ops.LINEAR | ops.VIEWS | ops.WEIGHTED | ops.EXITS | ops.SAMPLERS | ops.REBUILDS | ops.CONVERSIONS) - {
    "embedding",
    "multi_head_attention_forward",
    "scaled_dot_product_attention",
}
"""Sums, products and views, whose derivative is one of them again, and what has none."""


@dataclass
class OperationCall:
    """A call of an operation with detached copies of its tensors.

    Attributes:
        function: what was called.
        leaves: its arguments, flattened; ``form`` puts them together again.
        live: positions among them of the tensors that required grad.
        site: where it was called.
        name: of the operation.
    """

    function: Any
    leaves: list[Any]
    form: Any
    live: list[int]
    site: Site
    name: str

    def run(self, leaves: list[Any]) -> Any:
        """Call the operation on other leaves."""
        args, kwargs = tree_unflatten(leaves, self.form)
        return self.function(*args, **kwargs)


def copied_call(name: str, function: Any, args: Any, kwargs: Any, site: Site) -> OperationCall | None:
    """Return a copy of a call that is about to be made, ``None`` if it cannot be repeated alone.

    That is a call with too many numbers, with complex ones, under transforms of torch.func, or with a generator, which
    repetitions would advance; and one of an embedding with an option (gradients scaled by frequency, sparse ones).
    """
    leaves, form = tree_flatten((args, kwargs))
    if name.startswith("embedding") and any(leaf is True for leaf in leaves):
        return None
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if any(isinstance(leaf, torch.Generator) for leaf in leaves) or "out" in kwargs:
        return None
    if any(is_wrapped(t) or t.is_complex() or t.layout != torch.strided for t in tensors):
        return None
    if not 0 < sum(t.numel() for t in tensors) <= MOST_ELEMENTS:
        return None
    live = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    kept = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return OperationCall(function, kept, form, live, site, name)
