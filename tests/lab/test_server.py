"""The local server over a real socket: what it serves, starts and stops, and what it refuses."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from pullback.core.errors import UsageError
from pullback.lab.request import RunRequest, parse_request
from pullback.lab.result import Artifact
from pullback.lab.store import read_results
from tests.lab import toy  # noqa: F401
from tests.lab.records import NASTY, Served, record, served

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("serve") / "runs"
    record(runs)
    (runs.parent / "secret.png").write_bytes(b"secret")
    (runs / "cosmo" / "20260101-120000" / "unnamed.txt").write_text("secret")
    return runs


@pytest.fixture(scope="module")
def server(store: Path) -> Iterator[Served]:
    with served(store) as running:
        yield running


def ask(
    server: Served, path: str, method: str = "GET", body: str | bytes = "", **headers: str
) -> tuple[int, dict[str, str], str]:
    """One request; ``_`` in a header's name stands for ``-``; no client library tidies the path up.

    What is not a GET comes from the server's own pages, unless ``Origin`` is given; empty, none is sent.
    """
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    named = {} if method in ("GET", "HEAD") else {"Origin": f"http://127.0.0.1:{server.port}"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    named = {name: value for name, value in named.items() if (name, value) != ("Origin", "")}
    connection.putrequest(method, path, skip_host="Host" in named)
    for name, value in named.items():
        connection.putheader(name, value)
    content = body.encode() if isinstance(body, str) else body
    if method == "POST":
        connection.putheader("Content-Length", str(len(content)))
    connection.endheaders(content)
    answer = connection.getresponse()
    text = answer.read().decode(errors="replace")
    assert "Traceback" not in text
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text


def post(server: Served, path: str, form: dict[str, Any], **headers: str) -> tuple[int, dict[str, str], str]:
    return ask(server, path, "POST", urlencode(form), **{**FORM, **headers})


def wait_until(server: Served, address: str, condition: Any) -> dict[str, Any]:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        state = json.loads(ask(server, f"{address}/state")[2])
        if condition(state):
            return state
        time.sleep(0.1)
    raise AssertionError(f"never so: {state}")


def test_pages_and_files(server: Served) -> None:
    status, headers, page = ask(server, "/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert 'href="systems/cosmo/index.html"' in page
    for path in ("/systems/cosmo/", "/systems/cosmo/index.html", "/systems/cosmo/20260101-120000/index.html"):
        status, _, page = ask(server, path)
        assert status == 200
        assert "the method beats the baseline" in page
        assert NASTY not in page
    folder = "/systems/cosmo/20260101-120000"
    kinds = {"figure-two.svg": "image/svg+xml", "image-ramp.png": "image/png", "audio-tone.wav": "audio/wav"}
    for name, kind in kinds.items():
        status, headers, _ = ask(server, f"{folder}/{name}")
        assert (status, headers["content-type"].partition(";")[0]) == (200, kind)
    for name in ("gallery.css", "gallery.js", "live.js", "icon.svg", "start", "start?system=toy-regression"):
        assert ask(server, f"/{name}")[0] == 200
    assert ask(server, "/", "HEAD")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/systems/../../secret.png",
        "/systems/cosmo/20260101-120000/../../../secret.png",
        "/systems/cosmo/20260101-120000/%2e%2e%2f%2e%2e%2fsecret.png",
        "/systems/cosmo/20260101-120000/..%5c..%5csecret.png",
        "/systems/%2e%2e/index.html",
        "/systems/cosmo/..",
        "/systems/cosmo/%2e%2e/index.html",
        "/systems/cosmo/20260101-120000/result.json",
        "/systems/cosmo/20260101-120000/unnamed.txt",
        "/systems/cosmo/20260101-120000/image-lost.png",
        "/systems/cosmo/20260101-120000/x%00y",
        "/systems/no-such-system/index.html",
        "/systems/cosmo/19990101-000000/index.html",
        "/systems/%FF%FE/index.html",
        "/systems/*/index.html",
        "//etc/passwd",
        "/etc/passwd",
        "/start?system=no-such-system",
        "/start?system=../../etc",
        "/started/0",
        "/started/-1",
        "/started/1e3/state",
        "/started/99999999999999999999/state",
        "/started/%D9%A1",
        "/gallery.css/x",
    ],
)
def test_unknown_and_escaping_addresses_are_404(server: Served, path: str) -> None:
    status, _, text = ask(server, path)
    assert status == 404
    assert "secret" not in text.replace("secret.png", "")


def test_over_long_addresses_and_forms(server: Served) -> None:
    assert ask(server, "/" + "a" * 3000)[0] == 414
    assert ask(server, "/start?system=" + "a" * 3000)[0] == 414
    assert ask(server, "/systems/" + "a" * 1900)[0] == 404
    assert post(server, "/start", {"system": "a" * 70_000})[0] == 413
    status, _, text = post(server, "/start", {"system": "toy-regression", "option.arms": "a" * 501})
    assert (status, "at most 500 characters" in text) == (400, True)
    assert post(server, "/start", {f"option.{i}": "1" for i in range(300)})[0] == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/"), ("DELETE", "/systems/cosmo/"), ("PUT", "/start"), ("GET", "/started/1/stop"), ("PATCH", "/start")],
)
def test_wrong_methods(server: Served, method: str, path: str) -> None:
    status, headers, _ = ask(server, path, method)
    assert status == 405
    assert headers["allow"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1:1"},
        {"Host": "127.0.0.1.evil.example:{port}"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "https://127.0.0.1:{port}"},
    ],
    ids=str,
)
def test_foreign_hosts_and_origins(server: Served, headers: dict[str, str]) -> None:
    headers = {name: value.format(port=server.port) for name, value in headers.items()}
    assert ask(server, "/", **headers)[0] == 403
    form = {"system": "toy-regression", "scale": "smoke"}
    assert post(server, "/start", form, **headers)[0] == 403
    assert post(server, "/started/1/stop", {}, **headers)[0] == 403


def test_what_changes_something_names_its_origin(server: Served) -> None:
    """A form of another site is sent with its origin; without any, it may be a tool that a page has found."""
    form = urlencode({"system": "toy-regression", "scale": "smoke"})
    for headers in (FORM, {**FORM, "Sec-Fetch-Site": "none"}, {**FORM, "Sec-Fetch-Site": "same-origin"}):
        assert ask(server, "/start", "POST", form, **headers, Origin="")[0] == 403
    assert "toy-regression" not in ask(server, "/started/1")[2]


def test_cross_site_forms_and_own_ones(server: Served) -> None:
    own = f"http://127.0.0.1:{server.port}"
    assert post(server, "/start", {"system": "nothing"}, Sec_Fetch_Site="cross-site")[0] == 403
    assert post(server, "/start", {"system": "nothing"}, Sec_Fetch_Site="same-site")[0] == 403
    assert post(server, "/start", {"system": "nothing"}, Origin=own, Sec_Fetch_Site="same-origin")[0] == 400
    assert ask(server, "/", Host=f"localhost:{server.port}")[0] == 200


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({}, "no system"),
        ({"system": "toy-regresion"}, "toy-regression"),
        ({"system": "../toy"}, "no system"),
        ({"seed": "-1"}, "seed must be in [0,"),
        ({"seed": "1e3"}, "seed must be an integer"),
        ({"seed": "9" * 40}, "seed must be an integer"),
        ({"seed": "٣"}, "seed must be an integer"),
        ({"scale": "huge"}, "scale must be one of"),
        ({"option.steps": "many"}, "steps must be an integer"),
        ({"option.lr": "nan"}, "lr must be a finite number"),
        ({"option.lr": "-1"}, "lr must be &gt; 0, got -1.0"),
        ({"option.fail": "maybe"}, "fail must be one of"),
        ({"option.arms": ","}, "arms must be"),
        ({"option.arms": "a\x1b[2J"}, "printable"),
        ({"option.nothing": "1"}, "no option"),
        ({"runs": "/etc"}, "unknown field"),
        ({"option.lr": NASTY}, "lr must be a finite number"),
    ],
    ids=str,
)
def test_bad_forms_are_400_and_say_why(server: Served, form: dict[str, str], message: str) -> None:
    status, _, text = post(server, "/start", {"system": "toy-regression", **form} if form else form)
    assert status == 400
    assert message in text
    assert NASTY not in text
    assert 'role="alert"' in text


def test_malformed_bodies(server: Served) -> None:
    assert ask(server, "/start", "POST", "{}", Content_Type="application/json")[0] == 415
    assert ask(server, "/start", "POST", b"system=\xff", **FORM)[0] == 400
    assert ask(server, "/start", "POST", "system=%FF", **FORM)[0] == 400
    assert ask(server, "/start", "POST", "system=a&system=b", **FORM)[0] == 400


@pytest.mark.parametrize(
    "lines",
    [
        b"GET / HTTP/1.1",
        b"GARBAGE",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nHost: evil.example",
        b"GET /systems/\xff\xfe/ HTTP/1.1\r\nHost: 127.0.0.1:PORT",
        b"GET /no\x00thing HTTP/1.1\r\nHost: 127.0.0.1:PORT",
        b"GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1:PORT",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nX: " + b"a" * 100_000,
        b"POST /start HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nContent-Length: -5",
        b"POST /start HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nContent-Length: 5\r\nContent-Length: 6",
        b"GET /systems/cosmo/ HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nOrigin: http://127.0.0.1:PORT\r\nOrigin: null",
    ],
    ids=lambda lines: lines[:60].decode(errors="replace"),
)
def test_malformed_requests(server: Served, lines: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(lines.replace(b"PORT", str(server.port).encode()) + b"\r\nConnection: close\r\n\r\n")
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # it need not read all of a request that is too large
            while part := connection.recv(65_536):
                answer += part
    assert re.match(rb"HTTP/1.1 4\d\d ", answer), answer[:300]
    assert b"Traceback" not in answer


def test_a_browser_that_leaves_while_it_sends(server: Served) -> None:
    own = f"Host: 127.0.0.1:{server.port}\r\nOrigin: http://127.0.0.1:{server.port}\r\n"
    head = f"POST /start HTTP/1.1\r\n{own}Content-Type: {FORM['Content-Type']}\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(f"{head}Content-Length: 1000\r\n\r\nsystem=".encode())
    assert ask(server, "/start")[0] == 200


HOSTILE = "<script>document.title = 'owned'; fetch('/start', {method: 'POST'})</script>"


def test_files_of_a_run_do_nothing_in_the_origin_of_the_server(tmp_path: Path) -> None:
    names = ("plot.svg", "plot.js", "plot.css", "page.html", "plot.SVG", "data.json", "x.svg.js", "plot.xhtml", "t.csv")
    kinds = ("figure", "image", "audio", "mesh", "table", "script", "page")
    stranger = record(tmp_path, artifacts=[Artifact(kind, kind, names) for kind in kinds])
    assert stranger.directory is not None
    for name in names:
        (stranger.directory / name).write_text(HOSTILE)
    with served(tmp_path) as server:
        folder = "/systems/cosmo/20260101-120000"
        for name in names:
            status, headers, _ = ask(server, f"{folder}/{name}")
            assert status == (200 if name in ("plot.svg", "t.csv") else 404), name
        status, headers, _ = ask(server, f"{folder}/plot.svg")
        policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
        assert policy["sandbox"] == "", "neither scripts nor the server's origin"
        assert policy["default-src"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert ask(server, f"{folder}/t.csv")[1]["content-disposition"].startswith("attachment")
        page = ask(server, f"{folder}/index.html")[2]
        assert 'href="plot.svg"' not in page
        assert 'src="plot.js"' not in page


@pytest.mark.parametrize(
    "start", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET"]
)
def test_a_connection_that_asks_nothing_is_ended(start: bytes, tmp_path: Path) -> None:
    with served(tmp_path, idle=0.3) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(start.replace(b"PORT", str(server.port).encode()))
            while connection.recv(65_536):  # ends with the connection; without a limit the test would time out
                pass
        assert ask(server, "/")[0] == 200


def test_a_form_that_does_not_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pullback.lab.server._SLOWEST_FORM", 0.3)
    with served(tmp_path) as server, socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        own = f"Host: 127.0.0.1:{server.port}\r\nOrigin: http://127.0.0.1:{server.port}\r\n"
        head = (
            f"POST /start HTTP/1.1\r\n{own}Content-Type: {FORM['Content-Type']}\r\nContent-Length: 100\r\n\r\nsystem="
        )
        connection.sendall(head.encode())
        assert b" 408 " in connection.recv(65_536)


def test_a_body_is_not_read_further_than_a_form_may_reach(server: Served) -> None:
    own = f"Host: 127.0.0.1:{server.port}\r\nOrigin: http://127.0.0.1:{server.port}\r\n"
    head = f"POST /start HTTP/1.1\r\n{own}Content-Type: {FORM['Content-Type']}\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b"a" * 65_536 + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head.encode())
        sent = 0
        with contextlib.suppress(ConnectionError):
            for _ in range(2000):
                connection.sendall(chunk)
                sent += len(chunk)
        assert sent < 20_000_000, "the server has answered and closed long before"


def test_damaged_records_are_pages_not_errors(tmp_path: Path) -> None:
    record(tmp_path)
    (tmp_path / "cosmo" / "20260102-000000").mkdir()
    (tmp_path / "cosmo" / "20260102-000000" / "result.json").write_text('{"schema_version": 1' + "0" * 400 + "}")
    (tmp_path / "cosmo" / "20260103-000000" / "result.json").mkdir(parents=True)
    with served(tmp_path) as server:
        assert "2 damaged" in ask(server, "/")[2]
        status, _, page = ask(server, "/systems/cosmo/index.html")
        assert (status, "schema_version must be" in page) == (200, True)
        assert ask(server, "/systems/cosmo/20260102-000000/index.html")[0] == 404


def test_start_watch_and_stop(server: Served, store: Path) -> None:
    status, headers, _ = post(server, "/start", {"system": "toy-regression", "option.steps": "3", "option.arms": "x y"})
    assert status == 303
    first = headers["location"]
    done = wait_until(server, first, lambda state: state["over"])
    assert done["status"] == "complete"
    assert "x: train: 3/3" in done["log"]
    assert "every arm ends below the bound" in done["found"]
    assert "<path" in done["found"]
    assert ask(server, done["page"])[0] == 200
    (result,) = read_results(store, "toy-regression")
    assert result.config["arms"] == ["x", "y"]

    _, headers, _ = post(server, "/start", {"system": "toy-regression", "option.steps": "200000"})
    second = headers["location"]
    assert second != first
    going = wait_until(server, second, lambda state: state["step"] > 0)
    assert (going["status"], going["loop"], going["steps"]) == ("running", "a: train", 200000)
    status, _, text = post(server, "/start", {"system": "toy-regression"})
    assert (status, "toy-regression is still running" in text) == (409, True)
    assert post(server, f"{second}/stop", {})[0] == 303
    assert wait_until(server, second, lambda state: state["over"])["status"] == "interrupted"


def test_a_run_that_fails_shows_why(server: Served) -> None:
    _, headers, _ = post(server, "/start", {"system": "toy-regression", "option.fail": "true"})
    state = wait_until(server, headers["location"], lambda state: state["over"])
    assert state["status"] == "failed"
    assert "ArithmeticError: asked to fail" in state["found"]


def test_words_are_what_the_command_understands(server: Served) -> None:
    wanted = parse_request({"system": "toy-regression", "scale": "smoke", "option.lr": "0.5", "option.steps": "3"})
    assert wanted == RunRequest("toy-regression", "smoke", 0, {"lr": 0.5})  # three steps are the scale's own
    with pytest.raises(UsageError, match="toy-regression has no option 'stepz'"):
        parse_request({"system": "toy-regression", "option.stepz": "3"})


def test_serve_prints_its_address_and_ends_with_its_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pullback", "serve", "--port", "0", "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert found
        there = Served(int(found[1]))
        assert ask(there, "/start")[0] == 200
        taken = subprocess.run([*command[:-3], str(there.port)], capture_output=True, text=True, cwd=tmp_path)
        assert taken.returncode == 2
        assert f"port {there.port} cannot be used" in taken.stderr
        assert taken.stderr.count("\n") == 1
        _, headers, _ = post(there, "/start", {"system": "cosmo", "scale": "default"})
        wait_until(there, headers["location"], lambda state: state["status"] == "running")
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    (result,) = read_results(tmp_path / "runs")
    assert result.status in ("interrupted", "complete")
    with pytest.raises(ProcessLookupError):
        os.kill(result.process["pid"], 0)
