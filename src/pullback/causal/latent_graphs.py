"""Graphs and intervention targets as continuous latents, and the gradient of a log-expectation over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from pullback.core.checks import check_callable, check_floating, check_same_dtype, check_scalar, check_shape
from pullback.core.gradients import replace_gradient
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Scalar, Tensor

__all__ = [
    "ScoreRatio",
    "edge_probabilities",
    "latent_graph",
    "latent_targets",
    "logistic_noise",
    "score_ratio_gradient",
]


def logistic_noise(
    shape: tuple[int, ...], *, like: Float[Tensor, "..."], generator: torch.Generator | None = None
) -> Float[Tensor, "..."]:
    r"""Draw from the standard logistic distribution, :math:`\log u - \log(1 - u)` of uniform ``u``.

    A Bernoulli variable of logit ``l`` is 1 where ``noise + l > 0``; the sigmoid of that sum is its relaxation.

    Args:
        shape: of the draws.
        like: tensor whose dtype and device they have.
        generator: source of the draws.

    Returns:
        ``[*shape]``, finite.

    Raises:
        TypeError: ``like`` is no floating tensor.

    Example:
        >>> noise = logistic_noise((1000,), like=torch.zeros(1), generator=torch.Generator().manual_seed(0))
        >>> round((noise > 0).float().mean().item(), 1)
        0.5

    References:
        Maddison, Mnih, Teh (2017), The Concrete Distribution, section 3.3.
    """
    check_floating("like", like)
    uniform = torch.rand(shape, generator=generator, device=drawing_device(generator, like), dtype=torch.float32)
    return uniform.clamp(1e-7, 1 - 1e-7).logit().to(like.device, like.dtype)


def edge_probabilities(z: Float[Tensor, "*batch 2 d k"], alpha: Scalar = 1.0) -> Float[Tensor, "*batch d d"]:
    r"""Return the probabilities of arcs :math:`\sigma(\alpha\, u_i \cdot v_j)`, zero on the diagonal.

    Args:
        z: ``[*batch, 2, d, k]``: ``u`` and ``v``, one row of ``k`` numbers a node each.
        alpha: >= 0, inverse temperature; 0 makes all arcs even odds.

    Returns:
        ``[*batch, d, d]`` in [0, 1].

    Raises:
        TypeError: not a floating tensor.
        ValueError: another shape, ``alpha < 0``.

    Example:
        >>> z = torch.tensor([[[1.0], [0.0]], [[0.0], [2.0]]])
        >>> [[round(p, 2) for p in row] for row in edge_probabilities(z).tolist()]
        [[0.0, 0.88], [0.5, 0.0]]

    References:
        Lorch, Rothfuss, Schoelkopf, Krause (2021), DiBS, equation 6.
    """
    return _off_diagonal((alpha * _scores(z, alpha)).sigmoid())


def latent_graph(
    z: Float[Tensor, "*#batch 2 d k"],
    *,
    noise: Float[Tensor, "*#batch d d"],
    alpha: Scalar = 1.0,
    tau: Scalar = 1.0,
    hard: bool = False,
) -> Float[Tensor, "*batch d d"]:
    r"""Return a sample of a graph whose arcs are independent: :math:`\sigma(\tau(L_{ij} + \alpha\, u_i \cdot v_j))`.

    As ``tau`` grows it tends to a sample from the :func:`edge_probabilities`. Nothing keeps it from having cycles.

    Args:
        z: ``[*batch, 2, d, k]``: ``u`` and ``v``.
        noise: ``L``, logistic (:func:`logistic_noise`), of a shape that broadcasts with ``[*batch, d, d]``.
        alpha: >= 0, inverse temperature of the probabilities.
        tau: > 0, steepness of the sample.
        hard: whether to return zeros and ones, with the gradient of the soft sample.

    Returns:
        ``[*batch, d, d]`` in [0, 1], zero on the diagonal.

    Raises:
        TypeError: not floating tensors of one dtype.
        ValueError: another shape, ``alpha < 0``, ``tau <= 0``.

    Example:
        >>> z = torch.tensor([[[1.0], [0.0]], [[0.0], [2.0]]])
        >>> latent_graph(z, noise=torch.zeros(2, 2), hard=True).tolist()
        [[0.0, 1.0], [0.0, 0.0]]

    References:
        Lorch, Rothfuss, Schoelkopf, Krause (2021), DiBS, section 4.3; Haegele et al. (2023), BaCaDI, section 4.
    """
    scores = _scores(z, alpha)
    check_same_dtype(z=z, noise=check_floating("noise", noise))
    check_shape("noise", noise, tuple(scores.shape[-2:]))
    return _off_diagonal(_relaxed(noise + alpha * scores, tau, hard))


def latent_targets(
    gamma: Float[Tensor, "*#batch e d"],
    *,
    noise: Float[Tensor, "*#batch e d"],
    alpha: Scalar = 1.0,
    tau: Scalar = 1.0,
    hard: bool = False,
) -> Float[Tensor, "*batch e d"]:
    r"""Return a sample of which environment intervenes on which node.

    .. math:: I_{ej} = \sigma(\tau(L_{ej} + \alpha\gamma_{ej}/2))

    Args:
        gamma: ``[*batch, e, d]``; the probability of a target is ``sigmoid(alpha gamma / 2)``.
        noise: ``L``, logistic, of a shape that broadcasts with ``gamma``.
        alpha: >= 0, inverse temperature of the probabilities.
        tau: > 0, steepness of the sample.
        hard: whether to return zeros and ones, with the gradient of the soft sample.

    Returns:
        ``[*batch, e, d]`` in [0, 1].

    Raises:
        TypeError: not floating tensors of one dtype.
        ValueError: another shape, ``alpha < 0``, ``tau <= 0``.

    Example:
        >>> latent_targets(torch.tensor([[2.0, -2.0]]), noise=torch.zeros(1, 2), hard=True).tolist()
        [[1.0, 0.0]]

    References:
        Haegele et al. (2023), BaCaDI, section 4.
    """
    check_shape("gamma", check_floating("gamma", gamma), (None, None))
    check_same_dtype(gamma=gamma, noise=check_floating("noise", noise))
    check_shape("noise", noise, tuple(gamma.shape[-2:]))
    check_scalar("alpha", alpha, zero=True)
    return _relaxed(noise + alpha * gamma / 2, tau, hard)


class ScoreRatio(NamedTuple):
    """An estimate of the gradient of a log-expectation.

    Attributes:
        gradient: nested like the latents, of their shapes.
        log_mean: ``[*batch]`` the logarithm of the mean over the samples.
        effective_samples: ``[*batch]`` in [1, samples]: :math:`1 / \\sum_m w_m^2` of the weights; near 1, one sample
            carries the estimate.
    """

    gradient: Any
    log_mean: Float[Tensor, "*batch"]
    effective_samples: Float[Tensor, "*batch"]


def score_ratio_gradient(
    log_joint: Callable[[Any, Any], Float[Tensor, "*batch m"]], latents: Any, samples: Any
) -> ScoreRatio:
    r"""Estimate :math:`\nabla_z \log E_\epsilon\, p(g(z, \epsilon))` from samples of the noise.

    .. math:: \sum_m w_m \nabla_z \log p(g(z, \epsilon_m)), \qquad w = \mathrm{softmax}_m \log p(g(z, \epsilon_m))

    the ratio of two Monte Carlo means over the same samples: exact where the samples are all that the noise can be,
    biased by ``O(1/m)`` otherwise.

    Args:
        log_joint: ``log_joint(latents, samples)`` returns ``[*batch, m]``, the log-density of each sample.
        latents: a tensor ``[*batch, ...]``, or a nesting of such tensors.
        samples: handed to ``log_joint``: noise, or discrete samples that the latents do not reach.

    Returns:
        :class:`ScoreRatio`.

    Raises:
        TypeError: ``log_joint`` cannot be called.

    Example:
        >>> noise = torch.tensor([-1.0, 1.0])
        >>> estimate = score_ratio_gradient(lambda z, e: z.unsqueeze(-1) * e, torch.tensor(0.5), noise)
        >>> round(estimate.gradient.item(), 4), round(torch.tensor(0.5).tanh().item(), 4)
        (0.4621, 0.4621)

    References:
        Lorch, Rothfuss, Schoelkopf, Krause (2021), DiBS, equations 11 and 12; Kong (1992) for the effective samples.
    """
    check_callable("log_joint", log_joint)

    def total(inner: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        values = log_joint(inner, samples)
        log_sum = values.logsumexp(-1)
        return log_sum.sum(), (values, log_sum)

    gradient, (values, log_sum) = torch.func.grad(total, has_aux=True)(latents)
    weights = (values - log_sum.unsqueeze(-1)).exp()
    count = torch.tensor(values.shape[-1], dtype=values.dtype, device=values.device)
    return ScoreRatio(gradient, log_sum - count.log(), 1 / weights.square().sum(-1))


def _scores(z: Tensor, alpha: Scalar) -> Tensor:
    check_shape("z", check_floating("z", z), (2, None, None))
    check_scalar("alpha", alpha, zero=True)
    u, v = z.unbind(-3)
    return u @ v.mT


def _relaxed(logits: Tensor, tau: Scalar, hard: bool) -> Tensor:
    check_scalar("tau", tau)
    soft = (tau * logits).sigmoid()
    return replace_gradient((logits > 0).to(soft), soft) if hard else soft


def _off_diagonal(matrix: Tensor) -> Tensor:
    return matrix * (1 - torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device))
