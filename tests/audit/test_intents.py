"""Draws, decisions, guards, switches, cancelled gradients: found at the line to blame, silent where they are right."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pullback
from pullback.audit import audit_script
from pullback.audit.judge.names import names_of
from pullback.audit.notebook import cell_path
from pullback.cli import main
from tests.audit.zoo import decisions

_MARK = re.compile(r"# <- ([a-z-]+\.[a-z_]+)")
_BUILDS = [
    pytest.param(f, id=name)
    for name, f in vars(decisions).items()
    if inspect.isfunction(f) and f.__module__ == decisions.__name__ and not name.startswith("_")
]


@pytest.mark.parametrize("build", _BUILDS)
def test_the_marked_lines_are_found_and_no_others(build: Callable[[], tuple[Any, ...]]) -> None:
    torch.manual_seed(0)
    program, *inputs = build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = pullback.audit(program, *inputs)
    lines, first = inspect.getsourcelines(build)
    wanted = {(first + i, m.group(1)) for i, line in enumerate(lines) if (m := _MARK.search(line))}
    assert bool(wanted) != build.__name__.startswith("right_")
    assert {(f.line, f.code) for f in report.findings if f.severity != "info"} == wanted, str(report)


def test_steps_inside_of_relaxed_are_not_the_users() -> None:
    scores, gains = torch.rand(6, requires_grad=True), torch.rand(6)

    def program(scores: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
        with pullback.relaxed(temperature=0.3):
            order = scores.argsort(descending=True)
            chosen = (scores > 0.5).float() * gains
            return (gains[order] / torch.arange(2.0, 8.0)).sum() + chosen.sum()

    report = pullback.audit(program, scores, gains)
    assert report.ok, str(report)
    assert report.parameters[0].gradient_norm > 0  # type: ignore[operator]


def test_audited_under_relaxed_a_sort_passes_and_what_is_left_is_not_advised_relaxed() -> None:
    def program(scores: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
        order = scores.argsort(descending=True)
        return (gains[order] / torch.arange(2.0, 8.0)).sum()

    def cut(scores: torch.Tensor, gains: torch.Tensor) -> torch.Tensor:
        return program(scores.detach(), gains) + 0 * scores.sum()

    scores, gains = torch.rand(6, requires_grad=True), torch.rand(6)
    assert not pullback.audit(program, scores, gains).ok
    report = pullback.audit(program, scores, gains, relax=0.1)
    assert report.ok, str(report)
    assert "pullback.relaxed" not in str(pullback.audit(cut, scores, gains, relax=0.1))
    with pytest.raises(ValueError, match="relax must be"):
        pullback.audit(program, scores, gains, relax=0.0)


def test_parameters_of_a_transformer_are_named_once_and_templates_are_left_out() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.ModuleDict({"body": body, "out": nn.Linear(8, 1)})

    def loss(x: torch.Tensor) -> torch.Tensor:
        nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)  # copies its template
        return model["out"](model["body"](x)).square().mean()

    report = pullback.audit(loss, torch.randn(2, 5, 8))
    names = [p.name for p in report.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all(p.gradient_norm for p in report.parameters if p.name.startswith("body.layers.0"))


def test_two_modules_with_the_same_names_are_told_apart() -> None:
    actor, critic = nn.Sequential(nn.Linear(2, 1)), nn.Sequential(nn.Linear(3, 1))
    names = names_of([("actor", actor), ("critic", critic), ("last", critic[0])])
    assert names[id(actor[0].weight)] == "actor.0.weight"
    assert names[id(critic[0].bias)] == "critic.0.bias"
    assert len(names) == 4


_TRAINING = """import torch
net = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
for step in range(6):
    loss = net(torch.randn(4, 3)).detach().square().sum() + 0 * net.weight.sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


def test_a_module_runs_as_python_dash_m_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "wares_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sizes.py").write_text("WIDTH = 3\n")
    (package / "train.py").write_text(
        _TRAINING.replace("Linear(3, 2)", "Linear(WIDTH, 2)").replace(
            "import torch\n",
            "import sys, torch\nfrom .sizes import WIDTH\nassert sys.argv[1:] == ['--fast'], sys.argv\n",
        )
    )
    monkeypatch.chdir(tmp_path)
    report = audit_script("wares_of_mine.train", ["--fast"], module=True)
    assert report.error is None, report.error
    assert [(f.line, f.code, Path(f.file).name) for f in report.findings if f.severity == "error"] == [
        (7, "cut.detach", "train.py")
    ]
    with pytest.raises(ModuleNotFoundError, match="no __main__"):
        audit_script("wares_of_mine", module=True)
    with pytest.raises(ModuleNotFoundError, match="there is no module"):
        audit_script("wares_of_mine.nothing", module=True)


def _notebook(path: Path, *cells: str) -> Path:
    import json

    cells_of = [{"cell_type": "code", "source": cell.splitlines(keepends=True), "outputs": []} for cell in cells]
    text = {"cell_type": "markdown", "source": "# A title"}
    path.write_text(json.dumps({"cells": [text, *cells_of], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}))
    return path


def test_a_notebook_runs_cell_by_cell_and_its_lines_are_named_by_cell(tmp_path: Path) -> None:
    rest = _TRAINING.removeprefix("import torch\n").splitlines(keepends=True)
    path = _notebook(
        tmp_path / "train.ipynb",
        "%matplotlib inline\n!pip list\nimport torch",
        "remainder = (7\n% 4)",
        "%%bash\nexit 1",
        "%%time\n" + "".join(rest[:2]) + "net",
        "".join(rest[2:]) + "display(loss)",
    )
    report = audit_script(path)
    assert report.error is None, report.error
    (finding,) = [f for f in report.findings if f.severity == "error"]
    assert (finding.file, finding.line, finding.code) == (cell_path(path, 5), 2, "cut.detach")
    assert "detach()" in finding.source
    broken = _notebook(tmp_path / "broken.ipynb", "x = 1", "\nx / 0")
    report = audit_script(broken)
    assert report.error is not None
    assert f'"{cell_path(broken, 2)}", line 2' in report.error
    assert "x / 0" in report.error


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"import torch\n", "is not JSON"),
        (b'{"cells": [', "is not JSON"),
        (b"", "is not JSON"),
        (b'{"cells": ["\xff\xfe"]}', "is not UTF-8"),
        (b"[]", "has no list of cells"),
        (b'{"worksheets": [], "nbformat": 3}', "has no list of cells"),
        (b'{"cells": [{"cell_type": "markdown"}, "x = 1"]}', "has an entry 2 that is no cell"),
        (b'{"cells": [{"cell_type": "code", "source": {"x": 1}}]}', "has a cell 1 without text"),
        (b'{"cells": [{"cell_type": "code", "source": ["x = 1", 2]}]}', "has a cell 1 without text"),
    ],
)
def test_what_is_no_notebook_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, fault: str
) -> None:
    path = tmp_path / "sketch.ipynb"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"sketch.ipynb', which {fault}"):
        audit_script(path)
    assert main(["audit", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"which {fault}" in " ".join(error.split())
    assert "Traceback" not in error


def test_a_raising_script_shows_its_own_frames_alone(tmp_path: Path) -> None:
    script = tmp_path / "raises.py"
    script.write_text(
        "import torch\n\ndef inner(x):\n    return torch.stack([x, x[:1]])\n\n"
        "try:\n    inner(torch.ones(3))\nexcept RuntimeError as error:\n    raise ValueError('shapes') from error\n"
    )
    error = audit_script(script).error
    assert error is not None
    assert error.count("Traceback") == 2  # the cause and what was made of it
    files = set(re.findall(r'File "([^"]+)"', error))
    assert {Path(f).name for f in files} == {"raises.py"}
    assert error.count("ValueError: shapes") == 1
