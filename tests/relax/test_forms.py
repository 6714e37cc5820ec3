"""Every form in which torch offers a covered operation: same values, dtype and shape, a gradient, no failure inside."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pullback
from pullback.relax.rules import tensors_in

FORMS: dict[str, Callable[[Tensor], Any]] = {
    "gt operator": lambda x: x > 0.1,
    "number first": lambda x: 0.1 < x,  # noqa: SIM300
    "torch.ge": lambda x: torch.ge(x, x.flip(0)),
    "greater_equal": lambda x: torch.greater_equal(x, 0),
    "le tensor": lambda x: x.le(torch.tensor([0.1, 0.2, 0.0, 1.0, 0.3, 0.5])),
    "ne": lambda x: x != 0.5,
    "eq column": lambda x: x[:, None] == x[None],
    "isclose": lambda x: torch.isclose(x, torch.full_like(x, 0.2), atol=0.5),
    "signbit": lambda x: x.signbit(),
    "integer tensor": lambda x: x > torch.tensor([0, 1, 0, 1, 0, 1]),
    "comparison chain": lambda x: ((x > 0).int() + (x > 1).int()) >= 1,
    "mask minus": lambda x: 1 - (x > 0).int(),
    "mask plus mask": lambda x: (x > 0) + (x > 0.5),
    "mask times mask": lambda x: (x > 0) * (x < 0.5),
    "xor with bool": lambda x: True ^ (x > 0),
    "and data": lambda x: (x > 0) & torch.tensor([True, False, True, True, False, True]),
    "or data": lambda x: torch.tensor([True, False, True, True, False, True]) | (x > 0),
    "logical_not": lambda x: torch.logical_not(x > 0),
    "bitwise_not": lambda x: (x > 0).bitwise_not(),
    "any dim": lambda x: (x.view(2, 3) > 0).any(dim=1),
    "all keepdim": lambda x: torch.all(x.view(2, 3) > 0, 1, keepdim=True),
    "sum dim": lambda x: (x.view(2, 3) > 0).sum(dim=(0, 1)),
    "sum dtype": lambda x: (x > 0).sum(dtype=torch.float32),
    "cumsum": lambda x: (x > 0).cumsum(0),
    "prod": lambda x: (x > -5).prod(),
    "half": lambda x: (x > 0).half(),
    "to device": lambda x: (x > 0).to("cpu", torch.int32),
    "type_as": lambda x: (x > 0).type_as(x),
    "bool of float": lambda x: x.bool(),
    "view masks": lambda x: (x > 0).view(2, 3).t().unsqueeze(0).float(),
    "mask at plain index": lambda x: (x > 0)[1:4].double(),
    "mask of rows": lambda x: (x > 0)[torch.tensor([0, 2])],
    "where scalar": lambda x: torch.where(x > 0, 1, x),
    "where broadcast": lambda x: torch.where((x > 0)[:, None], x[None], 0.0),
    "where bools": lambda x: torch.where(x > 0, x > 1, x < -1),
    "masked_fill bool": lambda x: (x > 0).masked_fill(x < 0.5, False),
    "masked_fill -inf": lambda x: torch.masked_fill(x, x < 0, -torch.inf),
    "argmax keepdim": lambda x: x.view(2, 3).argmax(-1, keepdim=True),
    "argmax flat": lambda x: x.view(2, 3).argmax(),
    "index slices": lambda x: torch.arange(24.0).view(2, 3, 4)[:, x.view(2, 3).argmax(1)],
    "index mixed": lambda x: torch.arange(24.0).view(2, 3, 4)[torch.tensor([1, 0]), :, x.view(2, 3).argmax(1)],
    "index adjacent": lambda x: torch.arange(24.0).view(2, 3, 4)[:, x.view(2, 3).argmax(1), torch.tensor([3, 0])],
    "index int first": lambda x: torch.arange(24.0).view(2, 3, 4)[1, ..., x.view(2, 3).argmax(1)],
    "index none": lambda x: x[None, x.argsort()],
    "index matrix": lambda x: torch.arange(12.0).view(6, 2)[x.view(2, 3).argsort(1)],
    "index into integers": lambda x: torch.tensor([4, 2, 7, 1, 0, 3])[x.argsort()],
    "index into masks": lambda x: torch.tensor([True, False, True, False, True, True])[x.argmax()],
    "negative": lambda x: torch.arange(6.0)[x.argmax() - 6],
    "index list": lambda x: torch.stack([x[i] for i in x.argsort()[:2]]),
    "cat indices": lambda x: torch.arange(6.0)[torch.cat([x.argsort()[:2], x.topk(1).indices])],
    "index float": lambda x: x.argmax() / 2 + x.argmin().float() ** 2,
    "index minus index": lambda x: x.argmax() - x.argmin(),
    "index equal index": lambda x: x[:3].argmax() == x[3:].argmax(),
    "gather last": lambda x: x.view(2, 3).gather(-1, x.view(2, 3).topk(2, -1).indices),
    "gather first": lambda x: torch.gather(x.view(3, 2), 0, x.view(3, 2).argsort(0)),
    "take": lambda x: torch.take(x, x.argsort()),
    "take_along_dim": lambda x: torch.take_along_dim(x, x.argsort()),
    "index_select rows": lambda x: torch.index_select(x.view(3, 2), 0, x.view(3, 2).argmax(0)),
    "embedding module": lambda x: nn.Embedding.from_pretrained(torch.arange(12.0).view(6, 2))(x.argsort()),
    "one_hot": lambda x: F.one_hot(x.view(2, 3).argmax(1), 3),
    "one_hot argsort": lambda x: F.one_hot(x.argsort()).float() @ torch.arange(6.0),
    "scatter src": lambda x: torch.zeros(2, 3).scatter(1, x.view(2, 3).argsort(1), torch.arange(6.0).view(2, 3)),
    "scatter_add": lambda x: torch.zeros(6).scatter_add_(0, x.argsort(), torch.ones(6)),
    "index_add": lambda x: torch.zeros(6).index_add(0, x.argsort(), x),
    "index_fill": lambda x: torch.zeros(6).index_fill(0, x.topk(2).indices, 2.0),
    "index_put": lambda x: torch.zeros(6).index_put_((x.topk(2).indices,), torch.tensor(2.0)),
    "set row": lambda x: _set(torch.zeros(2, 3), (torch.arange(2), x.view(2, 3).argmax(1)), 1.0),
    "set by mask": lambda x: _set(torch.zeros(6, dtype=torch.long), x > 0, 3),
    "max": lambda x: x.max(),
    "max dim": lambda x: torch.max(x.view(2, 3), 1, True),
    "min keyword": lambda x: x.view(2, 3).min(dim=0, keepdim=True),
    "max of two": lambda x: torch.max(x, x.flip(0)),
    "amin dims": lambda x: x.view(1, 2, 3).amin(dim=(0, 2), keepdim=True),
    "aminmax": lambda x: x.aminmax(),
    "aminmax dim": lambda x: torch.aminmax(x.view(2, 3), dim=1),
    "fmax": lambda x: torch.fmax(x, torch.zeros(6)),
    "minimum": lambda x: x.minimum(torch.tensor(0.3)),
    "sort": lambda x: torch.sort(x.view(2, 3), dim=0, descending=True),
    "sort stable": lambda x: x.sort(stable=True),
    "topk smallest": lambda x: x.topk(3, largest=False),
    "kthvalue": lambda x: x.view(2, 3).kthvalue(2, 1, True),
    "median": lambda x: x.median(),
    "median dim": lambda x: x.view(2, 3).median(1),
    "nanmedian": lambda x: x.nanmedian(),
    "quantile": lambda x: x.quantile(torch.tensor([0.1, 0.5])),
    "quantile dim": lambda x: torch.quantile(x.view(2, 3), 0.3, dim=1, keepdim=True, interpolation="nearest"),
    "argsort twice": lambda x: x.view(2, 3).argsort(1).argsort(1),
    "searchsorted": lambda x: torch.searchsorted(torch.tensor([-0.5, 0.0, 1.0]), x),
    "round": torch.round,
    "round decimals": lambda x: x.round(decimals=1),
    "floor ceil trunc": lambda x: (x.floor(), x.ceil(), x.trunc(), x.fix(), x.frac()),
    "floor divide": lambda x: (x // 0.3, 1.0 // (x.abs() + 1), torch.floor_divide(x, 0.2)),
    "remainder": lambda x: (x % 0.4, torch.fmod(x, 0.4), 3 % (x.abs() + 1)),
    "div floor": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
    "sign": lambda x: (x.sign(), x.sgn(), torch.heaviside(x, torch.zeros(()))),
    "clamp": lambda x: (
        x.clamp(-1, 1),
        torch.clip(x, max=0.5),
        x.clamp_min(0),
        x.clamp(torch.zeros(6), x.detach() + 1),
    ),
    "relu": lambda x: (F.relu(x), x.relu(), torch.relu(x), nn.ReLU6()(x), nn.Hardtanh()(x), nn.Threshold(0.1, 2.0)(x)),
    "abs": lambda x: (abs(x), x.absolute(), torch.abs(x)),
    "in place": lambda x: (x * 1).round_().add_(1).clamp_(0, 2),
    "in place modules": lambda x: nn.Hardtanh(inplace=True)(F.relu(x * 1, inplace=True)),
    "in place operators": lambda x: _inplace(x),
    "casts": lambda x: (x.long(), x.int(), (x * 3).to(torch.uint8), x.short().float()),
    "rounded": lambda x: (x * 3).round().clamp(-2, 2).long() == 1,
    "rounded parity": lambda x: (x * 3).round() % 2,
}


def _set(target: Tensor, index: Any, value: Any) -> Tensor:
    target[index] = value
    return target


def _inplace(x: Tensor) -> tuple[Tensor, ...]:
    y, n, m = x * 2, torch.zeros(6, dtype=torch.long), torch.zeros(6, dtype=torch.bool)
    y *= x > 0
    n += x > 0
    m |= x > 0
    m.logical_not_()
    y //= 0.3
    return y, n, m


def data(dtype: torch.dtype) -> Tensor:
    return torch.tensor([0.7, -0.4, 0.25, 1.6, -1.1, 0.05], dtype=dtype)


@pytest.mark.parametrize("name", FORMS)
def test_form(name: str) -> None:
    form, x = FORMS[name], data(torch.float32).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = list(tensors_in(_listed(form(x.detach()))))
        with pullback.relaxed() as r:
            relaxed = list(tensors_in(_listed(form(x))))
            values = [t if t.is_floating_point() else t.double() for t in relaxed]
    assert [c.reason for c in r.calls if c.status == "dropped"] == []
    assert len(plain) == len(relaxed)
    for a, b in zip(plain, relaxed, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert torch.equal(a, torch.as_tensor(b.tolist(), dtype=a.dtype).view(a.shape))
    for value in values:
        assert value.requires_grad, name
        (gradient,) = torch.autograd.grad(value.double().sum(), x, retain_graph=True)
        assert torch.isfinite(gradient).all()


def _listed(result: Any) -> Any:
    return result if isinstance(result, Tensor) else list(result)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    x = data(dtype).requires_grad_()
    with pullback.relaxed():
        y = (x > 0).to(dtype).sum() + x.round().sum() + x.relu().sum() + x.sort().values[0] + x[x.argmax()]
    z = x.detach()
    plain = (z > 0).to(dtype).sum() + z.round().sum() + z.relu().sum() + z.sort().values[0] + z[z.argmax()]
    assert torch.equal(y.detach(), plain)
    (gradient,) = torch.autograd.grad(y, x)
    assert gradient.dtype == dtype
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("shape", [(0,), (1,), (), (2, 0)])
def test_empty_and_single(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pullback.relaxed():
            y = (x > 0).float().sum() + x.round().sum() + x.relu().sum() + x.sort().values.sum()
    assert y.item() == 4 * x.numel()
    y.backward()
    assert torch.isfinite(x.grad).all()
