"""Where torch runs the program again or in another way: checkpointing and compilation."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

from pullback.relax.soft_tensors import touched

__all__ = ["keep_in_recomputation", "run_compiled_code_eagerly", "stay_out_of_compilation", "warn_of_compiled_caller"]


def keep_in_recomputation(context: Any) -> None:
    """Let a checkpoint that is being recorded recompute under ``context``, also where ``backward`` is called outside.

    ``torch.utils.checkpoint`` (not reentrant) replays the function in the backward pass and demands the very operations
    of the first run; a mode that has ended by then would be missing. The replayed function is in the frame that the
    saved-tensor hook closes over.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is None:
        return
    for cell in getattr(hooks[0], "__closure__", None) or ():
        frame = cell.cell_contents
        recompute = getattr(frame, "recompute_fn", None)
        if recompute is not None and getattr(recompute, "context", None) is not context:
            frame.recompute_fn = _Recompute(recompute, context)


def keep_in_reentrant_recomputation(context: Any, depth: int = 100) -> None:
    """The same for reentrant checkpoints, whose first run is without gradients: ``ctx.run_function`` is replayed."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(depth):
        if frame is None:
            return
        if frame.f_code.co_name == "forward" and frame.f_code.co_filename.endswith(_CHECKPOINT):
            replayed = frame.f_locals["ctx"]
            if getattr(replayed.run_function, "context", None) is not context:
                replayed.run_function = _Recompute(replayed.run_function, context)
            return
        frame = frame.f_back


_CHECKPOINT = os.path.join("torch", "utils", "checkpoint.py")


class _Recompute:
    def __init__(self, function: Callable[..., Any], context: Any) -> None:
        self.function = function
        self.context = context

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with touched(), self.context:
            return self.function(*args, **kwargs)


def stay_out_of_compilation() -> None:
    """Tell the compiler, where it is loaded, to leave the frames of this package to the interpreter."""
    if "torch._dynamo" in sys.modules and not _told:
        torch._dynamo.trace_rules.add("pullback.relax")
        _told.append(True)


_told: list[bool] = []
stay_out_of_compilation._torchdynamo_disable = True  # type: ignore[attr-defined]
stay_out_of_compilation()


def run_compiled_code_eagerly() -> Callable[[], None]:
    """Run what ``torch.compile`` compiled eagerly in this thread until the returned function is called.

    A compiled region does not show its calls to a function mode. This concerns functions that are called in the context
    (the stance) and a compiled function that enters it (the frame evaluation).
    """
    if "torch._dynamo" not in sys.modules:
        return lambda: None
    frames, compiler = torch._C._dynamo.eval_frame, torch._dynamo.eval_frame
    callback = frames.set_eval_frame(None)
    stance = compiler._stance
    compiler._set_stance(compiler.DynamoStance("force_eager"))
    if callback:
        warnings.warn("relaxed was entered in a compiled function: the rest of it runs eagerly", stacklevel=3)

    def restore() -> None:
        compiler._set_stance(stance)
        frames.set_eval_frame(callback)

    return restore


def warn_of_compiled_caller(depth: int = 40) -> None:
    """Warn if a function that was compiled outside of the context is what runs here, eagerly."""
    if "torch._dynamo" not in sys.modules:
        return
    frame: FrameType | None = sys._getframe(1)
    for _ in range(depth):
        if frame is None:
            return
        if frame.f_code.co_filename.endswith(_COMPILED_CALL) and frame.f_code.co_name == "compile_wrapper":
            warnings.warn("a compiled function is called under relaxed: it runs eagerly", stacklevel=4)
            return
        frame = frame.f_back


_COMPILED_CALL = os.path.join("torch", "_dynamo", "eval_frame.py")
