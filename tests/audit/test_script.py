"""Scripts run unchanged: what reaches each backward() is audited."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pullback.audit import audit_script, audit_target, load_target

SCRIPTS = sorted((Path(__file__).parent / "zoo" / "scripts").glob("*.py"))
_MARK = re.compile(r"# <- ([a-z-]+\.[a-z_]+)")


@pytest.mark.parametrize("path", SCRIPTS, ids=[p.stem for p in SCRIPTS])
def test_faults_of_scripts_are_found_and_clean_scripts_pass(path: Path) -> None:
    report = audit_script(path, steps=4)
    lines = path.read_text().splitlines()
    wanted = {(n, m.group(1)) for n, line in enumerate(lines, 1) if (m := _MARK.search(line))}
    strong = {(f.line, f.code) for f in report.findings if f.severity != "info"}
    assert strong == wanted, f"{report}\n{report.error}"
    assert {Path(f.file).name for f in report.findings} <= {path.name}


def test_the_script_sees_its_own_arguments_and_stops_after_the_wanted_steps(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import sys, pathlib, torch\n"
        "w = torch.ones(2, requires_grad=True)\n"
        "for i in range(10):\n"
        "    w.square().sum().backward()\n"
        "    pathlib.Path(sys.argv[1]).write_text(f'{i} {__name__}')\n"
    )
    before = list(sys.argv)
    report = audit_script(script, [str(tmp_path / "log")], steps=2)
    assert (tmp_path / "log").read_text() == "1 __main__"
    assert report.steps == 2
    assert report.ok
    assert sys.argv == before


def test_an_error_of_the_script_is_kept_with_the_findings(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("import torch\nx = torch.ones(2, requires_grad=True)\nx.sum().backward()\nraise KeyError('k')\n")
    report = audit_script(script)
    assert report.exit_code() == 3
    assert report.error is not None
    assert "KeyError: 'k'" in report.error
    assert "pullback" not in report.error
    assert report.steps == 1


def test_functions_compile_again_after_the_audit_of_a_script_that_loaded_the_compiler(tmp_path: Path) -> None:
    script = tmp_path / "compiled.py"
    script.write_text(
        "import torch\n"
        "w = torch.ones(2, requires_grad=True)\n"
        "torch.compile(lambda x: (x * x).sum(), backend='eager')(w).backward()\n"
    )
    program = (
        "import sys, torch\n"
        "from pullback.audit import audit_script\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "assert audit_script(sys.argv[1]).ok\n"
        "compiled = torch.compile(lambda x: x + torch.compiler.is_compiling(), backend='eager')\n"
        "assert compiled(torch.zeros(1)).item() == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bad_targets_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="path must be a Python script"):
        audit_script(tmp_path / "none.py")
    with pytest.raises(ValueError, match="steps must be >= 1"):
        audit_script(__file__, steps=0)
    with pytest.raises(ValueError, match=r"package\.module:function"):
        load_target("torch.relu")
    with pytest.raises(ValueError, match="did you mean"):
        load_target("torch:rleu")
    with pytest.raises(TypeError, match="callable"):
        load_target("torch:float32")


def test_a_named_target_with_made_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def pick(scores, values):\n"
        "    return values[scores.argmax()]\n"
        "def make():\n"
        "    return torch.tensor([0.1, 0.3], requires_grad=True), torch.tensor([1.0, 2.0])\n"
    )
    monkeypatch.chdir(tmp_path)
    report = audit_target("mine:pick", "mine:make")
    assert [(f.code, f.line) for f in report.findings] == [("cut.index", 3)]
    assert report.target == "mine:pick"


def test_two_copies_of_a_script_are_told_apart(tmp_path: Path) -> None:
    """Python takes equal code of two files for equal; whatever is kept by code must not."""
    found = []
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(
            "import torch\nx = torch.ones(3, requires_grad=True)\nx.round().sum().backward()\n"
        )
        report = audit_script(tmp_path / f"{name}.py")
        found.append([(Path(f.file).stem, f.line) for f in report.findings])
    assert found == [[("one", 3)], [("two", 3)]]
