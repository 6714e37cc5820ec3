"""Contracts of the layers that keep what the active gradients need."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from pullback.gradients import needed_for_backward, selective_ops
from tests.contracts.contract import Bad, Call, Contract, Exempt, Measurement

_FIXED = "the first dimension is that of the batch already"
_STATISTICS = (torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.3, 1.0, 2.0]))


def _draws(*shapes: tuple[int, ...]) -> Any:
    return lambda g: [Call(tuple(torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes))]


def _correlated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A sum over the kernel's places, stride 2, one zero on each side."""
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    high, wide = ((size - kernel) // 2 + 1 for size, kernel in zip(padded.shape[2:], weight.shape[2:], strict=True))
    total = bias[:, None, None].expand(len(x), -1, high, wide)
    for i, j in itertools.product(*map(range, weight.shape[2:])):
        part = padded[:, :, i : i + 2 * high - 1 : 2, j : j + 2 * wide - 1 : 2]
        total = total + torch.einsum("bchw,oc->bohw", part, weight[..., i, j])
    return total


def _spread(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Every entry writes a kernel, at places two apart."""
    out = bias[:, None].expand(len(x), -1, 2 * (x.shape[2] - 1) + weight.shape[2]).clone()
    for place, k in itertools.product(range(x.shape[2]), range(weight.shape[2])):
        out[:, :, 2 * place + k] += x[:, :, place] @ weight[:, :, k]
    return out


def _batch_norm(x: Tensor, weight: Tensor, bias: Tensor, **words: Any) -> Tensor:
    mean, variance = (each.to(x) for each in _STATISTICS)
    return selective_ops.batch_norm(x, mean, variance, weight, bias, **words)


def _by_running(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean, variance = (each.to(x)[:, None] for each in _STATISTICS)
    return (x - mean) / (variance + 1e-5).sqrt() * weight[:, None] + bias[:, None]


def _by_rows(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * weight + bias


def _by_groups(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    rows = x.reshape(len(x), 2, -1)
    rows = (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    return rows.view(x.shape) * weight[:, None] + bias[:, None]


def _windows(x: Tensor) -> Tensor:
    return torch.stack([x[..., i : i + 3].amax(-1) for i in range(0, x.shape[-1] - 2, 2)], -1)


def _needed(x: Tensor, layer: nn.Module | None = None, active: tuple[str, ...] = ("input", "weight")) -> Tensor:
    return torch.tensor(list(needed_for_backward(layer or nn.LayerNorm(4), x, active).values()))


_NORM = "large: squares of the deviations overflow, as in torch's function"
_X, _ZEROS = torch.zeros(2, 4, 5), torch.zeros(4)

CONTRACTS = [
    Contract(
        "gradients.selective_ops.conv",
        lambda x, w, b, **words: selective_ops.conv(x, w, b, **{"stride": 2, "padding": 1} | words),
        _draws((2, 2, 5, 4), (3, 2, 3, 2), (3,)),
        reference=_correlated,
        large_limit=1e4,
        batched=False,
        why=f"{_FIXED}; sums of products overflow beyond",
        bad=[
            Bad((_X, torch.zeros(4, 4), None), {}, ValueError, "weight must have 3 to 5 dimensions"),
            Bad((_X.long(), torch.zeros(4, 4, 1), None), {}, TypeError, "x must be a floating tensor"),
            Bad((_X, torch.zeros(4, 4, 1), None), {"padding": "samt"}, ValueError, "padding must be numbers"),
        ],
    ),
    Contract(
        "gradients.selective_ops.conv_transpose",
        lambda x, w, b, **words: selective_ops.conv_transpose(x, w, b, **{"stride": 2} | words),
        _draws((2, 3, 4), (3, 2, 3), (2,)),
        reference=_spread,
        large_limit=1e4,
        batched=False,
        why=f"{_FIXED}; sums of products overflow beyond",
        bad=[Bad((_X, torch.zeros(4, 4), None), {}, ValueError, "weight must have 3 to 5 dimensions")],
    ),
    Contract(
        "gradients.selective_ops.batch_norm",
        _batch_norm,
        _draws((2, 3, 4), (3,), (3,)),
        reference=_by_running,
        large_limit=1e4,
        batched=False,
        why=f"{_FIXED}; products overflow beyond",
        bad=[Bad((torch.zeros(2, 3), None, None), {"eps": 0.0}, ValueError, "eps must be > 0, got 0.0")],
    ),
    Contract(
        "gradients.selective_ops.layer_norm",
        lambda x, w, b, **words: selective_ops.layer_norm(x, **{"normalized_shape": 5, "weight": w, "bias": b} | words),
        _draws((3, 5), (5,), (5,)),
        reference=_by_rows,
        large=(),
        why=_NORM,
        bad=[
            Bad((_X, None, None), {"normalized_shape": 4}, ValueError, "x must end in the dimensions"),
            Bad((_X, None, None), {"eps": -1.0}, ValueError, "eps must be > 0, got -1.0"),
        ],
    ),
    Contract(
        "gradients.selective_ops.group_norm",
        lambda x, w, b, **words: selective_ops.group_norm(x, **{"num_groups": 2, "weight": w, "bias": b} | words),
        _draws((2, 4, 3), (4,), (4,)),
        reference=_by_groups,
        large=(),
        batched=False,
        why=f"{_NORM}; {_FIXED}",
        bad=[
            Bad((_X, None, None), {"num_groups": 3}, ValueError, "x must have channels that 3 groups divide"),
            Bad((_X, None, None), {"num_groups": 0}, ValueError, "num_groups must be an integer >= 1, got 0"),
        ],
    ),
    Contract(
        "gradients.selective_ops.relu",
        selective_ops.relu,
        _draws((3, 11)),
        reference=lambda x: torch.where(x > 0, x, 0),
        bad=[Bad((torch.arange(3),), {}, TypeError, "x must be a floating tensor, got torch.int64")],
    ),
    Contract(
        "gradients.selective_ops.dropout",
        lambda x, p=0.0: selective_ops.dropout(x, p),
        _draws((3, 5)),
        reference=lambda x: x,
        bad=[Bad((_X,), {"p": 1.5}, ValueError, "p must be in")],
    ),
    Contract(
        "gradients.selective_ops.max_pool",
        lambda x, **words: selective_ops.max_pool(x, 3, 2, **{"dims": 1} | words),
        _draws((2, 2, 8)),
        reference=_windows,
        batched=False,
        why=_FIXED,
        bad=[
            Bad((_X,), {"dims": 4}, ValueError, r"dims must be in 1\.\.3, got 4"),
            Bad((_X.long(),), {}, TypeError, "x must be a floating tensor"),
        ],
    ),
    Measurement(
        "gradients.needed_for_backward",
        _needed,
        _draws((3, 4)),
        reference=lambda x: torch.tensor([x.nbytes, 2 * 3 * x.element_size()]),
        bad=[
            Bad((_X,), {"active": ("inputs",)}, ValueError, "active must be one of"),
            Bad((_X,), {"layer": nn.LSTM(2, 2)}, TypeError, "layer must be one of the table"),
        ],
    ),
    Exempt(
        "gradients.selective",
        "changes a module in place",
        "gradients/test_selective.py",
    ),
    Exempt(
        "gradients.restore",
        "changes a module in place",
        "gradients/test_selective.py",
    ),
]
