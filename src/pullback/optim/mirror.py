r"""Mirror descent: steps that are short in a distance other than Euclid's, with a simple term taken exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pullback.core.checks import (
    check_broadcast,
    check_choice,
    check_floating,
    check_positive,
    check_range,
    check_same_dtype,
)
from pullback.core.elementwise import Elementwise, State, check_lr
from pullback.core.shapes import Float
from pullback.core.transforms import can_look, physical

__all__ = ["MirrorDescent", "bregman", "mirror_step"]

Geometry = Literal["euclidean", "simplex", "power"]
Prox = Callable[[Tensor, Any], Tensor]


def mirror_step(
    x: Float[Tensor, "*#shape n"],
    gradient: Float[Tensor, "*#shape n"],
    step: float | Float[Tensor, "..."],
    *,
    geometry: str = "euclidean",
    exponent: float = 2.0,
    prox: Prox | None = None,
) -> Float[Tensor, "*shape n"]:
    r"""Return :math:`\arg\min_u h(u) + \langle g, u - x\rangle + D_\psi(u, x) / \eta`.

    =============  ============================  =====================================================
    geometry       :math:`\psi(u)`               step
    =============  ============================  =====================================================
    euclidean      :math:`|u|_2^2 / 2`           ``prox(x - eta g, eta)``
    simplex        :math:`\sum u \log u`         ``x exp(-eta g)``, scaled to the sum of ``x``
    power          :math:`\sum |u|^r / r`        ``m^{-1}(m(x) - eta g)``, ``m(u) = sign(u) |u|^{r-1}``
    =============  ============================  =====================================================

    The power geometry is uniformly convex of degree ``r``: for noise of which only the moment of order
    ``p = r / (r - 1)`` is finite. A gradient counts as its root, so that a wild one does not throw the iterate far.

    Args:
        x: ``[*shape, n]`` the point; with ``"simplex"`` rows > 0.
        gradient: ``[*shape, n]`` of the part without ``h``.
        step: ``eta`` > 0, a number or a tensor that broadcasts against ``x``.
        geometry: see the table.
        exponent: ``r`` >= 2 of ``"power"``; 2 is Euclid's.
        prox: with ``"euclidean"``, ``(point, eta) -> prox of eta h`` such as
            :func:`~pullback.implicit.prox_lasso` with its weight times ``eta``, or a projection; ``None``: ``h = 0``.

    Returns:
        ``[*shape, n]`` the next point, differentiable in all tensors.

    Raises:
        TypeError: ``x`` or ``gradient`` is no floating tensor, or their dtypes differ.
        ValueError: a step that is not positive, an unknown geometry, ``exponent`` below 2, ``prox`` with another
            geometry or of another shape, an entry on the simplex that is not positive.

    Example:
        >>> mirror_step(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0]), 1.0, geometry="simplex")
        tensor([0.7311, 0.2689])

    References:
        Beck, Teboulle (2003), Mirror descent and nonlinear projected subgradient methods. Liu, Zhou (2024), Revisiting
        the last-iterate convergence of stochastic gradient methods, algorithm 1.
    """
    check_floating("x", x)
    check_floating("gradient", gradient)
    check_same_dtype(x=x, gradient=gradient)
    check_broadcast(x=tuple(x.shape), gradient=tuple(gradient.shape))
    _check(geometry, exponent, prox)
    check_positive("step", physical(step.detach()) if isinstance(step, Tensor) and can_look(step) else step)
    if isinstance(step, Tensor):
        check_broadcast(step=tuple(step.shape), x=tuple(x.shape), gradient=tuple(gradient.shape))
        step = step.to(x.dtype)
    if geometry == "simplex":
        _check_positive(x)
        total = x.sum(-1, keepdim=True)
        share = torch.softmax(x.log() - step * gradient, -1)
        return (total * share).clamp(min=torch.finfo(x.dtype).tiny)  # an entry of 0 could never grow again
    if geometry == "power":
        return _root(_power(x, exponent - 1) - step * gradient, exponent - 1)
    moved = x - step * gradient
    if prox is None:
        return moved
    result = prox(moved, step)
    if not isinstance(result, Tensor) or result.shape != moved.shape:
        got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(f"prox must keep the shape {tuple(moved.shape)}, got {got}")
    return result


def bregman(
    x: Float[Tensor, "*#shape n"], y: Float[Tensor, "*#shape n"], *, geometry: str = "euclidean", exponent: float = 2.0
) -> Float[Tensor, "*shape"]:
    r"""Return the distance of mirror descent.

    .. math:: D_\psi(x, y) = \psi(x) - \psi(y) - \langle\nabla\psi(y), x - y\rangle

    Args:
        x: ``[*shape, n]``; with ``"simplex"`` >= 0.
        y: ``[*shape, n]``; with ``"simplex"`` > 0.
        geometry: as in :func:`mirror_step`; ``"simplex"`` is the divergence of Kullback and Leibler.
        exponent: of ``"power"``.

    Returns:
        ``[*shape]`` >= 0, 0 where ``x = y``.

    Raises:
        TypeError: ``x`` or ``y`` is no floating tensor, or their dtypes differ.
        ValueError: an unknown geometry, ``exponent`` below 2, or a ``y`` that is not positive on the simplex.

    Example:
        >>> bregman(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]), geometry="simplex")  # log 2
        tensor(0.6931)

    References:
        Bregman (1967), The relaxation method of finding the common point of convex sets.
    """
    check_floating("x", x)
    check_floating("y", y)
    check_same_dtype(x=x, y=y)
    check_broadcast(x=tuple(x.shape), y=tuple(y.shape))
    _check(geometry, exponent, None)
    if geometry == "simplex":
        _check_positive(y)
        inside = x > 0  # at 0 the slope is infinite: the entry has none here
        entropy = torch.where(inside, x * torch.where(inside, x, 1).log(), 0)
        return (entropy - x * y.log() - x + y).sum(-1)
    if geometry == "power":
        r = exponent
        return (x.abs() ** r / r - y.abs() ** r / r - _power(y, r - 1) * (x - y)).sum(-1)
    return (x - y).square().sum(-1) / 2


class MirrorDescent(Elementwise):
    r"""Composite stochastic mirror descent: :func:`mirror_step` for every parameter.

    Args:
        params: parameters, or dictionaries of parameter groups; with ``"simplex"`` the last dimension of each is
            positive and keeps its sum.
        lr: step size, > 0.
        geometry: ``"euclidean"``, ``"simplex"`` (multiplicative weights) or ``"power"``.
        exponent: ``r`` >= 2 of ``"power"``.
        prox: with ``"euclidean"``, ``(point, lr) -> point``, the proximal operator of the term ``h``.
        foreach: ``None``, ``True`` or ``False``, for the interface; each tensor is stepped by itself.

    Raises:
        TypeError: a number has the wrong type.
        ValueError: an option is out of range, or a parameter is not positive where it must be.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([0.5, 0.5]))
        >>> optimizer = MirrorDescent([w], lr=1.0, geometry="simplex")
        >>> w.grad = torch.tensor([0.0, 1.0])
        >>> optimizer.step()
        >>> w.data
        tensor([0.7311, 0.2689])

    References:
        Liu, Zhou (2024), Revisiting the last-iterate convergence of stochastic gradient methods, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        geometry: Geometry = "euclidean",
        exponent: float = 2.0,
        prox: Prox | None = None,
        foreach: bool | None = None,
    ) -> None:
        settings = {"geometry": geometry, "exponent": exponent, "prox": prox}
        super().__init__(params, {"lr": lr, "foreach": foreach, **settings})
        for group in self.param_groups:
            for p in group["params"] if group["geometry"] == "simplex" else ():
                _check_positive(p.detach(), "a parameter")

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Refuse options out of range."""
        check_lr(options)
        _check(options["geometry"], options["exponent"], options["prox"])

    @staticmethod
    def start(p: Tensor, options: Mapping[str, Any]) -> State:
        """Nothing is kept."""
        return {}

    @staticmethod
    def rule(p: Tensor, g: Tensor, state: State, options: Mapping[str, Any]) -> tuple[Tensor, State]:
        """The formula."""
        settings = {name: options[name] for name in ("geometry", "exponent", "prox")}
        flat = p.reshape(1) if p.ndim == 0 else p
        return mirror_step(flat, g.reshape(flat.shape), options["lr"], **settings).reshape(p.shape), {}

    @staticmethod
    def loop(params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]) -> None:
        """Tensor by tensor."""
        for p, g in zip(params, grads, strict=True):
            p.copy_(MirrorDescent.rule(p, g, {}, options)[0])


def _check(geometry: str, exponent: float, prox: Prox | None) -> None:
    check_choice("geometry", geometry, get_args(Geometry))
    check_range("exponent", exponent, 2, 1e6)
    if prox is not None and geometry != "euclidean":
        raise ValueError(f"prox is for geometry 'euclidean', got geometry {geometry!r}")


def _check_positive(x: Tensor, name: str = "x") -> None:
    bad = ~(x > 0)
    if can_look(bad) and bool(bad.any()):
        raise ValueError(f"{name} must be > 0 everywhere on the simplex: an entry of 0 could never grow")


def _power(x: Tensor, degree: float) -> Tensor:
    return x.sign() * x.abs() ** degree


def _root(y: Tensor, degree: float) -> Tensor:
    """Return the inverse of :func:`_power`, with derivative 0 at 0, where it has none."""
    zero = y == 0
    return torch.where(zero, 0, y.sign() * torch.where(zero, 1, y).abs() ** (1 / degree))
