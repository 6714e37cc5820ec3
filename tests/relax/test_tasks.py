"""Programs of practice: the same values to the bit, the direction of the smoothed program over all points."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.relax.smoothing import TEMPERATURE, relaxed_gradient, smoothed_gradient
from tests.relax.tasks import TASKS

# What the docstring of ``relaxed`` calls limits.
_LIMITS = {
    "nearest_pair": "two rows of one distance matrix choose by the same distance",
}


def points(shape: tuple[int, ...]) -> list[Tensor]:
    return [
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in range(101, 109)
    ]


@pytest.mark.parametrize("name", TASKS)
def test_values_are_those_of_the_plain_program(name: str) -> None:
    task = TASKS[name]
    for x in points(task.shape):
        plain = task.function(x)
        value, gradient = relaxed_gradient(task.function, x)
        assert type(value) is Tensor
        assert value.dtype == plain.dtype
        assert value.shape == plain.shape
        assert torch.equal(value, plain)
        assert torch.isfinite(gradient).all()


def _mark(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.xfail(reason=_LIMITS[name])) if name in _LIMITS else name


@pytest.mark.parametrize("name", [_mark(name) for name in TASKS])
def test_gradient_has_the_direction_of_the_smoothed_program(name: str) -> None:
    task = TASKS[name]
    references, gradients = [], []
    for x in points(task.shape):
        reference, error = smoothed_gradient(task.function, x, TEMPERATURE * x.std().item())
        if reference.norm() <= max(6 * error.norm().item(), 1e-6):
            continue  # nothing near a step here: the reference is noise
        references.append(reference)
        gradients.append(relaxed_gradient(task.function, x)[1].flatten())
    assert references, "no point tells anything about this program"
    cosine = torch.nn.functional.cosine_similarity(torch.cat(gradients), torch.cat(references), dim=0)
    assert cosine > 0.8
