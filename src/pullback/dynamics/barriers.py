"""Control barrier functions of any relative degree: Lie derivatives, and the linear condition on what is controlled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import (
    check_broadcast,
    check_callable,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
)
from pullback.core.shapes import Float, Scalar
from pullback.core.transforms import can_look, transform_running

__all__ = ["BarrierCondition", "barrier_condition", "lie_derivative"]

Specification = Callable[[Tensor], Tensor]
"""``h(x)``: ``[*batch, n]`` to ``[*batch]`` or ``[*batch, m]``, sample by sample."""


class BarrierCondition(NamedTuple):
    """What :func:`barrier_condition` returns: ``rows u + offsets >= 0``.

    Attributes:
        rows: ``[*batch, m, k]`` one for each specification.
        offsets: ``[*batch, m]``.
    """

    rows: Float[Tensor, "*batch m k"]
    offsets: Float[Tensor, "*batch m"]


def lie_derivative(
    h: Specification, field: Callable[[Tensor], Tensor], x: Float[Tensor, "*batch n"], order: int = 1
) -> Float[Tensor, "..."]:
    r"""Return the derivative of a function along a field, ``L_f h = dh/dx f``, or that of the order asked for.

    .. math:: L_f^0 h = h, \qquad L_f^{i+1} h (x) = \frac{d}{ds} L_f^i h (x + s f(x)) \Big|_{s=0} .

    By forward mode, one level for each order: all values of ``h`` at the cost of about two evaluations a level.

    Args:
        h: ``h(x)``, any shape.
        field: ``field(x)`` with the shape of ``x``: dx/dt.
        x: ``[*batch, n]``.
        order: >= 0; 0 is ``h`` itself.

    Returns:
        The shape of ``h(x)``.

    Raises:
        TypeError: ``h`` or ``field`` is not callable, or ``x`` is no floating tensor.
        ValueError: ``order`` is negative, or the field returns another shape.

    Example:
        >>> energy = lambda x: x.square().sum(-1)
        >>> lie_derivative(energy, lambda x: -x, torch.tensor([1.0, 2.0]), order=2)  # 5 exp(-2t)
        tensor(20.)

    References:
        Isidori (1995), Nonlinear control systems, section 1.2.
    """
    check_callable("h", h)
    check_callable("field", field)
    check_floating("x", x)
    check_integer("order", order, 0)
    if order == 0:
        return h(x)
    x = x.contiguous().resolve_neg()  # forward mode wants a tangent of the layout of its tensor
    rate = field(x).contiguous().resolve_neg()
    if rate.shape != x.shape:
        raise ValueError(f"field must return the shape of x, {tuple(x.shape)}, got {tuple(rate.shape)}")
    value: Tensor = torch.func.jvp(lambda y: lie_derivative(h, field, y, order - 1), (x,), (rate,))[1]
    return value


def barrier_condition(
    h: Specification,
    field: Callable[[Tensor, Tensor], Tensor],
    x: Float[Tensor, "*#batch n"],
    u: Float[Tensor, "*#batch k"],
    *,
    classk: Scalar | Float[Tensor, "..."] | Callable[[Tensor], Tensor] = 1.0,
    degree: int = 1,
    check: bool = True,
) -> BarrierCondition:
    r"""Return the condition on ``u`` under which ``{x : h(x) >= 0}`` is forward invariant for ``dx/dt = field(x, u)``.

    .. math:: \psi_0 = h, \qquad \psi_i = \dot\psi_{i-1} + \alpha(\psi_{i-1}), \qquad \psi_r(x, u) \ge 0 ,

    with r the relative degree: the first derivative of ``h`` in which ``u`` appears, linearly. Where all
    ``psi_i >= 0, i < r`` at the start and ``psi_r >= 0`` at all times, ``h >= 0`` at all times. The condition reads
    ``rows u + offsets >= 0`` and is what :func:`min_norm_filter` takes.

    Args:
        h: ``h(x)``: ``[*batch, n]`` to ``[*batch]`` or ``[*batch, m]``, every specification >= 0 where it holds.
            Samples must not interact, and further leading dimensions must be allowed.
        field: ``field(x, u)``: dx/dt, linear (affine) in ``u``, with the same leading dimensions.
        x: ``[*batch, n]``.
        u: ``[*batch, k]`` where the field is expanded; the condition does not depend on it.
        classk: the class K function alpha: a number p for ``alpha(h) = p h``, a tensor of such that broadcasts against
            ``[*batch, m]``, or a function. A larger p is less conservative; discrete steps need ``p <= 1 / step``.
        degree: r >= 1.
        check: raise where the degree is not that of the system. Never under ``torch.func`` transforms.

    Returns:
        :class:`BarrierCondition`, differentiable in everything.

    Raises:
        TypeError: ``h`` or ``field`` is not callable, or a tensor is not floating.
        ValueError: a shape does not fit, ``classk`` is not positive, or ``degree`` is not the relative degree: ``u``
            appears in an earlier derivative, or not at all.

    Example:
        >>> speed_limit = lambda x: 1 - x[..., 0]  # dx/dt = u: u <= p (1 - x)
        >>> barrier_condition(speed_limit, lambda x, u: u, torch.tensor([0.5]), torch.zeros(1), classk=2.0)
        BarrierCondition(rows=tensor([[-1.]]), offsets=tensor([1.]))

    References:
        Xiao, Belta (2019), Control barrier functions for systems with high relative degree, arXiv 1903.04706;
        Xiao et al. (2023), On the forward invariance of neural ODEs, equations 3 to 8, arXiv 2210.04763.
    """
    check_callable("h", h)
    check_callable("field", field)
    check_floating("x", x)
    check_floating("u", u)
    check_same_dtype(x=x, u=u)
    check_integer("degree", degree, 1)
    if x.ndim == 0 or u.ndim == 0:
        raise ValueError(f"x must be [*batch, n] and u [*batch, k], got {tuple(x.shape)} and {tuple(u.shape)}")
    batch = check_broadcast(x=tuple(x.shape[:-1]), u=tuple(u.shape[:-1]))
    x, u = x.expand(*batch, -1), u.expand(*batch, -1)
    if not callable(classk) and (not isinstance(classk, Tensor) or can_look(classk)):
        check_positive("classk", classk)
    found = _condition(h, field, x, u, classk, degree)
    if check and can_look(found.rows) and not bool((found.rows != 0).any((-1, *range(found.rows.ndim - 2))).all()):
        # by accident, as where the gradient of h is 0 at this very point?
        near = x + 1e-3 * (1 + x.abs()) * torch.linspace(-0.7, 1, x.numel(), dtype=x.dtype, device=x.device).view_as(x)
        again = _condition(h, field, near.detach(), u.detach() + 0.1, classk, degree).rows
        absent = ~(again != 0).any((-1, *range(again.ndim - 2)))
        if bool(absent.any()):
            raise ValueError(
                f"degree must be the relative degree: u does not appear in derivative {degree} of specification "
                f"{int(absent.nonzero()[0])}"
            )
    return found


def _condition(
    h: Specification,
    field: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    u: Tensor,
    classk: float | Tensor | Callable[[Tensor], Tensor],
    degree: int,
) -> BarrierCondition:
    sample = h(x)
    single = sample.ndim == x.ndim - 1

    def specify(y: Tensor) -> Tensor:
        return h(y)[..., None] if single else h(y)

    def alpha(value: Tensor) -> Tensor:
        return classk(value) if callable(classk) else classk * value

    m = 1 if single else sample.shape[-1]
    if sample.shape != (x.shape[:-1] if single else (*x.shape[:-1], m)):
        raise ValueError(f"h must return [*batch] or [*batch, m] for x {tuple(x.shape)}, got {tuple(sample.shape)}")
    rate = field(x, u)
    if rate.shape != x.shape:
        raise ValueError(f"field must return the shape of x, {tuple(x.shape)}, got {tuple(rate.shape)}")
    # copy j of the samples is differentiated in specification j, so that one backward pass does for all
    xs, us = x.expand(m, *x.shape).clone(), u.expand(m, *u.shape).clone()
    if transform_running():
        value, gradient, early = _chain_in_transforms(specify, field, alpha, xs, us, degree)
        pulled: Any = torch.func.vjp(lambda v: field(xs, v), us)
        rate, rows = pulled[0], pulled[1](gradient)[0]
    else:
        value, gradient, early, rate, rows = _chain(specify, field, alpha, xs, us, degree)
    if degree > 1 and can_look(early) and bool((early != 0).any()):
        raise ValueError(f"degree must be the relative degree: u appears in a derivative before number {degree}")
    rows = rows.movedim(0, -2)
    return BarrierCondition(rows, _along(gradient, rate) + alpha(value) - (rows * u[..., None, :]).sum(-1))


def _along(gradient: Tensor, rate: Tensor) -> Tensor:
    return (gradient * rate).sum(-1).movedim(0, -1)


def _chain(
    h: Specification,
    field: Callable[[Tensor, Tensor], Tensor],
    alpha: Callable[[Tensor], Tensor],
    x: Tensor,
    u: Tensor,
    degree: int,
) -> tuple[Tensor, ...]:
    """Return the last but one psi, its gradients in both, the field, and its product with the first gradient.

    One evaluation of the field serves all orders. (``torch.func`` would not: it also refuses the hooks on saved tensors
    under which a solver may call.)
    """
    learning = torch.is_grad_enabled()
    with torch.enable_grad():
        probe = torch.stack([h(x[:1]).sum(), field(x[:1], u[:1]).sum()])
        wanted = probe.requires_grad and learning
        if probe.requires_grad:  # no leaves of our own, which a solver would take for parameters it does not know
            x, u = x + 0 * probe.sum(), u + 0 * probe.sum()
        else:
            x, u = x.requires_grad_(), u.requires_grad_()
        rate, value = field(x, u), h(x).diagonal(dim1=0, dim2=-1)
        for _ in range(degree - 1):
            (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True, materialize_grads=True)
            value = _along(gradient, rate) + alpha(value)
        words: Any = {"retain_graph": True, "create_graph": wanted, "materialize_grads": True}
        gradient, early = torch.autograd.grad(value.sum(), (x, u), allow_unused=True, **words)
        (rows,) = torch.autograd.grad(rate, u, gradient, allow_unused=True, **words)
    found = (value, gradient, early, rate, rows)
    return found if wanted else tuple(v.detach() for v in found)


def _chain_in_transforms(
    h: Specification,
    field: Callable[[Tensor, Tensor], Tensor],
    alpha: Callable[[Tensor], Tensor],
    x: Tensor,
    u: Tensor,
    degree: int,
) -> tuple[Tensor, ...]:
    def psi(i: int, y: Tensor, v: Tensor) -> Tensor:
        if i == 0:
            return h(y).diagonal(dim1=0, dim2=-1)
        pulled: Any = torch.func.vjp(lambda z: psi(i - 1, z, v), y)
        return _along(pulled[1](torch.ones_like(pulled[0]))[0], field(y, v)) + alpha(pulled[0])

    pulled: Any = torch.func.vjp(lambda y, v: psi(degree - 1, y, v), x, u)
    return pulled[0], *pulled[1](torch.ones_like(pulled[0]))
