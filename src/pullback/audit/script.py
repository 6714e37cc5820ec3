"""Run a user's script, module or notebook unchanged and audit what reaches each ``backward()``."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import runpy
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pullback.audit.judge.analysis import analyse
from pullback.audit.judge.verdicts import Verdicts
from pullback.audit.notebook import compile_cells, read_cells
from pullback.audit.probe.probes import check_customs, check_operations
from pullback.audit.probe.program import relaxing
from pullback.audit.report.report import Report
from pullback.audit.report.tracebacks import user_traceback
from pullback.audit.trace.optimizers import Optimizers
from pullback.audit.trace.tracer import StopTracing, Tracer

__all__ = ["audit_script", "eager"]


def audit_script(
    path: str | os.PathLike[str],
    args: Sequence[str] = (),
    *,
    module: bool = False,
    steps: int | None = 3,
    ignore: Iterable[str] = (),
    libraries: bool = False,
    relax: float | None = None,
) -> Report:
    """Run ``python path args...`` in this process and report where the gradients of its training steps die.

    The script sees ``__name__ == "__main__"``, its own ``sys.argv`` and folder on ``sys.path``. Trained are the
    tensors of the optimizers that take a step; if none does, every leaf that requires grad. Under ``torchrun`` every
    process audits its own run, and the reports of all ranks agree where their programs do: show that of rank 0.

    Args:
        path: the script; a notebook (``.ipynb``), whose code cells run in order and whose lines are named as
            ``train.ipynb[3]``, line 2 of that cell; with ``module``, the name of a module or package.
        args: its command-line arguments.
        module: run ``python -m path args...``, from the current folder.
        steps: backward passes to audit per line that calls ``backward``; the script is stopped at the next one, or
            after sixteen times as many of an inner loop while an optimizer has not stepped twice. ``None`` lets it
            run to its end.
        ignore: places not to report, as ``"model.py:12"`` or ``"model.py"``.
        libraries: blame lines inside installed libraries.
        relax: run it under ``pullback.relaxed`` of this temperature and audit that.

    Returns:
        A :class:`~pullback.audit.Report`; ``error`` holds the traceback if the script raised.

    Raises:
        FileNotFoundError: there is no such script.
        ModuleNotFoundError: there is no such module, or the package has no ``__main__``.
        ValueError: ``steps`` is not positive, or the file is no notebook.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be >= 1 or None, got {steps}")
    run, folder = _module(os.fspath(path)) if module else _file(Path(path))
    tracer = Tracer(libraries=libraries, steps=steps, sample=True)
    optimizers = Optimizers(libraries, lambda: tracer.sampling.passes)
    tracer.waits = optimizers.waiting
    error: str | None = None
    notes: list[str] = []
    joined = _has_joined()
    kept: Any = None  # the script's variables live until its trace has been judged: names and lines go by them
    try:
        with _as_main(str(path), args, folder), eager(), optimizers, tracer, relaxing(relax):
            kept = run()
    except StopTracing as stop:
        kept = stop
        notes.append(f"the script was stopped after {steps} audited passes of one backward() call")
    except SystemExit as stop:
        kept = stop
        if stop.code not in (None, 0):
            error = f"SystemExit: {stop.code}"
    except Exception as raised:
        kept = raised
        error = user_traceback(raised)
    finally:
        if _has_joined() and not joined:
            torch.distributed.destroy_process_group()
    if not tracer.events:
        notes.append("the script made no backward pass")
    report = analyse(
        tracer,
        target=str(path),
        wrt={id(p) for p in optimizers.held()} or None,
        ignore=tuple(ignore),
        verdicts=Verdicts(biased=check_customs(tracer, None), wrong=check_operations(tracer)),
        notes=notes,
        error=error,
        optimizers=optimizers,
    )
    del kept
    return report


def _file(path: Path) -> tuple[Callable[[], Any], str]:
    """Return what runs a script or notebook, and the folder that it imports from."""
    if not path.is_file():
        raise FileNotFoundError(f"path must be a Python script, got {str(path)!r}, which does not exist")
    folder = str(path.resolve().parent)
    if path.suffix != ".ipynb":
        return lambda: runpy.run_path(str(path.resolve()), run_name="__main__"), folder
    cells = read_cells(path)
    return lambda: _run_cells(path, cells), folder


def _run_cells(path: Path, cells: list[str]) -> dict[str, Any]:
    """Run the cells of a notebook in one namespace, as a kernel does."""
    main = types.ModuleType("__main__")
    main.__dict__.update(__builtins__=__builtins__, display=print)
    sys.modules["__main__"] = main
    for code in compile_cells(path, cells):
        exec(code, main.__dict__)
    return main.__dict__


def _module(name: str) -> tuple[Callable[[], Any], str]:
    """Return what runs a module as ``python -m`` does, and the folder that it is looked up from first."""
    folder = os.getcwd()
    with _first_on_path(folder):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{name}.__main__")
            if spec is None:
                raise ModuleNotFoundError(f"the package {name!r} has no __main__ and cannot be run", name=name)
    if spec is None:
        raise ModuleNotFoundError(f"there is no module {name!r}", name=name)
    return lambda: runpy.run_module(name, run_name="__main__", alter_sys=True), folder


@contextlib.contextmanager
def _as_main(name: str, args: Sequence[str], folder: str) -> Iterator[None]:
    argv, main = sys.argv, sys.modules.get("__main__")
    sys.argv = [name, *args]
    try:
        with _first_on_path(folder):
            yield
    finally:
        sys.argv = argv
        if main is not None:
            sys.modules["__main__"] = main


@contextlib.contextmanager
def _first_on_path(folder: str) -> Iterator[None]:
    path = list(sys.path)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path[:] = path


def _has_joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


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
