"""What importing the family costs."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["torch._dynamo", "numba"])
def test_import_brings_neither_the_compiler_nor_numba(module: str) -> None:
    """Each takes seconds to import and is needed only by those who compile, or by the first call of a kernel."""
    program = f"import sys, pullback.discrete, pullback.relax, pullback.audit; print({module!r} in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "False"
