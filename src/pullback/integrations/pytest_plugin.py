"""The pytest plugin: ``pytest --gradients`` and the fixture ``assert_gradients``.

pytest loads this file in every environment that pullback is installed in: it imports no torch until a test asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any

import pytest

from pullback.core.choices import check_choice

if TYPE_CHECKING:
    from pullback.audit import Finding, Report

__all__ = ["assert_gradients"]

_LEVELS = ("info", "warning", "error")
_PROPERTY = "gradients"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--gradients`` and ``--gradients-fail-on``."""
    group = parser.getgroup("pullback", "gradients (pullback)")
    group.addoption(
        "--gradients",
        action="store_true",
        help="audit the backward passes of every test; a test in which a gradient dies fails",
    )
    group.addoption(
        "--gradients-fail-on",
        choices=_LEVELS,
        default="error",
        help="from this severity on, a finding fails the test (default: error); the others are listed at the end",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers",
        "gradients(allow=(), ignore=()): under --gradients, codes of findings that this test expects ('cut.index', or "
        "'cut' for the kind), and places not to report ('model.py:12')",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Audit what the test calls; fail it where it passed although a gradient died."""
    if not item.config.getoption("--gradients"):
        return (yield)
    from pullback.audit.block import AuditedBlock

    allow, ignore = _marked(item)
    with AuditedBlock(item.nodeid, ignore=ignore) as block:
        result = yield
    if not block.report.steps:
        return result
    report = _without(block.report, allow)
    # A property, not a variable: under xdist the test runs in another process than the summary is written in.
    found = [_line(finding) for finding in report.findings if finding.severity != "info"]
    item.user_properties.append((_PROPERTY, {"ok": report.ok, "found": found}))
    if report.exit_code(item.config.getoption("--gradients-fail-on")):
        pytest.fail(str(report), pytrace=False)
    return result


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how many tests differentiated, and list what was found in them, each place once."""
    if not config.getoption("--gradients"):
        return
    every = [r for reports in terminalreporter.stats.values() for r in reports if getattr(r, "when", "") == "call"]
    seen = [(r.nodeid, value) for r in every for name, value in r.user_properties if name == _PROPERTY]
    where: dict[str, list[str]] = {}
    for test, value in seen:
        for line in value["found"]:
            where.setdefault(line, []).append(test)
    terminalreporter.section("gradients")
    for line, tests in sorted(where.items()):
        named = tests[0] if len(tests) == 1 else f"{len(tests)} tests, the first {tests[0]}"
        terminalreporter.line(f"{line}  [{named}]")
    bad = sum(not value["ok"] for _, value in seen)
    terminalreporter.line(f"{len(seen)} tests made a backward pass, a gradient died in {bad}")


def _line(finding: Finding) -> str:
    from pullback.audit.report.places import relative

    return f"{relative(finding.file)}:{finding.line}: {finding.severity}: {finding.code}: {finding.message}"


def _marked(item: pytest.Item) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the markers of a test, its class and its module allow and ignore."""
    allow: list[str] = []
    ignore: list[str] = []
    for marker in item.iter_markers("gradients"):
        if marker.args or set(marker.kwargs) - {"allow", "ignore"}:
            raise pytest.UsageError(f"{item.nodeid}: the marker gradients takes allow= and ignore=, got {marker}")
        allow += _words(marker.kwargs.get("allow", ()))
        ignore += _words(marker.kwargs.get("ignore", ()))
    return tuple(allow), tuple(ignore)


def _words(value: str | Iterable[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _allows(allow: Iterable[str], finding: Finding) -> bool:
    return any(finding.code == code or finding.code.startswith(f"{code}.") for code in allow)


def _without(report: Report, allow: Iterable[str]) -> Report:
    """Return the report without the findings that are expected; they count as silenced."""
    from dataclasses import replace

    kept = tuple(finding for finding in report.findings if not _allows(allow, finding))
    return replace(report, findings=kept, silenced=report.silenced + len(report.findings) - len(kept))


@pytest.fixture
def assert_gradients() -> Callable[..., Report]:
    """Audit a function: ``assert_gradients(fn, *inputs, allow=(), fail_on="error", **options)``.

    It runs ``pullback.audit(fn, *inputs, **options)``, fails the test with the report if a finding is at or above
    ``fail_on`` and its code (or kind) is not in ``allow``, and returns the report.
    """

    def check(
        fn: Callable[..., Any],
        *inputs: Any,
        allow: str | Iterable[str] = (),
        fail_on: str = "error",
        **options: Any,
    ) -> Report:
        import pullback

        check_choice("fail_on", fail_on, _LEVELS)
        report = _without(pullback.audit(fn, *inputs, **options), _words(allow))
        if not report.parameters:
            pytest.fail(f"assert_gradients: nothing was differentiated in {report.target}\n{report}", pytrace=False)
        if report.exit_code(fail_on):
            pytest.fail(str(report), pytrace=False)
        return report

    return check
