"""The laws, relaxed, the kernels' fallbacks and the demo on a device, with torch, numpy, numba, pytest and hypothesis.

Usage: ``PYTHONPATH=src python tests/device/check.py [DEVICE]``, from the root of a checkout; nothing is installed.
``DEVICE`` is ``cuda`` by default. Without one it says so and exits with 0; ``cpu`` runs the same checks where there is
none. At most five minutes.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

LAWS = "batch_equals_loop or half_precision or large_inputs or layout or expansion or has_the_dtype"
"""Those whose outcome a device can change. tests/device compares values and gradients with those of the CPU, where they
are held to references and finite differences."""


def main(device: str = "cuda") -> int:
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        print("No CUDA device here: nothing was checked.")
        return 0
    # Read by the laws and by tests/conftest.py, which would ask for jaxtyping and beartype.
    os.environ.update(PULLBACK_TEST_DEVICE=device, PULLBACK_CHECK_SHAPES="0")
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    import pytest

    name = torch.cuda.get_device_name() if device != "cpu" else "the CPU"
    print(f"torch {torch.__version__} on {name}")
    began = time.monotonic()
    quiet = ["-q", "-p", "no:cacheprovider", "--tb=short"]
    status = [
        int(pytest.main([*quiet, "tests/device"])),
        int(pytest.main([*quiet, "tests/contracts", "-m", "not slow", "-k", LAWS])),
    ]
    print(f"{time.monotonic() - began:.0f} s")
    return max(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
