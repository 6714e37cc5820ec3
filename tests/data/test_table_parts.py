"""Parts of real tables: what each holds, and that testing sees other tables."""

from __future__ import annotations

from itertools import islice
from typing import Literal

import pytest
import torch

from pullback import data

_COUNTS: dict[Literal["train", "test"], int] = {"train": 20, "test": 5}


def _parts(split: Literal["train", "test"], count: int) -> list[data.TablePart]:
    return list(islice(data.table_parts(split, rows=(30, 50), generator=torch.Generator().manual_seed(0)), count))


@pytest.mark.parametrize("split", _COUNTS)
def test_every_table_comes_in_turn_with_unit_columns(split: Literal["train", "test"]) -> None:
    count = _COUNTS[split]
    parts = _parts(split, 2 * count)
    # A part may have no spread, and is left out.
    assert len({part.name for part in parts[:count]}) >= count - 2
    assert len({part.name for part in parts}) == count
    for _, features, target in parts:
        assert 30 <= len(features) == len(target) <= 50
        torch.testing.assert_close(features.mean(0), torch.zeros_like(features[0]), atol=1e-9, rtol=0)
        torch.testing.assert_close(features.std(0), torch.ones_like(features[0]))
        torch.testing.assert_close(target.std(), torch.ones_like(target[0]))


def test_no_feature_is_the_target() -> None:
    for _, features, target in _parts("train", 20):
        assert bool((features.T @ target / (len(target) - 1)).abs().max() < 1 - 1e-9)


def test_other_tables_are_for_testing() -> None:
    assert not {part.name for part in _parts("train", 20)} & {part.name for part in _parts("test", 5)}
    with pytest.raises(ValueError, match="split must be"):
        next(data.table_parts("all", generator=torch.Generator()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"rows\[1\] must be an integer >= 30, got 20"):
        next(data.table_parts("test", rows=(30, 20), generator=torch.Generator()))
