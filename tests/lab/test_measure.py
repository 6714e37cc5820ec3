"""Instruments against what is known: a clock that is told the time, storages counted by hand, closed-form slopes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

from pullback.lab.measure import operations, peak_memory, race, slope


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.worked: list[str] = []

    def work(self, name: str, *seconds: float) -> Callable[[], None]:
        """A callable that takes one duration after the other, and the last one from then on."""
        left = list(seconds)

        def call() -> None:
            self.worked.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def test_contenders_take_turns_and_begin_in_turn() -> None:
    clock = Clock()
    race({name: clock.work(name, 1.0) for name in "abc"}, rounds=4, clock=lambda: clock.now)
    assert "".join(clock.worked) == "aabbcc" + "abc" + "bca" + "cab" + "abc"


def test_a_disturbed_round_does_not_move_the_median() -> None:
    clock = Clock()
    contenders = {"quick": clock.work("quick", 9.0, 1, 1, 1, 50, 1), "slow": clock.work("slow", 9.0, 3, 3, 3, 3)}
    found = race(contenders, rounds=5, clock=lambda: clock.now)
    assert (found["quick"], found["slow"]) == (1.0, 3.0)
    assert found.times["quick"] == (1.0, 1.0, 50.0, 1.0, 1.0), "the first two calls only warm up"
    assert found.ratio("slow", "quick") == 3.0


def test_a_ratio_is_taken_within_a_round() -> None:
    """A clock that slows down by half an hour a round moves both medians, and no ratio."""
    clock = Clock()
    speeds = [1.0, 1.0, 1, 10, 100]
    contenders = {"a": clock.work("a", *speeds), "b": clock.work("b", *(2 * s for s in speeds))}
    assert race(contenders, rounds=3, clock=lambda: clock.now).ratio("b", "a") == 2.0


def test_short_calls_are_repeated_until_the_clock_can_see_them() -> None:
    clock = Clock()
    found = race({"a": clock.work("a", 1e-3)}, rounds=2, seconds=0.0505, clock=lambda: clock.now)
    assert len(clock.worked) == 1 + (1 + 2 + 4 + 8 + 16) + 2 * 50, "doubled until a quarter of the time has passed"
    assert found["a"] == pytest.approx(1e-3)


def test_a_clock_that_ticks_slowly_does_not_make_a_timing_long() -> None:
    """Calls of 2 ms, and a clock that moves every 4 ms: the first call of all may seem to take no time."""
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1

    found = race({"x": work}, rounds=3, seconds=0.1, clock=lambda: 0.002 * calls // 0.004 * 0.004)
    assert found["x"] == pytest.approx(0.002, rel=0.1)
    assert calls < 400


def test_measured_times_state_the_threads_and_reach_the_claim() -> None:
    threads, seen = torch.get_num_threads(), []
    found = race({"a": lambda: seen.append(torch.get_num_threads()), "b": lambda: None}, rounds=1, threads=2)
    assert set(seen) == {2}
    assert torch.get_num_threads() == threads
    assert found["a"].label == "CPU time, 2 threads (a)"
    assert found["a"].unit == "s"
    assert set((found.ratio("a", "b") <= 1).numbers) == {"a / b", "CPU time, 2 threads (a)", "CPU time, 2 threads (b)"}
    assert race({"a": lambda: None}, rounds=1)["a"].name == "CPU time, 1 thread"


def test_the_clock_is_the_process_s_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("time.process_time", lambda: clock.now)
    assert race({"a": clock.work("a", 4.0)}, rounds=1)["a"] == 4.0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"contenders": {}}, "contenders must be at least one"),
        ({"contenders": {"a": print}, "rounds": 0}, "rounds must be an integer >= 1, got 0"),
        ({"contenders": {"a": print}, "threads": 0}, "threads must be an integer >= 1, got 0"),
        ({"contenders": {"a": print}, "seconds": -1.0}, "seconds must be .*>= 0"),
    ],
)
def test_a_race_that_cannot_be_run_says_why(arguments: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        race(**arguments)


def test_an_error_leaves_the_threads_as_they_were() -> None:
    threads = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        race({"a": lambda: 1 / 0}, threads=threads + 1)
    assert torch.get_num_threads() == threads
    with pytest.raises(KeyError, match="no contender 'b'; there were: 'a'"):
        race({"a": lambda: None}, rounds=1)["b"]


KB = 1024


def test_memory_is_the_most_that_lives_at_once() -> None:
    def one_after_the_other() -> None:
        for _ in range(5):
            torch.zeros(KB, dtype=torch.uint8)

    def kept() -> list[torch.Tensor]:
        return [torch.zeros(KB, dtype=torch.uint8) for _ in range(5)]

    assert peak_memory(one_after_the_other) == KB
    assert peak_memory(kept) == 5 * KB


def test_views_and_changes_in_place_take_no_memory() -> None:
    before = torch.zeros(KB)

    def work() -> torch.Tensor:
        before.view(2, -1).t().add_(1)
        inside = torch.zeros(KB, dtype=torch.uint8)
        return inside.view(-1, 2).mul_(2)[1:]

    assert peak_memory(work) == KB
    assert peak_memory(lambda: torch.tensor([0.0] * KB)) == 4 * KB


def test_what_a_graph_keeps_counts_until_it_is_gone() -> None:
    start = torch.ones(KB, dtype=torch.float64, requires_grad=True)

    def chain(length: int) -> None:
        x = start
        for _ in range(length):
            x = x.sin()  # keeps its input
        x.sum().backward()

    short, long = peak_memory(lambda: chain(10)), peak_memory(lambda: chain(20))
    assert long - short == 10 * 8 * KB
    assert (long - short).unit == "bytes"


def test_a_slope_is_that_of_the_closed_form() -> None:
    generator = np.random.default_rng(0)
    x = np.array([3.0, 10, 30, 100, 300, 1000])
    y = 2 * x**1.5 * np.exp(0.1 * generator.standard_normal(6))
    found = slope(x, torch.as_tensor(y), confidence=0.9, of="ours")
    line = stats.linregress(np.log(x), np.log(y))
    half = stats.t.ppf(0.95, 4) * line.stderr
    assert found.exponent == pytest.approx(line.slope, rel=1e-12)
    assert (found.low, found.high) == (pytest.approx(line.slope - half), pytest.approx(line.slope + half))
    assert found.factor == pytest.approx(math.exp(line.intercept))
    assert found.low.label == "exponent, 90% from (ours)"


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    x = np.array([1.0, 2, 4, 8, 16])
    fits = [slope(x, x**2 * np.exp(generator.standard_normal(5)), confidence=0.8) for _ in range(400)]
    covered = np.mean([bool(fit.low <= 2) and bool(fit.high >= 2) for fit in fits])
    assert covered == pytest.approx(0.8, abs=0.08), "four standard deviations of 400 draws"


def test_two_points_tell_nothing_about_the_confidence() -> None:
    found = slope([1, 2], [1, 4])
    assert (found.exponent, found.low, found.high) == (pytest.approx(2.0), -math.inf, math.inf)


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        ([1, 2], [1, 0], r"y must be finite and > 0, got \[1.0, 0.0\]"),
        ([1, -2], [1, 1], "x must be finite and > 0"),
        ([1, 2, 3], [1, 2], "same length, got 3 and 2"),
        ([2, 2], [1, 2], "at least two different sizes"),
        ([1, 2], [1, float("nan")], "y must be finite"),
    ],
)
def test_points_without_a_power_law_are_refused(x: list, y: list, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        slope(x, y)


def test_operations_are_those_of_the_shapes_that_run() -> None:
    x, w = torch.ones(7, 3), torch.ones(3, 5)
    assert operations(lambda: x @ w) == 2 * 7 * 3 * 5
    assert operations(lambda: (x * torch.zeros(7, 1)) @ w) == 2 * 7 * 3 * 5  # zeros cost what they cost
    assert operations(lambda: x[[0, 2]] @ w) == 2 * 2 * 3 * 5
    linear = torch.nn.Linear(3, 5)
    assert operations(lambda: linear(x).softmax(-1)) == 2 * 7 * 3 * 5
    with torch.inference_mode():
        assert operations(lambda: linear(x)) == 2 * 7 * 3 * 5
    assert operations(lambda: linear(x).sum().backward()) == 2 * 2 * 7 * 3 * 5  # once more for the weights
    model = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with FlopCounterMode(display=False) as counter:
        model(torch.ones(2, 6, 8))
    assert operations(lambda: model(torch.ones(2, 6, 8))) == counter.get_total_flops()
