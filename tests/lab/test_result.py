"""The record on disk: versioned, strict JSON, atomic."""

from __future__ import annotations

import json
import math
import os
import threading
from pathlib import Path

import pytest

from pullback.core.files import write_atomically
from pullback.lab.result import Claim, Metric, RunResult, Series, new_directory, read_results


def _result(directory: Path, **changes: object) -> RunResult:
    return RunResult(**{"slug": "x", "family": "discrete", "directory": directory, **changes})


def test_numbers_that_json_lacks_come_back(tmp_path: Path) -> None:
    result = _result(
        tmp_path,
        metrics=[Metric("a", math.inf), Metric("b", 1e-300)],
        claims=[Claim("c", "held", "smoke", {"gap": -math.inf, "name": "NaN?"})],
        series=[Series("loss", "", [0, 1], [math.nan, 0.1])],
        status="complete",
    )
    result.write()
    json.loads((tmp_path / "result.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    back = RunResult.read(tmp_path)
    assert back.metrics == result.metrics
    assert back.claims == result.claims
    assert math.isnan(back.series[0].values[0])
    assert back.series[0].values[1] == 0.1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema_version": 99}', '{"schema_version": 1, "slug": "x"}'])
def test_other_files_are_refused_by_path(tmp_path: Path, content: str) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(ValueError, match=r"result\.json is no result of a run"):
        RunResult.read(tmp_path)


def test_a_store_with_a_foreign_file_can_be_read(tmp_path: Path) -> None:
    good, bad = new_directory(tmp_path, "x"), new_directory(tmp_path, "x")
    _result(good, status="complete").write()
    (bad / "result.json").write_text('{"schema_version": 0}')
    with pytest.warns(UserWarning, match="schema_version must be 2, got 0"):
        assert [r.directory for r in read_results(tmp_path)] == [good]


def test_a_run_whose_process_is_gone_is_killed(tmp_path: Path) -> None:
    import platform

    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    for pid, status in ((gone, "killed"), (os.getpid(), "running")):
        _result(tmp_path, process={"pid": pid, "host": platform.node()}).write()
        assert RunResult.read(tmp_path).status == status


def test_readers_never_see_a_part(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", [bytes([i]) * 200_000 for i in range(4)]
    write_atomically(path, contents[0])
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            for content in contents:
                write_atomically(path, content)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        assert all(path.read_bytes() in contents for _ in range(50))
    finally:
        stop.set()
        writer.join()
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "file", b"old")

    def refuse(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_directories_of_one_second_are_numbered_and_read_newest_first(tmp_path: Path) -> None:
    made = [new_directory(tmp_path, "x") for _ in range(12)]
    for index, directory in enumerate(made):
        _result(directory, seed=index, status="complete").write()
    assert [r.seed for r in read_results(tmp_path, "x")] == list(range(11, -1, -1))
    assert not list(read_results(tmp_path, "y"))
