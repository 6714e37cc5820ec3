"""Checks every annotated shape at run time, keeps each test process on one core, says what the tests cost."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
import torch

import pullback
from tests.cost import pytest_runtest_call, pytest_terminal_summary  # noqa: F401 (hooks of pytest)

# Before any family is imported: every call of an annotated function in these packages is checked by beartype.
# Where the checkers are not installed (tests/device), PULLBACK_CHECK_SHAPES=0 does without.
if os.environ.get("PULLBACK_CHECK_SHAPES", "1") == "1":
    from tests import shapes

    shapes.install([f"pullback.{family}" for family in (*pullback.FAMILIES, "core")])

torch.set_num_threads(1)

# Draws repeat from run to run, and no test fails because the machine was busy.
hypothesis.settings.register_profile("pullback", deadline=None, derandomize=True)
hypothesis.settings.load_profile("pullback")


@pytest.fixture
def generator() -> torch.Generator:
    """A generator with a fixed seed; every random draw of a test comes from it."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Blocks as a user calls them: their own checks speak, and a compiler sees no wrapper."""
    try:
        import jaxtyping
    except ModuleNotFoundError:  # a machine with torch and pytest alone, where no call is wrapped
        yield
        return
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
