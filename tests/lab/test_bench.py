"""Measurements: who is slower is slower in the ratio, who is absent is named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pullback.lab.bench import Case, geometric_mean, load_cases, load_tables, measure


def _work(repeats: int) -> int:
    return sum(range(repeats))


def _absent(repeats: int) -> int:
    import no_such_package_anywhere  # noqa: F401

    return repeats


def test_ratio_and_absent_peers() -> None:
    peers = {"slow": lambda n: _work(50 * n), "fast": lambda n: _work(n // 50), "gone": _absent}
    found = measure(Case("sum", lambda: 2000, _work, peers), rounds=3, threads=2, seconds=0.002)
    assert found.absent == {"gone": "no_such_package_anywhere"}
    assert set(found.peers) == {"slow", "fast"}
    assert found.ratios["slow"] > 5
    assert found.ratios["fast"] < 0.5
    assert found.to_json()["rounds"] == 3
    assert found.clock == "CPU time, 2 threads"
    only = measure(Case("alone", lambda: 10, _work, {"gone": _absent}), rounds=1, seconds=0.0)
    assert geometric_mean([found, only]) == pytest.approx(math.sqrt(found.ratios["slow"] * found.ratios["fast"]))
    assert geometric_mean([only]) is None


def test_ours_and_peers_take_turns() -> None:
    order: list[str] = []
    peers = {"peer": lambda n: order.append("peer")}
    measure(Case("turns", lambda: None, lambda n: order.append("ours"), peers), rounds=4, seconds=0.0)
    assert order[-8:] == ["ours", "peer", "peer", "ours"] * 2, "each begins every other round"


def test_an_error_of_a_peer_is_no_absence() -> None:
    with pytest.raises(ZeroDivisionError):
        measure(Case("x", lambda: 1, lambda n: n, {"peer": lambda n: n / 0}))
    with pytest.raises(ModuleNotFoundError):
        measure(Case("x", lambda: 1, _absent))
    with pytest.raises(ValueError, match="rounds must be an integer >= 1, got 0"):
        measure(Case("x", lambda: 1, lambda n: n), rounds=0)


def test_cases_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "family.py").write_text(
        "from pullback.lab.bench import Case\nCASES = [Case('a', lambda: 1, lambda n: n)]\n"
    )
    assert [case.name for case in load_cases(tmp_path / "family.py")] == ["a"]
    assert load_tables(tmp_path / "family.py") == []
    (tmp_path / "numbers.py").write_text(
        "from pullback.lab.bench import Table\nTABLES = [Table('squares', ('n', '>n^2'), lambda: [('two', 4.0)])]\n"
    )
    assert load_cases(tmp_path / "numbers.py") == []
    assert [table.rows() for table in load_tables(tmp_path / "numbers.py")] == [[("two", 4.0)]]
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match=r"empty\.py has no CASES"):
        load_cases(tmp_path / "empty.py")
