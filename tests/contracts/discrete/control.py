"""Contracts of control: against the stream by hand, block by block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pullback import discrete
from pullback.core.checks import check_floating, check_shape
from tests.contracts.contract import Bad, Call, Exempt, Module


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(2, 2)

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        return h + torch.tanh(self.mix(h.movedim(1, -1))).movedim(-1, 1) * time[:, :1, None]


class _Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.blocks = nn.Identity(), nn.Identity(), nn.ModuleList([_Block(), _Block()])

    def embed(self, time: Tensor) -> Tensor:
        return torch.stack([time, time.cos()], 1)


def _filled(module: nn.Module, generator: torch.Generator) -> nn.Module:
    for parameter in module.parameters():
        nn.init.uniform_(parameter.data, -1, 1, generator=generator)
    return module


def _net(generator: torch.Generator) -> nn.Module:
    net = discrete.ControlledNet(_Base(), nn.Identity(), 2, 2, routed=False)
    return _filled(net, generator).double()


def _block(generator: torch.Generator) -> nn.Module:
    return _filled(discrete.ControlledBlock(_Block(), None, 2), generator).double()


_GATES = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
_TIMES = torch.tensor([0.3, 0.7, 0.9])


def _steered(module: Any, x: Tensor, condition: Tensor) -> Tensor:
    check_shape("x", check_floating("x", x), (3, 2, 4))  # what the base takes
    gates, times = _GATES.to(x), _TIMES.to(x)
    result: Tensor = module(x, condition, times, gates=gates).output
    return result


def _by_hand(x: Tensor, condition: Tensor) -> Tensor:
    """All copies run, and masks."""
    net: Any = _net(torch.Generator().manual_seed(0))
    with torch.no_grad():
        time = net.base.embed(_TIMES.to(x))
        h, u = x, x + net.zero(condition.movedim(1, -1)).movedim(-1, 1)
        for number, control in enumerate(net.controls):
            g = _GATES[:, number].to(x)[:, None, None]
            said = control.copy(u, time)
            h = control.block(h, time) + g * control.zero(said.movedim(1, -1)).movedim(-1, 1)
            u = torch.where(g > 0, said, u)
        return h


def _gated(module: Any, h: Tensor, u: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = module(h, u, torch.ones(len(h), 1).to(h), gates)
    return result


def _pair(generator: torch.Generator) -> list[Call]:
    x, condition = torch.randn(2, 3, 2, 4, generator=generator, dtype=torch.float64)
    return [Call((x, condition))]


def _triple(generator: torch.Generator) -> list[Call]:
    h, u = torch.randn(2, 3, 2, 4, generator=generator, dtype=torch.float64)
    return [Call((h, u, torch.rand(3, generator=generator, dtype=torch.float64)))]


def _gated_by_hand(h: Tensor, u: Tensor, gates: Tensor) -> tuple[Tensor, Tensor]:
    module: Any = _block(torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = u + torch.tanh(module.copy.mix(u.movedim(1, -1))).movedim(-1, 1)
        plain = h + torch.tanh(module.block.mix(h.movedim(1, -1))).movedim(-1, 1)
        g = gates[:, None, None]
        return plain + g * module.zero(said.movedim(1, -1)).movedim(-1, 1), g * said + (1 - g) * u


def _logit(features: Tensor, time: Tensor) -> Tensor:
    router: Any = _router(torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows = torch.cat([features.mean(-1), time], 1) @ router.hidden.weight.T + router.hidden.bias
        return (rows / (1 + torch.exp(-rows))) @ router.logit.weight[0] + 1


def _router(generator: torch.Generator) -> nn.Module:
    return discrete.GateRouter(2, 3, 5, generator=generator).double()


CONTRACTS = [
    Module(
        "discrete.GateRouter",
        lambda module, x, t: module(x, t),
        lambda g: [
            Call(
                (
                    torch.randn(4, 2, 5, generator=g, dtype=torch.float64),
                    torch.randn(4, 3, generator=g, dtype=torch.float64),
                )
            )
        ],
        _logit,
        build=_router,
        batched=False,
        vmap=False,
        large_limit=1e4,
        half_tolerance=0.1,
        bad=[
            Bad((torch.ones(2, 3, 4), torch.ones(2, 3)), {}, ValueError, r"features must have shape \(b, 2, ...\)"),
            Bad((torch.ones(2, 2, 4), torch.ones(2, 4)), {}, ValueError, "time must have shape"),
            Bad((torch.ones(2, 2).long(), torch.ones(2, 3)), {}, TypeError, "features must be a floating tensor"),
        ],
        why="the first dimension is that of the samples; means of the largest numbers overflow",
    ),
    Module(
        "discrete.ControlledBlock",
        _gated,
        _triple,
        _gated_by_hand,
        build=_block,
        idle=("block.mix.weight", "block.mix.bias"),
        batched=False,
        vmap=False,
        compile=False,
        large=(),
        half_tolerance=0.1,
        why="the first dimension is that of the samples; whether gates have a gradient decides what is run",
    ),
    Module(
        "discrete.ControlledNet",
        _steered,
        _pair,
        _by_hand,
        build=_net,
        idle=(
            "base.blocks.0.mix.weight",
            "base.blocks.0.mix.bias",
            "base.blocks.1.mix.weight",
            "base.blocks.1.mix.bias",
        ),
        batched=False,
        vmap=False,
        compile=False,
        large=(),
        half_tolerance=0.1,
        why="the first dimension is that of the samples, of which the open ones are gathered",
    ),
    Exempt("discrete.opening_rates", "a table of means, by spans of time", "discrete/test_control.py"),
]
