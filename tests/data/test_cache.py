"""Arrays of a fetched source: read when they are asked for, once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pullback import data
from pullback.data import cache


def test_only_what_is_asked_for_is_read_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / cache.ARRAYS, small=np.arange(3), other=np.zeros(2))
    monkeypatch.setattr(cache, "require", lambda name: tmp_path)
    stored = data.load("mnist")
    assert sorted(stored) == ["other", "small"]
    assert len(stored) == 2
    assert stored["small"] is stored["small"]
    np.testing.assert_array_equal(stored["small"], [0, 1, 2])
    (tmp_path / cache.ARRAYS).unlink()
    np.testing.assert_array_equal(stored["small"], [0, 1, 2])
    with pytest.raises(FileNotFoundError):
        stored["other"]
    with pytest.raises(KeyError, match="third"):
        stored["third"]
