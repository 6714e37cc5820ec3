"""Sampled subsets of exactly k out of n, in the order in which they were drawn, with estimators of the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from pullback.core.checks import check_callable, check_choice, check_floating, check_integer, check_positive
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.perturbation import AdaptivePerturbation
from pullback.discrete.plackett_luce import PlackettLuce
from pullback.discrete.sampling import check_rows, noise_like, undrawn
from pullback.discrete.score_function import score_function
from pullback.discrete.softness import is_hard, softmax, widen

__all__ = ["SUBSET_METHODS", "Subset", "subset_expectation", "subset_gradients", "subset_sample"]

SUBSET_METHODS = ("gumbel_topk", "relaxed_topk", "straight_through", "identity", "imle", "aimle", "perturbed")
"""The estimators of :func:`subset_sample`."""


class Subset(NamedTuple):
    """A sampled subset.

    Attributes:
        rows: ``[*batch, k, n]`` one (relaxed) one-hot row a place, the first drawn first; zeros beyond the row's own k.
        mask: ``[*batch, n]`` their sum.
        index: ``[*batch, k]`` what was drawn at each place; -1 beyond the row's own k.
    """

    rows: Float[Tensor, "*batch k n"]
    mask: Float[Tensor, "*batch n"]
    index: Int[Tensor, "*batch k"]  # type: ignore[assignment]


def subset_sample(
    logits: Float[Tensor, "*batch n"],
    k: int | Int[Tensor, "..."],
    *,
    method: str = "gumbel_topk",
    temperature: Scalar = 1.0,
    hard: bool = True,
    noise: float = 1.0,
    perturbation: AdaptivePerturbation | float = 1.0,
    symmetric: bool = True,
    generator: torch.Generator | None = None,
) -> Subset:
    r"""Draw ``k`` of ``n`` without replacement: the k largest of ``s = logits + noise * z`` with Gumbel noise ``z``.

    At ``noise=1`` the first is drawn with probability ``softmax(logits)``, the next from those that are left, and so on
    (Plackett-Luce); at ``noise=0`` the k largest logits are taken. ``method`` is the estimator of the gradient: with
    temperature ``t``, the cotangent ``d`` of the mask ``m`` and ``top(s)`` the mask of the k largest,

    ====================  ==============================================================================================
    ``gumbel_topk``       row j: the derivative of ``softmax(s / t)`` over what was not drawn before
    ``relaxed_topk``      :math:`a_j=\mathrm{softmax}(s_j/t)`, :math:`s_{j+1}=s_j+\log(1-a_j)`: what is drawn by parts
                          is left by parts
    ``straight_through``  row j: the derivative of ``softmax(logits / t)`` over what was not drawn before, which is the
                          mean of the row given those before it at ``t = 1``
    ``identity``          the cotangent of the mask as it is
    ``imle``              ``(top(s + p d) - top(s - p d)) / (2 p)`` with ``p = perturbation``
    ``aimle``             the same with ``p = beta |logits| / |d|``, the norms over all that is finite, ``beta`` the
                          perturbation; an :class:`AdaptivePerturbation` adapts it
    ``perturbed``         :math:`\langle d, m\rangle\,(1 - e^{-z}) / \mathrm{noise}`
    ====================  ==============================================================================================

    The first two are relaxations: with ``hard=False`` the relaxed rows are returned. The last four know the mask
    alone; each row has the derivative of ``mask / k``. The implicit ones have first derivatives only, and no ``vmap``.
    Two-sided with a small push they are a trapezoid rule between subsets that differ in one item: unbiased (at
    ``noise=1``) where the loss is quadratic in the mask, and no smaller push mends the rest of their bias elsewhere.

    Args:
        logits: ``[*batch, n]`` scores, unnormalised log probabilities at ``noise=1``; ``-inf`` is never drawn and gets
            gradient 0.
        k: how many to draw, in 1..n, a number or one for each row (integers that broadcast to ``[*batch]``).
        method: one of ``SUBSET_METHODS``.
        temperature: >= 0 of the first three methods, a number or a differentiable tensor without dimensions; at 0 they
            have gradient 0.
        hard: return zeros and ones, with the gradient of the method.
        noise: >= 0, the scale of the noise; > 0 for ``"perturbed"``.
        perturbation: > 0 in the unit of the scores for ``"imle"``; relative to the scores, >= 0, for ``"aimle"``.
        symmetric: two-sided differences for ``"imle"`` and ``"aimle"``; otherwise ``(m - top(s - p d)) / p``.
        generator: torch's default one if ``None``.

    Returns:
        :class:`Subset`.

    Raises:
        TypeError: ``logits`` is no floating tensor, ``k`` no integer, ``perturbation`` none for the method.
        ValueError: ``method`` is unknown; ``k``, ``temperature``, ``noise`` or ``perturbation`` is out of range;
            ``hard`` is false for a method without relaxation; a row of logits is all ``-inf`` or has NaN or ``inf``
            (values are not checked under ``torch.func`` transforms and ``torch.compile``).

    Example:
        >>> logits = torch.tensor([0.0, 9.0, -torch.inf, 5.0], requires_grad=True)
        >>> subset = subset_sample(logits, 2, method="imle", perturbation=10.0, noise=0.0)
        >>> subset.index, subset.mask.detach()
        (tensor([1, 3]), tensor([0., 1., 0., 1.]))
        >>> (subset.mask * torch.tensor([0.0, 0.0, 0.0, 1.0])).sum().backward()
        >>> logits.grad
        tensor([-0.0500,  0.0000,  0.0000,  0.0500])

    References:
        Bengio, Leonard, Courville (2013), Estimating or propagating gradients through stochastic neurons, section 4.
        Kool, van Hoof, Welling (2019), Stochastic beams and where to find them, section 2. Xie, Ermon (2019),
        Reparameterizable subset sampling via continuous relaxations, section 3. Niepert, Minervini, Franceschi (2021),
        Implicit MLE, algorithm 1. Minervini, Franceschi, Niepert (2023), Adaptive perturbation-based gradient
        estimation, section 3. Berthet et al. (2020), Learning with differentiable perturbed optimizers,
        proposition 3.1.
    """
    check_choice("method", method, SUBSET_METHODS)
    if not check_floating("logits", logits).ndim:
        raise ValueError("logits must have at least one dimension, got a tensor without")
    check_rows("logits", logits, -1)
    check_positive("noise", noise, zero=method != "perturbed")
    wide = widen(logits)
    frozen = is_hard(temperature, wide.dtype)
    places, counts = _places(k, logits)
    if method in ("imle", "aimle"):
        _check_perturbation(method, perturbation)
    if not hard and method not in ("gumbel_topk", "relaxed_topk"):
        raise ValueError(f"hard must be true for method {method!r}, which has no relaxation")
    z = noise_like(wide, generator) if noise else torch.zeros_like(wide)
    noisy = wide + noise * z
    order = noisy.detach().topk(places, -1).indices
    used = None if counts is None else torch.arange(places, device=logits.device) < counts.unsqueeze(-1)
    rows = torch.nn.functional.one_hot(order, logits.shape[-1]).to(logits.dtype)
    index = order
    if used is not None:
        rows, index = rows * used.unsqueeze(-1), torch.where(used, order, -1)
    if method in ("identity", "imle", "aimle", "perturbed"):
        mask = _estimated(wide, noisy.detach(), rows.sum(-2), z, method, noise, perturbation, symmetric, places, counts)
        mask = mask.to(logits.dtype)
        share = mask / (places if counts is None else counts.unsqueeze(-1))
        return Subset(replace_gradient(rows, share.unsqueeze(-2).expand(rows.shape)), mask, index)
    if frozen:
        rows = replace_gradient(rows, torch.sign(logits).unsqueeze(-2).expand(rows.shape))
        return Subset(rows, rows.sum(-2), index)
    if method == "relaxed_topk":
        soft = _by_parts(noisy, places, temperature)
    else:
        left = undrawn(wide if method == "straight_through" else noisy, order)
        if used is not None:  # beyond its own k a row may have nothing left
            left = torch.where(used.unsqueeze(-1), left, 0.0)
        soft = softmax(left, -1, temperature)
    soft = soft.to(logits.dtype) if used is None else soft.to(logits.dtype) * used.unsqueeze(-1)
    rows = replace_gradient(rows, soft) if hard else soft
    return Subset(rows, rows.sum(-2), index)


def subset_expectation(
    f: Callable[[Tensor], Tensor], logits: Float[Tensor, "*batch n"], k: int
) -> Float[Tensor, "*batch"]:
    r"""Return the expectation of a function of a drawn subset exactly, by enumerating every order of k out of n.

    :math:`\sum_\pi p(\pi)\, f(m_\pi)` over the Plackett-Luce law of :func:`subset_sample` at ``noise=1``; its gradient
    is what the estimators of :func:`subset_sample` estimate.

    Args:
        f: takes masks ``[m, *batch, n]`` to values ``[m, *batch]``; needs no derivative.
        logits: ``[*batch, n]`` finite.
        k: size of the subsets, in 1..n; at most 100 000 orders.

    Returns:
        ``[*batch]``, differentiable.

    Raises:
        TypeError: ``f`` cannot be called or returns no floating tensor, ``logits`` is no floating tensor, ``k`` no
            integer.
        ValueError: logits are not finite, ``k`` is out of range, or the result of ``f`` has another shape.

    Example:
        >>> subset_expectation(lambda mask: mask[..., 0], torch.zeros(4), 3)
        tensor(0.7500)
    """
    check_callable("f", f)
    law = PlackettLuce(logits)
    orders = law.orders(check_integer("k", k))
    masks = torch.zeros(len(orders), logits.shape[-1], dtype=logits.dtype, device=logits.device)
    masks = masks.scatter(-1, orders, 1.0).reshape(-1, *[1] * (logits.ndim - 1), logits.shape[-1])
    values = check_floating("result of f", f(masks.expand(-1, *logits.shape)))
    if values.shape != (len(orders), *logits.shape[:-1]):
        raise ValueError(f"f must return {(len(orders), *logits.shape[:-1])}, got {tuple(values.shape)}")
    probability = law.log_prob(orders.reshape(-1, *[1] * (logits.ndim - 1), k)).exp()
    return (probability * values).sum(0)


def subset_gradients(
    f: Callable[[Tensor], Tensor],
    logits: Float[Tensor, "*batch n"],
    k: int,
    samples: int,
    *,
    method: str = "gumbel_topk",
    **options: Any,
) -> Float[Tensor, "samples *batch n"]:
    r"""Return estimates of the gradient of :func:`subset_expectation`, one a draw: the measuring stick of estimators.

    Args:
        f: takes masks ``[samples, *batch, n]`` to values ``[samples, *batch]``; differentiable, but for the score
            function.
        logits: ``[*batch, n]`` finite.
        k: size of the subsets, in 1..n.
        samples: draws, >= 1; >= 2 for the score function, whose baseline is the mean of the other draws.
        method: one of ``SUBSET_METHODS``, or ``"score_function"``.
        options: of :func:`subset_sample`.

    Returns:
        ``[samples, *batch, n]``, without a derivative of their own.

    Raises:
        TypeError: ``f`` cannot be called or returns no floating tensor, or as :func:`subset_sample`.
        ValueError: ``samples`` is out of range, the result of ``f`` has another shape, or as :func:`subset_sample`.

    Example:
        >>> g = subset_gradients(lambda mask: mask[..., 0], torch.zeros(4), 2, 3, method="identity")
        >>> g.tolist()
        [[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    """
    check_callable("f", f)
    check_choice("method", method, (*SUBSET_METHODS, "score_function"))
    scored = method == "score_function"
    count = check_integer("samples", samples, 2 if scored else 1)
    leaf = check_floating("logits", logits).detach().expand(count, *logits.shape).clone().requires_grad_()
    with torch.enable_grad():
        subset = subset_sample(leaf, check_integer("k", k), method="gumbel_topk" if scored else method, **options)
        values = check_floating("result of f", f(subset.mask.detach() if scored else subset.mask))
        if values.shape != leaf.shape[:-1]:
            raise ValueError(f"f must return {tuple(leaf.shape[:-1])}, got {tuple(values.shape)}")
        if scored:
            log_prob = PlackettLuce(leaf).log_prob(subset.index)
            values = score_function(log_prob, values.detach(), baseline="leave_one_out")
        return torch.autograd.grad(values.sum(), leaf)[0]


def _places(k: int | Tensor, logits: Tensor) -> tuple[int, Tensor | None]:
    """Return how many places there are, and how many of them each row has where they differ."""
    n = logits.shape[-1]
    if not isinstance(k, Tensor):
        places, counts = check_integer("k", k, 1, n), None
    else:
        if k.is_floating_point() or k.dtype == torch.bool:
            raise TypeError(f"k must hold integers, got {k.dtype}")
        try:
            counts = k.to(logits.device).expand(logits.shape[:-1])
        except RuntimeError:
            raise ValueError(f"k must broadcast to {tuple(logits.shape[:-1])}, got {tuple(k.shape)}") from None
        places = n
        if can_look(k) and counts.numel():
            least, places = int(counts.min()), int(counts.max())
            if least < 1 or places > n:
                raise ValueError(f"k must be in 1..{n}, got {least}..{places}")
    if can_look(logits):
        possible = (logits > -torch.inf).sum(-1)
        if bool((possible < (places if counts is None else counts)).any()):
            raise ValueError("k must be at most the number of finite logits in each row")
    return places, counts


def _check_perturbation(method: str, perturbation: AdaptivePerturbation | float) -> None:
    if isinstance(perturbation, AdaptivePerturbation):
        if method == "imle":
            raise TypeError("perturbation must be a number for method 'imle', got an AdaptivePerturbation")
    else:
        check_positive("perturbation", perturbation, zero=method == "aimle")


def _by_parts(noisy: Tensor, places: int, temperature: Scalar) -> Tensor:
    """Return relaxed rows; of what a row has taken by parts, the next has so much less."""
    rows = []
    for _ in range(places):
        rows.append(softmax(noisy, -1, temperature))
        noisy = noisy + (1 - rows[-1]).clamp(min=torch.finfo(noisy.dtype).tiny).log()
    return torch.stack(rows, -2)


def _estimated(
    wide: Tensor,
    noisy: Tensor,
    mask: Tensor,
    z: Tensor,
    method: str,
    noise: float,
    perturbation: AdaptivePerturbation | float,
    symmetric: bool,
    places: int,
    counts: Tensor | None,
) -> Tensor:
    """Return the mask with the gradient of a method that knows nothing but the mask."""
    mask = mask.detach().to(wide.dtype)
    if method == "identity":
        return replace_gradient(mask, torch.where(wide.detach() > -torch.inf, wide, 0.0))
    if method == "perturbed":
        move = torch.where(wide.detach() > -torch.inf, wide - wide.detach(), 0.0)  # zero, with derivative one
        return replace_gradient(mask, mask * (-torch.expm1(-z) / noise * move).sum(-1, keepdim=True))
    relative = method == "aimle"
    estimated: Tensor = _Implicit.apply(wide, noisy, mask, perturbation, relative, symmetric, places, counts)
    return estimated


class _Implicit(torch.autograd.Function):
    """The mask in the forward pass; in the backward pass how it changes when the cotangent pushes the scores."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, noisy: Tensor, mask: Tensor, *options: Any) -> Tensor:
        ctx.save_for_backward(logits, noisy, mask)
        ctx.options = options
        return mask.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        logits, noisy, mask = ctx.saved_tensors
        perturbation, relative, symmetric, places, counts = ctx.options
        adaptive = isinstance(perturbation, AdaptivePerturbation)
        size = perturbation.size if adaptive else perturbation
        if relative:
            length, pull = (torch.where(logits.isfinite(), x, 0.0).norm() for x in (logits, cotangent))
            size = torch.where(pull > 0, size * length / torch.where(pull > 0, pull, 1.0), 0.0)
        away = _top(noisy - size * cotangent, places, counts)
        difference = (_top(noisy + size * cotangent, places, counts) if symmetric else mask) - away
        if adaptive:
            rows = max(1, difference.numel() // difference.shape[-1])
            perturbation.update(difference.count_nonzero() / rows)
        scale = torch.as_tensor(size * (2 if symmetric else 1), dtype=mask.dtype, device=mask.device)
        return (difference / torch.where(scale > 0, scale, 1.0), *[None] * 7)


def _top(scores: Tensor, places: int, counts: Tensor | None) -> Tensor:
    """Return the mask of the largest scores."""
    order = scores.topk(places, -1).indices
    if counts is None:
        return torch.zeros_like(scores).scatter(-1, order, 1.0)
    used = torch.arange(places, device=scores.device) < counts.unsqueeze(-1)
    return torch.zeros_like(scores).scatter(-1, order, used.to(scores.dtype))
