"""Which operations of a function have no forward-mode rule: known before a training that needs one begins."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_map

from pullback.core.checks import check_callable, check_floating

__all__ = ["MissingRule", "missing_forward_rules", "refuse_missing_rules"]

_TORCH = str(Path(torch.__file__).parent)
_SIGN = "forward"
"""What torch's errors about missing rules have in common, those of custom Functions included."""


@dataclass(frozen=True)
class MissingRule:
    """An operation without a forward-mode rule.

    Attributes:
        operation: its name, as ``"torch.cdist"``, or ``"Name.apply"`` of a custom ``autograd.Function``.
        file: where it is called.
        line: the line there, from 1.
        source: the text of that line.
    """

    operation: str
    file: str
    line: int
    source: str

    def __str__(self) -> str:
        return f"{self.operation} at {self.file}:{self.line}: {self.source}"


def missing_forward_rules(
    loss: Callable[[dict[str, Tensor]], Any], params: Mapping[str, Tensor]
) -> tuple[MissingRule, ...]:
    """List the operations of a function for which torch has no forward-mode derivative.

    The function runs once on dual numbers ``p + eps v``. Where an operation refuses them, it is noted, runs on the
    plain numbers, and its floating results become dual again, so that later operations are asked too. A custom
    ``autograd.Function`` without ``jvp`` ends the search, as torch does not let its call be taken over.

    Args:
        loss: maps parameters by name to anything.
        params: floating tensors by name; left unchanged.

    Returns:
        One entry for each operation and line, in the order in which they ran; empty where forward mode works.

    Raises:
        TypeError: ``loss`` is not callable, or a parameter is not floating.

    Example:
        >>> params = {"w": torch.ones(3, 2)}
        >>> [rule.operation for rule in missing_forward_rules(lambda p: torch.cdist(p["w"], p["w"]).sum(), params)]
        ['torch.functional.cdist']
        >>> missing_forward_rules(lambda p: p["w"].sin().sum(), params)
        ()

    References:
        Baydin, Pearlmutter, Syme, Wood, Torr (2022), Gradients without backpropagation, arXiv 2202.08587.
    """
    check_callable("loss", loss)
    for name, tensor in params.items():
        check_floating(f"params[{name!r}]", tensor)
    with torch.no_grad(), forward_ad.dual_level():
        duals = {name: _dual(p.detach()) for name, p in params.items()}
        mode = _Asking()
        try:
            with mode:
                loss(duals)
        except NotImplementedError as error:
            if _SIGN not in str(error):
                raise
            mode.found.append(_custom(error))
    return tuple(dict.fromkeys(mode.found))


def refuse_missing_rules(
    loss: Callable[[dict[str, Tensor]], Any], params: Mapping[str, Tensor], error: NotImplementedError
) -> None:
    """Raise ``NotImplementedError`` that names all operations of ``loss`` without a rule, where there are any."""
    missing = missing_forward_rules(loss, params)
    if missing:
        listed = "; ".join(map(str, missing))
        raise NotImplementedError(f"loss has operations without forward-mode rule: {listed}") from error


class _Asking(TorchFunctionMode):
    """Runs each operation on dual numbers; where that is refused, on their values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[MissingRule] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except NotImplementedError as error:
            if _SIGN not in str(error):
                raise
            self.found.append(_missing(resolve_name(func) or func.__name__, sys._getframe(1)))
        args, kwargs = tree_map(_primal, (args, kwargs))
        return tree_map(_dual, func(*args, **kwargs))


def _custom(error: BaseException) -> MissingRule:
    """Return the custom Function of which the traceback tells."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    assert traceback is not None
    found = _missing("a custom autograd.Function", traceback.tb_frame)
    name, _, rest = found.source.partition(".apply(")
    if rest:
        words = "".join(c if c.isalnum() or c in "._" else " " for c in name).split()
        found = MissingRule(f"{words[-1]}.apply", found.file, found.line, found.source)
    return found


def _missing(operation: str, frame: FrameType | None) -> MissingRule:
    """Name the line outside of torch that called."""
    while frame is not None and frame.f_back is not None:
        if not frame.f_code.co_filename.startswith(_TORCH) and frame.f_code.co_filename != __file__:
            break
        frame = frame.f_back
    assert frame is not None
    file, line = frame.f_code.co_filename, frame.f_lineno
    return MissingRule(operation, file, line, linecache.getline(file, line, frame.f_globals).strip())


def _primal(value: Any) -> Any:
    return forward_ad.unpack_dual(value).primal if isinstance(value, Tensor) else value


def _dual(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    return forward_ad.make_dual(_primal(value), torch.ones_like(_primal(value)))
