"""Whether a transform is running, whether values may be looked at: asked inside of each kind of transform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pullback.core.transforms import can_look, is_transformed, kept_property, physical, transform_running


def _dual(ask: Callable[[Tensor], Tensor], x: Tensor) -> None:
    with torch.autograd.forward_ad.dual_level():
        ask(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))


RUNS: dict[str, Callable[[Callable[[Tensor], Tensor], Tensor], Any]] = {
    "plain": lambda ask, x: ask(x),
    "vmap": lambda ask, x: torch.func.vmap(ask)(x),
    "grad": lambda ask, x: torch.func.grad(lambda y: ask(y).sum())(x),
    "jvp": lambda ask, x: torch.func.jvp(ask, (x,), (x,)),
    "dual": _dual,
    "backward": lambda ask, x: ask(x.clone().requires_grad_()).sum().backward(),
}


@pytest.mark.parametrize(
    ("run", "running", "transformed", "looks"),
    [
        ("plain", False, False, True),
        ("backward", False, False, True),
        ("vmap", True, True, False),
        ("grad", True, True, False),
        ("jvp", True, True, False),
        ("dual", True, True, True),  # an eager tensor that carries a tangent: its values are there
    ],
)
def test_answers_inside_of_a_transform(run: str, running: bool, transformed: bool, looks: bool) -> None:
    answers = []

    def ask(x: Tensor) -> Tensor:
        answers.append((transform_running(), is_transformed(x), can_look(x)))
        return x * 1.0

    RUNS[run](ask, torch.ones(3))
    assert answers == [(running, transformed, looks)]


def test_a_constant_beside_a_transform_may_be_looked_at() -> None:
    constant, seen = torch.ones(2), []
    torch.func.vmap(lambda x: (seen.append(can_look(constant)), x)[1])(torch.ones(3))
    assert seen == [True]


def test_the_physical_tensor_is_below_all_levels() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    below = []
    torch.func.vmap(torch.func.vmap(lambda y: (below.append(physical(y)), y)[1]))(x)
    assert torch.equal(below[0], x)


def test_compiled_code_is_transformed() -> None:
    answers = torch.compile(lambda x: x + (2 * is_transformed(x) + can_look(x)), backend="eager")(torch.zeros(1))
    assert answers.item() == 2


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_what_is_kept_outlives_the_transform_that_asks_for_it_first(run: Callable[..., Any]) -> None:
    class Grid:
        @kept_property
        def places(self) -> Tensor:
            return torch.arange(3).flip(0)

    grid = Grid()
    run(lambda x: x * grid.places[0], torch.ones(3))
    assert not torch._C._functorch.is_functorch_wrapped_tensor(grid.places)
    inner = Grid()
    torch.func.jvp(
        lambda x: torch.func.jvp(lambda y: y[inner.places], (x,), (x,))[1], (torch.ones(3),), (torch.ones(3),)
    )
    assert inner.places.tolist() == [2, 1, 0]
