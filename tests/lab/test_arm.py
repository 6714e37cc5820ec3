"""What arms promise: equal starts, replicates told apart, numbers that reach the claims, and kills without a trace."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pullback import lab
from pullback.lab.lab import Lab, RunStopped
from pullback.lab.progress import Silent
from pullback.lab.result import RunResult
from tests.lab import arms


def _lab(directory: Path, *, seed: int = 0, scale: str = "default", resume: bool = False) -> Lab:
    result = RunResult(slug="inline", family="gradients", seed=seed, scale=scale, directory=directory)
    return Lab(result, directory, Silent(), resume=resume)


@pytest.fixture
def inline(tmp_path: Path) -> Lab:
    return _lab(tmp_path)


def _initial(arm: lab.Arm) -> torch.Tensor:
    with arm.weights():
        return nn.Linear(3, 2).weight.detach()


def test_every_arm_starts_from_the_same_weights(inline: Lab, tmp_path: Path) -> None:
    ours, base = inline.arm("ours"), inline.arm("base", baseline=True)
    first = _initial(ours)
    torch.rand(7)
    assert torch.equal(_initial(base), first)
    assert not torch.equal(_initial(_lab(tmp_path, seed=1).arm("ours")), first)
    with ours.weights("decoder"):
        assert not torch.equal(nn.Linear(3, 2).weight, first), "another name draws other numbers"
    over = {replicate: (_initial(ours), _initial(base)) for replicate in inline.replicates(3)}
    for mine, theirs in over.values():
        assert torch.equal(mine, theirs)
    assert len({weight.sum().item() for weight, _ in over.values()}) == 3


def test_weights_leave_torch_s_generator_where_it_was(inline: Lab) -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    _initial(inline.arm("ours"))
    assert torch.equal(torch.rand(2), expected)


def test_descend_is_the_four_lines_that_everybody_writes(inline: Lab) -> None:
    arm = inline.arm("ours")
    weight = torch.tensor([1.0, -2.0], requires_grad=True)
    by_hand = weight.detach().clone().requires_grad_()
    optimizers = [torch.optim.SGD([w], lr=0.1, momentum=0.9) for w in (weight, by_hand)]
    for _ in range(3):
        arm.descend((weight**2).sum(), optimizers[0], name="energy")
        optimizers[1].zero_grad()
        (by_hand**2).sum().backward()
        optimizers[1].step()
    assert torch.equal(weight, by_hand)
    assert arm.series("energy")[0] == 5.0
    start = weight.detach().clone()
    plain = torch.optim.SGD([weight], lr=1.0)
    arm.descend(1e6 * weight.sum(), plain, clip=0.5)
    assert (weight - start).norm().item() == pytest.approx(0.5, rel=1e-4)


def test_counts_are_metrics_as_they_come_back_from_a_record(inline: Lab) -> None:
    arm = inline.arm("Cauchy")
    for value in (3, torch.tensor(3), True):
        arm.metric("found", value)
        (metric,) = inline._recorder.result.metrics
        assert type(metric.value) is float
    result = inline._recorder.result
    assert repr(RunResult.from_json(result.to_json()).metrics) == repr(result.metrics)


def test_metrics_are_handles_that_reach_the_claim(inline: Lab) -> None:
    ours, base = inline.arm("Cauchy"), inline.arm("logistic", baseline=True)
    found = ours.metric("exact match", torch.tensor(0.75), better="higher")
    base.metric("exact match", 0.5, better="higher")
    assert found == ours["exact match"] == 0.75
    extra: dict[str, float] = {"sets": 500.0}
    assert inline.claim("more", ours["exact match"] >= base["exact match"] + 0.08, found <= 1, scale="smoke", **extra)
    assert not inline.claim("both must hold", found > 0.1, torch.tensor(False))
    assert not inline.claim("nothing of NaN", ours.metric("other", float("nan")) <= 1)
    record = RunResult.read(inline.directory)
    assert record.claims[0].numbers == {"exact match (Cauchy)": 0.75, "exact match (logistic)": 0.5, "sets": 500.0}
    assert [c.verdict for c in record.claims] == ["held", "failed", "failed"]
    assert [(m.of, m.baseline) for m in record.metrics[:2]] == [("Cauchy", False), ("logistic", True)]
    with pytest.raises(KeyError, match="no metric or count 'speed' of 'Cauchy'; there are: 'exact match', 'other'"):
        ours["speed"]


def test_counts_and_cpu_time_are_handles_too(inline: Lab) -> None:
    arm = inline.arm("ours")
    arm.count("evaluations", 3)
    assert arm.count("evaluations", 4) == arm["evaluations"] == 7
    with arm.cpu_time():
        sum(range(100_000))
    assert 0 < arm["cpu seconds"] < 60
    assert arm["cpu seconds"].unit == "s"


def test_replicates_give_mean_and_spread(inline: Lab) -> None:
    ours, base = inline.arm("ours"), inline.arm("base", baseline=True)
    drawn = []
    for replicate in inline.replicates(3):
        drawn.append(torch.rand((), generator=inline.fork("data")).item())
        assert torch.rand((), generator=inline.fork("data")).item() == drawn[-1]
        ours.metric("error", float(replicate**2), better="lower")
        assert ours["error"] == replicate**2, "inside, it is this replicate's"
        base.metric("error", 10.0 + replicate)
        ours.record("loss", replicate)
        ours.record("loss", 10 * replicate)
        assert ours.series("loss") == [replicate, 10 * replicate]
    assert len(set(drawn)) == 3
    found = ours["error"]
    assert (float(found), found.values) == (pytest.approx(5 / 3), (0.0, 1.0, 4.0))
    assert found.spread == pytest.approx(statistics.stdev([0, 1, 4]))
    assert ours.last("loss").values == (0.0, 10.0, 20.0)
    assert ours.series("loss", replicate=2) == [2.0, 20.0]
    with pytest.raises(KeyError, match=r"no series 'loss' of 'ours'; recorded: 'loss' of 'ours' in replicate 0"):
        ours.series("loss")
    inline.claim("ours is better", found < base["error"])
    (claim,) = RunResult.read(inline.directory).claims
    assert claim.spreads == {"error (ours)": pytest.approx(2.0816659), "error (base)": 1.0}
    metric = RunResult.read(inline.directory).metrics[0]
    assert (metric.values, metric.spread) == ((0.0, 1.0, 4.0), found.spread)


def test_a_batch_of_replicates_is_given_at_once(inline: Lab) -> None:
    found = inline.arm("ours").metric("AUC", torch.tensor([0.5, 1.0]), replicated=True)
    assert (found, found.values) == (0.75, (0.5, 1.0))
    with pytest.raises(TypeError, match="AUC must be a sequence of numbers with replicated=True, got"):
        inline.arm("ours").metric("AUC", 0.5, replicated=True)


def test_an_arm_is_found_again_by_its_name_and_has_one_colour(inline: Lab) -> None:
    ours, base = inline.arm("ours"), inline.arm("base", baseline=True)
    assert inline.arm("ours") is ours
    assert inline.arm("base") is base
    assert ours.colour != base.colour
    with pytest.raises(ValueError, match="arm 'ours' was made without baseline=True"):
        inline.arm("ours", baseline=True)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda x: x.arm("a").steps(2, 0.1), TypeError, "state '0' of the loop 'train' must have state_dict"),
        (lambda x: x.arm("a").steps(-1), ValueError, "count must be an integer >= 0, got -1"),
        (lambda x: [list(x.arm("a").steps(1)) for _ in x.arm("b").steps(1)], RuntimeError, "inside another loop"),
        (lambda x: x.replicates(0), ValueError, "count must be an integer >= 1, got 0"),
        (lambda x: [list(x.replicates(1)) for _ in x.replicates(1)], RuntimeError, "inside another loop"),
        (lambda x: x.arm("a").descend(torch.zeros(2), torch.optim.SGD([torch.zeros(1)])), ValueError, "one element"),
        (lambda x: x.arm("a").descend(torch.zeros(())), TypeError, "needs an optimizer"),
    ],
)
def test_wrong_calls_are_refused_by_name(inline: Lab, call: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call(inline)  # type: ignore[operator]


def test_checkpoints_are_named_after_arm_replicate_and_loop(inline: Lab) -> None:
    for _ in inline.replicates(2):
        list(inline.arm("Arm one").steps(1, {}))
    list(inline.arm("Arm one").steps(1, {}, name="tune"))
    list(inline.arm("arm-one").steps(1, {}, name="tune"))
    files = {path.name.removesuffix(".safetensors") for path in (inline.directory / "checkpoints").iterdir()}
    assert files == {
        "arm-one-replicate-0-train",
        "arm-one-replicate-1-train",
        "arm-one-tune",
        "arm-one-tune-2",
    }


def test_a_learner_with_state_goes_on_where_it_was(tmp_path: Path) -> None:
    class Learner:
        def __init__(self) -> None:
            self.weights, self.round = torch.zeros(2), 0

        def update(self) -> None:
            self.weights = self.weights + 1  # not in place: only its state_dict knows
            self.round += 1

        def state_dict(self) -> dict[str, object]:
            return {"weights": self.weights, "round": self.round}

        def load_state_dict(self, state: dict) -> None:
            self.weights, self.round = state["weights"], state["round"]

    first = Learner()
    for _ in _lab(tmp_path).arm("ours").steps(3, first):
        first.update()
    again = Learner()
    assert list(_lab(tmp_path, resume=True).arm("ours").steps(3, again)) == []
    assert (again.weights.tolist(), again.round) == ([3.0, 3.0], 3)


def test_cpu_seconds_of_a_loop_are_those_of_all_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.process_time", lambda: clock[0])

    def train(lab_: Lab, stop_at: int) -> None:
        arm = lab_.arm("ours")
        clock[0] += 100  # what comes before the block does not count
        with arm.cpu_time(), arm.cpu_time("seconds of both"):
            for step in arm.steps(10, {}, name="first"):
                clock[0] += 1
                if step == stop_at:
                    lab_.request_stop()
            clock[0] += 5
            for _ in arm.steps(2, {}, name="second"):
                clock[0] += 1

    with pytest.raises(RunStopped):
        train(_lab(tmp_path), 3)
    train(resumed := _lab(tmp_path, resume=True), -1)
    assert resumed.arm("ours")["cpu seconds"] == 17
    train(again := _lab(tmp_path, resume=True), -1)
    assert again.arm("ours")["cpu seconds"] == again.arm("ours")["seconds of both"] == 17, (
        "also where all loops are skipped"
    )


PLACES = [f"{arm}:{replicate}:{step}" for replicate in (0, 1) for arm in ("adam", "sgd") for step in (0, 1, 2)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return lab.run("toy-arms", seed=3, runs=tmp_path_factory.mktemp("whole"), quiet=True)


def test_the_runs_of_this_file_can_fail(whole: RunResult) -> None:
    assert len({value for metric in whole.metrics for value in metric.values}) == 8


@pytest.mark.parametrize("place", PLACES)
def test_a_kill_at_any_step_leaves_no_trace_in_the_numbers(place: str, whole: RunResult, tmp_path: Path) -> None:
    killed = os.fork()
    if killed == 0:  # a forked child, so that twelve kills do not import torch twelve times
        os.environ["TOY_KILL_AT"] = place
        torch.set_num_threads(1)
        try:
            lab.run("toy-arms", seed=3, runs=tmp_path, checkpoint_every=0, quiet=True)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(killed, 0)[1]) == signal.SIGKILL
    resumed = lab.run("toy-arms", runs=tmp_path, resume=True, quiet=True)
    assert resumed.resumed == 1
    assert resumed.metrics == whole.metrics
    assert resumed.series == whole.series
    assert resumed.claims == whole.claims
    assert resumed.counts == whole.counts


def test_a_complete_run_leaves_no_checkpoints(tmp_path: Path) -> None:
    def checkpoints(directory: Path | None) -> list[Path]:
        assert directory is not None
        return list(directory.glob("checkpoints/*"))

    assert checkpoints(lab.run("toy-arms", runs=tmp_path / "a", budget=1e-9, quiet=True).directory)
    assert not checkpoints(lab.run("toy-arms", runs=tmp_path / "a", resume=True, quiet=True).directory)
    assert checkpoints(lab.run("toy-arms", runs=tmp_path / "b", keep_checkpoints=True, quiet=True).directory)


def test_a_run_states_its_cpu_seconds_threads_and_memory_over_all_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]

    def tick() -> float:
        clock[0] += 1
        return clock[0]

    monkeypatch.setattr("time.process_time", tick)
    first = lab.run("toy-arms", runs=tmp_path, budget=1e-9, quiet=True)
    began = clock[0]
    second = lab.run("toy-arms", runs=tmp_path, resume=True, quiet=True)
    assert 0 < first.cpu_seconds < 100
    assert second.cpu_seconds - first.cpu_seconds == clock[0] - began - 1, (
        "from the first look at the clock to the last"
    )
    assert second.threads == torch.get_num_threads()
    assert second.peak_memory > 2e7, "torch alone takes more"


def test_a_kill_of_a_whole_process_can_be_resumed(whole: RunResult, tmp_path: Path) -> None:
    command = ["run", "toy-arms", "--seed", "3", "--checkpoint-every", "0", "--runs", str(tmp_path), "--quiet"]
    killed = subprocess.run(
        [sys.executable, "-m", "tests.lab.arms", *command],
        env={**os.environ, "TOY_KILL_AT": "sgd:1:1", "OMP_NUM_THREADS": "1"},
        cwd=Path(arms.__file__).parents[2],
        capture_output=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert lab.run("toy-arms", runs=tmp_path, resume=True, quiet=True).metrics == whole.metrics
