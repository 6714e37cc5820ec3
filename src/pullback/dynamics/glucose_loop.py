"""The closed loop of a sensor, a controller, a pump and a virtual patient, and a filter that caps doses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_integer, check_positive, check_same_dtype, check_shape
from pullback.core.random import drawing_device
from pullback.core.shapes import Float
from pullback.dynamics.glucose import meal_scenarios
from pullback.dynamics.min_norm import min_norm_filter
from pullback.dynamics.padova import PadovaModel
from pullback.dynamics.rollout import rollout

__all__ = ["GlucoseDays", "GlucoseLoop", "LoopReading"]

_TARGET, _ACTION, _ABSORPTION = 110.0, 55.0, 0.03  # mg/dl; min of each depot; 1/min of each compartment of the gut


class GlucoseDays(NamedTuple):
    """Scenarios of a closed loop, time first.

    Attributes:
        eaten: ``[steps, days]`` carbohydrates [g/min].
        told: ``[steps, days]`` what the controller is told of them [g/min].
        meal: ``[steps, days]`` size of the last meal [g].
        noise: ``[steps, days]`` of the sensor [mg/dl].
        start: ``[days]`` glucose at first, over that at rest.
    """

    eaten: Float[Tensor, "steps days"]
    told: Float[Tensor, "steps days"]
    meal: Float[Tensor, "steps days"]
    noise: Float[Tensor, "steps days"]
    start: Float[Tensor, "days"]


class LoopReading(NamedTuple):
    """What a controller is given at a decision.

    Attributes:
        features: ``[arms, days, 10]``, each of the order of 1: the reading less 110 mg/dl, its change since the last
            decision and since the third last, the mean of the past six hours less 110, insulin on board beyond the
            basal rate and food on board by what they do to glucose, what is told to be eaten now, what an hour of basal
            insulin does, the lower and the upper bound.
        error: ``[arms, days]`` the reading less 110 mg/dl, in hours of basal insulin.
        bolus: ``[days]`` the infusion that covers what is told to be eaten now, in basal ones.
    """

    features: Float[Tensor, "arms days 10"]
    error: Float[Tensor, "arms days"]
    bolus: Float[Tensor, "days"]


class _State(NamedTuple):
    body: Tensor
    last: Tensor
    before: Tensor
    earlier: Tensor
    mean: Tensor
    dose: Tensor
    acting: Tensor
    eaten: Tensor
    arriving: Tensor
    memory: Tensor
    infusion: Tensor


class GlucoseLoop:
    r"""Virtual patients under control, with what a clinic would know of each: basal rate, drop and rise.

    At every decision the sensor is read, the controller doses, and the patient lives on. Insulin and food on board are
    the controller's own reckoning, with two depots of 55 min and two compartments emptied at 0.03 a minute, from the
    doses and from what it was told; nothing of the patient's state but the sensor reaches it.

    Args:
        model: of the patients, ``[days]`` of them.
        minutes: between decisions, > 0.
        parts: steps of the integrator in between, >= 1.
        factors: drop and rise, ``[days]`` each; found by a small dose and a small meal at rest where not given.

    Attributes:
        basal: ``[days]`` infusion at rest [mU/min].
        drop: ``[days]`` the most that 1 mU lowers glucose within eight hours, near rest [mg/dl].
        rise: ``[days]`` the most that 1 g of carbohydrates raises it [mg/dl].

    Raises:
        TypeError: ``model`` is no :class:`PadovaModel`.
        ValueError: a number is out of range.

    References:
        Walsh, Roberts (2006), Pumping insulin (correction factors, insulin on board); Hovorka et al. (2004), for the
        depots; Ames, Xu, Grizzle, Tabuada (2017), for the filter, arXiv 1609.06408.
    """

    def __init__(
        self, model: PadovaModel, minutes: float = 10.0, parts: int = 1, *, factors: tuple[Tensor, Tensor] | None = None
    ) -> None:
        if not isinstance(model, PadovaModel):
            raise TypeError(f"model must be a PadovaModel, got {type(model).__name__}")
        check_positive("minutes", minutes)
        self.model, self.minutes, self.parts = model, float(minutes), check_integer("parts", parts, 1)
        self._advance = model.stepper(minutes / parts)
        rest, steps = model.equilibrium(), math.ceil(480 / minutes)
        self.basal, self._rest = rest.insulin, rest.state
        self.drop, self.rise = self._factors(steps) if factors is None else factors

    def select(self, rows: Tensor) -> GlucoseLoop:
        """Return the loop of some of the patients, by their places, with repeats."""
        model = PadovaModel({name: value[rows] for name, value in self.model.constants.items()})
        return GlucoseLoop(model, self.minutes, self.parts, factors=(self.drop[rows], self.rise[rows]))

    def _factors(self, steps: int) -> tuple[Tensor, Tensor]:
        weight, model, minutes = self.model.constants["BW"], self.model, self.minutes
        inputs = self.basal.new_zeros(steps, 2, *weight.shape, 3)
        inputs[..., 0] = self.basal
        inputs[0, 0, ..., 0] *= 4
        inputs[0, 1, ..., 1], inputs[:, 1, ..., 2] = 0.3 * weight / minutes, 0.3 * weight
        path = rollout(model.stepper(minutes), self._rest.expand(2, *self._rest.shape), inputs)
        change = model.glucose(path) - model.constants["Gb"]
        return -change[:, 0].amin(0) / (3 * minutes * self.basal), change[:, 1].amax(0) / (0.3 * weight)

    def draw(self, generator: torch.Generator | None, *, first: int = 0, steps: int, noise: float = 5.0) -> GlucoseDays:
        """Draw days of :func:`meal_scenarios`, with meals in proportion to weight.

        Meals are those of 70 kg (at most 1.2 times as large) and take 20 min; glucose begins uniformly between 0.75 and
        1.35 of that at rest.

        Args:
            generator: of the draws.
            first: decision of the day that is the first one.
            steps: decisions, at most to the end of the day.
            noise: standard deviation of the sensor's noise [mg/dl], >= 0.

        Raises:
            ValueError: a number is out of range.
        """
        length = round(1440 / self.minutes)
        check_integer("first", first, 0, length - 1)
        check_integer("steps", steps, 1, length - first)
        check_positive("noise", noise, zero=True)
        weight = (self.model.constants["BW"] / 70).clamp(max=1.2)
        count = len(weight)
        drawn = meal_scenarios(count, minutes=self.minutes, duration=20.0, generator=generator, dtype=weight.dtype)
        size, told, meal = ((part.to(weight.device) * weight[:, None])[:, first : first + steps].T for part in drawn)
        device = drawing_device(generator, weight)
        errors = torch.randn(steps, count, generator=generator, device=device)
        start = torch.rand(count, generator=generator, device=device)
        return GlucoseDays(size, told, meal, noise * errors.to(weight), 0.75 + 0.6 * start.to(weight))

    def run(
        self,
        control: Callable[[LoopReading, Tensor], tuple[Tensor, Tensor]],
        low: Float[Tensor, "arms days"],
        high: Float[Tensor, "arms days"],
        days: GlucoseDays,
        *,
        memory: int = 2,
    ) -> tuple[Tensor, Tensor]:
        """Return glucose in plasma [mg/dl] after each decision and the infusions [basal ones], ``[steps, arms, days]``.

        Args:
            control: ``control(reading, memory)`` gives infusions ``[arms, days]`` in basal ones, >= 0, and the new
                memory, ``[arms, days, memory]``, 0 at first.
            low: bounds that the controller is told [mg/dl].
            high: bounds that the controller is told [mg/dl].
            days: :class:`GlucoseDays`.
            memory: numbers that it keeps.

        Raises:
            TypeError: ``control`` cannot be called, or dtypes differ.
            ValueError: shapes do not fit, those that ``control`` returns included.
        """
        check_callable("control", control)
        check_same_dtype(low=low, high=high, **days._asdict(), basal=self.basal)
        count, arms, steps = len(self.basal), len(low), len(days.eaten)
        for name, value, shape in (("low", low, (arms, count)), ("high", high, (arms, count))):
            check_shape(name, value, shape)
        for name, value in list(days._asdict().items())[:4]:
            check_shape(name, value, (steps, count))
        check_shape("start", days.start, (count,))
        model, minutes, basal, drop, rise = self.model, self.minutes, self.basal, self.drop, self.rise
        body = self._rest.expand(arms, -1, -1)
        scale = torch.ones_like(body)
        scale[..., [3, 4, 12]] = days.start[:, None]
        body = body * scale
        shown, none, hour = model.observe(body), torch.zeros_like(low), 60 * basal * drop
        decay, empty = math.exp(-minutes / _ACTION), math.exp(-minutes * _ABSORPTION)
        told_of = [hour / 60, (low - 80) / 10, (high - 160) / 20]

        def step(now: _State, given: tuple[Tensor, ...]) -> _State:
            eaten, told, meal, noise = given
            y = model.observe(now.body) + noise
            error, food = y - _TARGET, now.eaten + minutes * told
            mean = now.mean + minutes / 360 * (error - now.mean)
            course = [error / 60, (y - now.last) / 20, (y - now.earlier) / 40, mean / 60]
            course += [(now.dose + now.acting) * (drop / 60), (food + now.arriving) * (rise / 60)]
            course += [minutes * told * (rise / 60), *told_of]
            features = torch.stack(torch.broadcast_tensors(*course), -1)
            reading = LoopReading(features, error / hour, 60 * told * rise / hour)
            infusion, kept = control(reading, now.memory)
            check_shape("infusions that control returns", infusion, (arms, count))
            check_shape("memory that control returns", kept, (arms, count, memory))
            dose = now.dose + minutes * basal * (infusion - 1)
            acting = decay * (now.acting + minutes / _ACTION * dose)
            arriving = empty * (now.arriving + _ABSORPTION * minutes * food)
            inputs, body = torch.stack(torch.broadcast_tensors(basal * infusion, eaten, meal), -1), now.body
            for _ in range(self.parts):
                body = self._advance(body, inputs)
            past = (y, now.last, now.before, mean)
            return _State(body, *past, decay * dose, acting, empty * food, arriving, kept, infusion)

        still = (none, none, none, none)
        start = _State(
            body, shown, shown, shown, 0.5 * (shown - _TARGET), *still, low.new_zeros(*low.shape, memory), none
        )
        path = rollout(step, start, tuple(days[:4]))
        return model.glucose(path.body)[1:], path.infusion[1:]

    def guard(self, infusion: Tensor, reading: LoopReading, *, low: float = 70.0) -> Tensor:
        r"""Return the nearest infusion >= 0 that keeps glucose above ``low`` in an hour, as far as doses can.

        Predicted are the reading, half an hour more of its trend (at most 30 mg/dl), a third of what food and insulin
        on board will do, and a quarter of what the dose will do: linear in the dose, so that
        :func:`min_norm_filter` is exact.

        Args:
            infusion: ``[arms, days]`` in basal ones.
            reading: :class:`LoopReading` of the decision.
            low: [mg/dl].
        """
        part = reading.features
        trend = (40 * 10 / self.minutes * part[..., 2]).clamp(-30, 30)  # of half an hour
        later = _TARGET + 60 * part[..., 0] + trend + 20 * (part[..., 5] - part[..., 4])
        effect = 0.25 * self.minutes * self.basal * self.drop  # of one basal infusion
        rows = (-effect)[..., None, None]
        return min_norm_filter(infusion[..., None], rows, (later + effect - low)[..., None]).value[..., 0].clamp(min=0)
