"""Divergences and dependence of samples, by sums of Gaussian kernels."""

from __future__ import annotations

import math

import torch

from pullback.core.checks import (
    check_broadcast,
    check_choice,
    check_finite,
    check_floating,
    check_positive,
    check_same_dtype,
    check_scalar,
    check_shape,
)
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.transport import pairwise_cost

__all__ = [
    "cauchy_schwarz_divergence",
    "conditional_cauchy_schwarz",
    "gaussian_cauchy_schwarz",
    "hsic",
    "median_bandwidth",
    "mmd",
    "quadratic_mutual_information",
]

_DEPENDENCES = ("cauchy-schwarz", "euclidean")


def cauchy_schwarz_divergence(
    x: Float[Tensor, "*#batch n d"], y: Float[Tensor, "*#batch m d"], *, bandwidth: Scalar
) -> Float[Tensor, "*batch"]:
    r"""Return the Cauchy-Schwarz divergence of two samples, smoothed by a Gaussian kernel.

    .. math:: D_{CS} = -\log\frac{(\int pq)^2}{\int p^2\int q^2}\approx
        \log\overline{k(x_i,x_j)}+\log\overline{k(y_i,y_j)}-2\log\overline{k(x_i,y_j)}

    with :math:`k(x,y)=e^{-|x-y|^2/2\sigma^2}` and means over all pairs: exactly the divergence of the two densities
    that kernels of width :math:`\sigma/\sqrt2` make of the samples. It is >= 0, 0 for equal samples, and finite where
    supports do not meet, far apart too: sums are taken of logarithms.

    Args:
        x: ``[*batch, n, d]`` sample of p.
        y: ``[*batch, m, d]`` sample of q.
        bandwidth: sigma > 0, in the unit of the samples.

    Returns:
        ``[*batch]`` nats; float16 and bfloat16 are computed in float32.

    Raises:
        TypeError: a sample is no floating tensor, or the dtypes differ.
        ValueError: shapes do not fit, a sample is empty or not finite, or ``bandwidth`` <= 0.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> cauchy_schwarz_divergence(x, x + 1000.0, bandwidth=1.0).round()  # about the squared distance
        tensor(998003.)

    References:
        Principe (2010), Information theoretic learning, chapter 2. Yu, Yu, Lokse, Jenssen, Principe (2024),
        Cauchy-Schwarz divergence information bottleneck for regression, equation 5.
    """
    check_scalar("bandwidth", bandwidth)
    wide = _wide(x.dtype) if isinstance(x, Tensor) else None
    logs = [_log_mean(_log_kernel(a, b, bandwidth, wide)) for a, b in ((x, y), (x, x), (y, y))]
    return (logs[1] + logs[2] - 2 * logs[0]).to(x.dtype)


def conditional_cauchy_schwarz(
    x: Float[Tensor, "*#batch n d"],
    y1: Float[Tensor, "*#batch n q"],
    y2: Float[Tensor, "*#batch n q"],
    *,
    bandwidths: tuple[Scalar, Scalar] = (1.0, 1.0),
    compat: bool = False,
) -> Float[Tensor, "*batch"]:
    r"""Return the Cauchy-Schwarz divergence of the conditional laws of two targets of the same inputs.

    .. math:: D = \log\sum_j\frac{\sum_iK_{ji}L^{11}_{ji}}{(\sum_iK_{ji})^2}
        +\log\sum_j\frac{\sum_iK_{ji}L^{22}_{ji}}{(\sum_iK_{ji})^2}
        -2\log\sum_j\frac{\sum_iK_{ji}L^{21}_{ji}}{(\sum_iK_{ji})^2},

    K the Gaussian kernels of the inputs, L those of the targets. With predictions in the place of ``y2`` it is a loss
    of regression; where no two inputs are near each other, it is :math:`-2\log` of the mean kernel of the errors.

    Args:
        x: ``[*batch, n, d]`` inputs.
        y1: ``[*batch, n, q]`` targets of them.
        y2: ``[*batch, n, q]`` others, such as predictions.
        bandwidths: of inputs and of targets, each > 0.
        compat: as the authors' code: divide by the sum of squared kernels, and take logarithms of base 2.

    Returns:
        ``[*batch]`` nats.

    Raises:
        TypeError: a sample is no floating tensor, or the dtypes differ.
        ValueError: shapes do not fit, a sample is not finite, or a bandwidth <= 0.

    Example:
        >>> x, y = torch.linspace(-1, 1, 5)[:, None], torch.ones(5, 1)
        >>> conditional_cauchy_schwarz(x, y, y + 2.0)  # constant targets: the squared distance / sigma**2
        tensor(4.)

    References:
        Yu, Yu, Lokse, Jenssen, Principe (2024), proposition 1.
    """
    _check_bandwidths(bandwidths)
    _check_paired(x=x, y1=y1, y2=y2)
    check_shape("y2", y2, (None, y1.shape[-1]))
    width_x, width_y = bandwidths
    wide = _wide(x.dtype)
    inputs = _log_kernel(x, x, width_x, wide)
    mass = _log_sum(2 * inputs, -1) if compat else 2 * _log_sum(inputs, -1)
    logs = [
        _log_sum(_log_sum(inputs + _log_kernel(a, b, width_y, wide), -1) - mass, -1)
        for a, b in ((y2, y1), (y1, y1), (y2, y2))
    ]
    divergence = logs[1] + logs[2] - 2 * logs[0]
    return (divergence / math.log(2) if compat else divergence).to(x.dtype)


def quadratic_mutual_information(
    x: Float[Tensor, "*#batch n d"],
    t: Float[Tensor, "*#batch n k"],
    *,
    bandwidths: tuple[Scalar, Scalar] = (1.0, 1.0),
    divergence: str = "cauchy-schwarz",
    normalize: bool = False,
) -> Float[Tensor, "*batch"]:
    r"""Return how far a joint law is from the product of its marginals, by quadratic divergences.

    With kernels K of x, Q of t, and means over rows and pairs,

    .. math:: I_{CS}=\log\overline{KQ}+\log\overline K\,\overline Q-2\log\overline{K_{i\cdot}Q_{i\cdot}},\qquad
        I_{ED}=\overline{KQ}+\overline K\,\overline Q-2\,\overline{K_{i\cdot}Q_{i\cdot}}.

    Both are >= 0 and 0 in the limit of many samples only where x and t are independent. I_ED is the (biased)
    :func:`hsic`.

    Args:
        x: ``[*batch, n, d]``.
        t: ``[*batch, n, k]`` of the same samples.
        bandwidths: of x and t, each > 0.
        divergence: ``"cauchy-schwarz"`` (nats) or ``"euclidean"``.
        normalize: divide by :math:`\sqrt{I(x;x)I(t;t)}`: in [0, 1] as far as I(x;t) <= I(t;t) allows.

    Returns:
        ``[*batch]``.

    Raises:
        TypeError: a sample is no floating tensor, or the dtypes differ.
        ValueError: shapes do not fit, there are fewer than 4 samples, one is not finite, a bandwidth <= 0,
            ``divergence`` is unknown, or, with ``normalize``, x or t is constant (its information is 0).

    Example:
        >>> x = torch.tensor([[0.0], [0.0], [9.0], [9.0]])
        >>> quadratic_mutual_information(x, x)  # of one bit: (log 2 + log 4 - 2 log 2)
        tensor(0.6931)
        >>> quadratic_mutual_information(x, torch.tensor([[0.0], [9.0], [0.0], [9.0]]))
        tensor(0.)

    References:
        Yu, Yu, Lokse, Jenssen, Principe (2024), equation 13. Gretton, Bousquet, Smola, Schoelkopf (2005), Measuring
        statistical dependence with Hilbert-Schmidt norms.
    """
    _check_bandwidths(bandwidths)
    _check_paired(x=x, t=t)
    check_choice("divergence", divergence, _DEPENDENCES)
    if x.shape[-2] < 4:
        raise ValueError(f"x and t must hold at least 4 samples, got {x.shape[-2]}")
    wide = _wide(x.dtype)
    kernels = [_log_kernel(s, s, width, wide) for s, width in zip((x, t), bandwidths, strict=True)]
    between = _dependence(kernels[0], kernels[1], divergence)
    if not normalize:
        return between.to(x.dtype)
    alone = [_dependence(kernel, kernel, divergence) for kernel in kernels]
    for name, information in zip(("x", "t"), alone, strict=True):
        if can_look(information) and not bool((information > 0).all()):
            raise ValueError(f"{name} must vary, its information is not defined where all samples are equal")
    return (between / (alone[0] * alone[1]).sqrt()).to(x.dtype)


def hsic(
    x: Float[Tensor, "*#batch n d"],
    y: Float[Tensor, "*#batch n k"],
    *,
    bandwidths: tuple[Scalar, Scalar] = (1.0, 1.0),
    unbiased: bool = False,
) -> Float[Tensor, "*batch"]:
    r"""Return the Hilbert-Schmidt independence criterion of two samples, with Gaussian kernels.

    .. math:: \frac1{n^2}\mathrm{tr}(KHLH),\ H=I-\tfrac1n\mathbf 1\mathbf 1^\top;\quad\text{unbiased: }
        \frac{1}{n(n-3)}\Big[\mathrm{tr}(\tilde K\tilde L)+\frac{\mathbf 1^\top\tilde K\mathbf 1\,
        \mathbf 1^\top\tilde L\mathbf 1}{(n-1)(n-2)}-\frac{2}{n-2}\mathbf 1^\top\tilde K\tilde L\mathbf 1\Big]

    where a tilde means that the diagonal is 0.

    Args:
        x: ``[*batch, n, d]``, n >= 4.
        y: ``[*batch, n, k]`` of the same samples.
        bandwidths: of x and y, each > 0.
        unbiased: the second form, which may be negative.

    Returns:
        ``[*batch]``.

    Raises:
        TypeError: a sample is no floating tensor, or the dtypes differ.
        ValueError: shapes do not fit, there are fewer than 4 samples, one is not finite, or a bandwidth <= 0.

    Example:
        >>> x = torch.tensor([[0.0], [0.0], [9.0], [9.0]])
        >>> hsic(x, x)
        tensor(0.2500)

    References:
        Gretton, Bousquet, Smola, Schoelkopf (2005). Song, Smola, Gretton, Bedo, Borgwardt (2012), Feature selection via
        dependence maximization, equation 5.
    """
    if not unbiased:
        _check_paired(x=x, y=y)
        return quadratic_mutual_information(x, y, bandwidths=bandwidths, divergence="euclidean")
    _check_bandwidths(bandwidths)
    _check_paired(x=x, y=y)
    n = x.shape[-2]
    if n < 4:
        raise ValueError(f"x and y must hold at least 4 samples, got {n}")
    wide = _wide(x.dtype)
    off = 1 - torch.eye(n, dtype=wide, device=x.device)
    k, q = (_log_kernel(s, s, width, wide).exp() * off for s, width in zip((x, y), bandwidths, strict=True))
    whole = k.sum((-2, -1)) * q.sum((-2, -1)) / ((n - 1) * (n - 2))
    rows = (k.sum(-1) * q.sum(-1)).sum(-1) * (2 / (n - 2))
    return (((k * q).sum((-2, -1)) + whole - rows) / (n * (n - 3))).to(x.dtype)


def mmd(
    x: Float[Tensor, "*#batch n d"], y: Float[Tensor, "*#batch m d"], *, bandwidth: Scalar, unbiased: bool = False
) -> Float[Tensor, "*batch"]:
    r"""Return the squared maximum mean discrepancy of two samples, with a Gaussian kernel.

    .. math:: \overline{k(x_i,x_j)}+\overline{k(y_i,y_j)}-2\,\overline{k(x_i,y_j)}

    Args:
        x: ``[*batch, n, d]``.
        y: ``[*batch, m, d]``.
        bandwidth: sigma > 0 of :math:`e^{-|x-y|^2/2\sigma^2}`, in the unit of the samples.
        unbiased: leave out the pairs of a sample with itself (n, m >= 2); the result may be negative.

    Returns:
        ``[*batch]``, in [0, 2] where it is biased.

    Raises:
        TypeError: a sample is no floating tensor, or the dtypes differ.
        ValueError: shapes do not fit, a sample is empty (or single, where ``unbiased``) or not finite, or
            ``bandwidth`` <= 0.

    Example:
        >>> mmd(torch.zeros(1, 2), torch.full((1, 2), 1.0), bandwidth=1.0)  # 2 - 2 / e
        tensor(1.2642)

    References:
        Gretton, Borgwardt, Rasch, Schoelkopf, Smola (2012), A kernel two-sample test, equations 3 and 5.
    """
    check_scalar("bandwidth", bandwidth)
    wide = _wide(x.dtype) if isinstance(x, Tensor) else None
    between, of_x, of_y = (_log_kernel(a, b, bandwidth, wide).exp() for a, b in ((x, y), (x, x), (y, y)))
    within = []
    for name, kernel in (("x", of_x), ("y", of_y)):
        n = kernel.shape[-1]
        if unbiased and n < 2:
            raise ValueError(f"{name} must hold at least 2 samples to be unbiased, got {n}")
        alone = kernel.diagonal(dim1=-2, dim2=-1).sum(-1)
        whole = kernel.sum((-2, -1))
        within.append((whole - alone) / (n * (n - 1)) if unbiased else whole / n**2)
    return (within[0] + within[1] - 2 * between.mean((-2, -1))).to(x.dtype)


def median_bandwidth(
    x: Float[Tensor, "*batch n d"], *, scale: float = 1.0, detach: bool = True
) -> Float[Tensor, "*batch"]:
    r"""Return the median distance of two samples, a usual width of kernels.

    Args:
        x: ``[*batch, n, d]`` samples, n >= 2, in their unit.
        scale: factor > 0 of the median.
        detach: without gradient. Otherwise it has that of the distance of the pair in the middle.

    Returns:
        ``[*batch]`` the (lower) median over pairs of different samples, in the unit of x; 0 where most are equal.

    Raises:
        TypeError: ``x`` is no floating tensor.
        ValueError: there are fewer than two samples, one is not finite, or ``scale`` <= 0.

    Example:
        >>> median_bandwidth(torch.tensor([[0.0], [1.0], [3.0]]))
        tensor(2.)

    References:
        Gretton et al. (2012), section 8.
    """
    check_floating("x", x)
    check_positive("scale", scale)
    if x.ndim < 2 or x.shape[-2] < 2:
        raise ValueError(f"x must have shape (..., n, d) with n >= 2, got {tuple(x.shape)}")
    x = x.detach() if detach else x
    first, second = torch.triu_indices(x.shape[-2], x.shape[-2], 1, device=x.device)
    squared = pairwise_cost(x.detach(), x.detach(), "sqeuclidean")[..., first, second]
    place = squared.median(-1).indices
    pair = (x[..., first, :] - x[..., second, :]).gather(
        -2, place[..., None, None].expand(*place.shape, 1, x.shape[-1])
    )
    return scale * torch.linalg.vector_norm(pair.squeeze(-2), dim=-1)


def gaussian_cauchy_schwarz(
    mean_p: Float[Tensor, "*#batch d"],
    covariance_p: Float[Tensor, "*#batch d d"],
    mean_q: Float[Tensor, "*#batch d"],
    covariance_q: Float[Tensor, "*#batch d d"],
) -> Float[Tensor, "*batch"]:
    r"""Return the Cauchy-Schwarz divergence of two normal laws, in closed form.

    .. math:: (\mu_p-\mu_q)^\top(P+Q)^{-1}(\mu_p-\mu_q)+\log\frac{|P+Q|}{2^d\,|P|^{1/2}|Q|^{1/2}}

    For equal covariances it is the Kullback-Leibler divergence. It is at most the mean of both of these in all pairs
    that were ever tried, but not at most each of them.

    Args:
        mean_p: ``[*batch, d]``.
        covariance_p: ``[*batch, d, d]`` symmetric positive definite P.
        mean_q: ``[*batch, d]``.
        covariance_q: ``[*batch, d, d]`` Q.

    Returns:
        ``[*batch]`` nats.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: shapes do not fit, a number is not finite, or a covariance is not positive definite.

    Example:
        >>> one, two = torch.eye(1), 4 * torch.eye(1)
        >>> gaussian_cauchy_schwarz(torch.zeros(1), one, torch.ones(1), two)  # 1 / 5 + log(5 / 4)
        tensor(0.4231)

    References:
        Kampa, Hasanbelliu, Principe (2011), Closed-form Cauchy-Schwarz PDF divergence for mixture of Gaussians.
    """
    given = {"mean_p": mean_p, "covariance_p": covariance_p, "mean_q": mean_q, "covariance_q": covariance_q}
    for name, value in given.items():
        check_floating(name, value)
    check_same_dtype(**given)
    d = mean_p.shape[-1] if mean_p.ndim else 0
    for name, value in given.items():
        check_shape(name, value, (d, d) if name.startswith("cov") else (d,))
    check_broadcast(**{name: v.shape[: v.ndim - 1 - name.startswith("cov")] for name, v in given.items()})
    for name, value in given.items():
        if can_look(value):
            check_finite(name, value)
    dtype, wide = mean_p.dtype, _wide(mean_p.dtype)
    mean_p, covariance_p, mean_q, covariance_q = (value.to(wide) for value in given.values())
    together = _factor("covariance_p + covariance_q", covariance_p + covariance_q)
    of_p, of_q = _factor("covariance_p", covariance_p), _factor("covariance_q", covariance_q)
    apart = torch.linalg.solve_triangular(together, (mean_p - mean_q).unsqueeze(-1), upper=False).squeeze(-1)
    half = [factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) for factor in (together, of_p, of_q)]
    return (apart.square().sum(-1) + 2 * half[0] - half[1] - half[2] - d * math.log(2)).to(dtype)


def _factor(name: str, covariance: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(covariance)
    if can_look(info) and bool((info != 0).any()):
        raise ValueError(f"{name} must be positive definite")
    return factor


def _log_kernel(x: Tensor, y: Tensor, bandwidth: Scalar, dtype: torch.dtype | None) -> Tensor:
    """Logarithms of the kernels of all pairs, in at least single precision, <= 0."""
    if dtype is not None:
        check_same_dtype(x=check_floating("x", x), y=check_floating("y", y))
        x, y = x.to(dtype), y.to(dtype)
        x, y = x / bandwidth, y / bandwidth
        for name, scaled in (("x", x), ("y", y)):
            if can_look(scaled):
                check_finite(name, scaled)
    squares = pairwise_cost(x, y, "sqeuclidean")
    if can_look(squares) and not bool(squares.isfinite().all()):
        raise ValueError("bandwidth must be larger: the square of a distance in bandwidths is no finite number")
    return -0.5 * squares.clamp_min(0)


def _log_sum(logs: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """``logsumexp`` whose derivative is right where logarithms are so large that a sum with them is rounded."""
    largest = logs.detach().amax(dim, keepdim=True)
    return (logs - largest).logsumexp(dim) + largest.squeeze(dim)


def _log_mean(logs: Tensor) -> Tensor:
    return _log_sum(logs, (-2, -1)) - math.log(logs.shape[-2] * logs.shape[-1])


def _dependence(k: Tensor, q: Tensor, divergence: str) -> Tensor:
    n = math.log(k.shape[-1])
    rows = [_log_sum(kernel, -1) - n for kernel in (k, q)]
    joint, cross = _log_mean(k + q), _log_sum(rows[0] + rows[1], -1) - n
    product = _log_sum(rows[0], -1) + _log_sum(rows[1], -1) - 2 * n
    if divergence == "cauchy-schwarz":
        return joint + product - 2 * cross
    return joint.exp() + product.exp() - 2 * cross.exp()


def _check_bandwidths(bandwidths: tuple[Scalar, Scalar]) -> None:
    if not isinstance(bandwidths, tuple) or len(bandwidths) != 2:
        raise TypeError(f"bandwidths must be a tuple of two numbers, got {bandwidths!r}")
    for value in bandwidths:
        check_scalar("bandwidths", value)


def _check_paired(**samples: Tensor) -> None:
    for name, value in samples.items():
        if check_floating(name, value).ndim < 2 or not value.shape[-2]:
            raise ValueError(f"{name} must have shape (..., n, d) with n >= 1, got {tuple(value.shape)}")
    check_same_dtype(**samples)
    sizes = {name: value.shape[-2] for name, value in samples.items()}
    if len(set(sizes.values())) > 1:
        came = " and ".join(str(size) for size in sizes.values())
        raise ValueError(f"{' and '.join(sizes)} must hold the same samples, got {came}")
    check_broadcast(**{name: value.shape[:-2] for name, value in samples.items()})


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
