"""The table of stops covers what the tracer can say, and decides what the judge does with it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import pullback
from pullback.audit import judge, trace
from pullback.audit.judge import deliberate


def test_every_code_of_a_stop_has_a_row() -> None:
    rooms = [Path(room.__path__[0]) for room in (trace, judge)]
    source = "".join(path.read_text(encoding="utf-8") for room in rooms for path in room.glob("[!d]*.py"))
    codes = set(re.findall(r'"(cut\.(?!silenced)[a-z_]+|control-flow\.branch)"', source))
    assert len(codes) >= 14
    assert codes == set(deliberate.STOPS)
    with pytest.raises(KeyError):
        deliberate.kind_of("cut.nothing")


def test_the_table_cures_a_false_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program whose comparison hides most of its derivative: an error, until its row says that it was meant."""

    def gated(x: torch.Tensor) -> torch.Tensor:
        return ((x > 0.5).float() * x.exp()).sum()

    def severity() -> str:
        report = pullback.audit(gated, torch.tensor([0.49, 0.51, 0.9], requires_grad=True))
        (finding,) = [f for f in report.findings if f.code == "cut.comparison"]
        return finding.severity

    before = severity()
    monkeypatch.setitem(deliberate.STOPS, "cut.comparison", deliberate.StopKind(said=True))
    assert (before, severity()) == ("error", "info")
