"""The magics, in a shell with the three things of IPython's that they use."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import pullback

CELL = """\
import torch
w = torch.tensor([0.3, 0.8, 0.1], requires_grad=True)
table = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
chosen = table[w.argmax()]
chosen.square().backward()
"""


class Shell:
    """Runs cells in one namespace, each under a file name of its own that ``linecache`` knows, as IPython does."""

    def __init__(self) -> None:
        self.user_ns: dict[str, Any] = {}
        self.magics: dict[str, Callable[..., Any]] = {}
        self.count = 0

    def register_magic_function(self, func: Callable[..., Any], magic_kind: str, magic_name: str) -> None:
        assert magic_kind == "line_cell"
        self.magics[magic_name] = func

    def run_cell(self, raw_cell: str) -> Any:
        self.count += 1
        name = f"<ipython-input-{self.count}>"
        linecache.cache[name] = (len(raw_cell), None, raw_cell.splitlines(keepends=True), name)
        try:
            exec(compile(raw_cell, name, "exec"), self.user_ns)
        except Exception:
            return SimpleNamespace(success=False)
        return SimpleNamespace(success=True)


@pytest.fixture
def shell() -> Shell:
    shell = Shell()
    pullback.load_ipython_extension(shell)
    return shell


def test_a_cell_is_audited_at_its_own_lines_and_its_names_stay(shell: Shell) -> None:
    report = shell.magics["audit"]("first try", CELL)
    (finding,) = [f for f in report.findings if f.severity == "error"]
    assert (finding.code, finding.line, finding.source) == ("cut.index", 4, "chosen = table[w.argmax()]")
    assert report.target == "first try"
    assert shell.user_ns["chosen"].item() == 2.0
    assert "argmax" in report._repr_html_()


def test_a_cell_that_raises_has_no_report(shell: Shell) -> None:
    assert shell.magics["audit"]("", "1 / 0") is None


def test_a_line_audits_a_call_with_the_names_of_its_arguments(shell: Shell) -> None:
    shell.run_cell("import torch\ndef pick(scores, *, values):\n    return values[scores.argmax()]\n")
    shell.run_cell("s = torch.tensor([0.2, 0.7], requires_grad=True)\nv = torch.tensor([1.0, 2.0])\n")
    report = shell.magics["audit"]("pick(s, values=v)")
    (finding,) = [f for f in report.findings if f.severity == "error"]
    assert (finding.code, finding.line) == ("cut.index", 3)
    assert report.target == "pick(s, values=v)"
    assert shell.user_ns["s"].grad is None


def test_a_line_audits_any_expression(shell: Shell) -> None:
    shell.run_cell("import torch\nx = torch.tensor([0.2, 0.7], requires_grad=True)\n")
    assert shell.magics["audit"]("x.square().sum() + 1").ok
    report = shell.magics["audit"]("x.round().square().sum()")
    assert [(f.kind, f.source) for f in report.findings] == [("zero", "x.round().square().sum()")]
    with pytest.raises(SyntaxError):
        shell.magics["audit"]("x =")
