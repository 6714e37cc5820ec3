"""The largest eigenvalue of a loss's Hessian, from Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive
from pullback.core.random import drawing_device

__all__ = ["Sharpness", "sharpness"]


@dataclass(frozen=True)
class Sharpness:
    """The top of a Hessian's spectrum.

    Attributes:
        value: the largest eigenvalue found; at most the true one.
        direction: name to the eigenvector's part, shaped like the parameter; of length 1 together.
        residual: ``|H v - value v|``; an eigenvalue lies within this distance of ``value``.
        spectrum: ``[iterations]`` float64, all Ritz values, ascending; the first estimates the smallest eigenvalue.
        iterations: Hessian-vector products taken.
        converged: whether the residual is below the tolerance.
    """

    value: float
    direction: dict[str, Tensor]
    residual: float
    spectrum: Tensor
    iterations: int
    converged: bool


def sharpness(
    loss: Callable[[dict[str, Tensor]], Tensor],
    parameters: Mapping[str, Tensor],
    *,
    iterations: int = 50,
    tolerance: float = 1e-3,
    generator: torch.Generator | None = None,
) -> Sharpness:
    r"""Return the largest eigenvalue of the Hessian of a loss, by Lanczos iterations.

    ``beta_{j+1} q_{j+1} = H q_j - alpha_j q_j - beta_j q_{j-1}``, the vectors orthogonalised against all before; the
    largest eigenvalue of the tridiagonal matrix of ``alpha`` and ``beta`` is the answer. The loss is evaluated once;
    every iteration is one more backward pass through its gradient. Gradient descent with step ``a`` on a smooth loss
    is stable where this is below ``2 / a``. The Hessian is the one that derivatives give: it does not see kinks.

    Args:
        loss: maps parameters by name to a scalar; of a module, ``lambda p: criterion(functional_call(module, p, x))``.
        parameters: floating tensors by name, of one dtype and device; left unchanged.
        iterations: most Hessian-vector products, >= 1; each keeps one vector of the parameters' size.
        tolerance: > 0, of the residual, relative to the largest magnitude of a Ritz value.
        generator: of the first vector.

    Returns:
        A :class:`Sharpness`.

    Raises:
        TypeError: ``loss`` is not callable, or a parameter is not floating.
        ValueError: ``iterations`` or ``tolerance`` is out of range, there are no parameters, or the loss is no finite
            scalar.

    Example:
        >>> curvatures = torch.tensor([1.0, 5.0, -7.0])
        >>> found = sharpness(lambda p: (curvatures * p["x"] ** 2).sum() / 2, {"x": torch.zeros(3)})
        >>> round(found.value, 4), round(float(found.spectrum[0]), 4), found.iterations
        (5.0, -7.0, 3)

    References:
        Lanczos (1950); Cohen, Kaur, Li, Kolter, Talwalkar (2021), Gradient descent on neural networks typically occurs
        at the edge of stability, equation 1.
    """
    check_callable("loss", loss)
    check_integer("iterations", iterations, 1)
    check_positive("tolerance", tolerance)
    for name, tensor in parameters.items():
        check_floating(f"parameters[{name!r}]", tensor)
    size = sum(tensor.numel() for tensor in parameters.values())
    if not size:
        raise ValueError("parameters must have at least one entry")
    product = _hessian(loss, parameters)
    like = next(iter(parameters.values()))
    q = torch.randn(size, generator=generator, dtype=like.dtype, device=drawing_device(generator, like)).to(like.device)
    basis = [q / q.norm()]
    alphas, betas = list[float](), list[float]()
    while True:
        y = product(basis[-1])
        alphas.append(float(y @ basis[-1]))
        values, vectors = torch.linalg.eigh(_tridiagonal(alphas, betas))
        known = torch.stack(basis)
        for _ in range(2):  # twice is enough: once leaves what was lost to cancellation
            y = y - known.T @ (known @ y)
        beta = float(y.norm())
        residual = beta * abs(float(vectors[-1, -1]))
        largest = float(values.abs().max())
        negligible = beta <= 10 * torch.finfo(like.dtype).eps * largest
        converged = len(alphas) == size or negligible or residual <= tolerance * largest
        if converged or len(alphas) == min(iterations, size):
            break
        betas.append(beta)
        basis.append(y / beta)
    direction = (vectors[:, -1].to(known) @ known).split([p.numel() for p in parameters.values()])
    parts = {name: part.view_as(p) for part, (name, p) in zip(direction, parameters.items(), strict=True)}
    return Sharpness(float(values[-1]), parts, residual, values, len(alphas), converged)


def _hessian(
    loss: Callable[[dict[str, Tensor]], Tensor], parameters: Mapping[str, Tensor]
) -> Callable[[Tensor], Tensor]:
    """Return ``v -> H v`` on flat vectors; the graph of the gradient is built once."""
    with torch.enable_grad():
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        inputs = list(leaves.values())
        value = loss(leaves)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss must return a scalar, got {shape}")
        if not bool(value.detach().isfinite()):
            raise ValueError(f"loss must be finite, got {value.item()}")
        gradient = _derivative([value.sum()], inputs, None, create_graph=True)

    def product(v: Tensor) -> Tensor:
        parts = [part.view_as(p) for part, p in zip(v.split([p.numel() for p in inputs]), inputs, strict=True)]
        return torch.cat([g.reshape(-1) for g in _derivative(gradient, inputs, parts)])

    return product


def _derivative(
    outputs: Sequence[Tensor], inputs: list[Tensor], weights: list[Tensor] | None, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Like ``torch.autograd.grad``, where outputs may be constant."""
    active = [i for i, output in enumerate(outputs) if output.requires_grad]
    if not active:
        return tuple(torch.zeros_like(p) for p in inputs)
    return torch.autograd.grad(
        [outputs[i] for i in active],
        inputs,
        None if weights is None else [weights[i] for i in active],
        retain_graph=True,
        create_graph=create_graph,
        materialize_grads=True,
    )


def _tridiagonal(alphas: list[float], betas: list[float]) -> Tensor:
    matrix = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    off = torch.tensor(betas, dtype=torch.float64)
    return matrix + torch.diag(off, 1) + torch.diag(off, -1)
