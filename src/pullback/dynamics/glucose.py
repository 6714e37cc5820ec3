"""Glucose and insulin of a patient with type 1 diabetes: a minimal model, meals, a sensor, and measures of control."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import (
    check_floating,
    check_integer,
    check_positive,
    check_range,
    check_same_dtype,
    check_shape,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Float
from pullback.core.transforms import can_look

__all__ = [
    "GlucoseEquilibrium",
    "GlucoseModel",
    "MealScenarios",
    "RiskIndex",
    "meal_scenarios",
    "risk_index",
    "time_in_range",
]

_MILLIGRAMS = 1000.0  # of a gram


class GlucoseEquilibrium(NamedTuple):
    """A state of rest of a :class:`GlucoseModel`.

    Attributes:
        state: ``[*batch, 8]``.
        insulin: ``[*batch]`` the infusion that keeps it [mU/min].
    """

    state: Tensor
    insulin: Tensor


class GlucoseModel:
    r"""Bergman's minimal model with the depots of injected insulin, the gut, and a sensor that lags.

    .. math::
        \dot G &= -(p_1 + X) G + p_1 G_b + R_a / V_G, & \dot X &= -p_2 X + p_3 (I - I_b), \\
        \dot I &= -n I + S_2 / (\tau V_I), & \dot S_1 &= u - S_1 / \tau, \quad \dot S_2 = (S_1 - S_2) / \tau, \\
        \dot Q_1 &= 1000\, d - k_1 Q_1, \quad \dot Q_2 = k_1 Q_1 - k_2 Q_2, & R_a &= f k_2 Q_2, \quad
        \dot C = (G - C) / \tau_C .

    The state is (G, X, I, S1, S2, Q1, Q2, C): glucose [mg/dl], its remote insulin action [1/min], insulin in plasma
    [mU/l], two depots under the skin [mU], two of the gut [mg], and what the sensor shows [mg/dl]. Inputs are (u, d):
    insulin [mU/min] and carbohydrates eaten [g/min]. The pancreas gives none; the infusion :math:`n V_I I_b` keeps G
    at G_b.

    Args:
        p1: glucose effectiveness [1/min], > 0. A number or ``[*batch]``, as all that follow, one a patient.
        p2: rate at which insulin's action fades [1/min], > 0.
        p3: strength of insulin's action [l/(mU min^2)], > 0; the sensitivity is p3 / p2.
        basal_glucose: G_b [mg/dl], > 0.
        basal_insulin: I_b [mU/l], > 0.
        glucose_volume: V_G [dl], > 0.
        insulin_volume: V_I [l], > 0.
        clearance: n [1/min], > 0.
        depot_time: tau [min].
        gut_rates: k1, k2 [1/min].
        bioavailability: f in (0, 1].
        sensor_time: lag of the sensor [min].

    Raises:
        TypeError: a parameter is neither a number nor a floating tensor, or dtypes differ.
        ValueError: a parameter is out of range, or p3 I_b / p2 >= p1: without insulin glucose would grow for ever.

    Example:
        >>> patient = GlucoseModel(0.02, 0.025, 1.25e-5, 120.0, 15.0, 115.0, 8.0, 0.1)
        >>> rest = patient.equilibrium()
        >>> float(rest.insulin), float(patient.observe(rest.state))
        (12.0, 120.0)
        >>> meal = torch.tensor([12.0, 2.0])  # the basal infusion and 2 g of carbohydrates a minute
        >>> advance = patient.stepper(5.0)
        >>> bool(advance(advance(rest.state, meal), meal)[0] > 120)
        True

    References:
        Bergman, Ider, Bowden, Cobelli (1979), Quantitative estimation of insulin sensitivity, Am. J. Physiol. 236;
        Hovorka et al. (2004), Nonlinear model predictive control of glucose concentration (depots and gut).
    """

    def __init__(
        self,
        p1: float | Tensor,
        p2: float | Tensor,
        p3: float | Tensor,
        basal_glucose: float | Tensor,
        basal_insulin: float | Tensor,
        glucose_volume: float | Tensor,
        insulin_volume: float | Tensor,
        clearance: float | Tensor,
        *,
        depot_time: float | Tensor = 55.0,
        gut_rates: tuple[float | Tensor, float | Tensor] = (0.04, 0.03),
        bioavailability: float | Tensor = 0.9,
        sensor_time: float | Tensor = 10.0,
    ) -> None:
        names = {"p1": p1, "p2": p2, "p3": p3, "basal_glucose": basal_glucose, "basal_insulin": basal_insulin}
        names |= {"glucose_volume": glucose_volume, "insulin_volume": insulin_volume, "clearance": clearance}
        names |= {"depot_time": depot_time, "gut rate k1": gut_rates[0], "gut rate k2": gut_rates[1]}
        names |= {"bioavailability": bioavailability, "sensor_time": sensor_time}
        tensors = {name: value for name, value in names.items() if isinstance(value, Tensor)}
        for name, value in names.items():
            if isinstance(value, Tensor):
                check_floating(name, value)
            if not isinstance(value, Tensor) or can_look(value):
                check_positive(name, value)
        check_same_dtype(**tensors)
        kind = next(iter(tensors.values()), torch.zeros(()))
        values = [torch.as_tensor(value, dtype=kind.dtype, device=kind.device) for value in names.values()]
        self.p1, self.p2, self.p3, self.Gb, self.Ib, self.Vg, self.Vi, self.n, *rest = torch.broadcast_tensors(*values)
        self.tau, self.k1, self.k2, self.f, self.lag = rest
        if can_look(self.p1):
            if bool((self.f > 1).any()):
                raise ValueError(f"bioavailability must be in (0, 1], got {self.f.max().item():g}")
            if bool((self.p3 * self.Ib >= self.p1 * self.p2).any()):
                raise ValueError("p3 basal_insulin / p2 must be below p1: without insulin glucose would grow for ever")

    def field(self, t: Tensor, x: Float[Tensor, "*batch 8"], inputs: Float[Tensor, "*batch 2"]) -> Tensor:
        """Return the rate of the state, ``[*batch, 8]``; ``t`` is unused."""
        g, action, insulin, s1, s2, q1, q2, shown = self._checked(x, inputs)
        u, d = inputs.unbind(-1)
        rates = [
            -(self.p1 + action) * g + self.p1 * self.Gb + self.f * self.k2 * q2 / self.Vg,
            -self.p2 * action + self.p3 * (insulin - self.Ib),
            -self.n * insulin + s2 / (self.tau * self.Vi),
            u - s1 / self.tau,
            (s1 - s2) / self.tau,
            _MILLIGRAMS * d - self.k1 * q1,
            self.k1 * q1 - self.k2 * q2,
            (g - shown) / self.lag,
        ]
        return torch.stack(torch.broadcast_tensors(*rates), -1)

    def equilibrium(self, glucose: float | Tensor | None = None) -> GlucoseEquilibrium:
        """Return the state of rest at ``glucose`` [mg/dl] (default: the basal one) without a meal, and its infusion.

        Raises:
            ValueError: no infusion keeps this glucose (it would have to be negative).
        """
        g = self.Gb if glucose is None else torch.as_tensor(glucose, dtype=self.Gb.dtype, device=self.Gb.device)
        check_positive("glucose", g)
        action = self.p1 * (self.Gb - g) / g
        insulin = self.Ib + self.p2 * action / self.p3
        rate = self.n * self.Vi * insulin
        if can_look(rate) and bool((rate < 0).any()):
            raise ValueError(f"no infusion keeps glucose at {g.max().item():g} mg/dl: it would have to be negative")
        depot, gut = self.tau * rate, torch.zeros_like(rate)
        state = torch.broadcast_tensors(g, action, insulin, depot, depot, gut, gut, g)
        return GlucoseEquilibrium(torch.stack(state, -1), rate)

    def observe(self, x: Float[Tensor, "*batch 8"]) -> Tensor:
        """Return what the sensor shows [mg/dl], ``[*batch]``."""
        check_shape("x", x, (8,))
        return x[..., 7]

    def stepper(self, minutes: float) -> Callable[[Tensor, Tensor], Tensor]:
        """Return ``step(x, inputs) -> x`` over some minutes of constant inputs, an exponential integrator.

        Depots, gut and insulin are linear and exact; glucose decays with the mean of insulin's action over the step
        and gains the mean of what the gut gives: an error of third order in the step, whatever its length stable.
        """
        check_positive("minutes", minutes)
        zero, one = torch.zeros_like(self.p1), torch.ones_like(self.p1)
        slow = [[zero] * 9 for _ in range(9)]  # rates of (X, I, S1, S2, Q1, Q2) by themselves, u, d and 1
        slow[0][0], slow[0][1], slow[0][8] = -self.p2, self.p3, -self.p3 * self.Ib
        slow[1][1], slow[1][3] = -self.n, 1 / (self.tau * self.Vi)
        slow[2][2], slow[2][6] = -1 / self.tau, one
        slow[3][2], slow[3][3] = 1 / self.tau, -1 / self.tau
        slow[4][4], slow[4][7] = -self.k1, _MILLIGRAMS * one
        slow[5][4], slow[5][5] = self.k1, -self.k2
        matrix = torch.stack([torch.stack(row, -1) for row in slow], -2)
        move = torch.linalg.matrix_exp(minutes * matrix)[..., :6, :]
        keep, appear = (-minutes / self.lag).exp(), 0.5 * self.f * self.k2 / self.Vg
        supply = self.p1 * self.Gb

        def step(x: Tensor, inputs: Tensor) -> Tensor:
            self._checked(x, inputs)
            known = torch.cat([x[..., 1:7], inputs, torch.ones_like(x[..., :1])], -1)
            new = (move @ known[..., None])[..., 0]
            rate = self.p1 + 0.5 * (x[..., 1] + new[..., 0])
            gain = supply + appear * (x[..., 6] + new[..., 5])
            fade = minutes * rate
            # (1 - exp(-a)) / a, the share of a constant gain that is left, smooth where a is 0
            share = torch.where(
                fade.abs() < 1e-4, 1 - 0.5 * fade, -torch.expm1(-fade) / torch.where(fade == 0, 1, fade)
            )
            glucose = x[..., 0] * (-fade).exp() + minutes * share * gain
            shown = keep * x[..., 7] + (1 - keep) * 0.5 * (x[..., 0] + glucose)
            return torch.cat([glucose[..., None], new, shown[..., None]], -1)

        return step

    def _checked(self, x: Tensor, inputs: Tensor) -> tuple[Tensor, ...]:
        check_same_dtype(x=check_floating("x", x), inputs=check_floating("inputs", inputs))
        check_shape("x", x, (8,))
        check_shape("inputs", inputs, (2,))
        return x.unbind(-1)


class MealScenarios(NamedTuple):
    """Days of meals.

    Attributes:
        eaten: ``[count, steps]`` carbohydrates [g/min].
        announced: ``[count, steps]`` what the patient told: the same meals, miscounted.
        meal: ``[count, steps]`` size of the meal that was begun last [g], 0 before the first.
    """

    eaten: Tensor
    announced: Tensor
    meal: Tensor


def meal_scenarios(
    count: int,
    days: int = 1,
    *,
    minutes: float = 5.0,
    duration: float = 15.0,
    miscount: float = 0.4,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> MealScenarios:
    """Draw breakfasts, lunches and dinners: times, sizes, and errors of a patient who counts carbohydrates.

    Meals begin at 7, 12 and 18 h, give or take 30, 40 and 50 min (standard deviation), with 45, 70 and 75 g, give or
    take a fifth (between half and one and a half times), and are eaten at a constant rate.

    Args:
        count: scenarios, >= 1.
        days: each from midnight to midnight, >= 1.
        minutes: of a step, > 0; a divisor of a day.
        duration: of a meal [min], > 0; rounded to whole steps.
        miscount: announced amounts are wrong by a uniform factor in ``1 -+ miscount``, in [0, 1).
        generator: of the draws.
        dtype: of the result.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> meals = meal_scenarios(2, generator=torch.Generator().manual_seed(0))
        >>> meals.eaten.shape, bool((5 * meals.eaten.sum(1) > 95).all())
        (torch.Size([2, 288]), True)
    """
    check_integer("count", count, 1)
    check_integer("days", days, 1)
    check_positive("minutes", minutes)
    check_positive("duration", duration)
    check_range("miscount", miscount, 0, 1)
    a_day = 1440 / minutes
    if miscount == 1 or a_day != round(a_day):
        raise ValueError("miscount must be below 1" if miscount == 1 else f"minutes must divide a day, got {minutes}")
    device = drawing_device(generator, torch.zeros(()))
    hours, late, grams = torch.tensor([[7.0, 12.0, 18.0], [0.5, 2 / 3, 5 / 6], [45.0, 70.0, 75.0]], device=device)
    draws = torch.randn(2, count, days, 3, generator=generator, device=device)
    begin = 60 * (hours + late * draws[0].clamp(-2, 2)) + 1440 * torch.arange(days, device=device)[:, None]
    size = grams * (1 + 0.2 * draws[1]).clamp(0.5, 1.5)
    told = size * (1 + miscount * (2 * torch.rand(size.shape, generator=generator, device=device) - 1))
    long = max(1, round(duration / minutes))
    first = (begin / minutes).long()[..., None] + torch.arange(long, device=device)
    place = first.flatten(1)
    rates = []
    for amount in (size, told):
        rate = torch.zeros(count, round(a_day) * days, dtype=dtype, device=device)
        each = (amount / (long * minutes)).to(dtype)[..., None].expand(first.shape).flatten(1)
        rates.append(rate.scatter_add(1, place, each))
    change = size.flatten(1).to(dtype).diff(dim=1, prepend=rates[0].new_zeros(count, 1))
    meal = torch.zeros_like(rates[0]).scatter_add(1, place[:, ::long], change).cumsum(1)
    return MealScenarios(rates[0], rates[1], meal)


def time_in_range(
    glucose: Float[Tensor, "*batch n"], low: float = 70.0, high: float = 180.0
) -> Float[Tensor, "*batch"]:
    """Return the share of readings in [low, high], over the last dimension.

    Args:
        glucose: ``[*batch, n]`` [mg/dl].
        low: bound [mg/dl].
        high: bound [mg/dl], above ``low``.

    Raises:
        TypeError: ``glucose`` is not floating.
        ValueError: no readings, bounds the wrong way round, none above 35, which are mmol/l (times 18.016), or one that
            is at most 1.

    Example:
        >>> time_in_range(torch.tensor([60.0, 100.0, 150.0, 200.0]))
        tensor(0.5000)

    References:
        Battelino et al. (2019), Clinical targets for continuous glucose monitoring data interpretation, Diabetes Care.
    """
    _check_glucose(glucose)
    if not low < high:
        raise ValueError(f"low must be below high, got {low:g} and {high:g}")
    return ((glucose >= low) & (glucose <= high)).to(glucose.dtype).mean(-1)


class RiskIndex(NamedTuple):
    """Risks of low and of high glucose.

    Attributes:
        low: ``[*batch]``, LBGI.
        high: ``[*batch]``, HBGI.
    """

    low: Tensor
    high: Tensor


def risk_index(glucose: Float[Tensor, "*batch n"]) -> RiskIndex:
    r"""Return Kovatchev's indices: the means of 10 f^2 where f is below and where it is above 0.

    :math:`f = 1.509 (\ln^{1.084} G - 5.381)` is 0 at 112.5 mg/dl and symmetric in what doctors call risk. Both indices
    are smooth in the readings.

    Args:
        glucose: ``[*batch, n]`` [mg/dl], > 1.

    Raises:
        TypeError: ``glucose`` is not floating.
        ValueError: no readings, none above 35, which are mmol/l (times 18.016), or one that is at most 1.

    Example:
        >>> risk_index(torch.tensor([112.5, 112.5])).high.item() < 1e-4
        True

    References:
        Kovatchev, Cox, Gonder-Frederick, Clarke (1997), Symmetrization of the blood glucose measurement scale.
    """
    _check_glucose(glucose)
    wide = glucose.to(torch.promote_types(glucose.dtype, torch.float32))  # f is a small difference
    f = 1.509 * (wide.log().pow(1.084) - 5.381)
    low, high = (10 * part.square().mean(-1) for part in (f.clamp(max=0), f.clamp(min=0)))
    return RiskIndex(low.to(glucose.dtype), high.to(glucose.dtype))


def _check_glucose(glucose: Tensor) -> None:
    if check_floating("glucose", glucose).ndim < 1 or not glucose.shape[-1]:
        raise ValueError(f"glucose must have at least one reading along its last dimension, got {tuple(glucose.shape)}")
    if not can_look(glucose) or not glucose.numel():
        return
    if bool(glucose.amax() < 35):
        raise ValueError(f"glucose must be in mg/dl, got at most {glucose.max().item():g}: multiply mmol/l by 18.016")
    if bool((glucose <= 1).any()):
        raise ValueError(f"glucose must be above 1 mg/dl, got {glucose.min().item():g}")
