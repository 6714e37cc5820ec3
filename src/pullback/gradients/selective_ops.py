"""Twins of functions of ``torch.nn.functional`` that keep for backward what the active gradients need, no more.

``y = f(x; W)`` that is linear in ``W`` needs ``x`` for the gradient in ``W`` alone, and ``W`` for that in ``x``. torch
keeps both wherever a gradient is asked for; so a frozen convolution in the middle of a network keeps its input, which
nobody will read. Each function here looks at what requires a gradient, and keeps

=====================  =============================================================================================
``conv``               the input for the weight's gradient, the weight for the input's
``batch_norm``         the input for the weight's gradient; weight and running variance (the one that runs on batch
                       statistics is torch's own)
``layer_norm``,        the normalised input and one number a row, for the input's gradient; the normalised input for
``group_norm``         the weight's; nothing for the bias's
``relu``, ``dropout``  a bit an element
``max_pool``           a position an element of the output, in the smallest integers that hold it
=====================  =============================================================================================

Values and gradients are torch's, second derivatives too. Under a transform of ``torch.func``, in forward mode and in a
compiled graph the functions are torch's own: there, torch decides by itself what to keep.

References:
    Bhatia, Dangel (2024), Lowering PyTorch's memory consumption for selective differentiation, arXiv 2404.12406.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.core.checks import check_floating, check_integer, check_positive, check_range
from pullback.core.shapes import Float
from pullback.core.transforms import transform_running
from pullback.gradients.bits import pack_bits, unpack_bits

__all__ = ["batch_norm", "conv", "conv_transpose", "dropout", "group_norm", "layer_norm", "max_pool", "relu"]

Sizes = int | Sequence[int]
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def conv(
    x: Float[Tensor, "*batch channels *space"],
    weight: Float[Tensor, "out grouped *kernel"],
    bias: Float[Tensor, "out"] | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve as ``conv1d``, ``conv2d`` and ``conv3d`` do, by the dimensions of ``weight``.

    Keeps ``x`` only where ``weight`` requires a gradient, and ``weight`` only where ``x`` does.

    Args:
        x: ``[*batch, channels, *space]``, ``batch`` of at most one dimension.
        weight: ``[out, channels / groups, *kernel]`` with one to three dimensions of ``kernel``.
        bias: ``[out]``.
        stride: of all dimensions, or one each.
        padding: of zeros on both sides, or ``"same"``, ``"valid"``.
        dilation: distance of the kernel's entries.
        groups: of channels that do not see each other.

    Returns:
        ``[*batch, out, *space]``.

    Raises:
        TypeError: ``x`` or ``weight`` is not floating.
        ValueError: ``weight`` has not 3 to 5 dimensions.
        RuntimeError: shapes that torch refuses.

    Example:
        >>> weight = torch.ones(1, 1, 3)  # frozen
        >>> y = conv(torch.arange(5.0, requires_grad=True).view(1, 1, 5), weight, padding=1)
        >>> y.flatten().tolist()
        [1.0, 3.0, 6.0, 9.0, 7.0]
    """
    dims = _dimensions(x, weight)
    if _theirs(x, weight, bias):
        return _CONV[dims](x, weight, bias, stride, padding, dilation, groups)  # type: ignore[arg-type]
    stride, dilation = _each(stride, dims), _each(dilation, dims)
    if isinstance(padding, str):
        padding, x = _named_padding(padding, x, weight, stride, dilation)
    x, weight, bias = _lowered(x, weight, bias)
    return _convolved(x, weight, bias, stride, _each(padding, dims), dilation, False, (0,) * dims, groups)


def conv_transpose(
    x: Float[Tensor, "*batch channels *space"],
    weight: Float[Tensor, "channels grouped *kernel"],
    bias: Float[Tensor, "out"] | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
) -> Tensor:
    """Convolve transposed as ``conv_transpose1d`` to ``conv_transpose3d`` do, by the dimensions of ``weight``.

    Keeps ``x`` only where ``weight`` requires a gradient, and ``weight`` only where ``x`` does.

    Args:
        x: ``[*batch, channels, *space]``, ``batch`` of at most one dimension.
        weight: ``[channels, out / groups, *kernel]`` with one to three dimensions of ``kernel``.
        bias: ``[out]``.
        stride: of all dimensions, or one each.
        padding: removed from both sides of the output.
        output_padding: added to one side of the output.
        groups: of channels that do not see each other.
        dilation: distance of the kernel's entries.

    Returns:
        ``[*batch, out, *space]``.

    Raises:
        TypeError: ``x`` or ``weight`` is not floating.
        ValueError: ``weight`` has not 3 to 5 dimensions.
        RuntimeError: shapes that torch refuses.

    Example:
        >>> conv_transpose(torch.ones(1, 1, 2), torch.ones(1, 1, 2), stride=2).shape
        torch.Size([1, 1, 4])
    """
    dims = _dimensions(x, weight)
    if _theirs(x, weight, bias):
        function = _TRANSPOSED[dims]
        return function(x, weight, bias, stride, padding, output_padding, groups, dilation)  # type: ignore[arg-type]
    x, weight, bias = _lowered(x, weight, bias)
    sizes = [_each(each, dims) for each in (stride, padding, dilation, output_padding)]
    return _convolved(x, weight, bias, sizes[0], sizes[1], sizes[2], True, sizes[3], groups)


def batch_norm(
    x: Float[Tensor, "batch channels *space"],
    running_mean: Float[Tensor, "channels"] | None,
    running_var: Float[Tensor, "channels"] | None,
    weight: Float[Tensor, "channels"] | None = None,
    bias: Float[Tensor, "channels"] | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    r"""Normalise by running statistics, ``(x - mean) / sqrt(var + eps) * weight + bias``, as in evaluation.

    Keeps ``x`` only where ``weight`` requires a gradient. With ``training=True``, where the statistics are those of the
    batch and their gradient needs ``x`` anyway, it is torch's own function.

    Args:
        x: ``[batch, channels, *space]``.
        running_mean: ``[channels]``.
        running_var: ``[channels]``, >= 0.
        weight: ``[channels]``.
        bias: ``[channels]``.
        training: whether the statistics are those of the batch, which also update the running ones.
        momentum: of that update.
        eps: > 0, added to the variance.

    Returns:
        The shape of ``x``.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``eps`` is not > 0.
        RuntimeError: shapes that torch refuses.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
        >>> batch_norm(x, torch.tensor([2.0, 4.0]), torch.tensor([1.0, 4.0]), eps=1e-12)
        tensor([[-1., -1.],
                [ 1.,  1.]])
    """
    check_floating("x", x)
    check_positive("eps", eps)
    if training or running_mean is None or running_var is None or _theirs(x, weight, bias):
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    result: Tensor = _BatchNorm.apply(x, running_mean, running_var, weight, bias, eps)
    return result


def layer_norm(
    x: Float[Tensor, "*batch *normalized"],
    normalized_shape: Sizes,
    weight: Float[Tensor, "*normalized"] | None = None,
    bias: Float[Tensor, "*normalized"] | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Normalise the last dimensions, ``(x - mean) / sqrt(var + eps) * weight + bias``.

    Keeps the normalised ``x``, which serves the gradients of ``x`` and ``weight`` both, and one number a row. Without
    ``weight`` and ``bias`` that is the output itself, which a next layer may keep as well: in memory it is there once.

    Args:
        x: ``[*batch, *normalized]``.
        normalized_shape: the last dimensions.
        weight: ``[*normalized]``.
        bias: ``[*normalized]``.
        eps: > 0, added to the variance.

    Returns:
        The shape of ``x``.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``eps`` is not > 0, or ``x`` does not end in ``normalized_shape``.

    Example:
        >>> layer_norm(torch.tensor([[1.0, 3.0]]), 2, eps=1e-12)
        tensor([[-1.,  1.]])
    """
    check_floating("x", x)
    check_positive("eps", eps)
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or tuple(x.shape[-len(shape) :]) != shape:
        raise ValueError(f"x must end in the dimensions {shape}, got shape {tuple(x.shape)}")
    if _theirs(x, weight, bias):
        return F.layer_norm(x, shape, weight, bias, eps)
    normalised, _ = _Normalised.apply(_raised(x).flatten(-len(shape)), eps)
    return _affine(normalised.view(x.shape), weight, bias)


def group_norm(
    x: Float[Tensor, "batch channels *space"],
    num_groups: int,
    weight: Float[Tensor, "channels"] | None = None,
    bias: Float[Tensor, "channels"] | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Normalise groups of channels, ``(x - mean) / sqrt(var + eps) * weight + bias``.

    Keeps the normalised ``x``, which serves the gradients of ``x`` and ``weight`` both, and one number a group.

    Args:
        x: ``[batch, channels, *space]``.
        num_groups: how many groups, a divisor of ``channels``.
        weight: ``[channels]``.
        bias: ``[channels]``.
        eps: > 0, added to the variance.

    Returns:
        The shape of ``x``.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``x`` has no channels, ``num_groups`` is no divisor of them, or ``eps`` is not > 0.

    Example:
        >>> group_norm(torch.tensor([[1.0, 3.0, 5.0, 9.0]]), 2, eps=1e-12)
        tensor([[-1.,  1., -1.,  1.]])
    """
    check_floating("x", x)
    check_positive("eps", eps)
    check_integer("num_groups", num_groups, 1)
    if x.ndim < 2 or x.shape[1] % num_groups:
        raise ValueError(f"x must have channels that {num_groups} groups divide, got shape {tuple(x.shape)}")
    if _theirs(x, weight, bias):
        return F.group_norm(x, num_groups, weight, bias, eps)
    grouped = _raised(x).reshape(len(x), num_groups, -1)
    normalised, _ = _Normalised.apply(grouped, eps)
    weight, bias = (None if each is None else each.view(-1, *(1,) * (x.ndim - 2)) for each in (weight, bias))
    return _affine(normalised.view(x.shape), weight, bias)


def relu(x: Float[Tensor, "*shape"]) -> Tensor:
    """Return ``max(x, 0)``; keeps a bit an element, where torch keeps the result.

    A next layer with a weight to be learned keeps that result as well, and torch's in place of the bits costs nothing
    more then: :func:`~pullback.gradients.selective` looks at the next layer.

    Args:
        x: of any shape.

    Returns:
        The shape of ``x``.

    Raises:
        TypeError: ``x`` is not floating.

    Example:
        >>> relu(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    check_floating("x", x)
    if _theirs(x):
        return x.relu()
    result: Tensor = _ReLU.apply(x)
    return result


def dropout(x: Float[Tensor, "*shape"], p: float = 0.5, training: bool = True) -> Tensor:
    """Set elements to 0 with probability ``p`` and divide the others by ``1 - p``; keeps a bit an element.

    Args:
        x: of any shape.
        p: in [0, 1].
        training: ``False`` returns ``x``.

    Returns:
        The shape of ``x``; drawn from torch's generator, on the CPU the numbers of ``torch.nn.functional.dropout``.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``p`` is out of range.

    Example:
        >>> dropout(torch.ones(3), p=0.0)
        tensor([1., 1., 1.])
    """
    check_floating("x", x)
    check_range("p", p, 0, 1)
    if _theirs(x) or not training or p in (0, 1):
        return F.dropout(x, p, training)
    result: Tensor = _Dropout.apply(x, p)
    return result


def max_pool(
    x: Float[Tensor, "*batch channels *space"],
    kernel_size: Sizes,
    stride: Sizes | None = None,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    *,
    dims: int | None = None,
) -> Tensor:
    """Return the maxima over windows as ``max_pool1d``, ``max_pool2d`` and ``max_pool3d`` do.

    Keeps the place of each maximum in one, two or four bytes; torch keeps ``x`` and the places in eight.

    Args:
        x: ``[*batch, channels, *space]``, ``batch`` of at most one dimension.
        kernel_size: of the windows, of all dimensions or one each.
        stride: between windows (default: ``kernel_size``).
        padding: on both sides, of minus infinity.
        dilation: distance of a window's entries.
        ceil_mode: whether windows that reach over the end count.
        dims: 1, 2 or 3 dimensions of ``space`` (default: as ``kernel_size`` has numbers; with one number, all but the
            first two of ``x``).

    Returns:
        ``[*batch, channels, *space]``.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``dims`` is not 1, 2 or 3.
        RuntimeError: sizes that torch refuses.

    Example:
        >>> max_pool(torch.tensor([[[1.0, 4.0, 2.0, 3.0]]]), 2)
        tensor([[[4., 3.]]])
    """
    check_floating("x", x)
    if dims is None:
        dims = x.ndim - 2 if isinstance(kernel_size, int) else len(kernel_size)
    check_integer("dims", dims, 1, 3)
    options = (kernel_size, kernel_size if stride is None else stride, padding, dilation)
    if _theirs(x) or not x.requires_grad:
        return _POOL[dims](x, *options, ceil_mode=ceil_mode)
    result: Tensor = _MaxPool.apply(x, dims, options, ceil_mode)
    return result


def _theirs(*tensors: Tensor | None) -> bool:
    """Whether torch's own function serves: nothing is kept, or what is kept is not ours to say."""
    if torch.compiler.is_compiling() or transform_running() or not torch.is_grad_enabled():
        return True
    return not any(t.requires_grad for t in tensors if t is not None)


def _each(size: Any, dims: int) -> tuple[int, ...]:
    return (size,) * dims if isinstance(size, int) else tuple(size) * (dims if len(size) == 1 else 1)


def _dimensions(x: Tensor, weight: Tensor) -> int:
    check_floating("x", x)
    check_floating("weight", weight)
    if weight.ndim not in (3, 4, 5):
        raise ValueError(f"weight must have 3 to 5 dimensions, got shape {tuple(weight.shape)}")
    return weight.ndim - 2


def _lowered(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast does for convolutions: outside of the Function, so that what it keeps is what it used."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _raised(x: Tensor) -> Tensor:
    """Cast as autocast does for norms on CUDA."""
    return x.float() if x.is_cuda and torch.is_autocast_enabled("cuda") else x


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``x * weight + bias``, whose parts torch keeps only for gradients that are asked for."""
    if weight is not None:
        x = x * weight.to(x.dtype) if bias is None else torch.addcmul(bias.to(x.dtype), x, weight.to(x.dtype))
    elif bias is not None:
        x = x + bias.to(x.dtype)
    return x


def _named_padding(
    name: str, x: Tensor, weight: Tensor, stride: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[Sizes, Tensor]:
    if name == "valid":
        return 0, x
    if name != "same":
        raise ValueError(f"padding must be numbers, 'same' or 'valid', got {name!r}")
    if any(s != 1 for s in stride):
        raise ValueError(f"padding='same' needs a stride of 1, got {stride}")
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(t % 2 for t in total):  # one more zero at the end than at the beginning
        x = F.pad(x, [width for t in reversed(total) for width in (0, t % 2)])
    return tuple(t // 2 for t in total), x


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    batched = x if x.ndim == weight.ndim else x[None]
    result: Tensor = _Convolution.apply(batched, weight, bias, *options)
    return result if x.ndim == weight.ndim else result[0]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        need_x, need_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if need_weight else None, weight if need_x else None)
        ctx.shapes = x.shape, weight.shape, None if bias is None else bias.shape
        ctx.options = options
        return torch.convolution(x, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        shapes = ctx.shapes
        wanted = [shape is not None and need for shape, need in zip(shapes, ctx.needs_input_grad, strict=False)]
        # What is not kept is not read: only its shape.
        x = g.new_empty(1).expand(shapes[0]) if x is None else x
        weight = g.new_empty(1).expand(shapes[1]) if weight is None else weight
        found = torch.ops.aten.convolution_backward(g, x, weight, shapes[2], *ctx.options, wanted)
        return *(each if want else None for each, want in zip(found, wanted, strict=True)), *(None,) * len(ctx.options)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        need_x, need_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
        ctx.save_for_backward(
            x if need_weight else None,
            mean if need_weight else None,
            var if need_x or need_weight else None,
            weight if need_x else None,
        )
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, mean, var, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = (ctx.needs_input_grad[place] for place in (0, 3, 4))
        others = [dim for dim in range(g.ndim) if dim != 1]

        def along_channels(each: Tensor) -> Tensor:
            return each.to(g.dtype).view(-1, *(1,) * (g.ndim - 2))

        rate = None if var is None else (var + ctx.eps).rsqrt()
        grad_x = grad_weight = None
        if need_x:
            grad_x = g * along_channels(rate if weight is None else rate * weight)
        if need_weight:
            grad_weight = (g * (x - along_channels(mean))).sum(others) * rate
        return grad_x, None, None, grad_weight, g.sum(others) if need_bias else None, None


class _Normalised(torch.autograd.Function):
    """Rows less their mean, over their standard deviation; also one over the latter, which backward needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        normalised, _, rate = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        rate = rate.to(x.dtype)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(normalised, rate)
        return normalised, rate

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_rate: Tensor | None) -> tuple[Tensor | None, None]:  # type: ignore[override]
        y, rate = ctx.saved_tensors
        grad = None
        if g is not None and torch.is_grad_enabled():
            grad = (g - g.mean(-1, keepdim=True) - y * (g * y).mean(-1, keepdim=True)) * rate
        elif g is not None:  # the same in one pass: of rows with mean 0 and deviation 1
            zero, one = torch.zeros_like(rate), torch.ones_like(rate)
            mask = [True, False, False]
            grad = torch.ops.aten.native_layer_norm_backward(g, y, y.shape[-1:], zero, one, None, None, mask)[0] * rate
        if g_rate is not None:  # of the derivative of that number, in second derivatives alone
            part = -g_rate * rate.square() * y / y.shape[-1]
            grad = part if grad is None else grad + part
        return grad, None


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        result = x.relu()
        ctx.save_for_backward(pack_bits(result))
        return result

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        (bits,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(g, unpack_bits(bits, g), 0)  # type: ignore[no-any-return]


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        ctx.p = p
        kept = torch.empty_like(x).bernoulli_(1 - p)
        ctx.save_for_backward(pack_bits(kept))
        return x * kept.div_(1 - p)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (bits,) = ctx.saved_tensors
        return g * unpack_bits(bits, g).div_(1 - ctx.p), None


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: int, options: tuple[Any, ...], ceil_mode: bool) -> Tensor:
        result, places = _POOL[dims](x, *options, ceil_mode=ceil_mode, return_indices=True)
        ctx.space = x.shape[-dims:]
        size = math.prod(ctx.space)
        ctx.save_for_backward(places.to(torch.uint8 if size <= 2**8 else torch.int16 if size <= 2**15 else torch.int32))
        return result  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (places,) = ctx.saved_tensors
        dims = len(ctx.space)
        flat = g.new_zeros(*g.shape[:-dims], math.prod(ctx.space))
        grad = flat.scatter_add(-1, places.flatten(-dims).long(), g.flatten(-dims))
        return grad.view(*g.shape[:-dims], *ctx.space), None, None, None
