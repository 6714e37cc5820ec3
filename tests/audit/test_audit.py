"""What audit promises beyond the zoo: it changes nothing, blames parameters, can be silenced, and writes JSON."""

from __future__ import annotations

import copy
import json
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pullback
from pullback.audit import Report
from pullback.audit.trace.tracer import Tracer


def _training(steps: int, tracer: bool) -> tuple[list[float], dict[str, torch.Tensor], float]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 3)
    )
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []

    def run() -> None:
        for _ in range(steps):
            x, y = torch.rand(5, 1, 8, 8), torch.randint(3, (5,))
            out = model(x)
            loss = F.cross_entropy(out, y) + 0.0 * out.argmax(1).float().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

    if tracer:
        with Tracer():
            run()
    else:
        run()
    return losses, model.state_dict(), float(torch.rand(()))


def test_tracing_changes_no_result_and_no_random_number() -> None:
    plain, traced = _training(4, False), _training(4, True)
    assert plain[0] == traced[0]
    assert plain[2] == traced[2]
    assert all(torch.equal(plain[1][k], traced[1][k]) for k in plain[1])


def test_audit_leaves_parameters_buffers_gradients_and_random_streams_as_one_run_would() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    twin = copy.deepcopy(model)
    x = torch.rand(6, 4)
    model[0].weight.grad = torch.full((8, 4), 7.0)

    def program(x: torch.Tensor) -> torch.Tensor:
        out = model(x)
        number = float(out.abs().mean()) + random.random() + np.random.rand()  # noqa: NPY002
        return out.square().mean() * number

    torch.manual_seed(2)
    random.seed(3)
    np.random.seed(4)  # noqa: NPY002
    report = pullback.audit(program, x)
    after = (torch.rand(()), random.random(), np.random.rand())  # noqa: NPY002
    assert any(f.code == "cut.item" for f in report.findings)  # the probes did run
    torch.manual_seed(2)
    random.seed(3)
    np.random.seed(4)  # noqa: NPY002
    twin(x)
    random.random()
    np.random.rand()  # noqa: NPY002
    assert after == (torch.rand(()), random.random(), np.random.rand())  # noqa: NPY002
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert torch.equal(model[0].weight.grad, torch.full((8, 4), 7.0))
    assert not x.requires_grad


def test_torch_is_put_back_even_if_the_program_raises() -> None:
    before = torch.from_numpy

    def program(x: torch.Tensor) -> torch.Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pullback.audit(program, torch.ones(2))
    assert torch.from_numpy is before
    assert not torch.overrides._get_current_function_mode_stack()


def test_each_parameter_without_gradient_is_blamed_on_a_line() -> None:
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.body = nn.Linear(3, 1), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            open_ = (self.gate(x) > 0).float()
            return (open_ * self.body(x)).square().mean()

    report = pullback.audit(Model(), torch.randn(8, 3))
    by_name = {p.name: p for p in report.parameters}
    (finding,) = [f for f in report.findings if f.severity == "error"]
    assert finding.source.strip() == "open_ = (self.gate(x) > 0).float()"
    assert finding.source[finding.column - 1 : finding.end_column - 1] == "self.gate(x) > 0"
    for name in ("gate.weight", "gate.bias"):
        assert by_name[name].gradient_norm is None
        assert by_name[name].blame == {"file": __file__, "line": finding.line, "code": "cut.comparison"}
    assert by_name["body.weight"].blame is None
    assert by_name["body.weight"].gradient_norm > 0


def _cut(x: torch.Tensor) -> torch.Tensor:
    return x.round().sum()


def _silenced(x: torch.Tensor) -> torch.Tensor:
    return x.round().sum()  # audit: ok


def test_silencing_is_counted() -> None:
    x = torch.rand(3, requires_grad=True)
    line = _cut.__code__.co_firstlineno + 1
    assert [(f.code, f.line) for f in pullback.audit(_cut, x).findings] == [("zero.round", line)]
    for report in (
        pullback.audit(_silenced, x),
        pullback.audit(_cut, x, ignore=[f"test_audit.py:{line}"]),
        pullback.audit(_cut, x, ignore=["test_audit.py"]),
    ):
        assert report.findings == ()
        assert report.silenced == 1
    assert pullback.audit(_cut, x, ignore=["test_audit.py:1"]).findings


def test_report_survives_json_and_sets_the_exit_code() -> None:
    report = pullback.audit(_cut, torch.rand(3, requires_grad=True))
    data = json.loads(report.to_json())
    assert data["schema"] == 1
    assert Report.from_dict(data).to_dict() == report.to_dict()
    assert (report.exit_code(), report.exit_code("info")) == (1, 1)
    clean = pullback.audit(lambda x: x.sin().sum(), torch.rand(3, requires_grad=True))
    assert (clean.exit_code(), clean.ok) == (0, True)
    with pytest.raises(ValueError, match="schema must be 1"):
        Report.from_dict({"schema": 0})
    with pytest.raises(ValueError, match="fail_on"):
        report.exit_code("fatal")


def test_wrt_decides_what_must_get_a_gradient() -> None:
    torch.manual_seed(0)
    maker, judge = nn.Linear(3, 3), nn.Linear(3, 1)

    def program(x: torch.Tensor) -> torch.Tensor:
        return judge(maker(x).detach()).square().mean()

    x = torch.randn(4, 3)
    assert pullback.audit(program, x, wrt=judge).ok
    assert [f.code for f in pullback.audit(program, x, wrt=maker).findings] == ["cut.detach"]
    assert [f.code for f in pullback.audit(program, x, wrt=["maker.weight"]).findings] == ["cut.detach"]
    assert pullback.audit(lambda a, b: (a * b.detach()).sum(), x, x.clone(), wrt=0).ok
    assert not pullback.audit(lambda a, b: (a * b.detach()).sum(), x, x.clone(), wrt=1).ok


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"fn": 3}, TypeError, "fn must be callable"),
        ({"fn": torch.sin, "probes": "some"}, ValueError, "probes must be one of"),
        ({"fn": torch.sin, "budget": -1.0}, ValueError, "budget must be > 0"),
        ({"fn": torch.sin, "wrt": 4}, ValueError, "wrt must name one of 1 inputs"),
        ({"fn": torch.sin, "wrt": "weigth"}, ValueError, "wrt must name a parameter"),
        ({"fn": torch.sin, "wrt": 1.5}, TypeError, "wrt must be a tensor"),
        ({"fn": torch.sin, "loss": lambda out: out}, ValueError, "loss must return a tensor with one element"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        pullback.audit(arguments.pop("fn"), torch.ones(2), **arguments)


def test_lines_carry_counts_norms_gains_and_edges() -> None:
    weight = nn.Parameter(torch.eye(3))

    def program(x: torch.Tensor) -> torch.Tensor:
        h = x @ weight
        h = h * 0.25
        return h.sum()

    report = pullback.audit(program, torch.ones(2, 3))
    first = program.__code__.co_firstlineno
    lines = {r.line - first: (i, r) for i, r in enumerate(report.lines)}
    assert lines[2][1].operations == ("mul",)
    assert lines[2][1].gain == pytest.approx(0.25)
    assert lines[2][1].gradient_norm == pytest.approx(6**0.5)
    assert lines[1][1].gradient_norm == pytest.approx(0.25 * 6**0.5)
    assert (lines[1][0], lines[2][0]) in report.edges
    assert (lines[2][0], lines[3][0]) in report.edges


def test_nan_names_the_value_that_did_it() -> None:
    x = torch.tensor([4.0, 0.0], requires_grad=True)
    (finding,) = pullback.audit(lambda x: (x.sqrt() * x).sum(), x).findings
    assert finding.code == "nan.where"
    assert finding.evidence["input nearest to zero"] == 0.0


def test_chaos_of_a_given_step() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        return 4 * x * (1 - x)

    x = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    report = pullback.audit(lambda x: step(x).sum(), x, step=step)
    (finding,) = report.findings
    assert finding.code == "chaotic.step"
    assert finding.line == step.__code__.co_firstlineno
    assert finding.evidence["exponent"] == pytest.approx(np.log(2), abs=0.1)
    # A difference doubles a step: of a thousandth of 0.3 it is as large as the state after about 10.
    assert 5 <= finding.evidence["horizon"] <= 12
    assert "use function values of a smoothed loss" in str(report)
    assert pullback.audit(lambda x: x.sum(), x, step=lambda x: 0.5 * x).findings == ()
    spectrum = pullback.audit.lyapunov(step, x.detach(), steps=4000)
    assert float(spectrum.exponents[0]) == pytest.approx(np.log(2), abs=0.02)


def test_the_exponent_of_a_chaotic_loop_is_that_of_its_map() -> None:
    def unrolled(x: torch.Tensor) -> torch.Tensor:
        for _ in range(60):
            x = 3.9 * x * (1 - x)
        return x.sum()

    x = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    (finding,) = [f for f in pullback.audit(unrolled, x).findings if f.code == "chaotic.loop"]
    exponent = float(finding.evidence["exponent"])
    exact = pullback.audit.lyapunov(lambda x: 3.9 * x * (1 - x), x.detach(), steps=60).exponents[0]
    assert exponent == pytest.approx(float(exact), rel=0.1)
    assert finding.evidence["horizon"] == pytest.approx(np.log(1000) / exponent, rel=0.01)


def test_the_state_of_a_step_may_be_a_nesting() -> None:
    def step(state: dict) -> dict:
        return {"x": 4 * state["x"] * (1 - state["x"]), "memory": 0.5 * state["memory"] + state["x"]}

    state = {"x": torch.tensor(0.3, dtype=torch.float64, requires_grad=True), "memory": torch.zeros(()).double()}
    (finding,) = pullback.audit(lambda s: step(s)["memory"], state, step=step).findings
    assert finding.code == "chaotic.step"
    assert finding.evidence["exponent"] == pytest.approx(np.log(2), abs=0.1)
    assert finding.evidence["horizon"] <= 15


def test_a_step_that_refuses_perturbed_states_has_an_exponent_without_horizon() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        if x.abs().max() > 1:
            raise ValueError("outside of the cube")
        return 1 - 2 * x * x

    x = -torch.ones(1, dtype=torch.float64)  # a fixed point on the border: half of the perturbed states are outside
    (finding,) = pullback.audit(lambda x: x.sum(), x, step=step).findings
    assert finding.code == "chaotic.step"
    assert finding.evidence["horizon not measured"] == "outside of the cube"
    assert "horizon" not in finding.evidence


def test_the_first_input_of_a_step_is_a_state() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * x

    with pytest.raises(TypeError, match="step needs a tensor, or a nesting of them"):
        pullback.audit(lambda x: x, 3, step=step)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (torch.nn.functional.hardtanh, "kink.hardtanh"),
        (lambda w: w.clamp(max=1.0), "kink.clamp"),
        (lambda w: w.clamp_min(1.0), "kink.clamp_min"),
    ],
)
def test_bounds_are_kinks_wherever_they_are_written(call, code: str) -> None:
    w = torch.ones(3, requires_grad=True)
    (finding,) = pullback.audit(lambda w: call(w).sum() + w.sum(), w).findings
    assert finding.code == code
    assert finding.evidence["count"] == 3


def test_a_program_that_cannot_be_replayed_says_so() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], 0.1)

    def program(x: torch.Tensor) -> None:
        loss = (weight * x).sum()
        if loss > 0:
            loss = loss * 2
        loss.backward()
        optimizer.step()

    report = pullback.audit(program, torch.ones(2))
    assert any("not run" in note for note in report.notes)
    assert [f.code for f in report.findings] == ["control-flow.branch"]
    assert torch.allclose(weight, torch.full((2,), 0.8))  # one step, not one for each probe


def test_nothing_differentiable_is_a_note() -> None:
    report = pullback.audit(lambda i: i.sum(), torch.arange(3))
    assert any("nothing differentiable" in note for note in report.notes)


def test_every_stop_of_the_demo_is_named_and_relaxed_was_tried_on_it() -> None:
    from pullback.demo.pipeline import NumberReader, ordering_loss

    torch.manual_seed(0)
    images, values = torch.rand(6, 5, 8, 32), torch.randint(0, 9999, (6, 5)).float()
    report = pullback.audit(ordering_loss, NumberReader(), images, values)
    errors = [f for f in report.findings if f.severity == "error"]
    assert {f.code for f in errors} == {"zero.round", "cut.index", "cut.comparison"}
    for finding in errors:
        assert finding.evidence["loss moves with its input"] is True
        assert finding.evidence["relaxed_gradient"] > 0
        assert finding.evidence["relaxed_cosine"] > 2 * finding.evidence["relaxed_cosine_error"]


@pytest.mark.parametrize("seed", range(6))
def test_a_jump_is_told_from_a_kink_whatever_the_weights(seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(12, 4)

    def strong(program: object) -> list[str]:
        report = pullback.audit(program, x)
        return [f.code for f in report.findings if f.severity != "info"]

    assert strong(lambda x: torch.where(net(x) > 0.1, net(x) + 1, net(x)).square().mean()) == ["cut.comparison"]
    assert strong(lambda x: (torch.where(net(x) > 0, net(x), net(x).exp() - 1) - 0.3).square().mean()) == []


def test_a_custom_function_that_cannot_be_checked_alone_is_noted() -> None:
    class OnlySingle(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 2

    report = pullback.audit(lambda x: OnlySingle.apply(x).sum(), torch.ones(3, requires_grad=True))
    assert report.ok
    assert any("OnlySingle" in note and "float32 only" in note for note in report.notes)


def test_parameters_made_while_tracing_are_ordinary_ones() -> None:
    new = nn.Parameter.__new__
    report = pullback.audit(lambda x: nn.Linear(3, 1)(x).sum(), torch.ones(2, 3, requires_grad=True))
    assert report.ok
    assert nn.Parameter.__new__ is new
    assert type(nn.Parameter(torch.ones(2))) is nn.Parameter
