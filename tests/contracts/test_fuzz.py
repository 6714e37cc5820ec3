"""A hundred thousand calls that nobody would write: refused by name, or right."""

from __future__ import annotations

import pytest

from tests.contracts.contract import Contract
from tests.contracts.fuzz import fuzz
from tests.contracts.test_completeness import FAMILIES, entries

CALLS = 100_000


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_fuzzed_calls(family: str, without_shape_checks: None) -> None:
    blocks = {f: [entry for entry in entries(f) if isinstance(entry, Contract)] for f in FAMILIES}
    share = len(blocks[family]) / sum(map(len, blocks.values()))
    faults = fuzz(blocks[family], calls=round(CALLS * share), seed=1)
    assert not faults, "\n".join(map(str, faults))
