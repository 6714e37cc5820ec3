"""What a layer adds to the Gramian of instance losses, from its input and the gradients of its output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LAYERS", "layer_gramian"]

_Terms = Callable[[Any, list[tuple[Tensor, Tensor]]], Tensor]


def layer_gramian(module: nn.Module, uses: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return ``sum_p J_p J_p^T [m, m]`` over the parameters of a layer that want a gradient.

    Args:
        module: of a class in :data:`LAYERS`.
        uses: input ``[m, ...]`` and gradient of the output ``[m, ...]`` of every call of the layer.
    """
    return LAYERS[type(module)][1](module, uses)


def _linear(module: nn.Linear, uses: list[tuple[Tensor, Tensor]]) -> Tensor:
    a, b = _positions([(x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])) for x, g in uses])
    return _of_products(module, a, b)


def _convolution(module: nn.Conv2d, uses: list[tuple[Tensor, Tensor]]) -> Tensor:
    patches = [
        (F.unfold(x, module.kernel_size, module.dilation, module.padding, module.stride).mT, g.flatten(2).mT)  # type: ignore[arg-type]
        for x, g in uses
    ]
    a, b = _positions(patches)
    groups = module.groups
    if groups == 1:
        return _of_products(module, a, b)
    parts = zip(a.chunk(groups, -1), b.chunk(groups, -1), strict=True)
    return torch.stack([_of_products(module, x, g) for x, g in parts]).sum(0)


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
    kept = [(module.weight, products), (module.bias, shifts)]
    rows = [torch.stack(parts).sum(0) for p, parts in kept if p is not None and p.requires_grad]
    return torch.stack([r @ r.T for r in rows]).sum(0)


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


LAYERS: dict[type[nn.Module], tuple[Callable[[Any, Tensor], bool], _Terms]] = {
    nn.Linear: (_plain_linear, _linear),
    nn.Conv2d: (_plain_convolution, _convolution),
    nn.Embedding: (_plain_embedding, _embedding),
    nn.LayerNorm: (_plain_norm, _norm),
    nn.GroupNorm: (_plain_norm, _norm),
}
"""Layer to (whether a call with this input is of the plain kind, the terms of the Gramian)."""
