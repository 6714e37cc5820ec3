"""The terminal and HTML reports show what was found, where, and nothing that could run."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pullback.audit.report.findings import Audited, Finding, LineRecord, ParameterRecord
from pullback.audit.report.html import to_html
from pullback.audit.report.remedy import Remedy
from pullback.audit.report.report import Report
from pullback.audit.report.terminal import print_report

_SOURCE = """import torch


def rank(scores, table):
    x = scores * 2.0  # <script>alert("x")</script>
    order = torch.argsort(x)
    return (table[order] * torch.arange(4.0)).sum()
"""


@pytest.fixture
def report(tmp_path: Path) -> Report:
    file = tmp_path / "program.py"
    file.write_text(_SOURCE)
    lines = _SOURCE.splitlines()
    remedy = Remedy(
        "discrete.rank",
        "Ranks with a gradient.",
        str(file),
        "@@ line 6 @@\n-    order = torch.argsort(x)\n+    order = discrete.rank(x, temperature=0.1)",
        "gradient norm of `scores` 0 -> 1.2; loss changes by 0.01",
    )
    finding = Finding(
        *("cut.index", "cut", "error", str(file), 6, 13, 29, lines[5], "argsort", "argsort returns indices"),
        evidence={"gradient": 0.0, "reference": 1.25},
        remedies=(remedy,),
    )
    records = (
        LineRecord(str(file), 5, lines[4], 1, ("mul",), 0.0, None),
        LineRecord(str(file), 6, lines[5], 1, ("argsort",), None, None, ("cut",)),
        LineRecord(str(file), 7, lines[6], 3, ("getitem", "mul", "sum"), 2.0, 1.0),
    )
    blame = {"file": str(file), "line": 6, "code": "cut.index"}
    return Report(
        target="rank",
        findings=(finding,),
        lines=records,
        edges=((0, 1), (1, 2), (2, 1)),
        parameters=(ParameterRecord("scores", (4,), None, True, blame),),
        notes=("C extensions are not seen",),
        silenced=2,
        steps=1,
    )


def test_terminal_shows_line_mark_evidence_remedy_and_blame(report: Report) -> None:
    stream = io.StringIO()
    print_report(report, stream)
    text = stream.getvalue()
    marked = next(line for line in text.splitlines() if "order = torch.argsort(x)" in line)
    assert marked.split()[:2] == ["x", "6"]
    for part in ("cut.index", "reference = 1.25", "discrete.rank(x", "scores [4]", "C extensions", "2 silenced"):
        assert part in text


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in {"src", "href"} and v]
        if tag not in {"meta", "path", "rect", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_html_shows_code_as_code_and_no_empty_evidence() -> None:
    finding = Finding(
        "cut.index",
        "cut",
        "error",
        "a.py",
        1,
        5,
        15,
        "i = x.argmax()",
        "argmax",
        "feed `x` & see",
        evidence={"lost": [], "n": 2},
    )
    text = to_html(Audited(target="f", findings=(finding,)))
    assert "feed <code>x</code> &amp; see" in text
    assert '<p class="dim">n = 2</p>' in text


def test_html_is_one_well_formed_file_that_escapes_the_source(report: Report) -> None:
    text = to_html(report)
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert page.links == []
    assert "script" not in page.tags
    assert "&lt;script&gt;" in text
    assert "discrete.rank(x, temperature=0.1)" in text
    assert text.count('class="hit"') == 1
    assert page.tags.count("g") == len(report.lines)


def test_html_is_written_atomically(report: Report, tmp_path: Path) -> None:
    path = report.save(tmp_path / "report.html")
    assert path.read_text().startswith("<!doctype html>")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["program.py", "report.html"]
    with pytest.raises(OSError, match="missing"):
        report.save(tmp_path / "missing" / "report.html")


def test_a_report_without_source_files_still_renders() -> None:
    finding = Finding("nan.forward", "nan", "error", "<stdin>", 3, 0, 0, "y = x.log()", "log", "log of 0")
    report = Report("f", findings=(finding,), error="Traceback: boom")
    assert "y = x.log()" in to_html(report)
    assert "boom" in to_html(report)
