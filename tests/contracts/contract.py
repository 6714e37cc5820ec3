"""The contract of a block: what it claims, as data. ``laws.py`` puts every block through the same laws.

An entry is one :class:`Contract` in the list ``CONTRACTS`` of ``tests/contracts/<family>/<topic>.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


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
        batched: ``block`` on a stack of inputs equals the stack of ``block`` on each (first argument gets the batch).
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
    batched: bool = True
    gradcheck: bool = True
    gradgradcheck: bool = True
    forward_mode: bool = True
    vmap: bool = True
    compile: bool = True
    half: bool = True
    half_tolerance: float = 3e-2
    why: str = ""

    def __post_init__(self) -> None:
        laws = (self.gradcheck, self.gradgradcheck, self.forward_mode, self.vmap, self.compile, self.half, self.batched)
        if not all(laws) and not self.why:
            raise ValueError(f"{self.name}: a law that is switched off needs a reason in `why`")
