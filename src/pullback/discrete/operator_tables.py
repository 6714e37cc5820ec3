"""Exact tables of binary functions of integers, with a symbol for results outside of their domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from pullback.core.checks import check_callable, check_integer, check_tensor
from pullback.core.shapes import Int, Tensor
from pullback.core.transforms import can_look

__all__ = ["integer_operators", "operator_table"]

PASS = "pass"
"""The operator that every line has: its first argument."""


def operator_table(
    fn: Callable[[int, int], int], size: int, *, overflow: bool = True
) -> Int[Tensor, "symbols symbols"]:
    r"""Return the table ``T[x, y] = fn(x, y)`` of a function on ``0 .. size - 1``.

    With an overflow symbol, which is ``size``, results outside of the domain become that symbol, and so does everything
    that is computed from it: the table is closed.

    Args:
        fn: from two integers to one; called once for each pair.
        size: of the domain, >= 1.
        overflow: whether there is such a symbol; without one no result may leave the domain.

    Returns:
        ``[symbols, symbols]`` int64, ``symbols = size + 1`` with overflow, otherwise ``size``.

    Raises:
        TypeError: ``fn`` is not callable or returns something else than an integer, or ``size`` is no integer.
        ValueError: ``size`` < 1, or a result leaves the domain and there is no symbol for it.

    Example:
        >>> operator_table(lambda x, y: x + y, 2)
        tensor([[0, 1, 2],
                [1, 2, 2],
                [2, 2, 2]])

    References:
        Tang, Ellis (2023), From perception to programs: regularize, overparameterize, and amortize.
    """
    check_callable("fn", fn)
    check_integer("size", size, 1)
    table = torch.full((size + overflow,) * 2, size, dtype=torch.int64)
    for x in range(size):
        for y in range(size):
            result = fn(x, y)
            if isinstance(result, bool) or not isinstance(result, int):
                raise TypeError(f"fn must return an integer, got {type(result).__name__} for {x}, {y}")
            if 0 <= result < size:
                table[x, y] = result
            elif not overflow:
                raise ValueError(
                    f"fn must stay in 0..{size - 1} where there is no overflow symbol, got {result} for {x}, {y}"
                )
    return table


def integer_operators(size: int) -> dict[str, Int[Tensor, "symbols symbols"]]:
    """Return the tables of ``add``, ``sub``, ``absdiff``, ``max`` and ``min`` on ``0 .. size - 1``, with overflow.

    Args:
        size: of the domain, >= 1.

    Returns:
        The name of each operator and its table, see :func:`operator_table`.

    Raises:
        TypeError: ``size`` is no integer.
        ValueError: ``size`` < 1.

    Example:
        >>> {name: int(table[2, 5]) for name, table in integer_operators(6).items()}
        {'add': 6, 'sub': 6, 'absdiff': 3, 'max': 5, 'min': 2}
    """
    functions: dict[str, Callable[[int, int], int]] = {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "absdiff": lambda x, y: abs(x - y),
        "max": max,
        "min": min,
    }
    return {name: operator_table(fn, size) for name, fn in functions.items()}


def check_tables(operators: Mapping[str, Tensor]) -> int:
    """Return the number of symbols that all tables share, or raise by the name of the operator."""
    if not isinstance(operators, Mapping) or not operators:
        raise ValueError("operators must map at least one name to a table")
    symbols = 0
    for name, table in operators.items():
        if name == PASS:
            raise ValueError(f"operators must not be called {PASS}, which every line can do")
        if check_tensor(f"operators[{name!r}]", table).is_floating_point() or table.dtype == torch.bool:
            raise TypeError(f"operators[{name!r}] must hold integers, got {table.dtype}")
        symbols = symbols or (len(table) if table.ndim else 0)
        if table.ndim != 2 or not len(table) or tuple(table.shape) != (symbols, symbols):
            wanted = "a square" if symbols == 0 or table.ndim != 2 else f"shape ({symbols}, {symbols}), a square"
            raise ValueError(f"operators[{name!r}] must be {wanted}, got shape {tuple(table.shape)}")
        if int(table.min()) < 0 or int(table.max()) >= symbols:
            raise ValueError(
                f"operators[{name!r}] must stay in 0..{symbols - 1}, got {int(table.min())}..{int(table.max())}: "
                "a result that leaves the domain needs an overflow symbol"
            )
    return symbols


def check_symbols(name: str, value: Tensor, symbols: int) -> None:
    """Raise unless the tensor holds symbols; the first place that does not is named."""
    if check_tensor(name, value).is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {value.dtype}")
    if not can_look(value):
        return
    outside = (value < 0) | (value >= symbols)
    if bool(outside.any()):
        place = outside.nonzero()[0].tolist()
        raise ValueError(f"{name} must be in 0..{symbols - 1}, got {int(value[tuple(place)])} at {place}")
