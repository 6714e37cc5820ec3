"""Up to which horizon backpropagation through an unrolled system is worth more than function values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_integer
from pullback.gradients.lyapunov import lyapunov_spectrum
from pullback.gradients.perturbed import directions
from pullback.gradients.unrolled import unrolled_losses
from pullback.gradients.variance import GradientVariance, gradient_variance

__all__ = ["GradientHorizon", "gradient_horizon"]

CLEAR = 10.0
"""Signal-to-noise ratio (of powers) above which a horizon is short: derivatives at two samples are nearly equal."""


@dataclass(frozen=True)
class GradientHorizon:
    """How gradients through an unrolled system grow, and where estimates by function values become the better ones.

    Attributes:
        steps: ``[horizons]`` numbers of steps ``t``.
        backprop: moments of a gradient by backpropagation, ``[horizons]`` each.
        evolution: moments of a gradient by an antithetic pair of values, ``[horizons]`` each.
        growth: rate per step of the mean of ``log ||gradient||``, fitted to the later half of the horizons.
        exponent: the largest Lyapunov exponent per step over the later half, mean over perturbed trajectories.
        exponent_error: its standard error.
        crossing: the first horizon from which on function values have the smaller variance; infinite if there is none.
        predicted: that horizon from the variance of backpropagation at short horizons alone: where the line through
            ``log variance`` at the horizons whose signal-to-noise ratio is at least 10 reaches the largest variance of
            function values; infinite if it never does, NaN if fewer than three horizons are short.
        by_exponent: that horizon if the variance grew as ``exp(2 exponent t)``, which it outgrows.
        regime: ``"safe"`` (negative exponent), ``"chaotic"`` (positive), or ``"edge"`` where it is within two standard
            errors of 0, or of no consequence up to the longest horizon (a factor below e).
        advice: one sentence.
    """

    steps: Tensor
    backprop: GradientVariance
    evolution: GradientVariance
    growth: float
    exponent: float
    exponent_error: float
    crossing: float
    predicted: float
    by_exponent: float
    regime: str
    advice: str


def gradient_horizon(
    step: Callable[..., Any],
    loss: Callable[[Any], Tensor],
    state: Any,
    parameters: Mapping[str, Tensor],
    *,
    max_steps: int,
    smoothing: float,
    samples: int = 256,
    trajectories: int = 16,
    every: int = 1,
    inputs: Sequence[Any] | Tensor | None = None,
    generator: torch.Generator,
    chunk: int | None = None,
) -> GradientHorizon:
    r"""Compare two estimates of the gradient of ``E_e loss(s_t(p + s e))`` at every horizon ``t`` up to ``max_steps``.

    ``s_t = step(s_{t-1}, p)``. By the chain rule ``ds_t/dp = sum_k (prod_{i=k+1..t} J_i) dstep/dp |_k``: where the
    largest Lyapunov exponent is positive, a gradient by backpropagation grows as ``exp(exponent t)``, its variance
    faster than the square of that (it is a mean of squares, which few samples carry), while the variance of an estimate
    by values is bounded by ``n (range of the loss)^2 / (4 s^2)``. In a stable system gradients in ``p`` stay, since
    ``p`` enters at every step; those in the initial state fade at the rate of the exponent.

    Args:
        step: ``(state, parameters) -> state``, differentiable; ``(state, parameters, inputs[t])`` with ``inputs``.
        loss: of a state, a finite scalar.
        state: the initial state: a floating tensor or a nesting of them; or a function of the parameters that returns
            it, for gradients in the initial state.
        parameters: floating tensors by name; left unchanged.
        max_steps: the longest horizon, a multiple of ``every``.
        smoothing: ``s > 0``, in units of the parameters.
        samples: perturbations ``e``, >= 2, the same for all horizons.
        trajectories: >= 2, over which the exponent is averaged.
        every: steps from one horizon to the next, at most half of ``max_steps``.
        inputs: what drives the system, ``max_steps`` entries.
        generator: of the perturbations.
        chunk: how many samples run at once, by ``torch.func.vmap``; ``None``: one at a time.

    Returns:
        A :class:`GradientHorizon`.

    Raises:
        TypeError: ``step`` or ``loss`` is not callable, or tensors are not floating.
        ValueError: a number is out of range, ``inputs`` has another length, or states or losses are not finite.

    Example:
        >>> found = gradient_horizon(lambda x, p: p["r"] * x * (1 - x), lambda x: x, torch.tensor(0.3).double(),
        ...                          {"r": torch.tensor(3.9).double()}, max_steps=40, smoothing=1e-3, samples=500,
        ...                          chunk=500, generator=torch.Generator().manual_seed(0))
        >>> found.regime, 10 < found.crossing < 16, 10 < found.predicted < 16
        ('chaotic', True, True)

    References:
        Metz, Freeman, Schoenholz, Kachman (2021), Gradients are not all you need, arXiv 2111.05803.
        Parmas, Rasmussen, Peters, Doya (2018), PIPPS: flexible model-based policy search robust to the curse of chaos.
    """
    check_callable("step", step)
    check_callable("loss", loss)
    check_integer("every", every, 1)
    check_integer("trajectories", trajectories, 2)
    if check_integer("max_steps", max_steps, 2 * every) % every:
        raise ValueError(f"max_steps must be a multiple of every, got max_steps={max_steps}, every={every}")
    start = state if callable(state) else lambda p: state

    def losses(p: dict[str, Tensor]) -> Tensor:
        return unrolled_losses(
            lambda x, *drive: step(x, p, *drive), loss, start(p), steps=max_steps, every=every, inputs=inputs
        )

    options: dict[str, Any] = {"samples": samples, "smoothing": smoothing, "generator": generator, "chunk": chunk}
    backprop = gradient_variance(losses, parameters, estimator="reparam", **options)
    evolution = gradient_variance(losses, parameters, estimator="evolution", **options)
    exponents = _exponents(step, start, parameters, max_steps, inputs, trajectories, options)
    steps = torch.arange(every, max_steps + 1, every)
    return _judge(steps, backprop, evolution, exponents)


def _exponents(
    step: Callable[..., Any],
    start: Callable[[Any], Any],
    parameters: Mapping[str, Tensor],
    max_steps: int,
    inputs: Any,
    trajectories: int,
    options: Mapping[str, Any],
) -> Tensor:
    """Return the largest exponent of each perturbed trajectory over the later half of the horizons."""
    words: dict[str, Any] = {"burn_in": max_steps // 2, "steps": max_steps - max_steps // 2, "count": 1}
    words["inputs"] = inputs
    found = []
    centre = {name: p.detach() for name, p in parameters.items()}
    size = min(options["chunk"] or 1, trajectories)
    for noise in directions(centre, trajectories, size, options["generator"]):
        p = {name: value + options["smoothing"] * noise[name] for name, value in centre.items()}
        if options["chunk"] is None:
            one = {name: value[0] for name, value in p.items()}
            spectrum = lyapunov_spectrum(lambda x, *drive, p=one: step(x, p, *drive), start(one), **words)
        else:
            x = torch.func.vmap(start)(p)

            def batched(x: Any, *drive: Any, p: Any = p) -> Any:
                return torch.func.vmap(lambda x, p: step(x, p, *drive))(x, p)

            spectrum = lyapunov_spectrum(batched, x, batch_ndim=1, **words)
        found.append(spectrum.exponents.reshape(-1))
    return torch.cat(found)


def _judge(
    steps: Tensor, backprop: GradientVariance, evolution: GradientVariance, exponents: Tensor
) -> GradientHorizon:
    t = steps.double()
    ours, theirs = backprop.variance.double().cpu().log(), evolution.variance.double().cpu().log()
    later = t > t[-1] / 2
    growth, _ = _line(t[later], backprop.log_norm.double().cpu()[later])
    no_worse = (theirs >= ours) | torch.isneginf(theirs)  # pairs whose values are equal say nothing
    last = int(no_worse.nonzero().max()) if bool(no_worse.any()) else -1
    crossing = float(t[last + 1]) if last + 1 < len(t) else math.inf
    exponent, error = float(exponents.mean()), float(exponents.std()) / math.sqrt(len(exponents))
    predicted = by_exponent = math.nan
    short = (backprop.signal_to_noise.cpu() >= CLEAR) & torch.isfinite(ours)
    if int(short.sum()) >= 3:
        level = float(theirs.max())
        slope, intercept = _line(t[short], ours[short])
        predicted = _reach(slope, intercept, level)
        first = int(short.nonzero()[0])
        by_exponent = _reach(2 * exponent, float(ours[first] - 2 * exponent * t[first]), level)
    flat = abs(exponent) <= max(2 * error, 1 / float(t[-1]))
    regime = "edge" if flat else "chaotic" if exponent > 0 else "safe"
    return GradientHorizon(
        *(steps, backprop, evolution, growth, exponent, error, crossing, predicted, by_exponent, regime),
        _advice(regime, exponent, crossing, int(steps[-1])),
    )


def _line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Return slope and intercept of the least squares line."""
    centred = x - x.mean()
    slope = float((centred * y).sum() / centred.square().sum())
    return slope, float(y.mean() - slope * x.mean())


def _reach(slope: float, intercept: float, level: float) -> float:
    return max((level - intercept) / slope, 0.0) if slope > 0 else math.inf


def _advice(regime: str, exponent: float, crossing: float, longest: int) -> str:
    if math.isinf(crossing):
        fades = f"; those in the initial state fade by exp({exponent:.3g}) a step" if regime == "safe" else ""
        return f"backpropagate: its gradients are the less noisy ones at every horizon up to {longest} steps{fades}"
    return (
        f"beyond {crossing:.0f} steps use function values of a smoothed loss, shorten the horizon, or change the "
        f"parameters so that the exponent, {exponent:.3g} a step, is negative"
    )
