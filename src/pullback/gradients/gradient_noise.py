"""What noise does to gradients: of an activation, point by point; of a model, by direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive
from pullback.core.shapes import Float, Tensor

__all__ = ["gradient_cosine", "gradient_noise"]


def gradient_noise(
    activation: Callable[[Tensor], Tensor], x: Float[Tensor, "*shape"], std: float, *, samples: int = 1024
) -> Float[Tensor, "*shape"]:
    r"""Return the expected error of an activation's derivative when its input is noisy.

    ``E |s'(x + e) - s'(x)|``, ``e ~ N(0, std^2)``, by the midpoint rule over ``samples`` equally likely slices of the
    noise: no draws, an error of ``O(1 / samples)`` for a derivative with jumps too. Of the ReLU it is
    ``Phi(-|x| / std)``, however small the noise; of a smooth activation about ``|s''(x)| std sqrt(2 / pi)``.

    Args:
        activation: elementwise and differentiable.
        x: ``[*shape]`` where.
        std: > 0, of the noise, in units of ``x``.
        samples: slices, >= 2.

    Returns:
        ``[*shape]`` without gradient.

    Raises:
        TypeError: ``activation`` is not callable, or ``x`` is not floating.
        ValueError: ``std`` or ``samples`` is out of range, or ``activation`` changes the shape.

    Example:
        >>> zero = torch.zeros(1)
        >>> [round(float(gradient_noise(s, zero, 0.01)), 4) for s in (torch.relu, torch.nn.functional.gelu)]
        [0.5, 0.0064]

    References:
        Shah, Youngblood (2024), Leveraging continuously differentiable activation functions for learning in quantized
        noisy environments, section 3.
    """
    check_callable("activation", activation)
    check_floating("x", x)
    check_positive("std", std)
    check_integer("samples", samples, 2)
    slices = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    noise = std * torch.special.ndtri(slices).to(x.device, torch.promote_types(x.dtype, torch.float32))
    points = x.detach().unsqueeze(-1)
    clean, noisy = _slope(activation, points), _slope(activation, (points + noise).to(x.dtype))
    return (noisy - clean).abs().mean(-1)


def gradient_cosine(
    noisy: Callable[[], Tensor], clean: Callable[[], Tensor], parameters: Mapping[str, Tensor], *, samples: int = 1
) -> dict[str, Tensor]:
    r"""Return how well the gradient of a noisy loss points along that of the noise-free one, parameter by parameter.

    ``mean_k cos(grad noisy_k, grad clean)`` over ``samples`` evaluations of the noisy loss.

    Args:
        noisy: returns the loss, with other noise every time.
        clean: returns the loss without noise, or whatever the gradient is compared with.
        parameters: by name, of both losses; they require gradients.
        samples: gradients of the noisy loss, >= 1.

    Returns:
        Name to the mean cosine, in ``[-1, 1]``; 0 for a gradient that is 0 or that a loss does not have.

    Raises:
        TypeError: a loss is not callable, or a parameter is not floating.
        ValueError: ``samples`` is out of range, a parameter requires no gradient, or a loss is no scalar.

    Example:
        >>> w = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> gradient_cosine(lambda: w[0], lambda: w.square().sum(), {"w": w})
        {'w': tensor(0.6000)}
    """
    check_callable("noisy", noisy)
    check_callable("clean", clean)
    check_integer("samples", samples, 1)
    for name, parameter in parameters.items():
        if not check_floating(f"parameters[{name!r}]", parameter).requires_grad:
            raise ValueError(f"parameters[{name!r}] must require a gradient")
    exact = [_direction(g) for g in _gradients("clean", clean, parameters)]
    total = [g.new_zeros(()) for g in exact]
    for _ in range(samples):
        found = _gradients("noisy", noisy, parameters)
        total = [t + (_direction(g) * e).sum() / samples for t, g, e in zip(total, found, exact, strict=True)]
    return dict(zip(parameters, total, strict=True))


def _slope(activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        value = activation(leaf)
        if value.shape != x.shape:
            raise ValueError(f"activation must keep the shape {tuple(x.shape)}, got {tuple(value.shape)}")
        return torch.autograd.grad(value.sum(), leaf, materialize_grads=True)[0].to(
            torch.promote_types(x.dtype, torch.float32)
        )


def _gradients(name: str, loss: Callable[[], Tensor], parameters: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        value = loss()
        if value.numel() != 1:
            raise ValueError(f"{name} must return a scalar, got shape {tuple(value.shape)}")
        return torch.autograd.grad(value.reshape(()), list(parameters.values()), materialize_grads=True)


def _direction(gradient: Tensor) -> Tensor:
    """A unit vector, or zero; scaled first so that squares of tiny and of huge entries exist."""
    largest = gradient.abs().amax() if gradient.numel() else gradient.new_zeros(())
    scaled = gradient / torch.where(largest > 0, largest, 1.0)
    norm = torch.linalg.vector_norm(scaled)
    return scaled / torch.where(norm > 0, norm, 1.0)
