"""The contract of a public name: what it claims, as data. ``laws_*.py`` put every entry through the laws.

A table is the list ``CONTRACTS`` of ``tests/contracts/<family>/<topic>.py``. What a name is decides its kind of entry:

=========================================================  =====================================================
a function from tensors to tensors                          :class:`Contract`
the same, that looks at its input and is not differentiated  :class:`Measurement` (a metric, a predicate, a probe)
a function that takes or returns functions                  :class:`HigherOrder`
an ``nn.Module``                                            :class:`Module`
a learner or a search: data in, a model or a graph out      :class:`Learner`
an optimizer of ``pullback.optim``                          :class:`Optimizer`
a result (``NamedTuple``, dataclass), a constant            none: ``test_completeness.py`` looks at it by itself
what none of them fits                                      :class:`Exempt`, with the reason and the file that tests it
=========================================================  =====================================================
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

DEVICE = torch.device(os.environ.get("PULLBACK_TEST_DEVICE", "cpu"))
"""Where the laws run the blocks (``make device-check``); references stay on the CPU."""


@dataclass(frozen=True)
class Call:
    """Arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bad:
    """A call that must raise ``error`` with a message matching the regular expression ``match``."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    error: type[Exception]
    match: str


@dataclass(frozen=True)
class Edges:
    """How a block is called with one tensor of any length, and what the hard operation makes of it.

    The laws of edges go through every method of the block, its hard form and its hard limit. One entry of a name,
    whose ``block`` passes options on, states them.

    Attributes:
        hard: the hard operation, of ``x``, or of ``x`` and ``dim`` where the block works along a dimension. Its shape
            is the block's; its values are those of a single entry; where it is NaN at an infinity the block may be.
        args: from ``x`` to the arguments of the call (default: ``x`` alone); ``dim`` is added where the block has it.
        words: the same for keyword arguments.
        along: works along a dimension, in which a single entry leaves nothing to choose.
        domain: from any numbers to ones that the block takes, such as ``torch.sigmoid`` for probabilities.
        empty: how the message begins with which no entries along that dimension are refused. ``None`` where the
            result has the shape of the hard operation's.
        refuses: the rows with infinities that are refused, and the message.
        nan: ``(x, options)``, whether NaN is the documented answer.
        soft_single: ``(x)``, the exact answer to a single entry where the soft one is not the hard one.
        place: of ``x`` among the arguments.
        outputs: picks the tensors of the result that have the hard operation's shape (default: all).
    """

    hard: Callable[..., Tensor]
    args: Callable[[Tensor], tuple[Any, ...]] = lambda x: (x,)
    words: Callable[[Tensor], dict[str, Any]] = lambda x: {}
    along: bool = False
    domain: Callable[[Tensor], Tensor] = lambda x: x
    empty: str | None = None
    refuses: tuple[Callable[[Tensor], bool], str] | None = None
    nan: Callable[[Tensor, Mapping[str, Any]], bool] | None = None
    soft_single: Callable[[Tensor], Tensor] | None = None
    place: int = 0
    outputs: Callable[[Any], Tensor | tuple[Tensor, ...]] | None = None


@dataclass(frozen=True)
class Contract:
    """What one block claims.

    Attributes:
        name: ``family.block`` or ``family.block[variant]``.
        block: the callable; random blocks are wrapped so that they are deterministic (a fresh seeded generator a call).
        samples: builds calls from a generator; floating tensors among the positional arguments are float64 and
            differentiable. Small (gradcheck runs on each).
        reference: same arguments, the independent truth (closed form, brute force, scipy); compared at ``tolerance``.
        hard: same arguments without the softness, the hard operation; ``block(*args, **soft)`` must tend to it.
        soft: keyword arguments that make the block (almost) hard, such as ``{"temperature": 1e-8}``.
        bad: calls that must be refused by name.
        outputs: picks the differentiable tensors of a result (default: the result itself).
        scalars: keyword to a value inside of its range, for each that may be a number or a tensor without dimensions
            that is differentiated, such as ``{"temperature": 0.5}``.
        large: positions of the arguments that may have any finite size: the block is right at 1e4, 1e8 and the largest
            number of float32, float16 and bfloat16. ``()`` needs a ``why``.
        large_limit: up to which size, where the result overflows by nature beyond; needs a ``why``.
        edges: how ties, infinities, no entries and a single one go in: one entry of each name in ``discrete``.
        infinite: whether infinity is an answer, as documented, to an input of ordinary size. NaN never is,
            but where ``undefined`` says so.
        undefined: same arguments, the entries of the value for which NaN is the documented answer; gradients are
            finite there too.
        batched: ``block`` on a stack of inputs equals the stack of ``block`` on each (first argument gets the batch).
        layouts: the result depends on values alone: any strides, expanded and lazily negated inputs.
        gradcheck, gradgradcheck, forward_mode, vmap, compile, half: the laws that hold. ``False`` needs a ``why``.
        why: reason for every law that is switched off.
    """

    name: str
    block: Callable[..., Any]
    samples: Callable[[torch.Generator], Sequence[Call]]
    reference: Callable[..., Any] | None = None
    tolerance: float = 1e-8
    hard: Callable[..., Any] | None = None
    soft: dict[str, Any] = field(default_factory=lambda: {"temperature": 1e-8})
    hard_tolerance: float = 1e-5
    bad: Sequence[Bad] = ()
    outputs: Callable[[Any], Tensor | tuple[Tensor, ...]] = lambda result: result
    scalars: Mapping[str, float] = field(default_factory=dict)
    large: Sequence[int] = (0,)
    large_limit: float = math.inf
    large_tolerance: float = 1e-4
    edges: Edges | None = None
    infinite: bool = False
    undefined: Callable[..., Tensor] | None = None
    batched: bool = True
    layouts: bool = True
    gradcheck: bool = True
    gradgradcheck: bool = True
    forward_mode: bool = True
    vmap: bool = True
    compile: bool = True
    half: bool = True
    half_tolerance: float = 3e-2
    why: str = ""

    def __post_init__(self) -> None:
        laws = (self.gradcheck, self.gradgradcheck, self.forward_mode, self.vmap, self.compile, self.half)
        everywhere = self.large and math.isinf(self.large_limit)
        if not all((*laws, self.batched, self.layouts, everywhere)) and not self.why:
            raise ValueError(f"{self.name}: a law that is switched off needs a reason in `why`")

    def prepare(self) -> None:
        """Make what cannot be made inside of a transform."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Call the block as the laws do."""
        return self.block(*args, **kwargs)


@dataclass(frozen=True)
class Measurement(Contract):
    """What looks at its input and is not differentiated: equal to its reference, the same twice, at any layout."""

    batched: bool = False
    gradcheck: bool = False
    gradgradcheck: bool = False
    forward_mode: bool = False
    vmap: bool = False
    compile: bool = False
    half: bool = False
    large: Sequence[int] = ()
    why: str = "a measurement: it is not differentiated"


@dataclass(frozen=True)
class HigherOrder(Contract):
    """A function that takes functions: ``block(given, *args, **kwargs)`` hands it ``given`` and returns tensors.

    On top of the laws of a block: an error that ``given`` raises reaches the caller as it is; a ``partial``, an object
    with ``__call__`` and an ``nn.Module`` serve as well as a function; what cannot be called is refused by name.

    Attributes:
        given: the function of a user, on the samples.
        argument: the name of the argument that ``given`` is, as the refusal says it.
    """

    given: Callable[..., Any] = lambda *args: args
    argument: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.argument:
            raise ValueError(f"{self.name}: name the argument that the function is")

    def run(self, *args: Any, **kwargs: Any) -> Any:
        return self.block(self.given, *args, **kwargs)


@dataclass(frozen=True)
class Module(Contract):
    """An ``nn.Module``: ``block(module, *args, **kwargs)`` uses it and returns tensors.

    On top of the laws of a block, which go through its inputs: the same generator gives the same parameters, every
    parameter gets a finite gradient, a state that is saved and loaded gives the same values, dtype follows the module.

    Attributes:
        build: makes the module from a seeded generator.
        idle: names of parameters that ``block`` does not use.
    """

    build: Callable[[torch.Generator], nn.Module] = lambda generator: nn.Identity()
    idle: Sequence[str] = ()

    def new(self, seed: int = 0) -> nn.Module:
        return self.build(torch.Generator().manual_seed(seed))

    def prepare(self) -> None:
        _ = self.modules

    @cached_property
    def modules(self) -> dict[tuple[str, torch.dtype], nn.Module]:
        """Made beforehand: a module cannot be moved inside of a transform, or would keep tensors of it."""
        dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        devices = {"cpu", DEVICE.type}
        return {(device, dtype): self.new().to(device, dtype) for device in devices for dtype in dtypes}

    def run(self, *args: Any, **kwargs: Any) -> Any:
        first = next(a for a in args if isinstance(a, Tensor) and a.is_floating_point())
        return self.block(self.modules[first.device.type, first.dtype], *args, **kwargs)


@dataclass(frozen=True)
class Learner:
    """A learner or a search: data in, an answer out.

    Laws: the same generator gives the same answer, bit for bit; torch's global generator and the data stay as they
    are; the order of the samples does not matter; a planted answer is found; on every set the answer is finite or
    :class:`~pullback.core.errors.ConvergenceError` says that there is none; bad input is refused by name.

    Attributes:
        name: ``family.learner`` or ``family.learner[variant]``.
        learn: from data and a generator (unused where nothing is random) to a result.
        answer: picks a tensor of the result: weights, an order, a graph.
        planted: from a generator to (data, truth): an easy problem.
        recovers: whether an answer is the truth, as the learner promises it.
        sets: small sets, hard ones and degenerate ones too, on which nothing may come out non-finite.
        permute: reorders the samples of the data (default: the rows of a tensor). ``None`` where the data has no
            order, with a ``why``.
        tolerance: of the answers to reordered samples.
        bad: calls of ``learn`` that must be refused by name.
        why: reason for a law that is switched off.
    """

    name: str
    learn: Callable[[Any, torch.Generator], Any]
    answer: Callable[[Any], Tensor]
    planted: Callable[[torch.Generator], tuple[Any, Any]]
    recovers: Callable[[Tensor, Any], bool]
    sets: Callable[[torch.Generator], Sequence[Any]]
    bad: Sequence[Bad]
    permute: Callable[[Any, Tensor], Any] | None = lambda data, order: data[order]
    tolerance: float = 1e-5
    why: str = ""

    def __post_init__(self) -> None:
        if self.permute is None and not self.why:
            raise ValueError(f"{self.name}: a law that is switched off needs a reason in `why`")

    def run(self, *args: Any, **kwargs: Any) -> Any:
        return self.learn(*args, **kwargs)


@dataclass(frozen=True)
class Optimizer:
    """An optimizer with the interface of ``torch.optim`` and a twin by ``pullback.optim.functional``.

    Laws: fast loops equal the plain rule; a saved state goes on to the bit, and follows the dtype of its parameters;
    groups, schedulers and closures work as torch's; complex parameters are pairs of real ones; sparse gradients and
    options out of range are refused by name; the twin takes the same steps and passes first and second derivatives, of
    its step size too; a compiled step is the same.

    Attributes:
        name: ``optim.Optimizer`` or ``optim.Optimizer[variant]``.
        kind: the class.
        options: of every instance, ``lr`` among them.
        bad: calls ``build(params, **options)`` that must be refused by name.
    """

    name: str
    kind: type[torch.optim.Optimizer]
    options: Mapping[str, Any]
    bad: Sequence[Bad] = ()

    def build(self, params: Any, **options: Any) -> Any:
        """An optimizer of ``params``."""
        return self.kind(params, **{**self.options, **options})

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """As the law of bad input calls it."""
        return self.build(*args, **kwargs)


@dataclass(frozen=True)
class Exempt:
    """A public name without an entry of another kind: ``why``, and the file of ``tests`` that tests it instead."""

    name: str
    why: str
    tested: str
    bad: Sequence[Bad] = ()
