"""The main job: audit finds the dead lines, the plain pipeline stays at chance, the relaxed one learns."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from pullback.demo import pipeline
from pullback.demo.tour import Summary, run


def _lines(*texts: str) -> set[int]:
    source = inspect.getsource(pipeline).splitlines()
    return {next(i for i, line in enumerate(source, 1) if text in line) for text in texts}


def _check_page(summary: Summary) -> None:
    page = Path(summary["page"]).read_text()
    assert page.count("data:image/png;base64,") == 2
    assert 'href="audit.html"' in page
    assert "torch.argsort(numbers, dim=-1)" in page
    assert "cut" in Path(summary["audit"]).read_text()


def test_a_short_demo_audits_and_writes_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(tmp_path / "new" / "folder", steps=2, sets=2, test_sets=6)
    found = {int(text.rpartition(" ")[2]) for text in summary["findings"]}
    assert found >= _lines("torch.round(model(images))", "torch.argsort(numbers", "numbers.unsqueeze(-1) > ")
    assert not found & _lines("values.argsort(-1).argsort(-1)", "below = ", "decay = ")
    _check_page(summary)
    assert "Open " in capsys.readouterr().out


def test_bad_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="steps must be > 0, got 0"):
        run(tmp_path, steps=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_pipeline_learns_only_when_relaxed(seed: int, tmp_path: Path) -> None:
    summary = run(tmp_path, seed=seed)
    assert summary["plain"] < 0.05
    assert summary["relaxed"] > 0.85
    assert summary["seconds"] < 300
    _check_page(summary)
