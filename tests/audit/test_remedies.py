"""Remedies: the line that is offered, pasted into the file, runs and brings the gradient."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import pullback
from pullback.audit.remedy.patch import applied
from tests.audit.remedies import lines

TEXT = Path(lines.__file__).read_text(encoding="utf-8")
MASKED = {"masked_attention", "spread_of_equal"}
"""Whose NaN meets a mask further down, so that the norms are finite before and after."""
DRAWN = {n for n, (fn, *_) in lines.LINES.items() if n.startswith("draw")}
OTHER_VALUE = {"dead_units", "nearest_pixels", *DRAWN}
"""Whose rewriting computes another value on purpose: a leak, interpolation, other random numbers."""


def _trained(inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    found = [i for i in inputs if isinstance(i, torch.Tensor) and i.requires_grad]
    return found + [p for i in inputs if isinstance(i, torch.nn.Module) for p in i.parameters()]


def _differentiated(fn: Any, inputs: tuple[Any, ...]) -> tuple[float, float]:
    """The value and the norm of the gradient by plain autograd; where there is no derivative, the gradient is 0."""
    torch.manual_seed(5)
    value = fn(*inputs)
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        return float(torch.as_tensor(value)), 0.0
    try:
        gradients = torch.autograd.grad(value.sum(), _trained(inputs), allow_unused=True)
    except RuntimeError:  # floor_divide says that it has no derivative
        return value.item(), 0.0
    return value.item(), float(sum(g.double().square().sum() for g in gradients if g is not None)) ** 0.5


@pytest.fixture
def pasted(tmp_path: Path) -> Iterator[Any]:
    """Import a text as a module."""
    names: list[str] = []

    def load(text: str) -> ModuleType:
        name = f"pasted_{len(names)}_{tmp_path.name}"
        path = tmp_path / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module
        names.append(name)
        exec(compile(text, str(path), "exec"), module.__dict__)
        return module

    yield load
    for name in names:
        del sys.modules[name]


@pytest.mark.parametrize("name", lines.LINES)
def test_the_line_that_is_offered_runs_when_pasted_and_cures(name: str, pasted: Any) -> None:
    fn, make, texts = lines.LINES[name]
    inputs = make()
    torch.manual_seed(5)
    report = pullback.audit(fn, *inputs)
    remedies = [r for f in report.findings for r in f.remedies]
    assert remedies, [str(f) for f in report.findings]
    changes = list(dict.fromkeys(c for r in remedies for c in r.changes))
    text = applied(TEXT, changes)
    wanted = [t.replace("pullback_discrete", "discrete") for t in texts]
    assert all(t in text for t in wanted), "\n".join(r.diff for r in remedies)
    before, dead = _differentiated(fn, inputs)
    cured = getattr(pasted(text), name)
    if name == "method_of_a_module":
        inputs = (pasted(text).Selector(), inputs[1])
        inputs[0].load_state_dict(fn_state(make))
    after, alive = _differentiated(cured, inputs)
    assert alive > 0
    assert alive < float("inf")
    assert dead != pytest.approx(alive, rel=1e-6) or name in MASKED
    if name not in OTHER_VALUE and math.isfinite(before):
        assert after == pytest.approx(before, rel=0.1, abs=1e-3)


def fn_state(make: Any) -> Any:
    return make()[0].state_dict()
