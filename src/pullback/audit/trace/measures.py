"""Cheap numbers of a result as it is made: finite or not, its range, values exactly on a kink."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from pullback.audit.trace import operations as ops
from pullback.audit.trace.norms import checked, finite
from pullback.audit.trace.private import is_wrapped, unseen
from pullback.audit.trace.ranges import values_of
from pullback.audit.trace.records import Node
from pullback.audit.trace.tensor_table import TensorTable
from pullback.audit.trace.ties import count_ties
from pullback.gradients import kink_distance

__all__ = ["measure"]


def measure(table: TensorTable, node: Node, name: str, out: Tensor, args: Any, kwargs: Any) -> None:
    """Note the first value that is not finite, and values exactly on a kink."""
    if is_wrapped(out) or not out.is_floating_point() or out.is_meta:
        return
    with unseen():
        bad, node.scale = checked(out)
        if bad and not any(table.nodes[p].forward >= bad for p in node.parents):
            node.first_bad = bad == "nan" or not _meant_infinite(table, name, args)
        node.forward = bad
        node.flat = _flat(table, name, args, kwargs or {})
        if name in ops.SINGULAR:
            node.values = values_of(name, args)
        if name in ops.KINKS and args and isinstance(args[0], Tensor) and out.numel() and not bad:
            node.kinks = _on_kink(name, args, kwargs or {}, out)
        if name in ops.TIES and args and out.numel() and not bad and not node.kinks:
            node.ties = count_ties(table, node, name, args, kwargs, out)


def _meant_infinite(table: TensorTable, name: str, args: Any) -> bool:
    """Whether an infinity was written into the result, as the -inf of a mask: what it does later is the fault."""
    given = [a for a in args if isinstance(a, float | Tensor)]
    if name in ops.FILLS and any(isinstance(a, float) and math.isinf(a) for a in given):
        return True
    data = (a for a in given if isinstance(a, Tensor) and table.index_of(a) is None)
    return any(finite(a) == "inf" for a in data)


def _flat(table: TensorTable, name: str, args: Any, kwargs: Any) -> str:
    """Why a result does not depend on what it is made of: scaled by its only entry, or multiplied by zeros alone."""
    if name in ops.NORMALISE and args and isinstance(args[0], Tensor):
        return "it is taken over one entry" if _entries(name, args, kwargs) == 1 else ""
    if name in ops.PRODUCTS:
        given = [a for a in args[:2] if isinstance(a, Tensor)]
        data = [a for a in given if a.numel() > 1 and table.index_of(a) is None and not a.requires_grad]
        if len(given) == 2 and len(data) == 1 and not bool(data[0].any()):
            return "the other factor is zero everywhere"
    return ""


def _entries(name: str, args: Any, kwargs: Any) -> int:
    """Over how many entries a normalisation is taken."""
    x = args[0]
    if name in ("layer_norm", "rms_norm"):
        return math.prod(args[1] if len(args) > 1 else kwargs["normalized_shape"])
    if name == "group_norm":
        groups = args[1] if len(args) > 1 else kwargs["num_groups"]
        return x[0].numel() // groups if len(x) else 0
    place = 1 if name in ("softmax", "log_softmax") else 2
    dim = kwargs.get("dim", args[place] if len(args) > place else None if place == 1 else 1)
    return int(x.shape[dim]) if isinstance(dim, int) and x.dim() else 0


_POINTWISE = frozenset(
    """relu leaky_relu prelu abs absolute relu6 hardtanh clamp clip clamp_min clamp_max maximum minimum""".split()
)
"""Operations whose kinks are those of :data:`pullback.gradients.KINKS`, element by element."""


def _on_kink(name: str, args: Any, kwargs: Any, out: Tensor) -> int:
    """Count the elements whose input lies exactly on a non-differentiable point."""
    x = args[0]
    bare = name.strip("_")
    if not x.is_floating_point() or not x.numel():
        return 0
    if bare in _POINTWISE and (bare in ("maximum", "minimum", "prelu") or not any(_tensors((args[1:], kwargs)))):
        return int((kink_distance(bare, x, *args[1:], **kwargs) == 0).sum())
    if bare == "fabs":
        return int((x == 0).sum())
    if bare in ("norm", "vector_norm", "linalg_norm"):
        return int((out == 0).sum())
    if bare in ("max", "min", "amax", "amin") and out.dim() == 0:
        return max(int((x == out).sum()) - 1, 0)
    if bare in ("max", "min") and len(args) > 1 and isinstance(args[1], Tensor):
        return int((x == args[1]).sum())
    return 0


def _tensors(value: Any) -> Any:
    return (isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
