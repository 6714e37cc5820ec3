"""Exact one-hot samples of a categorical distribution, each with an estimate of the gradient."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch

from pullback.core.checks import check_choice, check_dim, check_floating, check_scalar
from pullback.core.gradients import nested_forward_mode, primals, replace_gradient
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.discrete.sampling import check_outcome, check_rows, draw, gumbel_softmax, noise_given, noise_like
from pullback.discrete.softness import is_hard, quotient, softmax, widen

__all__ = ["CATEGORICAL_METHODS", "Sample", "categorical", "reinmax", "straight_through_softmax"]

CATEGORICAL_METHODS = ("gumbel", "straight_through", "reinmax", "perturbed", "imle")
"""The estimators of :func:`categorical`."""


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
    outcome: Int[Tensor, "..."] | None = None,
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
        outcome: the class that each row drew, as in :func:`gumbel_softmax`; drawn if ``None``.

    Returns:
        :class:`Sample`: the one-hot sample, and ``softmax(logits)`` with its own gradient.

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: ``logits`` is not a floating tensor, ``outcome`` holds no integers.
        ValueError: ``temperature`` is not positive and finite; a row of logits is all ``-inf`` or has NaN or ``inf``;
            ``outcome`` is none of the draw (values are not checked under ``torch.func`` transforms and
            ``torch.compile``).

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
    onehot = _drawn(probabilities, logits, dim, generator, outcome)
    fixed = temperature.detach() if isinstance(temperature, Tensor) else temperature
    tempered = probabilities if number == 1 else softmax(wide, dim, fixed)
    estimated: Tensor = _Heun.apply(wide, onehot, tempered, probabilities, dim)
    return Sample(estimated.to(logits.dtype), probabilities.to(logits.dtype))


def straight_through_softmax(
    logits: Float[Tensor, "..."],
    *,
    temperature: Scalar = 1.0,
    draw_temperature: Scalar = 1.0,
    dim: int = -1,
    generator: torch.Generator | None = None,
    outcome: Int[Tensor, "..."] | None = None,
) -> Float[Tensor, "..."]:
    r"""Sample an exact one-hot vector of ``softmax(logits / draw_temperature)`` with the gradient of a softmax.

    The derivative is that of ``softmax(logits / temperature)``. At ``temperature = draw_temperature`` that is the mean
    of the draw, which is unbiased for what is linear in the sample; other pairs are the decoupled straight-through
    estimator: one temperature for how much is explored, one for how the gradient spreads over the classes.

    Args:
        logits: ``[..., n, ...]`` unnormalised log probabilities; ``-inf`` is never drawn and gets gradient 0.
        temperature: > 0 of the gradient, a number or a differentiable tensor without dimensions.
        draw_temperature: > 0 of the draw; gets no gradient.
        dim: the dimension of the classes.
        generator: torch's default one if ``None``.
        outcome: the class that each row drew, as in :func:`gumbel_softmax`; drawn if ``None``.

    Returns:
        The shape of ``logits``, exactly 0 and 1.

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: ``logits`` is not a floating tensor, ``outcome`` holds no integers.
        ValueError: a temperature is not positive, a row of logits is not a distribution, ``outcome`` is none of the
            draw.

    Example:
        >>> x = torch.tensor([0.0, 0.0], requires_grad=True)
        >>> straight_through_softmax(x, outcome=torch.tensor(1))[1].backward()
        >>> x.grad
        tensor([-0.2500,  0.2500])

    References:
        Bengio, Leonard, Courville (2013), section 4. Shah, Yan, Mozer, Liu (2024), Improving discrete optimisation via
        decoupled straight-through estimator, arXiv 2410.13331, for two temperatures.
    """
    dim = check_dim(check_floating("logits", logits), dim)
    number, of_draw = _positive(temperature), _positive(draw_temperature, "draw_temperature")
    check_rows("logits", logits, dim)
    wide = widen(logits)
    soft = softmax(wide, dim, temperature)
    same = number is not None and number == of_draw
    probabilities = soft if same else softmax(wide.detach(), dim, draw_temperature)
    onehot = _drawn(probabilities, logits, dim, generator, outcome)
    return replace_gradient(onehot.to(logits.dtype), soft.to(logits.dtype))


def categorical(
    logits: Float[Tensor, "..."],
    *,
    method: str = "gumbel",
    temperature: Scalar = 1.0,
    dim: int = -1,
    generator: torch.Generator | None = None,
    outcome: Int[Tensor, "..."] | None = None,
) -> Float[Tensor, "..."]:
    r"""Sample an exact one-hot vector of ``softmax(logits)``; ``method`` is the estimator of its gradient.

    From a cotangent ``g`` at the sample ``D`` the logits get, with Gumbel noise :math:`z` whose maximum drew ``D`` and
    temperature ``t``:

    ====================  ============================================================================
    ``gumbel``            the derivative of ``softmax((logits + z) / t)``
    ``straight_through``  the derivative of ``softmax(logits / t)`` (away from ``t = 1``: decoupled)
    ``reinmax``           Heun's rule, :func:`reinmax`
    ``perturbed``         :math:`\langle g, D\rangle\,(1 - e^{-z})`, the perturbed maximum with noise of scale 1
    ``imle``              :math:`(D - \mathrm{onehot}\arg\max(\mathrm{logits} + z - t\,g)) / t`
    ====================  ============================================================================

    What is unbiased for linear functions of ``D``: ``straight_through`` at ``t = 1``, ``reinmax`` at ``t = 1``,
    ``perturbed`` at any, ``imle`` as ``t`` tends to 0. :func:`estimator_statistics` measures bias and variance.

    Args:
        logits: ``[..., n, ...]`` unnormalised log probabilities; ``-inf`` is never drawn.
        method: one of ``CATEGORICAL_METHODS``.
        temperature: > 0 of the estimator, a number or a tensor without dimensions (differentiable for ``"gumbel"`` and
            ``"straight_through"``); it does not change the draw.
        dim: the dimension of the classes.
        generator: torch's default one if ``None``.
        outcome: the class that each row drew, as in :func:`gumbel_softmax`, noise given it included; drawn if ``None``.

    Returns:
        The shape of ``logits``, exactly 0 and 1.

    Raises:
        IndexError: ``dim`` is out of range.
        TypeError: ``logits`` is not a floating tensor, ``outcome`` holds no integers.
        ValueError: ``method`` is unknown, ``temperature`` is not positive, a row of logits is not a distribution, or
            ``outcome`` is none of the draw.

    Example:
        >>> categorical(torch.tensor([0.0, -torch.inf]), method="straight_through")
        tensor([1., 0.])

    References:
        Jang, Gu, Poole (2017); Bengio, Leonard, Courville (2013); Liu et al. (2023): see :func:`gumbel_softmax`,
        :func:`straight_through_softmax`, :func:`reinmax`. Berthet et al. (2020), Learning with differentiable perturbed
        optimizers, proposition 3.1. Niepert, Minervini, Franceschi (2021), Implicit MLE, algorithm 1.
    """
    check_choice("method", method, CATEGORICAL_METHODS)
    _positive(temperature)
    if method == "gumbel":
        return gumbel_softmax(logits, temperature=temperature, hard=True, dim=dim, generator=generator, outcome=outcome)
    if method == "reinmax":
        return reinmax(logits, temperature=temperature, dim=dim, generator=generator, outcome=outcome).onehot
    if method == "straight_through":
        return straight_through_softmax(logits, temperature=temperature, dim=dim, generator=generator, outcome=outcome)
    dim = check_dim(check_floating("logits", logits), dim)
    check_rows("logits", logits, dim)
    wide = widen(logits)
    if outcome is None:
        noise = noise_like(wide, generator)
        onehot = _one_hot((wide.detach() + noise).argmax(dim, keepdim=True), noise, dim)
    else:
        onehot = check_outcome(outcome, logits, dim)
        noise = noise_given(wide, onehot, dim, generator)
    if method == "perturbed":
        return _perturbed_maximum(wide, noise, onehot, dim).to(logits.dtype)
    fixed = temperature.detach() if isinstance(temperature, Tensor) else temperature
    estimated: Tensor = _Implicit.apply(wide, onehot, wide.detach() + noise, fixed, dim)
    return estimated.to(logits.dtype)


def _drawn(
    probabilities: Tensor, logits: Tensor, dim: int, generator: torch.Generator | None, outcome: Tensor | None
) -> Tensor:
    if outcome is not None:
        return check_outcome(outcome, logits, dim)
    return draw(probabilities.detach(), dim, generator)


def _one_hot(index: Tensor, like: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(like).scatter(dim, index, 1.0)


def _perturbed_maximum(wide: Tensor, noise: Tensor, onehot: Tensor, dim: int) -> Tensor:
    """The sample, with ``<g, D> (1 - exp(-z))`` as the gradient of the logits."""
    possible = wide.detach() > -torch.inf
    move = torch.where(possible, wide - wide.detach(), 0.0)  # zero, with derivative one
    return replace_gradient(onehot, onehot * (-torch.expm1(-noise) * move).sum(dim, keepdim=True))


def _positive(temperature: Scalar, name: str = "temperature") -> float | None:
    number = check_scalar(name, temperature)
    if is_hard(temperature):
        raise ValueError(f"{name} must be > 0, got {number}")
    return number


class _Implicit(torch.autograd.Function):
    """The sample in the forward pass; in the backward pass how it changes when the cotangent pushes the logits."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, onehot: Tensor, perturbed: Tensor, strength: Scalar, dim: int) -> Tensor:
        return onehot.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Scalar, int], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:3])
        ctx.strength, ctx.dim = inputs[3:]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None, None, None]:
        onehot, perturbed = ctx.saved_tensors
        pushed = perturbed - ctx.strength * cotangent
        moved = _one_hot(pushed.argmax(ctx.dim, keepdim=True), onehot, ctx.dim)
        return quotient(onehot - moved, ctx.strength), None, None, None, None


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
