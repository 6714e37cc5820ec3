"""The blocks of optim against their peers. ``pullback bench optim``."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pullback.lab.bench import Case
from pullback.optim import (
    ComplexMomentumAdam,
    ComplexMomentumSGD,
    aggregate,
    instance_losses,
    jacobian_backward,
    loss_gramian,
    upgrad_weights,
)


@cache
def _conflicting(objectives: int, dimensions: int) -> Tensor:
    return torch.randn(objectives, dimensions, generator=torch.Generator().manual_seed(0))


def _gramian(objectives: int) -> Tensor:
    jacobian = _conflicting(objectives, objectives // 2 + 1)  # fewer dimensions than objectives: they conflict
    return jacobian @ jacobian.T


def _upgrad_torchjd(jacobian: Tensor) -> Any:
    from torchjd.aggregation import UPGrad

    return UPGrad()(jacobian)


def _weights_torchjd(gramian: Tensor) -> Any:
    from torchjd.aggregation import UPGradWeighting

    return UPGradWeighting()(gramian)


def _mgda_torchjd(jacobian: Tensor) -> Any:
    from torchjd.aggregation import MGDA

    return MGDA()(jacobian)


@cache
def _network() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    layers = (nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    return nn.Sequential(*layers), torch.randn(32, 784), torch.randint(10, (32,))


def _losses() -> Tensor:
    model, x, y = _network()
    return instance_losses(nn.functional.cross_entropy, model(x), y)


@cache
def _engine() -> Any:
    from torchjd.autogram import Engine

    model = copy.deepcopy(_network()[0])  # it leaves hooks behind
    return Engine(model, batch_dim=0), model


def _gramian_torchjd(_: None) -> None:
    engine, model = _engine()
    _, x, y = _network()
    engine.compute_gramian(instance_losses(nn.functional.cross_entropy, model(x), y))


def _rows_torch(_: None) -> None:
    model, x, y = _network()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(p: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, p, one[None]), label[None])

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, y)
    matrix = torch.cat([g.flatten(1) for g in each.values()], 1)
    matrix @ matrix.T


def _million(*ends: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 784), nn.ReLU(), nn.Linear(784, 480), nn.ReLU(), *ends)


class _Examples:
    """A step of SGD on a network of 997 050 weights, with one loss an example."""

    def __init__(self, m: int) -> None:
        self.model = _million(nn.Linear(480, 10))
        self.x, self.y = torch.randn(m, 784), torch.randint(10, (m,))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-4)

    def losses(self) -> Tensor:
        return instance_losses(nn.functional.cross_entropy, self.model(self.x), self.y)

    def ours(self) -> None:
        self.optimizer.zero_grad()
        jacobian_backward(self.losses, self.model, method="gramian")
        self.optimizer.step()

    def torchjd(self) -> None:
        from torchjd.aggregation import UPGrad
        from torchjd.autojac import backward, jac_to_grad

        self.optimizer.zero_grad()
        backward(self.losses())
        jac_to_grad(self.model.parameters(), UPGrad())
        self.optimizer.step()

    def autogram(self) -> None:
        from torchjd.aggregation import UPGradWeighting

        if not hasattr(self, "engine"):
            from torchjd.autogram import Engine

            self.watched = copy.deepcopy(self.model)  # it leaves hooks behind
            self.engine = Engine(self.watched, batch_dim=0)
            self.watched_optimizer = torch.optim.SGD(self.watched.parameters(), 1e-4)
        self.watched_optimizer.zero_grad()
        losses = instance_losses(nn.functional.cross_entropy, self.watched(self.x), self.y)
        losses.backward(UPGradWeighting()(self.engine.compute_gramian(losses)))
        self.watched_optimizer.step()

    def floor(self) -> None:
        self.optimizer.zero_grad()
        self.losses().mean().backward()
        self.optimizer.step()


class _Tasks(_Examples):
    """The same with a trunk of 992 240 weights, 32 examples and one head of ten classes a task."""

    def __init__(self, m: int) -> None:
        self.model = _million()
        self.heads = nn.ModuleList(nn.Linear(480, 10) for _ in range(m))
        self.every = nn.ModuleList([self.model, self.heads])
        self.x, self.y = torch.randn(32, 784), torch.randint(10, (m, 32))
        self.optimizer = torch.optim.SGD(self.every.parameters(), 1e-4)

    def of(self, features: Tensor) -> list[Tensor]:
        return [nn.functional.cross_entropy(head(features), y) for head, y in zip(self.heads, self.y, strict=True)]

    def ours(self) -> None:
        self.optimizer.zero_grad()
        jacobian_backward(lambda: self.of(self.model(self.x)), self.every, method="gramian", instances=False)
        self.optimizer.step()

    def torchjd(self) -> None:
        from torchjd.aggregation import UPGrad
        from torchjd.autojac import jac_to_grad, mtl_backward

        self.optimizer.zero_grad()
        features = self.model(self.x)
        mtl_backward(self.of(features), features)
        jac_to_grad(self.model.parameters(), UPGrad())
        self.optimizer.step()

    def floor(self) -> None:
        self.optimizer.zero_grad()
        sum(self.of(self.model(self.x))).backward()  # type: ignore[union-attr]
        self.optimizer.step()


@cache
def _examples(m: int) -> _Examples:
    return _Examples(m)


@cache
def _tasks(m: int) -> _Tasks:
    return _Tasks(m)


@cache
def _optimizer(kind: Any, **options: Any) -> torch.optim.Optimizer:
    """An optimizer whose state is there already."""
    params = [nn.Parameter(torch.randn(256, 256)) for _ in range(20)]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = kind(params, 1e-3, **options)
    optimizer.step()
    return optimizer


CASES = [
    *(
        Case(
            f"UPGrad weights, {m} objectives",
            lambda m=m: _gramian(m),
            upgrad_weights,
            {"torchjd": _weights_torchjd},
        )
        for m in (8, 32, 64)
    ),
    *(
        Case(
            f"UPGrad of a Jacobian [{m}, 10^6], of which J J^T is the floor",
            lambda m=m: _conflicting(m, 1_000_000),
            lambda j: aggregate(j),
            {"torchjd": _upgrad_torchjd, "J J^T alone": lambda j: j @ j.T},
        )
        for m in (8, 64)
    ),
    *(
        Case(
            f"a step of UPGrad, {m} losses of examples, 10^6 parameters",
            lambda m=m: _examples(m),
            _Examples.ours,
            {
                "torchjd backward": _Examples.torchjd,
                "torchjd autogram": _Examples.autogram,
                "torch, of their mean": _Examples.floor,
            },
        )
        for m in (8, 64)
    ),
    *(
        Case(
            f"a step of UPGrad, {m} tasks, 32 examples, 10^6 shared parameters",
            lambda m=m: _tasks(m),
            _Tasks.ours,
            {"torchjd mtl_backward": _Tasks.torchjd, "torch, of their sum": _Tasks.floor},
        )
        for m in (8, 64)
    ),
    Case(
        "MGDA, 16 objectives, 10^4 parameters",
        lambda: _conflicting(16, 10_000),
        lambda j: aggregate(j, method="mgda"),
        {"torchjd": _mgda_torchjd},
    ),
    Case(
        "Gramian of 32 losses, 270 000 weights",
        lambda: None,
        lambda _: loss_gramian(_losses, _network()[0], check=False),
        {"torchjd autogram": _gramian_torchjd, "torch.func rows": _rows_torch},
    ),
    Case(
        "UPGrad's backward pass of 32 losses",
        lambda: None,
        lambda _: jacobian_backward(_losses, _network()[0], method="gramian", check=False),
        {"torch, of their mean": lambda _: _losses().mean().backward()},
    ),
    Case(
        "complex momentum, 20 x 256 x 256",
        lambda: None,
        lambda _: _optimizer(ComplexMomentumSGD).step(),
        {"torch SGD, momentum": lambda _: _optimizer(torch.optim.SGD, momentum=0.8, foreach=True).step()},
    ),
    Case(
        "complex Adam, 20 x 256 x 256",
        lambda: None,
        lambda _: _optimizer(ComplexMomentumAdam).step(),
        {"torch Adam": lambda _: _optimizer(torch.optim.Adam, foreach=True).step()},
    ),
]
