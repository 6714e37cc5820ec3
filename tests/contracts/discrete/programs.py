"""Contracts of relaxed programs: against loops over lines, registers and symbols."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Exempt, Module

_OPERATORS = {
    "max": discrete.operator_table(max, 3, overflow=False),
    "sub": discrete.operator_table(lambda x, y: x - y, 2),
}
_THREE_LINES = discrete.RelaxedProgram(2, 3, _OPERATORS)


def _program(g: torch.Generator) -> discrete.RelaxedProgram:
    return discrete.RelaxedProgram(2, 2, _OPERATORS, batch=(2,), generator=g)


def _scores(g: torch.Generator) -> list[Call]:
    """Two programs, two examples, two inputs, three symbols."""
    return [Call((torch.randn(2, 2, 2, 3, generator=g, dtype=torch.float64),))]


def _run(program: Any, x: Tensor) -> Tensor:
    return program(torch.softmax(x, -1) if x.is_floating_point() else x)


def _by_loops(x: Tensor) -> Tensor:
    """Every example of every program by itself, every pair of symbols in turn."""
    program = _program(torch.Generator().manual_seed(0)).double()
    operators, arguments = (logits.detach() for logits in program.logits)
    out = torch.zeros(2, 2, 3, dtype=torch.float64)
    for b, e in itertools.product(range(2), range(2)):
        registers = list(torch.softmax(x[b, e], -1))
        for t in range(2):
            p = torch.softmax(operators[b, t], -1)
            u, w = (sum(q * v for q, v in zip(a, registers, strict=True)) for a in _choices(arguments[b, t], 2 + t))
            v = p[2] * u
            for (o, table), i, j in itertools.product(enumerate(_OPERATORS.values()), range(3), range(3)):
                v[table[i, j]] += p[o] * u[i] * w[j]
            registers.append(v)
        out[b, e] = registers[-1]
    return out


def _choices(logits: Tensor, seen: int) -> Tensor:
    return torch.softmax(logits[:, :seen], -1)


def _answers(x: Tensor) -> Tensor:
    return torch.tensor([[0, 2], [1, 1]], device=x.device).expand(x.shape[:-2])


def _length(operators: Tensor, arguments: Tensor) -> Tensor:
    return _THREE_LINES.expected_length(discrete.ProgramLogits(operators, arguments))


def _logits(g: torch.Generator) -> list[Call]:
    return [
        Call(
            (
                torch.randn(*batch, 3, 3, generator=g, dtype=torch.float64),
                torch.randn(*batch, 3, 2, 4, generator=g, dtype=torch.float64),
            )
        )
        for batch in ((), (2,))
    ]


def _length_by_hand(operators: Tensor, arguments: Tensor) -> Tensor:
    """The formula for three lines, written out."""
    acts = 1 - torch.softmax(operators, -1)[..., 2]
    second, third = (torch.softmax(arguments[..., t, :, : 2 + t], -1) for t in (1, 2))

    def hit(seen: Tensor, place: int, act: Tensor) -> Tensor:
        return 1 - (1 - seen[..., 0, place]) * (1 - seen[..., 1, place] * act)

    used_1 = hit(third, 3, acts[..., 2])
    used_0 = 1 - (1 - hit(third, 2, acts[..., 2])) * (1 - used_1 * hit(second, 2, acts[..., 1]))
    return acts[..., 2] + used_1 * acts[..., 1] + used_0 * acts[..., 0]


CONTRACTS = [
    Module(
        "discrete.RelaxedProgram",
        _run,
        _scores,
        build=_program,
        reference=_by_loops,
        bad=[
            Bad((torch.ones(2, 4, 3, 3),), {}, ValueError, r"values must have shape \[\*batch, examples, 2, 3\], got"),
            Bad((torch.ones(2, 4, 2, 4),), {}, ValueError, r"values must have shape \[\*batch, examples, 2, 3\], got"),
            Bad((torch.ones(2, 3),), {}, ValueError, r"values must have shape \[\*batch, examples, 2, 3\], got"),
            Bad((torch.ones(3, 4, 2, 3),), {}, ValueError, "values"),
        ],
    ),
    Module(
        "discrete.RelaxedProgram[log_likelihood]",
        lambda program, x: program.log_likelihood(torch.softmax(x, -1), _answers(x)),
        _scores,
        build=_program,
        reference=lambda x: _by_loops(x).gather(-1, _answers(x)[..., None])[..., 0].log(),
        large=(),
        why="the logarithm of what underflows is that of the smallest number of the dtype",
    ),
    Contract("discrete.RelaxedProgram[expected_length]", _length, _logits, reference=_length_by_hand, large=(0, 1)),
    Module(
        "discrete.AmortizedSynthesizer",
        lambda synthesizer, x: tuple(synthesizer(torch.softmax(x, -1), _answers(x))),
        _scores,
        build=lambda g: discrete.AmortizedSynthesizer(discrete.RelaxedProgram(2, 2, _OPERATORS), 4, generator=g),
        bad=[
            Bad((torch.ones(2, 2, 3, 3),), {}, ValueError, r"values must have shape \[\*batch, examples >= 1, 2, 3\]")
        ],
    ),
    Exempt("discrete.operator_table", "takes a function of integers", "discrete/test_programs.py"),
    Exempt("discrete.integer_operators", "takes a size", "discrete/test_programs.py"),
    Exempt("discrete.enumerate_programs", "yields programs", "discrete/test_programs.py"),
    Exempt("discrete.Program", "made by RelaxedProgram.harden, and takes integers", "discrete/test_programs.py"),
]
