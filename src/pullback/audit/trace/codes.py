"""Whether an operation stops the gradient, and under which code."""

from __future__ import annotations

from typing import Any

import torch

from pullback.audit.trace import operations as ops
from pullback.audit.trace.custom import function_call
from pullback.audit.trace.sites import Site

__all__ = ["stop_code"]


def stop_code(name: str, live: bool, sources: list[int], enabled: bool, frame: Any, site: Site, kwargs: Any) -> str:
    """Return the code of the finding that this operation could become, or an empty string."""
    if not sources:
        return ""
    bare = name.strip("_")
    if name in ops.STEPS or kwargs.get("rounding_mode") is not None:
        if live or not enabled:
            return f"zero.{bare}" if enabled and live else _stop(frame)
        return f"zero.{bare}"
    if name in ("tensor", "new_tensor", "from_numpy", "FloatTensor"):
        return "cut.rebuild"
    if name in ops.SAMPLERS:
        return "cut.sampling"
    if live:
        return ""
    if name in ("detach", "detach_"):
        return "cut.detach" if enabled else _stop(frame)
    if name == "get data":
        return "cut.data"
    if not enabled:
        return _stop(frame)
    if name in ops.INDICES or name in ops.SPLIT_INDICES:
        return "cut.index"
    if name in ops.COMPARISONS:
        return "cut.comparison"
    if name in ops.CASTS:
        return "cut.cast"
    if name in ops.REBUILDS:
        return "cut.rebuild"
    if name in ("broadcast_tensors", "meshgrid", "atleast_1d", "atleast_2d", "atleast_3d", "align_tensors"):
        return ""  # each output follows its own input
    return "cut.operation"


def _stop(frame: Any) -> str:
    if function_call(frame) is not None:
        return "cut.custom"  # taken back if the Function's output turns out to carry a gradient
    return "cut.inference" if torch.is_inference_mode_enabled() else "cut.no_grad"
