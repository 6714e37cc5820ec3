"""Advice: every example runs when pasted, and every finding gets one that names its operation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pullback.audit.report.findings import Finding
from pullback.audit.report.remedies import REMEDIES, find, remedies_for, suggest, with_remedies
from pullback.audit.report.report import Report


def _finding(source: str, code: str, operation: str, column: int = 0, end_column: int = 0) -> Finding:
    return Finding(code, code.partition(".")[0], "error", "f.py", 3, column, end_column, source, operation, "why")


@pytest.mark.parametrize("remedy", [r for r in REMEDIES if r.block != "relaxed"], ids=lambda r: r.block)
def test_the_example_runs_when_pasted_and_leaves_a_gradient(remedy: object) -> None:
    x = torch.tensor([0.3, 1.2, 0.7], requires_grad=True)
    scope = {"torch": torch, "x": x}
    exec(remedy.for_expression("x")["code"], scope)  # type: ignore[attr-defined]
    results = [v for k, v in scope.items() if k != "x" and isinstance(v, torch.Tensor)]
    assert results or "parameters" in scope or "ordered" in scope
    assert all(v.isfinite().all() for v in results)
    if any(code.partition(".")[0] in {"cut", "zero"} for code in remedy.codes):  # type: ignore[attr-defined]
        assert any(v.requires_grad for v in results)


def test_the_users_own_expression_stands_in_the_example() -> None:
    finding = _finding("    order = torch.argsort(self.net(x)[0], dim=-1)", "cut.index", "argsort", 13, 50)
    assert "discrete.rank(self.net(x)[0], temperature=0.1)" in remedies_for(finding)[0]["code"]
    finding = _finding("    mask = (scores > 0.5).float()", "cut.comparison", "gt", 13, 25)
    assert "discrete.greater(scores, 0.0" in remedies_for(finding)[0]["code"]
    finding = _finding("    value = out.loss.item()", "cut.item", "item", 13, 28)
    assert "out.loss" in remedies_for(finding)[0]["code"]


def test_the_advice_for_an_operation_comes_alone_where_there_is_one() -> None:
    blocks = [r["block"] for r in remedies_for(_finding("k = x.topk(2)", "cut.index", "topk"))]
    assert blocks == ["discrete.soft_topk", "relaxed"]
    for operation in ("round", "floor", "sign", "heaviside", "clamp"):
        finding = _finding(f"k = x.{operation}()", f"zero.{operation}", operation)
        assert remedies_for(finding)[0]["block"] == f"discrete.{operation}"
    assert remedies_for(_finding("k = x.clamp_(0)", "zero.clamp", "clamp_"))[0]["block"] == "discrete.clamp"
    assert remedies_for(_finding("k = f(x)", "zero.custom", "custom"))[0]["block"] == "discrete.straight_through"


@pytest.mark.parametrize("code", sorted({c for r in REMEDIES for c in r.codes}))
def test_every_code_has_advice(code: str) -> None:
    full = code if "." in code else f"{code}.something"
    assert remedies_for(_finding("y = f(x)", full, "f"))


def test_find_knows_torch_names_blocks_and_codes() -> None:
    assert find("torch.argmax")[0].block == "discrete.argmax"
    assert find("Tensor.round")[0].block == "discrete.round"
    assert find("cut.sampling")
    assert find("nonsense") == []
    assert "argmax" in suggest("argmxa")


def test_only_errors_and_warnings_get_remedies_and_existing_ones_stay() -> None:
    info = Finding("cut.detach", "cut", "info", "f.py", 1, 0, 0, "y = x.detach()", "detach", "intended")
    kept = _finding("y = x.detach()", "cut.detach", "detach")
    report = with_remedies(Report("f", findings=(kept, info)))
    assert report.findings[0].remedies
    assert not report.findings[1].remedies
    assert with_remedies(report) == report


def test_relaxed_is_not_offered_where_it_was_tried_in_vain() -> None:
    finding = _finding("k = x.argmax()", "cut.index", "argmax")

    def offered(**evidence: float) -> bool:
        return "relaxed" in [r["block"] for r in remedies_for(replace(finding, evidence=evidence))]

    assert offered()
    assert offered(relaxed_gradient=1.0, relaxed_cosine=0.4, relaxed_cosine_error=0.2)
    assert not offered(relaxed_gradient=0.0)
    assert not offered(relaxed_gradient=1.0, relaxed_cosine=-0.6, relaxed_cosine_error=0.2)
