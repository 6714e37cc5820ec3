"""The look of every figure: one style for light and dark pages, a colour for each arm, axes that can be read."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "INK", "STYLE", "colour", "make_readable", "plain_number", "subplots"]

INK = "#767676"  # contrast 4.5 : 1 on white and on black, so that one transparent figure serves light and dark pages

COLOURS = ("#2f7fd1", "#e07b39", "#2a9d6f", "#c8508f", "#8a6fd1", "#b8912b", "#3aa6b9", "#d1524f")

STYLE: Any = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.facecolor": "none",
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "pullback",
}


def colour(place: int) -> str:
    """Return the colour of the arm that was made as the ``place``-th; from the ninth on they repeat."""
    return COLOURS[place % len(COLOURS)]


def subplots(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """Return a figure and its axes as ``plt.subplots`` does, in the common style and without pyplot's global state.

    Args:
        rows: of axes.
        columns: of axes.
        **options: of ``Figure`` (``figsize``, inches; ``layout``) and of ``Figure.subplots`` (``sharex``, ...).

    Returns:
        The figure, and one axes or an array of them.
    """
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure

    of_figure = {name: options.pop(name) for name in ("figsize", "dpi", "layout") if name in options}
    of_figure.setdefault("figsize", (4.6 * columns, 3.2 * rows))
    of_figure.setdefault("layout", "constrained")
    with matplotlib.rc_context({**STYLE, "axes.prop_cycle": cycler(color=list(COLOURS))}):
        drawn = Figure(**of_figure)
        return drawn, drawn.subplots(rows, columns, **options)


def make_readable(drawn: Figure) -> None:
    """Give a finished figure the common ink, legends without frames, and logarithmic axes with numbers on them.

    What a system makes after :func:`subplots` comes in matplotlib's defaults: black text, white legends, powers of ten
    alone on an axis that spans less than two, or labels of minor ticks that overlap.
    """
    from matplotlib.colors import to_hex
    from matplotlib.legend import Legend
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter

    for text in drawn.findobj(Text):
        if text.get_color() in ("black", "k", "#000000"):
            text.set_color(INK)
    for legend in drawn.findobj(Legend):
        if to_hex(legend.get_frame().get_facecolor()) == "#ffffff":
            legend.set_frame_on(False)
    for axes in drawn.axes:
        box = axes.get_window_extent().transformed(drawn.dpi_scale_trans.inverted())
        # Labels stand side by side on one axis, and one above the other on the other.
        for axis, room in ((axes.xaxis, box.width / 0.55), (axes.yaxis, box.height / 0.25)):
            if axis.get_scale() == "log" and isinstance(axis.get_major_formatter(), LogFormatter):
                _label_logarithmic(axis, most=min(max(int(room), 2), 9))


def _label_logarithmic(axis: Axis, most: int) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low) if low > 0 else math.inf
    if not isinstance(axis.get_major_locator(), FixedLocator):
        # About four to nine labelled ticks: every power of ten or, on a short axis, their multiples in between.
        multiples: tuple[float, ...] = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.5 else (1.0, 2.0, 5.0)
        if decades < 0.7:
            multiples = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
        axis.set_major_locator(LogLocator(10, subs=multiples, numticks=most))
    axis.set_major_formatter(FuncFormatter(lambda value, place: plain_number(value)))
    axis.set_minor_formatter(NullFormatter())


def plain_number(value: float) -> str:
    """Return a number as people write it: digits where they are few, a power of ten otherwise.

    Example:
        >>> [plain_number(x) for x in (0.001, 0.25, 3.0, 20_000.0, 1e6, 3e-5)]
        ['0.001', '0.25', '3', '20 000', '$10^{6}$', '$3 \\\\cdot 10^{-5}$']
    """
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        text = f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
        return f"{int(text):,}".replace(",", " ") if text.lstrip("-").isdigit() and abs(value) >= 1e4 else text
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    factor = value / 10.0**exponent
    power = f"10^{{{exponent}}}"
    return f"${power}$" if abs(factor - 1) < 1e-9 else f"${factor:.3g} \\cdot {power}$"
