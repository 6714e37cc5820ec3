"""`pytest --gradients` and `assert_gradients`, as a project that installed pullback has them."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import pullback.audit.block  # noqa: F401 (before a session inside a session, which forgets what it imports)

pytest_plugins = ["pytester"]

PLUGIN = "pullback.integrations.pytest_plugin"

TESTS = """
import pytest
import torch


def choose(scores, values):
    return values[scores.argmax()]


def test_without_gradients():
    assert torch.ones(2).sum() == 2


def test_smooth():
    x = torch.ones(3, requires_grad=True)
    x.square().sum().backward()
    assert x.grad is not None


def test_choice():
    scores, values = torch.tensor([0.2, 0.7], requires_grad=True), torch.ones(2, requires_grad=True)
    choose(scores, values).backward()


@pytest.mark.gradients(allow="cut.index")
def test_choice_that_is_meant():
    scores, values = torch.tensor([0.2, 0.7], requires_grad=True), torch.ones(2, requires_grad=True)
    choose(scores, values).backward()


def test_that_fails_by_itself():
    scores, values = torch.tensor([0.2, 0.7], requires_grad=True), torch.ones(2, requires_grad=True)
    choose(scores, values).backward()
    assert scores.grad is not None, "its own words"
"""


def _run(pytester: pytest.Pytester, *words: str) -> pytest.RunResult:
    """Run pytest on the files of the test; the plugin by name where the environment has not installed it."""
    installed = any(point.name == "pullback" for point in entry_points(group="pytest11"))
    return pytester.runpytest_inprocess(*(() if installed else ("-p", PLUGIN)), "-p", "no:cacheprovider", *words)


def test_a_test_in_which_a_gradient_dies_fails_with_the_report(pytester: pytest.Pytester) -> None:
    file = pytester.makepyfile(TESTS)
    result = _run(pytester, "--gradients")
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*test_choice*",
            "*x*return values[[]scores.argmax()[]]*",
            "error cut.index*",
            "*AssertionError: its own words*",
            "*= gradients =*",
            f"{file.name}:6: error: cut.index: argmax returns positions*test_choice[]]",
            "3 tests made a backward pass, a gradient died in 1",
        ]
    )


def test_the_summary_is_complete_where_other_processes_ran_the_tests(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    result = _run(pytester, "--gradients", "-n", "1", "-p", "xdist")
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(["*:6: error: cut.index: argmax returns positions*test_choice[]]", "3 tests made a*"])


def test_without_the_option_nothing_is_audited(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TESTS)
    result = _run(pytester)
    result.assert_outcomes(passed=4, failed=1)
    assert "gradients =" not in result.stdout.str()


def test_an_installation_registers_the_plugin() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"pullback": PLUGIN}


def test_the_plugin_imports_no_torch() -> None:
    code = f"import sys, {PLUGIN}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_weaker_level_can_fail_too(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import torch

        def test_detached_target():
            w = torch.ones(3, requires_grad=True)
            (w - w.detach() * 2).square().sum().backward()
        """
    )
    _run(pytester, "--gradients").assert_outcomes(passed=1)
    _run(pytester, "--gradients", "--gradients-fail-on", "info").assert_outcomes(failed=1)


def test_a_marker_with_another_word_is_wrong_use(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.gradients(allows="cut")
        def test_nothing():
            pass
        """
    )
    result = _run(pytester, "--gradients")
    result.stdout.fnmatch_lines(["*the marker gradients takes allow= and ignore=*"])
    assert result.ret != 0


def test_optimizers_say_what_is_trained(pytester: pytest.Pytester) -> None:
    """A leaf that requires grad and is not trained may be cut: the training of another is healthy."""
    pytester.makepyfile(
        """
        import torch

        def test_step():
            trained, other = torch.ones(3, requires_grad=True), torch.tensor([0.1, 0.5, 0.2], requires_grad=True)
            optimizer = torch.optim.SGD([trained], lr=0.1)
            trained[other.argmax()].square().backward()
            optimizer.step()
        """
    )
    _run(pytester, "--gradients").assert_outcomes(passed=1)


def test_the_fixture_audits_a_function(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        import torch

        def pick(scores, values):
            return values[scores.argmax()]

        def inputs():
            return torch.tensor([0.2, 0.7], requires_grad=True), torch.tensor([1.0, 2.0])

        def test_smooth(assert_gradients):
            report = assert_gradients(lambda x: x.exp().sum(), torch.ones(3, requires_grad=True))
            assert report.ok and report.steps == 1

        def test_pick(assert_gradients):
            assert_gradients(pick, *inputs())

        def test_pick_allowed(assert_gradients):
            report = assert_gradients(pick, *inputs(), allow=("cut",))
            assert report.silenced == 1

        def test_nothing_differentiated(assert_gradients):
            assert_gradients(lambda: torch.ones(2))

        def test_level(assert_gradients):
            with pytest.raises(ValueError, match="fail_on must be one of"):
                assert_gradients(pick, *inputs(), fail_on="all")
        """
    )
    result = _run(pytester)
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(["*return values[[]scores.argmax()[]]*", "error cut.index*"])
    result.stdout.fnmatch_lines(["*nothing was differentiated*"])
