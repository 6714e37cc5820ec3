"""Contracts of proximal steps and of masks made by them: against scalings of a matrix, written out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pullback import transport
from pullback.core.checks import check_floating, check_shape
from tests.contracts.contract import Bad, Call, Contract, Exempt, Module


def _masses(g: torch.Generator, *shape: int) -> Tensor:
    x = torch.rand(*shape, generator=g, dtype=torch.float64) + 0.1
    return x / x.sum(-1, keepdim=True)


def _step(
    cost: Tensor, log_plan: Tensor, g: Tensor, a: Tensor | None = None, b: Tensor | None = None, **options: float
) -> transport.ProximalState:
    state = transport.ProximalState(log_plan, g)
    return transport.proximal_sinkhorn(cost, state, a, b, **({"epsilon": 0.7} | options))  # type: ignore[arg-type]


def _scaled(
    cost: Tensor,
    log_plan: Tensor,
    g: Tensor,
    a: Tensor | None = None,
    b: Tensor | None = None,
    epsilon: float = 0.7,
    sweeps: int = 1,
) -> tuple[Tensor, Tensor]:
    """Row by row and column by column, without logarithms."""
    if cost.ndim > 2:
        each = [_scaled(*one, epsilon=epsilon, sweeps=sweeps) for one in zip(cost, log_plan, g, a, b, strict=True)]  # type: ignore[arg-type]
        return tuple(torch.stack(parts) for parts in zip(*each, strict=True))  # type: ignore[return-value]
    (n, m), v = cost.shape, torch.exp(g / epsilon)
    kernel = torch.exp(log_plan) * torch.exp(-cost / epsilon)
    rows = a.tolist() if a is not None else n * [1 / n]
    columns = b.tolist() if b is not None else m * [1 / m]
    for _ in range(sweeps):
        u = torch.stack([rows[i] / (kernel[i] @ v) for i in range(n)])
        v = torch.stack([columns[j] / (kernel[:, j] @ u) for j in range(m)])
    return u[:, None] * kernel * v, epsilon * v.log()


def _sampled(g: torch.Generator) -> list[Call]:
    return [
        Call(
            (
                torch.randn(2, 3, 2, generator=g, dtype=torch.float64),
                torch.randn(2, 3, 2, generator=g, dtype=torch.float64) - 2,
                torch.randn(2, 2, generator=g, dtype=torch.float64),
                _masses(g, 2, 3),
                _masses(g, 2, 2),
            ),
            {"sweeps": 2},
        ),
        Call(
            (
                torch.randn(2, 4, generator=g, dtype=torch.float64),
                torch.randn(2, 4, generator=g, dtype=torch.float64),
                torch.randn(4, generator=g, dtype=torch.float64),
            )
        ),
    ]


def _fresh(mask: nn.Module, x: Tensor) -> Tensor:
    """The second step from the even mask, whose state moves."""
    assert isinstance(mask, transport.TransportMask)
    mask.reset()
    mask()
    return x * mask()


def _by_hand(x: Tensor) -> Tensor:
    """Two scalings of a matrix, of five entries of which two are kept."""
    module = _mask(torch.Generator().manual_seed(0))
    s = module.scores.detach().double()
    s = (s - s.mean()) / s.std(correction=0)
    target = torch.tensor([0.4, 0.6], dtype=torch.float64)
    plan, v = 0.2 * target.expand(5, 2), torch.ones(2).double()
    for _ in range(2):
        plan = plan * torch.stack([torch.exp(s / 1.5), torch.ones_like(s)], 1)
        u = 0.2 / (plan @ v)
        v = target / (u @ plan)
        plan = u[:, None] * plan * v
    return x * 5 * plan[:, 0]


def _mask(generator: torch.Generator) -> transport.TransportMask:
    return transport.TransportMask(5, 2, epsilon=1.5, generator=generator)


def _network(generator: torch.Generator) -> transport.MaskedModel:
    """Three of the six weights of a linear map are kept."""
    masked = transport.attach_masks(nn.Sequential(nn.Linear(3, 2, bias=False), nn.Tanh()), ["0"], 3)
    nn.init.uniform_(masked.model.get_parameter("0.weight"), -1, 1, generator=generator)
    nn.init.uniform_(masked.get_parameter("masks.0.scores"), -1, 1, generator=generator)
    masked.harden(torch.tensor([0.0, 5.0, 1.0, 4.0, 2.0, 3.0]))
    return masked


def _used(network: nn.Module, x: Tensor) -> Tensor:
    check_shape("x", check_floating("x", x), (3,))  # the network's business
    result: Tensor = network(x)
    return result


def _without_weights(x: Tensor) -> Tensor:
    kept = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]], dtype=torch.float64)
    weight = _network(torch.Generator().manual_seed(0)).model.get_parameter("0.weight").detach().double()
    return torch.tanh(x @ (kept * weight).T)


_Z, _G = torch.zeros(2, 3), torch.zeros(3)

CONTRACTS = [
    Contract(
        "transport.proximal_sinkhorn",
        _step,
        _sampled,
        reference=_scaled,
        outputs=lambda state: (state.log_plan.exp(), state.g),
        scalars={"epsilon": 0.9},
        large_limit=1e4,
        why="g of float32 is a difference of two numbers of the size of the costs",
        bad=[
            Bad((torch.zeros(3), _Z, _G), {}, ValueError, r"cost must have shape \(..., n, m\)"),
            Bad((_Z * torch.nan, _Z, _G), {}, ValueError, "cost must be finite"),
            Bad((_Z, _Z - torch.inf, _G), {}, ValueError, "log_plan must be finite"),
            Bad((_Z, torch.zeros(3, 3), _G), {}, ValueError, r"log_plan must have shape \(..., 2, 3\)"),
            Bad((_Z, _Z, torch.zeros(2)), {}, ValueError, r"g must have shape \(..., 3\)"),
            Bad((_Z, _Z.double(), _G), {}, TypeError, "cost and log_plan must have the same dtype"),
            Bad((_Z, _Z, _G, torch.tensor([1.0, 0.0])), {}, ValueError, "a must be > 0"),
            Bad((_Z, _Z, _G, None, torch.ones(2)), {}, ValueError, r"b must have shape \(..., 3\)"),
            Bad((_Z, _Z, _G), {"epsilon": 0.0}, ValueError, "epsilon must be > 0"),
            Bad((_Z, _Z, _G), {"sweeps": 0}, ValueError, "sweeps must be an integer >= 1"),
        ],
    ),
    Module(
        "transport.TransportMask",
        _fresh,
        lambda g: [Call((torch.randn(3, 5, generator=g, dtype=torch.float64),))],
        build=_mask,
        reference=_by_hand,
        forward_mode=False,
        compile=False,
        why="its state moves with each call, which transforms and graphs of scores refuse; see proximal_sinkhorn",
    ),
    Exempt("transport.attach_masks", "networks in and out", "transport/test_pruning.py"),
    Module(
        "transport.MaskedModel",
        _used,
        lambda g: [Call((torch.randn(4, 3, generator=g, dtype=torch.float64),))],
        build=_network,
        idle=("masks.0.scores",),
        reference=_without_weights,
        large_limit=1e8,
        why="a weighted sum of the largest numbers overflows",
        bad=[Bad((torch.ones(2, 4),), {}, ValueError, "x must have shape")],
    ),
]
