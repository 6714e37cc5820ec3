"""Every form of a report takes every number and every text; SARIF and annotations say what their readers expect."""

from __future__ import annotations

import html
import io
import json
import math
import os
import re
from pathlib import Path
from urllib.parse import unquote, urlparse
from urllib.request import url2pathname

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from pullback.audit.report.findings import KINDS, SEVERITIES, Finding, LineRecord, ParameterRecord
from pullback.audit.report.numbers import level
from pullback.audit.report.remedy import Change, Remedy
from pullback.audit.report.report import Report
from pullback.audit.report.terminal import print_report, to_text

_numbers = st.floats() | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, 1e-310, 1e-45, 1e308])
_texts = st.text(max_size=30) | st.sampled_from(["", "a\nb", "]]>--><script>", "\udc80", "%0A::error::", "[bold]{}%s"])
_counts = st.integers(-3, 20)
_evidence = st.dictionaries(_texts, st.recursive(_numbers | st.integers() | _texts | st.none(), st.lists, max_leaves=4))
_files = st.sampled_from([__file__, "<stdin>", "no such file.py", "\udc80.py", os.path.join(os.getcwd(), "a b.py")])


@st.composite
def _findings(draw: st.DrawFn) -> Finding:
    kind = draw(st.sampled_from(KINDS))
    file = draw(_files)
    changes = tuple(
        Change(abs(draw(_counts)) + 1, abs(draw(_counts)), draw(_texts)) for _ in range(draw(st.integers(0, 2)))
    )
    remedy = Remedy("discrete.argmax", draw(_texts), file, draw(_texts), draw(_texts), changes)
    return Finding(
        f"{kind}.{draw(st.sampled_from(['index', 'forward', 'gradient', 'of no table']))}",
        kind,
        draw(st.sampled_from(SEVERITIES)),
        file,
        *(draw(_counts) for _ in range(3)),
        draw(_texts),
        draw(_texts),
        draw(_texts),
        draw(_evidence),
        (remedy,) * draw(st.integers(0, 1)),
    )


_lines = st.builds(
    LineRecord,
    *(_files, _counts, _texts, _counts, st.just(("mul",)), st.none() | _numbers, st.none() | _numbers),
    st.lists(st.sampled_from(KINDS), max_size=2).map(tuple),
)
_blame = st.none() | st.just({"file": "f.py", "line": 3, "code": "cut.index"})
_parameters = st.builds(ParameterRecord, _texts, st.just((2, 3)), st.none() | _numbers, st.booleans(), _blame)


@st.composite
def _reports(draw: st.DrawFn) -> Report:
    lines = draw(st.lists(_lines, max_size=4))
    edges = [(i, j) for i in range(len(lines)) for j in range(len(lines)) if draw(st.booleans())]
    return Report(
        draw(_texts),
        tuple(draw(st.lists(_findings(), max_size=3))),
        tuple(lines),
        tuple(edges),
        tuple(draw(st.lists(_parameters, max_size=3))),
        tuple(draw(st.lists(_texts, max_size=2))),
        steps=draw(st.integers(0, 3)),
        error=draw(st.none() | _texts),
    )


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is not JSON")


@settings(max_examples=60)
@given(_reports())
def test_no_number_and_no_text_breaks_a_form(report: Report) -> None:
    assert repr(report).startswith("<Report of ")
    for text in (str(report), to_text(report, colour=True), report.to_html(), report._repr_html_()):
        for finding in report.findings:
            assert finding.code in html.unescape(text)
    assert report.to_annotations().count("\n") == max(len(report.findings) - 1, 0)
    record = json.loads(report.to_json(), parse_constant=_refuse)
    again = Report.from_dict(record)
    assert json.loads(again.to_json(), parse_constant=_refuse) == record
    for one, other in zip(report.lines, again.lines, strict=True):
        for a, b in ((one.gradient_norm, other.gradient_norm), (one.gain, other.gain)):
            assert a == b or (math.isnan(a) and math.isnan(b))
    _check_sarif(json.loads(json.dumps(report.to_sarif(), allow_nan=False)), report)


def test_numbers_of_numpy_are_numbers() -> None:
    evidence = {"norm": np.float32(0.5), "count": np.int64(3), "lost": np.float64("nan"), "none": None, "names": []}
    finding = Finding(*("zero.round", "zero", "error", "f.py", 1, 0, 0, "", "round", "lost"), evidence)
    report = Report("f", (finding,))
    assert "norm = 0.5, count = 3, lost = nan\n" in str(report)
    read = json.loads(report.to_json(), parse_constant=_refuse)["findings"][0]["evidence"]
    assert read == {"norm": 0.5, "count": 3, "lost": "NaN", "none": None, "names": []}


@given(_numbers, _numbers)
def test_a_bar_is_never_longer_than_its_place(norm: float, largest: float) -> None:
    assert 0 <= level(norm, largest) <= 1


def test_bars_follow_the_logarithm_of_the_norm() -> None:
    assert level(1e-2, 1.0) == pytest.approx(0.75)
    assert level(1e-300, 1e-298) == pytest.approx(0.75)
    assert level(3.0, 3.0) == 1
    assert level(1e-9, 1.0) == 0


def _check_sarif(log: dict, report: Report) -> None:
    """The rules of SARIF 2.1.0 that a reader relies on (numbers of its sections beside them)."""
    assert log["version"] == "2.1.0"  # 3.13.2
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]  # 3.18.3, 3.19.23
    assert run["tool"]["driver"]["name"] == "pullback"
    assert len({rule["id"] for rule in rules}) == len(rules)  # 3.49.3
    assert len(run["results"]) == len(report.findings)
    assert run["invocations"][0]["executionSuccessful"] is (report.error is None)  # 3.20.14
    for result, finding in zip(run["results"], report.findings, strict=True):
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"] == finding.code  # 3.27.6
        assert result["level"] == {"error": "error", "warning": "warning", "info": "note"}[finding.severity]  # 3.27.10
        assert result["message"]["text"]  # 3.11.8
        (location,) = result["locations"]
        place = location["physicalLocation"]
        assert re.fullmatch(r"[A-Za-z0-9._~/%:-]+", place["artifactLocation"]["uri"])  # 3.4.3, RFC 3986
        regions = [place["region"]] if "region" in place else []
        for fix in result.get("fixes", []):
            for change in fix["artifactChanges"]:  # 3.55.3
                assert change["replacements"]  # 3.56.3
                regions += [one["deletedRegion"] for one in change["replacements"]]  # 3.57.3
        for region in regions:
            assert region["startLine"] >= 1  # 3.30.5
            start = region["startLine"], region.get("startColumn", 1)
            end = region.get("endLine", region["startLine"]), region.get("endColumn", math.inf)
            assert start <= end  # 3.30.7
            assert region.get("startColumn", 1) >= 1  # 3.30.6


@pytest.fixture
def report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my models" / "net.py"
    file.parent.mkdir()
    file.write_text("import torch\n\n\ndef f(x):\n    return x.round().sum()\n")
    remedy = Remedy(
        "discrete.round",
        "Rounded values forward, a slope backwards.",
        str(file),
        "@@ -5 +5 @@\n-    return x.round().sum()\n+    return discrete.round(x, temperature=0.1).sum()",
        "gradient norm of `x` 0 -> 1.7; loss changes by 0",
        (Change(2, 0, "from pullback import discrete\n"), Change(5, 1, "    return discrete.round(x).sum()\n")),
        {"loss before": 1.0, "loss after": math.inf, "gradients": []},
    )
    finding = Finding(
        *("zero.round", "zero", "error", str(file), 5, 12, 21, "    return x.round().sum()", "round"),
        "100 % of the slope is zero\nhere",
        {"gradient": 0.0},
        (remedy,),
    )
    silent = Finding("cut.index", "cut", "info", "<cell>", 0, 0, 0, "", "argmax", "unknown place")
    return Report("f", (finding, silent), steps=1, notes=("C++ is not seen",))


def test_print_shows_the_remedy_and_what_it_did(report: Report) -> None:
    shown = str(report)
    assert "+    return discrete.round(x, temperature=0.1).sum()" in shown
    assert "gradient norm of `x` 0 -> 1.7; loss changes by 0" in shown
    assert "1 error  1 info" in shown
    assert "\x1b" not in shown
    assert "\x1b[31m      -    return x.round().sum()\x1b[0m" in to_text(report, colour=True)


def test_colours_are_for_terminals(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for variable, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", variable)
        stream = Terminal()
        print_report(report, stream)
        assert ("\x1b[" in stream.getvalue()) is coloured


def test_a_parameter_without_a_gradient_is_never_left_out() -> None:
    parameters = (
        ParameterRecord("body.0.weight", (4, 3), None, True, {"file": "net.py", "line": 7, "code": "cut.detach"}),
        ParameterRecord("body.0.bias", (4,), None, True),
        ParameterRecord("spare.weight", (2,), None, False),
        ParameterRecord("scale", (), 0.0, True),
        ParameterRecord("head.weight", (2, 4), 1.5, True),
    )
    shown = str(Report("f", parameters=parameters, steps=1))
    assert "body.0.weight [4, 3]: line 7 of net.py" in shown
    for name in ("body.0.bias", "spare.weight", "scale"):
        assert shown.count(name) == 1
    assert "head.weight" not in shown


@pytest.mark.parametrize("suffix", ["html", "json", "sarif", "txt"])
def test_a_report_is_saved_in_the_form_of_its_suffix(report: Report, suffix: str, tmp_path: Path) -> None:
    path = report.save(tmp_path / f"report.{suffix}")
    text = path.read_text(encoding="utf-8")
    assert {
        "html": lambda: text == report.to_html(),
        "json": lambda: Report.from_dict(json.loads(text)).findings[0] == report.findings[0],
        "sarif": lambda: json.loads(text)["runs"][0]["results"][0]["ruleId"] == "zero.round",
        "txt": lambda: text == f"{report}\n",
    }[suffix]()


def test_another_suffix_is_refused(report: Report, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"suffix of path must be one of .*'\.sarif'.*, got '\.pdf'"):
        report.save(tmp_path / "report.pdf")
    assert not list(tmp_path.glob("report*"))


def test_a_notebook_shows_the_page_in_a_frame_that_runs_nothing(report: Report) -> None:
    frame = report._repr_html_()
    opening = re.fullmatch(r'<iframe sandbox srcdoc="([^"]*)" style="[^"]*"></iframe>', frame)
    assert opening is not None
    assert html.unescape(opening.group(1)) == report.to_html()


def test_sarif_names_file_place_and_fix(report: Report, tmp_path: Path) -> None:
    (run,) = report.to_sarif()["runs"]
    first, second = run["results"]
    place = first["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "my%20models/net.py"
    region = place["region"]
    source = (tmp_path / "my models" / "net.py").read_text().splitlines()
    assert source[region["startLine"] - 1][region["startColumn"] - 1 : region["endColumn"] - 1] == "x.round()"
    assert "region" not in second["locations"][0]["physicalLocation"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["zero.round", "cut.index"]
    # The replacements, applied from the end of the file to its top, are the remedy.
    (change,) = first["fixes"][0]["artifactChanges"]
    for one in reversed(change["replacements"]):
        deleted = one["deletedRegion"]
        new = one["insertedContent"]["text"].splitlines()
        source[deleted["startLine"] - 1 : deleted["endLine"] - 1] = new
    assert source[1] == "from pullback import discrete"
    assert source[-1] == "    return discrete.round(x).sum()"


def test_a_file_outside_is_an_absolute_uri(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    written = report.to_sarif()["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert written.startswith("file:///")
    assert url2pathname(urlparse(written).path) == report.findings[0].file


def test_annotations_escape_what_ends_a_command(report: Report) -> None:
    first, second = report.to_annotations().splitlines()
    head, _, message = first.removeprefix("::").partition("::")
    command, _, properties = head.partition(" ")
    assert command == "error"
    read = dict(one.split("=", 1) for one in properties.split(","))
    assert read == {
        "file": "my models/net.py",
        "line": "5",
        "col": "12",
        "endColumn": "20",
        "title": "pullback zero.round",
    }
    assert unquote(message).startswith("100 % of the slope is zero\nhere\nRounded values forward")
    assert second == "::notice file=<cell>,title=pullback cut.index::unknown place"
