"""Systems are found by their file names, and a wrong declaration is refused where it is made."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

import pullback
from pullback import lab
from pullback.lab import registry
from tests.lab import toy


@dataclass(frozen=True)
class Good:
    width: int = 3


@dataclass
class Thawed:
    width: int = 3


@dataclass(frozen=True)
class WithoutDefault:
    width: int


@dataclass(frozen=True)
class Reserved:
    seed: int = 3


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"config": Thawed}, TypeError, "must be a frozen dataclass"),
        ({"config": dict}, TypeError, "must be a frozen dataclass"),
        ({"config": WithoutDefault}, TypeError, "field 'width' must have a default"),
        ({"config": Reserved}, ValueError, "'seed' is an option of `pullback run`"),
        ({"family": "discreet"}, ValueError, "family must be one of .* did you mean 'discrete'"),
        ({"smoke": {"widht": 1}}, ValueError, "smoke of 'x' changes 'widht', which is no field; did you mean 'width'"),
    ],
)
def test_wrong_declarations_are_refused(arguments: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        lab.system("x", **{"family": "discrete", "config": Good, **arguments})
    assert "x" not in lab.slugs()


def test_a_file_must_be_called_like_its_system() -> None:
    def run(lab_: lab.Lab, config: Good) -> None: ...

    run.__module__ = "pullback.systems.discrete.other_name"
    with pytest.raises(ValueError, match=r"belongs in systems/discrete/some_name\.py"):
        lab.system("some-name", family="discrete", config=Good)(run)


def test_options_are_the_fields_with_their_docstrings() -> None:
    system = lab.load("toy-regression")
    assert system.run is toy.run
    assert system.options["steps"] == registry.Option("steps", int, 12, "Steps of each loop.")
    assert system.options["arms"].type == tuple[str, ...]
    assert system.configure("full", lr=1.0) == toy.Config(steps=20, lr=1.0)


def test_unknown_systems_suggest_the_nearest() -> None:
    with pytest.raises(ValueError, match="no system 'toy-regresion'; did you mean 'toy-regression'"):
        lab.load("toy-regresion")


def test_every_file_declares_its_system() -> None:
    for family, slugs in lab.families().items():
        assert family in pullback.FAMILIES
        for slug in slugs:
            assert lab.load(slug).family == family
            assert registry.summary(slug)


def test_listing_imports_no_system() -> None:
    code = (
        "import sys; from pullback import lab; lab.slugs();"
        "print([m for m in sys.modules if m.startswith('pullback.systems.') or m in ('matplotlib', 'rich', 'sklearn')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
