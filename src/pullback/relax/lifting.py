"""Derivatives after a jump: taken where a difference quotient would take them, not at the hard value.

Behind a hard value ``h`` that jumps (a mask as a number, a rounding, a looked-up row) stands its mean ``m``. With ``h``
in ``{0, 1}`` and ``P(h = 1) = m``, a function ``g`` of it has

.. math::
    \\frac{d}{dm} \\mathbb E\\, g(h) = g(1) - g(0),

which for every quadratic ``g`` is ``g'(1/2)``; ``g'(h)`` may have the wrong sign. So the derivative of a nonlinear
function is taken *half way*, at ``h + (m - h) / (2 p)`` with ``p`` the largest probability of a jump in the tensor: the
element that is nearest to its jump is half way, those that will not jump stay; as long as the function acts on each
element by itself, each is half way. Where something smooth is mixed in
(``(codes - x) ** 2``), which needs its own derivative at the right place, and in products of jumping values, which are
exact there if they are independent, it is taken at the mean ``m``. Linear functions need neither.

All of it is a refinement: where it is unknown what stands behind a float, the derivative is that at the hard value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pullback.core.gradients import replace_gradient
from pullback.relax.rules import functions_named, is_active, tensors_in
from pullback.relax.rules_flow import ELEMENTWISE, SHAPES, VALUES
from pullback.relax.soft_tensors import SoftBool, SoftIndex, SoftTensor, plain, remember_values, remembered_values

__all__ = [
    "FOLLOWS",
    "MEAN",
    "NEAREST_HALF_WAY",
    "any_lifted",
    "follow",
    "known_jumps",
    "lift",
    "pure",
    "remember_jump",
]


def _named(names: str) -> frozenset[Any]:
    return frozenset(function for name in names.split() for function in functions_named(name))


_LINEAR = _named(
    f"{SHAPES} __getitem__ gather index_select take_along_dim take real add sub subtract rsub neg negative positive "
    "sum mean nansum nanmean cumsum diff trace pad __radd__ __rsub__ to float double"
)
"""Their own gradient is right at any value; their results may be views."""

_MULTILINEAR = _named(
    "mul multiply __rmul__ dot mv mm bmm matmul __matmul__ __rmatmul__ inner outer ger tensordot einsum kron cross "
    "linear bilinear conv1d conv2d conv3d addmm addmv baddbmm addcmul lerp"
)
"""Linear in each argument."""

_QUOTIENTS = _named("div divide true_divide __rdiv__ __rtruediv__")

_REFLECTED = _named("__rdiv__ __rtruediv__")

_SMOOTH = _named(
    f"{ELEMENTWISE} {VALUES} cross_entropy nll_loss softplus gelu silu elu selu celu mish leaky_relu logsigmoid "
    "softmin softsign tanhshrink hardsigmoid hardswish logit sinc logaddexp logaddexp2 pairwise_distance group_norm "
    "rms_norm hinge_embedding_loss margin_ranking_loss cosine_embedding_loss triplet_margin_loss soft_margin_loss "
    "multi_margin_loss poisson_nll_loss gaussian_nll_loss conv_transpose1d conv_transpose2d where masked_fill scatter "
    "scatter_add index_add index_copy index_fill embedding logcumsumexp det inverse logdet "
    "scaled_dot_product_attention"
) | {torch.linalg.norm, torch.linalg.vector_norm, torch.linalg.matrix_norm, torch.linalg.det, torch.linalg.solve}

FOLLOWS = _LINEAR | _MULTILINEAR | _QUOTIENTS | _SMOOTH
"""Functions without draws and side effects through which it is known what stands behind a float."""


_JOINS = _MULTILINEAR - _named("mul multiply __rmul__ addcmul lerp") | _named(
    "sum mean nansum nanmean cumsum diff trace norm var std cdist softmax log_softmax logsumexp layer_norm prod "
    "cumprod cross_entropy cosine_similarity normalize"
)
"""Functions of several elements together."""

MEAN, NEAREST_HALF_WAY, EACH_HALF_WAY = range(3)
"""Where a derivative is taken: at the mean; with the nearest jump half way; with every jump half way."""


class _Behind:
    """What stands behind one float tensor, computed when a nonlinear function asks for it."""

    __slots__ = ("_compute", "_values", "_versions", "pure", "together", "version")

    def __init__(
        self, compute: Callable[[int], Any], sources: list[Tensor], version: int, pure: bool, together: int
    ) -> None:
        self._compute = compute
        self._versions = [(t, t._version) for t in sources]
        self._values: dict[int, Any] = {}
        self.version = version
        self.pure = pure
        self.together = together
        """How many of the last dimensions jump together, as the entries of a looked-up row do."""

    def value(self, point: int) -> Any:
        """The mean, or a point half way; ``None`` where a source was changed in place since."""
        if point not in self._values:
            if any(t._version != version for t, version in self._versions):
                return None
            with torch.no_grad():
                self._values[point] = self._compute(point)
        return self._values[point]


known_jumps: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _known(value: Any) -> _Behind | None:
    behind: _Behind | None = known_jumps.get(value)
    return behind if behind is not None and behind.version == value._version else None


def remember_jump(result: Tensor, hard: Tensor, mean: Tensor, arguments: Any, *, unit: float, is_pure: bool) -> None:
    """Note that behind ``result``, with the values ``hard``, stands ``mean``.

    Args:
        arguments: of the call that made it; the soft tensors among them say how probable a jump is.
        unit: size of the jump where there are none.
        is_pure: nothing but jumps moves it.
    """
    mean = mean.detach()
    soft = [t for t in tensors_in(arguments) if isinstance(t, SoftTensor)]

    def compute(point: int) -> Tensor:
        if point == MEAN or mean.numel() == 0:
            return mean
        deviation = mean - hard
        if point == EACH_HALF_WAY:
            each = deviation.abs() / unit if not soft else _own_probability(soft, hard.shape)
            if each is not None:
                near = torch.isfinite(deviation) & (each > torch.finfo(mean.dtype).eps)
                return torch.where(near, hard + deviation * (0.5 / torch.where(near, each, 1.0).to(mean.dtype)), hard)
        p = (
            torch.stack([_jump_probability(t).to(mean.dtype) for t in soft]).amax()
            if soft
            else deviation.abs().amax() / unit
        )
        usable = torch.isfinite(p) & (p < 0.5) & (p > torch.finfo(mean.dtype).eps ** 0.5)
        factor = torch.where(usable, 0.5 / torch.where(usable, p, 1.0), 1.0)
        return torch.where(torch.isfinite(deviation), hard + factor * deviation, mean)

    known_jumps[result] = _Behind(compute, [], result._version, is_pure, _together(soft, hard.shape))


def _together(soft: list[SoftTensor], shape: torch.Size) -> int:
    if len(soft) != 1 or not isinstance(soft[0], SoftIndex):
        return 0
    index = soft[0]
    if index.has_distribution:
        return len(shape) - index.ndim if shape[: index.ndim] == index.shape else 0
    return int(index._carried[1].exclusive == index.ndim - 1 and index.shape == shape)


def _own_probability(soft: list[SoftTensor], shape: torch.Size) -> Tensor | None:
    """The probability of a jump of each element, or, of those that jump together, as dimensions of size 1."""
    if len(soft) != 1:
        return None
    (one,) = soft
    hard = plain(one)
    if isinstance(one, SoftBool):
        p = one.probability.detach()
        return (p - hard.to(p.dtype)).abs() if one.shape == shape else None
    assert isinstance(one, SoftIndex)
    together = _together(soft, shape)
    if one.has_distribution:
        return _leaves(one).reshape((*one.shape, *[1] * together)) if shape[: one.ndim] == one.shape else None
    return (one.expected.detach() - hard).abs().amax(-1, keepdim=True) if together else None  # a one-hot vector


def _leaves(index: SoftIndex) -> Tensor:
    """The probability of each element that it is another."""
    distribution = index.distribution
    assert distribution is not None
    stays = distribution.probability.detach() * (distribution.values == plain(index).unsqueeze(-1))
    return 1 - stays.sum(-1)


def _jump_probability(soft: SoftTensor) -> Tensor:
    """The largest probability of an element that it is not what it is."""
    hard = plain(soft)
    if isinstance(soft, SoftBool):
        return (soft.probability.detach() - hard.to(soft.probability.dtype)).abs().amax()
    assert isinstance(soft, SoftIndex)
    return _leaves(soft).amax() if soft.has_distribution else (soft.expected.detach() - hard).abs().amax()


def any_lifted(arguments: Any) -> bool:
    """Return whether it is known for any float of the nested arguments what stands behind it."""
    return bool(known_jumps.data) and any(
        t.is_floating_point() and _known(t) is not None for t in tensors_in(arguments)
    )


def pure(arguments: Any) -> bool:
    """Return whether the nested arguments move by jumps alone."""
    for t in tensors_in(arguments):
        if is_active(t) and not isinstance(t, SoftTensor):
            behind = _known(t)
            if behind is None or not behind.pure:
                return False
    return True


def lift(arguments: Any, point: int) -> Any:
    """Return nested arguments with the values of what stands behind them; the gradient goes where it went."""
    if isinstance(arguments, Tensor):
        behind = _known(arguments)
        value = None if behind is None else behind.value(point)
        if value is None:
            return arguments
        lifted, values = replace_gradient(value, arguments), remembered_values(arguments)
        if values is not None:
            remember_values(lifted, values)
        return lifted
    if isinstance(arguments, dict):
        return {key: lift(item, point) for key, item in arguments.items()}
    if isinstance(arguments, tuple | list):
        items = [lift(item, point) for item in arguments]
        return type(arguments)(*items) if hasattr(arguments, "_fields") else type(arguments)(items)
    return arguments


def follow(function: Any, hard: Any, args: Any, kwargs: Any) -> Any:
    """Return ``hard = function(*args, **kwargs)``, one of :data:`FOLLOWS`, with its derivative at the right place."""
    given = (args, kwargs)
    only_jumps = pure(given)
    together = _kept_together(function, args, kwargs)
    joins = function in _JOINS and not together
    if not _is_linear(function, args, kwargs):
        point = MEAN
        if only_jumps and function not in _MULTILINEAR:
            point = NEAREST_HALF_WAY if joins else EACH_HALF_WAY
        lifted_args, lifted_kwargs = lift(args, point), lift(kwargs, point)
        soft = function(*lifted_args, **lifted_kwargs)
        hard = _replaced(hard, soft)

    def compute(point: int) -> Any:
        if point == EACH_HALF_WAY and joins:
            point = NEAREST_HALF_WAY
        return function(*lift(args, point), **lift(kwargs, point))

    sources = list(tensors_in(given))
    if isinstance(hard, Tensor):
        if hard.is_floating_point() and all(hard is not t for t in sources):
            known_jumps[hard] = _Behind(compute, sources, hard._version, only_jumps, together)
    else:
        for i, item in enumerate(hard):
            if isinstance(item, Tensor) and item.is_floating_point():
                part = _item(compute, i)
                known_jumps[item] = _Behind(part, sources, item._version, only_jumps, 0)
    return hard


def _kept_together(function: Any, args: Any, kwargs: Any) -> int:
    """How many last dimensions of the result jump together: all that one does who jumps so, through one matrix."""
    first = _known(args[0]) if args and isinstance(args[0], Tensor) else None
    if first is None or not first.together or any_lifted((args[1:], kwargs)):
        return 0
    if function in _MATRIX:
        return first.together if len(args) > 1 and args[1].ndim <= 2 else 0
    return 0 if function in _JOINS or function in _REARRANGES else first.together


_MATRIX = _named("matmul __matmul__ mm mv linear")
_REARRANGES = _named(f"{SHAPES} __getitem__ gather index_select take_along_dim take")


def _item(compute: Callable[[int], Any], i: int) -> Callable[[int], Any]:
    return lambda point: compute(point)[i]


def _is_linear(function: Any, args: Any, kwargs: Any) -> bool:
    if function in _LINEAR:
        return True
    if function in _MULTILINEAR:
        return sum(_known(t) is not None for t in tensors_in((args, kwargs))) == 1
    if function in _QUOTIENTS and len(args) == 2 and not kwargs:
        return not is_active(args[0] if function in _REFLECTED else args[1])
    return False


def _replaced(hard: Any, soft: Any) -> Any:
    if not isinstance(hard, Tensor):
        return type(hard)([_replaced(h, s) for h, s in zip(hard, soft, strict=True)])
    if not hard.is_floating_point() or not is_active(soft):
        return hard
    return replace_gradient(hard, soft)
