"""The README's Python runs as printed and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names left by the README's Python blocks, run in order from a file (audit reads its source)."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 3
    file = tmp_path_factory.mktemp("readme") / "readme.py"
    file.write_text("\n".join(blocks))
    scope: dict[str, Any] = {"__name__": "readme"}
    torch.manual_seed(0)
    exec(compile(file.read_text(), str(file), "exec"), scope)
    return scope


def test_audit_finds_both_lines(names: dict[str, Any]) -> None:
    found = {f.source.strip().split("  ")[0] for f in names["report"].findings if f.severity == "error"}
    assert found == {"order = torch.argsort(scores)", "confident = (scores > 0.5).float()"}


def test_relaxed_gives_a_gradient(names: dict[str, Any]) -> None:
    assert names["scores"].grad.abs().sum() > 0


def test_blocks_do_what_their_comments_say(names: dict[str, Any]) -> None:
    x = names["x"]
    assert names["ranks"].shape == x.shape
    torch.testing.assert_close(names["mask"].sum(-1), torch.full((3,), 3.0))
    torch.testing.assert_close(names["weights"].sum(-1), torch.ones(3))
    assert torch.equal(names["ordered"], x.sort(-1).values)
    assert torch.autograd.grad(names["ordered"][:, 0].sum(), x)[0].abs().sum() > 0
