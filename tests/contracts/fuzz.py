"""Calls of blocks that nobody would write: extreme values, odd shapes, mixed dtypes and layouts, wrong types.

Usage: ``python -m tests.contracts.fuzz FAMILY [CALLS [SEED]]`` prints each kind of fault once, with a call of it.

A block may refuse a call by name (``ValueError``, ``TypeError``, ``IndexError`` of a dimension, ``ConvergenceError``,
raised in pullback and not below it) or give its result. It is a fault if anything else is raised, if an input of
ordinary size (finite, at most 1e8, in single or double precision) gives a value or a gradient that is NaN, or infinite
where the inverse of the input is of ordinary size too, but for what its contract calls undefined, or if temperature 0
is not the hard operation.
"""

from __future__ import annotations

import dis
import math
import random
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

import pullback
from pullback.core.errors import ConvergenceError
from tests.contracts.contract import Call, Contract
from tests.contracts.law import LAYOUTS, gradients_of, samples, values_of

ORDINARY = 1e8
PATIENCE = 30.0
"""CPU seconds: nothing that these calls ask for takes a tenth of it, more is a loop without an end."""
_SOURCE = Path(pullback.__file__).parent


@dataclass(frozen=True)
class Fault:
    """What went wrong in a call: ``kind`` tells faults apart, ``shown`` is the call and the error."""

    name: str
    kind: str
    shown: str

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}\n    {self.shown}"


class _OutOfTime(BaseException):
    """A call took more CPU time than any of these may."""


def fuzz(
    contracts: list[Contract], calls: int, seed: int = 0, *, cpu_seconds: float = math.inf, patience: float = PATIENCE
) -> list[Fault]:
    """Return one fault of each kind that shows in ``calls`` calls, spread evenly over the contracts.

    Args:
        contracts: whose samples are distorted.
        calls: how many in all.
        seed: of the distortions.
        cpu_seconds: what the calls of one contract may take together; the rest of its calls is then left out.
        patience: CPU seconds after which a call is given up. That is a fault where it is :data:`PATIENCE`.
    """
    found: dict[tuple[str, str], Fault] = {}
    for contract in contracts:
        rng = random.Random(f"{seed} {contract.name}")
        plain = samples(contract)
        began = time.process_time()
        for _ in range(max(1, calls // len(contracts))):
            if time.process_time() - began > cpu_seconds:
                break
            for fault in _try(contract, distorted(rng.choice(plain), contract, rng), patience):
                found.setdefault((fault.name, fault.kind), fault)
    return list(found.values())


def distorted(call: Call, contract: Contract, rng: random.Random) -> Call:
    """The call with other values, shapes, dtypes, layouts and options."""
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    dtype = rng.choice([torch.float64, torch.float32, torch.float32, torch.float16, torch.bfloat16])
    shapes = rng.random() < 0.4
    args = []
    for argument in call.args:
        if isinstance(argument, Tensor):
            argument = _tensor(argument, dtype if rng.random() < 0.95 else torch.float64, shapes, rng, generator)
        elif isinstance(argument, int) and rng.random() < 0.2:
            argument = rng.choice([-1, 0, 1, 2, 100, 2**40, 1.5, True, None])
        args.append(argument)
    kwargs = dict(call.kwargs)
    options = ["temperature"] if "temperature" in contract.soft and contract.hard is not None else []
    for name in {*contract.scalars, *options}:
        if rng.random() < 0.5:
            kwargs[name] = rng.choice(_SCALARS)(dtype)
    return Call(tuple(args), kwargs)


_SCALARS: list[Callable[[torch.dtype], Any]] = [
    *(lambda dtype, v=v: v for v in (0.0, 1e-18, 1e-3, 1.0, 1e8, -1.0, math.nan, math.inf, "a", None)),
    lambda dtype: torch.tensor(0.5, dtype=dtype, requires_grad=True),
    lambda dtype: torch.tensor(1e-18, dtype=dtype),
    lambda dtype: torch.tensor([0.5, 0.5], dtype=dtype),
]


def _tensor(t: Tensor, dtype: torch.dtype, shapes: bool, rng: random.Random, generator: torch.Generator) -> Tensor:
    if shapes and rng.random() < 0.6:
        t = _reshaped(t, rng)
    if t.is_floating_point():
        t = _VALUES[rng.choice(list(_VALUES))](t, generator)
        t = t.to(dtype) if dtype.itemsize > 2 else t.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    elif rng.random() < 0.05:
        t = rng.choice([t.to(dtype), -t if t.dtype != torch.bool else t, t.int()])
    if rng.random() < 0.3:
        t = LAYOUTS[rng.choice(list(LAYOUTS))](t)
    return t


def _reshaped(t: Tensor, rng: random.Random) -> Tensor:
    flat = t.flatten()
    form = rng.choice(["0-d", "empty", "one", "row", "batch", "no batch"])
    if form == "0-d" and flat.numel():
        return flat[0]
    if form == "empty":
        return t.narrow(rng.randrange(t.ndim), 0, 0) if t.ndim else flat[:0]
    if form == "one":
        return flat[:1]
    if form == "batch":
        return t.expand(rng.choice([0, 1, 2]), *t.shape)
    if form == "no batch" and t.ndim > 1 and t.shape[0]:
        return t[0]
    return flat


_VALUES: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "as they are": lambda t, g: t,
    "again": lambda t, g: t,
    "zero": lambda t, g: torch.zeros_like(t),
    "equal": lambda t, g: torch.full_like(t, 0.3),
    "whole": lambda t, g: t.round(),
    "tiny": lambda t, g: t * 1e-30,
    "1e4": lambda t, g: t * 1e4,
    "1e8": lambda t, g: (t * 1e8).clamp(-ORDINARY, ORDINARY),
    "shifted": lambda t, g: (t + 1e6).to(t.dtype),
    "one large": lambda t, g: _with_one(t, ORDINARY, g),
    "largest": lambda t, g: _with_one(t, 3e38, g),
    "NaN": lambda t, g: _with_one(t, math.nan, g),
    "infinite": lambda t, g: _with_one(t, math.inf, g),
    "minus infinite": lambda t, g: _with_one(t, -math.inf, g),
}


def _with_one(t: Tensor, value: float, generator: torch.Generator) -> Tensor:
    if not t.numel():
        return t
    t = t.clone(memory_format=torch.contiguous_format)
    t.view(-1)[torch.randint(t.numel(), (), generator=generator)] = value
    return t


def _try(contract: Contract, call: Call, patience: float) -> Iterator[Fault]:
    try:
        with _Limit(patience):
            values, gradients = _evaluate(contract, call)
    except ConvergenceError:
        return
    except _OutOfTime:
        if patience >= PATIENCE:
            yield _fault(contract, call, f"takes more than {patience:g} CPU seconds")
        return
    except Exception as error:
        if not _is_refusal(error):
            yield _fault(contract, call, _where(error), error)
        return
    inputs = [t.detach() for t in (*call.args, *call.kwargs.values()) if _floating(t)]
    numbers = [v for v in (*call.args, *call.kwargs.values()) if isinstance(v, float)]
    inputs += [torch.tensor(v, dtype=torch.float64) for v in numbers]
    if all(_ordinary(t) for t in inputs):
        invertible = all(bool(((t == 0) | (t.abs() >= 1 / ORDINARY)).all()) for t in inputs)
        broken = torch.isnan if contract.infinite or not invertible else lambda v: ~torch.isfinite(v)
        undefined = contract.undefined(*call.args, **call.kwargs) if contract.undefined else torch.tensor(False)
        if any(bool(broken(torch.where(undefined, 0.0, v)).any()) for v in values):
            if not _is_beyond(contract, call):
                yield _fault(contract, call, "the value is not finite")
        elif any(bool(broken(g).any()) for g in gradients):
            if not _is_beyond(contract, call):
                yield _fault(contract, call, "the gradient is not finite")
        elif call.kwargs.get("temperature", 1.0) == 0 and contract.hard is not None:
            yield from _compare_with_hard(contract, call, values)


def _evaluate(contract: Contract, call: Call) -> tuple[list[Tensor], list[Tensor]]:
    """The floating values, and the gradients of their means."""
    args = [a.detach().requires_grad_() if _floating(a) else a for a in call.args]
    wanted = [a for a in (*args, *call.kwargs.values()) if _floating(a) and a.requires_grad]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = [v for v in values_of(contract, contract.run(*args, **call.kwargs)) if v.is_floating_point()]
        gradients = gradients_of([v / max(1, v.numel()) for v in values], wanted) if wanted else []
    return values, [g for g in gradients if g is not None]


def _is_beyond(contract: Contract, call: Call) -> bool:
    """Whether single precision cannot hold the answer: in double precision it is larger than any of its numbers."""
    if not any(_floating(a) and a.dtype == torch.float32 for a in call.args):
        return False
    wide = [a.double() if _floating(a) else a for a in call.args]
    words = {
        k: v.detach().double().requires_grad_(v.requires_grad) if _floating(v) else v for k, v in call.kwargs.items()
    }
    try:
        values, gradients = _evaluate(contract, Call(tuple(wide), words))
    except (ConvergenceError, ValueError, TypeError):
        return True
    return not all(bool((t.abs() <= torch.finfo(torch.float32).max).all()) for t in (*values, *gradients))


def _compare_with_hard(contract: Contract, call: Call, values: list[Tensor]) -> Iterator[Fault]:
    try:
        hard = contract.hard(*call.args)  # type: ignore[misc]
    except Exception:  # a reference of the table need not take what the block takes
        return
    for v, h in zip(values, (hard,) if isinstance(hard, Tensor) else hard, strict=False):
        if v.shape != h.shape or not torch.allclose(v.double(), h.double(), rtol=1e-3, atol=1e-6, equal_nan=True):
            yield _fault(contract, call, "temperature 0 is not the hard operation")
            return


def _floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _ordinary(t: Tensor) -> bool:
    return t.dtype.itemsize > 2 and bool((torch.isfinite(t) & (t.abs() <= ORDINARY)).all())


def _is_refusal(error: Exception) -> bool:
    """Whether pullback raised it itself (its last frame is a ``raise`` of ours), or a function that the table gave."""
    frames = traceback.extract_tb(error.__traceback__)
    tables = [i for i, f in enumerate(frames) if Path(f.filename).parent.parent == Path(__file__).parent]
    ours = [i for i, f in enumerate(frames) if Path(f.filename).is_relative_to(_SOURCE)]
    if tables and (not ours or tables[-1] > ours[0]):
        return True
    if "allocate" in str(error):  # asked for more memory than there is
        return True
    *_, (last, _) = traceback.walk_tb(error.__traceback__)
    raised = dis.opname[last.f_code.co_code[last.f_lasti]] == "RAISE_VARARGS"
    return isinstance(error, ValueError | TypeError | IndexError) and ours[-1:] == [len(frames) - 1] and raised


def _where(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"


def _fault(contract: Contract, call: Call, kind: str, error: Exception | None = None) -> Fault:
    words = [_shown(a) for a in call.args] + [f"{k}={_shown(v)}" for k, v in call.kwargs.items()]
    said = f" -> {str(error).splitlines()[0][:160] if str(error) else ''}" if error is not None else ""
    return Fault(contract.name, kind, f"({', '.join(words)}){said}")


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    numbers = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in value.detach().flatten()[:6].tolist()]
    more = ", ..." if value.numel() > 6 else ""
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}<{', '.join(numbers)}{more}>"


class _Limit:
    """A limit on the CPU time of a block of code.

    A compiler is left to finish: numba is broken for all calls that follow when it is interrupted.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        signal.signal(signal.SIGVTALRM, self._stop)
        signal.setitimer(signal.ITIMER_VIRTUAL, self.seconds)

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)

    @staticmethod
    def _stop(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_globals.get("__name__", "").split(".")[0] in ("numba", "llvmlite"):
                signal.setitimer(signal.ITIMER_VIRTUAL, 0.05)
                return
            frame = frame.f_back
        raise _OutOfTime


def main(family: str, calls: str = "10000", seed: str = "0") -> int:
    from tests.contracts.test_completeness import entries

    torch.set_num_threads(1)
    contracts = [entry for entry in entries(family) if isinstance(entry, Contract)]
    faults = fuzz(contracts, int(calls), int(seed), cpu_seconds=60)
    for fault in sorted(faults, key=lambda fault: (fault.name, fault.kind)):
        print(fault)
    print(f"{len(faults)} kinds of faults in {calls} calls of {len(contracts)} entries")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
