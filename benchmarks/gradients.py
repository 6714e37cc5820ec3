"""The blocks of gradients against their peers. ``pullback bench gradients``."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pullback.gradients import (
    ProximalSGD,
    derivative_profile,
    hypothesis_test_curve,
    integrated_gradients,
    rank_correlation,
    reduce_precision,
    selective,
    sharpness,
)
from pullback.lab.bench import Case


@cache
def _network() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    return model, torch.randn(256, 64), torch.randint(10, (256,))


def _sharpness(_: None) -> None:
    model, x, y = _network()
    loss = lambda p: F.cross_entropy(torch.func.functional_call(model, p, x), y)  # noqa: E731
    sharpness(loss, dict(model.named_parameters()), tolerance=1e-3, generator=torch.Generator().manual_seed(0))


def _sharpness_curvlinops(_: None) -> None:
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    model, x, y = _network()
    hessian = HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), [(x, y)])
    eigsh(hessian.to_scipy(), k=1, which="LA", tol=1e-3)


def _penalised(optimizer: Any, weight: Tensor) -> None:
    for _ in range(20):
        weight.grad = weight.detach()
        optimizer.step()


def _weights() -> Tensor:
    return torch.randn(512, 512, generator=torch.Generator().manual_seed(0)).requires_grad_()


@cache
def _frozen(converted: bool) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 16, 3))
    model = nn.Sequential(*layers).eval().requires_grad_(False)
    return selective(model).module if converted else model


def _images() -> Tensor:
    return torch.randn(16, 16, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()


def _memsave(x: Tensor) -> None:
    from memsave_torch.nn import convert_to_memory_saving

    convert_to_memory_saving(_frozen(False))(x).sum().backward()


def _scores() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(20_000, generator=draw), torch.rand(20_000, generator=draw) < 0.3


def _curve_sklearn(case: tuple[Tensor, Tensor]) -> None:
    from sklearn.metrics import auc, roc_curve

    fall_out, sensitivity, _ = roc_curve(case[1].numpy(), case[0].numpy(), drop_intermediate=False)
    auc(fall_out, sensitivity)


def _explained() -> Tensor:
    return torch.randn(100, 64, generator=torch.Generator().manual_seed(1))


def _integrated(x: Tensor) -> None:
    integrated_gradients(_network()[0], x, torch.zeros(64), steps=50, target=0)


def _integrated_captum(x: Tensor) -> None:
    from captum.attr import IntegratedGradients

    explainer = IntegratedGradients(_network()[0])
    explainer.attribute(x, torch.zeros_like(x), target=0, n_steps=50, return_convergence_delta=True)


def _fake_quantized(x: Tensor) -> None:
    torch.fake_quantize_per_tensor_affine(x, 1 / 16, 0, -128, 127).sum().backward()


def _rows() -> Tensor:
    _network()  # not to be drawn first inside of vmap
    return torch.randn(500, 64, generator=torch.Generator().manual_seed(2))


def _squares(x: Tensor) -> Tensor:
    return _network()[0](x).square().sum(-1)


def _diagonals_torch(x: Tensor) -> None:
    torch.func.vmap(torch.func.hessian(lambda row: _squares(row[None])[0]))(x[:50]).diagonal(dim1=1, dim2=2).mean(0)


def _ranks_scipy(x: Tensor) -> None:
    from scipy.stats import spearmanr

    for column in x.T.numpy():
        spearmanr(column, x[:, 0].numpy())


CASES = [
    Case(
        "second derivatives by 64 inputs, 50 rows",
        _rows,
        lambda x: derivative_profile(_squares, x[:50], order=2),
        {"torch.func.hessian": _diagonals_torch},
    ),
    Case(
        "rank correlations of 64 columns, 500 rows",
        _rows,
        lambda x: rank_correlation(x, x[:, 0]),
        {"scipy": _ranks_scipy},
    ),
    Case(
        "largest Hessian eigenvalue to 1e-3, 4 810 parameters",
        lambda: None,
        _sharpness,
        {"curvlinops + scipy": _sharpness_curvlinops},
    ),
    Case(
        "20 proximal steps, L1, 512 x 512",
        _weights,
        lambda w: _penalised(ProximalSGD([w], 0.1, weight=0.01), w),
        {"torch SGD, no penalty": lambda w: _penalised(torch.optim.SGD([w], 0.1), w)},
    ),
    Case(
        "frozen convolutions, forward + backward to the input, 16 x 16 x 32 x 32",
        _images,
        lambda x: _frozen(True)(x).sum().backward(),
        {"torch": lambda x: _frozen(False)(x).sum().backward(), "memsave_torch": _memsave},
    ),
    Case(
        "operating curve and area, 20 000 scores",
        _scores,
        lambda c: hypothesis_test_curve(*c),
        {"sklearn": _curve_sklearn},
    ),
    Case("integrated gradients, 100 points, 50 steps", _explained, _integrated, {"captum": _integrated_captum}),
    Case(
        "rounding to levels, forward + backward, 512 x 512",
        _weights,
        lambda w: reduce_precision(w, 16).sum().backward(),
        {"torch fake_quantize": _fake_quantized},
    ),
]
