"""Run a user's script unchanged and audit what reaches each ``backward()``."""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pullback.audit.judge.analysis import analyse
from pullback.audit.judge.verdicts import Verdicts
from pullback.audit.probe.probes import check_customs
from pullback.audit.report.report import Report
from pullback.audit.trace.tracer import StopTracing, Tracer

__all__ = ["audit_script", "eager"]


def audit_script(
    path: str | os.PathLike[str],
    args: Sequence[str] = (),
    *,
    steps: int | None = 3,
    ignore: Iterable[str] = (),
    libraries: bool = False,
) -> Report:
    """Run ``python path args...`` in this process and report where the gradients of its training steps die.

    The script sees ``__name__ == "__main__"``, its own ``sys.argv`` and folder on ``sys.path``. Trained are the
    tensors of the optimizers that take a step; if none does, every leaf that requires grad.

    Args:
        path: the script.
        args: its command-line arguments.
        steps: backward passes to audit per line that calls ``backward``; the script is stopped at the next one.
            ``None`` lets it run to its end.
        ignore: places not to report, as ``"model.py:12"`` or ``"model.py"``.
        libraries: blame lines inside installed libraries.

    Returns:
        A :class:`~pullback.audit.Report`; ``error`` holds the traceback if the script raised.

    Raises:
        FileNotFoundError: there is no such script.
        ValueError: ``steps`` is not positive.
    """
    script = Path(path)
    if not script.is_file():
        raise FileNotFoundError(f"path must be a Python script, got {str(path)!r}, which does not exist")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be >= 1 or None, got {steps}")
    tracer = Tracer(libraries=libraries, steps=steps)
    optimizers: list[Any] = []
    fed: set[int] = set()

    def stepping(optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if not any(optimizer is known for known in optimizers):
            optimizers.append(optimizer)
        fed.update(id(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None)

    error: str | None = None
    notes: list[str] = []
    hook = register_optimizer_step_pre_hook(stepping)
    try:
        with _as_main(script, args), eager(), tracer:
            runpy.run_path(str(script.resolve()), run_name="__main__")
    except StopTracing:
        notes.append(f"the script was stopped after {steps} audited passes of one backward() call")
    except SystemExit as stop:
        if stop.code not in (None, 0):
            error = f"SystemExit: {stop.code}"
    except Exception as raised:
        error = _traceback(raised)
    finally:
        hook.remove()
    wrt = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]} or None
    if not tracer.events:
        notes.append("the script made no backward pass")
    unfed = (wrt or set()) - fed
    verdicts = Verdicts(biased=check_customs(tracer, None))
    return analyse(
        tracer,
        target=str(path),
        wrt=wrt,
        ignore=tuple(ignore),
        verdicts=verdicts,
        notes=notes,
        error=error,
        unfed=unfed,
    )


@contextlib.contextmanager
def _as_main(script: Path, args: Sequence[str]) -> Iterator[None]:
    argv, path, main = sys.argv, list(sys.path), sys.modules.get("__main__")
    sys.argv = [str(script), *args]
    sys.path.insert(0, str(script.resolve().parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
        if main is not None:
            sys.modules["__main__"] = main


@contextlib.contextmanager
def eager() -> Iterator[None]:
    """Run compiled functions eagerly: inside compiled code no operation can be seen."""
    before = os.environ.get("TORCH_COMPILE_DISABLE")
    loaded = sys.modules.get("torch._dynamo")
    os.environ["TORCH_COMPILE_DISABLE"] = "1"
    stance = torch.compiler.set_stance("force_eager") if loaded is not None else contextlib.nullcontext()
    try:
        with stance:
            yield
    finally:
        if before is None:
            del os.environ["TORCH_COMPILE_DISABLE"]
        else:
            os.environ["TORCH_COMPILE_DISABLE"] = before
        # The compiler reads the variable once, when it is loaded: if that was here, it would stay switched off.
        config = sys.modules.get("torch._dynamo.config")
        if loaded is None and config is not None:
            config.disable = before == "1"  # type: ignore[attr-defined]


def _traceback(raised: BaseException) -> str:
    """Format the traceback from the script's own first frame on."""
    entry = raised.__traceback__
    own = os.path.dirname(os.path.abspath(__file__))
    while entry is not None and (entry.tb_frame.f_code.co_filename.startswith((own, "<frozen runpy"))):
        entry = entry.tb_next
    return "".join(traceback.format_exception(type(raised), raised, entry or raised.__traceback__))
