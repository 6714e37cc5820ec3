"""Contracts of gates: against the step, the logistic law, the stretched sigmoid by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pullback import discrete
from pullback.core.checks import check_floating, check_shape
from tests.contracts.contract import Bad, Call, Contract, Edges, Exempt, Module

_W = torch.tensor([-1.3, -0.21, 0.17, 0.93, 2.4], dtype=torch.float64)


def _weights(generator: torch.Generator) -> list[Call]:
    return [Call((_W + 0.01 * torch.rand(5, generator=generator, dtype=torch.float64),)), Call((_W[2],))]


def _step(x: Tensor) -> Tensor:
    return (x > 0).to(x)


def _toothed(w: Tensor, shape: Any) -> Tensor:
    """Entry by entry, with Python's own floor."""
    teeth = [(7 * v - (7 * v // 1)) / 7 for v in w.flatten().tolist()]
    return _step(w) + torch.tensor(teeth, dtype=w.dtype).reshape(w.shape) * shape(w)


def _bump(w: Tensor) -> Tensor:
    return 1 / torch.cosh(w / 2) ** 2


def _noisy(r: Tensor, **options: Any) -> Tensor:
    return discrete.gate(r, generator=torch.Generator().manual_seed(3), **options)


def _by_hand(r: Tensor, temperature: float = 0.7) -> Tensor:
    u = torch.rand(r.shape, dtype=r.dtype, generator=torch.Generator().manual_seed(3))
    return 1 / (1 + ((1 - u) / (u * torch.exp(r))) ** (1 / temperature))


def _built(method: str, **options: Any) -> Any:
    def build(generator: torch.Generator) -> nn.Module:
        gates = discrete.TrainableGate(5, method=method, **options)
        with torch.no_grad():
            gates.weight.copy_(_W + 0.01 * torch.rand(5, generator=generator))
        return gates

    return build


def _opened(module: Any, x: Tensor) -> Tensor:
    return x * module(generator=torch.Generator().manual_seed(1))


def _rows(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(3, 5, generator=generator, dtype=torch.float64),))]


def _network(generator: torch.Generator) -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -1, 1, generator=generator)
    gated = discrete.attach_gates(model, ["0"])
    with torch.no_grad():
        gated.gates["0"].weight.copy_(torch.tensor([0.2, -0.1, 0.3, -0.4]))
    return gated.double()


def _silenced(x: Tensor) -> Tensor:
    """By matrices without the two closed rows."""
    weights = [p.detach() for p in _network(torch.Generator().manual_seed(0)).model.parameters()]
    return torch.tanh(x @ weights[0][::2].T + weights[1][::2]) @ weights[2][:, ::2].T + weights[3]


def _use(module: nn.Module, x: Tensor) -> Tensor:
    check_shape("x", check_floating("x", x), (3,))  # the network's business
    result: Tensor = module(x)
    return result


_BAD_MODULES = [
    Bad((torch.ones(2, 4),), {}, RuntimeError, "size of tensor"),
]

CONTRACTS = [
    Contract(
        "discrete.trainable_gate",
        lambda w, **options: discrete.trainable_gate(w, slope=7.0, hard=False, **options),
        _weights,
        lambda w: _toothed(w, torch.ones_like),
        half=False,
        large=(),
        bad=[
            Bad((torch.tensor([torch.nan]),), {}, ValueError, "weight must not be NaN"),
            Bad((torch.tensor([1]),), {}, TypeError, "weight must be a floating tensor"),
            Bad((_W,), {"shaping": "sigmoyd"}, ValueError, "shaping must be .*did you mean 'sigmoid'"),
            Bad((_W,), {"shaping": 1.0}, TypeError, "shaping must be"),
            Bad((_W,), {"shaping": lambda w: w.sum()}, ValueError, r"shaping must keep the shape \(5,\)"),
        ],
        why="teeth are where the rounding of a half or of a large number puts them; see the hard form",
    ),
    Contract(
        "discrete.trainable_gate[a bump]",
        lambda w: discrete.trainable_gate(w, slope=7.0, shaping="sigmoid", hard=False),
        _weights,
        lambda w: _toothed(w, _bump),
        half=False,
        large=(),
        why="teeth are where the rounding of a half or of a large number puts them; see the hard form",
    ),
    Contract(
        "discrete.trainable_gate[a function]",
        lambda w: discrete.trainable_gate(w, slope=7.0, shaping=lambda v: torch.exp(-v.square()), hard=False),
        _weights,
        lambda w: _toothed(w, lambda v: torch.exp(-v.square())),
        half=False,
        large=(),
        why="teeth are where the rounding of a half or of a large number puts them; see the hard form",
    ),
    Contract(
        "discrete.trainable_gate[hard]",
        discrete.trainable_gate,
        _weights,
        _step,
        gradcheck=False,
        gradgradcheck=False,
        edges=Edges(_step),
        bad=[Bad((_W,), {"slope": 0.0}, ValueError, "slope must be > 0, got 0.0")],
        why="the value is a step, the derivative the shape: tests/discrete/test_gates.py",
    ),
    Contract(
        "discrete.gate",
        lambda r, **options: _noisy(r, hard=False, **({"temperature": 0.7} | options)),
        lambda g: [Call((2 * torch.randn(5, generator=g, dtype=torch.float64),))],
        _by_hand,
        hard=lambda r: (
            torch.rand(r.shape, dtype=r.dtype, generator=torch.Generator().manual_seed(3)) > 1 / (1 + r.exp())
        ).to(r),
        scalars={"temperature": 0.7},
        batched=False,
        vmap=False,
        compile=False,
        half=False,
        large=(),
        bad=[
            Bad((torch.tensor([torch.nan]),), {}, ValueError, "logits must not be NaN"),
            Bad((torch.tensor([1]),), {}, TypeError, "logits must be a floating tensor"),
            Bad((_W,), {"temperature": -1.0}, ValueError, "temperature must be >= 0"),
            Bad((_W,), {"noise": "gaussian"}, ValueError, "noise must be"),
            Bad((_W,), {"stretch": (0.1, 1.1)}, ValueError, r"stretch must hold \[0, 1\], got \(0.1, 1.1\)"),
            Bad((_W,), {"outcome": torch.ones(5)}, TypeError, "outcome must hold booleans or integers"),
            Bad((_W,), {"outcome": torch.ones(4).bool()}, ValueError, "outcome must have the shape of logits"),
            Bad((_W,), {"outcome": torch.full((5,), 2)}, ValueError, "outcome must be 0 or 1"),
        ],
        why="noise of other shapes and dtypes is other noise, and decides what a large logit loses: see the next entry",
    ),
    Contract(
        "discrete.gate[without noise]",
        lambda r, **options: discrete.gate(r, **({"temperature": 0.7, "hard": False} | options), noise=None),
        lambda g: [Call((2 * torch.randn(5, generator=g, dtype=torch.float64),))],
        lambda r: (1 + torch.tanh(r / 1.4)) / 2,
        hard=_step,
        scalars={"temperature": 0.7},
        edges=Edges(_step),
        bad=[Bad((_W,), {"outcome": torch.ones(5).bool()}, ValueError, "outcome must be None without noise")],
    ),
    Contract(
        "discrete.gate[stretched]",
        lambda r: discrete.gate(r, temperature=0.7, hard=False, noise=None, stretch=(-0.1, 1.1)),
        lambda g: [Call((_W + 0.01 * torch.rand(5, generator=g, dtype=torch.float64),))],
        lambda r: (1.2 * (1 + torch.tanh(r / 1.4)) / 2 - 0.1).clamp(0, 1),
    ),
    Module(
        "discrete.TrainableGate",
        _opened,
        _rows,
        lambda x: x * _step(_W),
        build=_built("sawtooth"),
        batched=False,
        why="gates are as many as their weights: rows of them broadcast",
        bad=_BAD_MODULES,
    ),
    Module(
        "discrete.TrainableGate[gumbel]",
        _opened,
        _rows,
        build=_built("gumbel"),
        batched=False,
        vmap=False,
        half=False,
        large=(),
        why="gates are as many as their weights; noise is not drawn under vmap, a half's is other noise",
    ),
    Module(
        "discrete.TrainableGate[hard concrete]",
        _opened,
        _rows,
        build=_built("hard_concrete"),
        batched=False,
        vmap=False,
        half=False,
        large=(),
        why="gates are as many as their weights; noise is not drawn under vmap, a half's is other noise",
    ),
    Module(
        "discrete.GatedModel",
        _use,
        lambda g: [Call((torch.randn(2, 3, generator=g, dtype=torch.float64),))],
        _silenced,
        build=_network,
        large=(),
        half_tolerance=0.1,
        compile=False,
        why="the network is that of a user, whose hooks come and go with each call",
    ),
    Exempt("discrete.NetworkCost", "counts a network, as a function of its gates", "discrete/test_gates.py"),
    Exempt(
        "discrete.attach_gates",
        "from a network to a GatedModel, whose entry stands above",
        "discrete/test_gates.py",
    ),
    Exempt("discrete.BudgetPressure", "a term of the loss that counts its calls", "discrete/test_gates.py"),
    Exempt("discrete.unit_importance", "of the weights of a network", "discrete/test_gates.py"),
    Exempt("discrete.close_smallest", "closes gates of a network", "discrete/test_gates.py"),
    Exempt(
        "discrete.prune_closed",
        "from a network to a network",
        "discrete/test_gates.py",
    ),
    Contract(
        "discrete.budget_loss",
        lambda c, t, **options: discrete.budget_loss(c, t, **options),
        lambda g: [Call((torch.tensor([0.3, 0.9, 0.52], dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)))],
        lambda c, t: c * c - 2 * c * t + t * t,
        batched=False,
        large=(),
        edges=Edges(
            lambda x: (x - x.new_tensor(0.25)).square(),
            lambda x: (x, x.new_tensor(0.25)),
            refuses=(lambda x: bool(x.isinf().any()), "cost must be finite"),
        ),
        bad=[
            Bad((torch.tensor([1]), torch.tensor(0.5)), {}, TypeError, "cost must be a floating tensor"),
            Bad((torch.ones(2), torch.tensor(0.5)), {"power": 0.5}, ValueError, "power must be >= 1, got 0.5"),
        ],
        why="one target for all costs; squares of the largest numbers overflow",
    ),
]
