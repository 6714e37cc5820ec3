r"""Perturbed optimisers: a combinatorial solver becomes smooth by averaging over noise on what it maximises.

The mean solution :math:`y(c) = E[\text{solver}(c + t Z)]` is smooth whatever the solver is, because c can be moved from
the solver to the density of the noise: ``y(c) = E[solver(u) p_c(u) / p_c0(u)]`` with ``u = c0 + t Z``. At ``c0 = c``
the ratio is one, and its derivatives of every order give those of y. The solver needs none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from pullback.core.checks import check_choice, check_floating, check_integer, check_scalar
from pullback.core.gradients import replace_gradient
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.implicit.arguments import check_function

__all__ = ["knapsack_layer", "perturbed_argmax"]

NOISES = ("normal", "gumbel")


def perturbed_argmax(
    solver: Callable[[Tensor], Tensor],
    scores: Float[Tensor, "*batch n"],
    *,
    temperature: Scalar,
    samples: int = 32,
    noise: str = "normal",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch d"]:
    r"""Return the mean solution of a maximisation whose scores are perturbed, with a gradient in the scores.

    .. math:: y = \frac1M \sum_m y_m, \quad y_m = \text{solver}(c + t Z_m), \qquad
              \frac{\partial y}{\partial c} \approx \frac1M \sum_m (y_m - \bar y_{-m})\, \frac{\nabla \nu(Z_m)^T}{t}

    with noise of density :math:`e^{-\nu}`: :math:`\nabla \nu(z) = z` (normal) or :math:`1 - e^{-z}` (Gumbel). The mean
    of the other solutions, :math:`\bar y_{-m}`, leaves the estimate unbiased and makes it less noisy (not with one
    sample). Derivatives of higher order, and in the temperature, are unbiased too.

    Args:
        solver: from scores ``[m, *batch, n]`` to solutions ``[m, *batch, d]``, row by row; it gets no derivative.
        scores: ``[*batch, n]`` finite.
        temperature: t >= 0, the scale of the noise in units of the scores, a number or a differentiable tensor without
            dimensions. At 0 the result is the solver's, with gradient 0.
        samples: M >= 1.
        noise: ``"normal"`` or ``"gumbel"``.
        generator: of the noise; torch's own by default.

    Returns:
        ``[*batch, d]`` in the dtype of the scores.

    Raises:
        TypeError: ``solver`` is no function, ``scores`` no floating tensor, ``samples`` no integer.
        ValueError: scores are not finite or have no dimension, ``temperature`` or ``samples`` is out of range,
            ``noise`` unknown, the solver's result has other leading dimensions.

    Example:
        >>> one_hot = lambda c: torch.nn.functional.one_hot(c.argmax(-1), c.shape[-1])
        >>> scores = torch.tensor([0.0, 1.0], requires_grad=True)
        >>> g = torch.Generator().manual_seed(0)
        >>> mean = perturbed_argmax(one_hot, scores, temperature=1.0, samples=10_000, generator=g)
        >>> (mean * 10).round().tolist()  # the second wins with probability Phi(1 / sqrt 2) = 0.76
        [2.0, 8.0]

    References:
        Berthet, Blondel, Teboul, Cuturi, Vert, Bach (2020), Learning with differentiable perturbed optimizers,
        proposition 3.1.
    """
    check_function("solver", solver)
    if not check_floating("scores", scores).ndim or not scores.shape[-1]:
        raise ValueError(f"scores must have a last dimension of at least one entry, got {tuple(scores.shape)}")
    if can_look(scores) and not bool(scores.isfinite().all()):
        raise ValueError("scores must be finite")
    number = check_scalar("temperature", temperature, zero=True)
    count = check_integer("samples", samples, 1)
    check_choice("noise", noise, NOISES)
    center = scores.detach()
    if number == 0:
        return _solutions(solver, center[None], scores)[0] + 0 * scores.sum()
    device = drawing_device(generator, scores)
    wide = torch.promote_types(scores.dtype, torch.float32)
    shape = (count, *scores.shape)
    if noise == "normal":
        z = torch.randn(shape, generator=generator, dtype=wide, device=device).to(scores.device)
    else:
        uniform = torch.rand(shape, generator=generator, dtype=wide, device=device)
        z = -torch.log(-torch.log(uniform.clamp(min=torch.finfo(wide).tiny, max=1 - torch.finfo(wide).eps)))
        z = z.to(scores.device)
    t = torch.as_tensor(temperature, dtype=wide, device=scores.device)
    start = t.detach()
    found = _solutions(solver, (center.to(wide) + start * z).to(scores.dtype), scores).to(wide)
    mean = found.mean(0)
    other = (found - mean) * (count / (count - 1)) if count > 1 else found
    # The same points as noise around the scores and in the unit that are differentiated: equal in value to z.
    moved = (z * start - (scores.to(wide) - center.to(wide))) / t
    logs = (_density(moved, noise) - _density(z, noise)).sum(-1, keepdim=True)
    logs = logs - scores.shape[-1] * (t / start).log()
    return replace_gradient(mean, (other * logs.exp()).mean(0)).to(scores.dtype)


def knapsack_layer(
    scores: Float[Tensor, "*batch n"],
    k: int,
    *,
    temperature: Scalar = 0.0,
    samples: int = 32,
    noise: str = "normal",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch n"]:
    r"""Return which k items of equal weight have the largest sum of scores, averaged over perturbed scores.

    :math:`K(c) = \arg\max \{c^T b : \sum_i b_i = k,\ b \in \{0, 1\}^n\}` marks the k largest scores. With a temperature
    it is the mean of :func:`perturbed_argmax`, in ``[0, 1]`` and of sum k, and gets its gradient.

    Args:
        scores: ``[*batch, n]`` finite.
        k: in 1..n.
        temperature: >= 0; at 0 zeros and ones, with gradient 0.
        samples, noise, generator: of :func:`perturbed_argmax`.

    Returns:
        ``[*batch, n]``.

    Raises:
        TypeError, ValueError: ``k`` is no integer or out of range, and as in :func:`perturbed_argmax`.

    Example:
        >>> knapsack_layer(torch.tensor([0.1, 3.0, -1.0, 2.0]), 2)
        tensor([0., 1., 0., 1.])

    References:
        Kotary, Di Vito, Fioretto (2023), Differentiable model selection for ensemble learning, section 4.
    """
    if not check_floating("scores", scores).ndim or not scores.shape[-1]:
        raise ValueError(f"scores must have a last dimension of at least one entry, got {tuple(scores.shape)}")
    check_integer("k", k, 1, scores.shape[-1])
    best = partial(_largest, k=k)
    return perturbed_argmax(best, scores, temperature=temperature, samples=samples, noise=noise, generator=generator)


def _largest(scores: Tensor, k: int) -> Tensor:
    return torch.zeros_like(scores).scatter(-1, scores.topk(k, -1).indices, 1.0)


def _solutions(solver: Callable[[Tensor], Tensor], perturbed: Tensor, scores: Tensor) -> Tensor:
    with torch.no_grad():
        found = solver(perturbed)
    if not isinstance(found, Tensor) or found.ndim != perturbed.ndim or found.shape[:-1] != perturbed.shape[:-1]:
        came = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"solver must return {(*perturbed.shape[:-1], 'd')} for {tuple(perturbed.shape)}, got {came}")
    return found.to(scores.dtype)


def _density(z: Tensor, noise: str) -> Tensor:
    """Return the logarithm of the density, up to a constant."""
    return -z.square() / 2 if noise == "normal" else -z - torch.exp(-z)
