"""Every system at scale smoke: it runs, reports what can fail, and a resumed run ends with the same numbers.

As a user runs it: shapes at run time are checked in the contracts and tests of the blocks, not here.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

import pullback
from pullback import lab
from pullback.cli import main
from pullback.lab.config import Bound, Option
from pullback.lab.registry import System
from pullback.lab.result import RunResult
from tests.systems.kills import MEASURED


def _deterministic(result: RunResult) -> dict[tuple[str, str], float]:
    return {(m.name, m.of): m.value for m in result.metrics if m.unit not in MEASURED}


@pytest.fixture(scope="module", autouse=True)
def libraries() -> None:
    """Imported before the first system, which would pay for all others."""
    for name in ("matplotlib.backends.backend_svg", "numba", "scipy.stats", "sklearn.datasets", "torch._dynamo"):
        importlib.import_module(name)
    for family in pullback.FAMILIES:
        importlib.import_module(f"pullback.{family}")


_FILES = Path(pullback.__file__).parent.glob("systems/*/[!_]*.py")
FAMILIES = {path.stem.replace("_", "-"): path.parent.name for path in sorted(_FILES)}


@pytest.mark.parametrize("slug", FAMILIES, ids=[f"{family}/{slug}" for slug, family in FAMILIES.items()])
def test_system_runs_and_resumes(slug: str, tmp_path: Path, without_shape_checks: None) -> None:
    system = lab.load(slug)
    assert system.paper, "name authors, venue and year"
    assert system.description.count("\n") >= 2, "the docstring says what it is, whose it is and what is scaled down"
    undocumented = [option.name for option in system.options.values() if not option.help]
    assert not undocumented, "every field of Config has a docstring"
    for block in system.blocks:
        family, _, name = block.partition(".")
        assert name in getattr(pullback, family).__all__, f"blocks names {block}, which is not public"
    result = lab.run(slug, scale="smoke", seed=1, runs=tmp_path, keep_checkpoints=True, quiet=True)

    assert result.status == "complete"
    assert result.directory is not None
    assert RunResult.read(result.directory).to_json() == result.to_json()
    assert result.claims
    assert result.metrics
    assert result.data
    assert any(artifact.kind == "figure" for artifact in result.artifacts)
    for artifact in result.artifacts:
        for file in artifact.files:
            assert (result.directory / file).stat().st_size > 0
    assert not result.failed, [(claim.statement, claim.numbers) for claim in result.failed]
    directory, numbers = result.directory, _deterministic(result)

    replace(result, status="interrupted").write()
    resumed = lab.run(slug, runs=tmp_path, resume=True, quiet=True)

    assert resumed.directory == directory
    assert repr(_deterministic(resumed)) == repr(numbers), "to the bit"
    assert [c.statement for c in resumed.claims] == [c.statement for c in result.claims]


def _unbounded(kind: Any, bounded: bool = False) -> bool:
    """Whether a number somewhere in a type has no bound."""
    if typing.get_origin(kind) is Literal:
        return False
    items = typing.get_args(kind)
    bounded = bounded or any(isinstance(item, Bound) for item in items)
    return any(_unbounded(item, bounded) for item in items) if items else kind in (int, float) and not bounded


@pytest.mark.parametrize("slug", FAMILIES, ids=[f"{family}/{slug}" for slug, family in FAMILIES.items()])
def test_every_number_among_the_options_has_a_range_and_is_held_to_it(
    slug: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    system = lab.load(slug)
    assert not [option.name for option in system.options.values() if _unbounded(option.declared)]
    outside = {name: _outside(option) for name, option in system.options.items() if option.type in (int, float)}
    assert outside, "a system has a number of steps, at least"
    for name, value in outside.items():
        with pytest.raises(ValueError, match=f"{name} must be "):
            system.configure(**{name: value})
    name, value = next(iter(outside.items()))
    words = ["run", slug, f"--{name.replace('_', '-')}={value}", "--scale=smoke", "--runs", str(tmp_path / "runs")]
    assert main(words) == 2
    assert f"{name} must be " in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def _outside(option: Option) -> float:
    """A number that the bounds of an option exclude."""
    bound = next(bound for bound in typing.get_args(option.declared) if isinstance(bound, Bound))
    step = 0 if bound.relation in ("<", ">") else 1
    return option.type(bound.limit + (step if bound.relation.startswith("<") else -step))


@pytest.mark.parametrize("slug", FAMILIES, ids=[f"{family}/{slug}" for slug, family in FAMILIES.items()])
def test_a_system_says_what_data_of_the_user_it_takes(slug: str) -> None:
    system: System = lab.load(slug)
    source = inspect.getsource(inspect.getmodule(system.run))
    assert bool(system.takes_data) == ("data_path" in source)
