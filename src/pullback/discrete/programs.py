"""Straight-line programs with a gradient: every line a mixture of operators and arguments, run on distributions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_broadcast, check_floating, check_integer, check_same_dtype, check_tensor
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int, Tensor
from pullback.discrete.operator_tables import PASS, check_symbols, check_tables
from pullback.discrete.straight_line import Line, Program

__all__ = ["AmortizedSynthesizer", "ProgramLogits", "RelaxedProgram"]


class ProgramLogits(NamedTuple):
    """What a relaxed program is made of; softmax turns both into probabilities.

    Attributes:
        operators: ``[*batch, lines, operators + 1]``; the last one passes the first argument on.
        arguments: ``[*batch, lines, 2, inputs + lines - 1]`` of the registers, which are the inputs and the lines but
            the last; line ``t`` sees the first ``inputs + t`` of them, whatever the others are.
    """

    operators: Float[Tensor, "*batch lines choices"]
    arguments: Float[Tensor, "*batch lines 2 registers"]


class RelaxedProgram(nn.Module):
    r"""Programs of ``T`` lines whose operators and arguments are learned by gradient descent.

    A value is a distribution over a finite set of symbols, an operator a table ``T_o[x, y]`` of results. Line ``t`` has
    probabilities ``p_t`` of its operator (or of passing its first argument on) and of its two arguments among the
    inputs and the lines before:

    .. math:: u = \sum_r p_{t1}(r) v_r, \quad w = \sum_r p_{t2}(r) v_r, \qquad
              v_t(z) = \sum_o p_t(o) \sum_{x, y:\, T_o[x, y] = z} u(x) w(y) + p_t(\mathrm{pass}) \, u(z)

    The last line is the output. Registers count as independent: exact for certain values, an approximation where an
    uncertain one is used twice. Costs ``O(examples * symbols^3)`` a line and program.

    Args:
        inputs: of a program, >= 1.
        lines: ``T >= 1``; more than needed make the search easier, and those that are left over pass values on.
        operators: a table of integers in ``0 .. symbols - 1``, ``[symbols, symbols]``, for each name; see
            :func:`integer_operators`.
        batch: shape of independent programs: tasks, restarts.
        generator: of the initial logits, normal with standard deviation 1/2; torch's default one if ``None``.

    Attributes:
        operator_logits, argument_logits: see :class:`ProgramLogits`.

    Raises:
        TypeError: a table does not hold integers, or a number is no integer.
        ValueError: a number is out of range, there is no operator, or a table is not square, of another size, or
            leaves the domain.

    Example:
        >>> from pullback.discrete import integer_operators
        >>> program = RelaxedProgram(2, 1, integer_operators(19), generator=torch.Generator().manual_seed(0))
        >>> x, y = torch.arange(100) // 10, torch.arange(100) % 10
        >>> values = nn.functional.one_hot(torch.stack([x, y], -1), 20).float()
        >>> optimizer = torch.optim.Adam(program.parameters(), lr=0.1)
        >>> for _ in range(60):
        ...     optimizer.zero_grad()
        ...     (-program.log_likelihood(values, x + y).mean()).backward()
        ...     optimizer.step()
        >>> found = program.harden()[0]
        >>> bool((found(torch.stack([x, y], -1)) == x + y).all()), found.length
        (True, 1)

    References:
        Tang, Ellis (2023), From perception to programs: regularize, overparameterize, and amortize. Gaunt et al.
        (2016), TerpreT: a probabilistic programming language for program induction.
    """

    tables: Tensor

    def __init__(
        self,
        inputs: int,
        lines: int,
        operators: Mapping[str, Tensor],
        *,
        batch: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.inputs = check_integer("inputs", inputs, 1)
        self.lines = check_integer("lines", lines, 1)
        self.symbols = check_tables(operators)
        self.batch = tuple(check_integer("batch", size, 1) for size in batch)
        self.operators = dict(operators)
        tables = torch.stack([nn.functional.one_hot(table.long(), self.symbols) for table in operators.values()])
        self.register_buffer("tables", tables.to(torch.get_default_dtype()), persistent=False)
        shapes = self._shapes(self.batch)
        draws = (torch.randn(shape, generator=generator, device=_device(generator)) for shape in shapes)
        self.operator_logits, self.argument_logits = (nn.Parameter(0.5 * draw.to(self.tables)) for draw in draws)

    @property
    def logits(self) -> ProgramLogits:
        """The parameters, as :meth:`forward` takes them."""
        return ProgramLogits(self.operator_logits, self.argument_logits)

    def forward(
        self, values: Float[Tensor, "*#batch examples inputs symbols"], logits: ProgramLogits | None = None
    ) -> Float[Tensor, "*#batch examples symbols"]:
        """Run every program on its examples.

        Args:
            values: ``[*batch, examples, inputs, symbols]`` distributions of the inputs; batches broadcast with those of
                the logits.
            logits: in place of the parameters, such as those of an :class:`AmortizedSynthesizer`; any batch.

        Returns:
            ``[*batch, examples, symbols]`` the distribution of each output.

        Raises:
            TypeError: a tensor is not floating, or they have different dtypes.
            ValueError: numbers of inputs, symbols or choices are not the program's, or batches do not broadcast.
        """
        operators, arguments = self._checked(values, logits)
        batch = check_broadcast(
            values=values.shape[:-3], operators=operators.shape[:-2], arguments=arguments.shape[:-3]
        )
        examples = values.shape[-3]
        # Registers come first, so that a choice of arguments is one product of matrices.
        registers = values.transpose(-2, -3).expand(*batch, -1, -1, -1).flatten(-2)
        choose = torch.softmax(operators, -1)
        flat = self.tables.flatten(1).to(values)
        for t in range(self.lines):
            seen = torch.softmax(arguments[..., t, :, : self.inputs + t], -1)
            u, w = (seen @ registers).unflatten(-1, (examples, self.symbols)).unbind(-3)
            pairs = (u.unsqueeze(-1) * w.unsqueeze(-2)).flatten(-2)
            table = (choose[..., t, :-1] @ flat).unflatten(-1, (self.symbols**2, self.symbols))
            line = pairs @ table + choose[..., t, -1, None, None] * u
            registers = torch.cat([registers, line.flatten(-2).unsqueeze(-2)], -2)
        return line

    def log_likelihood(
        self,
        values: Float[Tensor, "*#batch examples inputs symbols"],
        answers: Int[Tensor, "*#batch examples"],
        logits: ProgramLogits | None = None,
    ) -> Float[Tensor, "*#batch examples"]:
        """Return the log probability of the answer of each example; impossible ones get that of the smallest number.

        Args:
            values, logits: as in :meth:`forward`.
            answers: ``[*batch, examples]`` symbols.

        Raises:
            TypeError, ValueError: as in :meth:`forward`; or ``answers`` does not hold integers, has another shape, or
                is outside of the domain (the first program is named).
        """
        outputs = self(values, logits)
        if check_tensor("answers", answers).shape != outputs.shape[:-1]:
            raise ValueError(f"answers must have shape {tuple(outputs.shape[:-1])}, got {tuple(answers.shape)}")
        check_symbols("answers", answers, self.symbols)
        picked = outputs.gather(-1, answers.long().unsqueeze(-1)).squeeze(-1)
        return picked.clamp(min=torch.finfo(picked.dtype).tiny).log()

    def expected_length(self, logits: ProgramLogits | None = None) -> Float[Tensor, "*batch"]:
        r"""Return how many lines the output is expected to depend on, without those that pass an argument on.

        ``used_T = 1``, ``used_t = 1 - prod_{r > t} (1 - used_r hit_rt)`` where line ``r`` takes ``t`` as its first
        argument, or as its second and does not pass: ``hit_rt = p_r1(t) + (1 - p_r1(t)) p_r2(t) (1 - p_r(pass))``. The
        length is ``sum_t used_t (1 - p_t(pass))``: exact for certain programs, otherwise as if uses were independent.

        Args:
            logits: as in :meth:`forward`.

        Returns:
            ``[*batch]`` in ``[0, lines]``.

        Raises:
            TypeError, ValueError: as in :meth:`forward`.
        """
        operators, arguments = self._checked(None, logits)
        batch = check_broadcast(operators=operators.shape[:-2], arguments=arguments.shape[:-3])
        acts = (1 - torch.softmax(operators, -1)[..., -1]).expand(*batch, -1)
        used = [torch.ones_like(acts[..., 0])]
        hits: list[list[Tensor]] = []
        for r in range(self.lines - 1, 0, -1):
            seen = torch.softmax(arguments[..., r, :, : self.inputs + r], -1)[..., self.inputs :]
            first, second = seen.unbind(-2)
            hit = first + (1 - first) * second * acts[..., r, None]
            hits.append(list(hit.unbind(-1)))
            t = r - 1
            missed = torch.stack([1 - u * h[t] for u, h in zip(used, hits, strict=True)], -1).prod(-1)
            used.append(1 - missed)
        return (torch.stack(used[::-1], -1) * acts).sum(-1)

    @torch.no_grad()
    def harden(self, logits: ProgramLogits | None = None) -> tuple[Program, ...]:
        """Return the most likely program of each entry of the batch, in its order.

        Args:
            logits: as in :meth:`forward`.

        Raises:
            TypeError, ValueError: as in :meth:`forward`.
        """
        operators, arguments = self._checked(None, logits)
        names = [*self.operators, PASS]
        batch = check_broadcast(operators=operators.shape[:-2], arguments=arguments.shape[:-3])
        chosen = operators.argmax(-1).expand(*batch, -1).reshape(-1, self.lines).tolist()
        seen = arguments.expand(*batch, -1, -1, -1).reshape(-1, *arguments.shape[-3:])
        places = [seen[:, t, :, : self.inputs + t].argmax(-1).tolist() for t in range(self.lines)]
        return tuple(
            Program(
                self.inputs,
                tuple(Line(names[choice], *places[t][number]) for t, choice in enumerate(row)),
                self.operators,
            )
            for number, row in enumerate(chosen)
        )

    def _shapes(self, batch: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        registers = self.inputs + self.lines - 1
        return (*batch, self.lines, len(self.operators) + 1), (*batch, self.lines, 2, registers)

    def _checked(self, values: Tensor | None, logits: ProgramLogits | None) -> ProgramLogits:
        given = self.logits if logits is None else ProgramLogits(*logits)
        for name, logit, shape in zip(given._fields, given, self._shapes(()), strict=True):
            if check_floating(f"logits.{name}", logit).shape[-len(shape) :] != shape:
                raise ValueError(f"logits.{name} must end in shape {shape}, got {tuple(logit.shape)}")
        check_broadcast(operators=given.operators.shape[:-2], arguments=given.arguments.shape[:-3])
        check_same_dtype(operators=given.operators, arguments=given.arguments)
        if values is not None:
            if check_floating("values", values).ndim < 3 or values.shape[-2:] != (self.inputs, self.symbols):
                wanted = f"[*batch, examples, {self.inputs}, {self.symbols}]"
                raise ValueError(f"values must have shape {wanted}, got {tuple(values.shape)}")
            check_same_dtype(values=values, logits=given.operators)
        return given


class AmortizedSynthesizer(nn.Module):
    r"""A network from the examples of a task to the logits of its program.

    A task is a set: each example, the distributions of its inputs and its answer, is encoded by a hidden layer, and the
    mean of the codes goes through a second one to the logits.

    Args:
        program: whose logits are predicted; its own parameters are not used.
        hidden: units of both layers, >= 1.
        generator: of the initial weights; torch's default one if ``None``.

    Raises:
        TypeError: ``program`` is no :class:`RelaxedProgram`, ``hidden`` no integer.
        ValueError: ``hidden`` < 1.

    Example:
        >>> from pullback.discrete import integer_operators
        >>> program = RelaxedProgram(2, 3, integer_operators(19))
        >>> synthesizer = AmortizedSynthesizer(program, 16)
        >>> values, answers = torch.full((7, 5, 2, 20), 0.05), torch.zeros(7, 5, dtype=torch.long)
        >>> logits = synthesizer(values, answers)
        >>> logits.operators.shape, logits.arguments.shape, program(values, logits).shape
        (torch.Size([7, 3, 6]), torch.Size([7, 3, 2, 4]), torch.Size([7, 5, 20]))

    References:
        Tang, Ellis (2023), From perception to programs: regularize, overparameterize, and amortize. Zaheer et al.
        (2017), Deep sets, equation 2.
    """

    def __init__(self, program: RelaxedProgram, hidden: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not isinstance(program, RelaxedProgram):
            raise TypeError(f"program must be a RelaxedProgram, got {type(program).__name__}")
        check_integer("hidden", hidden, 1)
        self.inputs, self.symbols = program.inputs, program.symbols
        self.shapes = program._shapes(())
        self.encode = _linear((self.inputs + 1) * self.symbols, hidden, generator)
        self.combine = _linear(hidden, hidden, generator)
        self.decode = _linear(hidden, sum(math.prod(shape) for shape in self.shapes), generator)

    def forward(
        self, values: Float[Tensor, "*#batch examples inputs symbols"], answers: Int[Tensor, "*#batch examples"]
    ) -> ProgramLogits:
        """Return the logits of each task; the order of its examples does not matter.

        Args:
            values: ``[*batch, examples, inputs, symbols]`` distributions of the inputs, at least one example.
            answers: ``[*batch, examples]`` symbols.

        Raises:
            TypeError: ``values`` is not floating, ``answers`` does not hold integers.
            ValueError: shapes do not fit, or an answer is outside of the domain (the first task is named).
        """
        shape = check_floating("values", values).shape
        if values.ndim < 3 or shape[-2:] != (self.inputs, self.symbols) or not shape[-3]:
            wanted = f"[*batch, examples >= 1, {self.inputs}, {self.symbols}]"
            raise ValueError(f"values must have shape {wanted}, got {tuple(shape)}")
        if check_tensor("answers", answers).shape != shape[:-2]:
            raise ValueError(f"answers must have shape {tuple(shape[:-2])}, got {tuple(answers.shape)}")
        check_symbols("answers", answers, self.symbols)
        given = nn.functional.one_hot(answers.long(), self.symbols).to(values)
        codes = torch.relu(self.encode(torch.cat([values.flatten(-2), given], -1)))
        flat = self.decode(torch.relu(self.combine(codes.mean(-2))))
        parts = flat.split([math.prod(part) for part in self.shapes], -1)
        return ProgramLogits(*(part.unflatten(-1, to) for part, to in zip(parts, self.shapes, strict=True)))


def _linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    if generator is not None:
        for parameter in layer.parameters():
            draws = torch.rand(parameter.shape, generator=generator, device=drawing_device(generator, parameter))
            parameter.data.copy_(inputs**-0.5 * (2 * draws.to(parameter) - 1))
    return layer


def _device(generator: torch.Generator | None) -> torch.device | None:
    return None if generator is None else generator.device
