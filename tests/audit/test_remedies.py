"""Remedies: the line that is offered, pasted into the file, runs and brings the gradient."""

from __future__ import annotations

import ast
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import pullback
from pullback.audit.remedy.patch import applied
from pullback.audit.remedy.table import TEMPLATES, example, find, suggest
from pullback.audit.trace import operations as ops
from tests.audit.remedies import lines

TEXT = Path(lines.__file__).read_text(encoding="utf-8")
MASKED = {"masked_attention", "spread_of_equal"}
"""Whose NaN meets a mask further down, so that the norms are finite before and after."""
DRAWN = {n for n, (fn, *_) in lines.LINES.items() if n.startswith("draw")}
OTHER_VALUE = {"dead_units", "nearest_pixels", "softmax_of_one", *DRAWN}
"""Whose rewriting computes another value on purpose: a leak, interpolation, another dimension, other random numbers."""


def _trained(inputs: tuple[Any, ...]) -> list[torch.Tensor]:
    found = [i for i in inputs if isinstance(i, torch.Tensor) and i.requires_grad]
    return found + [p for i in inputs if isinstance(i, torch.nn.Module) for p in i.parameters()]


def _differentiated(fn: Any, inputs: tuple[Any, ...]) -> tuple[float, float]:
    """The value and the norm of the gradient by plain autograd; where there is no derivative, the gradient is 0."""
    torch.manual_seed(5)
    value = fn(*inputs)
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        return float(torch.as_tensor(value)), 0.0
    try:
        gradients = torch.autograd.grad(value.sum(), _trained(inputs), allow_unused=True)
    except RuntimeError:  # floor_divide says that it has no derivative
        return value.item(), 0.0
    return value.item(), float(sum(g.double().square().sum() for g in gradients if g is not None)) ** 0.5


@pytest.fixture
def pasted(tmp_path: Path) -> Iterator[Any]:
    """Import a text as a module."""
    names: list[str] = []

    def load(text: str) -> ModuleType:
        name = f"pasted_{len(names)}_{tmp_path.name}"
        path = tmp_path / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module
        names.append(name)
        exec(compile(text, str(path), "exec"), module.__dict__)
        return module

    yield load
    for name in names:
        del sys.modules[name]


@pytest.mark.parametrize("name", lines.LINES)
def test_the_line_that_is_offered_runs_when_pasted_and_cures(name: str, pasted: Any) -> None:
    fn, make, texts = lines.LINES[name]
    inputs = make()
    torch.manual_seed(5)
    report = pullback.audit(fn, *inputs)
    remedies = [r for f in report.findings for r in f.remedies]
    assert remedies, [str(f) for f in report.findings]
    changes = list(dict.fromkeys(c for r in remedies for c in r.changes))
    text = applied(TEXT, changes)
    wanted = [t.replace("pullback_discrete", "discrete") for t in texts]
    # The file quotes what is wanted of it.
    assert all(text.count(t) > TEXT.count(t) for t in wanted), "\n".join(r.diff for r in remedies)
    before, dead = _differentiated(fn, inputs)
    cured = getattr(pasted(text), name)
    if name == "method_of_a_module":
        inputs = (pasted(text).Selector(), inputs[1])
        inputs[0].load_state_dict(make()[0].state_dict())
    after, alive = _differentiated(cured, inputs)
    assert alive > 0
    assert alive < float("inf")
    assert dead != pytest.approx(alive, rel=1e-6) or name in MASKED
    if name not in OTHER_VALUE and math.isfinite(before):
        assert after == pytest.approx(before, rel=0.1, abs=1e-3)


def _offered(fn: Any, *inputs: Any, **words: Any) -> list[str]:
    return [r.diff for f in pullback.audit(fn, *inputs, **words).findings for r in f.remedies]


def test_nothing_is_offered_where_nothing_is_wrong_or_meant() -> None:
    def right(x: torch.Tensor) -> torch.Tensor:
        return torch.log(x.square() + 1).sum()

    def target(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - (x + y).detach()).square().mean() + x.sum()

    assert _offered(right, lines.trained(3)) == []
    assert _offered(target, lines.trained(3), lines.data(3)) == []


def test_nothing_is_offered_where_no_rewriting_cures() -> None:
    def counted(x: torch.Tensor) -> torch.Tensor:
        # How many values differ has no gradient that any rewriting of this line brings.
        return torch.unique(x).numel() * torch.ones(()) + 0.0 * x.sum()

    def by_dictionary(x: torch.Tensor) -> torch.Tensor:
        table = {0: 1.0, 1: 2.0, 2: 5.0}
        return torch.tensor(table[int(x.argmax())])

    assert _offered(counted, lines.trained(5)) == []
    assert _offered(by_dictionary, lines.trained(3)) == []


def test_nothing_is_offered_for_code_that_is_no_text() -> None:
    scope: dict[str, Any] = {"torch": torch}
    exec("def f(x, t):\n    return t[x.argmax()]", scope)
    report = pullback.audit(scope["f"], lines.trained(3), lines.data(3))
    assert [f.code for f in report.findings] == ["cut.index"]
    assert report.findings[0].remedies == ()


def test_a_trial_leaves_functions_parameters_and_random_numbers_as_they_were() -> None:
    fn, make, _ = lines.LINES["method_of_a_module"]
    inputs = make()
    code, weights = fn.__code__, [p.detach().clone() for p in inputs[0].parameters()]
    forward = lines.Selector.forward.__code__
    names = set(fn.__globals__)
    torch.manual_seed(11)
    report = pullback.audit(fn, *inputs)
    drawn = torch.rand(3)
    torch.manual_seed(11)
    pullback.audit(fn, *inputs, probes="none")
    assert torch.equal(drawn, torch.rand(3))
    assert any(f.remedies for f in report.findings)
    assert (fn.__code__, lines.Selector.forward.__code__) == (code, forward)
    assert set(fn.__globals__) == names
    assert all(torch.equal(a, b) for a, b in zip(weights, inputs[0].parameters(), strict=True))
    assert all(p.grad is None for p in inputs[0].parameters())


def test_relaxed_is_not_offered_to_code_that_is_relaxed() -> None:
    def pick(scores: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return table[scores.argmax().item()]

    scores, table = lines.trained(4), lines.data(4)
    assert not any("relaxed" in text for text in _offered(pick, scores, table, relax=0.1))


def test_numbers_of_a_remedy_are_those_of_the_rewritten_line(pasted: Any) -> None:
    fn, make, _ = lines.LINES["quantised"]
    inputs = make()
    (remedy,) = [r for f in pullback.audit(fn, *inputs).findings for r in f.remedies]
    value, norm = _differentiated(pasted(applied(TEXT, remedy.changes)).quantised, inputs)
    assert remedy.numbers["loss after"] == pytest.approx(value, rel=1e-6)
    gradient = {"name": "inputs[0]", "before": 0.0, "after": pytest.approx(norm, rel=1e-5)}
    assert remedy.numbers["gradients"] == [gradient]
    assert remedy.effect == f"gradient norm of `inputs[0]` 0 -> {norm:.3g}; loss stays the same"


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_example_is_rewritten_to_code_that_parses(name: str) -> None:
    shown = example(TEMPLATES[name])
    new = "\n".join(line[1:] for line in shown.splitlines() if line[0] in " +")
    assert ast.dump(ast.parse(new)) != ast.dump(ast.parse(TEMPLATES[name].example))
    assert any(line.startswith("+") for line in shown.splitlines())


LIBRARIES = {
    "assignment": ("from scipy.optimize import linear_sum_assignment", "rows, columns"),
    "wasserstein_1d": ("from scipy.stats import wasserstein_distance", "distance"),
    "neighbors": ("from sklearn.neighbors import NearestNeighbors", "distances, index"),
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_answers_to_calls_of_libraries_give_what_the_libraries_give(name: str) -> None:
    line, results = LIBRARIES[name]
    draw = torch.Generator().manual_seed(0)
    given = {n: torch.randn(s, generator=draw).double() for n, s in (("cost", (5, 7)), ("y", (9,)))}
    given["x"] = torch.randn((20, 3) if name == "neighbors" else (9,), generator=draw).double()
    shown = example(TEMPLATES[name]).splitlines()
    found = []
    for sign in "-+":
        code = "\n".join(part[1:] for part in shown if part[0] in f" {sign}")
        names: dict[str, Any] = {**given, "torch": torch}
        exec(f"{line}\n{TEMPLATES[name].example if sign == '-' else code}", names)
        found.append([torch.as_tensor(names[n]) for n in results.split(", ")])
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, check_dtype=False)


def test_answers_to_segments_are_the_reductions_of_torch() -> None:
    draw = torch.Generator().manual_seed(0)
    given: dict[str, Any] = {"x": torch.randn(12, 2, generator=draw), "index": torch.arange(12) % 5, "n": 5}
    given |= {"torch": torch, "batch": given["index"]}
    where = given["index"][:, None].expand(12, 2)
    expected = torch.zeros(5, 2).scatter_reduce(0, where, given["x"], "amax", include_self=False)
    for name in ("segments", "pooling"):
        code = "\n".join(part[1:] for part in example(TEMPLATES[name]).splitlines() if part[0] in " +")
        exec(code, given)
        assert torch.equal(given["pooled"], expected)


def test_answers_to_transport_and_diagrams_have_their_marginals_and_bars() -> None:
    draw = torch.Generator().manual_seed(0)
    given: dict[str, Any] = {"x": torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]]), "torch": torch}
    given |= {"cost": torch.rand(3, 4, generator=draw), "a": torch.tensor([0.2, 0.5, 0.3]), "b": torch.full((4,), 0.25)}
    for name in ("sinkhorn", "exact_transport", "persistence"):
        code = "\n".join(part[1:] for part in example(TEMPLATES[name]).splitlines() if part[0] in " +")
        exec(code, given)
    torch.testing.assert_close(given["plan"].sum(1), given["a"])
    torch.testing.assert_close(given["plan"].sum(0), given["b"])
    assert (given["plan"] * given["cost"]).sum() >= given["total"] >= given["cost"].min()
    components, loops = given["diagrams"]
    assert components.tolist() == [[0, 1], [0, 1], [0, 1], [0, math.inf]]
    torch.testing.assert_close(loops, torch.tensor([[1.0, 2**0.5]]))


def test_find_has_an_answer_for_every_operation_that_audit_flags() -> None:
    tables = (ops.INDICES, ops.SPLIT_INDICES, ops.COMPARISONS, ops.CASTS, ops.EXITS, ops.SAMPLERS, ops.STEPS)
    tables += (ops.SATURATING, ops.KINKS, frozenset(ops.SINGULAR), ops.REBUILDS)
    flagged = {name for table in tables for name in table} | {"nms", "one_hot", "grid_sample", "no_grad", "detach"}
    assert [name for name in sorted(flagged) if not find(name)] == []
    assert find("torch.argmax")[0].block == "discrete.argmax"
    assert find("Tensor.round")[0].block == "discrete.round"
    assert find("cut.sampling")
    words = ("hungarian", "linear_sum_assignment", "sinkhorn", "persistence", "knn", "scatter", "global_max_pool")
    assert {find(word)[0].block.partition(".")[0] for word in words} == {"transport", "topology"}
    assert find("nonsense") == []
    assert "argmax" in suggest("argmxa")


def test_the_table_needs_no_torch() -> None:
    program = "import sys, pullback.audit.remedy.table as t; t.example(t.find('argmax')[0]); "
    program += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
