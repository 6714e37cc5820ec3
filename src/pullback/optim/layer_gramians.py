"""What a layer adds to the Gramian of many losses, from its input and the gradients of its output."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LAYERS", "layer_gramian", "shared_layer_gramian"]

_Terms = Callable[[Any, list[tuple[Tensor, Tensor]]], Tensor]


def layer_gramian(module: nn.Module, uses: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return ``sum_p J_p J_p^T [m, m]`` over the parameters of a layer that want a gradient.

    Args:
        module: of a class in :data:`LAYERS`.
        uses: input ``[m, ...]`` and gradient of the output ``[m, ...]`` of every call of the layer.
    """
    return LAYERS[type(module)][1](module, uses)


def shared_layer_gramian(module: nn.Module, uses: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the same of losses that share their input.

    Args:
        module: of a class in :data:`LAYERS`.
        uses: input ``[rows, ...]`` and gradients of the output ``[m, rows, ...]`` of every call of the layer.
    """
    return LAYERS[type(module)][2](module, uses)


def _linear(module: nn.Linear, uses: list[tuple[Tensor, Tensor]]) -> Tensor:
    a, b = _positions([(x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])) for x, g in uses])
    return _of_products(module, a, b)


def _convolution(module: nn.Conv2d, uses: list[tuple[Tensor, Tensor]]) -> Tensor:
    a, b = _positions([(_patches(module, x), g.flatten(2).mT) for x, g in uses])
    groups = module.groups
    if groups == 1:
        return _of_products(module, a, b)
    parts = zip(a.chunk(groups, -1), b.chunk(groups, -1), strict=True)
    return torch.stack([_of_products(module, x, g) for x, g in parts]).sum(0)


def _patches(module: nn.Conv2d, x: Tensor) -> Tensor:
    """Return ``[rows, positions, inputs]``."""
    return F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride).mT  # type: ignore[arg-type]


def _embedding(module: nn.Embedding, uses: list[tuple[Tensor, Tensor]]) -> Tensor:
    index = torch.cat([x.reshape(len(x), -1) for x, _ in uses], 1)
    b = torch.cat([g.reshape(len(g), -1, g.shape[-1]) for _, g in uses], 1)
    if module.padding_idx is not None:
        b = torch.where((index == module.padding_idx)[..., None], 0, b)
    m, positions = index.shape
    same = index.reshape(-1, 1) == index.reshape(1, -1)
    flat = b.reshape(m * positions, -1)
    return ((flat @ flat.T) * same).view(m, positions, m, positions).sum((1, 3))


def _norm(module: nn.LayerNorm | nn.GroupNorm, uses: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The rows of scale and shift are as small as the layer is wide."""
    products, shifts = [], []
    for x, g in uses:
        if isinstance(module, nn.LayerNorm):
            normed = F.layer_norm(x, module.normalized_shape, eps=module.eps)
            size = module.weight.numel()
            products.append((normed * g).reshape(len(x), -1, size).sum(1))
            shifts.append(g.reshape(len(x), -1, size).sum(1))
        else:
            normed = F.group_norm(x, module.num_groups, eps=module.eps)
            products.append((normed * g).reshape(*x.shape[:2], -1).sum(2))
            shifts.append(g.reshape(*x.shape[:2], -1).sum(2))
    return _of_scale_and_shift(module, products, shifts)


def _of_scale_and_shift(module: nn.LayerNorm | nn.GroupNorm, products: list[Tensor], shifts: list[Tensor]) -> Tensor:
    kept = [(module.weight, products), (module.bias, shifts)]
    rows = [torch.stack(parts).sum(0) for p, parts in kept if p is not None and p.requires_grad]
    return torch.stack([r @ r.T for r in rows]).sum(0)


def _shared_linear(module: nn.Linear, uses: list[tuple[Tensor, Tensor]]) -> Tensor:
    pairs = [(x.reshape(-1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])) for x, g in uses]
    return _of_shared_products(module, *_shared_positions(pairs))


def _shared_convolution(module: nn.Conv2d, uses: list[tuple[Tensor, Tensor]]) -> Tensor:
    pairs = [(_patches(module, x).flatten(0, 1), g.flatten(3).mT.flatten(1, 2)) for x, g in uses]
    a, b = _shared_positions(pairs)
    parts = zip(a.chunk(module.groups, -1), b.chunk(module.groups, -1), strict=True)
    return torch.stack([_of_shared_products(module, x, g) for x, g in parts]).sum(0)


def _shared_embedding(module: nn.Embedding, uses: list[tuple[Tensor, Tensor]]) -> Tensor:
    index = torch.cat([x.reshape(-1) for x, _ in uses])
    b = torch.cat([g.reshape(len(g), -1, g.shape[-1]) for _, g in uses], 1)
    if module.padding_idx is not None:
        b = torch.where((index == module.padding_idx)[:, None], 0, b)
    words, place = index.unique(return_inverse=True)
    rows = b.new_zeros(len(b), len(words), b.shape[-1]).index_add_(1, place, b).flatten(1)
    return rows @ rows.T


def _shared_norm(module: nn.LayerNorm | nn.GroupNorm, uses: list[tuple[Tensor, Tensor]]) -> Tensor:
    products, shifts = [], []
    summed: tuple[int, ...]
    for x, g in uses:
        if isinstance(module, nn.LayerNorm):
            normed, size = F.layer_norm(x, module.normalized_shape, eps=module.eps), module.normalized_shape
            shape, summed = (len(g), -1, math.prod(size)), (1,)
        else:
            normed = F.group_norm(x, module.num_groups, eps=module.eps)
            shape, summed = (len(g), *x.shape[:2], -1), (1, 3)
        products.append((normed * g).reshape(shape).sum(summed))
        shifts.append(g.reshape(shape).sum(summed))
    return _of_scale_and_shift(module, products, shifts)


def _shared_positions(uses: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All calls of a layer are more positions, ``[positions, inputs]`` and ``[m, positions, outputs]``."""
    return torch.cat([x for x, _ in uses]), torch.cat([g for _, g in uses], 1)


def _of_shared_products(module: nn.Linear | nn.Conv2d, a: Tensor, b: Tensor) -> Tensor:
    """Gradients ``sum_p b_ip a_p^T`` of a weight: ``G_ij = <B_i, (A A^T) B_j>``, or by the rows, whichever is less."""
    (positions, inputs), (m, _, outputs) = a.shape, b.shape
    total = a.new_zeros(m, m)
    if module.weight.requires_grad:
        by_rows = (positions + m) * m * inputs * outputs
        if positions**2 * inputs + (positions + m) * m * positions * outputs < by_rows:
            total = b.flatten(1) @ ((a @ a.T) @ b).flatten(1).T
        else:
            rows = (b.mT @ a).flatten(1)
            total = rows @ rows.T
    if module.bias is not None and module.bias.requires_grad:
        shifts = b.sum(1)
        total = total + shifts @ shifts.T
    return total


def _positions(uses: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All calls of a layer are more positions ``[m, positions, features]`` of one."""
    return torch.cat([x for x, _ in uses], 1), torch.cat([g for _, g in uses], 1)


def _of_products(module: nn.Linear | nn.Conv2d, a: Tensor, b: Tensor) -> Tensor:
    """Gradients ``sum_p b_p a_p^T`` of a weight, ``sum_p b_p`` of a bias."""
    m, positions, inputs = a.shape
    outputs = b.shape[-1]
    total = a.new_zeros(m, m)
    if module.weight.requires_grad:
        if positions == 1:
            total = (a[:, 0] @ a[:, 0].T) * (b[:, 0] @ b[:, 0].T)
        elif m * positions**2 * (inputs + outputs) < inputs * outputs * (positions + m):
            x, g = a.reshape(m * positions, -1), b.reshape(m * positions, -1)
            total = ((x @ x.T) * (g @ g.T)).view(m, positions, m, positions).sum((1, 3))
        else:
            rows = torch.einsum("mpo,mpi->moi", b, a).flatten(1)
            total = rows @ rows.T
    if module.bias is not None and module.bias.requires_grad:
        shifts = b.sum(1)
        total = total + shifts @ shifts.T
    return total


def _plain_linear(module: nn.Linear, x: Tensor) -> bool:
    return x.ndim >= 2


def _plain_convolution(module: nn.Conv2d, x: Tensor) -> bool:
    return x.ndim == 4 and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _plain_embedding(module: nn.Embedding, x: Tensor) -> bool:
    return x.ndim >= 1 and module.max_norm is None and not module.scale_grad_by_freq and not module.sparse


def _plain_norm(module: nn.LayerNorm | nn.GroupNorm, x: Tensor) -> bool:
    return x.ndim > (len(module.normalized_shape) if isinstance(module, nn.LayerNorm) else 1)


LAYERS: dict[type[nn.Module], tuple[Callable[[Any, Tensor], bool], _Terms, _Terms]] = {
    nn.Linear: (_plain_linear, _linear, _shared_linear),
    nn.Conv2d: (_plain_convolution, _convolution, _shared_convolution),
    nn.Embedding: (_plain_embedding, _embedding, _shared_embedding),
    nn.LayerNorm: (_plain_norm, _norm, _shared_norm),
    nn.GroupNorm: (_plain_norm, _norm, _shared_norm),
}
"""Layer to (whether a call with this input is of the plain kind, the terms of the Gramian of instances and of losses
that share their input)."""
