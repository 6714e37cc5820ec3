"""Small changes of the input that raise a model's loss most."""

from __future__ import annotations

from collections.abc import Callable

import torch

from pullback.core.checks import (
    check_callable,
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_tensor,
)
from pullback.core.shapes import Float, Shaped, Tensor

__all__ = ["fgsm", "pgd"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""From predictions and targets to a loss of each sample, or to their sum."""


def squared_error(prediction: Tensor, y: Tensor) -> Tensor:
    """Return the sum of squared errors.

    Example:
        >>> squared_error(torch.tensor([1.0, 2.0]), torch.zeros(2))
        tensor(5.)
    """
    if prediction.shape != y.shape:
        raise ValueError(f"y must have the shape of the predictions, {tuple(prediction.shape)}, got {tuple(y.shape)}")
    return (prediction - y).square().sum()


def pgd(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "n *event"],
    y: Shaped[Tensor, "..."],
    *,
    epsilon: float,
    steps: int = 10,
    step_size: float | None = None,
    norm: str = "inf",
    loss: Loss = squared_error,
) -> Float[Tensor, "n *event"]:
    r"""Return inputs within epsilon of x that raise the loss, by projected gradient ascent from x.

    .. math:: x_{k+1}=\Pi_{|x'-x|\le\epsilon}\Big(x_k+\alpha\,\frac{g_k}{|g_k|}\Big),\qquad
        \frac{g}{|g|}=\mathrm{sign}(g)\ \text{for}\ |\cdot|_\infty

    Args:
        model: from ``[n, *event]`` to predictions, each of its own sample alone (no batch statistics).
        x: ``[n, *event]`` inputs.
        y: targets.
        epsilon: how far each input may move, >= 0, in the unit of x.
        steps: >= 1.
        step_size: alpha > 0; ``2.5 * epsilon / steps`` by default.
        norm: ``"inf"``, of the largest change of an entry, or ``"2"``, of the length of the change of a sample.
        loss: of predictions and ``y``, summed over samples or one of each; what is raised.

    Returns:
        ``[n, *event]`` without gradient.

    Raises:
        TypeError: ``model`` or ``loss`` cannot be called, or ``x`` is no floating tensor.
        ValueError: an option is out of range, or ``x`` is not finite.

    Example:
        >>> x = torch.tensor([[1.0, -2.0]])
        >>> pgd(lambda x: x.sum(-1), x, torch.zeros(1), epsilon=0.1)  # the sum is negative: to be lowered
        tensor([[ 0.9000, -2.1000]])

    References:
        Madry, Makelov, Schmidt, Tsipras, Vladu (2018), Towards deep learning models resistant to adversarial attacks.
    """
    check_callable("model", model)
    check_callable("loss", loss)
    check_finite("x", check_floating("x", x))
    check_tensor("y", y)
    check_positive("epsilon", epsilon, zero=True)
    check_integer("steps", steps, 1)
    check_choice("norm", norm, ("inf", "2"))
    if step_size is not None:
        check_positive("step_size", step_size)
    if not x.ndim:
        raise ValueError("x must have shape (n, *event), got ()")
    size = 2.5 * epsilon / steps if step_size is None else step_size
    x = x.detach()
    change = torch.zeros_like(x)
    for _ in range(steps):
        with torch.enable_grad():
            moved = (x + change).requires_grad_()
            (slope,) = torch.autograd.grad(loss(model(moved), y).sum(), moved)
        change = _within(change + size * _direction(slope, norm), epsilon, norm)
    return x + change


def fgsm(
    model: Callable[[Tensor], Tensor],
    x: Float[Tensor, "n *event"],
    y: Shaped[Tensor, "..."],
    *,
    epsilon: float,
    loss: Loss = squared_error,
) -> Float[Tensor, "n *event"]:
    r"""Return :math:`x+\epsilon\,\mathrm{sign}(\nabla_x\,\text{loss})`: one step of :func:`pgd` to the bound.

    Args:
        model: from ``[n, *event]`` to predictions, each of its own sample alone.
        x: ``[n, *event]`` inputs.
        y: targets.
        epsilon: of the change of each entry, >= 0, in the unit of x.
        loss: of predictions and ``y``, summed over samples or one of each.

    Returns:
        ``[n, *event]`` without gradient.

    Raises:
        TypeError: ``model`` or ``loss`` cannot be called, or ``x`` is no floating tensor.
        ValueError: ``epsilon`` < 0, or ``x`` is not finite.

    Example:
        >>> fgsm(lambda x: x.sum(-1), torch.tensor([[1.0, -2.0]]), torch.zeros(1), epsilon=0.5)
        tensor([[ 0.5000, -2.5000]])

    References:
        Goodfellow, Shlens, Szegedy (2015), Explaining and harnessing adversarial examples.
    """
    check_positive("epsilon", epsilon, zero=True)
    return pgd(model, x, y, epsilon=epsilon, steps=1, step_size=epsilon or None, loss=loss)


def _direction(slope: Tensor, norm: str) -> Tensor:
    if norm == "inf":
        return slope.sign()
    # Scaled first: the square of a small slope may be 0.
    largest = slope.abs().flatten(1).amax(-1) if slope.ndim > 1 else slope.abs()
    scaled = slope / torch.where(largest > 0, largest, 1).view(-1, *[1] * (slope.ndim - 1))
    return scaled / _length(scaled).clamp_min(torch.finfo(slope.dtype).tiny)


def _within(change: Tensor, epsilon: float, norm: str) -> Tensor:
    if norm == "inf":
        return change.clamp(-epsilon, epsilon)
    length = _length(change)
    return torch.where(length > epsilon, change * (epsilon / torch.where(length > 0, length, 1)), change)


def _length(x: Tensor) -> Tensor:
    flat = x.flatten(1) if x.ndim > 1 else x.unsqueeze(-1)
    return torch.linalg.vector_norm(flat, dim=-1).view(-1, *[1] * (x.ndim - 1))
