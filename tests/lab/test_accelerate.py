"""Two processes with half a batch each take the steps of one process with the whole."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def _start(runs: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.lab.two_processes", str(runs)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **environment},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _numbers(process: subprocess.Popen[str]) -> dict[str, float]:
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_two_gloo_processes_equal_one_with_the_double_batch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    processes = [_start(tmp_path / "two", RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in (0, 1)]
    two = [_numbers(process) for process in processes]
    one = _numbers(_start(tmp_path / "one"))

    assert two[0] == two[1]
    assert (one.pop("processes"), two[0].pop("processes")) == (1, 2)
    assert (one.pop("rows"), two[0].pop("rows")) == (16, 8)
    assert two[0] == pytest.approx(one, rel=1e-9)
    assert len(list((tmp_path / "two").glob("*/*/result.json"))) == 1, "only the main process writes"
