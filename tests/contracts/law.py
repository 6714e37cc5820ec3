"""What a law is, and how laws call what a table describes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from tests.contracts.contract import DEVICE, Call, Contract


@dataclass(frozen=True)
class Law:
    """A test and the entries that it holds for: ``cases`` picks (name, arguments) from the entries of a table."""

    test: Callable[..., None]
    cases: Callable[[Sequence[Any]], list[tuple[str, tuple[Any, ...]]]]


LAWS: dict[str, Law] = {}
"""Name of a law to the law; ``laws_*.py`` fill it, ``conftest.py`` makes every table go through it."""


NONDETERMINISM = 0.0 if DEVICE.type == "cpu" else 1e-9
"""How far two backward passes may differ: on a GPU, sums of scattered terms are added in any order."""


def having(condition: Callable[[Any], bool], kind: type = Contract) -> Callable[[Callable[..., None]], Any]:
    """Make a test a law of the entries of a kind that ``condition`` picks."""

    def register(test: Callable[..., None]) -> Callable[..., None]:
        def cases(table: Sequence[Any]) -> list[tuple[str, tuple[Any, ...]]]:
            return [(c.name, (c,)) for c in table if isinstance(c, kind) and condition(c)]

        LAWS[test.__name__] = Law(test, cases)
        return test

    return register


def each_bad_call(test: Callable[..., None]) -> Callable[..., None]:
    LAWS[test.__name__] = Law(
        test, lambda table: [(f"{c.name}-{i}", (c, bad)) for c in table for i, bad in enumerate(c.bad)]
    )
    return test


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def floating(t: Tensor) -> torch.dtype:
    """The dtype of what stands beside ``t``: its own, or float32 beside integers (which are refused)."""
    return t.dtype if t.is_floating_point() else torch.float32


def on_device(value: Any) -> Any:
    """The value with its tensors on the device of the laws."""
    return tree_map(lambda a: a.to(DEVICE) if isinstance(a, Tensor) else a, value)


def samples(contract: Contract) -> list[Call]:
    """The calls of an entry, as its reference takes them: on the CPU."""
    return list(contract.samples(seeded()))


def calls(contract: Contract) -> list[Call]:
    """The same calls on the device."""
    contract.prepare()
    return [Call(on_device(call.args), on_device(call.kwargs)) for call in samples(contract)]


def values_of(contract: Contract, result: Any) -> tuple[Tensor, ...]:
    picked = contract.outputs(result)
    return (picked,) if isinstance(picked, Tensor) else tuple(picked)


def split(call: Call) -> tuple[list[Tensor], Any]:
    """Return the differentiable arguments and a function of them alone."""
    positions = [i for i, a in enumerate(call.args) if isinstance(a, Tensor) and a.is_floating_point()]

    def rebuild(*tensors: Tensor) -> tuple[Any, ...]:
        args = list(call.args)
        for i, t in zip(positions, tensors, strict=True):
            args[i] = t
        return tuple(args)

    return [call.args[i].detach().clone().requires_grad_() for i in positions], rebuild


def function_of(contract: Contract, call: Call) -> tuple[list[Tensor], Any]:
    inputs, rebuild = split(call)

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        return values_of(contract, contract.run(*rebuild(*tensors), **call.kwargs))

    return inputs, function


def close(got: Any, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(
        got, expected, rtol=tolerance, atol=tolerance, check_dtype=False, check_device=False, equal_nan=True
    )


def gradients_of(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> Sequence[Tensor | None]:
    live = [o for o in outputs if o.requires_grad]
    if not live:
        return [None] * len(inputs)
    return torch.autograd.grad(sum(o.sum() for o in live), inputs, allow_unused=True)


def _every_second(t: Tensor) -> Tensor:
    wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), 7)
    wide[..., ::2] = t
    return wide[..., ::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.mT.contiguous().mT if t.ndim > 1 else t,
    "every second": lambda t: _every_second(t) if t.ndim else t,
    "negated lazily": lambda t: torch._neg_view(-t) if t.is_floating_point() else t,  # as `x.conj().imag` is
}


def same(tensor: Tensor, before: Tensor) -> bool:
    """Equal to the bit, NaN where NaN was."""
    return tensor.shape == before.shape and bool(((tensor == before) | (tensor.isnan() & before.isnan())).all())
