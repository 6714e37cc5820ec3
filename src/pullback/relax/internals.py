"""Every name of torch that is not public and that this package relies on; nothing else of it names one.

=============================================== ==========================================================
name                                            what for
=============================================== ==========================================================
``_C.DisableTorchFunction``                     calls that neither modes nor subclasses see
``_C.DisableTorchFunctionSubclass``             calls that modes see and subclasses do not
``Tensor._make_subclass``                       soft tensors share the memory of the plain ones
``Tensor._version``, ``Tensor._base``           changes in place; the tensor of which one is a view
``_C._len_torch_function_stack``                whether no function mode is active
``_C._set_grad_enabled``                        what the start and the end of ``no_grad`` call
``_C._functorch``                               values below the transforms of ``torch.func``
``autograd.forward_ad._current_level``          whether forward mode is under way
``utils.checkpoint.CheckpointFunction.apply``,  functions under a checkpoint run once, without
``_checkpoint_without_reentrant_generator``     recomputation, while a context is active in their thread
(from 2.14 on ``..._generator_impl``)
``_dynamo.trace_rules``, ``_dynamo.eval_frame`` the compiler leaves relaxed code to the interpreter
=============================================== ==========================================================

``tests/relax/test_internals.py`` holds each to what is expected of it here.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint  # not every release imports it by itself
from torch import Tensor

__all__ = [
    "below_transforms",
    "forward_mode",
    "inherits_dispatch",
    "keep_checkpoints_in_memory",
    "make_subclass",
    "run_compiled_code_eagerly",
    "set_grad_enabled",
    "stay_out_of_compilation",
    "unseen",
    "unseen_by_subclasses",
    "version",
    "viewed",
    "warn_of_compiled_caller",
    "wrapped",
]

unseen = torch._C.DisableTorchFunction
"""Context: neither a function mode nor a subclass sees a call."""

_modes: Callable[[], int] = torch._C._len_torch_function_stack

set_grad_enabled = torch._C._set_grad_enabled
"""What a mode sees where a region without gradients starts and ends."""

unseen_by_subclasses = torch._C.DisableTorchFunctionSubclass
"""Context: subclasses do not see a call, modes do."""


def version(x: Tensor) -> int:
    """Return how often the memory of ``x`` was changed in place.

    Example:
        >>> version(torch.zeros(1).add_(1)) - version(torch.zeros(1))
        1
    """
    if type(x) is Tensor and not _modes():
        return x._version
    with unseen():
        return x._version


def viewed(x: Tensor) -> Tensor:
    """Return the tensor of which ``x`` is a view, or ``x`` itself.

    Example:
        >>> viewed(torch.zeros(3)[1:]).shape
        torch.Size([3])
    """
    with unseen():
        return x if x._base is None else x._base


def make_subclass(kind: type[Any], data: Tensor) -> Any:
    """Return a tensor of class ``kind`` on the memory of ``data``."""
    with unseen():
        return Tensor._make_subclass(kind, data)


def inherits_dispatch(kind: type) -> bool:
    """Return whether a subclass of ``Tensor`` leaves ``__torch_function__`` as it is.

    Example:
        >>> class Named(Tensor): pass
        >>> inherits_dispatch(Named)
        True
    """
    own: Any = getattr(kind.__torch_function__, "__func__", None)  # type: ignore[attr-defined]
    return own is Tensor.__torch_function__.__func__  # type: ignore[attr-defined]


def wrapped(x: Tensor) -> bool:
    """Return whether ``x`` stands for another tensor in a transform of ``torch.func``."""
    result: bool = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return result


def below_transforms(x: Tensor) -> Iterator[Tensor]:
    """Yield the tensors below each transform of ``torch.func``."""
    while wrapped(x):
        x = torch._C._functorch.get_unwrapped(x)
        yield x


def forward_mode() -> bool:
    """Return whether a level of forward mode is under way."""
    return torch.autograd.forward_ad._current_level >= 0


def keep_checkpoints_in_memory(active: Callable[[], bool]) -> None:
    """Let ``torch.utils.checkpoint`` run functions plainly in threads where ``active()`` holds.

    A checkpoint runs its function a second time in the backward pass. Soft counterparts live longer than that: a mask
    that leaves one checkpoint may be read in the next. So what is relaxed is kept, and nothing is run twice.
    """
    module = torch.utils.checkpoint
    if hasattr(module.CheckpointFunction.apply, "_relaxed"):
        return
    name = "_checkpoint_without_reentrant_generator"
    if hasattr(module, f"{name}_impl"):  # from torch 2.14 on, which keeps the other name but no longer calls it
        name = f"{name}_impl"
    apply, generator = module.CheckpointFunction.apply, getattr(module, name)

    def run(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return function(*args) if active() else apply(function, preserve, *args)

    def around(*args: Any, **kwargs: Any) -> Iterator[None]:
        if active():
            yield
        else:
            yield from generator(*args, **kwargs)

    run._relaxed = True  # type: ignore[attr-defined]
    module.CheckpointFunction.apply = staticmethod(run)  # type: ignore[method-assign]
    setattr(module, name, around)


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
