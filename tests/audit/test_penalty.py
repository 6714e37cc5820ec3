"""An L1 penalty that plain gradient descent steps along."""

from __future__ import annotations

from pathlib import Path

import pytest

from pullback.audit import audit_script
from pullback.audit.remedy.table import find

SCRIPT = """
import torch
from torch import nn

model = nn.Linear(5, 1)
optimizer = torch.optim.{optimizer}(model.parameters(), lr=0.1)
x = torch.randn(64, 5)
for _ in range(2):
    optimizer.zero_grad()
    loss = (model(x) - x[:, :1]).square().mean() + 0.01 * {penalty}
    loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("optimizer", "penalty", "codes"),
    [
        ("SGD", "model.weight.abs().sum()", ["kink.penalty"]),
        ("SGD", "sum(p.abs().sum() for p in model.parameters())", ["kink.penalty"]),
        ("SGD", "model.weight.square().sum()", []),
        ("SGD", "model(x).abs().mean()", []),  # of values, not of weights
        ("Adam", "model.weight.abs().sum()", []),
    ],
)
def test_the_line_of_the_penalty_is_named(optimizer: str, penalty: str, codes: list[str], tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(optimizer=optimizer, penalty=penalty))
    report = audit_script(script)
    assert [finding.code for finding in report.findings] == codes
    for finding in report.findings:
        assert finding.severity == "info"
        assert finding.line == 10
        assert "gradients.ProximalSGD" in finding.message


def test_the_penalty_moves_from_the_loss_to_the_optimizer() -> None:
    (template, *_) = find("l1_penalty")
    assert template.block == "gradients.ProximalSGD"
    assert template in find("kink.penalty")
