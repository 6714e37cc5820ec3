"""The functions of torchdiffeq by name and signature, solved by :func:`pullback.dynamics.odeint`: people switch by one
import.

What agrees agrees to rounding: fixed steps of the same method take the same steps; adaptive ones choose theirs by the
same norm, all of the state sharing one, with the guess and the growth of ``pullback``. ``odeint`` differentiates the
discrete solution, ``odeint_adjoint`` solves the adjoint backwards (implicit methods are checkpointed, which is exact).
Both differentiate the time of an event. The derivative in one of the times ``t`` is the field there, not that of the
length of a discrete step.

``explicit_adams`` and ``implicit_adams`` are of fourth order, whatever ``max_order`` says. Not there: ``perturb=True``
with adaptive steps, where ``jump_t`` does what is meant. An event between two fixed steps is looked for on a cubic,
whatever ``interp`` says.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from pullback.core.checks import check_choice
from pullback.dynamics import METHODS, AttemptedStep, Backsolve, Event, ODESolution, StepControl
from pullback.dynamics import odeint as solve

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]

_NAMES = {
    "dopri8": "dopri8",
    "dopri5": "dopri5",
    "tsit5": "tsit5",
    "bosh3": "bosh3",
    "fehlberg2": "fehlberg2",
    "adaptive_heun": "adaptive_heun",
    "euler": "euler",
    "midpoint": "midpoint",
    "heun2": "heun",
    "heun3": "heun3",
    "rk4": "rk38",
    "explicit_adams": "adams_bashforth",
    "implicit_adams": "adams_moulton",
    "fixed_adams": "adams_moulton",
    "implicit_euler": "implicit_euler",
    "implicit_midpoint": "implicit_midpoint",
    "trapezoid": "trapezoid",
    "radauIIA3": "radau3",
    "gl4": "gauss4",
    "radauIIA5": "radau5",
    "gl6": "gauss6",
    "sdirk2": "sdirk2",
    "trbdf2": "trbdf2",
    "scipy_solver": "dopri5",
}
_ADAPTIVE = frozenset(
    {"first_step", "min_step", "max_step", "safety", "ifactor", "dfactor", "max_num_steps", "step_t", "jump_t", "norm"}
    | {"dtype"}
)
_FIXED = frozenset({"step_size", "grid_constructor", "interp", "perturb", "norm", "dtype", "max_order", "max_iters"})
_SCIPY = frozenset({"solver", "min_step", "max_step", "norm", "dtype"})

State = Any
"""A tensor of any shape, or a tuple of them."""


def odeint(
    func: Callable[[Tensor, State], State],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[[Tensor, State], Tensor] | None = None,
) -> Any:
    """Solve dy/dt = func(t, y) and return y at every ``t``; with ``event_fn`` the event's time, y at start and event.

    Args:
        func: of ``t`` without dimensions and the state; its ``callback_step``, ``callback_accept_step`` and
            ``callback_reject_step``, where it has them, are called with ``(t, y, dt)``.
        y0: a tensor of any shape, or a tuple of them.
        t: ``[times]``. With ``event_fn`` the first two say where to begin and in which direction.
        rtol, atol: tolerances, numbers or one each tensor of the state.
        method: a name of torchdiffeq's; ``None`` is ``dopri5``.
        options: of torchdiffeq's for that method.
        event_fn: the solve ends where any of its values changes its sign.

    Returns:
        ``[times, ...]`` as ``y0``; or the time of the event and ``[2, ...]``.

    Raises:
        ValueError: a method or an option that there is not.
        ConvergenceError: NaN from the field, step underflow, ``max_num_steps``.

    Example:
        >>> odeint(lambda t, y: -y, torch.tensor(1.0), torch.tensor([0.0, 1.0]))
        tensor([1.0000, 0.3679])

    References:
        Chen (2018), torchdiffeq.
    """
    call = _Call.of(func, y0, t, rtol, atol, method, options)
    return call.until(event_fn) if event_fn is not None else call.at_times()


def odeint_adjoint(
    func: Callable[[Tensor, State], State],
    y0: State,
    t: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
    event_fn: Callable[[Tensor, State], Tensor] | None = None,
    adjoint_rtol: float | None = None,
    adjoint_atol: float | None = None,
    adjoint_method: str | None = None,
    adjoint_options: dict[str, Any] | None = None,
    adjoint_params: Sequence[Tensor] | None = None,
) -> Any:
    """The same, its gradient by the adjoint solved backwards, in constant memory.

    Args:
        func, y0, t, rtol, atol, method, options, event_fn: see :func:`odeint`. Adjoint callbacks are called too.
        adjoint_rtol, adjoint_atol, adjoint_method, adjoint_options: of the solve backwards. A ``norm`` of one's own is
            given ``(t, *y, *a, *parameters)``, of which the first and the last are zero: time and parameters never
            drive the steps (``"seminorm"`` is how it always is).
        adjoint_params: parameters that cannot be found; those of modules and closures are.

    Returns:
        See :func:`odeint`.

    Raises:
        ValueError: see :func:`odeint`.

    Example:
        >>> y0 = torch.tensor(1.0, requires_grad=True)
        >>> odeint_adjoint(lambda t, y: -y, y0, torch.tensor([0.0, 1.0]))[-1].backward()
        >>> y0.grad
        tensor(0.3679)
    """
    call = _Call.of(func, y0, t, rtol, atol, method, options)
    own = dict(options or {} if adjoint_options is None else adjoint_options)
    norm = own.pop("norm", None) if adjoint_options is not None else None
    reverse = _Call.of(func, y0, t, rtol, atol, adjoint_method or method, own)
    given = func.parameters() if adjoint_params is None and isinstance(func, torch.nn.Module) else adjoint_params or ()
    params = [p for p in given if p.requires_grad]
    call = replace(call, params=params, met=True)
    tableau = METHODS[reverse.name]
    if tableau.implicit or "adams" in tableau.name:
        call = replace(call, adjoint="checkpoint")
    else:
        control = replace(reverse.control, norm=_pair_norm(norm, params) if callable(norm) else None)
        step = own.get("step_size")
        watch = _callbacks(func, "_adjoint", tableau.adaptive)
        call = replace(
            call,
            adjoint=Backsolve(adjoint_rtol, adjoint_atol, reverse.name, step, control, watch),
        )
    return call.until(event_fn) if event_fn is not None else call.at_times()


def odeint_dense(
    func: Callable[[Tensor, State], State],
    y0: State,
    t0: Tensor,
    t1: Tensor,
    *,
    rtol: Any = 1e-7,
    atol: Any = 1e-9,
    method: str | None = None,
    options: dict[str, Any] | None = None,
) -> Callable[[Tensor], State]:
    """Solve from ``t0`` to ``t1`` and return the state as a function of the time between.

    Args:
        func, y0, rtol, atol, method, options: see :func:`odeint`.
        t0, t1: tensors without dimensions.

    Returns:
        A function of a time, differentiable in it too.

    Raises:
        ValueError: see :func:`odeint`.

    Example:
        >>> y = odeint_dense(lambda t, y: -y, torch.tensor(1.0), torch.tensor(0.0), torch.tensor(1.0))
        >>> y(torch.tensor(0.5))
        tensor(0.6065)
    """
    call = _Call.of(func, y0, torch.stack([torch.as_tensor(t0), torch.as_tensor(t1)]), rtol, atol, method, options)
    return call.solve(call.t, dense=True).interpolate


def odeint_event(
    func: Callable[[Tensor, State], State],
    y0: State,
    t0: Tensor,
    *,
    event_fn: Callable[[Tensor, State], Tensor],
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **words: Any,
) -> Any:
    """Solve from ``t0`` until an event; its time and state are differentiated by the implicit function theorem.

    Args:
        func, y0, event_fn: see :func:`odeint`.
        t0: a tensor without dimensions.
        reverse_time: whether to go backwards.
        odeint_interface: :func:`odeint` or :func:`odeint_adjoint`.
        words: its other arguments.

    Returns:
        The event's time, and ``[2, ...]`` states at start and event.

    Raises:
        ConvergenceError: there is no event within ``max_num_steps``.

    Example:
        >>> height = torch.tensor([20.0, 0.0], requires_grad=True)
        >>> def falling(t, y):
        ...     return torch.stack([y[1], torch.tensor(-10.0)])
        >>> time, _ = odeint_event(falling, height, torch.tensor(0.0), event_fn=lambda t, y: y[0])
        >>> slope = torch.autograd.grad(time, height)[0][0]
        >>> round(time.item(), 4), round(slope.item(), 4)  # sqrt(2 h / g), 1 / sqrt(2 g h)
        (2.0, 0.05)
    """
    start = torch.as_tensor(t0).reshape(())
    t = torch.stack([start, start.detach() + (-1.0 if reverse_time else 1.0)])
    return odeint_interface(func, y0, t, event_fn=event_fn, **words)


@dataclass(frozen=True)
class _Call:
    """One call, its arguments as ``pullback.dynamics.odeint`` takes them.

    Attributes:
        func, y0, t, rtol, atol: as given.
        name: of the method.
        options: as given.
        control: choices of adaptive steps.
        adjoint: how to differentiate.
        params: parameters that may not be found.
        met: whether those that the field does not use have the gradient zero rather than none.
    """

    func: Callable[[Tensor, State], State]
    y0: State
    t: Tensor
    rtol: Any
    atol: Any
    name: str
    options: dict[str, Any]
    scipy: str | None
    control: StepControl
    adjoint: str | Backsolve = "unrolled"
    params: Sequence[Tensor] = ()
    met: bool = False

    @classmethod
    def of(
        cls, func: Any, y0: State, t: Tensor, rtol: Any, atol: Any, method: str | None, options: dict[str, Any] | None
    ) -> _Call:
        name = method or "dopri5"
        check_choice("method", name, _NAMES)
        if not isinstance(t, Tensor) or t.ndim != 1:
            raise ValueError(f"t must be a tensor [times], got {tuple(t.shape) if isinstance(t, Tensor) else t!r}")
        options = options or {}
        scipy = options.get("solver", "LSODA") if name == "scipy_solver" else None
        own = METHODS[_NAMES[name]]
        known = _SCIPY if scipy else _ADAPTIVE if own.adaptive else _FIXED
        unknown = sorted(set(options) - known)
        if unknown:
            warnings.warn(f"{name} does not use the options {unknown}", stacklevel=3)
        used = {key: value for key, value in options.items() if key in known}
        check_choice("options['interp']", used.get("interp", "linear"), ("linear", "cubic"))
        return cls(func, y0, t, rtol, atol, own.name, used, scipy, _control(used, y0, t))

    def at_times(self) -> State:
        """States at all times."""
        if self.scipy:
            return self._scipy()
        grid = self._grid(self.t)
        if grid is None or len(self.t) < 2:
            return self.solve(self.t).y
        control = self.control
        if self.options.get("perturb"):
            control = replace(control, jumps=grid.detach())
        solution = self.solve(grid, control=control)
        return self._between(grid, solution.y)

    def solve(self, t: Tensor, *, control: StepControl | None = None, **words: Any) -> ODESolution:
        """By ``pullback``: the whole state is one sample, and shares its steps."""
        tableau = METHODS[self.name]
        start = tree_map(lambda part: _Met.apply(part, *self.params), self.y0) if self.met else self.y0
        return solve(
            lambda s, y: self.func(s.reshape(()), y),
            start,
            t,
            method=self.name,
            rtol=_each(self.rtol, self.y0),
            atol=_each(self.atol, self.y0),
            control=control or self.control,
            adjoint=self.adjoint,
            params=self.params,
            batch_ndim=0,
            max_steps=min(int(self.options.get("max_num_steps", 2**31 - 1)), 2**31 - 1),
            on_step=_callbacks(self.func, "", tableau.adaptive),
            **words,
        )

    def until(self, event_fn: Callable[[Tensor, State], Tensor]) -> tuple[Tensor, State]:
        """Time of the first event, and states at start and event."""
        if self.scipy:
            raise ValueError("event_fn is not available with method='scipy_solver'")
        if len(self.t) < 2:
            raise ValueError("t must hold two times with event_fn: where to begin, and the direction")
        start, forward = self.t[0], bool(self.t[1] > self.t[0])
        with torch.no_grad():
            signs = torch.as_tensor(event_fn(start, self.y0)).sign()

        def condition(s: Tensor, y: State) -> Tensor:  # all begin above zero: the first to fall below is the event
            return (torch.as_tensor(event_fn(s.reshape(()), y)) * signs).min()

        step = self.options.get("step_size")
        if step is None and not METHODS[self.name].adaptive:
            raise ValueError(f"options must give step_size for an event with fixed steps of {self.name}")
        t = torch.stack([start, torch.full_like(start, math.inf if forward else -math.inf)])
        solution = self.solve(t, events=Event(condition), step=step)
        return solution.event_times[0], solution.y  # type: ignore[index]

    def _grid(self, t: Tensor) -> Tensor | None:
        """Where fixed steps begin and end; ``None`` for the times themselves."""
        step, make = self.options.get("step_size"), self.options.get("grid_constructor")
        if step is not None and make is not None:
            raise ValueError("step_size and grid_constructor are mutually exclusive")
        if make is not None:
            grid = make(self.func, self.y0, t)
        elif step is not None:
            count = math.ceil(abs(float(t[-1] - t[0])) / float(step) - 1e-6)
            offsets = torch.arange(count, dtype=t.dtype, device=t.device) * step
            grid = torch.cat([t[:1] + (offsets if t[-1] > t[0] else -offsets), t[-1:]])
        else:
            return t if self.options.get("perturb") else None
        if not (bool(grid[0] == t[0]) and bool(grid[-1] == t[-1])):
            raise ValueError("the grid must begin and end with t")
        return torch.cat([t[:1], grid[1:-1], t[-1:]])  # with the gradients of t at both ends

    def _between(self, grid: Tensor, y: State) -> State:
        """States at the times, by a line or a cubic on the grid, through its values to the bit where they meet it."""
        ascending = grid.detach() if grid[-1] > grid[0] else -grid.detach()
        times = self.t.detach() if grid[-1] > grid[0] else -self.t.detach()
        right = torch.searchsorted(ascending, times.to(ascending)).clamp(1, len(grid) - 1)
        left = right - 1
        h = grid[right] - grid[left]
        x = (self.t.to(grid) - grid[left]) / h
        cubic = self.options.get("interp", "linear") == "cubic"
        slopes: Any = None
        if cubic:
            slopes = [self.func(s, tree_map(lambda part, i=i: part[i], y)) for i, s in enumerate(grid)]
            slopes = tree_map(lambda *parts: torch.stack(parts), slopes[0], *slopes[1:])

        def at(part: Tensor, slope: Tensor | None) -> Tensor:
            shape = (-1,) + (1,) * (part.ndim - 1)
            u, width, a, b = (
                x.reshape(shape).to(part.real.dtype),
                h.reshape(shape).to(part.real.dtype),
                part[left],
                part[right],
            )
            line = a + u * (b - a)
            if slope is not None:
                da, db = width * slope[left], width * slope[right]
                line = line + u * (1 - u) * ((1 - u) * (da - (b - a)) + u * ((b - a) - db))
            return torch.where(u == 1, b, torch.where(u == 0, a, line))

        return tree_map(at, y, slopes) if cubic else tree_map(lambda part: at(part, None), y)

    def _scipy(self) -> State:
        """Values by scipy; the gradient is that of ``pullback``'s solution to the same tolerances."""
        from scipy.integrate import solve_ivp

        if any(hasattr(self.func, f"callback_{name}") for name in ("step", "accept_step", "reject_step")):
            warnings.warn("scipy's solvers call no callbacks", stacklevel=4)
        if len(self.t) < 2 or torch.is_grad_enabled():
            ours = replace(self, scipy=None, options={}).at_times()
            if len(self.t) < 2:
                return ours
        flat, structure = torch.utils._pytree.tree_flatten(self.y0)
        shapes = [part.shape for part in flat]

        def unpack(y: Any) -> State:
            parts = torch.as_tensor(y).split([shape.numel() for shape in shapes])
            whole = [p.reshape(s).to(o) for p, s, o in zip(parts, shapes, flat, strict=True)]
            return torch.utils._pytree.tree_unflatten(whole, structure)

        def slope(s: float, y: Any) -> Any:
            with torch.no_grad():
                found = self.func(torch.tensor(s).to(self.t), unpack(y))
            return torch.cat([p.reshape(-1) for p in torch.utils._pytree.tree_leaves(found)]).double().numpy()

        times = self.t.detach().double().numpy()
        start = torch.cat([part.detach().reshape(-1) for part in flat]).double().numpy()
        words: dict[str, Any] = {key: self.options[key] for key in ("min_step", "max_step") if key in self.options}
        if self.scipy != "LSODA":
            words.pop("min_step", None)
        rtol, atol = (_flat(tolerance, shapes) for tolerance in (self.rtol, self.atol))
        found = solve_ivp(slope, (times[0], times[-1]), start, self.scipy, times, rtol=rtol, atol=atol, **words)
        if not found.success:
            raise ValueError(f"scipy's {self.scipy}: {found.message}")
        values = [unpack(row) for row in found.y.T]
        stacked = tree_map(lambda *parts: torch.stack(parts), values[0], *values[1:])
        if not torch.is_grad_enabled():
            return stacked
        return tree_map(lambda value, our: our + (value - our).detach(), stacked, ours)


class _Met(torch.autograd.Function):
    """The state as it is; parameters beside it, which it does not depend on, get the gradient zero."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, *params: Tensor) -> Tensor:
        ctx.save_for_backward(*params)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        return cotangents[0], *(torch.zeros_like(p) for p in ctx.saved_tensors)


def _control(options: dict[str, Any], y0: State, t: Tensor) -> StepControl:
    given = {ours: options[theirs] for theirs, ours in _CONTROLS.items() if options.get(theirs) is not None}
    jumps = [torch.as_tensor(options[name]) for name in ("step_t", "jump_t") if options.get(name) is not None]
    norm = options.get("norm")
    if norm is None and not isinstance(y0, Tensor):
        norm = _mixed_norm
    elif norm is not None and isinstance(y0, tuple):
        user = norm

        def norm(state: Any) -> Tensor:
            return user(tuple(state))

    return StepControl(
        **{key: float(value) for key, value in given.items()},
        norm=norm,
        jumps=torch.cat([j.reshape(-1).to(t) for j in jumps]) if jumps else (),
    )


_CONTROLS = {
    "first_step": "first",
    "min_step": "smallest",
    "max_step": "largest",
    "safety": "safety",
    "dfactor": "shrink",
    "ifactor": "grow",
}


def _mixed_norm(state: Any) -> Tensor:
    """The largest of the root mean squares of a tuple."""
    parts = [part.abs().square().mean().sqrt() for part in state if part.numel()]
    return torch.stack(parts).amax()


def _pair_norm(norm: Callable[[Any], Tensor], params: Sequence[Tensor]) -> Callable[[Any], Tensor]:
    def of_pair(pair: tuple[State, State]) -> Tensor:
        y, a = (tuple(part) if isinstance(part, list | tuple) else (part,) for part in pair)
        return norm((torch.zeros_like(y[0].real.sum()), *y, *a, *(torch.zeros_like(p) for p in params)))

    return of_pair


def _each(tolerance: Any, y0: State) -> Any:
    """A tolerance of each tensor in the structure of the state."""
    if isinstance(tolerance, tuple | list) and isinstance(y0, tuple | list):
        return type(y0)(tolerance)
    return tolerance


def _flat(tolerance: Any, shapes: Sequence[torch.Size]) -> Any:
    """A tolerance of each number of the state, for scipy."""
    if not isinstance(tolerance, tuple | list):
        return float(tolerance) if isinstance(tolerance, Tensor) and tolerance.numel() == 1 else tolerance
    parts = [torch.as_tensor(one).double().expand(shape.numel()) for one, shape in zip(tolerance, shapes, strict=True)]
    return torch.cat(parts).numpy()


def _callbacks(func: Any, suffix: str, adaptive: bool) -> Callable[[AttemptedStep], None] | None:
    """The callbacks that the field has, as one."""
    step, accept, reject = (
        getattr(func, f"callback_{name}{suffix}", None) for name in ("step", "accept_step", "reject_step")
    )
    if not adaptive and (accept is not None or reject is not None):
        warnings.warn("fixed steps are neither accepted nor rejected: those callbacks are not called", stacklevel=4)
        accept = reject = None
    if step is None and accept is None and reject is None:
        return None

    def told(attempt: AttemptedStep) -> None:
        y = attempt.y[0] if suffix else attempt.y
        for callback in (step, accept if bool(attempt.accepted) else reject):
            if callback is not None:
                callback(attempt.t, y, attempt.length)

    return told
