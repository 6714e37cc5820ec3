"""docs/defects.md: audit finds each defect at its line, not in the mended program, and the numbers are those stated."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import pullback
from tests.docs.wild import DEFECTS
from tests.docs.wild.defect import Defect, Singular

_PAGE = Path(__file__).parents[2] / "docs" / "defects.md"
_MARK = re.compile(r"# <- (\w+)$")

each_defect = pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.slug)


def _marks(program: Callable[..., Any]) -> set[tuple[int, str]]:
    """Return (line, kind) of the markers in the program and in the classes of its module that it names."""
    parts: list[Any] = [program]
    for part in parts:
        module = inspect.getmodule(part)
        named = re.findall(r"\b_[A-Z]\w*\b|\b_\w+\b", inspect.getsource(part))
        parts += [
            own
            for name in dict.fromkeys(named)
            if (own := getattr(module, name, None)) not in parts and (inspect.isclass(own) or inspect.isfunction(own))
        ]
    found = set()
    for part in parts:
        lines, first = inspect.getsourcelines(part)
        found |= {(first + i, mark[1]) for i, line in enumerate(lines) if (mark := _MARK.search(line.rstrip()))}
    return found


def _audit(defect: Defect, program: Callable[..., Any]) -> pullback.audit.Report:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of torch.tensor([tensor])
        return pullback.audit(program, *defect.fresh())


def _sections() -> dict[str, str]:
    """Return the text of each defect by its anchor."""
    parts = re.split(r"^\(([a-z-]+)\)=\n", _PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


@each_defect
def test_audit_finds_the_defect_at_its_line_and_nothing_else(defect: Defect) -> None:
    report = _audit(defect, defect.program)
    wanted = _marks(defect.program)
    assert wanted, "no marker"
    strong = {(f.line, f.kind) for f in report.findings if f.severity != "info"}
    assert wanted <= strong, str(report)
    assert {line for line, _ in strong} == {line for line, _ in wanted}, str(report)


@each_defect
def test_the_mended_program_is_clean(defect: Defect) -> None:
    report = _audit(defect, defect.mended)
    assert not [f for f in report.findings if f.severity != "info"], str(report)


@each_defect
def test_the_page_states_the_numbers(defect: Defect) -> None:
    section = _sections()[defect.slug]
    stated = [float(number) for number in re.findall(r"\*\*([\d.e-]+)\*\*", section)]
    assert len(stated) == len(defect.numbers())
    for written, computed in zip(stated, defect.numbers()):
        assert written == pytest.approx(computed, rel=0.1, abs=3e-4), (written, computed)


@pytest.mark.parametrize("defect", [d for d in DEFECTS if isinstance(d, Singular)], ids=lambda defect: defect.slug)
def test_the_remedy_changes_nothing_elsewhere(defect: Singular) -> None:
    inputs = defect.ordinary(torch.Generator().manual_seed(1))
    trained = [x for x in inputs if x.requires_grad]
    before, after = defect.program(*inputs), defect.mended(*inputs)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=0)
    for a, b in zip(torch.autograd.grad(after, trained), torch.autograd.grad(before, trained)):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_every_section_has_a_program_and_a_permanent_link() -> None:
    sections = _sections()
    assert set(sections) == {defect.slug for defect in DEFECTS}
    assert len(sections) >= 20
    for slug, text in sections.items():
        assert re.search(r"https://github\.com/[\w.-]+/[\w.-]+/blob/[0-9a-f]{40}/\S+#L\d+", text), slug
