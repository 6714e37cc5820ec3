"""Every system survives ``kill -9`` at any moment: it ends with the numbers of a run that nobody killed, to the bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.systems.kills import KILLS
from tests.systems.test_smoke import FAMILIES


def _python(*words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which has started no threads before it forks."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("toy-regression", ("--module=tests.lab.toy", "--scale=default")),
        *(pytest.param(slug, (), id=f"{family}/{slug}", marks=pytest.mark.slow) for slug, family in FAMILIES.items()),
    ],
)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_numbers(name: str, more: tuple[str, ...]) -> None:
    done = _python("-m", "tests.systems.kills", name, f"--kills={KILLS}", *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{name}: {KILLS} kills" in done.stdout


FORGETFUL = """
from pullback.lab import checkpoint, streams
from tests.lab import toy
from tests.systems import kills
{restore} = lambda *ignored: None
print(len(kills.differences("toy-regression", kills.KILLS, 1, scale="default")[0]))
"""


@pytest.mark.parametrize("restore", ["streams.Streams.restore", "checkpoint.restore"])
def test_a_lab_that_forgets_something_would_be_found(restore: str) -> None:
    done = _python("-c", FORGETFUL.format(restore=restore))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
