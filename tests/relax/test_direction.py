"""Unchanged programs: the same values to the bit, and a gradient that points where the smoothed program rises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pullback
from tests.relax.programs import PROGRAMS, ROWS, TABLE, WEIGHTS
from tests.relax.smoothing import TEMPERATURE, relaxed_gradient, smoothed_gradient


def points() -> list[Tensor]:
    drawn = [torch.randn(6, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in range(1, 9)]
    return [*drawn, torch.tensor([0.21, 0.12, -0.05, 0.33, 0.28, -0.38], dtype=torch.float64)]


@pytest.mark.parametrize("name", PROGRAMS)
def test_values_are_those_of_the_plain_program(name: str) -> None:
    for x in points():
        for dtype in (torch.float64, torch.float32):
            if dtype == torch.float32 and not _takes_float32(PROGRAMS[name], x):
                continue
            plain = PROGRAMS[name](x.to(dtype))
            value, gradient = relaxed_gradient(PROGRAMS[name], x.to(dtype))
            assert type(value) is Tensor
            assert value.dtype == plain.dtype
            assert value.shape == plain.shape
            assert torch.equal(value, plain.detach())
            assert torch.isfinite(gradient).all()


def _takes_float32(f: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    try:
        f(x.float())
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("name", PROGRAMS)
def test_gradient_has_the_direction_of_the_smoothed_program(name: str) -> None:
    references, gradients = [], []
    for x in points():
        sigma = TEMPERATURE * x.std().item()
        reference, error = smoothed_gradient(PROGRAMS[name], x, sigma)
        if reference.norm() <= max(12 * error.norm().item(), 1e-6):
            continue  # nothing near a step here: the reference is noise
        _, gradient = relaxed_gradient(PROGRAMS[name], x)
        assert torch.nn.functional.cosine_similarity(gradient, reference, dim=0) > 0.6, (x, gradient, reference)
        references.append(reference)
        gradients.append(gradient)
    assert references, "no point tells anything about this program"
    cosine = torch.nn.functional.cosine_similarity(torch.cat(gradients), torch.cat(references), dim=0)
    assert cosine > 0.8, (name, cosine)


UNTOUCHED: dict[str, Callable[[Tensor], Tensor]] = {
    "arithmetic": lambda x: (x.sin() * WEIGHTS + x**2).sum(),
    "softmax of rows": lambda x: (torch.softmax(x, 0) @ ROWS).prod(),
    "lookup by plain indices": lambda x: x[torch.tensor([1, 1, 4])].prod() + x.gather(0, torch.tensor([2])).sum(),
    "mask of data": lambda x: torch.where(WEIGHTS > 0, x, 2 * x).sum() + (x * (TABLE > 0)).sum(),
    "fill by a mask of data": lambda x: x.masked_fill(WEIGHTS > 0, 0.0).square().sum(),
    "order of data": lambda x: (x * TABLE.argsort()).sum() + x[WEIGHTS.argmax()],
    "selection by a mask of data": lambda x: x[TABLE > 0].square().sum(),
    "losses": lambda x: torch.nn.functional.cross_entropy(x.view(2, 3), torch.tensor([0, 2])),
    "detached": lambda x: (x * (x.detach() > 0) + x.detach().round()).sum(),
    "matrix": lambda x: torch.linalg.norm(x.view(2, 3) @ x.view(3, 2)),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_programs_without_a_hard_step_are_untouched(name: str) -> None:
    x = points()[0].requires_grad_()
    plain = UNTOUCHED[name](x)
    with pullback.relaxed() as r:
        y = UNTOUCHED[name](x)
    assert torch.equal(y, plain)
    assert torch.equal(torch.autograd.grad(y, x)[0], torch.autograd.grad(plain, x)[0])
    assert r.calls == []
    assert y.grad_fn is not None
    assert type(y.grad_fn) is type(plain.grad_fn)


def test_the_harder_the_closer_to_the_hard_gradient() -> None:
    x = points()[0].requires_grad_()

    def f(x: Tensor) -> Tensor:
        return (x.relu() * WEIGHTS + x.clamp(-0.5, 0.5) + x.abs()).sum() + x.max()

    hard = torch.autograd.grad(f(x), x)[0]
    errors = []
    for temperature in (0.3, 0.03, 0.003):
        with pullback.relaxed(temperature=temperature):
            y = f(x)
        errors.append((torch.autograd.grad(y, x)[0] - hard).norm().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3
