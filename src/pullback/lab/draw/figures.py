"""The figures that every system draws: curves, bars, growth, images and marked texts, every arm in its colour."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pullback.lab.draw.files import pixels
from pullback.lab.draw.style import INK, STYLE, plain_number, subplots
from pullback.lab.measure import Slope
from pullback.lab.result import Metric, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Growth", "bars", "curves", "images", "scaling", "texts"]

_AVERAGED_FROM = 100
"""From so many values on a curve is drawn twice: its values faintly, and their moving mean."""

_MARKED_TO = 20
"""Up to so many values each is marked: a line between a few says more than was recorded."""

_LOGARITHMIC_FROM = 20.0
"""From this ratio of the largest to the smallest positive value on an axis is logarithmic, unless it is said."""


@dataclass(frozen=True)
class Growth:
    """What one contender costs over the sizes, with the power law fitted to it."""

    name: str
    colour: str
    values: Sequence[float]
    fit: Slope | None


def curves(
    panels: Mapping[str, Sequence[Series]], colours: Mapping[str, str], *, log: bool | None, xlabel: str
) -> Figure:
    """Draw recorded series over their steps, a panel a name; replicates of an arm have its colour."""
    from matplotlib.ticker import MaxNLocator

    figure, grid = subplots(1, len(panels), squeeze=False)
    for axes, (name, found) in zip(grid[0], panels.items(), strict=True):
        labelled: set[str] = set()
        for series in found:
            label = series.of if series.of not in labelled else "_"
            labelled.add(series.of)
            _curve(axes, series, colours[series.of], label)
        values = [value for series in found for value in series.values]
        if log or (log is None and _spans(values)):
            axes.set_yscale("log")
        axes.set_xlabel(xlabel)
        axes.set_title(name, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure, grid[0])
    return figure


def _curve(axes: Axes, series: Series, colour: str, label: str) -> None:
    steps, values = np.asarray(series.steps), np.asarray(series.values)
    width = len(values) // 40 if len(values) >= _AVERAGED_FROM else 1
    marker = "." if len(values) <= _MARKED_TO else None
    if width > 1:
        axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        steps = np.convolve(steps, np.full(width, 1 / width), "valid")
        values = np.convolve(values, np.full(width, 1 / width), "valid")
    axes.plot(steps, values, color=colour, label=label, marker=marker)


def bars(panels: Mapping[str, Sequence[Metric]], colours: Mapping[str, str]) -> Figure:
    """Draw metrics of the arms as bars, a panel a metric; over replicates a line shows mean ± standard deviation."""
    most = max(len(found) for found in panels.values())
    figure, grid = subplots(1, len(panels), squeeze=False, figsize=(4.6 * len(panels), 0.9 + 0.42 * most))
    for axes, (name, found) in zip(grid[0], panels.items(), strict=True):
        places = range(len(found))
        lengths = [m.value if math.isfinite(m.value) else 0.0 for m in found]
        axes.barh(places, lengths, color=[colours[m.of] for m in found], height=0.7)
        for place, metric in enumerate(found):
            text = f"{metric.value:.3g}"
            if metric.spread is not None:
                text += f" ± {metric.spread:.2g}"
                axes.errorbar(lengths[place], place, xerr=metric.spread, color=INK, capsize=3, linewidth=1.2)
            axes.text(1.02, place, text, transform=axes.get_yaxis_transform(), va="center", color=INK)
        axes.set_yticks(places, [m.of or m.name for m in found])
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.axvline(0, color=INK, linewidth=0.8)
        units = {m.unit for m in found if m.unit}
        better = {m.better for m in found if m.better}
        axes.set_title(name + (f" / {units.pop()}" if len(units) == 1 else ""), loc="left")
        if len(better) == 1:
            axes.set_xlabel(f"{better.pop()} is better")
    return figure


def scaling(sizes: Sequence[float], contenders: Sequence[Growth], *, xlabel: str, ylabel: str) -> Figure:
    """Draw what contenders cost over the sizes in logarithms, with their fitted power laws."""
    figure, axes = subplots()
    for each in contenders:
        label = each.name
        if each.fit is not None:
            label += f": exponent {each.fit.exponent:z.2f}"
            if math.isfinite(each.fit.low):
                label += f" ({each.fit.low:z.2f} to {each.fit.high:z.2f})"
            ends = np.asarray([min(sizes), max(sizes)], dtype=float)
            axes.plot(ends, each.fit.factor * ends**each.fit.exponent, color=each.colour, linewidth=1, alpha=0.6)
        axes.plot(sizes, each.values, "o" if each.fit is not None else "o-", color=each.colour, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(list(sizes), [plain_number(size) for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _legend(figure, [axes], columns=1)
    return figure


def images(
    rows: Mapping[str, Sequence[Any]] | Sequence[Sequence[Any]],
    *,
    titles: Sequence[str],
    limits: tuple[float, float],
    colours: Mapping[str, str],
) -> Figure:
    """Draw a grid of images: a row a name, a column a title."""
    import matplotlib

    names = list(rows) if isinstance(rows, Mapping) else [""] * len(rows)
    content = list(rows.values()) if isinstance(rows, Mapping) else list(rows)
    columns = max((len(row) for row in content), default=0)
    if columns == 0:
        raise ValueError("rows must hold at least one image")
    low, high = limits
    shown = [
        [pixels(f"image {place} of row {line}", _scaled(image, low, high)) for place, image in enumerate(row)]
        for line, row in enumerate(content)
    ]
    heights = [max((image.shape[0] / image.shape[1] for image in row), default=1.0) for row in shown]
    width = min(1.5, 12 / columns)
    size = (width * columns + (1.2 if any(names) else 0.2), width * sum(heights) + 0.2 * len(heights) + 0.3)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure, grid = subplots(
            len(content), columns, squeeze=False, figsize=size, gridspec_kw={"height_ratios": heights}
        )
    for row, (name, line) in enumerate(zip(names, shown, strict=True)):
        for column in range(columns):
            axes = grid[row][column]
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            for spine in axes.spines.values():
                spine.set_visible(False)
            if column < len(line):
                axes.imshow(line[column], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            if row == 0 and column < len(titles):
                axes.set_title(titles[column], fontsize=9)
        if name:
            grid[row][0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9, color=colours.get(name, INK))
    return figure


def texts(
    lines: Mapping[str, Sequence[str]] | Sequence[tuple[str, Sequence[str]]],
    *,
    marked: Sequence[Sequence[bool]],
    bold: Sequence[Sequence[bool]],
    colour: str,
) -> Figure:
    """Write a text a line after its name, some words marked, some in bold."""
    rows = list(lines.items()) if isinstance(lines, Mapping) else list(lines)
    if not rows:
        raise ValueError("lines must hold at least one text")
    indent = max(len(name) for name, _ in rows) + 2
    longest = max(indent + len(" ".join(words)) for _, words in rows)
    figure, axes = subplots(1, 1, figsize=(0.072 * longest + 0.3, 0.24 * len(rows) + 0.2))
    for line, (name, words) in enumerate(rows):
        flags = [list(group[line]) if group else [False] * len(words) for group in (marked, bold)]
        if any(len(flag) != len(words) for flag in flags):
            raise ValueError(f"marked and bold must say each of the {len(words)} words of line {line}")
        axes.text(0, -line, name, family="monospace", fontsize=8, color=INK)
        place = indent
        for word, is_marked, is_bold in zip(words, *flags, strict=True):
            box = {"boxstyle": "square,pad=0.1", "facecolor": colour, "linewidth": 0, "alpha": 0.35}
            weight = "bold" if is_bold else "normal"
            options = {"family": "monospace", "fontsize": 8, "weight": weight, "bbox": box if is_marked else None}
            axes.text(place, -line, word, **options)
            place += len(word) + 1
    axes.set(xlim=(0, longest), ylim=(-len(rows) + 0.5, 0.8))
    axes.set_axis_off()
    return figure


def _legend(figure: Figure, panels: Sequence[Axes], columns: int | None = None) -> None:
    """One legend for all panels, above them: nothing that was drawn lies behind it."""
    entries = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if entries:
        room = int(figure.get_figwidth() * 9)  # letters of a line
        columns = columns or max(1, room // (max(map(len, entries)) + 6))
        figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=columns, frameon=False)


def _scaled(image: Any, low: float, high: float) -> Any:
    """Floats from ``[low, high]`` to ``[0, 1]``; bytes as they are."""
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        return (image - low) / (high - low) if image.is_floating_point() else image
    array = np.asarray(image)
    return (array - low) / (high - low) if np.issubdtype(array.dtype, np.floating) else array


def _spans(values: Sequence[float]) -> bool:
    """Whether all values are positive and far apart."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) >= _LOGARITHMIC_FROM
