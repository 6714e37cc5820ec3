"""The closed loop: rest, what a controller sees, kills of its reckoning, the gradient of days, the filter."""

from __future__ import annotations

import pytest
import torch
from tests.dynamics.test_padova import patient
from torch import Tensor

from pullback.dynamics import GlucoseDays, GlucoseLoop, GlucoseModel, LoopReading


def still(count: int, steps: int) -> GlucoseDays:
    none = torch.zeros(steps, count, dtype=torch.float64)
    return GlucoseDays(none, none, none, none, torch.ones(count, dtype=torch.float64))


def bounds(arms: int, count: int) -> tuple[Tensor, Tensor]:
    return torch.full((arms, count), 70.0).double(), torch.full((arms, count), 180.0).double()


def constant(level: float) -> object:
    return lambda seen, memory: (torch.full_like(seen.error, level), memory)


def test_the_basal_infusion_keeps_rest_and_the_factors_are_what_a_dose_does() -> None:
    loop = GlucoseLoop(patient(3), 10.0, 2)
    glucose, infusion = loop.run(constant(1.0), *bounds(2, 3), still(3, 12))
    assert glucose.shape == infusion.shape == (12, 2, 3)
    assert (glucose - 149.02).abs().max() < 1e-6
    assert bool((loop.drop > 0).all())
    assert bool((loop.rise > 0).all())
    assert torch.equal(loop.select(torch.tensor([2, 0])).drop, loop.drop[[2, 0]])
    # a dose half as large does half: drop is a slope
    fine = GlucoseLoop(loop.model, 5.0)
    assert torch.allclose(fine.drop, loop.drop, rtol=0.05)
    assert torch.allclose(fine.rise, loop.rise, rtol=0.15)
    low, _ = loop.run(constant(0.0), *bounds(1, 3), still(3, 60))
    assert bool((low[-1] > 200).all())


def test_a_controller_sees_the_sensor_its_doses_and_what_it_is_told() -> None:
    loop, seen = GlucoseLoop(patient(2), 10.0), []
    days = still(2, 5)
    noise = torch.tensor([0.0, 6.0, 0.0, 0.0, 0.0]).double()[:, None].expand(5, 2)
    told = torch.zeros(5, 2, dtype=torch.float64)
    told[2] = 3.0  # announced, but not eaten
    days = days._replace(noise=noise, told=told)

    def control(reading: LoopReading, memory: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(reading)
        assert bool((memory == len(seen) - 1).all())
        return torch.full_like(reading.error, 3.0 if len(seen) == 1 else 1.0), memory + 1

    loop.run(control, *bounds(1, 2), days, memory=4)
    features = torch.stack([reading.features[0] for reading in seen])
    assert torch.allclose(features[0, :, 0], torch.tensor((149.02 - 110) / 60).double())
    assert features[1, 0, 1].item() == pytest.approx(6 / 20, abs=0.01)
    assert features[2, 0, 1].item() == pytest.approx(-6 / 20, abs=0.02)
    assert bool((features[0, :, 4] == 0).all())
    assert torch.allclose(features[1, :, 4], 20 * loop.basal * loop.drop / 60, rtol=0.02)  # two basal ones too many
    assert torch.equal(features[2, :, 5], 30 * loop.rise / 60)
    assert bool((features[3, :, 5] < features[2, :, 5]).all())
    assert bool((features[4, :, 5] > 0.8 * features[2, :, 5]).all())
    assert torch.equal(features[2, :, 6], 30 * loop.rise / 60)
    assert torch.allclose(seen[2].bolus * loop.basal * loop.drop * 10, 30 * loop.rise)  # covers what was told
    assert torch.allclose(features[0, :, 8:], torch.tensor([-1.0, 1.0]).double())
    assert torch.allclose(seen[0].error * 60 * loop.basal * loop.drop, torch.tensor(39.02).double())


def test_the_gradient_of_a_morning_is_that_of_differences() -> None:
    loop = GlucoseLoop(patient(2), 10.0)
    days = loop.draw(torch.Generator().manual_seed(3), first=42, steps=18)
    assert days.eaten.shape == (18, 2)
    assert days.eaten.sum() > 0

    def penalty(gains: Tensor) -> Tensor:
        def control(seen: LoopReading, memory: Tensor) -> tuple[Tensor, Tensor]:
            return torch.nn.functional.softplus(1 + gains[0] * seen.error + gains[1] * seen.features[..., 5]), memory

        return (loop.run(control, *bounds(1, 2), days)[0] - 110).square().mean() / 1000

    assert torch.autograd.gradcheck(penalty, (torch.tensor([0.2, 0.5]).double().requires_grad_(),))


def test_the_filter_caps_doses_that_the_prediction_forbids_and_no_others() -> None:
    loop = GlucoseLoop(patient(1), 10.0)
    features = torch.zeros(4, 1, 10, dtype=torch.float64)
    features[:, 0, 0] = torch.tensor([1.0, -0.63, -0.63, -1.0])  # 170, 72.2, 72.2 and 50 mg/dl
    features[2, 0, 5] = 2.0  # and food on board
    reading = LoopReading(features, features[..., 0], features[0, :, 0])
    asked = torch.full((4, 1), 8.0, dtype=torch.float64)
    given = loop.guard(asked, reading)
    effect = (2.5 * loop.basal * loop.drop).item()
    assert given[0].item() == pytest.approx(8.0)
    assert given[1].item() == pytest.approx((72.2 - 70 + effect) / effect)
    assert given[2].item() == pytest.approx(8.0)
    assert given[3].item() == 0
    assert bool((loop.guard(torch.zeros_like(asked), reading) == 0).all())


def test_days_are_drawn_as_told_and_bad_input_is_refused_by_name() -> None:
    loop = GlucoseLoop(patient(400), 15.0)
    days = loop.draw(torch.Generator().manual_seed(0), steps=96)
    grams = 15 * days.eaten.sum(0) / (loop.model.constants["BW"] / 70).clamp(max=1.2)
    assert grams.mean().item() == pytest.approx(190, rel=0.03)
    assert days.noise.std().item() == pytest.approx(5.0, rel=0.05)
    assert 0.75 <= days.start.min() < days.start.max() <= 1.35
    with pytest.raises(TypeError, match="model must be a PadovaModel, got GlucoseModel"):
        GlucoseLoop(GlucoseModel(0.02, 0.025, 1.25e-5, 120.0, 15.0, 115.0, 8.0, 0.1))
    small = GlucoseLoop(patient(2), 10.0)
    with pytest.raises(ValueError, match="steps must be"):
        small.draw(None, first=100, steps=50)


def test_what_a_controller_returns_has_the_shape_that_was_asked_for() -> None:
    loop = GlucoseLoop(patient(2), 10.0)
    days = loop.draw(torch.Generator().manual_seed(0), steps=2)
    with pytest.raises(ValueError, match=r"infusions that control returns must have shape \(..., 3, 2\), got \(3, 1\)"):
        loop.run(lambda seen, memory: (torch.ones(3, 1).double(), memory), *bounds(3, 2), days)
    with pytest.raises(ValueError, match=r"memory that control returns must have shape \(..., 3, 2, 2\)"):
        loop.run(lambda seen, memory: (torch.ones(3, 2).double(), memory[..., :1]), *bounds(3, 2), days)
