"""Analog layers against what the hardware is said to do, noise of gradients against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pullback.gradients import (
    AnalogLayer,
    gradient_cosine,
    gradient_noise,
    leakage_to_std,
    reduce_precision,
    std_to_leakage,
)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("leakage", [0.5, 0.1, 0.8])
def test_a_level_is_misread_as_often_as_the_leakage_says(leakage: float) -> None:
    std = leakage_to_std(leakage, 16)
    for value, expected in ((5 / 16, leakage), (1.0, leakage / 2)):
        x = torch.full((100_000,), value, dtype=torch.float64)
        read = reduce_precision((x + std * torch.randn(len(x), generator=_seeded()).double()).clamp(-1, 1), 16)
        assert float((read != x).double().mean()) == pytest.approx(expected, abs=0.01)
    assert std_to_leakage(std, 16) == pytest.approx(leakage, rel=1e-12)


def test_tiny_leakages_come_back() -> None:
    assert std_to_leakage(leakage_to_std(1e-30, 4), 4) == pytest.approx(1e-30, rel=1e-6)


@pytest.mark.parametrize(("divide", "expected"), [(0.5, 0.25), (0.4, 0.5), (1.0, 0.25), (0.0, 0.5)])
def test_fractions_beyond_divide_are_rounded_up(divide: float, expected: float) -> None:
    x = torch.tensor([1.5 / 4, -1.5 / 4, 0.25])
    assert reduce_precision(x, 4, divide=divide).tolist() == [expected, -expected, 0.25]


def test_stochastic_rounding_is_right_in_the_mean() -> None:
    x = torch.tensor([0.3, -0.71]).repeat(40_000, 1)
    rounded = reduce_precision(x, 4, stochastic=True, generator=_seeded())
    assert set(rounded.unique().tolist()) == {-0.75, -0.5, 0.25, 0.5}
    torch.testing.assert_close(rounded.mean(0), x[0], atol=0.005, rtol=0)


def test_gradients_pass_precision_and_noise_and_stop_at_the_clamp() -> None:
    layer = AnalogLayer(nn.Linear(2, 1, bias=False), precision=4, leakage=0.5, generator=_seeded())
    with torch.no_grad():
        layer.module.weight.copy_(torch.tensor([[0.3, 1.5]]))  # the second is clamped to 1
    layer.noisy = False
    x = torch.tensor([[0.6, 0.2], [-3.0, 0.2]], requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.module.weight.grad is not None
    assert x.grad.tolist() == [[0.25, 1.0], [0.0, 1.0]]
    assert layer.module.weight.grad.tolist() == [[0.5 - 1.0, 0.0]]


def test_noise_can_be_switched_off_and_comes_back() -> None:
    layer = AnalogLayer(nn.Conv1d(1, 2, 3), precision=8, leakage=0.5, generator=_seeded())
    x = torch.rand(2, 1, 9, generator=_seeded(1))
    noisy = [layer(x) for _ in range(2)]
    layer.noisy = False
    quiet = [layer(x) for _ in range(2)]
    assert not torch.equal(*noisy)
    assert torch.equal(*quiet)
    layer.eval()
    layer.noisy = True
    assert not torch.equal(layer(x), quiet[0])  # noise stays on in evaluation


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"module": nn.ReLU(), "precision": 4}, "module must have parameters, got ReLU without any"),
        ({"precision": 0}, "precision must be > 0"),
        ({"precision": 4, "leakage": 1.0}, "leakage must be below 1"),
        ({"precision": 4, "leakage": 0.0}, "leakage must be > 0"),
        ({"precision": None, "leakage": 0.5}, "leakage must be None without a precision"),
        ({"precision": 4, "clamp": 0.0}, "clamp must be > 0"),
    ],
)
def test_wrong_hardware_is_refused(words: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnalogLayer(**{"module": nn.Linear(1, 1), **words})  # type: ignore[arg-type]


def test_smooth_activations_have_errors_of_the_order_of_the_noise() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    for std in (0.01, 0.001):
        assert float(gradient_noise(torch.relu, zero, std)) == 0.5
        assert float(gradient_noise(F.gelu, zero, std)) == pytest.approx(2 / math.pi * std, rel=0.01)
        assert float(gradient_noise(F.silu, zero, std)) == pytest.approx(std / math.sqrt(2 * math.pi), rel=0.01)


def test_cosine_is_the_mean_over_draws_and_zero_without_a_gradient() -> None:
    w, unused = torch.tensor([1.0, 0.0], requires_grad=True), torch.ones(3, requires_grad=True)
    noise = iter((torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])))
    found = gradient_cosine(lambda: (w * next(noise)).sum(), lambda: w[0], {"w": w, "unused": unused}, samples=2)
    assert (float(found["w"]), float(found["unused"])) == (0.5, 0.0)
    with pytest.raises(ValueError, match="clean must return a scalar"):
        gradient_cosine(lambda: w[0], lambda: w, {"w": w})
    with pytest.raises(ValueError, match=r"parameters\['w'\] must require a gradient"):
        gradient_cosine(lambda: w[0], lambda: w[0], {"w": w.detach()})
