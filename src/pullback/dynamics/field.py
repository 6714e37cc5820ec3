"""The field as the solvers see it: a function of flat states ``[samples, size]`` and times ``[samples, 1]``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["FlatField", "Layout"]


class Layout:
    """How a pytree of tensors ``[*batch, ...]`` becomes one matrix ``[samples, size]`` and back.

    Args:
        state: tensor or nested tuple, list, dict of floating tensors.
        batch_ndim: number of leading dimensions that number independent samples; default all but the last.
    """

    def __init__(self, state: Any, batch_ndim: int | None) -> None:
        leaves, self.tree = pytree.tree_flatten(state)
        if not leaves:
            raise ValueError("y0 must hold at least one tensor, got none")
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                got = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
                raise TypeError(f"y0 must be a floating tensor or a tree of them, got {got}")
            if leaf.ndim == 0:
                raise ValueError("y0 must have at least one dimension (the last is the state), got a scalar tensor")
        if batch_ndim is None:
            batch_ndim = leaves[0].ndim - 1
        if not 0 <= batch_ndim <= min(leaf.ndim for leaf in leaves):
            raise ValueError(f"batch_ndim must be between 0 and the dimensions of y0, got {batch_ndim}")
        self.batch = tuple(leaves[0].shape[:batch_ndim])
        self.shapes = [tuple(leaf.shape[batch_ndim:]) for leaf in leaves]
        for leaf in leaves:
            if tuple(leaf.shape[:batch_ndim]) != self.batch:
                raise ValueError(
                    f"y0's tensors must share their first {batch_ndim} dimensions (see batch_ndim), "
                    f"got shapes {[tuple(x.shape) for x in leaves]}"
                )
        self.dtype = leaves[0].dtype
        if any(leaf.dtype != self.dtype or leaf.device != leaves[0].device for leaf in leaves):
            raise ValueError(
                f"y0's tensors must share dtype and device, got {[(x.dtype, str(x.device)) for x in leaves]}"
            )
        self.samples = 1
        for n in self.batch:
            self.samples *= n
        self.sizes = [_product(shape) for shape in self.shapes]
        self.size = sum(self.sizes)
        self.single = isinstance(state, Tensor)
        self.flat = self.single and batch_ndim == 1 and len(self.shapes[0]) == 1
        state_dims = {len(shape) for shape in self.shapes}
        self.time_shape = self.batch + (1,) * max(1, state_dims.pop() if len(state_dims) == 1 else 1)

    def flatten(self, state: Any) -> Tensor:
        """``[samples, size]`` of a state."""
        if self.single:
            return state.reshape(self.samples, self.size)
        leaves = pytree.tree_leaves(state)
        return torch.cat([x.reshape(self.samples, n) for x, n in zip(leaves, self.sizes, strict=True)], 1)

    def unflatten(self, y: Tensor) -> Any:
        """The state of ``[..., samples, size]``; further leading dimensions stay in front."""
        lead = y.shape[:-2] + self.batch
        if self.single:
            return y.reshape(lead + self.shapes[0])
        parts = y.split(self.sizes, -1)
        return pytree.tree_unflatten([p.reshape(lead + s) for p, s in zip(parts, self.shapes, strict=True)], self.tree)


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for n in shape:
        result *= n
    return result


class FlatField:
    """``field`` on flat states, counted.

    Args:
        field: the user's ``field(t, y)``.
        layout: of its state.
        sign: 1, or -1 where time runs backwards: the solver then integrates in u = -t.
    """

    def __init__(self, field: Callable[[Tensor, Any], Any], layout: Layout, sign: float | Tensor = 1.0) -> None:
        self.field = field
        self.layout = layout
        self.sign = sign
        self.forward_evaluations = 0
        self.backward_evaluations = 0
        self.differentiates = False  # set where the field needs gradients switched on to be evaluated at all
        self._probed = False
        self._plain = layout.flat and isinstance(sign, float) and sign == 1.0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/du at times ``[samples or 1, 1]``, with gradients as they are switched on by the caller."""
        self.forward_evaluations += 1
        if self._plain and t.shape[0] == y.shape[0] and y.dtype == self.layout.dtype:
            out = self.field(t, y)
            if isinstance(out, Tensor) and out.shape == y.shape and out.dtype == y.dtype:
                return out
            return self._checked(out, y)
        return self.evaluate(t, y)

    def evaluate(self, t: Tensor, y: Tensor) -> Tensor:
        """The same, not counted as an evaluation of the forward solve."""
        layout = self.layout
        if t.shape[0] != layout.samples:
            t = t.expand(layout.samples, 1)
        if self._plain and y.dtype == layout.dtype:
            out = self.field(t, y)
            if isinstance(out, Tensor) and out.shape == y.shape and out.dtype == y.dtype:
                return out
            return self._checked(out, y)
        if self.sign is not None and not (isinstance(self.sign, float) and self.sign == 1.0):
            t = t * self.sign
        dtype = layout.dtype
        cast = dtype != y.dtype
        out = self.field(t.reshape(layout.time_shape).to(dtype), layout.unflatten(y.to(dtype) if cast else y))
        result = self._checked(out, y)
        return result if isinstance(self.sign, float) and self.sign == 1.0 else result * self.sign

    def _checked(self, out: Any, y: Tensor) -> Tensor:
        layout = self.layout
        leaves, tree = pytree.tree_flatten(out)
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in leaves]
        expected = [layout.batch + shape for shape in layout.shapes]
        if tree != layout.tree or shapes != expected:
            raise ValueError(f"field must return the structure and shapes of y, {expected}, got {shapes}")
        return layout.flatten(out).to(y.dtype)

    def quiet(self, t: Tensor, y: Tensor) -> Tensor:
        """The field without a graph, also where it needs gradients to be evaluated (an energy's gradient)."""
        if not self.differentiates:
            try:
                with torch.no_grad():
                    result = self(t, y)
                self._probed = True
                return result
            except RuntimeError:
                if self._probed:
                    raise
                self.forward_evaluations -= 1
                self.differentiates = True
        with torch.enable_grad():
            return self(t, y.detach().requires_grad_()).detach()
