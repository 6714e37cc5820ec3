"""The command as a user sees it: exit status, what is on which stream, one clear line for wrong use."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pullback
from pullback.cli import main
from pullback.lab.result import SCHEMA_VERSION
from tests.lab import toy  # noqa: F401

COMMANDS = ["audit", "find", "list", "show", "run", "verify", "sweep", "bench", "data", "gallery", "serve", "demo"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _help(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*words, "--help"]) == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("words", [[], *([c] for c in COMMANDS), ["data", "fetch"], ["data", "list"]], ids=" ".join)
def test_help_at_every_level_has_an_example(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = _help(words, capsys)
    assert f"Example: {' '.join(['pullback', *words])}" in text
    if not words:
        assert all(command in text for command in COMMANDS)


def test_help_of_a_system_lists_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    text = _help(["run", "toy-regression"], capsys)
    assert "--steps INT Steps of each loop. [default: 12; smoke: 3; full: 20; >= 1]" in text
    assert "--arms STR... Names of the arms. [default: a b]" in text
    assert "--seed INT" in text
    assert "Example: pullback run toy-regression" in text


def test_run_prints_claims_and_exits_by_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "toy-regression", "--scale", "smoke", "--seed", "1"]) == 0
    shown = capsys.readouterr()
    assert "held" in shown.out
    assert "every arm ends below the bound" in shown.out
    assert "a: train: 3/3" in shown.err
    assert "\x1b[" not in shown.err, "plain lines where there is no terminal"
    assert main(["run", "toy-regression", "--scale", "smoke", "--bound", "-1", "--quiet"]) == 1
    quiet = capsys.readouterr()
    assert "failed" in quiet.out
    assert quiet.err == ""


def test_json_is_all_there_is_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "toy-regression", "--steps", "2", "--arms", "x", "y", "z", "--lr", "0.1", "--json"]
    assert main(words) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema_version"] == SCHEMA_VERSION
    codes = {"codes": [[1, 2]]}
    assert record["config"] == {"steps": 2, "lr": 0.1, "arms": ["x", "y", "z"], "fail": False, "bound": 1e9, **codes}
    assert main(["list", "--family", "gradients", "--json"]) == 0
    rows = {row["slug"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["toy-regression"]["status"] == "complete"
    assert rows["toy-regression"]["verdicts"] == {"held": 2, "failed": 0, "not judged": 0}
    assert main(["show", "toy-regression", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["latest"] == record
    steps = {"name": "steps", "type": "int", "default": 12, "range": ">= 1", "help": "Steps of each loop."}
    assert shown["options"][0] == steps


def test_show_tells_how_to_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "toy-regression"]) == 0
    text = capsys.readouterr().out
    for part in ("A small system for the tests", "pullback run toy-regression", "--steps", "Steps of each loop."):
        assert part in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run"], "run needs the name of a system: pullback run SLUG"),
        (["run", "toy-regresion"], "no system 'toy-regresion'; did you mean 'toy-regression'?"),
        (["run", "toy-regression", "--seed", "x"], 'Invalid value for --seed: unable to convert "x" into int'),
        (["run", "toy-regression", "--seed", "-1"], "seed must be an integer >= 0, got -1"),
        (["run", "toy-regression", "--scale", "smoky"], 'Invalid value "smoky" for --scale. Choose from: "smoke"'),
        (["run", "toy-regression", "--stepz", "3"], "Unknown option: --stepz. Did you mean --steps?"),
        (["run", "toy-regression", "--lr", "-1"], "lr must be > 0, got -1.0"),
        (["run", "toy-regression", "--data", "."], "toy-regression takes no data of yours: leave out --data"),
        (["run", "monotonic-sorting-networks", "--data", "no"], "data must be an existing folder or file, got 'no'"),
        (["run", "toy-regression", "--steps", "1.9"], 'Invalid value for --steps: unable to convert "1.9" into int'),
        (["run", "toy-regression", "--steps", "1e3"], 'unable to convert "1e3" into int'),
        (["run", "toy-regression", "--steps", "0"], "steps must be >= 1, got 0"),
        (["run", "toy-regression", "--steps", "-5"], "steps must be >= 1, got -5"),
        (["run", "toy-regression", "--lr", "nan"], "lr must be > 0, got nan"),
        (["run", "toy-regression", "--bound", "inf"], "bound must be finite, got inf"),
        (["run", "toy-regression", "--arms"], "arms must have at least one value, got none"),
        (["run", "toy-regression", "--codes", "1", "2", "3"], "Parameter --codes requires 2"),
        (["run", "toy-regression", "--codes", "1", "2.5"], 'unable to convert "2.5" into int'),
        (["run", "toy-regression", "--budget", "nan"], "budget must be > 0 seconds, got nan"),
        (["run", "toy-regression", "--checkpoint-every", "nan"], "checkpoint_every must be >= 0 seconds, got nan"),
        (["run", "toy-regression", "--seed", "1.5"], 'unable to convert "1.5" into int'),
        (["run", "toy-regression", "--seed", "9" * 30], "seed must be an integer"),
        (["run", "toy-regression", "--runs", __file__], "runs must be a folder one can write to"),
        (["run", "toy-regression", "--resume"], "resume: no unfinished run of toy-regression in runs"),
        (["show", "toy-regresion"], "did you mean 'toy-regression'?"),
        (["list", "--family", "discreet"], "did you mean 'discrete'?"),
        (["verify", "--family", "discreet"], "did you mean 'discrete'?"),
        (["verify", "toy-regression", "--seeds", "0"], "seeds must be >= 1, got 0"),
        (["sweep", "toy-regression"], "sweep needs option=value,... with an option of toy-regression: steps, lr"),
        (["sweep", "toy-regression", "step=1"], "no option 'step'; did you mean 'steps'?"),
        (["sweep", "toy-regression", "steps=1,x"], 'Invalid value for --steps: unable to convert "x" into int'),
        (["sweep", "toy-regression", "lr=1,-1"], "lr must be > 0, got -1.0"),
        (["bench", "no-family"], "no benchmarks of 'no-family'"),
        (["data", "fetch"], "data fetch needs names, --family FAMILY, --all or --systems"),
        (["data", "fetch", "mnits"], "did you mean 'mnist'?"),
        (["data", "fetch", "--family", "discreet"], "did you mean 'discrete'?"),
        (["data", "list", "--family", "discreet"], "did you mean 'discrete'?"),
        (["verify", "toy-regression", "--seeds", "1.5"], 'Invalid value for --seeds: unable to convert "1.5" into int'),
        (["verify", "toy-regression", "--jobs", "1.5"], 'Invalid value for --jobs: unable to convert "1.5" into int'),
        (["sweep", "toy-regression", "steps=1.5"], 'Invalid value for --steps: unable to convert "1.5" into int'),
        (["sweep", "toy-regression", "steps=1,0"], "steps must be >= 1, got 0"),
        (["bench", "--rounds", "1.5"], 'Invalid value for --rounds: unable to convert "1.5" into int'),
        (["serve", "--port", "8.5"], 'Invalid value for --port: unable to convert "8.5" into int'),
        (["demo", "--seed", "0.5"], 'Invalid value for --seed: unable to convert "0.5" into int'),
        (["serve", "--port", "70000"], "port must be in [0, 65535], got 70000"),
        (["demo", "--seed", "-1"], "seed must be an integer >= 0, got -1"),
        (["demo", "--out", f"{__file__}/x"], "out must be a folder"),
        (["gallery", "--out", __file__], "out must be a folder"),
        (["lsit"], "no command 'lsit'; did you mean 'list'?"),
        (["find"], ""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_use_is_one_line_and_status_2(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("pullback: ")
    assert shown.err.count("\n") == 1
    assert line in shown.err
    assert not list(tmp_path.iterdir())
    assert main([*words, "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_system_that_raises_is_status_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "toy-regression", "--fail", "--quiet"]) == 3
    shown = capsys.readouterr()
    assert shown.err == (
        "pullback: toy-regression raised ArithmeticError: asked to fail (--debug shows the traceback)\n"
    )
    assert main(["run", "toy-regression", "--fail", "--quiet", "--debug"]) == 3
    assert "toy.py" in capsys.readouterr().err


def test_verify_counts_claims_over_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "toy-regression", "--seeds", "2", "--scale", "smoke", "--json"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert [(c["held"], c["failed"], c["not_judged"]) for c in found["claims"]] == [(2, 0, 0), (0, 0, 2)]
    assert [r["seed"] for r in found["runs"]] == [0, 1]
    assert "[2/2] toy-regression seed 1: 1 held, 0 failed" in shown.err
    assert main(["verify", "toy-regression", "--scale", "smoke", "--budget", "1e-9"]) == 1
    assert "out of time" in capsys.readouterr().out


def test_sweep_compares_configs(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", "toy-regression", "bound=-1,5", "arms=a,a+b", "--scale", "smoke"]
    assert main([*words, "--json"]) == 1, "a claim fails for bound = -1"
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(r["config"]["bound"], r["config"]["arms"], r["held"]) for r in rows] == [
        (-1.0, ["a"], 0),
        (-1.0, ["a", "b"], 0),
        (5.0, ["a"], 1),
        (5.0, ["a", "b"], 1),
    ]
    assert "last loss (b)" in rows[1]["metrics"]
    assert "last loss (b)" not in rows[0]["metrics"]


def test_bench_prints_ratios_absent_peers_and_tables(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(
        "from pullback.lab.bench import Case\n"
        "def gone(n): import no_such_package\n"
        "def twice(n): return sum(range(2 * n))\n"
        "CASES = [Case('sum', lambda: 100, lambda n: sum(range(n)), {'twice': twice, 'gone': gone})]"
    )
    assert main(["bench", "sums", "--folder", str(tmp_path), "--rounds", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (case,) = found["cases"]
    assert set(case["ratios"]) == {"twice"}
    assert case["absent"] == {"gone": "no_such_package"}
    assert case["clock"] == "CPU time, 1 thread"
    assert found["geometric_means"] == {"sums": pytest.approx(case["ratios"]["twice"])}
    assert main(["bench", "sums", "--folder", str(tmp_path), "--rounds", "1"]) == 0
    printed = capsys.readouterr()
    assert re.search(r"sums: sum\n  .*s, \d+\.\d\d of twice", printed.err), "a row is told when it is measured"
    compared, alone = printed.out.split("Without a comparison:")
    assert "twice" in compared
    assert "gone" not in compared
    assert "gone is not installed (no module no_such_package)" in alone
    last = alone.splitlines()[-1]
    assert re.fullmatch(r"geometric mean of the ratios \(.*\): sums \d+\.\d\d \(1\)", last), last
    (tmp_path / "squares.py").write_text(
        "from pullback.lab.bench import Table\n"
        "TABLES = [Table('Squares of numbers', ('n', '>square'), lambda: [('two', 4.0), ('three', '9')])]"
    )
    assert main(["bench", "squares", "--folder", str(tmp_path)]) == 0
    assert re.search(r"Squares of numbers\n+n +square *\ntwo +4 *\nthree +9", capsys.readouterr().out)
    assert main(["bench", "squares", "--folder", str(tmp_path), "--json"]) == 0
    (table,) = json.loads(capsys.readouterr().out)["tables"]
    assert table["columns"] == ["n", "square"]
    assert table["rows"] == [["two", 4.0], ["three", "9"]]
    assert main(["bench", "squares", "--folder", str(tmp_path), "--match", "cubes"]) == 0
    assert "Squares" not in capsys.readouterr().out


def test_data_list_is_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"mnist", "digits"} <= {row["name"] for row in rows}
    assert main(["data", "list"]) == 0
    text = capsys.readouterr().out
    assert all(row["name"] in text for row in rows)
    assert max(map(len, text.splitlines())) <= 100


def test_list_says_how_the_claims_stand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "toy-regression", "--scale", "smoke", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["list", "--family", "gradients"]) == 0
    assert "complete: 1 held, 1 not judged" in capsys.readouterr().out
    assert main(["run", "toy-regression", "--bound", "-1", "--quiet"]) == 1
    capsys.readouterr()
    assert main(["list", "--family", "gradients"]) == 0
    assert "complete: 1 held, 1 failed" in capsys.readouterr().out


def test_every_run_has_the_common_options(capsys: pytest.CaptureFixture[str]) -> None:
    common, own = _help(["run"], capsys), _help(["run", "toy-regression"], capsys)
    for option in ("--scale", "--seed", "--device", "--budget", "--resume", "--checkpoint-every", "--runs", "--json"):
        assert option in common
        assert option in own
    assert "--data" in common
    assert "--data" not in own, "the toy takes none"


LOUD = """
import os, subprocess, sys
os.write(1, b"by descriptor\\n")
subprocess.run([sys.executable, "-S", "-c", "print('by a child')"])
print("by print")
"""

RUDE = (
    "",
    "sys.stdout.close()",
    "sys.stdout.close(); sys.stderr.close(); os.close(2)",
    "os.close(1)",
    "sys.stdout = sys.stderr = None",
    "os.dup2(os.open(os.devnull, os.O_WRONLY), 1)",
    "sys.stdout.detach()",
)

AUDIT_ALL = """
import os, sys
from pullback.cli import main
for index in range(int(sys.argv[1])):
    for name, words in (("json", ["--json"]), ("text", [])):
        for number, ending in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{index}.{name}.{ending}", os.O_WRONLY | os.O_CREAT), number)
        status = main(["audit", f"{index}.py", *words])
        sys.stdout.flush()
        open(f"{index}.{name}.status", "w").write(str(status))
"""


def test_output_is_there_again_whatever_a_script_does_to_it(tmp_path: Path) -> None:
    for index, end in enumerate(RUDE):
        (tmp_path / f"{index}.py").write_text(LOUD + end)
    subprocess.run([sys.executable, "-c", AUDIT_ALL, str(len(RUDE))], cwd=tmp_path, check=True)
    said = {"by descriptor", "by a child", "by print"}
    for index in range(len(RUDE)):
        found = {
            f"{n}.{e}": (tmp_path / f"{index}.{n}.{e}").read_text() for n in ("json", "text") for e in ("out", "err")
        }
        assert json.loads(found["json.out"])["ok"] is True
        assert said <= set(found["json.err"].splitlines())
        assert said - {"by print"} <= set(found["text.out"].splitlines()), (
            "what print holds back is lost with its stream"
        )
        assert "made no backward pass" in found["text.out"]
        for name in ("json", "text"):
            assert (tmp_path / f"{index}.{name}.status").read_text() == "0"


def test_a_demo_without_its_digits_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # scikit-learn, which ships them, is not installed
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert "bring it with: pip install 'pullback[lab]'" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_import_is_cheap() -> None:
    """At most 100 ms over `import torch`, and no heavy package comes along."""
    code = (
        "import torch, time, sys; before = set(sys.modules); start = time.process_time(); import pullback;"
        "print(time.process_time() - start, len(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, modules = map(float, done.stdout.split())
    assert seconds < 0.1
    assert modules < 20


def test_ctrl_c_saves_and_exits_130(tmp_path: Path) -> None:
    root = Path(pullback.__file__).parents[2]
    words = ["run", "toy-regression", "--steps", "1000000", "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.lab.toy", *words],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        record = _wait_for_steps(process, tmp_path / "runs")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    again = f"pullback run toy-regression --resume --runs {tmp_path / 'runs'}"
    assert err.splitlines()[-1] == f"pullback: interrupted; continue with: {again}"
    result = json.loads(record.read_text())
    assert result["status"] == "interrupted"
    assert result["progress"]["step"] > 0
    assert list(record.parent.glob("checkpoints/*.safetensors"))


def _wait_for_steps(process: subprocess.Popen[str], runs: Path) -> Path:
    """The record, once it shows that the loop has begun."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        for record in runs.glob("*/*/result.json"):
            if json.loads(record.read_text())["progress"].get("step", 0) > 0:
                return record
        time.sleep(0.1)
    raise AssertionError("the loop did not begin: " + (process.communicate()[1] if process.poll() is not None else ""))
