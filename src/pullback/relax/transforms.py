"""Where torch runs the program again or in another way: checkpointing and compilation."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from pullback.relax.soft_tensors import touched

__all__ = ["keep_in_recomputation", "run_compiled_code_eagerly"]


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


class _Recompute:
    def __init__(self, function: Callable[..., Any], context: Any) -> None:
        self.function = function
        self.context = context

    def __call__(self, *args: Any) -> Any:
        with touched(), self.context:
            return self.function(*args)


def run_compiled_code_eagerly() -> Callable[[], None]:
    """Run functions compiled with ``torch.compile`` eagerly until the returned function is called.

    A compiled region does not show its calls to a function mode. Only where something has been compiled at all.
    """
    if "torch._dynamo" not in sys.modules:
        return lambda: None
    before = torch._dynamo.eval_frame._stance
    if before.stance == "force_eager":
        return lambda: None
    torch._dynamo.eval_frame._set_stance(torch._dynamo.eval_frame.DynamoStance("force_eager"))
    return lambda: _restore(before)


def _restore(stance: Any) -> None:
    torch._dynamo.eval_frame._set_stance(stance)
