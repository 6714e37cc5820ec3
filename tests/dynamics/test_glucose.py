"""A patient's glucose: rest, conservation, the integrator's order; meals; measures of control."""

from __future__ import annotations

import math

import pytest
import torch

from pullback.dynamics import (
    GlucoseModel,
    convergence_order,
    meal_scenarios,
    odeint,
    risk_index,
    rollout,
    time_in_range,
)

VALUES = (0.02, 0.025, 1.25e-5, 120.0, 15.0, 115.0, 8.0, 0.1)


def patients(count: int = 3) -> GlucoseModel:
    g = torch.Generator().manual_seed(0)
    spread = 1 + 0.2 * torch.rand(len(VALUES), count, generator=g, dtype=torch.float64)
    return GlucoseModel(*(v * s for v, s in zip(VALUES, spread, strict=True)))


def test_patients_rest_at_every_glucose_that_an_infusion_can_keep() -> None:
    model = patients()
    for glucose in (None, 90.0, 150.0):
        rest = model.equilibrium(glucose)
        inputs = torch.stack([rest.insulin, torch.zeros_like(rest.insulin)], -1)
        assert model.field(torch.zeros(1), rest.state, inputs).abs().max() < 1e-9
        assert torch.allclose(model.stepper(5.0)(rest.state, inputs), rest.state, rtol=1e-12)
        assert torch.allclose(
            model.observe(rest.state), model.Gb if glucose is None else torch.tensor(glucose).double()
        )
    with pytest.raises(ValueError, match="no infusion keeps glucose at 900 mg/dl"):
        model.equilibrium(900.0)


def test_the_integrator_follows_the_equation_and_halving_its_step_quarters_the_error() -> None:
    model = patients()
    rest = model.equilibrium()
    inputs = torch.stack([2 * rest.insulin, torch.full_like(rest.insulin, 0.5)], -1)
    exact = odeint(lambda t, x: model.field(t, x, inputs), rest.state, [0.0, 60.0], rtol=1e-11, atol=1e-11).y[-1]

    def integrate(minutes: float) -> torch.Tensor:
        return rollout(lambda x: model.stepper(minutes)(x, inputs), rest.state, steps=round(60 / minutes))[-1]

    assert convergence_order(integrate, exact, [5.0, 2.5, 1.25]).order == pytest.approx(2.0, abs=0.2)
    assert (integrate(5.0) - exact)[:, 0].abs().max() < 0.5
    assert torch.allclose(integrate(5.0)[:, 1:7], exact[:, 1:7], rtol=1e-8, atol=1e-10)  # exact but for rounding


def test_what_is_eaten_arrives() -> None:
    """Without insulin's action the area of glucose above its base is f grams / (V p1)."""
    model = GlucoseModel(*(torch.tensor(v, dtype=torch.float64) for v in VALUES))
    rest = model.equilibrium()
    meal = torch.zeros(2000, 2, dtype=torch.float64)
    meal[:, 0] = rest.insulin
    meal[:6, 1] = 2.0
    path = rollout(model.stepper(5.0), rest.state, meal)
    area = 5 * (path[:, 0] - 120).sum()
    assert area.item() == pytest.approx(0.9 * 60_000 / 115 / 0.02, rel=2e-3)
    assert (path[:, 7] - 120).sum().item() == pytest.approx(area.item() / 5, rel=1e-2)  # the sensor lags, no more
    assert path[:, 7].argmax() > path[:, 0].argmax()


def test_the_gradient_of_a_day_is_that_of_differences() -> None:
    def shown(p: torch.Tensor) -> torch.Tensor:
        model = GlucoseModel(*(torch.tensor(v).double() * (p[i] if i < 3 else 1) for i, v in enumerate(VALUES)))
        inputs = torch.tensor([[14.0, 0.8], [10.0, 0.0], [20.0, 0.2]]).double().repeat_interleave(20, 0)
        return rollout(model.stepper(5.0), model.equilibrium().state, inputs, segment="sqrt")[::10, 7] / 100

    assert torch.autograd.gradcheck(shown, (torch.ones(3, dtype=torch.float64, requires_grad=True),))


def test_impossible_patients_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="glucose would grow for ever"):
        GlucoseModel(0.001, *VALUES[1:])
    with pytest.raises(ValueError, match="p2 must be"):
        GlucoseModel(0.02, torch.tensor([0.02, -0.1]), *VALUES[2:])
    with pytest.raises(ValueError, match=r"bioavailability must be in \(0, 1\], got 1.5"):
        GlucoseModel(*VALUES, bioavailability=1.5)
    with pytest.raises(TypeError, match="same dtype"):
        GlucoseModel(torch.tensor(0.02), torch.tensor(0.02).double(), *VALUES[2:])
    model = GlucoseModel(*VALUES)
    with pytest.raises(ValueError, match="inputs must"):
        model.stepper(5.0)(model.equilibrium().state, torch.zeros(3))


def test_meals_have_their_sizes_and_are_miscounted_within_bounds() -> None:
    meals = meal_scenarios(400, 2, generator=torch.Generator().manual_seed(0))
    assert meals.eaten.shape == meals.announced.shape == (400, 576)
    grams = 5 * meals.eaten.sum(1)
    assert grams.mean().item() == pytest.approx(380, rel=0.02)
    assert bool((meals.meal[:, :50] == 0).all())
    begins = (meals.eaten > 0) & (meals.eaten.roll(1, 1) == 0)
    assert begins.sum() == 400 * 6
    assert (meals.meal[begins].sum() / grams.sum()).item() == pytest.approx(1)  # each meal once
    assert torch.allclose(meals.meal[meals.eaten > 0], 15 * meals.eaten[meals.eaten > 0], rtol=1e-4)
    ratio = (meals.announced / meals.eaten)[meals.eaten > 0]
    assert 0.6 <= ratio.min() < 0.65
    assert 1.35 < ratio.max() <= 1.4
    begun = (meals.eaten > 0).float().mean(0).unflatten(0, (2, 24, 12)).sum((0, 2))
    assert begun[[0, 1, 2, 3, 4, 15, 22, 23]].sum() == 0
    exact = meal_scenarios(2, miscount=0.0, generator=torch.Generator().manual_seed(0))
    assert torch.equal(exact.eaten, exact.announced)
    for words in ({"miscount": 1.0}, {"minutes": 7.0}, {"days": 0}):
        with pytest.raises(ValueError, match=r"miscount|minutes must divide a day|days"):
            meal_scenarios(2, **words)


def test_measures_of_control() -> None:
    readings = torch.tensor([[50.0, 70.0, 180.0, 181.0], [100.0, 100.0, 100.0, 100.0]])
    assert time_in_range(readings).tolist() == [0.5, 1.0]
    assert time_in_range(readings, 0.0, 60.0).tolist() == [0.25, 0.0]
    for glucose in (36.0, 600.0):
        f = 1.509 * (math.log(glucose) ** 1.084 - 5.381)
        risk = risk_index(torch.tensor([glucose]))
        assert (risk.low + risk.high).item() == pytest.approx(10 * f * f, rel=1e-5)
        assert bool(risk.low > 0) == (glucose < 112)
    with pytest.raises(ValueError, match="above 1 mg/dl, got 0"):
        risk_index(torch.tensor([100.0, 0.0]))
    with pytest.raises(ValueError, match=r"mg/dl, got at most 5.5: multiply mmol/l by 18.016"):
        risk_index(torch.tensor([5.5]))
