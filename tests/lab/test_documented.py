"""What CONTRIBUTING tells about systems is so: its example runs, resumes and is drawn, its snippets work."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pullback import causal, lab
from pullback.lab.lab import Lab
from pullback.lab.progress import Silent
from pullback.lab.result import RunResult

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
SECTION = TEXT[TEXT.index("## Add a system") : TEXT.index("## Add data")]
EXAMPLE, *SNIPPETS = (
    re.sub(r"(?m)^" + indent, "", code) for indent, code in re.findall(r"(?ms)^( *)```python\n(.*?)^ *```$", SECTION)
)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    path = tmp_path_factory.mktemp("documented") / "sets_in_order.py"
    path.write_text(EXAMPLE)
    spec = importlib.util.spec_from_file_location("documented_sets_in_order", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_documented_system_runs_and_resumes(example: ModuleType, tmp_path: Path) -> None:
    whole = lab.run("sets-in-order", scale="smoke", seed=1, runs=tmp_path / "whole", quiet=True)
    assert whole.status == "complete"
    assert [claim.verdict for claim in whole.claims] == ["not judged"]
    assert {artifact.name for artifact in whole.artifacts} == {"loss by step", "element-wise"}
    assert all(metric.spread is not None for metric in whole.metrics)
    stopped = lab.run("sets-in-order", scale="smoke", seed=1, runs=tmp_path / "cut", budget=1e-9, quiet=True)
    assert stopped.status == "out of time"
    resumed = lab.run("sets-in-order", runs=tmp_path / "cut", resume=True, quiet=True)
    assert resumed.metrics == whole.metrics
    assert resumed.series == whole.series


def test_the_documented_claim_is_judged_by_what_it_says(example: ModuleType, tmp_path: Path) -> None:
    untrained = lab.run("sets-in-order", config={"steps": 1, "replicates": 2}, runs=tmp_path, quiet=True)
    (claim,) = untrained.failed
    assert set(claim.numbers) == set(claim.spreads) == {"element-wise (Cauchy)", "element-wise (logistic)"}


def test_the_documented_snippets_work(tmp_path: Path) -> None:
    here = Lab(RunResult(slug="inline", family="causal", directory=tmp_path), tmp_path, Silent())
    learner_snippet, measuring_snippet = SNIPPETS
    names = {
        "lab": here,
        "causal": causal,
        "arm": here.arm("ours"),
        "ours": here.arm("ours"),
        "samples": torch.randn(50, 3, generator=torch.Generator().manual_seed(0)),
        "limit": 1000,
        "f": lambda: torch.ones(10).sum(),
        "g": lambda: torch.ones(10_000).cumsum(0).sum(),
        "sizes": [1, 2, 4],
        "seconds": [1.0, 1.1, 1.2],
        "others": [1.0, 2.1, 3.9],
    }
    exec(learner_snippet.replace("samples)", "samples, iterations=2000)"), names)
    assert names["weights"].shape == (3, 3)
    exec(measuring_snippet, names)
    assert [claim.verdict for claim in RunResult.read(tmp_path).claims][1] == "held"
    assert names["memory"] == 44, "ten numbers and their sum"
