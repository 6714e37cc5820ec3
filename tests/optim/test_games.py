"""Games: optimizers that are torch's at an angle of 0, who sees whose move, rates of players that move in turn."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from pullback.optim import (
    ComplexMomentumAdam,
    ComplexMomentumSGD,
    Extragradient,
    OptimisticAdam,
    OptimisticSGD,
    functional,
    game_gradient,
    game_spectrum,
    momentum_radius,
    play,
)

_TWINS: list[tuple[Any, Any]] = [
    (
        lambda p: ComplexMomentumSGD(p, 0.1, angle=0.0, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 0.1, 0.8, weight_decay=0.1),
    ),
    (
        lambda p: ComplexMomentumAdam(p, 0.1, betas=(0.9, 0.99), angle=0.0),
        lambda p: torch.optim.Adam(p, 0.1, (0.9, 0.99)),
    ),
    (lambda p: ComplexMomentumAdam(p, 0.1, betas=(0.9 + 0j, 0.99)), lambda p: torch.optim.Adam(p, 0.1, (0.9, 0.99))),
    (lambda p: OptimisticAdam(p, 0.1, strength=0.0), lambda p: torch.optim.Adam(p, 0.1)),
    (lambda p: OptimisticSGD(p, 0.1, strength=0.0), lambda p: torch.optim.SGD(p, 0.1)),
]


@pytest.mark.parametrize("number", range(len(_TWINS)))
def test_real_coefficients_are_the_optimizers_of_torch(number: int, generator: torch.Generator) -> None:
    pair = [nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
    optimizers = [build([p]) for build, p in zip(_TWINS[number], pair, strict=True)]
    for _ in range(20):
        g = torch.randn(3, generator=generator, dtype=torch.float64)
        for p, optimizer in zip(pair, optimizers, strict=True):
            p.grad = g
            optimizer.step()
    torch.testing.assert_close(pair[0], pair[1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("angle", [0.4, math.pi])
def test_the_growth_of_players_that_move_in_turn_is_the_radius(angle: float) -> None:
    x, y = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (1.0, -0.5))
    players = [ComplexMomentumSGD([p], 0.3, momentum=0.6, angle=angle) for p in (x, y)]
    sizes = []
    for _ in play(lambda: (2 * x * y, -2 * x * y), players, steps=120, order="alternating"):
        sizes.append(math.hypot(x.item(), y.item()))
    radius = momentum_radius(torch.tensor([2j, -2j]), lr=0.3, momentum=0.6, angle=angle, order="alternating")
    slope = (math.log(max(sizes[-20:])) - math.log(max(sizes[20:40]))) / 80
    assert math.exp(slope) == pytest.approx(float(radius), abs=0.02)


def test_who_moves_later_sees_the_moves_before() -> None:
    seen = []
    for order in ("simultaneous", "alternating"):
        x, y = (nn.Parameter(torch.ones(())) for _ in range(2))
        for round_ in play(
            lambda x=x, y=y: (x * y, -x * y), [torch.optim.SGD([p], 0.5) for p in (x, y)], steps=1, order=order
        ):  # type: ignore[arg-type,misc]
            seen.append((x.item(), y.item(), round_.losses.tolist()))
    assert seen == [(0.5, 1.5, [1.0, -1.0]), (0.5, 1.25, [1.0, -0.5])]


def test_extragradient_plays_from_where_all_look_ahead() -> None:
    x, y = (nn.Parameter(torch.ones(())) for _ in range(2))
    for _ in play(lambda: (x * y, -x * y), [Extragradient([p], 0.5) for p in (x, y)], steps=1):
        pass
    assert (x.item(), y.item()) == (1 - 0.5 * 1.5, 1 + 0.5 * 0.5)


def test_the_halves_of_an_extragradient_step_come_in_turn() -> None:
    w = nn.Parameter(torch.ones(1))
    optimizer = Extragradient([w], 0.1)
    w.grad = torch.ones(1)
    with pytest.raises(RuntimeError, match=r"step\(\) needs extrapolate\(\)"):
        optimizer.step()
    optimizer.extrapolate()
    with pytest.raises(RuntimeError, match="called twice"):
        optimizer.extrapolate()
    resumed = Extragradient([w], 0.1)
    resumed.load_state_dict(optimizer.state_dict())
    resumed.step()
    torch.testing.assert_close(w.detach(), torch.tensor([0.9]))


def test_a_graph_that_saved_the_parameters_knows_that_they_moved() -> None:
    w = nn.Parameter(torch.ones(3))
    loss = w.square().sum()
    w.grad = torch.ones(3)
    ComplexMomentumSGD([w], 0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_is_no_game_is_refused() -> None:
    x, y = (torch.ones((), requires_grad=True) for _ in range(2))
    with pytest.raises(ValueError, match="losses must be as many as players, 2, got 1"):
        game_gradient([x * y], [x, y])
    with pytest.raises(ValueError, match=r"losses\[1\] must depend on a parameter of players\[1\]"):
        game_gradient([x * y, x * 2], [x, y])
    with pytest.raises(ValueError, match=r"losses\[0\] must be a scalar"):
        game_gradient([x * torch.ones(2), y], [x, y])
    with pytest.raises(ValueError, match=r"players\[1\] must hold tensors with requires_grad"):
        game_spectrum([x * y, -x * y], [x, y.detach()])
    with pytest.raises(TypeError, match=r"optimizers must be torch.optim.Optimizer"):
        play(lambda: (x, y), [x, y], steps=1)  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"kind must be an optimizer of pullback\.optim"):
        functional(torch.optim.SGD, lr=0.1)  # type: ignore[arg-type]
    init, update = functional(OptimisticSGD, lr=0.1)
    with pytest.raises(ValueError, match="gradients must have the names of params"):
        update({}, init({"w": x}), {"w": x})
