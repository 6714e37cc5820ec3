"""Bars and curves: the geometry that the templates draw as SVG, in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pullback.lab.result import Metric, Series, spread

__all__ = ["Bar", "Bars", "Chart", "Line", "Tick", "bars", "curves", "format_number", "with_spread"]

WIDTH, HEIGHT = 400, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 30
_MOST_POINTS = 400
_AVERAGED_FROM = 200
_LOGARITHMIC_FROM = 100.0
"""Largest ratio of positive values that is drawn on a linear axis."""


@dataclass(frozen=True)
class Bar:
    """One arm of a metric: from ``start`` over ``length``, both in percent of the width; no length without a bar."""

    label: str
    text: str
    start: float
    length: float
    baseline: bool
    best: bool


@dataclass(frozen=True)
class Bars:
    """A metric over its arms; ``zero`` is where 0 lies, in percent, and ``drawn`` whether bars say anything."""

    name: str
    unit: str
    better: str
    logarithmic: bool
    zero: float
    drawn: bool
    rows: tuple[Bar, ...]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis, in the units of the picture."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A curve: an SVG path, its name and last value, and the number of its colour.

    A long curve is drawn twice: ``noise`` holds its values, ``path`` their moving mean. The replicates of an arm have
    one name, one colour and, for their first, one ``entry`` in the legend, with the mean of their last values.
    """

    label: str
    last: str
    path: str
    noise: str
    colour: int
    entry: bool


@dataclass(frozen=True)
class Chart:
    """Curves of one name over the steps; ``drawn`` where there is more than one step to draw."""

    name: str
    logarithmic: bool
    drawn: bool
    averaged: bool
    lines: tuple[Line, ...]
    horizontal: tuple[Tick, ...]
    vertical: tuple[Tick, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def format_number(value: object) -> str:
    """Return a number as a reader wants it: integers in full, the rest to four digits; other values as text.

    Example:
        >>> [format_number(v) for v in (3596072.0, 0.123456, 2.2e-16, float("nan"), True, "a")]
        ['3,596,072', '0.1235', '2.2e-16', 'NaN', 'yes', 'a']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if math.isnan(value):
            return "NaN"
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        return f"{value:,.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(format_number, value))
    return "" if value is None else str(value)


def with_spread(value: object, spread: float | None) -> str:
    """Return a number and, where it is a mean over replicates, their standard deviation.

    Example:
        >>> with_spread(0.93, 0.021), with_spread(0.93, None)
        ('0.93 ± 0.021', '0.93')
    """
    return format_number(value) if spread is None else f"{format_number(value)} ± {spread:.2g}"


def bars(metrics: Sequence[Metric]) -> list[Bars]:
    """Return the metrics by name, in order, each with its arms.

    Bars begin at 0. Positive values that differ by more than a factor of 100 are drawn by their logarithm, from a tenth
    of the smallest, and say so.
    """
    groups: dict[str, list[Metric]] = {}
    for metric in metrics:
        groups.setdefault(metric.name, []).append(metric)
    return [_bars(name, group) for name, group in groups.items()]


def _bars(name: str, group: list[Metric]) -> Bars:
    finite = [m.value for m in group if _drawable(m.value)]
    better = next((m.better for m in group if m.better), "") or ""
    low, high = min([0.0, *finite]), max([0.0, *finite])
    logarithmic = bool(finite) and min(finite) > 0 and max(finite) / min(finite) > _LOGARITHMIC_FROM
    if logarithmic:
        low, high = math.log10(min(finite)) - 1, math.log10(max(finite))
    span = high - low or 1.0
    zero = 0.0 if logarithmic else -100 * low / span
    best = {"higher": max, "lower": min}.get(better, lambda values: None)(finite) if len(group) > 1 and finite else None
    rows = []
    for metric in group:
        start = length = 0.0
        if _drawable(metric.value):
            end = 100 * ((math.log10(metric.value) if logarithmic else metric.value) - low) / span
            start, length = min(zero, end), abs(end - zero)
        rows.append(
            Bar(
                label=metric.of or name,
                text=with_spread(metric.value, metric.spread) + (f" {metric.unit}" if metric.unit else ""),
                start=round(start, 2),
                length=round(length, 2),
                baseline=metric.baseline,
                best=metric.value == best,
            )
        )
    return Bars(name, group[0].unit, better, logarithmic, round(zero, 2), len(finite) > 1, tuple(rows))


def curves(series: Sequence[Series], arms: Sequence[str] = ()) -> list[Chart]:
    """Return a chart a name, in order, with a line an arm, and a gap where a value is not finite.

    Args:
        series: of a run.
        arms: in the order of their colours, which are those of the run's figures.
    """
    groups: dict[str, list[Series]] = {}
    for one in series:
        if one.values:
            groups.setdefault(one.name, []).append(one)
    return [_chart(name, group, arms) for name, group in groups.items()]


def _chart(name: str, group: list[Series], arms: Sequence[str]) -> Chart:
    finite = [v for s in group for v in s.values if _drawable(v)]
    steps = [float(step) for s in group for step in s.steps]
    logarithmic = bool(finite) and min(finite) > 0 and max(finite) / min(finite) > _LOGARITHMIC_FROM
    heights = [math.log10(v) for v in finite] if logarithmic else finite
    low, high = _range(heights)
    first, last = _range(steps)

    def x(step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * (step - first) / (last - first)

    def y(height: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (height - low) / (high - low)

    def draw(points: Sequence[tuple[int, float]]) -> str:
        height = math.log10 if logarithmic else float
        return _path([(x(step), y(height(value))) if _drawable(value) else None for step, value in points])

    lines: list[Line] = []
    coloured = list(dict.fromkeys([*arms, *(one.of for one in group)]))
    for one in group:
        points = list(zip(one.steps, one.values, strict=True))
        values, mean = draw(_thinned(points)), _moving_mean(points, logarithmic)
        path, noise = (draw(mean), values) if mean else (values, "")
        ends = [other.values[-1] for other in group if other.of == one.of]
        shown = with_spread(sum(v / len(ends) for v in ends), spread(ends))
        label, colour = one.of or name, coloured.index(one.of) % 8
        lines.append(Line(label, shown, path, noise, colour, all(line.label != label for line in lines)))
    vertical = _decades(low, high) if logarithmic else [(t, t) for t in _ticks(low, high)]
    return Chart(
        name,
        logarithmic,
        len(set(steps)) > 1,
        any(line.noise for line in lines),
        tuple(lines),
        horizontal=tuple(Tick(round(x(t), 1), format_number(t)) for t in _ticks(first, last) if t == int(t)),
        vertical=tuple(Tick(round(y(t), 1), _short(shown)) for t, shown in vertical),
    )


def _drawable(value: float) -> bool:
    """Finite, and far enough from the largest float that differences are finite too."""
    return abs(value) < 1e300


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most ``_MOST_POINTS`` points: of each stretch the smallest and the largest value, so that no spike is lost."""
    if len(points) <= _MOST_POINTS:
        return points
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    kept = []
    for begin in range(0, len(points), size):
        stretch = points[begin : begin + size]
        real = [p for p in stretch if _drawable(p[1])]
        extremes = {min(real, key=lambda p: p[1]), max(real, key=lambda p: p[1])} if real else {stretch[0]}
        kept += sorted(extremes)
    return kept


def _moving_mean(points: list[tuple[int, float]], logarithmic: bool) -> list[tuple[int, float]]:
    """Means over stretches of a 50th of a long curve; of logarithms where these are drawn. Empty for a short curve."""
    real = [(step, value) for step, value in points if _drawable(value)]
    if len(real) < _AVERAGED_FROM:
        return []
    size = len(real) // 50
    means = []
    for begin in range(0, len(real) - size + 1, max(1, size // 2)):
        stretch = real[begin : begin + size]
        if logarithmic:
            value = 10.0 ** (sum(math.log10(v) for _, v in stretch) / size)
        else:
            value = sum(v / size for _, v in stretch)
        means.append((stretch[size // 2][0], value))
    return means


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """An SVG path; a point alone between gaps becomes a short dash."""
    parts: list[str] = []
    former = None
    for point, following in zip(points, [*points[1:], None], strict=True):
        if point is not None and former is None and following is None:
            parts.append(f"M{point[0] - 3:.1f} {point[1]:.1f}h6")
        elif point is not None:
            parts.append(f"{'M' if former is None else 'L'}{point[0]:.1f} {point[1]:.1f}")
        former = point
    return "".join(parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        return low - margin, high + margin
    return low, high


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside the range.

    Example:
        >>> _ticks(0.0, 1.0)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / most
    if not 0 < rough < math.inf:
        return []
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
    begin, end = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(begin, end + 1)]


def _decades(low: float, high: float) -> list[tuple[float, float]]:
    """Powers of ten inside the range of exponents, at most six of them, as (exponent, power)."""
    exponents = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    stride = math.ceil(len(exponents) / 6) or 1
    return [(float(e), 10.0**e) for e in exponents[::stride]]


def _short(value: float) -> str:
    text = f"{value:.4g}"
    return text if len(text) <= 6 else f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
