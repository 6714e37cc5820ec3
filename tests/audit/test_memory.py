"""What the lines of a program keep, as a section of the report."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pullback
from pullback.audit import Report


def test_lines_are_told_with_the_bytes_that_they_keep() -> None:
    model = nn.Linear(16, 8)
    x = torch.randn(32, 16)

    def loss(x: Tensor) -> Tensor:
        hidden = model(x).exp()
        mixed = hidden @ hidden.T
        return mixed.tanh().sum()

    report = pullback.audit(loss, x, wrt=model, memory=True)
    first = loss.__code__.co_firstlineno
    found = {record.line - first: record.bytes for record in report.memory}
    # exp keeps its result, which the product keeps as well; tanh keeps its result; x exists anyway
    assert found == {3: 4 * 32 * 32, 1: 4 * 32 * 8}
    assert [record.bytes for record in report.memory] == sorted(found.values(), reverse=True)
    assert report.memory[0].source.strip() == "return mixed.tanh().sum()"
    assert all(record.file == __file__ for record in report.memory)
    assert Report.from_dict(report.to_dict()) == report
    assert "Kept for the backward pass: 5 KiB" in report.to_html()
    assert "kept for the backward pass  5 KiB" in str(report)
    assert "4 KiB" in str(report)
    assert all(p.requires_grad for p in model.parameters())
    assert not x.requires_grad


def test_nothing_is_told_unasked_or_of_a_program_that_trains_by_itself() -> None:
    x = torch.ones(3, requires_grad=True)
    assert pullback.audit(lambda: x.exp().sum()).memory == ()
    optimizer = torch.optim.SGD([x], 0.1)

    def step() -> None:
        x.exp().sum().backward()
        optimizer.step()

    report = pullback.audit(step, memory=True)
    assert report.memory == ()
    assert "kept for the backward pass" not in str(report)
    assert x.tolist() != pytest.approx([1.0, 1.0, 1.0])


def test_inputs_that_are_trained_for_the_audit_alone_are_left_as_they_were() -> None:
    x = torch.rand(4)
    report = pullback.audit(lambda x: x.sin().sum(), x, memory=True)
    assert report.memory == ()  # sin keeps its input, which exists anyway
    report = pullback.audit(lambda x: (2 * x).sin().sum(), x, memory=True)
    assert [record.bytes for record in report.memory] == [16]
    assert not x.requires_grad
