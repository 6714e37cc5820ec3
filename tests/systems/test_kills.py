"""Every system survives ``kill -9`` at any moment: it ends with the numbers of a run that nobody killed, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.systems.kills import KILLS
from tests.systems.test_smoke import FAMILIES


@pytest.mark.parametrize(
    ("slug", "module"),
    [
        ("toy-regression", "tests.lab.toy"),
        *(pytest.param(slug, "", id=f"{family}/{slug}", marks=pytest.mark.slow) for slug, family in FAMILIES.items()),
    ],
)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_numbers(slug: str, module: str) -> None:
    words = [sys.executable, "-m", "tests.systems.kills", slug, f"--kills={KILLS}", f"--module={module}"]
    done = subprocess.run(
        words,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{slug}: {KILLS} kills" in done.stdout
