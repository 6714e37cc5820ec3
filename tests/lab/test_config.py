"""Options are compared with the type and range that their field declares, wherever they come from."""

from __future__ import annotations

import enum
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pullback.lab.config import above, at_least, at_most, below, conform, options, plain


class Colour(enum.Enum):
    RED = 1
    GREEN = 2


@dataclass(frozen=True)
class Config:
    steps: Annotated[int, at_least(1)] = 200
    """Training steps."""
    rate: Annotated[float, above(0), at_most(1)] = 0.1
    codes: tuple[tuple[int, int], ...] = ((1, 2),)
    sizes: Annotated[list[int], at_least(2)] = field(default_factory=lambda: [2, 4])
    mixed: tuple[str, Annotated[float, below(0)]] = ("a", -1.0)
    limit: Annotated[int, at_least(0)] | None = None
    mode: Literal["fast", "slow", 3] = "fast"
    colour: Colour = Colour.RED
    table: dict[int, tuple[float, ...]] = field(default_factory=lambda: {1: (0.5,)})
    file: Path = Path("x")
    loud: bool = False


OPTIONS = options(Config)

_SMALL = st.integers(-(2**40), 2**40)
_FINITE = st.floats(allow_nan=False, allow_infinity=False)
_CONFIGS = st.builds(
    Config,
    steps=st.integers(1, 2**70),
    rate=st.floats(0, 1, exclude_min=True),
    codes=st.lists(st.tuples(_SMALL, _SMALL), min_size=1, max_size=3).map(tuple),
    sizes=st.lists(st.integers(2, 99), min_size=1, max_size=3),
    mixed=st.tuples(st.text(max_size=4), st.floats(max_value=0, exclude_max=True, allow_infinity=False)),
    limit=st.none() | st.integers(0, 9),
    mode=st.sampled_from(["fast", "slow", 3]),
    colour=st.sampled_from(Colour),
    table=st.dictionaries(_SMALL, st.lists(_FINITE, max_size=2).map(tuple), min_size=1, max_size=2),
    file=st.sampled_from([Path("a/b"), Path("c")]),
    loud=st.booleans(),
)


@given(_CONFIGS)
def test_a_config_survives_json_with_its_types(config: Config) -> None:
    stored = json.loads(json.dumps({name: plain(getattr(config, name)) for name in OPTIONS}))
    back = Config(**{name: OPTIONS[name].conform(value) for name, value in stored.items()})
    assert repr(back) == repr(config), "equal values of equal types: 1 is not True, a list is no tuple"


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("steps", 0, ValueError, "steps must be >= 1, got 0"),
        ("steps", 1.0, TypeError, "steps must be an integer, got 1.0"),
        ("steps", True, TypeError, "steps must be an integer, got True"),
        ("steps", "3", TypeError, "steps must be an integer, got '3'"),
        ("rate", 0, ValueError, "rate must be > 0 and <= 1, got 0.0"),
        ("rate", 1.5, ValueError, "rate must be > 0 and <= 1, got 1.5"),
        ("rate", math.nan, ValueError, "rate must be > 0 and <= 1, got nan"),
        ("rate", 10**400, ValueError, "rate must be finite, got an integer of 1329 bits"),
        ("codes", [], ValueError, "codes must have at least one value, got none"),
        ("codes", [[1, 2, 3]], ValueError, "codes must be 2 values, got 3"),
        ("codes", [1, 2], TypeError, "codes must be tuple"),
        ("codes", "12", TypeError, "codes must be tuple"),
        ("sizes", [2, 1], ValueError, "sizes must be >= 2, got 1"),
        ("sizes", (), ValueError, "sizes must have at least one value, got none"),
        ("mixed", ["a", 0], ValueError, "mixed must be < 0, got 0.0"),
        ("limit", -1, ValueError, "limit must be >= 0, got -1"),
        ("mode", "fats", ValueError, "mode must be one of 'fast', 'slow', 3, got 'fats'"),
        ("mode", 3.0, ValueError, "mode must be one of"),
        ("colour", "BLUE", ValueError, "colour must be one of RED, GREEN, got 'BLUE'"),
        ("colour", [1], ValueError, "colour must be one of RED, GREEN"),
        ("table", {"a": []}, TypeError, "table must be an integer, got 'a'"),
        ("table", [], TypeError, "table must be dict"),
        ("loud", 1, TypeError, "loud must be true or false, got 1"),
    ],
)
def test_what_the_field_does_not_allow_is_refused_by_name(
    name: str, value: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        OPTIONS[name].conform(value)
    assert message in str(caught.value)


def test_bounds_are_part_of_the_help() -> None:
    assert OPTIONS["rate"].limits == "> 0 and <= 1"
    assert OPTIONS["limit"].limits == ">= 0"
    assert OPTIONS["mode"].limits == ""
    assert OPTIONS["steps"].help == "Training steps."
    assert OPTIONS["steps"].type is int
    assert OPTIONS["sizes"].type == list[int]


@dataclass(frozen=True)
class _OutOfRange:
    steps: Annotated[int, at_least(1)] = 0


@dataclass(frozen=True)
class _Unknown:
    when: complex = 1j


def test_a_default_out_of_range_and_an_unknown_type_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        options(_OutOfRange)
    with pytest.raises(TypeError, match="when has the type complex, which no option can have"):
        options(_Unknown)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3), st.lists))
def test_any_json_is_a_value_or_refused(value: Any) -> None:
    for option in OPTIONS.values():
        try:
            found = option.conform(value)
        except (ValueError, TypeError):
            continue
        assert conform(option.name, option.declared, plain(found)) == found
