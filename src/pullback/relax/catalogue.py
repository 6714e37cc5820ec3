"""The whole table: every rule registered, which functions are silent, which end a gradient, which take a method."""

from __future__ import annotations

from typing import Any

import torch

from pullback.discrete import ORDERINGS, RAMPS, STEP_ERRORS
from pullback.relax import (  # noqa: F401  they register
    rules_counting,
    rules_elementwise,
    rules_flow,
    rules_index,
    rules_logic,
    rules_order,
    rules_sampling,
)
from pullback.relax.rules import RULES, functions_named

__all__ = ["CONTINUOUS", "LENDS", "METHODS", "SILENT", "SINKS", "WRITES", "groups", "operations"]

_STEPS = tuple(STEP_ERRORS)
_ORDERS = tuple(ORDERINGS)

METHODS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("sort", "argsort", "topk", "kthvalue", "median", "quantile", "max", "min", "argmax", "argmin"), _ORDERS
    ),
    **dict.fromkeys(("gt", "ge", "lt", "le", "eq", "ne", "sign", "heaviside"), _STEPS),
    **dict.fromkeys(("round", "floor", "ceil", "trunc", "frac"), _STEPS),
    **dict.fromkeys(("histc", "searchsorted"), _STEPS),
    **dict.fromkeys(("relu", "abs", "clamp", "maximum", "minimum"), RAMPS),
    "logical": ("product", "minimum"),
}
"""Operation -> methods of its block; ``"logical"`` is that of and, or, xor, any, all."""


def _named(names: str) -> set[Any]:
    return {function for name in names.split() for function in functions_named(name)}


SILENT = _named(
    "shape dtype device layout size dim ndim ndimension numel nelement __len__ is_floating_point is_complex is_signed "
    "requires_grad grad_fn grad is_leaf __repr__ __str__ __format__ __hash__ stride is_contiguous data_ptr storage "
    "untyped_storage element_size itemsize nbytes _version detach data names is_cuda is_cpu is_mps is_xla "
    "is_meta is_sparse is_quantized "
    "get_device is_tensor zeros_like ones_like empty_like full_like rand_like randn_like "
    "randint_like new_zeros new_ones "
    "new_empty new_full new_tensor result_type can_cast promote_types is_same_size "
    "register_hook retain_grad retains_grad "
    "as_subclass __reduce_ex__ is_pinned storage_offset output_nr backward is_inference is_conj is_neg "
    "broadcast_shapes requires_grad_ __class__ type_info is_shared share_memory_ pin_memory "
    "_is_view isnan isinf isfinite "
    "isposinf isneginf set_ is_nonzero_ detach_"
) | {torch.autograd.grad, torch.autograd.backward}
"""Functions that ask for the form of a tensor, not for its values, or cut on purpose: nothing to say about them."""

LENDS = _named("view_as reshape_as expand_as type_as")
"""Functions of which only the first argument is read; the others lend their shape or dtype."""

CONTINUOUS = {
    *("relu", "abs", "clamp", "maximum", "minimum", "max", "min", "sort", "topk", "kthvalue", "median", "quantile"),
    *("frac", "remainder", "cummax", "cummin"),
}
"""Operations whose float results move with their argument, without jumps."""

WRITES = {"scatter", "scatter_add", "index_add", "index_copy", "index_fill", "index_put", "setitem"}
"""Operations that write at soft places: an element of the result belongs to no one element of the index."""

_CONTROL = "control flow: the branch is taken by the hard value"
_NUMBER = "a Python number carries no gradient"
_RAGGED = "its shape depends on the data"

SINKS: dict[Any, str] = {
    **dict.fromkeys(_named("__bool__ is_nonzero __contains__ equal allclose"), _CONTROL),
    **dict.fromkeys(_named("item tolist __int__ __float__ __index__ __complex__"), _NUMBER),
    **dict.fromkeys(_named("__dlpack__"), "NumPy carries no gradient"),
    **dict.fromkeys(_named("nonzero argwhere unique unique_consecutive masked_select masked_scatter"), _RAGGED),
    **dict.fromkeys(_named("bincount"), "counts of what is not an index"),
    **dict.fromkeys(_named("cross_entropy nll_loss"), "targets stay hard"),
}
"""Functions that end a gradient -> why."""

# Reported for soft tensors alone: with a float that requires grad these have a useful gradient, or none is wanted.
_FLOAT_IS_FINE = _named("cross_entropy nll_loss masked_select masked_scatter")


def ends(function: Any, soft: bool) -> bool:
    """Return whether ``function`` ends a gradient of a soft tensor, or of a float that requires grad."""
    return function in SINKS and (soft or function not in _FLOAT_IS_FINE)


def operations() -> set[str]:
    """Names that ``only`` and ``ignore`` take."""
    return {rule.operation for rule in RULES.values()}


def groups() -> dict[str, set[str]]:
    """Group -> its operations."""
    result: dict[str, set[str]] = {}
    for rule in RULES.values():
        result.setdefault(rule.group, set()).add(rule.operation)
    return result


rules_flow.register()
