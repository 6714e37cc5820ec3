"""Every system at scale smoke: it runs, reports what can fail, and a resumed run ends with the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import pullback
from pullback import lab
from pullback.lab.result import RunResult

_TIMES = ("s", "ms", "us", "µs", "seconds", "x")
"""Units of metrics that are measured times or ratios of them: they differ from run to run."""


def _deterministic(result: RunResult) -> dict[tuple[str, str], float]:
    return {(m.name, m.of): m.value for m in result.metrics if m.unit not in _TIMES}


_FILES = Path(pullback.__file__).parent.glob("systems/*/[!_]*.py")
SLUGS = sorted(path.stem.replace("_", "-") for path in _FILES)


@pytest.mark.parametrize("slug", SLUGS)
def test_system_runs_and_resumes(slug: str, tmp_path: Path) -> None:
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
    assert _deterministic(resumed) == pytest.approx(numbers, rel=1e-6, abs=1e-9, nan_ok=True)
    assert [c.statement for c in resumed.claims] == [c.statement for c in result.claims]
