"""Figures that a reader can trust: an arm has one colour, bars have the lengths of the numbers, axes can be read."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from pullback.lab.draw import style
from pullback.lab.gallery import charts
from pullback.lab.lab import Lab
from pullback.lab.progress import Silent
from pullback.lab.result import RunResult


class Sketchbook(Lab):
    """A lab that keeps its figures."""

    drawn: dict[str, Figure]

    def figure(self, name: str, figure: Figure, caption: str = "") -> None:
        super().figure(name, figure, caption)
        self.drawn[name] = figure


@pytest.fixture
def lab(tmp_path: Path) -> Sketchbook:
    book = Sketchbook(RunResult(slug="inline", family="gradients", directory=tmp_path), tmp_path, Silent())
    book.drawn = {}
    return book


def _arms(lab: Lab) -> None:
    """The second arm records first: colours follow the arms, not what is drawn."""
    ours, base = lab.arm("ours"), lab.arm("base", baseline=True)
    for _ in lab.replicates(2):
        for arm, rate in ((base, 5.0), (ours, 3.0)):
            for step in range(20):
                arm.record("loss", math.exp(-step / rate))
            arm.metric("error", arm.last("loss") + 1, better="lower", unit="ms")


def _colours_by_label(figure: Figure) -> dict[str, str]:
    return {text.get_text(): to_hex(line.get_color()) for legend in figure.legends for text, line in _entries(legend)}


def _entries(legend: object) -> list[tuple]:
    return list(zip(legend.get_texts(), legend.get_lines(), strict=True))


def test_an_arm_has_one_colour_in_every_figure(lab: Sketchbook) -> None:
    _arms(lab)
    lab.curves("loss")
    lab.bars("error")
    lab.scaling((1, 2, 4), {"base": [1.0, 2.0, 4.0], "another": [1.0, 1.1, 1.2], "ours": [1.0, 1.0, 2.0]})
    colours = {arm.name: arm.colour for arm in lab.arms.values()}
    assert colours["ours"] != colours["base"]
    curves = lab.drawn["loss by step"]
    assert _colours_by_label(curves) == colours
    drawn = [to_hex(line.get_color()) for line in curves.axes[0].lines]
    assert sorted(drawn) == sorted([*colours.values()] * 2), "both replicates"
    (axes,) = lab.drawn["error"].axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert {n: to_hex(b.get_facecolor()) for n, b in zip(names, axes.patches, strict=True)} == colours
    scaled = _colours_by_label(lab.drawn["scaling"])
    assert {label.split(":")[0]: c for label, c in scaled.items()} == {**colours, "another": lab.colour("another")}
    assert lab.colour("another") not in colours.values()
    record = RunResult.read(lab.directory)
    (chart,) = charts.curves(record.series, record.arms)
    assert {line.label: style.COLOURS[line.colour] for line in chart.lines} == colours, "the gallery agrees"


def test_curves_show_what_was_recorded(lab: Sketchbook) -> None:
    _arms(lab)
    for step in range(3):
        lab.arm("ours").record("accuracy", step / 2 - 1)
    lab.curves("loss", "accuracy", arms=[lab.arm("ours")], caption="Both.")
    loss, accuracy = lab.drawn["loss and accuracy by step"].axes
    assert loss.lines[0].get_ydata().tolist() == lab.arm("ours").series("loss", replicate=0)
    assert (loss.get_yscale(), accuracy.get_yscale()) == ("log", "linear"), "negative values have no logarithm"
    assert len(loss.lines) == 2, "one arm, two replicates"
    (artifact,) = RunResult.read(lab.directory).artifacts
    assert (artifact.name, artifact.caption) == ("loss and accuracy by step", "Both.")


def test_long_noisy_curves_get_their_mean(lab: Sketchbook) -> None:
    noise = np.random.default_rng(0).standard_normal(400)
    for value in noise:
        lab.arm("ours").record("noise", value)
    lab.curves("noise")
    faint, smooth = lab.drawn["noise by step"].axes[0].lines
    assert faint.get_ydata().tolist() == noise.tolist()
    assert smooth.get_ydata().std() == pytest.approx(noise.std() / math.sqrt(10), rel=0.5)
    assert smooth.get_ydata()[7] == pytest.approx(noise[7:17].mean())
    assert smooth.get_xdata()[7] == pytest.approx(np.arange(7, 17).mean())


def test_bars_have_the_lengths_of_the_numbers_and_lines_of_the_spread(lab: Sketchbook) -> None:
    ours = lab.arm("ours")
    ours.metric("error", [1.0, 2.0, 3.0], better="lower", replicated=True)
    lab.arm("base").metric("error", -5.0, better="lower")
    lab.arm("lost").metric("error", math.nan)
    lab.bars("error")
    (axes,) = lab.drawn["error"].axes
    assert [bar.get_width() for bar in axes.patches] == [2.0, -5.0, 0.0]
    ((low, high),) = [segment[:, 0] for segment in axes.collections[0].get_segments()]
    assert (low, high) == (1.0, 3.0)
    assert [text.get_text() for text in axes.texts] == ["2 ± 1", "-5", "nan"]
    assert axes.get_xlabel() == "lower is better"


def test_scaling_fits_what_it_draws(lab: Sketchbook) -> None:
    fits = lab.scaling((10, 100, 1000, 10_000), {"square": [9.0, 1e2, 1e4, 1e6]}, fit_from=100, name="cost")
    assert fits["square"].exponent == pytest.approx(2.0)
    (axes,) = lab.drawn["cost"].axes
    line, points = axes.lines
    assert points.get_ydata().tolist() == [9.0, 1e2, 1e4, 1e6]
    assert np.asarray(line.get_ydata()) == pytest.approx([1.0, 1e6]), "the power law over all sizes"
    assert [t.get_text() for t in axes.get_xticklabels()] == ["10", "100", "1000", "10 000"]
    assert "exponent 2.00" in lab.drawn["cost"].legends[0].get_texts()[0].get_text()


def test_images_lie_in_their_row_and_column_with_their_limits(lab: Sketchbook) -> None:
    dark, bright = torch.full((2, 3), -1.0), torch.full((2, 3), 1.0)
    ours = lab.arm("ours")
    lab.images({"input": [dark, bright], "ours": [torch.zeros(3, 2, 3)]}, titles=["first", "second"], limits=(-1, 1))
    axes = lab.drawn["images"].axes
    shown = [[image.get_array().tolist() for image in a.get_images()] for a in axes]
    assert shown[0] == [[[0] * 3] * 2]
    assert shown[1] == [[[255] * 3] * 2]
    assert shown[2] == [[[[128] * 3] * 3] * 2]
    assert shown[3] == []
    assert [a.get_title() for a in axes] == ["first", "second", "", ""]
    assert (axes[2].get_ylabel(), to_hex(axes[2].yaxis.label.get_color())) == ("ours", ours.colour)


def test_texts_are_lines_of_words_with_marks_in_the_colour_of_their_arm(lab: Sketchbook) -> None:
    ours = lab.arm("ours")
    lab.texts([("+", ["so", "fine"]), ("-", ["dull"])], marked=[[False, True], [False]], bold=[[0, 0], [1]], of="ours")
    (axes,) = lab.drawn["texts"].axes
    assert [text.get_text() for text in axes.texts] == ["+", "so", "fine", "-", "dull"]
    assert [text.get_position()[1] for text in axes.texts] == [0, 0, 0, -1, -1]
    so, fine = axes.texts[1:3]
    assert fine.get_position()[0] == so.get_position()[0] + 3
    assert [to_hex(t.get_bbox_patch().get_facecolor()) for t in axes.texts if t.get_bbox_patch()] == [ours.colour]
    assert [text.get_text() for text in axes.texts if text.get_weight() == "bold"] == ["dull"]


@pytest.mark.parametrize("limits", [(1.0, 2.2), (1.1e-4, 2.3e-4), (3.0, 40.0), (0.5, 900.0), (1e-9, 1.0), (2.0, 9e6)])
def test_logarithmic_axes_have_numbers_that_do_not_overlap(limits: tuple[float, float]) -> None:
    figure, axes = style.subplots(figsize=(3, 3))
    axes.loglog(limits, limits)
    style.make_readable(figure)
    figure.canvas.draw()
    for axis, side in ((axes.xaxis, 0), (axes.yaxis, 1)):
        low, high = axis.get_view_interval()
        shown = [t for t in axis.get_ticklabels() if t.get_text() and low <= t.get_position()[side] <= high]
        assert len(shown) >= 2, "two labels tell the scale"
        boxes = [text.get_window_extent() for text in shown]
        ends = [(b.x0, b.x1) if side == 0 else (b.y0, b.y1) for b in boxes]
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(ends))
        assert not any(text.get_text() for text in axis.get_ticklabels(minor=True))


def test_ticks_that_were_chosen_stay() -> None:
    figure, axes = style.subplots()
    axes.semilogx([1, 100], [0, 1])
    axes.set_xticks([1, 7, 100], ["one", "seven", "a hundred"])
    style.make_readable(figure)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["one", "seven", "a hundred"]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x: x.curves("los"), KeyError, "no series 'los' of any arm; there are: 'loss'"),
        (lambda x: x.bars("loss"), KeyError, "no metrics 'loss' of any arm; there are: 'error'"),
        (lambda x: x.bars("error", arms=[x.arm("new")]), KeyError, "no metrics 'error' of new"),
        (lambda x: x.texts([]), ValueError, "lines must hold at least one text"),
        (lambda x: x.texts([("", ["a"])], bold=[[]]), ValueError, "marked and bold must say each of the 1 words"),
        (lambda x: x.images([]), ValueError, "rows must hold at least one image"),
        (lambda x: x.images([[torch.zeros(2)]]), ValueError, "image 0 of row 0 must have shape"),
        (lambda x: x.scaling((1, 2), {"a": [1.0, 0.0]}), ValueError, "y must be finite and > 0"),
    ],
)
def test_what_is_not_there_is_named(lab: Sketchbook, call: object, error: type[Exception], match: str) -> None:
    _arms(lab)
    with pytest.raises(error, match=match):
        call(lab)  # type: ignore[operator]
