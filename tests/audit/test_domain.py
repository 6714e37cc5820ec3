"""Programs that check their inputs: a probe stays where they are defined, and what it raises is the audit's to keep."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import pullback

_G = torch.Generator().manual_seed(0)


def _not_negative(x: Tensor) -> Tensor:
    assert x.min() >= 0, "negative"
    return (x.round() - 0.3).square().mean() + x.mean()


def _in_the_unit_interval(x: Tensor) -> Tensor:
    if x.min() < 0 or x.max() > 1:
        raise ValueError(f"expected an image in [0, 1], got {float(x.min())}")
    return ((8 * x).floor() / 8 - 0.3).square().mean() + 0.1 * x.square().mean()


def _distribution(x: Tensor) -> Tensor:
    assert (x >= 0).all()
    assert torch.allclose(x.sum(1), torch.ones(())), "not a distribution"
    return ((4 * x).round() * torch.arange(3.0)).sum() + (x * x.log()).sum()


def _ends_itself(x: Tensor) -> Tensor:
    if x.min() < 0:
        sys.exit("negative")
    return (x.ceil() - 0.3).square().mean() + x.mean()


POSITIVE = 2 * torch.rand(400, generator=_G)
INTERVAL = torch.cat([torch.rand(398, generator=_G), torch.tensor([0.0, 1.0])])
ROWS = (3 * torch.rand(300, 3, generator=_G)).softmax(-1)


@pytest.mark.parametrize(
    ("program", "x"),
    [
        (_not_negative, POSITIVE),
        (_in_the_unit_interval, INTERVAL),
        (_distribution, ROWS),
        (_ends_itself, POSITIVE),
    ],
)
@pytest.mark.parametrize("probes", ["auto", "all"])
def test_the_stop_is_measured_inside_the_domain(program: Callable[[Tensor], Tensor], x: Tensor, probes: str) -> None:
    leaf = x.clone().requires_grad_()
    report = pullback.audit(program, leaf, probes=probes)
    (found,) = [f for f in report.findings if f.severity == "error"]
    assert found.kind == "zero"
    assert found.evidence["hidden share of the derivative"] > 0.1
    assert not [n for n in report.notes if "could not be probed here" in n]
    assert torch.equal(leaf, x)


def test_a_program_for_one_value_only_is_not_probed_and_the_report_says_where_it_refused() -> None:
    def program(x: Tensor) -> Tensor:
        if not torch.equal(x, torch.tensor([1.2, 2.0])):
            raise ArithmeticError("only these")
        return x.round().sum() + x.sum()

    report = pullback.audit(program, torch.tensor([1.2, 2.0]).requires_grad_())
    (note,) = [n for n in report.notes if "could not be probed here" in n]
    assert note.endswith(f"{__file__}:{program.__code__.co_firstlineno + 2}: ArithmeticError: only these")


def test_what_replays_print_and_warn_of_is_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    def program(x: Tensor) -> Tensor:
        print("run")
        print("run", file=sys.stderr)
        warnings.warn("run", stacklevel=1)
        return x.round().sum() + x.square().sum()

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pullback.audit(program, torch.rand(6, generator=_G).requires_grad_())
    assert len(seen) == 1
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("run\n", "run\n")


def test_an_interrupt_is_the_users() -> None:
    runs = []

    def program(x: Tensor) -> Tensor:
        runs.append(1)
        if len(runs) == 4:
            raise KeyboardInterrupt
        return x.round().sum() + x.square().sum()

    x = torch.rand(6, generator=_G)
    leaf = x.clone().requires_grad_()
    with pytest.raises(KeyboardInterrupt):
        pullback.audit(program, leaf)
    assert torch.equal(leaf, x)


def test_a_step_that_would_never_end_a_loop_is_given_up() -> None:
    rate, start = torch.nn.Parameter(torch.tensor(1.5)), torch.nn.Parameter(torch.tensor(1.0))

    def program(x: torch.Tensor) -> torch.Tensor:
        value, rounds = start * 1.0, 0
        while value < 9:
            value, rounds = value * rate, rounds + 1
            assert rounds < 50_000, "a probe let the loop run on"
        return value.square() + x.sum()

    report = pullback.audit(program, torch.ones(2))
    assert "control-flow.branch" in {finding.code for finding in report.findings}
