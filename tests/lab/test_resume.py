"""A run that dies goes on where it was saved and ends with the same numbers, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pullback import lab
from pullback.lab.lab import Lab
from pullback.lab.progress import Silent
from pullback.lab.result import RunResult
from tests.lab import toy  # noqa: F401


def _numbers(result: RunResult) -> dict[tuple[str, str], float]:
    return {(m.name, m.of): m.value for m in result.metrics}


def _series(result: RunResult) -> dict[tuple[str, str], tuple[list[int], list[float]]]:
    return {(s.name, s.of): (s.steps, s.values) for s in result.series}


@pytest.mark.parametrize("place", ["b:7", "until drawn:3"])
def test_kill_9_and_resume_give_the_same_numbers(place: str, tmp_path: Path) -> None:
    expected = lab.run("toy-regression", seed=3, runs=tmp_path / "whole", quiet=True)
    options = ["--seed", "3", "--checkpoint-every", "0", "--runs", str(tmp_path / "killed"), "--quiet"]
    killed = subprocess.run(
        [sys.executable, "-m", "tests.lab.toy", "run", "toy-regression", *options],
        env={**os.environ, "TOY_KILL_AT": place, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (partial,) = lab.read_results(tmp_path / "killed")
    assert partial.status == "killed"
    assert _numbers(partial)
    assert not partial.claims

    resumed = lab.run("toy-regression", runs=tmp_path / "killed", resume=True, quiet=True)

    assert resumed.directory == partial.directory
    assert (resumed.status, resumed.resumed, resumed.seed) == ("complete", 1, 3)
    assert _numbers(resumed) == _numbers(expected)
    assert _series(resumed) == _series(expected)
    assert resumed.counts == expected.counts
    assert [c.verdict for c in resumed.claims] == [c.verdict for c in expected.claims]


def test_out_of_time_is_resumed(tmp_path: Path) -> None:
    expected = lab.run("toy-regression", runs=tmp_path / "whole", quiet=True)
    stopped = lab.run("toy-regression", runs=tmp_path / "runs", budget=1e-9, quiet=True)
    assert stopped.status == "out of time"
    assert not stopped.claims
    resumed = lab.run("toy-regression", runs=tmp_path / "runs", resume=True, quiet=True)
    assert resumed.status == "complete"
    assert _numbers(resumed) == _numbers(expected)


def test_resume_keeps_to_what_was_asked_for(tmp_path: Path) -> None:
    lab.run("toy-regression", seed=1, runs=tmp_path, budget=1e-9, config={"steps": 2}, quiet=True)
    with pytest.raises(lab.UsageError, match=r"no unfinished run of toy-regression .* with seed 2"):
        lab.run("toy-regression", seed=2, runs=tmp_path, resume=True)
    with pytest.raises(lab.UsageError, match="steps 3"):
        lab.run("toy-regression", runs=tmp_path, resume=True, config={"steps": 3})
    assert lab.run("toy-regression", runs=tmp_path, resume=True, quiet=True).config["steps"] == 2
    with pytest.raises(lab.UsageError, match="no unfinished run"):
        lab.run("toy-regression", runs=tmp_path, resume=True)


def _lab(directory: Path, *, resume: bool) -> Lab:
    return Lab(RunResult(slug="inline", family="gradients", seed=5), directory, Silent(), resume=resume)


def test_an_error_in_a_loop_is_not_taken_for_its_end(tmp_path: Path) -> None:
    first = _lab(tmp_path, resume=False)
    counter = torch.zeros(())

    def count() -> None:
        for step in first.steps(4, save={"counter": counter}):
            counter.add_(1)
            if step == 2:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        count()
    first.finish("failed")

    again = torch.zeros(())
    assert list(_lab(tmp_path, resume=True).steps(4, save={"counter": again})) == [0, 1, 2, 3]


def test_a_loop_that_was_left_is_not_entered_again(tmp_path: Path) -> None:
    def left(lab_: Lab) -> tuple[int, float]:
        entered, counter = 0, torch.zeros(())
        for step in lab_.steps(10, save={"counter": counter}):
            entered += 1
            counter += 1
            if step == 3:
                break
        lab_.note("the lab is called again")
        return entered, counter.item()

    assert left(_lab(tmp_path, resume=False)) == (4, 4.0)
    assert left(_lab(tmp_path, resume=True)) == (0, 4.0)


def test_streams_forked_before_a_skipped_loop_go_on_after_it(tmp_path: Path) -> None:
    def draws(lab_: Lab) -> list[float]:
        stream = lab_.fork("a")
        for _ in lab_.steps(3, save={}):
            torch.rand(2, generator=stream)
            lab_.fork("inside a loop")
        return [torch.rand((), generator=stream).item(), torch.rand((), generator=lab_.fork("b")).item()]

    assert draws(_lab(tmp_path, resume=False)) == draws(_lab(tmp_path, resume=True))


def test_a_loop_without_save_is_done_again_with_the_same_draws(tmp_path: Path) -> None:
    def draws(lab_: Lab) -> list[float]:
        return [torch.rand((), generator=lab_.generator).item() for _ in lab_.steps(3)]

    assert draws(_lab(tmp_path, resume=False)) == draws(_lab(tmp_path, resume=True))


def test_a_loop_of_another_length_is_refused(tmp_path: Path) -> None:
    list(_lab(tmp_path, resume=False).steps(3, save={}))
    with pytest.raises(ValueError, match="a loop of 3 steps, not 4"):
        list(_lab(tmp_path, resume=True).steps(4, save={}))
