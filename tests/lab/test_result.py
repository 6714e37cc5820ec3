"""The record on disk: versioned, strict JSON, atomic."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pullback.core.files import write_atomically
from pullback.lab import decode
from pullback.lab.result import SCHEMA_VERSION, Artifact, Claim, DamagedRecord, Data, Metric, RunResult, Series
from pullback.lab.store import RunBusyError, hold_run, new_directory, read_results, scan


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


def _whole(directory: Path) -> dict[str, Any]:
    """A record in which every field has content, as JSON."""
    result = _result(
        directory,
        status="complete",
        config={"steps": 3, "sizes": [1, 2], "limit": None},
        metrics=[Metric("a", 1.0, "ours", "higher", "s", True, (0.5, 1.5))],
        claims=[Claim("c", "held", "smoke", {"gap": 0.5, "name": "x", "both": True}, {"gap": 0.1})],
        data=[Data("d", "real")],
        series=[Series("loss", "ours", [0, 1], [1.0, 0.5], 0)],
        artifacts=[Artifact("table", "t", ("t.csv",), "", {"columns": ["a"], "rows": [[1], ["NaN"]]})],
        notes=["n"],
        counts={"evaluations": {"ours": 3.0}},
        progress={"loop": "train", "step": 1, "steps": 2},
        versions={"torch": "2"},
        process={"pid": 1, "host": "h"},
    )
    return result.to_json()


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value stands in a tree, of every value in it."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inside for place in _places(item, (*path, key)))]


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text() | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def test_control_characters_do_not_reach_the_message(tmp_path: Path) -> None:
    record = _whole(tmp_path)
    record["versions"] = {"\x1b[2J": None}
    (tmp_path / "result.json").write_text(json.dumps(record))
    with pytest.raises(DamagedRecord, match=r"versions\.\\x1b\[2J must be text, got None"):
        RunResult.read(tmp_path)


@given(st.data())
def test_any_change_of_a_record_leaves_a_record_or_is_seen(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    runs = tmp_path_factory.mktemp("store")
    directory = runs / "x" / "20260101-000000"
    directory.mkdir(parents=True)
    record = _whole(directory)
    place = data.draw(st.sampled_from(_places(record)), "place")
    new = data.draw(_ANY, "new")
    if not place:
        record = new
    else:
        parent = record
        for key in place[:-1]:
            parent = parent[key]
        if isinstance(parent, dict) and data.draw(st.booleans(), "remove"):
            del parent[place[-1]]
        else:
            parent[place[-1]] = new
    (directory / "result.json").write_text(json.dumps(record))
    (found,) = scan(runs)
    if isinstance(found, DamagedRecord):
        assert str(directory) in str(found)
        assert found.problem.isprintable()
        return
    again = found.to_json()
    json.dumps(again, allow_nan=False).encode()
    assert RunResult.from_json(again).to_json() == again
    assert all(isinstance(m.value, float) and isinstance(m.name, str) for m in found.metrics)
    assert all(len(s.steps) == len(s.values) for s in found.series)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is no JSON"),
        (b"\xff\xfe\x00", "is no JSON"),
        (b"[" * 100_000, "is nested too deeply"),
        (b"[]", "schema_version must be"),
        (b"{}", "schema_version must be"),
        (b'{"schema_version": 99}', "schema_version must be"),
        (b'{"schema_version": %d, "slug": "x"}' % SCHEMA_VERSION, "lacks 'family'"),
        (b'{"schema_version": %d, "slug": ["x"], "family": "y"}' % SCHEMA_VERSION, "slug must be text, got a list"),
        (b'{"schema_version": %d, "slug": NaN, "family": "y"}' % SCHEMA_VERSION, "NaN is no JSON number"),
        (
            b'{"schema_version": %d, "slug": "x", "family": "y", "seed": 1%s}' % (SCHEMA_VERSION, b"0" * 400),
            "seed must be an integer of 64 bits, got an integer of 1329 bits",
        ),
        (
            b'{"schema_version": %d, "slug": "x", "family": "y", "seed": 1%s}' % (SCHEMA_VERSION, b"0" * 9000),
            "is no JSON: Exceeds the limit",
        ),
        (
            b'{"schema_version": %d, "slug": "x", "family": "y", "config": {"a": %s1%s}}'
            % (SCHEMA_VERSION, b"[" * 200, b"]" * 200),
            "nested too deeply",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_record_is_named_and_passed_over(tmp_path: Path, content: bytes, problem: str) -> None:
    good, bad = new_directory(tmp_path, "x"), new_directory(tmp_path, "x")
    _result(good, status="complete").write()
    (bad / "result.json").write_bytes(content)
    with pytest.raises(DamagedRecord, match=r"result\.json is no result of a run"):
        RunResult.read(bad)
    damaged, whole = scan(tmp_path)
    assert problem in damaged.problem
    assert whole.directory == good
    with pytest.warns(UserWarning, match="is no result of a run"):
        assert [r.directory for r in read_results(tmp_path)] == [good]


def test_what_is_no_file_is_named_and_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [new_directory(tmp_path, "x") for _ in range(5)]
    _result(made[0], status="complete").write()
    (made[1] / "result.json").mkdir()
    os.mkfifo(made[2] / "result.json")
    _result(made[3], status="complete", slug="y").write()
    (made[4] / "result.json").write_bytes(b" " * 2048)
    monkeypatch.setattr(decode, "LARGEST_FILE", 2047)
    found = list(scan(tmp_path))
    assert found.pop().directory == made[0]
    problems = [damaged.problem for damaged in found]
    for problem, expected in zip(problems, ("larger than", "slug is that of 'y'", "no file", "directory"), strict=True):
        assert expected in problem


def test_a_run_is_killed_when_its_lock_is_free_whatever_its_process_was(tmp_path: Path) -> None:
    strange = {"pid": os.getpid(), "host": "another host"}  # a number in use again, a host that has another name now
    _result(tmp_path, process=strange).write()
    assert RunResult.read(tmp_path).status == "killed"
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with hold_run(tmp_path):
            os.write(ready[1], b"x")
            os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    assert RunResult.read(tmp_path).status == "running"
    with pytest.raises(RunBusyError, match="another process works on"), hold_run(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert RunResult.read(tmp_path).status == "killed"
    with hold_run(tmp_path):
        assert RunResult.read(tmp_path).status == "running"
    assert RunResult.read(tmp_path).status == "killed"


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
