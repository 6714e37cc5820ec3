"""A detector that counts digits, as a user would make it train: audit, the advice applied, relaxed, held-out images."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import pullback
from pullback.audit.remedy.patch import applied

SCRIPT = Path(__file__).with_name("detector.py")
LINES = {text: number for number, text in enumerate(map(str.strip, SCRIPT.read_text().splitlines()), 1)}
ORDER = LINES["order = torch.argsort(scores, descending=True)[:BEST]"]
DECISION = LINES["keep[i] = not bool((keep & NEAR[i]).any())"]
COUNT = LINES["return torch.round(((scores > 0.5) & keep).sum().float())"]


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _batch(script: ModuleType, count: int) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    images = script.data.digits().images[:1200]
    canvas, wanted = script.canvases(images, count, torch.Generator().manual_seed(0))
    return script.detector(), canvas, wanted


@pytest.fixture(scope="module")
def report() -> pullback.audit.Report:
    script = _module(SCRIPT)
    model, canvas, wanted = _batch(script, 2)
    return pullback.audit(script.loss_of, model, canvas, wanted)


@pytest.fixture(scope="module")
def advised(report: pullback.audit.Report, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The script with everything that the report shows pasted in."""
    changes = list(dict.fromkeys(c for f in report.findings for r in f.remedies for c in r.changes))
    path = tmp_path_factory.mktemp("advised") / "advised.py"
    path.write_text(applied(SCRIPT.read_text(), changes))
    return _module(path)


def test_audit_names_the_lines_and_shows_what_cures_each(report: pullback.audit.Report) -> None:
    found = {(f.line, f.code, f.operation) for f in report.findings if f.severity != "info"}
    assert found == {
        (ORDER, "cut.index", "argsort"),
        (COUNT, "cut.comparison", "gt"),
        (DECISION, "control-flow.branch", "__bool__"),
    }
    assert all(len(f.remedies) == 1 for f in report.findings if f.severity != "info")
    assert {p.blame["line"] for p in report.parameters} == {ORDER}


def test_the_advice_keeps_every_value_and_brings_the_gradient(advised: ModuleType) -> None:
    model, canvas, wanted = _batch(advised, 4)
    plain = _module(SCRIPT).loss_of(model, canvas, wanted)
    loss = advised.loss_of(model, canvas, wanted)
    assert not plain.requires_grad
    assert loss.item() == plain.item()
    loss.backward()
    norms = [p.grad.norm().item() for p in model.parameters() if p.grad is not None]
    assert len(norms) == 6
    assert all(0 < norm < 1e4 for norm in norms)
    text = Path(advised.__file__ or "").read_text()
    assert "@pullback.relaxed(temperature=0.1)\ndef count" in text
    assert "keep[i] = torch.logical_not((keep & NEAR[i]).any())" in text


def test_the_advised_script_learns_to_count_on_held_out_canvases(advised: ModuleType) -> None:
    before, commonest, after = advised.train(steps=40, seed=0)
    assert after > max(before, commonest) + 0.3


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_it_learns_from_other_weights_and_canvases(advised: ModuleType, seed: int) -> None:
    before, commonest, after = advised.train(steps=200, seed=seed)
    assert after > max(before, commonest) + 0.3


@pytest.mark.slow
def test_the_patch_of_the_command_makes_the_script_run(tmp_path: Path) -> None:
    script = tmp_path / "detector.py"
    script.write_text(SCRIPT.read_text().replace("train(60,", "train(3,"))
    command = [sys.executable, "-m", "pullback", "audit", "--fix", "detector.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=done.stdout, text=True, check=True)
    before = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "does not require grad" in before.stderr
    run = subprocess.run([sys.executable, "detector.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "after" in run.stdout
