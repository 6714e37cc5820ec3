"""Run the demo: audit, train as it is, train relaxed, write the page."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

import pullback
from pullback import data
from pullback.audit import Finding, Report
from pullback.audit.report.terminal import print_report
from pullback.core.checks import check_positive
from pullback.core.files import write_atomically
from pullback.demo import pipeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Curve", "Summary", "run"]

PLACES, SET_SIZE = 4, 5


class Summary(TypedDict):
    """What the demo measured; printed by ``pullback demo --json``."""

    page: str
    audit: str
    findings: list[str]
    chance: float
    plain: float
    relaxed: float
    seconds: float


@dataclass
class Curve:
    """Exact order on held-out sets while training: step and share."""

    steps: list[int]
    exact: list[float]


def run(
    out: str | Path = "pullback-demo",
    *,
    seed: int = 0,
    steps: int = 1000,
    sets: int = 32,
    test_sets: int = 500,
) -> Summary:
    """Audit the pipeline, train it as it is and relaxed on real digits, and write a page with pictures.

    Args:
        out: folder of ``index.html`` and ``audit.html``; made if missing.
        seed: of every random draw.
        steps: training steps, the same number as it is and under :func:`pullback.relaxed`.
        sets: sets of five numbers a step.
        test_sets: held-out sets, made of digit images that training never sees.

    Returns:
        :class:`Summary`.

    Raises:
        DataMissingError: scikit-learn, which ships the digits, is not installed.
        ValueError: a number is not positive.
    """
    for name, value in (("steps", steps), ("sets", sets), ("test_sets", test_sets)):
        check_positive(name, value)
    began = time.monotonic()
    out = Path(out)
    train, test = data.digits("train"), data.digits("test")
    out.mkdir(parents=True, exist_ok=True)
    images, values = _sets(test, test_sets, torch.Generator().manual_seed(seed + 1))

    print("1. Audit the pipeline as it is")
    few_images, few_values = _sets(train, 8, torch.Generator().manual_seed(seed))
    model = _model(seed)
    report = pullback.audit(pipeline.ordering_loss, model, few_images, few_values)
    print_report(report)
    audit_page = report.save(out / "audit.html")

    print(f"\n2. Train it as it is: {steps} steps")
    plain = _train(model, train, (images, values), steps, sets, seed, relaxed=False)
    print(f"\n3. Train the same code under pullback.relaxed: {steps} steps")
    model = _model(seed)
    relaxed = _train(model, train, (images, values), steps, sets, seed, relaxed=True)

    summary = Summary(
        page=str(out / "index.html"),
        audit=str(audit_page),
        findings=[f"{f.code} at line {f.line}" for f in report.findings if f.severity != "info"],
        chance=1 / 120,
        plain=plain.exact[-1],
        relaxed=relaxed.exact[-1],
        seconds=time.monotonic() - began,
    )
    _write_page(out / "index.html", summary, report, plain, relaxed, _pictures(model, images, values))
    print(
        f"\nExact order of {SET_SIZE} held-out numbers: {summary['plain']:.1%} as it is, "
        f"{summary['relaxed']:.1%} relaxed (chance {summary['chance']:.1%}). {summary['seconds']:.0f} s."
        f"\nOpen {summary['page']}"
    )
    return summary


def _model(seed: int) -> pipeline.NumberReader:
    """The same initial weights for both trainings, without touching the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return pipeline.NumberReader()


def _sets(digits: data.LabelledImages, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw ``count`` sets of five numbers: images ``[count, 5, 8, 32]`` and values ``[count, 5]``."""
    numbers = data.digit_numbers(digits.images, digits.labels, count * SET_SIZE, PLACES, generator=generator)
    height, width = numbers.images.shape[-2:]
    return numbers.images.view(count, SET_SIZE, height, width), numbers.values.view(count, SET_SIZE)


def _train(
    model: pipeline.NumberReader,
    digits: data.LabelledImages,
    held_out: tuple[Tensor, Tensor],
    steps: int,
    sets: int,
    seed: int,
    *,
    relaxed: bool,
) -> Curve:
    generator = torch.Generator().manual_seed(seed + 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps, pct_start=0.1)
    curve = Curve([0], [pipeline.exact_order(model, *held_out)])
    for step in _progress(steps, curve):
        images, values = _sets(digits, sets, generator)
        optimizer.zero_grad()
        temperature = 0.3 * 0.03 ** (step / steps)  # coarse differences first, then fine ones
        with pullback.relaxed(temperature=temperature) if relaxed else nullcontext():
            loss = pipeline.ordering_loss(model, images, values)
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % max(1, steps // 12) == 0 or step + 1 == steps:
            curve.steps.append(step + 1)
            curve.exact.append(pipeline.exact_order(model, *held_out))
    return curve


def _progress(steps: int, curve: Curve) -> Iterator[int]:
    """A bar on a terminal, a line now and then elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        for step in range(steps):
            yield step
            if len(curve.steps) > 1 and curve.steps[-1] == step + 1:
                print(f"   step {step + 1} of {steps}: exact order {curve.exact[-1]:.1%}")
        return
    columns = (TextColumn("   exact order {task.fields[exact]:.1%}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=steps, exact=curve.exact[-1])
        for step in range(steps):
            yield step
            progress.update(task, advance=1, exact=curve.exact[-1])
    print(f"   exact order {curve.exact[-1]:.1%}")


def _pictures(model: pipeline.NumberReader, images: Tensor, values: Tensor, count: int = 6) -> Figure:
    """Held-out sets in the order the model gives them; a number in a wrong place is framed."""
    from matplotlib.figure import Figure

    model.eval()
    with torch.no_grad():
        order = pipeline.read(model, images[:count]).argsort(-1)
    figure = Figure(figsize=(9.5, 0.62 * count), layout="constrained")
    axes = figure.subplots(count, SET_SIZE, squeeze=False)
    for row in range(count):
        wanted = values[row].sort().values
        for column, axis in enumerate(axes[row]):
            item = int(order[row, column])
            axis.imshow(images[row, item], cmap="gray_r", aspect="equal")
            right = int(values[row, item]) == int(wanted[column])
            axis.set(xticks=[], yticks=[])
            for spine in axis.spines.values():
                spine.set(visible=not right, color="tab:red", linewidth=2)
    return figure


def _curves(plain: Curve, relaxed: Curve) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(relaxed.steps, relaxed.exact, "o-", label="with pullback.relaxed")
    axis.plot(plain.steps, plain.exact, "s-", label="as it is")
    axis.axhline(1 / 120, linestyle=":", color="gray", label="chance")
    axis.set(xlabel="training step", ylabel="sets in exact order (held out)", ylim=(-0.03, 1.03))
    axis.legend()
    axis.grid(alpha=0.3)
    return figure


def _encoded(figure: Figure) -> str:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return base64.b64encode(stream.getvalue()).decode()


def _write_page(path: Path, summary: Summary, report: Report, plain: Curve, relaxed: Curve, pictures: Figure) -> None:
    from jinja2 import Environment

    template = resources.files("pullback.demo").joinpath("demo.html.jinja").read_text(encoding="utf-8")
    source = resources.files("pullback.demo").joinpath("pipeline.py").read_text(encoding="utf-8").splitlines()
    shown: list[Finding] = [f for f in report.findings if f.severity != "info"]
    text = (
        Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            summary=summary,
            findings=shown,
            marked={f.line: f.severity for f in reversed(shown)},
            source=source,
            first=next(i for i, line in enumerate(source, 1) if line.startswith("def read")),
            last=next(i for i, line in enumerate(source, 1) if "return 0.3 * misplaced" in line),
            curves=_encoded(_curves(plain, relaxed)),
            pictures=_encoded(pictures),
        )
    )
    write_atomically(path, text.encode())
