"""`make docs` builds the guide and the reference without a warning."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_sphinx_builds_guide_and_reference_without_a_warning(tmp_path: Path) -> None:
    sources = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", sources, ignore=shutil.ignore_patterns("reference", "__pycache__"))
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(sources), str(tmp_path / "site")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    defects = (tmp_path / "site" / "defects.html").read_text(encoding="utf-8")
    assert "mse_loss" in defects, "the programs are shown"
    discrete = (tmp_path / "site" / "reference" / "discrete.html").read_text(encoding="utf-8")
    for name in ("sort", "soft_topk", "argmax"):
        assert f'id="pullback.discrete.{name}"' in discrete
