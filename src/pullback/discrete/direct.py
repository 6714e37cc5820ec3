"""Soft-sorted values and ranks as one compiled operation: the common case of a finite input on the CPU, differentiated
once.

Everything here has its plain, composed form in ``methods.py``, which is taken under ``torch.func``, forward mode
and ``torch.compile``, for infinities, on other devices, without numba, and for derivatives of second order. All arrays
are numpy's: for small inputs the overhead of an operation is what counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pullback.core.shapes import Scalar
from pullback.core.transforms import is_transformed
from pullback.kernels.compiled import over_rows
from pullback.kernels.isotonic import isotonic
from pullback.kernels.laplace import balance, laplace_product, softsort, solve_balanced
from pullback.kernels.neuralsort import (
    gradient_rows,
    neuralsort_mean_gradient,
    neuralsort_transposed,
    weighted_rows,
)
from pullback.kernels.standardise import standardise

__all__ = [
    "ISOTONIC_RANKS",
    "ISOTONIC_VALUES",
    "NEURALSORT_RANKS",
    "NEURALSORT_VALUES",
    "SINKHORN_RANKS",
    "SINKHORN_VALUES",
    "SOFTSORT_RANKS",
    "SOFTSORT_VALUES",
    "Compiled",
    "direct",
]

_INSERTION = 24
"""Up to this size insertion in the kernel takes less time than a call of numpy's sort."""


class _Rows(NamedTuple):
    """The sorted input of one call: ``o``, ``order`` and ``y`` ``[b, n]``, ``spread [b]``, and the options."""

    o: np.ndarray
    order: np.ndarray
    y: np.ndarray
    spread: np.ndarray
    temperature: float
    relative: bool
    ranks: bool

    def payload(self) -> np.ndarray:
        """What is averaged: the values themselves, or their places."""
        if not self.ranks:
            return self.o
        return np.tile(np.arange(self.o.shape[1], dtype=self.o.dtype), (self.o.shape[0], 1))


class _Gradients(NamedTuple):
    """What goes back to the sorted values and to the scaled points."""

    o: np.ndarray
    y: np.ndarray


class Compiled(NamedTuple):
    """A compiled form of a method.

    Attributes:
        forward: from rows ``[b, n]``, the temperature and whether it is relative to the result and what the gradient
            needs; ``None`` where the rows are not finite, or too large.
        backward: from the cotangent and what was kept to the gradient in the rows and in the temperature.
    """

    forward: Callable[[np.ndarray, float, bool], tuple[np.ndarray, Any] | None]
    backward: Callable[[np.ndarray, Any], tuple[np.ndarray, float]]


def direct(
    x: Tensor,
    compiled: Compiled,
    temperature: Scalar,
    relative: bool,
    composed: Callable[[Tensor, Scalar], Tensor],
) -> Tensor | None:
    """Return the ascending soft-sorted values, or the soft ranks, ``[*batch, n]``; ``None`` where this form does not
    apply.

    Args:
        x: ``[*batch, n]`` of single or double precision.
        compiled: the form of the method.
        temperature: > 0.
        relative: the temperature is in units of the standard deviation.
        composed: the plain form, of ``x`` and the temperature, for derivatives of second order.

    Example:
        >>> direct(torch.tensor([1.0, float("nan")]), SOFTSORT_VALUES, 0.1, True, lambda x, t: x) is None
        True
    """
    if not x.is_cpu or not x.numel() or is_transformed(x) or standardise() is None:
        return None
    learned = temperature if isinstance(temperature, Tensor) else None
    if learned is not None and is_transformed(learned):
        return None
    number = float(temperature if learned is None else learned.detach())
    made = compiled.forward(_rows_of(x), number, relative)
    if made is None:
        return None
    if not (torch.is_grad_enabled() and (x.requires_grad or (learned is not None and learned.requires_grad))):
        return _shaped(made[0], x)
    result: Tensor = _Direct.apply(x, learned, made, number, compiled.backward, composed)
    return result


def _rows_of(x: Tensor) -> np.ndarray:
    rows = x.numpy(force=True)  # of lazily negated and of zero tensors too
    return np.ascontiguousarray(rows if rows.ndim == 2 else rows.reshape(-1, x.shape[-1]))


def _shaped(rows: np.ndarray, like: Tensor) -> Tensor:
    result = torch.from_numpy(rows)
    return result if like.ndim == 2 else result.view(like.shape)


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        learned: Tensor | None,
        made: tuple[np.ndarray, Any],
        temperature: float,
        backward: Callable[[np.ndarray, Any], tuple[np.ndarray, float]],
        composed: Callable[[Tensor, Scalar], Tensor],
    ) -> Tensor:
        result, kept = made
        ctx.save_for_backward(x, learned)
        ctx.parts = kept, temperature, backward, composed
        return _shaped(result, x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        kept, temperature, backward, composed = ctx.parts
        x, learned = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1]
        if torch.is_grad_enabled() or is_transformed(g):
            with torch.enable_grad():
                plain = composed(x, temperature if learned is None else learned)
            inputs = [t for t, needed in zip((x, learned), ctx.needs_input_grad, strict=False) if needed]
            grads = list(torch.autograd.grad(plain, inputs, g, create_graph=torch.is_grad_enabled()))
            to_x = grads.pop(0) if ctx.needs_input_grad[0] else None
            return to_x, grads.pop() if wanted else None, None, None, None, None
        out, to_temperature = backward(_rows_of(g), kept)
        return _shaped(out, g), learned.new_tensor(to_temperature) if wanted else None, None, None, None, None


def _of_points(
    forward: Callable[[_Rows], tuple[np.ndarray, Any]],
    backward: Callable[[_Rows, np.ndarray, Any], _Gradients],
    ranks: bool,
) -> Compiled:
    """Return the form of a method that works on sorted, scaled points.

    Args:
        forward: from the rows to the result and what the gradient needs.
        backward: from the rows, the cotangent and what was kept to the gradients.
        ranks: it gives the place of every item and not the values.
    """

    def whole(flat: np.ndarray, temperature: float, relative: bool) -> tuple[np.ndarray, Any] | None:
        o, y, spread = np.empty_like(flat), np.empty_like(flat), np.empty(flat.shape[0])
        if flat.shape[1] <= _INSERTION:
            order = np.full(flat.shape, -1)
        else:
            order = np.empty(flat.shape, np.int64)  # numpy's vectorised argsort takes a sixth of torch.sort's time
            over_rows(_argsort, flat, order)
        if not all(over_rows(standardise()[0], flat, order, temperature, relative, o, y, spread)):  # type: ignore[index]
            return None
        rows = _Rows(o, order, y, spread, temperature, relative, ranks)
        result, kept = forward(rows)
        return result, (rows, kept)

    def whole_back(g: np.ndarray, kept: Any) -> tuple[np.ndarray, float]:
        rows, inner = kept
        gradients = backward(rows, g, inner)
        out, grad_spread = np.empty_like(rows.o), np.zeros(rows.spread.shape)
        arrays = rows.o, rows.order, rows.y, rows.spread, gradients.y, grad_spread
        over_rows(standardise()[1], *arrays, rows.temperature, rows.relative, gradients.o, out)  # type: ignore[index]
        # The points are inversely proportional to the temperature.
        return out, -float((gradients.y * rows.y).sum(dtype=np.float64)) / rows.temperature

    return Compiled(whole, whole_back)


def _argsort(rows: np.ndarray, order: np.ndarray) -> None:
    order[:] = rows.argsort(-1)


def _to_items(rows: _Rows, by_place: np.ndarray) -> np.ndarray:
    if not rows.ranks:
        return by_place
    out = np.empty_like(by_place)
    over_rows(standardise()[2], by_place, rows.order, out)  # type: ignore[index]
    return out


def _to_places(rows: _Rows, by_item: np.ndarray) -> np.ndarray:
    return np.take_along_axis(by_item, rows.order, -1) if rows.ranks else by_item


def _gradients(rows: _Rows, grad_o: np.ndarray, grad_y: np.ndarray) -> _Gradients:
    return _Gradients(np.zeros_like(grad_o) if rows.ranks else grad_o, grad_y)


def _softsort(rows: _Rows) -> tuple[np.ndarray, Any]:
    values, total = np.empty_like(rows.o), np.empty_like(rows.y)
    payload = rows.payload()
    over_rows(softsort()[0], rows.y, payload, values, total)  # type: ignore[index]
    return _to_items(rows, values), (payload, values, total)


def _softsort_back(rows: _Rows, g: np.ndarray, kept: Any) -> _Gradients:
    payload, values, total = kept
    grad_o, grad_y = np.empty_like(rows.o), np.empty_like(rows.y)
    over_rows(softsort()[1], rows.y, payload, _to_places(rows, g), values, total, grad_o, grad_y)  # type: ignore[index]
    return _gradients(rows, grad_o, grad_y)


def _neuralsort(rows: _Rows) -> tuple[np.ndarray, Any]:
    kept = weighted_rows(rows.y, rows.o[:, None])
    return kept[0][:, 0], kept


def _neuralsort_back(rows: _Rows, g: np.ndarray, kept: Any) -> _Gradients:
    grad_y, grad_o = gradient_rows(rows.y, rows.o[:, None], g[:, None], *kept)
    return _gradients(rows, grad_o[:, 0], grad_y)


def _neuralsort_ranks(rows: _Rows) -> tuple[np.ndarray, Any]:
    places = rows.payload()
    weighed = np.stack([places, np.ones_like(places)], axis=1)
    moments = neuralsort_transposed(torch.from_numpy(rows.y), torch.from_numpy(weighed)).numpy()
    return _to_items(rows, moments[:, 0] / moments[:, 1]), (weighed, moments)


def _neuralsort_ranks_back(rows: _Rows, g: np.ndarray, kept: Any) -> _Gradients:
    weighed, moments = kept
    to_first = _to_places(rows, g) / moments[:, 1]
    cotangents = np.stack([to_first, -to_first * (moments[:, 0] / moments[:, 1])], axis=1)
    y, v, cotangent = (torch.from_numpy(a) for a in (rows.y, cotangents, weighed))
    return _gradients(rows, np.empty_like(rows.o), neuralsort_mean_gradient(y, v, cotangent)[0].numpy())


def _sinkhorn(rows: _Rows) -> tuple[np.ndarray, Any]:
    y, payload = torch.from_numpy(rows.y), torch.from_numpy(rows.payload())
    f = balance(y)
    u = f.exp()
    values = u * laplace_product(y, (u * payload).unsqueeze(1)).squeeze(1)
    return _to_items(rows, values.numpy()), (payload, f, u, values)


def _sinkhorn_back(rows: _Rows, g: np.ndarray, kept: Any) -> _Gradients:
    o, f, u, values = kept
    y, cotangent = torch.from_numpy(rows.y), torch.from_numpy(_to_places(rows, g))
    u_g, u_o = u * cotangent, u * o
    p_g = u * laplace_product(y, u_g.unsqueeze(1)).squeeze(1)
    w = solve_balanced(y, f, cotangent * values + o * p_g)
    u_w = u * w
    s_g, s_o, s_w, s_1 = laplace_product(y, torch.stack([u_g, u_o, u_w, u], dim=1), True).unbind(1)
    return _gradients(rows, p_g.numpy(), (u * s_w + u_w * s_1 - u_g * s_o - u_o * s_g).numpy())


def _isotonic_of(ranks: bool) -> Compiled:
    def forward(flat: np.ndarray, temperature: float, relative: bool) -> tuple[np.ndarray, Any] | None:
        bits = flat.view(np.uint32 if flat.itemsize == 4 else np.uint64)
        order, spread, out = np.empty(flat.shape, np.int32), np.empty(flat.shape[0]), np.empty_like(flat)
        options = temperature, relative, ranks
        if not all(over_rows(isotonic()[0], flat, bits, *options, order, spread, out)):  # type: ignore[index]
            return None
        return out, (flat, options, order, spread)

    def backward(g: np.ndarray, kept: Any) -> tuple[np.ndarray, float]:
        flat, options, order, spread = kept
        out, moment = np.empty_like(g), np.empty(flat.shape[0])
        over_rows(isotonic()[1], g, flat, *options, order, spread, out, moment)  # type: ignore[index]
        return out, -float(moment.sum()) / options[0]

    return Compiled(forward, backward)


SOFTSORT_VALUES = _of_points(_softsort, _softsort_back, ranks=False)
SOFTSORT_RANKS = _of_points(_softsort, _softsort_back, ranks=True)
NEURALSORT_VALUES = _of_points(_neuralsort, _neuralsort_back, ranks=False)
NEURALSORT_RANKS = _of_points(_neuralsort_ranks, _neuralsort_ranks_back, ranks=True)
SINKHORN_VALUES = _of_points(_sinkhorn, _sinkhorn_back, ranks=False)
SINKHORN_RANKS = _of_points(_sinkhorn, _sinkhorn_back, ranks=True)
ISOTONIC_VALUES = _isotonic_of(ranks=False)
ISOTONIC_RANKS = _isotonic_of(ranks=True)
