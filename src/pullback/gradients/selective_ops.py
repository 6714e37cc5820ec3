"""Twins of functions of ``torch.nn.functional`` that keep for backward what the active gradients need, no more.

``y = f(x; W)`` that is linear in ``W`` needs ``x`` for the gradient in ``W`` alone, and ``W`` for that in ``x``. torch
keeps both wherever a gradient is asked for; so a frozen convolution in the middle of a network keeps its input, which
nobody will read. Each function here looks at what requires a gradient, and keeps

=====================  =============================================================================================
``conv``               the input for the weight's gradient, the weight for the input's
``batch_norm``         the input for the weight's gradient; weight and running variance (the one that runs on batch
                       statistics is torch's own)
``layer_norm``,        the input and two numbers a row, for the input's gradient (the output and one, without weight
``group_norm``         and bias); the normalised input for the weight's; nothing for the bias's
``relu``, ``dropout``  a bit an element
``max_pool``           a position an element of the output, in the smallest integers that hold it
=====================  =============================================================================================

Values and gradients are torch's, second derivatives too. Under a transform of ``torch.func``, in forward mode and in a
compiled graph the functions are torch's own: there, torch decides by itself what to keep.

References:
    Bhatia, Dangel (2024), Lowering PyTorch's memory consumption for selective differentiation, arXiv 2404.12406.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.core.checks import check_floating, check_integer, check_range
from pullback.core.shapes import Float
from pullback.gradients import selective_functions as functions
from pullback.gradients.selective_checks import (
    Sizes,
    check_convolution,
    check_output,
    sizes,
    theirs,
)
from pullback.gradients.selective_norms import batch_norm, group_norm, layer_norm

__all__ = ["batch_norm", "conv", "conv_transpose", "dropout", "group_norm", "layer_norm", "max_pool", "relu"]

_CONV: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


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
        TypeError: ``x`` or ``weight`` is not floating, or their types differ.
        ValueError: shapes do not fit, or an option is out of range.

    Example:
        >>> weight = torch.ones(1, 1, 3)  # frozen
        >>> y = conv(torch.arange(5.0, requires_grad=True).view(1, 1, 5), weight, padding=1)
        >>> y.flatten().tolist()
        [1.0, 3.0, 6.0, 9.0, 7.0]
    """
    dims = check_convolution(x, weight, bias, groups, transposed=False)
    stride = sizes("stride", stride, dims, 1)
    dilation = sizes("dilation", dilation, dims, 1)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if isinstance(padding, str):
        if padding not in ("same", "valid") or (padding == "same" and max(stride) > 1):
            raise ValueError(f"padding must be numbers, 'valid', or 'same' with a stride of 1, got {padding!r}")
        both = [r - 1 if padding == "same" else 0 for r in reach]
    else:
        padding = sizes("padding", padding, dims, 0)
        both = [2 * p for p in padding]
    check_output([size + b - r for size, b, r in zip(x.shape[-dims:], both, reach, strict=True)], x)
    if theirs(x, weight, bias):
        return _CONV[dims](x, weight, bias, stride, padding, dilation, groups)
    if any(b % 2 for b in both):  # of an even kernel: one more zero at the end than at the beginning
        x = F.pad(x, [width for b in reversed(both) for width in (0, b % 2)])
    half = tuple(b // 2 for b in both)
    x, weight, bias = _lowered(x, weight, bias)
    return _convolved(x, weight, bias, stride, half, dilation, False, (0,) * dims, groups)


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
        TypeError: ``x`` or ``weight`` is not floating, or their types differ.
        ValueError: shapes do not fit, or an option is out of range.

    Example:
        >>> conv_transpose(torch.ones(1, 1, 2), torch.ones(1, 1, 2), stride=2).shape
        torch.Size([1, 1, 4])
    """
    dims = check_convolution(x, weight, bias, groups, transposed=True)
    stride, dilation = sizes("stride", stride, dims, 1), sizes("dilation", dilation, dims, 1)
    padding, output_padding = sizes("padding", padding, dims, 0), sizes("output_padding", output_padding, dims, 0)
    if any(o >= max(s, d) for o, s, d in zip(output_padding, stride, dilation, strict=True)):
        raise ValueError(f"output_padding must be less than stride or dilation, got {output_padding}")
    each = zip(x.shape[-dims:], stride, padding, dilation, weight.shape[2:], output_padding, strict=True)
    check_output([(size - 1) * s - 2 * p + d * (k - 1) + o for size, s, p, d, k, o in each], x)
    if theirs(x, weight, bias):
        return _TRANSPOSED[dims](x, weight, bias, stride, padding, output_padding, groups, dilation)
    x, weight, bias = _lowered(x, weight, bias)
    return _convolved(x, weight, bias, stride, padding, dilation, True, output_padding, groups)


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
    if theirs(x):
        return x.relu()
    result: Tensor = functions.ReLU.apply(x)
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
    if theirs(x) or not training or p in (0, 1):
        return F.dropout(x, p, training)
    result: Tensor = functions.Dropout.apply(x, p)
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
        ValueError: ``dims`` is not 1, 2 or 3, shapes do not fit, or an option is out of range.

    Example:
        >>> max_pool(torch.tensor([[[1.0, 4.0, 2.0, 3.0]]]), 2)
        tensor([[[4., 3.]]])
    """
    check_floating("x", x)
    if dims is None:
        dims = x.ndim - 2 if isinstance(kernel_size, int) else len(kernel_size)
    check_integer("dims", dims, 1, 3)
    if x.ndim not in (dims + 1, dims + 2) or 0 in x.shape[-dims - 1 :]:
        raise ValueError(f"x must be [*batch, channels, *space], space of {dims} dimensions, got {tuple(x.shape)}")
    kernel = sizes("kernel_size", kernel_size, dims, 1)
    options = (
        kernel,
        kernel if stride is None else sizes("stride", stride, dims, 1),
        sizes("padding", padding, dims, 0),
        sizes("dilation", dilation, dims, 1),
    )
    if any(2 * p > k for p, k in zip(options[2], kernel, strict=True)):
        raise ValueError(f"padding must be at most half of kernel_size, got {options[2]} and {kernel}")
    each = zip(x.shape[-dims:], *options, strict=True)
    check_output([n + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil_mode else 0) for n, k, s, p, d in each], x)
    if theirs(x) or not x.requires_grad:
        return functions.POOLS[dims](x, *options, ceil_mode=ceil_mode)
    result: Tensor = functions.MaxPool.apply(x, dims, options, ceil_mode)
    return result


def _lowered(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as autocast does for convolutions: outside of the Function, so that what it keeps is what it used."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    batched = x if x.ndim == weight.ndim else x[None]
    result: Tensor = functions.Convolution.apply(batched, weight, bias, *options)
    return result if x.ndim == weight.ndim else result[0]
