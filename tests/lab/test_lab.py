"""What a system can rely on: streams, loops, claims, metrics, and errors that name what is wrong."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pullback import lab
from pullback.lab.lab import Lab
from pullback.lab.progress import Silent
from pullback.lab.result import RunResult
from tests.lab import toy


@pytest.fixture
def inline(tmp_path: Path) -> Lab:
    return Lab(RunResult(slug="inline", family="gradients", directory=tmp_path), tmp_path, Silent())


def _record(inline: Lab) -> dict:
    return json.loads((inline.directory / "result.json").read_text())


def test_same_seed_same_numbers_other_seed_others(tmp_path: Path) -> None:
    first, second, other = (lab.run("toy-regression", seed=s, runs=tmp_path, quiet=True) for s in (1, 1, 2))
    assert first.metrics == second.metrics
    assert first.metrics != other.metrics
    assert len({first.directory, second.directory, other.directory}) == 3


def test_a_run_leaves_the_callers_random_state_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    lab.run("toy-regression", runs=tmp_path, scale="smoke", quiet=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_scales_change_the_config_and_what_is_judged(tmp_path: Path) -> None:
    smoke = lab.run("toy-regression", scale="smoke", runs=tmp_path, config={"bound": -1.0}, quiet=True)
    assert smoke.config["steps"] == 3
    assert [c.verdict for c in smoke.claims] == ["failed", "not judged"]
    default = lab.run("toy-regression", runs=tmp_path, quiet=True)
    assert default.config["steps"] == 12
    assert [c.verdict for c in default.claims] == ["held", "held"]


def test_forks_depend_on_seed_and_name_alone(inline: Lab) -> None:
    first = torch.rand(3, generator=inline.fork("a"))
    torch.rand(3, generator=inline.generator)
    assert torch.equal(first, torch.rand(3, generator=inline.fork("a")))
    assert not torch.equal(first, torch.rand(3, generator=inline.fork("b")))


def test_results_are_written_as_they_come(inline: Lab) -> None:
    inline.arm("ours").metric("accuracy", torch.tensor(0.5), better="higher", unit="%")
    inline.arm("ours").metric("accuracy", np.float32(0.25), better="higher")
    inline.metric("error", float("inf"))
    inline.claim("it holds", torch.tensor(True), gap=float("nan"), solver="lbfgs")
    record = _record(inline)
    assert [(m["name"], m["value"]) for m in record["metrics"]] == [("accuracy", 0.25), ("error", "Infinity")]
    assert record["claims"][0]["numbers"] == {"gap": "NaN", "solver": "lbfgs"}
    assert record["status"] == "running"
    back = RunResult.read(inline.directory)
    assert back.metrics[1].value == float("inf")


def test_progress_and_series(inline: Lab) -> None:
    ours = inline.arm("ours")
    for _ in ours.steps(3):
        ours.record("loss", torch.tensor([1.5]))
    ours.record("after", 1, step=10)
    inline.note("done")
    record = _record(inline)
    assert record["progress"] == {"loop": "ours: train", "step": 3, "steps": 3}
    assert record["series"][0] == {"name": "loss", "of": "ours", "replicate": None} | {
        "steps": [0, 1, 2],
        "values": [1.5, 1.5, 1.5],
    }
    assert record["series"][1]["steps"] == [10]
    assert ours.last("after") == 1


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x: x.metric("a", 1, better="more"), ValueError, "better must be one of 'higher', 'lower', got 'more'"),
        (lambda x: x.metric("a", torch.zeros(2)), TypeError, r"a must be one number, got shape \(2,\)"),
        (lambda x: x.metric("a", "1"), TypeError, "a must be a number, got str"),
        (lambda x: [x.claim("a", True), x.claim("a", True)], ValueError, "claim 'a' was stated before"),
        (lambda x: x.claim("a", True, scale="big"), ValueError, "scale must be one of"),
        (lambda x: x.claim("a"), TypeError, "claim 'a' needs a condition"),
        (lambda x: x.claim("a", 1.0), TypeError, "a condition of claim 'a' must be true or false, got float"),
        (lambda x: x.claim("a", torch.tensor([True, False])), TypeError, "must be one truth value, got"),
        (lambda x: x.data("d", origin="fake"), ValueError, "origin must be one of 'real', 'simulated', 'stand-in'"),
        (lambda x: x.arm("a").steps(2.0), TypeError, "count must be an integer, got float"),
        (lambda x: x.arm("a").steps(2, lr=0.1), TypeError, "state 'lr' of the loop 'train' must have state_dict"),
        (lambda x: x.arm("a").last("loss"), KeyError, "no series 'loss' of 'a'; recorded: nothing"),
    ],
)
def test_wrong_calls_are_refused_by_name(inline: Lab, call: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call(inline)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"seed": -1}, "seed must be an integer >= 0, got -1"),
        ({"scale": "smoky"}, "scale must be one of .* did you mean 'smoke'"),
        ({"budget": 0.0}, "budget must be > 0 seconds, got 0"),
        ({"device": "tpu9"}, "device must be one of cpu"),
        ({"data": "/no/such/folder"}, "data must be an existing folder or file"),
        ({"config": {"step": 1}}, "no option 'step'; did you mean 'steps'"),
        ({"config": {"lr": -1.0}}, "lr must be > 0"),
        ({"runs": __file__}, "runs must be a folder"),
    ],
)
def test_a_run_that_cannot_start_says_why(arguments: dict, match: str, tmp_path: Path) -> None:
    with pytest.raises(lab.UsageError, match=match):
        lab.run("toy-regression", **{"runs": tmp_path, "quiet": True, **arguments})
    assert not list(tmp_path.iterdir())


def test_an_error_leaves_a_record(tmp_path: Path) -> None:
    with pytest.raises(lab.RunError, match=r"toy-regression raised ArithmeticError: asked to fail$") as caught:
        lab.run("toy-regression", runs=tmp_path, config={"fail": True}, quiet=True)
    assert isinstance(caught.value.__cause__, ArithmeticError)
    (result,) = lab.read_results(tmp_path)
    assert (result.status, result.error) == ("failed", "ArithmeticError: asked to fail")
    assert result.series[0].steps == [0, 1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_terminate_end_the_step_and_save(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = lab.run("toy-regression", runs=tmp_path / "whole", quiet=True)
    handler = signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(toy, "_die", lambda loop, step: signal.raise_signal(number) if step == 5 else None)
        with pytest.raises(KeyboardInterrupt):
            lab.run("toy-regression", runs=tmp_path / "runs", quiet=True)
    assert signal.getsignal(number) is handler
    (stopped,) = lab.read_results(tmp_path / "runs")
    assert stopped.status == "interrupted"
    assert stopped.progress["step"] == 6
    resumed = lab.run("toy-regression", runs=tmp_path / "runs", resume=True, quiet=True)
    assert resumed.metrics == expected.metrics


def test_outside_of_loops_ctrl_c_is_immediate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(lab_: Lab, *rest: object) -> None:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on")

    monkeypatch.setattr(Lab, "subplots", interrupt)
    with pytest.raises(KeyboardInterrupt):
        lab.run("toy-regression", runs=tmp_path, quiet=True)
    (stopped,) = lab.read_results(tmp_path)
    assert stopped.status == "interrupted"
    assert len(stopped.claims) == 2


def test_one_process_gets_its_objects_back_on_the_device(inline: Lab) -> None:
    model, rows = torch.nn.Linear(2, 1), torch.arange(5)
    assert inline.prepare(model) is model
    assert inline.prepare(model, "anything") == (model, "anything")
    assert torch.equal(inline.shard(rows), rows)
    assert torch.equal(inline.mean(rows), rows)


def test_data_that_is_missing_is_named_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setenv("PULLBACK_DATA", str(tmp_path / "cache"))
    system = replace(lab.load("toy-regression"), data=("mnist",))
    with pytest.raises(lab.UsageError, match="run `pullback data fetch mnist`"):
        lab.run(system, runs=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_the_record_is_written_however_busy_the_machine_is(inline: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short record that waits long for the disk or the processor is still there at once, claim by claim."""
    waited, clock = [0.0], time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + waited[0])
    written = RunResult.write

    def slowly(result: RunResult) -> None:
        waited[0] += 10.0
        written(result)

    monkeypatch.setattr(RunResult, "write", slowly)
    for n in range(3):
        inline.claim(f"claim {n}", True)
        assert len(RunResult.read(inline.directory).claims) == n + 1
