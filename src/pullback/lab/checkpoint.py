"""Checkpoints: a state in one safetensors file, its tensors as tensors and the rest as JSON in the header.

A *state* is a tree of dictionaries, lists, tuples, tensors, numbers, strings, booleans and ``None``: what
``state_dict`` of a module, an optimizer or a scheduler returns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from pullback.core.files import write_atomically

__all__ = ["capture", "check_savable", "detached", "read", "restore", "write"]


def check_savable(name: str, target: Any) -> None:
    """Raise ``TypeError`` unless ``target`` can be captured and restored in place.

    Example:
        >>> check_savable("save['lr']", 0.1)
        Traceback (most recent call last):
        TypeError: save['lr'] must have state_dict/load_state_dict or be a tensor, generator, dict or list, got float
    """
    if isinstance(target, dict):
        for key, value in target.items():
            if not _is_leaf(value):
                check_savable(f"{name}[{key!r}]", value)
    elif isinstance(target, list):
        for index, value in enumerate(target):
            if not _is_leaf(value):
                check_savable(f"{name}[{index}]", value)
    elif not isinstance(target, Tensor | torch.Generator) and not _has_state(target):
        raise TypeError(
            f"{name} must have state_dict/load_state_dict or be a tensor, generator, dict or list, "
            f"got {type(target).__name__}"
        )


def _has_state(target: Any) -> bool:
    return callable(getattr(target, "state_dict", None)) and callable(getattr(target, "load_state_dict", None))


def _is_leaf(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def capture(target: Any) -> Any:
    """Return the state of ``target``: its ``state_dict``, or itself where it is a tensor or a container."""
    if isinstance(target, torch.Generator):
        return target.get_state()
    if isinstance(target, Tensor):
        return target.detach()
    if isinstance(target, dict):
        return {key: capture(value) for key, value in target.items()}
    if isinstance(target, list | tuple):
        return [capture(value) for value in target]
    return target.state_dict() if _has_state(target) else target


def detached(state: Any) -> Any:
    """Return a copy of a state that later changes of the training objects do not reach."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: detached(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(detached(value) for value in state)
    return state


def restore(target: Any, state: Any) -> Any:
    """Put ``state`` back into ``target``, in place wherever ``target`` can change, and return what stands for it now.

    Tensors of the same shape are overwritten (so that optimizers and closures keep pointing at them); other entries of
    dictionaries and lists are replaced.

    Raises:
        ValueError: a module's or optimizer's state does not fit.
    """
    if isinstance(target, torch.Generator):
        target.set_state(state.cpu())
        return target
    if isinstance(target, Tensor) and isinstance(state, Tensor) and target.shape == state.shape:
        with torch.no_grad():
            target.copy_(state)
        return target
    if isinstance(target, dict) and isinstance(state, dict):
        for key in [key for key in target if key not in state]:
            del target[key]
        for key, value in state.items():
            target[key] = restore(target.get(key), value)
        return target
    if isinstance(target, list) and isinstance(state, list):
        target[:] = [restore(t, s) for t, s in zip([*target, *[None] * len(state)], state, strict=False)]
        return target
    if _has_state(target):
        target.load_state_dict(state)
        return target
    return state


def write(path: Path, state: Any) -> None:
    """Write a state to one safetensors file, atomically.

    Raises:
        TypeError: something in it is neither tensor nor JSON; the message names where.
    """
    tensors: dict[str, Tensor] = {}
    tree = _flatten(state, "", tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, serialize(tensors, {"tree": json.dumps(tree, allow_nan=False)}))


def read(path: Path) -> Any:
    """Read the state written by :func:`write`; tensors are on the CPU.

    Raises:
        ValueError: the file is no checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            tree = json.loads(file.metadata()["tree"])
    except Exception as error:  # safetensors raises its own error types, which say little about the file
        raise ValueError(f"{path} is no checkpoint: {error}") from error
    return _rebuild(tree, tensors)


# JSON of a tree: leaves are themselves; everything else is a one-entry object that names its kind.


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = torch.as_tensor(value)
    if isinstance(value, Tensor):
        key = path or "/"
        while key in tensors:  # {"a/b": ...} beside {"a": {"b": ...}}
            key += "'"
        stored = value.detach().cpu()
        tensors[key] = (torch.view_as_real(stored) if stored.is_complex() else stored).clone(
            memory_format=torch.contiguous_format
        )
        return {"complex" if stored.is_complex() else "tensor": key}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if _is_leaf(value):
        return value
    if isinstance(value, Mapping):
        pairs = [[_flatten(k, f"{path}/key", tensors), _flatten(v, f"{path}/{k}", tensors)] for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        items = [_flatten(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    raise TypeError(f"a checkpoint holds tensors and JSON values; {path or 'the state'} is a {type(value).__name__}")


def _rebuild(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "complex":
        return torch.view_as_complex(tensors[content])
    if kind == "float":
        return float(content)
    if kind == "dict":
        return {_rebuild(key, tensors): _rebuild(value, tensors) for key, value in content}
    items = [_rebuild(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
