"""The image of finite distributions under torch's functions, atom by atom, as far as it is finite and small.

With ``P(h = s_k) = p_k`` the atoms of ``g(h)`` are ``g(s_k)`` with the same probabilities. This is exact

* for elementwise functions; several arguments that share one choice move together, independent ones form a product;
* for functions of elements that share one choice, such as the entries of a looked-up row: reductions over them,
  products with matrices; with a single choice in all, for every function;
* for functions that only move elements.

Everything else mixes independent elements, and has no image here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pullback.core.transforms import physical
from pullback.relax.internals import wrapped
from pullback.relax.rules import functions_named, soft_value, tensors_in
from pullback.relax.soft_tensors import Distribution, SoftTensor, plain

__all__ = [
    "ELEMENTWISE",
    "KEPT",
    "LINEAR",
    "LOSSES",
    "MAX_TERMS",
    "MOVES",
    "MULTILINEAR",
    "SHAPES",
    "SMOOTH",
    "VALUES",
    "convolved",
    "image",
    "is_joint",
    "moved",
    "same_choice",
    "shares_a_choice",
]

ELEMENTWISE = (
    "add sub subtract rsub mul multiply div divide true_divide floor_divide remainder fmod pow __pow__ "
    "neg negative abs absolute "
    "square sqrt rsqrt reciprocal exp exp2 expm1 log log2 log10 log1p sin cos tan sinh cosh tanh asin acos atan "
    "sigmoid erf lerp addcmul addcdiv clamp clamp_min clamp_max clip minimum maximum fmin fmax sign sgn "
    "bitwise_left_shift bitwise_right_shift "
    "__radd__ __rsub__ __rmul__ __rdiv__ __rtruediv__ __floordiv__ __rfloordiv__ __mod__ __rmod__ __rpow__ "
    "__lshift__ __rshift__ atan2 hypot positive"
)
"""On a distribution: applied to every value it may take."""

_ACTIVATIONS = (
    "softplus gelu silu elu selu celu mish leaky_relu logsigmoid softsign tanhshrink hardsigmoid hardswish logit sinc "
    "logaddexp logaddexp2 relu relu6 hardtanh threshold round floor ceil trunc fix frac heaviside"
)

SHAPES = (
    "view reshape view_as reshape_as permute transpose swapaxes swapdims t T mT H movedim "
    "moveaxis flatten ravel unflatten "
    "squeeze unsqueeze expand expand_as repeat tile repeat_interleave stack cat concat "
    "concatenate hstack vstack dstack "
    "chunk split split_with_sizes tensor_split unbind flip fliplr flipud roll rot90 diag "
    "diagonal contiguous "
    "clone narrow select broadcast_to broadcast_tensors atleast_1d atleast_2d atleast_3d "
    "cpu cuda resolve_conj unfold adjoint __reversed__"
)
"""On a distribution: applied to the probability of every value."""

VALUES = (
    "sum mean prod std var nansum nanmean cumsum cumprod norm std_mean var_mean logsumexp diff dot mv mm bmm matmul "
    "__matmul__ __rmatmul__ inner outer ger tensordot einsum kron cross addmm addmv baddbmm bilinear linear trace "
    "cov corrcoef cdist pdist softmax log_softmax tril triu diag_embed "
    "mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div "
    "cosine_similarity normalize layer_norm pad meshgrid copysign "
    "conv1d conv2d conv3d interpolate avg_pool1d avg_pool2d adaptive_avg_pool2d max_pool2d max_pool1d"
)
"""Of the soft value alone."""


def named(names: str) -> frozenset[Any]:
    """The functions of these names."""
    return frozenset(function for name in names.split() for function in functions_named(name))


MOVES = named(f"{SHAPES} __getitem__ gather index_select take_along_dim take real")

LINEAR = MOVES | named(
    "add sub subtract rsub neg negative positive sum mean nansum nanmean cumsum diff trace pad tril triu diag_embed "
    "__radd__ __rsub__ to float double"
)
"""Their own gradient is right at any value; their results may be views."""

MULTILINEAR = named(
    "mul multiply __rmul__ dot mv mm bmm matmul __matmul__ __rmatmul__ inner outer ger tensordot einsum kron cross "
    "linear bilinear conv1d conv2d conv3d addmm addmv baddbmm addcmul lerp"
)
"""Linear in each argument."""

SMOOTH = named(
    f"{ELEMENTWISE} {VALUES} {_ACTIVATIONS} cross_entropy nll_loss softmin pairwise_distance group_norm "
    "rms_norm hinge_embedding_loss margin_ranking_loss cosine_embedding_loss triplet_margin_loss soft_margin_loss "
    "multi_margin_loss poisson_nll_loss gaussian_nll_loss conv_transpose1d conv_transpose2d where masked_fill scatter "
    "scatter_add index_add index_copy index_fill embedding logcumsumexp det inverse logdet "
    "scaled_dot_product_attention"
) | {torch.linalg.norm, torch.linalg.vector_norm, torch.linalg.matrix_norm, torch.linalg.det, torch.linalg.solve}

LOSSES = named(
    "mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits soft_margin_loss"
)
"""Elementwise functions of two arguments, then a mean or a sum."""

_ELEMENTWISE = named(
    f"{ELEMENTWISE} {_ACTIVATIONS} to float double half bfloat16 int long short char byte bool type type_as where "
    "masked_fill signbit"
) | {
    f
    for name in "gt ge lt le eq ne __gt__ __ge__ __lt__ __le__ __eq__ __ne__ greater greater_equal less less_equal "
    "not_equal logical_and logical_or logical_xor logical_not bitwise_and bitwise_or bitwise_xor bitwise_not __and__ "
    "__or__ __xor__ __rand__ __ror__ __rxor__ __invert__ isclose".split()
    for f in functions_named(name)
}

_RATIOS = named("div divide true_divide __rdiv__ __rtruediv__ floor_divide __floordiv__ remainder fmod __mod__ pow")
"""Of what is in truth not independent (hits and all) they can be far from everything that happens: taken at means."""

_MATRIX = named("matmul __matmul__ mm mv linear dot")

_ALONG = {  # functions of the elements along dimensions -> position of these among the arguments
    **dict.fromkeys(
        named("sum mean prod std var nansum nanmean cumsum cumprod logsumexp softmax log_softmax amax amin"), 1
    ),
    **dict.fromkeys((torch.norm, Tensor.norm, torch.linalg.norm, torch.linalg.vector_norm), 2),
    **dict.fromkeys(named("normalize cosine_similarity"), 2),
}

MAX_ATOMS = 2**24
"""Elements of the largest table of atoms that is formed."""

FEW = 4
"""Atoms up to which a function that moves elements runs for each of them in turn."""

MAX_PRODUCT = 32
"""Atoms of the largest product of independent laws that is formed for each element."""


def is_joint(function: Any) -> bool:
    """Return whether ``function`` takes several elements of one argument together."""
    return function not in _ELEMENTWISE and function not in MOVES


def image(
    function: Callable[..., Any], args: Any, kwargs: Any, found: dict[int, Distribution], hard: Any
) -> Distribution | None:
    """Return the atoms of ``hard = function(*args, **kwargs)``, or ``None`` where they are too many or not known.

    Args:
        found: the atoms of arguments, by ``id``; all other arguments are certain.
    """
    if not isinstance(hard, Tensor):
        return None
    if function in _ELEMENTWISE:
        return elementwise(function, args, kwargs, found, hard)
    return _together(function, args, kwargs, found, hard)


def form_of(hard: Any) -> Any:
    """Return a tensor of the same shape and dtype without values: what lives on with a law must not be the result."""
    return torch.empty(hard.shape, dtype=hard.dtype, device="meta") if isinstance(hard, Tensor) else hard


def elementwise(
    function: Callable[..., Any], args: Any, kwargs: Any, found: dict[int, Distribution], hard: Tensor | None
) -> Distribution | None:
    """Return the atoms of an elementwise function: those of every combination of independent choices."""
    found = _refined(found)
    choices: list[Distribution] = []
    for distribution in found.values():
        if not any(same_choice(distribution, choice) for choice in choices):
            choices.append(distribution)
    count = len(choices)
    size = math.prod(choice.probability.shape[-1] for choice in choices)
    truth = hard is not None and hard.dtype == torch.bool
    kept: list[Tensor | None] = [None] * count
    if count > 1 and size > MAX_PRODUCT and not truth:  # several levels away is as good as impossible
        kept = [_possible(choice.probability) for choice in choices]
        size = math.prod(len(k) for k in kept if k is not None)
    if count > 1 and (size > (MAX_PRODUCT * KEPT if truth else MAX_PRODUCT) or function in _RATIOS):
        return None

    def along(value: Tensor, axis: int) -> Tensor:
        columns = kept[axis]
        value = value if columns is None else value[..., columns]
        return value.reshape(*value.shape[:-1], *[1] * axis, value.shape[-1], *[1] * (count - 1 - axis))

    placed: list[Tensor] = []

    def place(value: Any, usable: Tensor | None = None) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(place(item, usable) for item in value)
        if not isinstance(value, Tensor):
            return value
        distribution = found.get(id(value))
        if distribution is None:
            value = soft_value(value)
            if value.ndim:
                value = value.reshape(*value.shape, *[1] * count)
                placed.append(value)
            return value
        axis = next(i for i, choice in enumerate(choices) if same_choice(distribution, choice))
        atoms = along(distribution.values, axis)
        if usable is not None:
            atoms = torch.where(usable, atoms, plain(value).detach().reshape(*value.shape, *[1] * count))
        placed.append(atoms)
        return atoms

    given, named_arguments = place(args), {key: place(value) for key, value in kwargs.items()}
    if _joint_size(t.shape for t in placed) > MAX_ATOMS:
        return None
    support = function(*given, **named_arguments)
    if hard is not None and not (hard.dtype == torch.bool or support.is_floating_point()):
        support = support.to(hard.dtype).long()  # bytes wrap around, as those of the program
    if support.is_floating_point() and not _all_finite(support):
        # An atom at which the function has no value (`x / count` at 0) counts as no change.
        usable = torch.isfinite(support.detach())
        support = function(*place(args, usable), **{key: place(value, usable) for key, value in kwargs.items()})
        if not _all_finite(support):
            return None
    if count == 1:
        image = choices[0]._replace(support=support)
        if image.refines is None or support.ndim == 1:
            return image
        likeliest = _likeliest(image)
        return None if likeliest is None else _tied(likeliest, choices)
    probability = along(choices[0].probability, 0)
    for axis, choice in enumerate(choices[1:], 1):
        probability = probability * along(choice.probability, axis)
    product = _likeliest(_merged(support.flatten(-count), probability.flatten(-count)))
    return None if product is None else _tied(product, choices)


def _possible(probability: Tensor) -> Tensor:
    """Which atoms have more than a ten thousandth anywhere; all of them where that cannot be looked at."""
    if wrapped(probability) or not probability.numel():
        return torch.arange(probability.shape[-1], device=probability.device)
    largest = probability.detach().reshape(-1, probability.shape[-1]).amax(0)
    return (largest > 1e-4).nonzero().squeeze(-1)


def _joint_size(shapes: Iterable[torch.Size]) -> int:
    """Elements of what shapes that fit are broadcast to; torch's own function takes as long as the sum behind it."""
    sizes: dict[int, int] = {}
    for shape in shapes:
        for place, n in enumerate(reversed(shape)):
            if n != 1:
                sizes[place] = n
    return math.prod(sizes.values())


def _tied(d: Distribution, sources: Iterable[Distribution]) -> Distribution:
    return d._replace(tied=any(source.tied for source in sources))


def _refined(found: dict[int, Distribution]) -> dict[int, Distribution]:
    """The same with every choice that another one contains written as that one."""
    result = dict(found)
    for fine in found.values():
        if fine.refines is None:
            continue
        coarse, times = fine.refines
        for key, distribution in found.items():
            if distribution is not fine and same_choice(distribution, coarse):
                values = distribution.values.repeat_interleave(times, -1)
                result[key] = fine._replace(support=values)
    return result


def _likeliest(d: Distribution) -> Distribution | None:
    """The most probable atoms of a large law, and the mean of all others as one more.

    Truth values and integers have no such mean: ``None`` where the likeliest are not most of it.
    """
    if d.probability.shape[-1] <= MAX_PRODUCT:
        return d
    shape = torch.broadcast_shapes(d.probability.shape[:-1], d.values.shape[:-1])
    values = d.values.expand(*shape, d.values.shape[-1])
    if d.values.is_floating_point():
        shared = d.probability.expand(*shape, d.probability.shape[-1])
    else:
        shared = d.probability
    best = shared.detach().topk(KEPT, -1).indices
    p = shared.gather(-1, best)
    mass = p.sum(-1, keepdim=True)
    support = values.gather(-1, best.expand(*shape, KEPT))
    if d.values.is_floating_point():
        rest = (1 - mass).clamp(min=0)
        left_out = (shared * values).sum(-1, keepdim=True) - (p * support).sum(-1, keepdim=True)
        usable = rest.detach() > 1e-6
        mean = torch.where(usable, left_out / torch.where(usable, rest, 1.0), support[..., :1])
        return Distribution(torch.cat([p, torch.where(usable, rest, 0.0)], -1), torch.cat([support, mean], -1))
    if not bool(physical(mass.detach()).mean() > 0.9):
        return None
    return Distribution(p / mass, support)


KEPT = 16
"""Atoms that are kept of a larger product."""


def same_choice(a: Distribution, b: Distribution) -> bool:
    """Return whether every element of ``a`` is decided together with that of ``b``."""
    if a.probability is b.probability:
        return True
    if a.choice is None and b.choice is None:
        return False
    (root, which), (other, which_other) = _choice(a), _choice(b)
    return root is other and which.shape == which_other.shape and bool(physical(which == which_other).all())


def shares_a_choice(distributions: Iterable[Distribution], shape: torch.Size) -> bool:
    """Return whether elements of a result of this shape, or two of its arguments, depend on one choice together."""
    parts = list(distributions)
    for i, d in enumerate(parts):
        which = d.probability.shape[:-1]
        if math.prod(which) < math.prod(shape) and d.probability.shape[-1] > 1:
            return True
        if d.refines is not None or any(same_choice(d, other) for other in parts[:i]):
            return True
    return False


def _choice(d: Distribution) -> tuple[Tensor, Tensor]:
    if d.choice is not None:
        return d.choice
    shape = d.probability.shape[:-1]
    return d.probability, torch.arange(math.prod(shape), device=d.probability.device).reshape(shape)


def _all_finite(x: Tensor) -> bool:
    return bool(torch.isfinite(physical(x.detach()).sum()))


def _merged(support: Tensor, probability: Tensor) -> Distribution:
    """Join equal atoms of integers that every element shares: a counter of ``n`` steps has ``n + 1`` values."""
    if support.ndim != 1 or support.is_floating_point() or wrapped(support):
        return Distribution(probability, support)
    values, which = support.unique(return_inverse=True)
    if len(values) == len(support):
        return Distribution(probability, support)
    joined = probability.new_zeros((*probability.shape[:-1], len(values)))
    return Distribution(joined.index_add(-1, which, probability), values)


def _together(
    function: Callable[..., Any], args: Any, kwargs: Any, found: dict[int, Distribution], hard: Tensor
) -> Distribution | None:
    """The atoms of a function of elements that share one choice."""
    sources = [t for t in _distinct(args, kwargs) if id(t) in found]
    first = found[id(sources[0])]
    probability = first.probability
    if not all(same_choice(found[id(t)], first) for t in sources):
        return None
    if function in _SUMS and len(sources) == 1 and sources[0] is args[0]:
        total = _sum_of_few(sources[0], first, args, kwargs, hard)
        if total is not None:
            return total if function not in _MEANS else total._replace(support=total.values / _terms(sources[0], hard))
    root, which = _choice(first)
    numbers = _result_choice(function, args, kwargs, sources, which, hard)
    if numbers is None:
        return None
    atoms = [_full(found[id(t)].values, t.shape) for t in sources]
    if max(a.numel() for a in atoms) > MAX_ATOMS or hard.numel() * probability.shape[-1] > MAX_ATOMS:
        return None

    def one(*values: Tensor) -> Any:
        known = {id(t): value for t, value in zip(sources, values, strict=True)}
        return function(*_put(args, known), **_put(kwargs, known))

    support = torch.func.vmap(one, in_dims=-1, out_dims=-1)(*atoms)
    if support.is_floating_point() and not _all_finite(support):
        return None
    return Distribution(root.reshape(-1, root.shape[-1])[numbers], support, (root, numbers), tied=first.tied)


_MEANS = named("mean")
_SUMS = named("sum") | _MEANS

MAX_TERMS = 64
"""Independent elements of the longest sum whose law is formed."""

_MAX_LEVELS = 8


def _terms(x: Tensor, total: Tensor) -> int:
    return x.numel() // max(total.numel(), 1)


def _sum_of_few(x: Tensor, d: Distribution, args: Any, kwargs: Any, hard: Tensor) -> Distribution | None:
    """The atoms of a sum of few independent elements that take the same few whole values (votes, hits of a row)."""
    values = d.values
    if (
        d.tied
        or d.choice is not None
        or d.refines is not None
        or d.probability.shape[:-1] != x.shape
        or values.ndim != 1
    ):
        return None
    if not 0 < _terms(x, hard) <= MAX_TERMS or wrapped(d.probability) or wrapped(values) or values.requires_grad:
        return None
    levels = values.double()
    low, high = int(levels.min()), int(levels.max())
    if high - low >= _MAX_LEVELS or not bool((levels == levels.round()).all()):
        return None
    p = d.probability.new_zeros((*x.shape, high - low + 1)).index_add(-1, (levels - low).long(), d.probability)
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if dims is None or dims in ((), []):
        dims = range(x.ndim)
    reduced = sorted({i % x.ndim for i in ((dims,) if isinstance(dims, int) else dims)}) if x.ndim else []
    rest = [i for i in range(x.ndim) if i not in reduced]
    p = convolved(p.permute(*rest, *reduced, x.ndim).reshape(*hard.shape, -1, p.shape[-1]))
    first = low * _terms(x, hard)
    support = torch.arange(first, first + p.shape[-1], device=p.device)
    return Distribution(p, support.to(hard.dtype) if hard.dtype.is_floating_point else support)


def convolved(p: Tensor) -> Tensor:
    """Return ``[..., m (r - 1) + 1]``: the law of the sum of ``m`` independent numbers with the laws ``p [..., m, r]``.

    Neighbours are joined two by two, in ``log2 m`` steps.

    Example:
        >>> convolved(torch.tensor([[0.5, 0.5], [0.5, 0.5]])).tolist()
        [0.25, 0.5, 0.25]
    """
    length = p.shape[-2] * (p.shape[-1] - 1) + 1
    while p.shape[-2] > 1:
        if p.shape[-2] % 2:
            nothing = torch.zeros_like(p[..., :1, :])
            nothing[..., 0] = 1.0
            p = torch.cat([p, nothing], -2)
        a, b = p[..., ::2, :], p[..., 1::2, :]
        r = p.shape[-1]
        pairs = torch.nn.functional.pad(a.unsqueeze(-1) * b.unsqueeze(-2), (0, r))  # [..., r, 2 r]
        p = pairs.flatten(-2)[..., :-r].unflatten(-1, (r, 2 * r - 1)).sum(-2)  # row i moved to the right by i
    return p.squeeze(-2)[..., :length]


def _result_choice(
    function: Any, args: Any, kwargs: Any, sources: list[Tensor], which: Tensor, hard: Tensor
) -> Tensor | None:
    """The number of the choice behind each element of the result; ``None`` where independent ones are mixed."""
    if which.numel() == 1:
        return which.reshape(())
    source = sources[0]
    choice = which.reshape(*[1] * (source.ndim - which.ndim), *which.shape)
    if any(t.shape != source.shape for t in sources):
        return None
    if function in _MATRIX and len(args) >= 2 and len(sources) == 1:
        first = args[0] is source
        other = args[1] if first else args[0]
        d = source.ndim - 1 if first else max(source.ndim - 2, 0)
        if (function in _LINEAR_LAYER and not first) or choice.shape[d] != 1:
            return None
        return choice.squeeze(d) if other.ndim == 1 or (not first and source.ndim == 1) else choice
    if function not in _ALONG or sources[0] is not args[0]:
        return None
    position = _ALONG[function]
    dims = kwargs.get("dim", args[position] if len(args) > position else None)
    if not isinstance(dims, int | tuple | list):
        return None
    along = [d % source.ndim for d in ((dims,) if isinstance(dims, int) else dims)]
    if any(choice.shape[d] != 1 for d in along):
        return None
    return choice if hard.ndim == source.ndim else choice.squeeze(tuple(along))


_LINEAR_LAYER = named("linear")


def _full(values: Tensor, shape: torch.Size) -> Tensor:
    return values.expand(*shape, values.shape[-1])


def moved(
    function: Callable[..., Any], args: Any, kwargs: Any, found: dict[int, Distribution], hard: Any = None
) -> Any:
    """Return the atoms of a function that only moves elements; a list of them for several results.

    Elements that share a choice are followed by its number.
    """
    moving = args[0] if isinstance(args[0], tuple | list) else args[:1]
    if {id(t) for t in tensors_in(moving)} != {id(t) for t in moving} or not set(found) <= {id(t) for t in moving}:
        return None
    size = max(d.size for d in found.values())
    shapes = [t.shape for t in moving]
    if sum(math.prod(shape) for shape in shapes) * size > MAX_ATOMS:
        return None

    def run(values: list[Tensor]) -> Any:
        first = values if isinstance(args[0], tuple | list) else values[0]
        return function(first, *args[1:], **kwargs)

    def over_atoms(values: list[Tensor]) -> Any:
        if size <= FEW:  # a transform of torch.func costs more than it saves
            each = [run([v[..., k] for v in values]) for k in range(size)]
            if isinstance(each[0], Tensor):
                return torch.stack(each, -1)
            return [torch.stack(parts, -1) for parts in zip(*each, strict=True)]
        return torch.func.vmap(lambda *parts: run(list(parts)), in_dims=-1, out_dims=-1)(*values)

    parts = [found[id(t)] if id(t) in found else _certain(t) for t in moving]
    tied = any(d.tied for d in parts)
    one = parts[0] if len(parts) == 1 else None
    if all(d.support is None and d.probability.shape[-1] == size for d in parts):
        support: Any = None
    else:
        support = one.support if one is not None and one.support is not None and one.support.ndim == 1 else _UNKNOWN
    if support is _UNKNOWN:
        atoms = [_widened(_full(d.values, shape), size) for d, shape in zip(parts, shapes, strict=True)]
        supports = over_atoms(_one_type(atoms))
    if one is not None and _shares(one.probability, shapes[0]):
        root, which = _choice(one)
        arrived = run([which.expand(shapes[0])])
        several = not isinstance(arrived, Tensor)
        numbers = [_constant_dims(a) for a in (arrived if several else [arrived])]
        choices = root.reshape(-1, size)
        if support is not _UNKNOWN:
            supports = [support] * len(numbers)
        elif not several:
            supports = [supports]
        result = [Distribution(choices[n], s, (root, n), tied=tied) for n, s in zip(numbers, supports, strict=True)]
        return result if several else result[0]
    else:
        spread = [
            _widened(d.probability.expand(*shape, d.probability.shape[-1]), size, 0.0)
            for d, shape in zip(parts, shapes, strict=True)
        ]
        probability = over_atoms(_one_type(spread))
    if isinstance(probability, Tensor):
        return Distribution(probability, supports if support is _UNKNOWN else support, tied=tied)
    if support is _UNKNOWN:
        return [Distribution(p, s, tied=tied) for p, s in zip(probability, supports, strict=True)]
    return [Distribution(p, support, tied=tied) for p in probability]


class _Unknown:
    """No support that all elements share."""


_UNKNOWN: Any = _Unknown()


def _certain(value: Tensor) -> Distribution:
    dtype = value.dtype if value.is_floating_point() else torch.get_default_dtype()
    return Distribution(torch.ones(1, dtype=dtype, device=value.device), plain(value).unsqueeze(-1))


def _shares(probability: Tensor, shape: torch.Size) -> bool:
    return probability.shape[:-1] != shape


def _constant_dims(numbers: Tensor) -> Tensor:
    """``numbers`` with each dimension along which they do not change reduced to size 1, a single one without any."""
    for d in range(numbers.ndim):
        if numbers.shape[d] > 1:
            first = numbers.narrow(d, 0, 1)
            if bool(physical(numbers == first).all()):
                numbers = first
    return numbers.reshape(()) if numbers.numel() == 1 else numbers


def _widened(values: Tensor, size: int, fill: float | None = None) -> Tensor:
    missing = size - values.shape[-1]
    if missing == 0:
        return values
    more = values[..., :1] if fill is None else values.new_full((*values.shape[:-1], 1), fill)
    return torch.cat([values, more.expand(*values.shape[:-1], missing)], -1)


def _one_type(values: list[Tensor]) -> list[Tensor]:
    dtype = values[0].dtype
    for value in values[1:]:
        dtype = torch.promote_types(dtype, value.dtype)
    return [value.to(dtype) for value in values]


def _distinct(args: Any, kwargs: Any) -> Iterator[Tensor]:
    seen: set[int] = set()
    for t in tensors_in((args, kwargs)):
        if id(t) not in seen:
            seen.add(id(t))
            yield t


def _put(arguments: Any, known: dict[int, Tensor]) -> Any:
    if isinstance(arguments, Tensor):
        return known.get(id(arguments), soft_value(arguments) if isinstance(arguments, SoftTensor) else arguments)
    if isinstance(arguments, dict):
        return {key: _put(item, known) for key, item in arguments.items()}
    if isinstance(arguments, tuple | list):
        items = [_put(item, known) for item in arguments]
        return type(arguments)(*items) if hasattr(arguments, "_fields") else type(arguments)(items)
    return arguments
