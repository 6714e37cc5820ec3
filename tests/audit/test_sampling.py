"""Long trainings: few passes are recorded, and what turns wrong in the others is found all the same."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from pullback.audit import audit_script
from pullback.audit.trace.tracer import Tracer


def _train(steps: int, sample: bool) -> tuple[Tracer, list[float]]:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    with Tracer(sample=sample) as tracer:
        for _ in range(steps):
            x = torch.randn(6, 4)
            loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return tracer, losses


def test_a_long_training_is_recorded_at_its_start_and_now_and_then() -> None:
    few, _ = _train(2, True)
    tracer, losses = _train(200, True)
    every, same = _train(200, False)
    assert losses == same
    assert len(every.events) == 200
    assert [event.number for event in tracer.events] == [1, 2, 32, 33]
    assert tracer.steps_seen == 200
    assert len(tracer.nodes) < 2.2 * len(few.nodes)
    assert all(leaf.norm for leaf in tracer.leaves.values())


def test_an_optimizers_own_arithmetic_is_left_out_and_a_closure_is_not() -> None:
    w = torch.ones(3, requires_grad=True)
    for optimizer in (torch.optim.Adam([w]), torch.optim.LBFGS([w], max_iter=2)):

        def closure(optimizer: torch.optim.Optimizer = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = w.square().sum()
            loss.backward()
            return loss

        with Tracer() as tracer:
            optimizer.step(closure)
        assert {n.op for n in tracer.nodes} >= {"square", "sum"}
    optimizer = torch.optim.Adam([w])
    w.grad = torch.ones(3)
    with Tracer() as tracer:
        optimizer.step()
        w.square().sum()
    assert [n.op for n in tracer.nodes] == ["leaf", "square", "sum"]


def test_the_collector_has_its_thresholds_back() -> None:
    before = gc.get_threshold()
    with pytest.raises(KeyError), Tracer():
        raise KeyError
    assert gc.get_threshold() == before


_LATE = """\
import torch
torch.manual_seed(0)
net, gate = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
optimizer = torch.optim.SGD([*net.parameters(), *gate.parameters()], lr=0.01)
for step in range(40):
    x = torch.rand(8, 4)
    out = net(x)
    if step >= 20:
        out = out * (gate(x) > 0)
    optimizer.zero_grad()
    out.square().mean().backward()
    optimizer.step()
"""


def test_a_line_that_runs_late_is_recorded_when_it_does(tmp_path: Path) -> None:
    script = tmp_path / "late.py"
    script.write_text(_LATE)
    report = audit_script(script, steps=None)
    assert [(f.line, f.code) for f in report.findings if f.severity == "error"] == [(9, "cut.comparison")]
    assert report.steps == 40
    assert not report.notes
