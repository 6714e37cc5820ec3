"""What theory says a layer must keep for its backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from pullback.core.checks import check_choice, check_tensor

__all__ = ["needed_for_backward"]

_Needs = Callable[[Any, Tensor, bool, bool], dict[str, int]]
PARTS = ("input", "weight", "bias")


def needed_for_backward(layer: nn.Module, x: Tensor, active: Collection[str]) -> dict[str, int]:
    """Return what a layer must keep for the gradients that are asked for, in bytes, parameters and buffers left out.

    =======================  =====================  ====================================================
    layer                    gradient               what it needs
    =======================  =====================  ====================================================
    linear, convolutions     weight                 the input
    batch norm, evaluation   weight                 the input
    batch norm, training     input, weight          the input, mean and deviation a channel
    layer and group norm     input                  the input, mean and deviation a row (or group)
    the same without weight  input                  the output, the deviation a row
    layer and group norm     weight, not input      the normalised input
    ReLU, dropout            input                  a bit an element
    max-pool                 input                  the place of each maximum: 1, 2 or 4 bytes
    GELU, SiLU               input                  the input
    sigmoid, tanh, softmax   input                  the output
    embedding                weight                 the indices
    average pool, flatten    input                  nothing
    =======================  =====================  ====================================================

    Args:
        layer: a layer of torch, one of these.
        x: its input, or a tensor of its shape and type (the device may be ``"meta"``).
        active: which gradients are asked for: of ``"input"``, ``"weight"``, ``"bias"``.

    Returns:
        What is kept, to its bytes: ``{}`` where nothing is.

    Raises:
        TypeError: the layer is not in the table.
        ValueError: ``active`` has another name.

    Example:
        >>> x = torch.zeros(2, 8, 4, 4)
        >>> needed_for_backward(nn.Conv2d(8, 8, 3), x, {"input"}), needed_for_backward(nn.ReLU(), x, {"input"})
        ({}, {'signs': 32})

    References:
        Bhatia, Dangel (2024), Lowering PyTorch's memory consumption for selective differentiation, arXiv 2404.12406.
    """
    check_tensor("x", x)
    for name in active:
        check_choice("active", name, PARTS)
    needs = next((needs for kinds, needs in _TABLE if isinstance(layer, kinds)), None)
    if needs is None:
        raise TypeError(f"layer must be one of the table of needed_for_backward, got {type(layer).__name__}")
    return needs(layer, x, "input" in active, "weight" in active)


def _linear(layer: nn.Module, x: Tensor, need_x: bool, need_weight: bool) -> dict[str, int]:
    return {"input": x.nbytes} if need_weight else {}


def _batch_norm(layer: nn.Module, x: Tensor, need_x: bool, need_weight: bool) -> dict[str, int]:
    if layer.training and (need_x or need_weight):
        return {"input": x.nbytes, "statistics": 2 * x.shape[1] * x.element_size()}
    return {"input": x.nbytes} if need_weight else {}


def _norm(layer: Any, x: Tensor, need_x: bool, need_weight: bool) -> dict[str, int]:
    grouped = isinstance(layer, nn.GroupNorm)
    rows = len(x) * layer.num_groups if grouped else x.numel() // math.prod(layer.normalized_shape)
    if not need_x:
        return {"normalised input": x.nbytes} if need_weight else {}
    if layer.weight is None and layer.bias is None:
        return {"output": x.nbytes, "deviations": rows * x.element_size()}
    return {"input": x.nbytes, "means and deviations": 2 * rows * x.element_size()}


def _signs(layer: nn.Module, x: Tensor, need_x: bool, need_weight: bool) -> dict[str, int]:
    if isinstance(layer, nn.Dropout) and not (layer.training and 0 < layer.p < 1):
        return {}
    return {"signs": -(-x.numel() // 8)} if need_x else {}


def _places(layer: nn.Module, x: Tensor, need_x: bool, need_weight: bool) -> dict[str, int]:
    if not need_x:
        return {}
    dims = int(type(layer).__name__[-2])
    size = x.shape[-dims:].numel()
    output = layer(torch.empty_like(x, device="meta", requires_grad=False))
    return {"places": output.numel() * (1 if size <= 2**8 else 2 if size <= 2**15 else 4)}


def _values(layer: nn.Module, x: Tensor, need_x: bool, need_weight: bool) -> dict[str, int]:
    return {"input" if isinstance(layer, nn.GELU | nn.SiLU) else "output": x.nbytes} if need_x else {}


def _nothing(layer: nn.Module, x: Tensor, need_x: bool, need_weight: bool) -> dict[str, int]:
    return {}


_TABLE: tuple[tuple[tuple[type[nn.Module], ...], _Needs], ...] = (
    ((nn.Linear, nn.Embedding, nn.modules.conv._ConvNd), _linear),
    ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    ((nn.LayerNorm, nn.GroupNorm), _norm),
    ((nn.ReLU, nn.Dropout), _signs),
    ((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _places),
    ((nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Softmax), _values),
    ((nn.Identity, nn.Flatten, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d), _nothing),
)
