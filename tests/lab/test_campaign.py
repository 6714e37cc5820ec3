"""Many runs: over seeds and grids, in this process, in others and on Ray, with the same numbers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pullback import lab
from pullback.lab.campaign import ClaimCount
from tests.lab import toy  # noqa: F401


def _numbers(outcomes: list[lab.Outcome]) -> list[dict[tuple[str, str], float]]:
    return [{(m.name, m.of): m.value for m in o.result.metrics} for o in outcomes if o.result]


def test_seeds_and_counts(tmp_path: Path) -> None:
    jobs = lab.seeds([lab.load("toy-regression")], 2, scale="smoke", runs=str(tmp_path), config={"bound": -1.0})
    seen: list[int] = []
    outcomes = lab.execute(jobs, report=lambda outcome: seen.append(outcome.job.seed))
    assert seen == [0, 1]
    assert [o.result.seed for o in outcomes if o.result] == [0, 1]
    assert lab.count_claims(outcomes) == [
        ClaimCount("toy-regression", "every arm ends below the bound", 0, 2, 0),
        ClaimCount("toy-regression", "the paper's gain shows", 0, 0, 2),
    ]


def test_one_error_does_not_end_the_others(tmp_path: Path) -> None:
    jobs = lab.grid(lab.load("toy-regression"), {"fail": [True, False]}, scale="smoke", runs=str(tmp_path))
    failed, fine = lab.execute(jobs)
    assert failed.error == "toy-regression raised ArithmeticError: asked to fail"
    assert failed.result is not None
    assert failed.result.status == "failed"
    assert fine.error == ""


def test_grid_is_the_product() -> None:
    jobs = lab.grid(lab.load("toy-regression"), {"lr": [0.1, 0.2], "steps": [1, 2]}, 2)
    assert [(j.config["lr"], j.config["steps"], j.seed) for j in jobs][:3] == [(0.1, 1, 0), (0.1, 1, 1), (0.1, 2, 0)]
    assert len(jobs) == 8


def test_wrong_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(lab.UsageError, match="seeds must be >= 1, got 0"):
        lab.seeds([lab.load("toy-regression")], 0)
    with pytest.raises(lab.UsageError, match="jobs must be >= 1, got 0"):
        lab.execute([], workers=0)


@pytest.mark.slow
def test_processes_give_the_same_numbers_and_one_may_die(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = lab.load("toy-regression")
    here = lab.execute(lab.seeds([system], 2, runs=str(tmp_path / "here")))
    there = lab.execute(lab.seeds([system], 2, runs=str(tmp_path / "there")), workers=2)
    assert _numbers(there) == _numbers(here)
    assert {r.seed for r in lab.read_results(tmp_path / "there")} == {0, 1}

    monkeypatch.setenv("TOY_KILL_AT", "b:2")
    jobs = lab.grid(system, {"arms": [("a",), ("a", "b")]}, scale="smoke", runs=str(tmp_path / "dies"))
    fine, dead = lab.execute(jobs, workers=2)
    assert fine.error == ""
    assert dead.error == "the process that ran toy-regression died"
    assert dead.result is None


@pytest.mark.slow
def test_ray_gives_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    system = lab.load("toy-regression")
    here = lab.execute(lab.seeds([system], 2, runs=str(tmp_path / "here")))
    there = lab.execute(lab.seeds([system], 2, runs=str(tmp_path / "there")), ray="local")
    assert _numbers(there) == _numbers(here)
    assert {r.seed for r in lab.read_results(tmp_path / "there")} == {0, 1}
    with pytest.raises(lab.UsageError, match="ray must be the address of a running cluster"):
        lab.execute(lab.seeds([system], 1, runs=str(tmp_path)), ray="auto")
