"""The earliest number that is not finite is blamed: in its pass, at its line, forwards before backwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import pullback
from pullback.audit import audit_script

_HEAD = """\
import torch, torch.nn as nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
for step in range(45):
    x = torch.rand(6, 4)
    if step == AT:
        x[:] = BAD
    e = net(x)
    loss = LOSS  # HERE
    optimizer.zero_grad(); loss.backward(); optimizer.step()
"""


def _script(folder: Path, at: int, bad: str, loss: str) -> Path:
    path = folder / "train.py"
    path.write_text(_HEAD.replace("AT", str(at)).replace("BAD", bad).replace("LOSS", loss))
    return path


@pytest.mark.parametrize("at", [0, 1, 2, 31, 40])
@pytest.mark.parametrize(
    ("bad", "loss", "code", "what"),
    [
        ("x[0]", "(e[0] - e[1]).square().sum().sqrt() + e.square().mean()", "nan.backward", "inf"),
        ("0.0", "(e / x.sum(1, keepdim=True) * x[:, :1]).mean()", "nan.forward", "inf"),
        ("-1.0", "(e * x.sum(1, keepdim=True).log()).mean()", "nan.forward", "nan"),
    ],
)
def test_a_bad_step_is_named_with_its_number_whenever_it_comes(
    tmp_path: Path, at: int, bad: str, loss: str, code: str, what: str
) -> None:
    if what == "nan" and code == "nan.forward":
        bad, loss = "-1.0", "(x.sum(1, keepdim=True) * (e - e + x[:, :1]).log()).mean()"
    report = audit_script(_script(tmp_path, at, bad, loss), steps=None)
    (found,) = [f for f in report.findings if f.severity == "error"]
    assert (found.line, found.code) == (10, code)
    assert found.evidence["backward pass"] == at + 1
    assert report.steps == 45


def test_rows_made_nan_and_sliced_away_are_blamed_on_what_made_them() -> None:
    def attention(x: Tensor, weight: Tensor, pad: Tensor) -> Tensor:
        scores = (x @ weight @ x.mT).masked_fill(pad[:, None], -torch.inf)
        shares = scores.softmax(-1)
        mixed = shares @ (x @ weight)
        return mixed[:1].square().sum()

    pad = torch.tensor([[False, True, True], [True, True, True]])
    report = pullback.audit(attention, torch.randn(2, 3, 4), torch.randn(4, 4, requires_grad=True), pad)
    (found,) = [f for f in report.findings if f.severity == "error"]
    assert (found.code, found.operation) == ("nan.forward", "softmax")
    assert found.line == attention.__code__.co_firstlineno + 2


def test_an_additive_mask_of_minus_infinity_is_meant_and_what_it_leads_to_is_not() -> None:
    mask = torch.full((2, 3), -torch.inf)

    def program(scores: Tensor) -> Tensor:
        masked = scores + mask
        return F.softmax(masked, 1).sum()

    report = pullback.audit(program, torch.randn(2, 3, requires_grad=True), probes="none")
    (found,) = [f for f in report.findings if f.severity == "error"]
    assert found.operation == "softmax"


def test_the_gradient_of_the_first_step_is_blamed_not_the_layer_that_gets_its_weights() -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def train(x: Tensor) -> None:
        for _ in range(3):
            h = x @ weight
            distance = (h - h.detach()).square().sum().sqrt()
            optimizer.zero_grad()
            distance.backward()
            optimizer.step()

    report = pullback.audit(train, torch.ones(3, 2))
    (found,) = [f for f in report.findings if f.kind == "nan"]
    assert (found.operation, found.evidence["backward pass"]) == ("sqrt", 1)
