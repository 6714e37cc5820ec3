"""Programs against plain Python: execution, length, source; what their tables and synthesizers promise."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pullback import discrete
from pullback.discrete import Line, Program, ProgramLogits, RelaxedProgram

SIZE = 28
PYTHON: dict[str, Callable[[int, int], int]] = {
    "add": lambda x, y: x + y if x + y < SIZE and max(x, y) < SIZE else SIZE,
    "sub": lambda x, y: x - y if x >= y and max(x, y) < SIZE else SIZE,
    "absdiff": lambda x, y: abs(x - y) if max(x, y) < SIZE else SIZE,
    "max": max,
    "min": lambda x, y: min(x, y) if max(x, y) < SIZE else SIZE,
    "pass": lambda x, y: x,
}
OPERATORS = discrete.integer_operators(SIZE)


def _lines(draw: random.Random, inputs: int, count: int) -> list[tuple[str, int, int]]:
    names = list(PYTHON)
    return [(draw.choice(names), draw.randrange(inputs + t), draw.randrange(inputs + t)) for t in range(count)]


def _plain(lines: list[tuple[str, int, int]], values: list[int]) -> int:
    registers = list(values)
    for name, first, second in lines:
        registers.append(PYTHON[name](registers[first], registers[second]))
    return registers[-1]


def _depends(lines: list[tuple[str, int, int]], inputs: int, t: int) -> set[int]:
    name, first, second = lines[t]
    arguments = [first] if name == "pass" else [first, second]
    return {t}.union(*(_depends(lines, inputs, r - inputs) for r in arguments if r >= inputs))


def _certain(lines: list[tuple[str, int, int]], inputs: int) -> ProgramLogits:
    operators = torch.full((len(lines), 6), -1e4)
    arguments = torch.full((len(lines), 2, inputs + len(lines) - 1), -1e4)
    for t, (name, first, second) in enumerate(lines):
        operators[t, list(PYTHON).index(name)] = 0
        arguments[t, 0, first] = arguments[t, 1, second] = 0
    return ProgramLogits(operators, arguments)


@pytest.mark.parametrize(("inputs", "count"), [(1, 1), (2, 3), (3, 5)])
def test_certain_programs_run_as_plain_python_and_have_the_length_of_what_they_use(inputs: int, count: int) -> None:
    draw = random.Random(count)
    relaxed = RelaxedProgram(inputs, count, OPERATORS)
    for _ in range(40):
        lines, values = _lines(draw, inputs, count), [draw.randrange(SIZE + 1) for _ in range(inputs)]
        logits = _certain(lines, inputs)
        wanted = _plain(lines, values)
        onehot = nn.functional.one_hot(torch.tensor([values]), SIZE + 1).float()
        assert relaxed(onehot, logits)[0].tolist() == nn.functional.one_hot(torch.tensor(wanted), SIZE + 1).tolist()
        (program,) = relaxed.harden(logits)
        assert program.lines == tuple(Line(*line) for line in lines)
        assert int(program(torch.tensor(values))) == wanted
        used = _depends(lines, inputs, count - 1)
        length = sum(lines[t][0] != "pass" for t in used)
        assert program.used == used
        assert (program.length, float(relaxed.expected_length(logits))) == (length, length)


def test_source_is_python_that_computes_the_same() -> None:
    draw = random.Random(3)
    for _ in range(60):
        lines, values = _lines(draw, 3, 5), [draw.randrange(SIZE) for _ in range(3)]
        program = Program(3, tuple(Line(*line) for line in lines), OPERATORS)
        scope: dict[str, Any] = {**PYTHON, **dict(zip("abc", values, strict=True))}
        *named, last = program.to_source("abc").split("; ")
        for line in named:
            exec(line, scope)
        assert eval(last, scope) == _plain(lines, values)
        assert "pass" not in program.to_source()


def test_a_value_that_is_used_twice_is_written_once() -> None:
    lines = [Line("add", 0, 0), *(Line("add", t, t) for t in range(1, 40))]
    source = Program(1, tuple(lines), OPERATORS).to_source("x")
    assert source.startswith("r0 = add(x, x); r1 = add(r0, r0); ")
    assert len(source) < 1500


def test_overflow_is_final_and_tables_without_it_are_closed() -> None:
    for name, table in discrete.integer_operators(5).items():
        assert bool((table[-1] == 5).all() & (table[:, -1] == 5).all()), name
        assert all(int(table[x, y]) == min(PYTHON[name](x, y), 5) for x in range(5) for y in range(5))
    assert discrete.operator_table(min, 3, overflow=False).tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 2]]
    with pytest.raises(ValueError, match=r"fn must stay in 0\.\.2 where there is no overflow symbol, got 3 for 1, 2"):
        discrete.operator_table(lambda x, y: x + y, 3, overflow=False)
    with pytest.raises(TypeError, match="fn must return an integer, got float for 0, 0"):
        discrete.operator_table(lambda x, y: x / (y + 1), 3)


@pytest.mark.parametrize(
    ("operators", "match"),
    [
        ({}, "operators must map at least one name to a table"),
        ({"pass": torch.zeros(2, 2).long()}, "operators must not be called pass"),
        ({"add": torch.zeros(2, 3).long()}, r"operators\['add'\] must be shape \(2, 2\), a square, got shape \(2, 3\)"),
        ({"max": torch.zeros(2, 2).long(), "add": torch.zeros(3, 3).long()}, r"operators\['add'\] must be shape \(2"),
        ({"add": torch.tensor([[0, 1], [1, 2]])}, r"operators\['add'\] must stay in 0\.\.1, got 0\.\.2: a result"),
    ],
)
def test_tables_that_do_not_fit_are_refused_by_name(operators: dict[str, Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RelaxedProgram(2, 1, operators)


def test_what_does_not_fit_a_program_is_refused_by_name() -> None:
    program = RelaxedProgram(2, 2, OPERATORS, batch=(3,))
    values = torch.full((3, 4, 2, 29), 1 / 29)
    with pytest.raises(ValueError, match=r"answers must be in 0\.\.28, got 99 at \[2, 1\]"):
        program.log_likelihood(values, 99 * (torch.arange(12) == 9).long().view(3, 4))
    with pytest.raises(ValueError, match=r"answers must have shape \(3, 4\), got \(1, 4\)"):
        program.log_likelihood(values[:1], torch.zeros(1, 4).long())
    with pytest.raises(ValueError, match=r"logits\.operators must end in shape \(2, 6\)"):
        program(values, ProgramLogits(torch.zeros(2, 5), torch.zeros(2, 2, 3)))
    with pytest.raises(ValueError, match=r"arguments of shape \(2,\)|broadcast"):
        program(values, ProgramLogits(torch.zeros(3, 2, 6), torch.zeros(2, 2, 2, 3)))
    with pytest.raises(ValueError, match="lines must be an integer >= 1"):
        RelaxedProgram(2, 0, OPERATORS)
    (hard, *_) = program.harden()
    with pytest.raises(ValueError, match="values must have 2 inputs"):
        hard(torch.zeros(5, 3).long())
    with pytest.raises(ValueError, match=r"values must be in 0\.\.28, got 29"):
        hard(torch.tensor([0, 29]))
    with pytest.raises(ValueError, match="names must be 2, got 3"):
        hard.to_source("abc")


def test_impossible_answers_have_a_finite_likelihood_and_gradient() -> None:
    program = RelaxedProgram(2, 1, {"max": discrete.operator_table(max, 3, overflow=False)})
    values = nn.functional.one_hot(torch.tensor([[0, 0]]), 3).float().requires_grad_()
    likelihood = program.log_likelihood(values, torch.tensor([2]))
    (slope,) = torch.autograd.grad(likelihood.sum(), values)
    assert likelihood.item() < -80
    assert slope.isfinite().all()


def test_a_synthesizer_sees_a_set_and_one_network_serves_all_tasks() -> None:
    program = RelaxedProgram(2, 1, discrete.integer_operators(11))
    synthesizer = discrete.AmortizedSynthesizer(program, 32, generator=torch.Generator().manual_seed(0))
    x = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    values = nn.functional.one_hot(x, 12).float().expand(2, -1, -1, -1)
    answers = torch.stack([x.sum(-1), x.amax(-1)])
    order = torch.randperm(36, generator=torch.Generator().manual_seed(1))
    shuffled = synthesizer(values[:, order], answers[:, order])
    for mine, other in zip(synthesizer(values, answers), shuffled, strict=True):
        torch.testing.assert_close(mine, other)
    optimizer = torch.optim.Adam(synthesizer.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        (-program.log_likelihood(values, answers, synthesizer(values, answers)).mean()).backward()
        optimizer.step()
    for found, truth in zip(program.harden(synthesizer(values, answers)), answers, strict=True):
        assert bool((found(x) == truth).all())


def test_all_programs_are_there_once_and_use_every_line() -> None:
    operators = {name: OPERATORS[name] for name in ("add", "max")}
    programs = list(discrete.enumerate_programs(2, 3, operators))
    assert len({program.lines for program in programs}) == len(programs)
    every = itertools.product(*(itertools.product(operators, range(2 + t), range(2 + t)) for t in range(3)))
    assert len(programs) == sum(len(_depends(list(lines), 2, 2)) == 3 for lines in every)
    with pytest.raises(ValueError, match="lines must be an integer >= 1"):
        next(discrete.enumerate_programs(2, 0, operators))
