"""``pullback audit --fix``: scripts are tried where they can do no harm, and the patch is one that applies."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pullback.audit import audit_script
from pullback.audit.fix.scripts import Server, remedies_of_script
from pullback.audit.remedy.patch import applied
from pullback.audit.report.remedy import Change

TRAIN = '''"""Trains, writes a log, saves, and removes what it finds."""

import os
from pathlib import Path

import torch

from parts import gate

FOLDER = Path(__file__).parent
torch.manual_seed(0)
encoder, scorer, head = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3), torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD([*encoder.parameters(), *scorer.parameters(), *head.parameters()], lr=0.1)
x = torch.randn(16, 4)
y = x.sum(1, keepdim=True)
os.makedirs(FOLDER / "out", exist_ok=True)
with open(FOLDER / "log.txt", "a") as log:
    for step in range(20):
        h = encoder(x).detach()  # frozen by mistake
        loss = (head(h * gate(scorer(x))) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(step, loss.item(), file=log)
        torch.save(head.state_dict(), FOLDER / "out" / "head.pt")
        assert torch.load(FOLDER / "out" / "head.pt")["weight"].shape == (1, 3)
'''
PARTS = """import torch


def gate(v):
    return (v > 0).float()
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "log.txt").write_text("of yesterday\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "train.py"
    sys.modules.pop("parts", None)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One for all trials here: it takes seconds to start."""
    with Server() as running:
        yield running


def _losses(script: Path) -> list[float]:
    sys.modules.pop("parts", None)
    runpy.run_path(str(script))
    return [float(line.split()[1]) for line in (script.parent / "log.txt").read_text().splitlines()[-20:]]


def test_a_patch_is_printed_written_and_applies_and_the_script_learns_more(script: Path) -> None:
    folder = script.parent
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    command = [sys.executable, "-m", "pullback", "audit", "--fix", "--write", "--json", "report.json", "train.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "`scorer.weight` 0 -> " in done.stderr
    assert "h = encoder(x)  # frozen by mistake" in script.read_text()
    assert "discrete.greater(v, 0, temperature=0.1, hard=True).float()" in (folder / "parts.py").read_text()
    report = json.loads((folder / "report.json").read_text())
    assert [len(f["remedies"]) for f in report["findings"]] == [1, 1]
    written = {name: (folder / name).read_text() for name in ("train.py", "parts.py")}
    better = _losses(script)
    sys.modules.pop("parts")
    assert audit_script(script).exit_code("error") == 0
    for name in written:
        (folder / name).write_bytes(before[name])
    plain = _losses(script)
    assert better[0] == pytest.approx(plain[0], rel=1e-5)  # the values are what they were
    assert better[-1] < plain[-1]
    patch = subprocess.run(["git", "apply", "--verbose", "-"], cwd=folder, input=done.stdout, text=True, check=False)
    assert patch.returncode == 0
    assert {name: (folder / name).read_text() for name in written} == written


def test_a_trial_leaves_no_trace(script: Path, server: Server) -> None:
    report = audit_script(script)
    before = {p: p.read_bytes() for p in script.parent.rglob("*") if p.is_file() and "__pycache__" not in str(p)}
    tried = remedies_of_script(report, script, server=server)
    assert all(f.remedies for f in tried.findings)
    after = {p: p.read_bytes() for p in script.parent.rglob("*") if p.is_file() and "__pycache__" not in str(p)}
    assert after == before


DEEDS = """
os.remove('kept.txt')
os.rename('kept.txt', 'gone.txt')
os.unlink('kept.txt')
shutil.rmtree('folder')
subprocess.run(['touch', 'made.txt'])
os.system('rm kept.txt')
socket.create_connection(('192.0.2.1', 80), timeout=1)
os.close(os.open('kept.txt', os.O_WRONLY | os.O_TRUNC))
Path('kept.txt').write_text('other')
np.save('kept.txt', np.ones(2))
torch._C.PyTorchFileWriter('kept.txt').write_end_of_file()
"""
HARM = f"""
import os, shutil, socket, subprocess, torch, numpy as np
from pathlib import Path
from pullback.audit.fix.sandbox import confine
for deed in {DEEDS.strip().splitlines()}:
    child = os.fork()
    if not child:
        confine(Path('scratch'))
        try:
            exec(deed)
        except (OSError, RuntimeError):
            pass
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    left = sorted(p.name for p in Path().iterdir()), Path('kept.txt').read_text() if Path('kept.txt').exists() else ''
    assert (status, left) == (0, (['folder', 'kept.txt', 'scratch'], 'mine')), (deed, status, left)
    print(deed)
"""


def test_harm_is_refused_in_the_sandbox(tmp_path: Path) -> None:
    """Each deed in a child of one process, which has imported what the deeds need."""
    (tmp_path / "kept.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "scratch").mkdir()
    done = subprocess.run([sys.executable, "-c", HARM], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == DEEDS.removeprefix("\n").split("\n")


def test_changes_apply_from_the_bottom_up_and_once() -> None:
    changes = [Change(3, 0, "new\n"), Change(1, 1, "A\nA2\n"), Change(4, 1, ""), Change(1, 1, "other\n")]
    assert applied("a\nb\nc\nd", changes) == "A\nA2\nb\nnew\nc\n"


def test_layers_in_a_plain_list_are_registered_where_the_constructor_keeps_them(server: Server) -> None:
    path = Path(__file__).parent / "zoo" / "scripts" / "layers_in_a_list.py"
    report = remedies_of_script(audit_script(path, steps=3), path, server=server)
    (finding,) = (f for f in report.findings if f.code == "cut.unregistered")
    assert finding.evidence["kept in"] == "Net.blocks"
    patched = applied(path.read_text(), finding.remedies[0].changes)
    assert "self.blocks = torch.nn.ModuleList([nn.Linear(5, 5) for _ in range(2)])" in patched
