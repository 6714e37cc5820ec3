"""Neural ODEs that satisfy specifications of their output at all times, by filtered parameters or inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pullback.core.checks import check_callable, check_choice, check_floating, check_integer, check_positive
from pullback.core.shapes import Float, Scalar
from pullback.core.transforms import can_look
from pullback.dynamics.barriers import barrier_condition
from pullback.dynamics.min_norm import Filtered, min_norm_filter
from pullback.dynamics.odeint import ODESolution, odeint

__all__ = ["InvariantODE", "InvariantSolution"]

THROUGH = ("output_layer", "inner_layer", "input")


class InvariantSolution(NamedTuple):
    """What :class:`InvariantODE` returns.

    Attributes:
        y: ``[times, *batch, n]`` the states.
        h: ``[times, *batch, m]`` the specifications at these times.
        intervention: ``[times, *batch]`` Euclidean length of the change of parameters or input.
        slack: ``[times, *batch, m]`` by how much the condition of a specification was relaxed.
        least: ``[*batch]`` the smallest specification at any of the times.
        solution: of :func:`odeint`, with its counts; its states go on with the freed parameters of an inner layer.
    """

    y: Float[Tensor, "times *batch n"]
    h: Float[Tensor, "times *batch m"]
    intervention: Float[Tensor, "times *batch"]
    slack: Float[Tensor, "times *batch m"]
    least: Float[Tensor, "*batch"]
    solution: ODESolution


class InvariantODE(nn.Module):
    r"""A neural ODE whose states satisfy ``h(y) >= 0`` at all times: invariance set propagation.

    The condition under which ``{h >= 0}`` is forward invariant (:func:`barrier_condition`) is put on something in which
    it is linear, and :func:`min_norm_filter` changes that as little as possible, at every evaluation of the field:

    * ``"output_layer"``: the weights and the bias of the last linear layer, of which the field is a linear function.
      Whichever columns of the weights were freed, the states would be the same: the field always changes along the
      gradients of the specifications.
    * ``"input"``: an input ``u`` of ``field(t, y, u)``, a feature or a control, of any relative degree.
    * ``"inner_layer"``: weights and biases ``w`` of a linear layer inside, which become states, ``dw/dt = v``; the
      condition is of one degree more and linear in ``v``. ``v`` is the solution of
      ``min |v|^2 + s^2`` with the conditions and ``2 (w - w') . v <= -c |w - w'|^2 + s``, which takes ``w`` back to its
      trained value ``w'``.

    Discrete steps leave a small error; it is small where ``classk <= 1 / step``.

    Args:
        field: a module ``field(t, y)``, or ``field(t, y, u)`` (any callable) for ``"input"``; it must allow further
            leading dimensions of ``y``, with ``t`` broadcast.
        specification: ``h(y)``: ``[*batch, n]`` to ``[*batch]`` or ``[*batch, m]``; further leading dimensions must be
            allowed.
        through: what is filtered.
        layer: name of the linear layer, as in ``field.named_modules()``; default the last one, or the first one for
            ``"inner_layer"``.
        units: of an inner layer, which of its outputs have free weights; default all.
        classk: as in :func:`barrier_condition`.
        degree: of ``"input"``, the relative degree of the specification in ``u``.
        slack: price of relaxing the condition of a specification, as in :func:`min_norm_filter`; default hard.
        restoring: the c above, >= 0 [1/time].
        start: what happens where a sample does not start inside: ``"raise"``, or ``"recover"``: the conditions lead it
            there exponentially.
        options: of :func:`odeint`: method (default ``rk4``), step, rtol, atol, adjoint.

    Raises:
        TypeError: ``field`` is no module (for layers), ``specification`` cannot be called.
        ValueError: a choice or name is unknown, ``degree`` is given for a layer.

    Example:
        >>> class Decay(torch.nn.Linear):  # dy/dt = -y
        ...     def forward(self, t, y):
        ...         return super().forward(y)
        >>> field = Decay(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(field.weight, -1.0)
        >>> safe = InvariantODE(field, lambda y: y - 0.5, classk=5.0, step=0.05)  # y >= 0.5
        >>> found = safe(torch.ones(1), torch.linspace(0, 3, 61))
        >>> round(found.y[-1].item(), 3), found.least.item() >= 0
        (0.5, True)

    References:
        Xiao, Wang, Hasani, Lechner, Ban, Gan, Rus (2023), On the forward invariance of neural ODEs, arXiv 2210.04763.
    """

    def __init__(
        self,
        field: Callable[..., Tensor],
        specification: Callable[[Tensor], Tensor],
        *,
        through: str = "output_layer",
        layer: str | None = None,
        units: Sequence[int] | None = None,
        classk: Scalar | Tensor | Callable[[Tensor], Tensor] = 1.0,
        degree: int | None = None,
        slack: float | None = None,
        restoring: float = 10.0,
        start: str = "raise",
        **options: Any,
    ) -> None:
        super().__init__()
        check_choice("through", through, THROUGH)
        check_choice("start", start, ("raise", "recover"))
        check_callable("field", field)
        check_callable("specification", specification)
        check_positive("restoring", restoring, zero=True)
        if through != "input" and not isinstance(field, nn.Module):
            raise TypeError(f"field must be a torch.nn.Module for through={through!r}, got {type(field).__name__}")
        if degree is not None and through != "input":
            raise ValueError(f"degree is that of an input, got {degree} for through={through!r}")
        if units is not None and through != "inner_layer":
            raise ValueError(f"units are those of an inner layer, got them for through={through!r}")
        self.field, self.specification, self.through = field, specification, through
        self.classk, self.slack, self.restoring, self.start = classk, slack, float(restoring), start
        self.degree = {"output_layer": 1, "inner_layer": 2}.get(through) or check_integer("degree", degree or 1, 1)
        self.options: dict[str, Any] = {"method": "rk4", **options}
        if through != "input":
            self._layer = _find_layer(field, layer, first=through == "inner_layer")  # type: ignore[arg-type]
            every = range(self._layer.out_features)
            self.units = [check_integer("units", i, 0, len(every) - 1) for i in (every if units is None else units)]

    def forward(
        self,
        y0: Float[Tensor, "*batch n"],
        t: Tensor | Sequence[float],
        inputs: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> InvariantSolution:
        """Solve from ``y0``.

        Args:
            y0: ``[*batch, n]``.
            t: the times, as in :func:`odeint`.
            inputs: ``inputs(t, y)`` ``[*batch, k]``, the observed input, for ``through="input"``.

        Returns:
            :class:`InvariantSolution`.

        Raises:
            ValueError: samples start outside (``start="raise"``; they are listed); ``inputs`` is missing or too much;
                the degree is not that of the system.
            ConvergenceError: the conditions of a sample contradict each other and there is no ``slack``.
        """
        check_floating("y0", y0)
        if y0.ndim == 0:
            raise ValueError("y0 must be [*batch, n], got no dimensions")
        if (inputs is None) == (self.through == "input"):
            raise ValueError(f"inputs are for through='input' and needed there, got {inputs} for {self.through!r}")
        if inputs is not None:
            check_callable("inputs", inputs)
        n = y0.shape[-1]
        inner = self.through == "inner_layer"
        state = torch.cat([y0, y0.new_zeros(*y0.shape[:-1], self._freed())], -1) if inner else y0
        first = torch.as_tensor(t, dtype=y0.dtype, device=y0.device)[..., :1].expand(*y0.shape[:-1], 1)
        self._check_start(first, state, inputs)

        def rate(t: Tensor, z: Tensor) -> Tensor:
            return self._flow(t, z, self.control(t, z, inputs).value)

        solution = odeint(rate, state, t, **self.options)
        z = solution.y
        times = solution.t.movedim(-1, 0).reshape(-1, *(solution.t.shape[:-1] or (1,) * (y0.ndim - 1)), 1).to(z)
        found = self.control(times.expand(*z.shape[:-1], 1), z, inputs)
        h = self._values(z)
        change = z[..., n:] if inner else found.value - (0 if inputs is None else inputs(times, z))
        m = h.shape[-1]
        least = h.amin((0, -1))
        intervention = torch.linalg.vector_norm(change, dim=-1)
        return InvariantSolution(z[..., :n], h, intervention, found.slack[..., :m], least, solution)

    def control(
        self,
        t: Float[Tensor, "*#batch 1"],
        y: Float[Tensor, "*batch n"],
        inputs: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Filtered:
        """Return the filtered change of the layer, its rate, or the filtered input, at states and times."""
        inner = self.through == "inner_layer"
        nominal = y.new_zeros(*y.shape[:-1], self._freed()) if inputs is None else inputs(t, y)
        condition = barrier_condition(
            self._values,
            lambda z, u: self._flow(t, z, u),
            y,
            nominal,
            classk=self.classk,
            degree=self.degree,
            check=False,
        )
        rows, offsets = condition
        slack: Any = self.slack
        if inner:
            moved = y[..., -nominal.shape[-1] :]
            rows = torch.cat([rows, -2 * moved[..., None, :]], -2)
            offsets = torch.cat([offsets, -self.restoring * moved.square().sum(-1, keepdim=True)], -1)
            slack = y.new_full((rows.shape[-2],), torch.inf if slack is None else slack)
            slack[-1] = 1.0
        return min_norm_filter(nominal, rows, offsets, slack=slack)

    def extra_repr(self) -> str:
        """What is filtered."""
        return f"through={self.through!r}, degree={self.degree}"

    def _flow(self, t: Tensor, z: Tensor, u: Tensor) -> Tensor:
        """Return the rate of the states, and of the parameters that became states."""
        if self.through == "input":
            return self.field(t, z, u)
        if self.through == "output_layer":
            with _changed(self._layer, u, range(self._layer.out_features)):
                return self.field(t, z)
        free = u.shape[-1]
        with _changed(self._layer, z[..., -free:], self.units):
            rate = self.field(t, z[..., :-free])
        return torch.cat([rate, u.expand(*rate.shape[:-1], free)], -1)

    def _values(self, z: Tensor) -> Tensor:
        y = z[..., : -self._freed()] if self.through == "inner_layer" else z
        h = self.specification(y)
        return h[..., None] if h.ndim == z.ndim - 1 else h

    def _freed(self) -> int:
        return len(self.units) * (self._layer.in_features + 1)

    def _check_start(self, t: Tensor, z: Tensor, inputs: Callable[[Tensor, Tensor], Tensor] | None) -> None:
        """Refuse a wrong degree, and samples that start outside of the set that the condition keeps."""
        if not can_look(z):
            return
        z = z.detach()
        with torch.no_grad():
            u = z.new_zeros(*z.shape[:-1], self._freed()) if inputs is None else inputs(t, z)
            outside = z.new_zeros(z.shape[:-1], dtype=torch.bool)
            value: Callable[[Tensor], Tensor] = self._values
            for _ in range(self.degree):
                outside = outside | (value(z) < 0).any(-1)
                value = self._next(value, t, u)
        barrier_condition(self._values, lambda z, u: self._flow(t, z, u), z, u, classk=self.classk, degree=self.degree)
        if self.start == "raise" and bool(outside.any()):
            listed = [tuple(i) if len(i) > 1 else i[0] for i in outside.nonzero().tolist()]
            raise ValueError(
                f"y0 must start inside of the specification (and of its derivatives up to {self.degree - 1}), samples "
                f"{listed} do not; start='recover' lets them in"
            )

    def _next(self, value: Callable[[Tensor], Tensor], t: Tensor, u: Tensor) -> Callable[[Tensor], Tensor]:
        def following(z: Tensor) -> Tensor:
            pair: Any = torch.func.jvp(value, (z,), (self._flow(t, z, u),))
            before, rate = pair
            return rate + (self.classk(before) if callable(self.classk) else self.classk * before)

        return following


def _find_layer(field: nn.Module, name: str | None, *, first: bool) -> nn.Linear:
    layers = {key: module for key, module in field.named_modules() if isinstance(module, nn.Linear)}
    if not layers:
        raise ValueError("field must have a torch.nn.Linear whose parameters can be filtered, got none")
    if name is None:
        return list(layers.values())[0 if first else -1]
    check_choice("layer", name, layers)
    return layers[name]


@contextmanager
def _changed(layer: nn.Linear, change: Tensor, units: Sequence[int]) -> Iterator[None]:
    """Add ``change``, weights and bias of every one of the units and of every sample, to a layer's parameters."""

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        table = change.unflatten(-1, (len(units), -1))
        moved = (table[..., :-1] * args[0][..., None, :]).sum(-1) + table[..., -1]
        if len(units) == output.shape[-1]:
            return output + moved
        return output + moved @ nn.functional.one_hot(torch.tensor(units), output.shape[-1]).to(moved)

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
