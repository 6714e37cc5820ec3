"""A run that dies goes on where it was saved and ends with the same numbers, to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pullback import lab
from pullback.lab import checkpoint
from pullback.lab.checkpoint import CheckpointError
from pullback.lab.lab import Lab
from pullback.lab.loops import Limits
from pullback.lab.progress import Silent
from pullback.lab.result import RunResult
from pullback.lab.store import hold_run, new_directory
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


def _lab(directory: Path, *, resume: bool, **options: Any) -> Lab:
    return Lab(RunResult(slug="inline", family="gradients", seed=5), directory, Silent(), resume=resume, **options)


def test_an_error_in_a_loop_is_not_taken_for_its_end(tmp_path: Path) -> None:
    first = _lab(tmp_path, resume=False)
    counter = torch.zeros(())

    def count() -> None:
        for step in first.arm("x").steps(4, counter):
            counter.add_(1)
            if step == 2:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        count()
    first.finish("failed")

    again = torch.zeros(())
    assert list(_lab(tmp_path, resume=True).arm("x").steps(4, again)) == [0, 1, 2, 3]


def test_a_loop_that_was_left_is_not_entered_again(tmp_path: Path) -> None:
    def left(lab_: Lab) -> tuple[int, float]:
        entered, counter = 0, torch.zeros(())
        for step in lab_.arm("x").steps(10, counter):
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
        for _ in lab_.arm("x").steps(3, {}):
            torch.rand(2, generator=stream)
            lab_.fork("inside a loop")
        return [torch.rand((), generator=stream).item(), torch.rand((), generator=lab_.fork("b")).item()]

    assert draws(_lab(tmp_path, resume=False)) == draws(_lab(tmp_path, resume=True))


def test_a_loop_without_state_is_done_again_with_the_same_draws(tmp_path: Path) -> None:
    def draws(lab_: Lab) -> list[float]:
        return [torch.rand((), generator=lab_.generator).item() for _ in lab_.arm("x").steps(3)]

    assert draws(_lab(tmp_path, resume=False)) == draws(_lab(tmp_path, resume=True))


def test_a_loop_of_another_length_is_refused(tmp_path: Path) -> None:
    list(_lab(tmp_path, resume=False).arm("x").steps(3, {}))
    with pytest.raises(CheckpointError, match="a loop of 3 steps, not 4; start a new run"):
        list(_lab(tmp_path, resume=True).arm("x").steps(4, {}))


def _train(directory: Path, stop: int, *, resume: bool, inputs: int = 3) -> tuple[int, list[float]]:
    """Steps that were done here, and the weights after them; the loop is left by an error at ``stop``."""
    lab_ = _lab(directory, resume=resume, limits=Limits(checkpoint_every=0))
    torch.manual_seed(0)
    model = torch.nn.Linear(inputs, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    done = 0

    def train() -> None:
        nonlocal done
        for step in lab_.arm("x").steps(6, model=model, optimizer=optimizer):
            if step == stop:
                raise ZeroDivisionError
            optimizer.zero_grad()
            model(torch.randn(4, inputs, generator=lab_.generator)).square().sum().backward()
            optimizer.step()
            done += 1

    try:
        train()
    except ZeroDivisionError:
        lab_.finish("failed")
    return done, model.weight.flatten().tolist()


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", 6, resume=False)
    _train(tmp_path / "cut", 4, resume=False)
    newest, former = sorted((tmp_path / "cut" / "checkpoints").iterdir(), key=lambda path: "former" in path.name)
    newest.write_bytes(newest.read_bytes()[:-20])
    assert _train(tmp_path / "cut", 6, resume=True) == (3, whole[1]), "three steps were in the file before"
    newest.write_bytes(b"x")
    former.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=rf"delete {newest} and {former} to do that loop again"):
        _train(tmp_path / "cut", 6, resume=True)
    newest.unlink()
    former.unlink()
    assert _train(tmp_path / "cut", 6, resume=True) == (6, whole[1])


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    _train(tmp_path, 4, resume=False)
    with pytest.raises(
        CheckpointError, match=r"state\['model'\]\['weight'\] is float32 \[1, 5\], and float32 \[1, 3\]"
    ):
        _train(tmp_path, 6, resume=True, inputs=5)
    (path,) = (file for file in (tmp_path / "checkpoints").iterdir() if "former" not in file.name)
    state = checkpoint.read(path)
    checkpoint.write(path, {**state, "done": 7})
    with pytest.raises(CheckpointError, match="it says that 7 of 6 steps are done"):
        _train(tmp_path, 6, resume=True)
    checkpoint.write(path, {name: value for name, value in state.items() if name != "record"})
    with pytest.raises(CheckpointError, match="'record'"):
        _train(tmp_path, 6, resume=True)


def test_options_come_back_with_their_types(tmp_path: Path) -> None:
    codes = ((8, 4), (4, 24))
    lab.run("toy-regression", runs=tmp_path, budget=1e-9, config={"codes": codes, "steps": 2}, quiet=True)
    with pytest.raises(lab.UsageError, match="no unfinished run"):
        lab.run("toy-regression", runs=tmp_path, resume=True, config={"codes": ((1, 2),)})
    resumed = lab.run("toy-regression", runs=tmp_path, resume=True, config={"codes": codes}, quiet=True)
    assert resumed.notes == [repr(codes)]
    assert resumed.config["codes"] == [[8, 4], [4, 24]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "many"}, "steps must be an integer, got 'many'"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"dropped": 1}, "no option 'dropped'"),
        ({"lr": ...}, "it has no option 'lr'"),
    ],
)
def test_a_run_with_other_options_than_the_system_has_now_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    stopped = lab.run("toy-regression", runs=tmp_path, budget=1e-9, quiet=True)
    config = {**stopped.config, **change}
    replace(stopped, config={name: value for name, value in config.items() if value is not ...}).write()
    with pytest.raises(lab.UsageError, match="toy-regression has changed since") as caught:
        lab.run("toy-regression", runs=tmp_path, resume=True)
    assert message in str(caught.value)


def test_a_run_is_continued_by_one_process_only(tmp_path: Path) -> None:
    stopped = lab.run("toy-regression", runs=tmp_path, budget=1e-9, quiet=True)
    assert stopped.directory is not None
    record = (stopped.directory / "result.json").read_bytes()
    with hold_run(stopped.directory):  # as a process does that has just begun to continue it
        with pytest.raises(lab.UsageError, match="resume: another process works on"):
            lab.run("toy-regression", runs=tmp_path, resume=True)
        assert (stopped.directory / "result.json").read_bytes() == record
        replace(stopped, status="running").write()
        with pytest.raises(lab.UsageError, match=r"still goes on \(process [0-9]+ on "):
            lab.run("toy-regression", runs=tmp_path, resume=True)
    assert lab.run("toy-regression", runs=tmp_path, resume=True, quiet=True).status == "complete"


def test_a_changed_file_and_a_damaged_record_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped = lab.run("toy-regression", runs=tmp_path, budget=1e-9, quiet=True)
    damaged = new_directory(tmp_path, "toy-regression")
    (damaged / "result.json").write_text("{}")
    replace(stopped, versions={**stopped.versions, "system": "another"}).write()
    lab.run("toy-regression", runs=tmp_path, resume=True)
    assert f"the file of toy-regression has changed since {stopped.directory} was begun" in capsys.readouterr().err
    with pytest.raises(lab.UsageError, match=f"{damaged} is damaged: schema_version must be"):
        lab.run("toy-regression", runs=tmp_path, resume=True)
