"""The arguments of ``odeint``: checked, and brought into the form in which the solvers take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pullback.core.checks import check_broadcast, check_callable, check_choice, check_positive, check_scalar
from pullback.core.rows import Rows
from pullback.core.shapes import Bool, Float
from pullback.dynamics.adams import Multistep
from pullback.dynamics.adjoints import ADJOINTS
from pullback.dynamics.control import Control, StepControl
from pullback.dynamics.loop import OnStep
from pullback.dynamics.methods import METHODS
from pullback.dynamics.problem import Adjoint, Reverse
from pullback.dynamics.steps import Stepper
from pullback.dynamics.storage import Step
from pullback.dynamics.tableaux import Tableau

__all__ = ["AttemptedStep", "Backsolve", "adjoint_of", "control_of", "grid_of", "observer", "times_of"]


class AttemptedStep(NamedTuple):
    """What ``odeint(on_step=...)`` is told of each attempted step.

    Attributes:
        t: ``[*batch]`` its start.
        length: ``[*batch]``, negative where time runs backwards; 0 for a sample that is done.
        y: the state at its start, as ``y0``.
        accepted: ``[*batch]``.
    """

    t: Float[Tensor, "*batch"]
    length: Float[Tensor, "*batch"]
    y: Any
    accepted: Bool[Tensor, "*batch"]


@dataclass(frozen=True)
class Backsolve:
    """The adjoint of Chen et al. (2018), ``odeint(adjoint="backsolve")``, with choices of its own.

    Args:
        rtol: relative tolerance of the reverse solve, > 0; ``None``, here and below: that of the solve.
        atol: absolute tolerance, >= 0.
        method: an explicit one.
        step: fixed steps, > 0.
        control: its ``norm`` is given the pair ``(y, a)`` of state and adjoint. The parameters' share never drives the
            steps (the seminorm of Kidger et al. 2021).
        on_step: told of each attempted step backwards, as ``odeint(on_step=...)``, with ``y`` the pair ``(y, a)``.

    Raises:
        ValueError: ``method`` is none that a reverse solve can use.

    Example:
        >>> from pullback.dynamics import odeint
        >>> y0 = torch.ones(1, requires_grad=True)
        >>> other = Backsolve(rtol=1e-6, method="bosh3")
        >>> odeint(lambda t, y: -y, y0, [0.0, 1.0], adjoint=other).y[-1].backward()
        >>> round(y0.grad.item(), 3)
        0.368

    References:
        Chen, Rubanova, Bettencourt, Duvenaud (2018), Neural ordinary differential equations, arXiv 1806.07366; Kidger,
        Chen, Lyons (2021), "Hey, that's not an ODE", arXiv 2009.09457.
    """

    rtol: float | None = None
    atol: float | None = None
    method: str | None = None
    step: float | None = None
    control: StepControl | None = None
    on_step: Callable[[AttemptedStep], None] | None = None

    def __post_init__(self) -> None:
        if self.method is not None:
            usable = [t.name for t in METHODS.values() if _reversible(t)]
            check_choice("method", self.method, usable)
        for name, zero in (("rtol", False), ("atol", True), ("step", False)):
            if getattr(self, name) is not None:
                number(name, getattr(self, name), zero=zero)


def _reversible(tableau: Tableau) -> bool:
    """Whether a method can solve an adjoint backwards."""
    return not (tableau.implicit or tableau.partitioned or isinstance(tableau, Multistep))


def number(name: str, value: Any, *, zero: bool = False) -> float:
    """A number that controls the solve: it has no gradient, and is one number for all samples."""
    found = check_scalar(name, value, zero=zero)
    if found is None:
        raise ValueError(f"{name} must be one number for all, got a tensor that a transform maps over")
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(f"{name} has no gradient: it must not require one")
    return found


def control_of(
    rows: Rows,
    rtol: Any,
    atol: Any,
    step: Any,
    shared: bool,
    max_steps: int,
    options: StepControl | None,
) -> Control:
    """How the steps of a solve of such states are chosen."""
    if options is not None and not isinstance(options, StepControl):
        raise TypeError(f"control must be a StepControl, got {type(options).__name__}")
    options = options or StepControl()
    norm = None if options.norm is None else _row_norm(options.norm, rows, shared)
    return Control(
        _tolerance("rtol", rtol, rows),
        _tolerance("atol", atol, rows, zero=True),
        None if step is None else number("step", step),
        shared,
        max_steps,
        options,
        norm,
        rows.complex,
    )


def _tolerance(name: str, value: Any, rows: Rows, *, zero: bool = False) -> float | Tensor:
    """A number, or one for each component of the state: ``[1, size]``."""
    if isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0):
        return number(name, value, zero=zero)
    leaves, structure = pytree.tree_flatten(value)
    if structure != rows.structure:
        raise ValueError(f"{name} must be a number or have the structure of y0, {rows.structure}, got {structure}")
    parts = []
    for leaf, shape in zip(leaves, rows.shapes, strict=True):
        if not isinstance(leaf, int | float | Tensor) or isinstance(leaf, bool):
            raise TypeError(f"{name} must be a number, or hold numbers or tensors, got {type(leaf).__name__}")
        part = torch.as_tensor(leaf, dtype=rows.dtype, device=rows.device)
        if part.requires_grad:
            raise ValueError(f"{name} has no gradient: it must not require one")
        if check_broadcast(y0=shape, **{name: tuple(part.shape)}) != shape:
            raise ValueError(f"{name} must broadcast against one sample of y0, {shape}, got {tuple(part.shape)}")
        part = part.expand(shape).reshape(-1)
        parts.append(part.repeat_interleave(2) if rows.complex else part)
    whole = torch.cat(parts).unsqueeze(0)
    check_positive(name, whole, zero=zero)
    return whole.float() if whole.dtype in (torch.float16, torch.bfloat16) else whole


def _row_norm(norm: Callable[[Any], Tensor], rows: Rows, shared: bool) -> Callable[[Tensor], Tensor]:
    """``norm`` of the user on rows: ``[M, 1]``."""

    def of_rows(x: Tensor) -> Tensor:
        value = norm(rows.unpack(x.to(rows.dtype)))
        expected = () if shared else rows.batch
        if not isinstance(value, Tensor) or tuple(value.shape) != expected:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"norm must return a tensor of shape {expected}, got {got}")
        return value.to(x.dtype).reshape(-1, 1)

    return of_rows


def adjoint_of(
    adjoint: str | Backsolve, tableau: Tableau, control: Control, rows: Rows, sign: Any, dense: bool
) -> tuple[Adjoint, Reverse]:
    """The way of differentiating, and how it is solved."""
    if not isinstance(adjoint, str | Backsolve):
        raise TypeError(f"adjoint must be a name or a Backsolve, got {type(adjoint).__name__}")
    own = adjoint if isinstance(adjoint, Backsolve) else Backsolve()
    name = adjoint if isinstance(adjoint, str) else "backsolve"
    check_choice("adjoint", name, ADJOINTS)
    way = ADJOINTS[name]
    used = METHODS[own.method] if own.method is not None else tableau
    if not way.exact:
        allowed = ", ".join(repr(a.name) for a in ADJOINTS.values() if a.exact)
        if not _reversible(used):
            raise ValueError(f"adjoint must be one of {allowed} for method={used.name!r}, got {name!r}")
        if dense:
            raise ValueError(f"adjoint must be one of {allowed} with dense=True, got {name!r}")
    if isinstance(tableau, Multistep):
        way = ADJOINTS["unrolled"]  # a step cannot be redone without those before it
    options = own.control or control.options
    norm: Callable[[Tensor], Tensor] | None = None
    if options.norm is not None:
        norm = _pair_norm(options.norm, rows, control.shared, together=own.control is not None)
    rtol, atol = (torch.cat([x, x], 1) if isinstance(x, Tensor) else x for x in (control.rtol, control.atol))
    reverse = Control(
        rtol if own.rtol is None else own.rtol,
        atol if own.atol is None else own.atol,
        control.step if own.step is None else own.step,
        control.shared,
        control.max_steps,
        options,
        norm,
        control.complex,
    )
    watch = None if own.on_step is None else observer(own.on_step, rows, sign, reverse=True)
    return way, Reverse(used, reverse, watch)


def _pair_norm(
    norm: Callable[[Any], Tensor], rows: Rows, shared: bool, *, together: bool
) -> Callable[[Tensor], Tensor]:
    """Of state and adjoint side by side: the user's norm of the pair, or the larger of that of each."""

    def of_rows(x: Tensor) -> Tensor:
        halves = x.split(rows.size, 1)
        if not together:
            alone = _row_norm(norm, rows, shared)
            return torch.maximum(alone(halves[0]), alone(halves[1]))
        value = norm(tuple(rows.unpack(half.to(rows.dtype)) for half in halves))
        return value.to(x.dtype).reshape(-1, 1)

    return of_rows


def observer(on_step: Callable[[AttemptedStep], None], rows: Rows, sign: Any, *, reverse: bool = False) -> OnStep:
    """``on_step`` of the user on flat steps; backwards, of state and adjoint side by side."""
    check_callable("on_step", on_step)
    turn = -sign if reverse else sign

    def watch(step: Step, stepper: Stepper) -> None:
        def column(x: Tensor) -> Tensor:
            return rows.per_row((x * turn).detach().expand(rows.count, 1)[:, 0].clone())

        parts = step.y.detach().clone().split(rows.size, 1)
        states = tuple(rows.unpack(part.to(rows.dtype)) for part in parts)
        accepted = rows.per_row((step.h > 0).expand(rows.count, 1)[:, 0])
        on_step(AttemptedStep(column(step.t), column(step.t_next - step.t), states if reverse else states[0], accepted))

    return watch


def times_of(name: str, t: Any, y: Tensor) -> Tensor:
    """Times as one tensor."""
    if not isinstance(t, Tensor):
        if not isinstance(t, Sequence) or isinstance(t, str):
            raise TypeError(f"{name} must be a tensor or a sequence of numbers, got {type(t).__name__}")
        for value in t:
            if isinstance(value, bool | str) or not isinstance(value, int | float | Tensor):
                raise TypeError(f"{name} must hold numbers, got {type(value).__name__}")
        if not t:
            return y.new_empty(0)
        return torch.stack([torch.as_tensor(value, dtype=y.dtype, device=y.device) for value in t])
    if t.is_complex() or t.dtype == torch.bool:
        raise TypeError(f"{name} must hold real numbers, got {t.dtype}")
    if t.ndim == 0:
        raise ValueError(f"{name} must hold one time or more, got a scalar tensor")
    return t


def grid_of(grid: Any, times: Tensor, y: Tensor, sign: float | Tensor) -> tuple[Tensor, Tensor]:
    """The points of a grid of the user's inside the times of all samples, with these.

    Returns:
        ``[points]`` ascending, and the index of each of the times among them.
    """
    points = times_of("grid", grid, y).detach().to(y) * sign
    if points.ndim != 1:
        raise ValueError(f"grid must have shape [points], got {tuple(points.shape)}")
    if times.shape[1] != 1:
        raise ValueError("t must be the same for all samples with a grid, [times]")
    if not bool(torch.isfinite(points).all()):
        raise ValueError("grid must be finite")
    own = times[:, 0, 0]
    inner = points[(points > own[0]) & (points < own[-1])]
    everything = torch.cat([own.detach(), inner]).unique(sorted=True)
    return everything, torch.searchsorted(everything, own.detach())
