"""Smooth functions of a weight matrix that are zero exactly for acyclic graphs."""

from __future__ import annotations

import math
from typing import Any

import torch

from pullback.causal.graphs import check_square
from pullback.core.checks import check_choice, check_floating, check_scalar
from pullback.core.gradients import nested_forward_mode, primals
from pullback.core.shapes import Float, Tensor

__all__ = ["acyclicity"]

METHODS = ("logdet", "exponential", "polynomial", "spectral")


def acyclicity(
    weights: Float[Tensor, "*batch d d"], *, method: str = "logdet", scale: float | Float[Tensor, ""] = 1.0
) -> Float[Tensor, "*batch"]:
    r"""Return how far a weighted graph is from being acyclic; zero exactly for a DAG (non-negative elsewhere).

    With :math:`A = W \circ W` (elementwise square):

    * ``"logdet"``: :math:`-\log\det(sI - A) + d\log s`; **+inf outside its domain**, the M-matrices (spectral radius of
      :math:`A` below ``scale``), with gradient zero there;
    * ``"exponential"``: :math:`\mathrm{tr}\, e^{A} - d`; +inf with gradient zero where the exponential overflows;
    * ``"polynomial"``: :math:`\mathrm{tr}\,(I + A/d)^d - d`; likewise;
    * ``"spectral"``: the spectral radius of :math:`A`, with the gradient of a simple eigenvalue (first order only).

    Each backward pass is the closed form and reuses the forward factorisation: :math:`2W\circ(sI-A)^{-T}`,
    :math:`2W\circ (e^A)^T`, :math:`2W\circ ((I+A/d)^{d-1})^T`.

    Args:
        weights: ``[*batch, d, d]``, ``W[i, j]`` the arc ``i -> j``.
        method: one of the four names.
        scale: ``s > 0`` of the log-determinant; the others ignore it.

    Returns:
        ``[*batch]`` values >= 0.

    Raises:
        ValueError: not square, unknown method, ``scale <= 0``.

    Example:
        >>> dag = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
        >>> cycle = torch.tensor([[0.0, 0.5], [0.5, 0.0]])
        >>> [round(acyclicity(w, method="exponential").item(), 4) for w in (dag, cycle)]
        [0.0, 0.0628]
        >>> acyclicity(2 * torch.ones(2, 2)).item()
        inf

    References:
        Zheng et al. (2018), NOTEARS, eq. 8; Yu et al. (2019), DAG-GNN, eq. 13; Lee et al. (2019), NO BEARS;
        Bello, Aragam, Ravikumar (2022), DAGMA, eq. 6.
    """
    check_choice("method", method, METHODS)
    check_scalar("scale", scale)
    nodes = check_square("weights", check_floating("weights", weights))
    working = weights.to(torch.promote_types(weights.dtype, torch.float32))
    squared = working * working
    identity = torch.eye(nodes, dtype=working.dtype, device=weights.device)
    if method == "logdet":
        log_determinant, inverse = _LogDeterminant.apply(scale * identity - squared)
        # sI - A is an M-matrix iff its inverse is non-negative; the tolerance is rounding of the inverse.
        tolerance = 1e3 * torch.finfo(working.dtype).eps * inverse.detach().abs().amax((-2, -1))
        inside = (inverse.detach().amin((-2, -1)) >= -tolerance) & log_determinant.detach().isfinite()
        log_scale = scale.log() if isinstance(scale, Tensor) else math.log(scale)
        value = nodes * log_scale - log_determinant
        value = torch.where(inside, value, torch.full_like(value, math.inf))
    elif method == "exponential":
        value = _TraceExponential.apply(squared)[0] - nodes
    elif method == "polynomial":
        value = _TracePower.apply(squared)[0] - nodes
    else:
        value = _spectral_radius(squared)
    return value.to(weights.dtype)


class _LogDeterminant(torch.autograd.Function):
    """``log |det M|`` and the inverse that its derivative needs, from one LU factorisation."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> tuple[Tensor, Tensor]:
        factor, pivots = torch.linalg.lu_factor_ex(matrix)[:2]
        diagonal = factor.diagonal(dim1=-2, dim2=-1)
        regular = (diagonal != 0).all(-1)[..., None, None]
        identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(matrix)
        inverse = torch.linalg.lu_solve(torch.where(regular, factor, identity), pivots, identity)
        inverse = torch.where(regular, inverse, -torch.ones_like(inverse))
        return diagonal.abs().log().sum(-1), inverse

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])
        ctx.save_for_forward(output[1])

    @staticmethod
    def backward(ctx: Any, of_value: Tensor | None, of_inverse: Tensor | None) -> Tensor | None:
        (inverse,) = ctx.saved_tensors
        result = None if of_value is None else of_value[..., None, None] * inverse.mT
        if of_inverse is not None:
            through = -inverse.mT @ of_inverse @ inverse.mT
            result = through if result is None else result + through
        return result

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, Tensor]:
        with nested_forward_mode():
            (inverse,) = primals(ctx.saved_tensors)
            return (inverse.mT * tangent).sum((-2, -1)), -inverse @ tangent @ inverse


class _TraceExponential(torch.autograd.Function):
    """``tr exp(A)``; its gradient ``exp(A)^T`` is at hand after the forward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> tuple[Tensor, Tensor]:
        exponential = torch.linalg.matrix_exp(matrix)
        return _or_infinity(exponential.diagonal(dim1=-2, dim2=-1).sum(-1), exponential)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])
        ctx.save_for_forward(inputs[0], output[1])

    @staticmethod
    def backward(ctx: Any, of_value: Tensor, _: Tensor | None) -> Tensor:
        matrix, exponential = ctx.saved_tensors
        if torch.is_grad_enabled():  # A second derivative may be wanted: tie the exponential to its input.
            fits = _fits(exponential)
            exponential = torch.linalg.matrix_exp(matrix * fits) * fits
        return of_value[..., None, None] * exponential.mT

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, None]:
        with nested_forward_mode():  # the exponential again, tied to its input for a second derivative
            matrix, exponential = primals(ctx.saved_tensors)
            fits = _fits(exponential)
            exponential = torch.linalg.matrix_exp(matrix * fits) * fits
            return (exponential.mT * tangent).sum((-2, -1)), None


class _TracePower(torch.autograd.Function):
    """``tr (I + A/d)^d``; its gradient is the transpose of the power ``d - 1``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> tuple[Tensor, Tensor]:
        shifted, power = _shifted_power(matrix)
        return _or_infinity((power.mT * shifted).sum((-2, -1)), power)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])
        ctx.save_for_forward(inputs[0], output[1])

    @staticmethod
    def backward(ctx: Any, of_value: Tensor, _: Tensor | None) -> Tensor:
        matrix, power = ctx.saved_tensors
        if torch.is_grad_enabled():
            fits = _fits(power)
            power = _shifted_power(matrix * fits)[1] * fits
        return of_value[..., None, None] * power.mT

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, None]:
        with nested_forward_mode():
            matrix, power = primals(ctx.saved_tensors)
            fits = _fits(power)
            power = _shifted_power(matrix * fits)[1] * fits
            return (power.mT * tangent).sum((-2, -1)), None


def _or_infinity(value: Tensor, derivative: Tensor) -> tuple[Tensor, Tensor]:
    """Infinity with derivative zero where one of them has overflowed."""
    fits = value.isfinite() & derivative.isfinite().all(-1).all(-1)
    value = torch.where(fits, value, torch.full_like(value, math.inf))
    return value, torch.where(fits[..., None, None], derivative, torch.zeros_like(derivative))


def _fits(derivative: Tensor) -> Tensor:
    """1 where :func:`_or_infinity` kept a derivative, else 0: what it keeps has a positive diagonal."""
    return (derivative.detach().diagonal(dim1=-2, dim2=-1).amax(-1) > 0)[..., None, None].to(derivative.dtype)


def _shifted_power(matrix: Tensor) -> tuple[Tensor, Tensor]:
    nodes = matrix.shape[-1]
    shifted = torch.eye(nodes, dtype=matrix.dtype, device=matrix.device) + matrix / nodes
    return shifted, torch.linalg.matrix_power(shifted, nodes - 1)


def _spectral_radius(matrix: Tensor, squarings: int = 30) -> Tensor:
    """Rayleigh quotient with the left and right Perron vectors, from normalised squarings of ``I + A``."""
    with torch.no_grad():
        power = torch.eye(matrix.shape[-1], dtype=torch.float64, device=matrix.device) + matrix.double()
        for _ in range(squarings):
            power = power @ power
            power = power / power.abs().amax((-2, -1), keepdim=True)
        right = power.sum(-1)
        left = power.sum(-2)
        overlap = (left * right).sum(-1)
        # No overlap in double precision means a nilpotent matrix, whose radius is zero.
        projector = left.unsqueeze(-1) * right.unsqueeze(-2) / overlap.clamp(min=1e-200)[..., None, None]
        projector = torch.where((overlap > 1e-200)[..., None, None], projector, torch.zeros_like(projector))
        projector = projector.to(matrix.dtype)
    return (projector * matrix).sum((-2, -1))
