"""Measured numbers compute as floats, and what is computed from them knows where it comes from."""

from __future__ import annotations

import copy
import math
import operator
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pullback.lab.measured import Measured, Verdict, mean

_NUMBERS = st.floats(-1e6, 1e6)
_OPERATIONS = st.sampled_from([operator.add, operator.sub, operator.mul, operator.truediv])
_COMPARISONS = st.sampled_from([operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne])


@given(_NUMBERS, _NUMBERS.filter(lambda x: x != 0), _OPERATIONS)
def test_arithmetic_is_that_of_floats_from_either_side(a: float, b: float, operation: operator) -> None:
    expected = operation(a, b)
    for left, right in ((Measured(a, "x"), b), (a, Measured(b, "x")), (Measured(a, "x"), Measured(b, "y"))):
        result = operation(left, right)
        assert float(result) == expected
        assert set(result.sources) == {s.name for s in (left, right) if isinstance(s, Measured)}


@given(_NUMBERS, _NUMBERS, _COMPARISONS)
def test_comparisons_are_those_of_floats_from_either_side(a: float, b: float, compare: operator) -> None:
    for left, right in ((Measured(a, "x"), b), (a, Measured(b, "x")), (Measured(a, "x"), Measured(b, "y"))):
        assert bool(compare(left, right)) is compare(a, b)
        assert isinstance(compare(left, right), Verdict)


def test_a_comparison_carries_what_was_measured_and_what_was_computed() -> None:
    ours, base = Measured(0.75, "accuracy", "ours"), Measured(0.5, "accuracy", "base")
    assert (ours >= base + 0.1).numbers == {"accuracy (ours)": 0.75, "accuracy (base)": 0.5}
    assert (ours / base >= 1.2).numbers == {
        "accuracy (ours) / accuracy (base)": 1.5,
        "accuracy (ours)": 0.75,
        "accuracy (base)": 0.5,
    }
    assert abs(base - ours).name == "|(accuracy (base) - accuracy (ours))|"
    assert abs(base - ours) == 0.25
    assert max(ours, base) is ours
    assert min(ours, base).label == "accuracy (base)"
    assert sum([ours, base]) == 1.25


def test_verdicts_combine() -> None:
    high, low = Measured(2.0, "high") > 1, Measured(-1.0, "low") > 1
    assert not (high & low)
    assert high | low
    assert (high & low).numbers == {"high": 2.0, "low": -1.0}
    assert not (True & low)
    assert ~low
    assert sum([high, low, high]) == 2, "a verdict counts as what bool would"
    assert high == True  # noqa: E712
    assert bool(1 < Measured(2.0, "x") < 3)
    assert not (1 < Measured(5.0, "x") < 3)


@given(_COMPARISONS, st.floats(allow_nan=True))
def test_of_a_number_that_is_nan_nothing_holds(compare: operator, other: float) -> None:
    unknown = Measured(math.nan, "x")
    assert not compare(unknown, other)
    assert not compare(other, unknown)
    assert not compare(unknown / unknown, Measured(1.0, "y"))


def test_division_by_zero_ends_no_run() -> None:
    assert Measured(1.0, "x") / 0 == math.inf
    assert Measured(-1.0, "x") / 0 == -math.inf
    assert math.isnan(Measured(0.0, "x") / 0)


def test_replicates_are_computed_with_one_by_one() -> None:
    ours, base = mean([3.0, 4.0, 5.0], "x", "ours"), mean([1.0, 4.0, 1.0], "x", "base")
    assert (ours, base) == (4.0, 2.0)
    assert ours.spread == 1.0
    gain = ours - base
    assert (float(gain), gain.values) == (2.0, (2.0, 0.0, 4.0))
    assert gain.spread == pytest.approx(statistics.stdev([2, 0, 4]))
    assert (2 * ours).values == (6.0, 8.0, 10.0)
    assert (-ours).spread == 1.0
    assert (ours - mean([1.0, 2.0], "y")).values == (), "of another number of replicates there are no pairs"
    assert Measured(1.0, "x").spread is None


def test_a_measured_number_is_a_float_to_others() -> None:
    x = Measured(0.5, "x", unit="s")
    assert isinstance(torch.ones(2) * x, torch.Tensor)
    assert (x * torch.ones(2)).tolist() == [0.5, 0.5]
    assert f"{x:.2f} {x}" == "0.50 0.5"
    assert {x: 1}[0.5] == 1
    assert math.sqrt(x) == math.sqrt(0.5)
    copied = copy.deepcopy(x)
    assert (float(copied), copied.name, copied.unit, list(copied.sources)) == (0.5, "x", "s", ["x"])
    with pytest.raises(TypeError):
        x + "1"
    with pytest.raises(TypeError):
        assert x < "1"
