"""Every program of the zoo: planted faults are found at their line, clean programs get no error and no warning."""

from __future__ import annotations

import inspect
import re
import warnings
from types import ModuleType

import pytest
import torch

import pullback
from tests.audit.zoo import clean, faults_cut, faults_other

_MARK = re.compile(r"# <- ([a-z-]+\.[a-z_]+)")


def _programs(module: ModuleType) -> list[object]:
    own = [v for v in vars(module).values() if inspect.isfunction(v) and v.__module__ == module.__name__]
    return [pytest.param(f, id=f.__name__) for f in own if not f.__name__.startswith("_")]


def _marks(module: ModuleType, build: object) -> set[tuple[int, str]]:
    """Return (line, code) of the markers in the function and in the classes that it builds."""
    lines, start = inspect.getsourcelines(build)
    text = "".join(lines)
    blocks = [(start, lines)]
    for name, value in vars(module).items():
        if inspect.isclass(value) and value.__module__ == module.__name__ and re.search(rf"\b{name}\b", text):
            for part in value.__mro__:
                if part.__module__ == module.__name__:
                    blocks.append((inspect.getsourcelines(part)[1], inspect.getsourcelines(part)[0]))
    if "Coder" in text:
        source, first = inspect.getsourcelines(faults_cut.Quantizer)
        blocks.append((first, source))
    return {
        (first + i, m.group(1)) for first, body in blocks for i, line in enumerate(body) if (m := _MARK.search(line))
    }


def _audit(build: object) -> pullback.audit.Report:
    torch.manual_seed(0)
    program, *inputs = build()  # type: ignore[operator]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pullback.audit(program, *inputs)


def _check_fault(module: ModuleType, build: object) -> None:
    report = _audit(build)
    wanted = _marks(module, build)
    assert wanted, "no marker"
    strong = {(f.line, f.code) for f in report.findings if f.severity != "info"}
    assert wanted <= strong, str(report)
    lines = {line for line, _ in wanted}
    extra = {f.line for f in report.findings if f.severity != "info"} - lines
    assert not extra, f"one fault, one finding\n{report}"


@pytest.mark.parametrize("build", _programs(faults_cut))
def test_cut_is_found_at_its_line(build: object) -> None:
    _check_fault(faults_cut, build)


@pytest.mark.parametrize("build", _programs(faults_other))
def test_fault_is_found_at_its_line(build: object) -> None:
    _check_fault(faults_other, build)


@pytest.mark.parametrize("build", _programs(clean))
def test_clean_program_gets_no_finding(build: object) -> None:
    report = _audit(build)
    assert not [f for f in report.findings if f.severity != "info"], str(report)
