"""Checkpoints: a state in one safetensors file, its tensors as tensors and the rest as JSON in the header.

A *state* is a tree of dictionaries, lists, tuples, tensors, numbers, strings, booleans and ``None``: what
``state_dict`` of a module, an optimizer or a scheduler returns. Beside each file lies the one before it: where the
newer one is damaged, the older one is read.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor
from torch.optim import Optimizer

from pullback.core.files import write_atomically

__all__ = [
    "CheckpointError",
    "capture",
    "check_savable",
    "detached",
    "former",
    "read",
    "read_latest",
    "restore",
    "write",
]


class CheckpointError(ValueError):
    """A checkpoint is damaged, or is not of what it is to be put into."""


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
    if isinstance(target, Optimizer):
        return {"optimizer": target.state_dict(), "parameters": _parameters(target)}
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


def restore(target: Any, state: Any, name: str = "save") -> Any:
    """Put ``state`` back into ``target``, in place wherever ``target`` can change, and return what stands for it now.

    Tensors are overwritten (so that optimizers and closures keep pointing at them); other entries of dictionaries and
    lists are replaced. An entry that begins as ``None`` can become anything.

    Args:
        target: what a loop changes.
        state: of it, as :func:`capture` returned it.
        name: of ``target``, for the message.

    Raises:
        CheckpointError: a tensor has another shape or dtype than the stored one, a module or optimizer other entries.
    """
    if isinstance(target, torch.Generator):
        _check_alike(name, target.get_state(), state)
        target.set_state(state.cpu())
        return target
    if isinstance(target, Tensor):
        _check_alike(name, target, state)
        with torch.no_grad():
            target.copy_(state)
        return target
    if isinstance(target, dict) and isinstance(state, dict):
        for key in [key for key in target if key not in state]:
            if not _is_leaf(target[key]):
                raise CheckpointError(f"{name}[{key!r}] is not in the checkpoint")
            del target[key]
        for key, value in state.items():
            target[key] = restore(target.get(key), value, f"{name}[{key!r}]")
        return target
    if isinstance(target, list) and isinstance(state, list):
        padded = [*target, *[None] * len(state)]
        target[:] = [restore(t, s, f"{name}[{i}]") for i, (t, s) in enumerate(zip(padded, state, strict=False))]
        return target
    if _has_state(target):
        _load_state(target, state, name)
        return target
    if isinstance(target, dict | list):
        raise CheckpointError(f"{name} is a {type(target).__name__}, and {type(state).__name__} in the checkpoint")
    return state


def _load_state(target: Any, state: Any, name: str) -> None:
    if isinstance(target, Optimizer):
        if not isinstance(state, dict) or state.get("parameters") != _parameters(target):
            raise CheckpointError(f"{name} has other parameters than in the checkpoint")
        state = state["optimizer"]
    else:
        _check_alike(name, target.state_dict(), state)
    try:
        target.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{name} does not take the state in the checkpoint: {error}") from error


def _check_alike(name: str, now: Any, stored: Any) -> None:
    """Torch would convert another dtype, and broadcast another shape, without a word."""
    if isinstance(now, Tensor):
        if not isinstance(stored, Tensor):
            raise CheckpointError(f"{name} is a tensor, and {type(stored).__name__} in the checkpoint")
        if now.shape != stored.shape or now.dtype != stored.dtype:
            here, there = (f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in (now, stored))
            raise CheckpointError(
                f"{name} is {here}, and {there} in the checkpoint (begin with None what changes shape)"
            )
    elif isinstance(now, Mapping) and isinstance(stored, Mapping):
        for key in now:
            if key in stored:
                _check_alike(f"{name}[{key!r}]", now[key], stored[key])


def _parameters(optimizer: Optimizer) -> list[list[list[Any]]]:
    """Shape and dtype of the parameters of each group: the state of an optimizer does not tell."""
    return [[[list(p.shape), str(p.dtype)] for p in group["params"]] for group in optimizer.param_groups]


def write(path: Path, state: Any) -> None:
    """Write a state to one safetensors file, atomically; the file that was there is kept as :func:`former`.

    Raises:
        TypeError: something in it is neither tensor nor JSON; the message names where.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_flatten(state, "", tensors), allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = serialize(tensors, {"tree": tree, "checksum": _checksum(tree, tensors.items())})
    if path.exists():
        os.replace(path, former(path))
    write_atomically(path, content)


def former(path: Path) -> Path:
    """Return where the file lies that :func:`write` has replaced.

    Example:
        >>> former(Path("001-train.safetensors")).name
        '001-train.former.safetensors'
    """
    return path.with_name(f"{path.stem}.former{path.suffix}")


def read(path: Path) -> Any:
    """Read the state written by :func:`write`; tensors are on the CPU.

    Raises:
        CheckpointError: the file is no checkpoint, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            metadata = file.metadata()
        if metadata["checksum"] != _checksum(metadata["tree"], tensors.items()):
            raise ValueError("its checksum is wrong")
        return _rebuild(json.loads(metadata["tree"]), tensors)
    except Exception as error:  # safetensors raises its own error types, which say little about the file
        raise CheckpointError(f"{path} is no checkpoint, or damaged: {error}") from error


def read_latest(path: Path) -> Any:
    """Read the state in ``path`` or, where that is damaged or missing, in :func:`former`; ``None`` without either.

    Raises:
        CheckpointError: neither can be read; the message says which file to delete.
    """
    found = [candidate for candidate in (path, former(path)) if candidate.exists()]
    errors = []
    for candidate in found:
        try:
            return read(candidate)
        except CheckpointError as error:
            errors.append(error)
    if errors:
        files = " and ".join(str(candidate) for candidate in found)
        raise CheckpointError(f"{errors[0]}; delete {files} to do that loop again")
    return None


def _checksum(tree: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    value = zlib.crc32(tree.encode())
    for key, tensor in sorted(tensors, key=lambda pair: pair[0]):
        content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        value = zlib.crc32(content, zlib.crc32(key.encode(), value))
    return f"{value:08x}"


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
