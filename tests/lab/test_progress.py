"""Progress: bars with the latest values on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from pullback.lab.lab import Lab
from pullback.lab.progress import Bars, Lines, Silent, display
from pullback.lab.result import RunResult


def _show(shown: Silent) -> None:
    with shown:
        shown.start("train", 10, 4)
        shown.advance(5, {"loss (ours)": 0.123456})
        shown.say("claim held: [bold] is not markup")
        shown.stop()


def test_bars_show_name_steps_and_values() -> None:
    text = io.StringIO()
    _show(Bars(Console(file=text, force_terminal=True, width=120, color_system=None)))
    for part in ("train", "5/10", "loss (ours) 0.1235", "claim held: [bold] is not markup"):
        assert part in text.getvalue()


def test_lines_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    _show(Lines())
    assert capsys.readouterr().err.splitlines() == [
        "train: goes on at 4/10",
        "claim held: [bold] is not markup",
        "train: 5/10 loss (ours) 0.1235",
    ]


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    lines.interval = 0.0
    lines.start("train", 3, 0)
    lines.advance(1, {})
    assert capsys.readouterr().err == "train: 1/3\n"
    lines.interval = 1000.0
    lines.advance(2, {})
    assert capsys.readouterr().err == ""


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    _show(display(quiet=True))
    assert capsys.readouterr() == ("", "")
    assert isinstance(display(), Lines), "standard error is no terminal here"


def test_a_loop_is_shown_with_its_arm_and_replicate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = Lab(RunResult(slug="inline", family="gradients", directory=tmp_path), tmp_path, Lines())
    for _ in lab.replicates(2):
        for _ in lab.arm("Cauchy").steps(3, {}, name="tune"):
            lab.arm("Cauchy").record("loss", 0.5)
    assert capsys.readouterr().err.splitlines() == [
        "Cauchy: tune [0]: 3/3 loss (Cauchy) 0.5",
        "Cauchy: tune [1]: 3/3 loss (Cauchy) 0.5",
    ]
