"""`pullback audit` and `pullback find`: what a user gets for scripts and functions of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pullback.cli import main

DEAD = """
import sys
import torch
from torch import nn

print("arguments", sys.argv[1:])
torch.manual_seed(0)
scorer = nn.Linear(4, 3)
table = nn.Parameter(torch.arange(3.0))
optimizer = torch.optim.SGD([*scorer.parameters(), table], lr=0.1)
for step in range(5):
    choice = scorer(torch.randn(8, 4)).argmax(-1)
    loss = (table[choice] - 1).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("the end")
"""

FUNCTIONS = """
import torch


def pick(scores, values):
    return values[scores.argmax()]


def smooth(x):
    return x.square().sum()


def broken(x):
    raise KeyError("of the user")


def two():
    return torch.tensor([0.1, 0.9], requires_grad=True), torch.tensor([1.0, 2.0])


def one():
    return torch.ones(3, requires_grad=True)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(DEAD)
    (tmp_path / "functions_of_a_user.py").write_text(FUNCTIONS)
    yield tmp_path
    sys.modules.pop("functions_of_a_user", None)


def test_a_script_is_audited_with_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "train.py", "--steps", "2", "--", "--epochs", "1"]) == 1
    text = capsys.readouterr().out
    assert "arguments ['--epochs', '1']" in text
    assert "the end" not in text, "the script is stopped"
    assert "cut.index" in text
    assert "choice = scorer(torch.randn(8, 4)).argmax(-1)" in text


@pytest.mark.parametrize("words", [["--json"], ["--json", "-"], ["--json=-", "--steps", "1"]], ids=" ".join)
def test_json_is_all_there_is_on_standard_output(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "train.py", *words]) == 1
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert [(f["code"], f["line"]) for f in report["findings"] if f["severity"] == "error"] == [("cut.index", 12)]
    assert "arguments" in shown.err


def test_reports_go_to_files(folder: Path) -> None:
    assert main(["audit", "train.py", "--json", "report.json", "--html", "report.html"]) == 1
    assert json.loads((folder / "report.json").read_text())["ok"] is False
    page = (folder / "report.html").read_text()
    assert "argmax" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_relaxed_code_has_no_dead_gradient() -> None:
    assert main(["audit", "train.py", "--relax", "0.1"]) == 0


def test_functions(capsys: pytest.CaptureFixture[str]) -> None:
    name = "functions_of_a_user"
    assert main(["audit", f"{name}:pick", "--inputs", f"{name}:two"]) == 1
    assert main(["audit", f"{name}:pick", "--inputs", f"{name}:two", "--ignore", f"{name}.py"]) == 0
    assert main(["audit", f"{name}:smooth", "--inputs", f"{name}:one", "--fail-on", "info"]) == 0
    capsys.readouterr()
    assert main(["audit", f"{name}:broken", "--inputs", f"{name}:one"]) == 3
    shown = capsys.readouterr().err
    assert 'raise KeyError("of the user")' in shown, "the user's own traceback is shown"
    assert shown.splitlines()[-1] == f"pullback: {name}:broken raised KeyError: 'of the user'"


def test_a_script_that_raises_is_status_3(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "raises.py").write_text(
        DEAD.replace("range(5)", "range(2)") + "def inner():\n    raise KeyError('of the user')\n\n\ninner()\n"
    )
    assert main(["audit", "raises.py"]) == 3
    shown = capsys.readouterr()
    report, _, trace = shown.out.partition("Traceback (most recent call last):")
    assert "cut.index" in report, "what was found before is reported"
    frames = [line for line in trace.splitlines() if line.startswith("  File ")]
    assert [frame.partition("line ")[2] for frame in frames] == ["22, in <module>", "19, in inner"]
    assert all("raises.py" in frame for frame in frames), "the user's frames, and no others"
    assert shown.err == "pullback: raises.py raised KeyError: 'of the user'\n"


def test_a_module_is_run_as_python_would(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = folder / "a_package_of_a_user"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "table.py").write_text("import torch\nfrom torch import nn\n\nTABLE = nn.Parameter(torch.arange(3.0))\n")
    (package / "train.py").write_text(
        "import sys\nimport torch\nfrom torch import nn\nfrom .table import TABLE\n"
        "assert __name__ == '__main__' and sys.argv[1:] == ['-x']\n"
        "scores = nn.Parameter(torch.rand(3))\n"
        "TABLE[scores.argmax()].square().backward()\n"
    )
    assert main(["audit", "-m", "a_package_of_a_user.train", "--", "-x"]) == 1
    assert "TABLE[scores.argmax()].square().backward()" in capsys.readouterr().out
    assert main(["audit", "-m", "a_package_of_a_user.trian"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_notebook_is_audited_cell_by_cell(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Title\n"]},
        {"cell_type": "code", "metadata": {}, "source": ["%matplotlib inline\n", "import torch\n"], "outputs": []},
        {
            "cell_type": "code",
            "metadata": {},
            "source": "scores = torch.rand(3, requires_grad=True)\ntable = torch.ones(3, requires_grad=True)\n"
            "table[scores.argmin()].backward()\n",
            "outputs": [],
        },
    ]
    for cell in cells[1:]:
        cell["execution_count"] = None
    (folder / "study.ipynb").write_text(
        json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    assert main(["audit", "study.ipynb", "--json"]) == 1
    (finding,) = [f for f in json.loads(capsys.readouterr().out)["findings"] if f["severity"] == "error"]
    assert finding["file"].endswith("study.ipynb[2]")
    assert (finding["line"], finding["source"]) == (3, "table[scores.argmin()].backward()")


def test_sarif_and_annotations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "train.py", "--sarif", "out.sarif", "--github"]) == 1
    (run,) = json.loads((folder / "out.sarif").read_text())["runs"]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "train.py"
    assert place["region"]["startLine"] == 12
    first = capsys.readouterr().out.split("::error ")[1]
    assert first.startswith(
        "file=train.py,line=12,col=14,endColumn=49,title=pullback cut.index::argmax returns positions"
    )
    assert main(["audit", "train.py", "--sarif", "--github"]) == 1
    shown = capsys.readouterr()
    assert json.loads(shown.out)["version"] == "2.1.0", "nothing else is on standard output"
    assert "::error file=train.py" in shown.err


def test_only_the_first_process_of_a_group_reports(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["audit", "train.py", "--html", "report.html"]) == 1
    shown = capsys.readouterr()
    assert "cut.index" not in shown.out + shown.err
    assert not (folder / "report.html").exists()
    monkeypatch.setenv("RANK", "0")
    assert main(["audit", "train.py", "--html", "report.html"]) == 1
    assert "cut.index" in capsys.readouterr().out
    assert (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["audit"], "audit needs one target"),
        (["audit", "train.py", "-m", "train"], "audit needs one target"),
        (["audit", "-m", "no_such_module_here"], "no_such_module_here"),
        (["audit", "no.ipynb"], "no script 'no.ipynb'"),
        (["audit", "train.py", "--json", "--sarif"], "json and sarif cannot both go to standard output"),
        (["audit", "train.py", "--sarif", "."], "sarif must be a file in an existing folder, got '.'"),
        (["audit", "no.py"], "no script 'no.py'"),
        (["audit", "train"], "target must be a script or pkg.mod:fn, got 'train'"),
        (["audit", "functions_of_a_user:pik"], "did you mean 'pick'?"),
        (["audit", "no_such_module:fn"], "No module named 'no_such_module'"),
        (["audit", "train.py", "--inputs", "m:f"], "--inputs belongs to a function"),
        (["audit", "train.py", "--steps", "0"], "steps must be >= 1, got 0"),
        (["audit", "train.py", "--relax", "0"], "relax must be a temperature > 0, got 0"),
        (["audit", "train.py", "--html", "no/folder/x.html"], "html must be a file in an existing folder"),
        (["audit", "train.py", "--html", "/"], "html must be a file in an existing folder, got '/'"),
        (["audit", "train.py", "--html", "/dev/null"], "html must be a file in an existing folder, got '/dev/null'"),
        (["audit", "train.py", "--json", "."], "json must be a file in an existing folder, got '.'"),
        (["audit", "train.py", "--steps", "1.9"], "argument --steps: invalid int value: '1.9'"),
        (["audit", "train.py", "--relax", "nan"], "relax must be a temperature > 0, got nan"),
        (["audit", "train.py", "--json", "no/folder/x.json"], "json must be a file in an existing folder"),
        (["audit", "train.py", "--fail-on", "all"], "argument --fail-on: invalid choice: 'all'"),
        (
            ["audit", "train.py", "--epochs", "1"],
            "has no option '--epochs'; did you mean '--steps'? (arguments of a script stand after --)",
        ),
        (["audit", "functions_of_a_user:one", "--", "-x"], "arguments after -- belong to a script"),
        (["find", "agrmax"], "no block is known for 'agrmax'; did you mean 'argmax'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line_and_status_2(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert line in shown.err


def test_find_prints_code_that_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["find", "argmax"]) == 0
    assert "pullback.discrete.argmax" in capsys.readouterr().out
    assert main(["find", "argmax", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]["block"] == "discrete.argmax"
    old, new = (
        "\n".join(line[1:] for line in found[0]["diff"].splitlines() if line[0] in kept) for kept in (" -", " +")
    )
    values = []
    for code in (old, new):
        scores = torch.tensor([[0.3, 0.9], [2.0, 1.0]], requires_grad=True)
        scope = {"torch": torch, "scores": scores, "table": torch.tensor([1.0, 5.0], requires_grad=True)}
        exec(code, scope)
        scope["chosen"].sum().backward()
        values.append((scope["chosen"].tolist(), scores.grad is not None))
    assert values == [([5.0, 1.0], False), ([5.0, 1.0], True)]


def test_a_reader_that_leaves_is_no_error() -> None:
    listing = subprocess.Popen(
        [sys.executable, "-m", "pullback", "find", "argmax"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert listing.stdout is not None
    listing.stdout.close()
    assert listing.stderr is not None
    assert listing.stderr.read() == b""
    assert listing.wait() == 0
