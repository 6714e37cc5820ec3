"""Draws the pictures of the guide: ``python docs/pictures.py [NAME...]``. Those that show pages need Chromium."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import torch
from matplotlib.figure import Figure

import pullback
from pullback import data, discrete

DOCS = Path(__file__).parent
FOLDER = DOCS / "pictures"
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
    sys.path.insert(0, str(DOCS.parent))
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


def relaxed() -> None:
    """F1 on held-out patients, trained with itself at three temperatures and with cross entropy: docs/relax.md."""
    from torchmetrics.functional.classification import binary_f1_score

    table = data.breast_cancer()
    features = (table.features - table.features.mean(0)) / table.features.std(0)
    labels = table.target.long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:400], order[400:]
    figure, (axis,) = _panels(1)
    for kelvin, colour in ((0.1, COLOURS[0]), (0.3, COLOURS[1]), (1.0, COLOURS[2]), (None, GREY)):
        torch.manual_seed(0)
        model = torch.nn.Linear(30, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        curve = []
        for _ in range(61):
            with torch.no_grad():
                curve.append(float(binary_f1_score(model(features[test]).squeeze(-1).sigmoid(), labels[test])))
            scores = model(features[train]).squeeze(-1)
            if kelvin is None:
                loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, labels[train].float())
            else:
                with pullback.relaxed(temperature=kelvin):
                    loss = 1 - binary_f1_score(scores.sigmoid(), labels[train])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        axis.plot(curve, color=colour, label="cross entropy" if kelvin is None else f"F1, temperature {kelvin}")
    axis.set_ylim(0.85, 1)
    axis.set_title("F1 on held-out patients", fontsize=9, loc="left", color=INK)
    axis.set_xlabel("step", fontsize=8)
    axis.legend(fontsize=7, frameon=False)
    _save(figure, "relaxed")


def _photograph(page: Path, picture: Path, width: int, height: int) -> None:
    """Take a picture of the top of a page."""
    from playwright.sync_api import sync_playwright

    browser_path = next(
        path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": width, "height": height})
        shown.goto(page.as_uri())
        shown.screenshot(path=picture)
        browser.close()


def audit() -> None:
    """The report of docs/report.md as a page."""
    (code, *_) = re.findall(r"```python\n(.*?)```", (DOCS / "report.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        script = Path("detector.py")
        script.write_text(code.replace("print(report)", 'report.save("report.html")'), encoding="utf-8")
        exec(compile(script.read_text(encoding="utf-8"), str(script), "exec"), {"__name__": "detector"})
        _photograph(Path("report.html").resolve(), DOCS / "audit.png", 1000, 1400)


def gallery() -> None:
    """The first page of the gallery, with the reference runs that are shipped."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["gallery", "--runs", f"{folder}/runs", "--out", f"{folder}/site"]
        subprocess.run([sys.executable, "-m", "pullback", *words], check=True)
        _photograph(Path(folder, "site", "index.html"), FOLDER / "gallery.png", 1200, 860)


PICTURES = {"temperature": temperature, "lost-term": lost_term, "relaxed": relaxed, "audit": audit, "gallery": gallery}


def main() -> int:
    """Draw the pictures that are named, or all."""
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
