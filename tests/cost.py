"""What the tests cost: at the end of a run, entries of contracts and smokes of systems in CPU seconds, worst first.

A report and no test: machines differ by five times. CONTRIBUTING says what an entry and a system may cost.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Generator
from typing import Any

import pytest

BUDGET = {"contract": 3.0, "slug": 5.0}
"""The parameter of a test that says what it is about, to the CPU seconds that all tests of one may take together."""

_TITLES = {"contract": "entries of contracts", "slug": "smokes of systems"}
_SHOWN = 5


def _cpu_seconds() -> float:
    """Of this process and of the children it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    subject = next(((kind, parameters[kind]) for kind in BUDGET if kind in parameters), None)
    before = _cpu_seconds()
    try:
        return (yield)
    finally:
        if subject is not None:
            kind, value = subject
            item.user_properties.append(("cost", (kind, getattr(value, "name", value), _cpu_seconds() - before)))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    spent: dict[str, dict[str, float]] = {kind: defaultdict(float) for kind in BUDGET}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                for kind, name, seconds in (value for key, value in report.user_properties if key == "cost"):
                    spent[kind][name] += seconds
    for kind, costs in spent.items():
        worst = sorted(costs.items(), key=lambda item: -item[1])
        over = sum(seconds > BUDGET[kind] for _, seconds in worst)
        if not worst or worst[0][1] < BUDGET[kind] / 2:
            continue
        terminalreporter.section(f"{_TITLES[kind]}, CPU seconds")
        total = sum(costs.values())
        terminalreporter.line(f"{total:8.1f}  all {len(worst)}; {over} over the budget of {BUDGET[kind]:g}")
        for name, seconds in worst[: max(_SHOWN, over)]:
            terminalreporter.line(f"{seconds:8.1f}  {name}")
