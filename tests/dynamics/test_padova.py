"""The UVA/Padova patient: the published equations by plain numbers, rest, conservation, order, gradient."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from pullback.dynamics import PadovaModel, convergence_order, meal_scenarios, rollout

NUMBERS = (
    "68.706 149.02 97.554 1.6818 .048153 .091043 .015865 .0083338 .83072 .32294 .9 3.3924 .023318 .023253 .0088838 "
)
NUMBERS += "1 .0005 339 .057252 .067738 .074667 260.89 .021344 .15221 .259067825939 .103627130376 .228315 .0025 "
NUMBERS += ".0115 .0185 .056"
ADOLESCENT = dict(zip(PadovaModel.NAMES, map(float, NUMBERS.split()), strict=True))
"""adolescent#001 of the simulator, whose table also has the numbers that the tests compare with."""


def patient(count: int = 1) -> PadovaModel:
    spread = torch.linspace(1.0, 1.15, count, dtype=torch.float64)
    return PadovaModel({n: v * (spread if n in ("BW", "kp3", "Vmx", "kd") else 1) for n, v in _doubles().items()})


def _doubles() -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in ADOLESCENT.items()}


def published(x: np.ndarray, u: float, d: float, meal: float) -> list[float]:
    """The equations for one patient, as they stand in the papers."""
    c = ADOLESCENT
    q1, q2, q3, gp, gt, ip, action, i1, i_d, il, s1, s2, gs = x
    k = c["kmax"]
    if meal > 0:
        size = 1000 * meal
        alpha, beta = 5 / (2 * size * (1 - c["b"])), 5 / (2 * size * c["d"])
        q = q1 + q2
        k = c["kmin"] + (c["kmax"] - c["kmin"]) / 2 * (
            math.tanh(alpha * (q - c["b"] * size)) - math.tanh(beta * (q - c["d"] * size)) + 2
        )
    endogenous = max(11.5048231338 - c["kp2"] * gp - c["kp3"] * i_d, 0)
    excreted = c["ke1"] * (gp - c["ke2"]) if gp > c["ke2"] else 0
    uptake = (5.92854753098 + c["Vmx"] * action) * gt / (c["Km0"] + gt)
    return [
        -c["kmax"] * q1 + 1000 * d,
        c["kmax"] * q1 - k * q2,
        k * q2 - c["kabs"] * q3,
        endogenous + c["f"] * c["kabs"] * q3 / c["BW"] - c["Fsnc"] - excreted - c["k1"] * gp + c["k2"] * gt,
        -uptake + c["k1"] * gp - c["k2"] * gt,
        -(c["m2"] + c["m4"]) * ip + c["m1"] * il + c["ka1"] * s1 + c["ka2"] * s2,
        -c["p2u"] * action + c["p2u"] * (ip / c["Vi"] - c["Ib"]),
        -c["ki"] * (i1 - ip / c["Vi"]),
        -c["ki"] * (i_d - i1),
        -(c["m1"] + c["m30"]) * il + c["m2"] * ip,
        6 * u / c["BW"] - (c["ka1"] + c["kd"]) * s1,
        c["kd"] * s1 - c["ka2"] * s2,
        -c["ksc"] * gs + c["ksc"] * gp,
    ]


def test_rest_is_what_the_table_of_the_simulator_says() -> None:
    model = patient()
    rest = model.equilibrium()
    assert model.Vm0.item() == pytest.approx(5.92854753098, rel=1e-9)
    assert model.kp1.item() == pytest.approx(11.5048231338, rel=1e-9)
    assert rest.insulin.item() == pytest.approx(1.21697571391 * 68.706 / 6, rel=1e-9)
    assert rest.state[0, 4].item() == pytest.approx(176.506559902, rel=1e-9)
    assert rest.state[0, 11].item() == pytest.approx(93.2258828462, rel=1e-9)
    inputs = torch.stack([rest.insulin, 0 * rest.insulin, 0 * rest.insulin], -1)
    assert model.field(torch.zeros(1), rest.state, inputs).abs().max() < 1e-10
    later = rollout(lambda x: model.stepper(5.0)(x, inputs), rest.state, steps=300)[-1]
    assert (model.observe(later) - 149.02).abs().max() < 1e-8
    assert (model.glucose(later) - 149.02).abs().max() < 1e-8


def test_the_field_is_the_published_one_and_the_integrator_follows_it() -> None:
    model = patient()
    g = torch.Generator().manual_seed(0)
    rest = model.equilibrium()
    for meal in (0.0, 60.0):
        x = rest.state[0] * (0.5 + 1.5 * torch.rand(13, generator=g, dtype=torch.float64))
        if meal:  # with nothing eaten nothing is in the stomach
            x[:3] = 40_000 * torch.rand(3, generator=g, dtype=torch.float64)
        inputs = torch.tensor([20.0, meal / 20, meal], dtype=torch.float64)
        wanted = torch.tensor(published(x.numpy(), *inputs.tolist()), dtype=torch.float64)
        assert torch.allclose(model.field(torch.zeros(1), x, inputs)[0], wanted, rtol=1e-8, atol=1e-9)

    inputs = torch.zeros(48, 1, 3, dtype=torch.float64)
    inputs[..., 0] = rest.insulin
    inputs[2:6, :, 0] += 300.0
    inputs[3:6, :, 1], inputs[3:, :, 2] = 4.0, 60.0
    x, path = rest.state[0].numpy(), []
    for u, d, meal in inputs[:, 0].tolist():  # piece by piece: a solver steps over kinks of inputs
        words = {"args": (u, d, meal), "rtol": 1e-9, "atol": 1e-9, "method": "LSODA"}
        x = solve_ivp(lambda t, x, *given: published(x, *given), (0.0, 5.0), x, **words).y[:, -1]
        path.append(x)
    exact = torch.tensor(np.stack(path))

    def integrate(parts: float) -> torch.Tensor:
        every = round(parts)
        return rollout(model.stepper(5.0 / every), rest.state, inputs.repeat_interleave(every, 0))[every::every, 0]

    assert convergence_order(integrate, exact, [1.0, 2.0, 4.0]).order == pytest.approx(-2.0, abs=0.25)
    assert ((integrate(1.0) - exact) / model.constants["Vg"])[:, [3, 12]].abs().max() < 1.0
    assert exact[:, 3].max() > exact[0, 3] + 15  # a meal,
    assert exact[:, 3].min() < exact[0, 3] - 50  # and too much insulin for it
    assert torch.allclose(integrate(1.0)[:, 5:12], exact[:, 5:12], rtol=1e-6)


def test_what_is_eaten_arrives_at_any_step() -> None:
    model = patient(3)
    rest = model.equilibrium()
    c = model.constants
    for minutes in (5.0, 30.0):
        steps = round(3000 / minutes)
        inputs = torch.zeros(steps, 3, 3, dtype=torch.float64)
        inputs[..., 0], inputs[..., 2] = rest.insulin, 50.0
        inputs[: round(30 / minutes), :, 1] = 50 / 30
        path = rollout(model.stepper(minutes), rest.state, inputs)
        left = path[-1, :, :3].sum(-1)
        assert left.max() < 100  # [mg]
        absorbed = minutes * (c["kabs"] * path[..., 2]).sum(0)
        assert torch.allclose(absorbed, torch.tensor(50_000.0).double(), rtol=0.15 if minutes > 5 else 0.01)


def test_the_gradient_is_that_of_differences_and_glucose_stays_above_zero() -> None:
    model = patient()
    rest = model.equilibrium()
    meals = meal_scenarios(1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def shown(dose: torch.Tensor) -> torch.Tensor:
        u = rest.insulin * dose.repeat_interleave(24)
        inputs = torch.stack([u, meals.eaten[0, 80:128], meals.meal[0, 80:128]], -1)[:, None]
        return rollout(model.stepper(5.0), rest.state, inputs)[::12, 0, 12] / 100

    assert torch.autograd.gradcheck(shown, (torch.tensor([1.0, 2.0]).double().requires_grad_(),))
    flood = torch.tensor([1e5, 0.0, 0.0], dtype=torch.float64).expand(300, 1, 3)
    path = rollout(model.stepper(5.0), rest.state, flood)
    assert bool(path.isfinite().all())
    assert path.min() >= rest.state.clamp(max=0).min()


def test_impossible_patients_are_refused_by_name() -> None:
    constants = _doubles()
    with pytest.raises(ValueError, match="missing: ksc"):
        PadovaModel({n: v for n, v in constants.items() if n != "ksc"})
    with pytest.raises(ValueError, match="kabs must be"):
        PadovaModel(constants | {"kabs": -constants["kabs"]})
    with pytest.raises(ValueError, match=r"b must be below 1, got 1\.2"):
        PadovaModel(constants | {"b": torch.tensor(1.2).double()})
    with pytest.raises(ValueError, match="EGPb must exceed"):
        PadovaModel(constants | {"EGPb": torch.tensor(0.5).double()})
    with pytest.raises(TypeError, match="same dtype"):
        PadovaModel(constants | {"ki": constants["ki"].float()})
    model = PadovaModel(constants)
    with pytest.raises(ValueError, match="inputs must"):
        model.stepper(5.0)(model.equilibrium().state, torch.zeros(2).double())
