"""Draws the pictures of the guide: ``python docs/pictures.py [NAME...]``. Those that show pages need Chromium."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import torch
from matplotlib.figure import Figure

import pullback
from pullback import discrete

FOLDER = Path(__file__).parent / "pictures"
INK, GREY = "#1f2933", "#9aa5b1"
COLOURS = ("#c2410c", "#1d4ed8", "#15803d")


def _panels(count: int, height: float = 2.6) -> tuple[Figure, list[matplotlib.axes.Axes]]:
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=INK, labelsize=8)
    return figure, list(axes)


def _save(figure: Figure, name: str) -> None:
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / f"{name}.png", dpi=160, metadata={"Software": None})


def temperature() -> None:
    """The rank of one score as it moves through four others, and its derivative."""
    others = torch.tensor([-1.0, -0.4, 0.3, 1.0])
    moving = torch.linspace(-2, 2, 801, requires_grad=True)
    figure, (value, slope) = _panels(2)
    for kelvin, colour in zip((0.02, 0.15, 0.6), COLOURS):
        scores = torch.cat([moving[:, None], others.expand(len(moving), -1)], -1)
        rank = discrete.rank(scores, temperature=kelvin)[:, 0]
        (derivative,) = torch.autograd.grad(rank.sum(), moving)
        value.plot(moving.detach(), rank.detach(), color=colour, label=f"temperature {kelvin}")
        slope.plot(moving.detach(), derivative, color=colour)
    for axis, title in ((value, "rank"), (slope, "its derivative")):
        axis.set_title(title, fontsize=9, loc="left", color=INK)
        axis.set_xlabel("score", fontsize=8)
        for other in others:
            axis.axvline(float(other), color=GREY, linewidth=0.6, linestyle=":")
    value.legend(fontsize=7, frameon=False)
    slope.set_ylim(0, 6)
    _save(figure, "temperature")


def lost_term() -> None:
    """The loss that is logged, and the term that should fall, with and without a defect of docs/defects.md."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.docs.wild import DEFECTS
    from tests.docs.wild.defect import Lost

    defect = next(d for d in DEFECTS if d.slug == "d-struct")
    assert isinstance(defect, Lost)
    figure, axes = _panels(2)
    for program, colour, label in ((defect.program, COLOURS[0], ".item()"), (defect.mended, COLOURS[1], "mended")):
        inputs = defect.fresh()
        optimizer = torch.optim.Adam([x for x in inputs if x.requires_grad], lr=0.05)
        curves: tuple[list[float], list[float]] = ([], [])
        for _ in range(defect.steps):
            optimizer.zero_grad()
            loss = program(*inputs)
            curves[0].append(float(loss.detach()))
            curves[1].append(float(defect.term(*inputs).detach()))
            loss.backward()
            optimizer.step()
        for axis, curve in zip(axes, curves):
            axis.plot(curve, color=colour, label=label)
    for axis, title in zip(axes, ("the loss, as logged", "disagreement of the two graphs, a term of it")):
        axis.set_title(title, fontsize=9, loc="left", color=INK)
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylim(0)
    axes[0].legend(fontsize=7, frameon=False)
    _save(figure, "lost-term")


PICTURES = {"temperature": temperature, "lost-term": lost_term}


def main() -> int:
    """Draw the pictures that are named, or all."""
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
        print(FOLDER / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
