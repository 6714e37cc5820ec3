"""What an installation with torch and numpy alone can do, and what needs not even these."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from pullback.cli.app import COMMANDS

ROOT = Path(__file__).parents[2]

WITH_TORCH = (
    *("torch", "numpy", "Jinja2", "MarkupSafe", "sympy", "mpmath", "networkx", "filelock", "fsspec"),
    *("typing_extensions", "setuptools", "pullback"),
)
"""Distributions that torch and numpy bring along."""

SCRIPT = """
import torch
from torch import nn

scores, table = nn.Parameter(torch.rand(3)), nn.Parameter(torch.rand(3))
optimizer = torch.optim.SGD([scores, table], lr=0.1)
table[scores.argmax()].square().backward()
optimizer.step()
"""


def _run(folder: Path, hidden: set[str], *words: str) -> tuple[int, str, str, set[str]]:
    """Run the command where some packages cannot be imported; also return what it imported."""
    code = (
        f"import sys\nfor name in {sorted(hidden)!r}:\n    sys.modules[name] = None\n"
        f"from pullback.cli import main\nstatus = main({list(words)!r})\n"
        "imported = {name.partition('.')[0] for name, module in sys.modules.items() if module is not None}\n"
        "print('\\n@', *sorted(imported), sep='\\n')\n"
        "raise SystemExit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    out, _, imported = done.stdout.rpartition("\n@\n")
    return done.returncode, out, done.stderr, set(imported.split())


@pytest.fixture(scope="module")
def absent() -> set[str]:
    """Every package of this environment that torch and numpy do not bring."""
    owners = packages_distributions()
    return {name for name, owned in owners.items() if name.isidentifier() and not set(owned) & set(WITH_TORCH)}


def test_audit_writes_every_form_of_its_report(tmp_path: Path, absent: set[str]) -> None:
    assert {"rich", "cyclopts", "scipy"} <= absent
    (tmp_path / "train.py").write_text(SCRIPT)
    words = ("audit", "train.py", "--html", "r.html", "--json", "r.json", "--sarif", "r.sarif")
    status, out, err, _ = _run(tmp_path, absent, *words)
    assert (status, err) == (1, "")
    assert "x    7 " in out
    assert "error cut.index" in out
    assert "--fix tries rewritings" in out
    assert {path.name for path in tmp_path.glob("r.*")} == {"r.html", "r.json", "r.sarif"}


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (("--version",), "0.1.0"),
        (("--help",), "pullback COMMAND"),
        (("find", "argmax"), "pullback.discrete"),
        (("find", "--help"), "Example: pullback find argmax"),
        (("audit", "--help"), "Example: pullback audit train.py"),
    ],
    ids=" ".join,
)
def test_looking_up_needs_no_package_at_all(
    words: tuple[str, ...], shown: str, tmp_path: Path, absent: set[str]
) -> None:
    status, out, err, imported = _run(tmp_path, absent | {"torch", "numpy", "jinja2"}, *words)
    assert (status, err) == (0, "")
    assert shown in out
    assert not imported & {"torch", "numpy", "rich", "cyclopts"}


def test_the_other_commands_say_what_they_need(tmp_path: Path, absent: set[str]) -> None:
    status, out, err, _ = _run(tmp_path, absent, "list")
    assert (status, out) == (2, "")
    assert err == "pullback: this command needs 'cyclopts'; install it with: pip install 'pullback[lab]'\n"


def test_the_table_of_commands_is_complete() -> None:
    from pullback.cli.laboratory import app

    of_the_lab = {name for name, (module, _) in COMMANDS.items() if module.endswith("laboratory")}
    assert of_the_lab == {name for name in app if not name.startswith("-")}


def test_the_dependencies_are_torch_and_numpy() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {word.partition(">")[0] for word in project["dependencies"]} == {"torch", "numpy"}
