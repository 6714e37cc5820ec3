"""What torch's operations do to a gradient: one table each, keyed by the function's name."""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = [
    "CASTS",
    "COLLECTIVES",
    "COMPARISONS",
    "CONVERSIONS",
    "EXITS",
    "FILLS",
    "IGNORED",
    "INDICES",
    "KINKS",
    "LINEAR",
    "LOSSES",
    "NORMALISE",
    "ORDERS",
    "PLATEAUS",
    "PRODUCTS",
    "REBUILDS",
    "RESIDUAL",
    "SAMPLERS",
    "SATURATING",
    "SILENT",
    "SINGULAR",
    "STEPS",
    "SUMS",
    "TIES",
    "VALUE_GETTERS",
    "VIEWS",
    "WEIGHTED",
    "is_ignored",
    "operation_name",
]

VALUE_GETTERS = frozenset({"T", "mT", "H", "mH", "data", "real", "imag"})
"""Attributes of a tensor that carry its value; every other attribute is about its form."""

IGNORED = frozenset(
    """size dim ndimension numel nelement stride storage_offset element_size __len__ __hash__ __repr__ __format__
    __dir__ is_floating_point is_complex is_contiguous is_signed is_set_to is_pinned is_shared is_inference
    is_nonzero_ has_names get_device data_ptr untyped_storage storage type_as_ __deepcopy__ __reduce_ex__ __reduce__
    __setstate__ register_hook register_post_accumulate_grad_hook requires_grad_ retain_grad backward
    _set_grad_enabled _backward_hooks zeros_like ones_like full_like empty_like rand_like randn_like randint_like
    new_zeros new_ones new_full new_empty new_tensor_ empty_strided result_type can_cast promote_types is_storage
    is_tensor _is_all_true _is_any_true broadcast_shapes is_same_size split_with_sizes_ __dlpack_device__
    share_memory_ pin_memory record_stream set_grad_enabled is_grad_enabled sym_size zero_ fill_ uniform_ normal_
    bernoulli_ random_ exponential_ geometric_ _has_compatible_shallow_copy_type _debug_has_internal_overlap names_
    refine_names rename_ dim_order _is_view _is_zerotensor is_conj is_neg _nested_tensor_size""".split()
) | {"get grad"}
"""Calls whose result does not depend on the tensor's value."""

SILENT = frozenset(
    """size dim ndimension numel nelement stride __len__ __hash__ is_floating_point is_complex is_contiguous get_device
    data_ptr""".split()
)
"""Those of them that are called most and never warn."""

INDICES = frozenset(
    """argmax argmin argsort nonzero searchsorted bucketize unique unique_consecutive argwhere msort_ count_nonzero
    histc bincount""".split()
)
"""Results are positions or counts."""

SPLIT_INDICES = frozenset({"topk", "sort", "max", "min", "median", "nanmedian", "mode", "kthvalue", "cummax", "cummin"})
"""Return (values, indices)."""

COMPARISONS = frozenset(
    """gt lt ge le eq ne __gt__ __lt__ __ge__ __le__ __eq__ __ne__ greater less greater_equal less_equal not_equal
    isclose isin allclose equal logical_and logical_or logical_not logical_xor isnan isinf isfinite isposinf isneginf
    signbit any all""".split()
)
ORDERS = frozenset("gt lt ge le __gt__ __lt__ __ge__ __le__ greater less greater_equal less_equal".split())
"""The comparisons that have a threshold."""
CASTS = frozenset("to long int short char byte bool type type_as half bfloat16 float double".split())
CONVERSIONS = CASTS | {"contiguous", "cpu", "cuda"}
"""Return the tensor itself where nothing has to be done."""

FILLS = frozenset("masked_fill masked_fill_ fill_ where __setitem__ index_fill index_fill_ pad".split())
"""Write a number into places."""

SAMPLERS = frozenset("multinomial bernoulli normal poisson binomial _standard_gamma _sample_dirichlet".split())
REBUILDS = frozenset("tensor as_tensor asarray from_numpy new_tensor scalar_tensor FloatTensor".split())
WRITES_NUMBERS = REBUILDS | {"__setitem__", "fill_"}
"""Take Python's numbers into tensors."""
STEPS = frozenset(
    """round floor ceil trunc fix sign sgn heaviside floor_divide __floordiv__ floordiv round_ floor_ ceil_ trunc_
    sign_ fix_""".split()
)
"""Keep a path in the graph, but the derivative is zero wherever it exists."""

SATURATING = frozenset(
    """clamp clamp_ clip clip_ clamp_min clamp_max relu relu_ relu6 hardtanh hardtanh_ hardsigmoid threshold
    threshold_ sigmoid sigmoid_ tanh tanh_ softmax log_softmax erf hardshrink softshrink""".split()
)
"""Have regions in which the derivative vanishes."""

KINKS = frozenset(
    """relu relu_ relu6 leaky_relu leaky_relu_ abs absolute abs_ fabs clamp clamp_ clip clamp_min clamp_max hardtanh
    maximum minimum max min amax amin norm vector_norm linalg_norm prelu l1_loss hinge""".split()
)
TIES = frozenset("max min amax amin median nanmedian kthvalue topk sort msort cummax cummin".split())
"""Choose among the entries along a dimension."""

NORMALISE = frozenset("layer_norm rms_norm group_norm normalize cosine_similarity softmax log_softmax".split())
"""Divide by the size of some entries: of a single one nothing but its sign is left."""

PRODUCTS = frozenset("mul mul_ __mul__ __rmul__".split())

COLLECTIVES = frozenset(
    """all_gather all_gather_into_tensor all_gather_coalesced reduce_scatter reduce_scatter_tensor all_to_all
    all_to_all_single""".split()
)
"""Of ``torch.distributed``: they write what came from other processes into their first argument, without a gradient."""

PLATEAUS = (
    SATURATING
    | STEPS
    | frozenset(
        """masked_fill masked_fill_ where dropout dropout1d dropout2d feature_dropout pad constant_pad_nd max_pool1d
        max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d embedding index_select __getitem__ gather expand
        repeat repeat_interleave tile one_hot threshold selu elu gelu softplus""".split()
    )
)
"""Make entries that are equal because they have no slope, or because they are one entry of what they are made from."""

VIEWS = frozenset(
    """reshape view view_as flatten unflatten squeeze unsqueeze transpose permute movedim swapaxes t contiguous clone
    stack cat concat hstack vstack unfold unbind chunk split T mT mH to float double half bfloat16 narrow select
    """.split()
) | {"get T", "get mT"}
"""Put the same entries elsewhere."""

SINGULAR = {
    **dict.fromkeys("sqrt rsqrt log log2 log10 log1p pow __pow__ acos asin acosh atanh atan2 exp tan".split(), 0),
    **dict.fromkeys("norm vector_norm linalg_norm reciprocal logit std var where cdist normalize".split(), 0),
    **dict.fromkeys("div true_divide __truediv__ div_ fmod remainder".split(), 1),
}
"""Have points where the value or the derivative is infinite; which argument decides."""

EXITS = frozenset("item tolist numpy __array__ __bool__ __int__ __float__ __index__ __complex__ is_nonzero".split())
"""The value leaves the tensor world."""

LOSSES = frozenset(
    """cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy
    binary_cross_entropy_with_logits cosine_similarity cosine_embedding_loss triplet_margin_loss margin_ranking_loss
    gaussian_nll_loss poisson_nll_loss hinge_embedding_loss multi_margin_loss multilabel_margin_loss soft_margin_loss
    multilabel_soft_margin_loss ctc_loss pairwise_distance""".split()
)
LINEAR = frozenset(
    """add sub rsub __radd__ __rsub__ __add__ __sub__ __iadd__ add_ sub_ neg mul div true_divide mul_ div_ sum mean
    stack cat squeeze unsqueeze reshape view flatten float double to clone contiguous __rmul__ __mul__ __truediv__
    expand __getitem__ nanmean nansum""".split()
)
"""A summand stays a summand (products only with what does not depend on the trained values)."""

SUMS = frozenset("add sub rsub add_ sub_ __iadd__ __isub__ __radd__ __rsub__ stack cat sum mean".split())
"""Their arguments are summands."""

RESIDUAL = frozenset("pow square abs sub rsub norm vector_norm linalg_norm cosh log1p".split())
"""Take a residual to its size: zero derivative at zero residual means that the minimum is reached."""

WEIGHTED = frozenset(
    """linear matmul mm bmm mv dot addmm baddbmm einsum bilinear conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    embedding lstm gru rnn_tanh rnn_relu lstm_cell gru_cell __matmul__ __rmatmul__ tensordot
    multi_head_attention_forward scaled_dot_product_attention embedding_bag batch_norm layer_norm""".split()
)
"""Layers: what they take is a feature, not a target."""


@cache
def is_ignored(name: str) -> bool:
    """Whether a name is that of an attribute that says nothing of the tensor's value, and warns of nothing."""
    if name.startswith("get "):
        return name[4:] not in VALUE_GETTERS and name[4:] not in ("grad", "mH", "H", "T", "mT")
    return name.startswith("set ") or name in SILENT


_names: dict[Any, str] = {}


def operation_name(func: Any) -> str:
    """Return the torch name of an overridden function; ``get T`` for an attribute."""
    name = _names.get(func)
    if name is None:
        name = getattr(func, "__name__", None) or type(func).__name__
        if name in ("__get__", "__set__", "__delete__"):
            owner = getattr(func, "__self__", None)
            name = f"{name.strip('_')} {getattr(owner, '__name__', 'attribute')}"
        _names[func] = name
    return name
