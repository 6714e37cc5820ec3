"""Leading singular values of one step, without its Jacobian: how much it can stretch a tangent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_integer
from pullback.core.random import drawing_device
from pullback.core.rows import Rows

__all__ = ["JacobianSpectrum", "jacobian_spectrum"]

OVERSAMPLING = 8


@dataclass(frozen=True)
class JacobianSpectrum:
    """Leading singular values of a Jacobian.

    Attributes:
        values: ``[count]`` in descending order; single precision where the state's is half.
        directions: the state's structure, each tensor with ``[count]`` in front: the unit directions that are
            stretched most (right singular vectors), up to their sign.
        errors: ``[count]`` each value is within this distance of a singular value of the Jacobian.
        products: number of Jacobian-vector and vector-Jacobian products.
    """

    values: Tensor
    directions: Any
    errors: Tensor
    products: int


def jacobian_spectrum(
    step: Callable[[Any], Any],
    state: Any,
    *,
    count: int,
    iterations: int = 2,
    generator: torch.Generator,
) -> JacobianSpectrum:
    r"""Return the ``count`` largest singular values of ``J``, the Jacobian of ``step`` at ``state``.

    Randomised subspace iteration: ``Q`` orthonormal for the range of ``(J J^T)^iterations J W``, ``W`` normal with
    ``count + 8`` columns, then the singular values of ``Q^T J``. They never exceed those of ``J``; the residual
    ``r = (I - Q Q^T) J v`` of each bounds its distance from one by ``||r|| / sqrt 2``. Memory: ``count + 8`` states.

    Args:
        step: a differentiable function of the state; its result may have another structure and size.
        state: a floating tensor, or any nesting of tuples, lists and dicts of them.
        count: >= 1, at most the number of elements of the state and of the result.
        iterations: >= 0; each sharpens the values by a power of four of the decay of the spectrum.
        generator: of ``W``.

    Returns:
        A :class:`JacobianSpectrum`; exact, up to rounding, where ``count + 8`` columns span a side of ``J``.

    Raises:
        TypeError: ``step`` is not callable, or ``state`` or its result holds something else than floating tensors.
        ValueError: ``count`` or ``iterations`` is out of range, or the Jacobian is not finite.

    Example:
        >>> stretch = torch.tensor([3.0, 1.0, 0.5])
        >>> found = jacobian_spectrum(lambda x: stretch * x, torch.zeros(3), count=2, generator=torch.Generator())
        >>> [round(float(value), 4) for value in found.values]
        [3.0, 1.0]

    References:
        Halko, Martinsson, Tropp (2011), Finding structure with randomness, SIAM Review 53, algorithm 4.4.
        Parlett (1998), The symmetric eigenvalue problem, theorem 4.5.1 (the bound).
    """
    check_callable("step", step)
    inner = Rows.of(state, 0, "state")
    value, pull = torch.func.vjp(step, state)[:2]
    outer = Rows.of(value, 0, "the result of step")
    count = check_integer("count", count, 1, min(inner.size, outer.size))
    check_integer("iterations", iterations, 0)
    wide = torch.promote_types(inner.dtype, torch.float32)  # torch orthonormalises nothing narrower
    products = 0

    def pushed(columns: Tensor) -> Tensor:
        nonlocal products
        products += columns.shape[1]
        images = [torch.func.jvp(step, (state,), (inner.unpack(c.to(inner.dtype)[None]),))[1] for c in columns.T]
        return torch.cat([outer.pack(image) for image in images]).T.detach().to(wide)

    def pulled(columns: Tensor) -> Tensor:
        nonlocal products
        products += columns.shape[1]
        images = [pull(outer.unpack(c.to(outer.dtype)[None]))[0] for c in columns.T]
        return torch.cat([inner.pack(image) for image in images]).T.detach().to(wide)

    width = min(count + OVERSAMPLING, inner.size, outer.size)
    place = drawing_device(generator, inner.device)
    start = torch.randn(inner.size, width, generator=generator, dtype=wide, device=place).to(inner.device)
    image = pushed(start)
    if not bool(torch.isfinite(image).all()):
        raise ValueError("the Jacobian of step must be finite at state")
    q = torch.linalg.qr(image).Q
    for _ in range(iterations):
        q = torch.linalg.qr(pushed(torch.linalg.qr(pulled(q)).Q)).Q
    right, values, _ = torch.linalg.svd(pulled(q), full_matrices=False)
    right, values = right[:, :count], values[:count]
    images = pushed(right)
    errors = torch.linalg.vector_norm(images - q @ (q.T @ images), dim=0) / 2**0.5
    return JacobianSpectrum(values, inner.unpack(right.T[:, None].to(inner.dtype)), errors, products)
