"""The Functions of :mod:`~pullback.gradients.selective_ops`: what they keep, and gradients that can be differentiated.

Each ``backward`` is made of operations that torch differentiates, of inputs, outputs and constants: with
``create_graph`` second derivatives come out of it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pullback.gradients.bits import pack_bits, unpack_bits

__all__ = ["POOLS", "BatchNorm", "Convolution", "Dropout", "MaxPool", "Normalised", "ReLU"]

POOLS: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class Convolution(torch.autograd.Function):
    """Any convolution: the input for the weight's gradient, the weight for the input's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
        """Compute, and keep what the gradients that are asked for need."""
        need_x, need_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if need_weight else None, weight if need_x else None)
        ctx.shapes = x.shape, weight.shape, None if bias is None else bias.shape
        ctx.options = options
        return torch.convolution(x, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that are asked for."""
        x, weight = ctx.saved_tensors
        shapes = ctx.shapes
        wanted = [shape is not None and need for shape, need in zip(shapes, ctx.needs_input_grad, strict=False)]
        x = _unread(g, shapes[0]) if x is None else x
        weight = _unread(g, shapes[1]) if weight is None else weight
        found = torch.ops.aten.convolution_backward(g, x, weight, shapes[2], *ctx.options, wanted)
        return *(each if want else None for each, want in zip(found, wanted, strict=True)), *(None,) * len(ctx.options)


class BatchNorm(torch.autograd.Function):
    """By running statistics: the input for the weight's gradient alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        """Compute, and keep what the gradients that are asked for need."""
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
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that are asked for."""
        x, mean, var, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = need = [ctx.needs_input_grad[place] for place in (0, 3, 4)]
        same = all(t is None or t.dtype == g.dtype for t in (x, mean, var, weight))
        if need_weight and g.numel() and same and not torch.is_grad_enabled():  # the same in one pass
            parts = (g, x, weight, mean, var, None, None, False, ctx.eps, need)
            found = torch.ops.aten.native_batch_norm_backward(*parts)
            grads = [each if want else None for each, want in zip(found, need, strict=True)]
            return grads[0], None, None, *grads[1:], None
        others = [dim for dim in range(g.ndim) if dim != 1]

        def along_channels(each: Tensor) -> Tensor:
            return each.to(g.dtype).view(-1, *(1,) * (g.ndim - 2))

        rate: Any = None if var is None else (var + ctx.eps).rsqrt()
        grad_x = grad_weight = None
        if need_x:
            grad_x = g * along_channels(rate if weight is None else rate * weight)
        if need_weight:
            grad_weight = (g * (x - along_channels(mean))).sum(others) * rate
        return grad_x, None, None, grad_weight, g.sum(others) if need_bias else None, None


class Normalised(torch.autograd.Function):
    """Rows less their mean, over their standard deviation; also one over the latter, which backward needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Compute, and keep what the gradients that are asked for need."""
        normalised, _, rate = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        rate = rate.to(x.dtype)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(normalised, rate)
        return normalised, rate

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_rate: Tensor | None) -> tuple[Tensor | None, None]:
        """Return the gradients that are asked for."""
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


class ReLU(torch.autograd.Function):
    """A bit an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Compute, and keep what the gradients that are asked for need."""
        result = x.relu()
        ctx.save_for_backward(pack_bits(result))
        return result

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        """Return the gradients that are asked for."""
        (bits,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(g, unpack_bits(bits, g), 0)


class Dropout(torch.autograd.Function):
    """A bit an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        """Compute, and keep what the gradients that are asked for need."""
        ctx.p = p
        kept = torch.empty_like(x).bernoulli_(1 - p)
        ctx.save_for_backward(pack_bits(kept))
        return x * kept.div_(1 - p)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """Return the gradients that are asked for."""
        (bits,) = ctx.saved_tensors
        scale = unpack_bits(bits, g).div_(1 - ctx.p)
        return g * scale if torch.is_grad_enabled() else scale.mul_(g), None


class MaxPool(torch.autograd.Function):
    """The places of the maxima, in small integers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: int, options: tuple[Any, ...], ceil_mode: bool) -> Tensor:
        """Compute, and keep what the gradients that are asked for need."""
        result, places = POOLS[dims](x, *options, ceil_mode=ceil_mode, return_indices=True)
        ctx.shape, ctx.space, ctx.options, ctx.ceil_mode = x.shape, x.shape[-dims:], options, ceil_mode
        size = math.prod(ctx.space)
        ctx.save_for_backward(places.to(torch.uint8 if size <= 2**8 else torch.int16 if size <= 2**15 else torch.int32))
        return result

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients that are asked for."""
        (places,) = ctx.saved_tensors
        dims = len(ctx.space)
        if dims > 1 and g.device.type == "cpu" and not torch.is_grad_enabled():  # the same in one pass
            one_pass = torch.ops.aten.max_pool2d_with_indices_backward
            if dims == 3:
                one_pass = torch.ops.aten.max_pool3d_with_indices_backward
            grad = one_pass(g, _unread(g, ctx.shape), *ctx.options, ctx.ceil_mode, places.long())
            return grad, None, None, None
        flat = g.new_zeros(*g.shape[:-dims], math.prod(ctx.space))
        grad = flat.scatter_add(-1, places.flatten(-dims).long(), g.flatten(-dims))
        return grad.view(*g.shape[:-dims], *ctx.space), None, None, None


def _unread(g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Stand in for what was not kept: of a convolution's other argument only the shape is read.

    On the CPU memory that nobody touches costs nothing, and torch would write out an expanded number.
    """
    plain = g.device.type == "cpu" and not torch.is_grad_enabled()
    return g.new_empty(shape) if plain else g.new_zeros(1).expand(shape)
