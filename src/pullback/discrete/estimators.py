"""Exact one-hot samples of a categorical distribution: ReinMax's second-order gradient, and the choice of estimator."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch

from pullback.core.checks import check_choice, check_dim, check_floating, check_scalar
from pullback.core.gradients import nested_forward_mode, primals, replace_gradient
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.discrete.sampling import check_rows, draw, gumbel_softmax
from pullback.discrete.softness import is_hard, softmax, widen

__all__ = ["Sample", "categorical", "reinmax"]


class Sample(NamedTuple):
    """A sampled choice.

    Attributes:
        onehot: exactly 0 and 1 in value, with the estimator's gradient.
        probabilities: what it was drawn from, with their own gradient (for entropies and divergences).
    """

    onehot: Float[Tensor, "*batch n"]
    probabilities: Float[Tensor, "*batch n"]


def reinmax(
    logits: Float[Tensor, "..."],
    *,
    temperature: Scalar = 1.0,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Sample:
    r"""Sample an exact one-hot vector with a second-order gradient estimate (Heun's rule).

    With ``D`` the sample, ``pi = softmax(logits)``, ``pi_t = softmax(logits / t)``, ``g`` the cotangent at ``D`` and
    ``J(p) g = p (g - <p, g>)`` the gradient is

    .. math:: 2\, J\big(\tfrac{\pi_t + D}{2}\big)\, g - \tfrac12 J(\pi)\, g,

    at ``t = 1`` unbiased for every quadratic function of ``D`` (straight-through: for every linear one).

    Args:
        logits: ``[..., n, ...]`` unnormalised log probabilities; ``-inf`` is never drawn and gets gradient 0.
        temperature: > 0, usually in ``[1, 2]``: larger has less variance. Below 1 warns. A number or a tensor without
            dimensions; it shapes the estimate and not the draw, so it gets no gradient.
        dim: the dimension of the classes.
        generator: torch's default one if ``None``.

    Returns:
        :class:`Sample`: the one-hot sample, and ``softmax(logits)`` with its own gradient.

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: ``logits`` is not a floating tensor.
        ValueError: ``temperature`` is not positive and finite; a row of logits is all ``-inf`` or has NaN or ``inf``
            (not checked under ``torch.func`` transforms and ``torch.compile``).

    Example:
        >>> logits = torch.tensor([0.5, 0.0, -0.5], requires_grad=True)
        >>> sample = reinmax(logits, generator=torch.Generator().manual_seed(0))
        >>> sample.onehot.sum().item(), sample.probabilities.sum().item()
        (1.0, 1.0)

    References:
        Liu, Dong, Liu, Yu, Gao (2023), Bridging discrete and backpropagation: straight-through and beyond, theorem 3.2
        and algorithm 2.
    """
    dim = check_dim(check_floating("logits", logits), dim)
    number = _positive(temperature)
    if number is not None and number < 1:
        warnings.warn(f"ReinMax is meant for a temperature >= 1, got {number}", UserWarning, stacklevel=2)
    check_rows("logits", logits, dim)
    wide = widen(logits)
    probabilities = torch.softmax(wide, dim)
    onehot = draw(probabilities.detach(), dim, generator)
    fixed = temperature.detach() if isinstance(temperature, Tensor) else temperature
    tempered = probabilities if number == 1 else softmax(wide, dim, fixed)
    estimated: Tensor = _Heun.apply(wide, onehot, tempered, probabilities, dim)
    return Sample(estimated.to(logits.dtype), probabilities.to(logits.dtype))


def categorical(
    logits: Float[Tensor, "..."],
    *,
    method: str = "gumbel",
    temperature: Scalar = 1.0,
    dim: int = -1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "..."]:
    r"""Sample an exact one-hot vector of ``softmax(logits)``; ``method`` is the estimator of its gradient.

    Args:
        logits: ``[..., n, ...]`` unnormalised log probabilities; ``-inf`` is never drawn.
        method: ``"gumbel"`` (gradient of the Gumbel-softmax of the same noise), ``"straight_through"`` (gradient of
            ``softmax(logits / temperature)``) or ``"reinmax"``.
        temperature: > 0 of the estimator, a number or a tensor without dimensions (differentiable except for
            ``"reinmax"``); it does not change the draw.
        dim: the dimension of the classes.
        generator: torch's default one if ``None``.

    Returns:
        The shape of ``logits``, exactly 0 and 1.

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: ``logits`` is not a floating tensor.
        ValueError: ``method`` is unknown, ``temperature`` is not positive, or a row of logits is not a distribution.

    Example:
        >>> categorical(torch.tensor([0.0, -torch.inf]), method="straight_through")
        tensor([1., 0.])

    References:
        Jang, Gu, Poole (2017); Bengio, Leonard, Courville (2013); Liu et al. (2023): see :func:`gumbel_softmax`,
        :func:`straight_through`, :func:`reinmax`.
    """
    check_choice("method", method, ("gumbel", "straight_through", "reinmax"))
    number = _positive(temperature)
    if method == "gumbel":
        return gumbel_softmax(logits, temperature=temperature, hard=True, dim=dim, generator=generator)
    if method == "reinmax":
        return reinmax(logits, temperature=temperature, dim=dim, generator=generator).onehot
    dim = check_dim(check_floating("logits", logits), dim)
    check_rows("logits", logits, dim)
    wide = widen(logits)
    soft = softmax(wide, dim, temperature)
    onehot = draw((soft if number == 1 else torch.softmax(wide, dim)).detach(), dim, generator)
    return replace_gradient(onehot.to(logits.dtype), soft.to(logits.dtype))


def _positive(temperature: Scalar) -> float | None:
    number = check_scalar("temperature", temperature)
    if is_hard(temperature):
        raise ValueError(f"temperature must be > 0, got {number}")
    return number


class _Heun(torch.autograd.Function):
    """The sample in the forward pass; ReinMax's map from its cotangent to that of the logits in the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, onehot: Tensor, tempered: Tensor, probabilities: Tensor, dim: int) -> Tensor:
        return onehot.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:4])
        ctx.save_for_forward(*inputs[1:4])
        ctx.dim, ctx.shared = inputs[4], inputs[2] is inputs[3]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None, None, None]:
        onehot, tempered, probabilities = ctx.saved_tensors
        return _heun(onehot, tempered, probabilities, cotangent, ctx.dim, ctx.shared), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *unused: Any) -> Tensor:
        with nested_forward_mode():
            onehot, tempered, probabilities = primals(ctx.saved_tensors)
            return _heun(onehot, tempered, probabilities, tangent, ctx.dim, ctx.shared)  # the Jacobian is symmetric


def _heun(onehot: Tensor, tempered: Tensor, probabilities: Tensor, g: Tensor, dim: int, shared: bool) -> Tensor:
    """Return ``2 J((tempered + onehot) / 2) g - J(probabilities) g / 2``, sharing the passes over ``g``."""
    mean = (probabilities * g).sum(dim, keepdim=True)
    drawn = (onehot * g).sum(dim, keepdim=True)
    if shared:
        return probabilities * ((g - drawn) / 2) + onehot * ((drawn - mean) / 2)
    middle = ((tempered * g).sum(dim, keepdim=True) + drawn) / 2
    return (tempered + onehot) * (g - middle) - probabilities * ((g - mean) / 2)
