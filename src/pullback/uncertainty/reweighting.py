"""Ratios of two densities and weights that match two samples."""

from __future__ import annotations

import torch

from pullback.core.checks import (
    check_choice,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_scalar,
)
from pullback.core.numerics import solve
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.implicit import quadratic_program
from pullback.uncertainty.density import gaussian_kernel, kernel_density
from pullback.uncertainty.target_shift import conditional_expectation_matrix, reference_bandwidth

__all__ = ["density_ratio", "kernel_mean_matching"]

_METHODS = ("kde", "ulsif")


def density_ratio(
    numerator: Float[Tensor, "m d"],
    denominator: Float[Tensor, "n d"],
    query: Float[Tensor, "k d"] | None = None,
    *,
    method: str = "kde",
    bandwidth: Scalar | Float[Tensor, "d"] | None = None,
    ridge: Scalar = 0.1,
    centres: int = 100,
) -> Float[Tensor, "k"]:
    r"""Return estimates of :math:`p(x)/q(x)` from a sample of each.

    ``"kde"`` divides two smoothed densities, each with its own bandwidth. ``"ulsif"`` fits the ratio itself,
    :math:`r(x)=\sum_l\theta_lK((x-c_l)/h)` with centres of the numerator, by least squares:

    .. math:: \theta=(\hat H+\lambda I)^{-1}\hat h,\quad\hat H=\tfrac1n\sum_jK(x_j)K(x_j)^T,\quad
        \hat h=\tfrac1m\sum_iK(x_i),\qquad r=\max(K^T\theta,0).

    Args:
        numerator: ``[m, d]`` sample of p.
        denominator: ``[n, d]`` sample of q.
        query: ``[k, d]`` where the ratio is wanted; the denominator by default.
        method: ``"kde"`` or ``"ulsif"``.
        bandwidth: h > 0, a number or ``[d]``; by default :func:`reference_bandwidth` of each sample, and for
            ``"ulsif"`` half a standard deviation of the denominator.
        ridge: lambda > 0 of ``"ulsif"``, a number or a tensor without dimensions.
        centres: how many of the first rows of the numerator ``"ulsif"`` uses, >= 1.

    Returns:
        ``[k]`` >= 0, differentiable.

    Raises:
        TypeError: the samples are no floating tensors of one dtype.
        ValueError: shapes do not fit, there are fewer than two rows, an option is out of range.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> q, p = torch.rand(1000, 1, generator=g), torch.rand(1000, 1, generator=g) / 2
        >>> density_ratio(p, q, torch.tensor([[0.25], [0.9]])).round()
        tensor([2., 0.])

    References:
        Kanamori, Hido, Sugiyama (2009), A least-squares approach to direct importance estimation, section 3.1.
    """
    check_choice("method", method, _METHODS)
    check_scalar("ridge", ridge)
    check_integer("centres", centres, 1)
    query = denominator if query is None else query
    samples = {"numerator": numerator, "denominator": denominator, "query": query}
    for name, value in samples.items():
        if check_floating(name, value).ndim != 2 or (len(value) < 2 and name != "query"):
            raise ValueError(f"{name} must have shape [rows >= 2, d], got {tuple(value.shape)}")
        if value.shape[1] != numerator.shape[1] or not value.shape[1]:
            raise ValueError(f"numerator and {name} must have as many columns, got {numerator.shape} and {value.shape}")
    check_same_dtype(**samples)
    if bandwidth is not None:
        check_positive("bandwidth", bandwidth)
        bandwidth = torch.as_tensor(bandwidth, dtype=query.dtype, device=query.device).expand(query.shape[1])
    wide = torch.promote_types(query.dtype, torch.float32)
    p, q, x = numerator.to(wide), denominator.to(wide), query.to(wide)
    if method == "kde":
        widths = (reference_bandwidth(s) if bandwidth is None else bandwidth.to(wide) for s in (p, q))
        logs = [kernel_density(s, None, x, bandwidth=h) for s, h in zip((p, q), widths, strict=True)]
        return (logs[0] - logs[1]).exp().to(query.dtype)
    h = q.std(0) / 2 if bandwidth is None else bandwidth.to(wide)
    at = p[:centres]
    of_p, of_q, of_x = (gaussian_kernel(s, at, h) for s in (p, q, x))
    square = of_q.mT @ of_q / len(q) + torch.as_tensor(ridge, dtype=wide, device=x.device) * torch.eye(
        len(at), dtype=wide, device=x.device
    )
    weights = solve(square, of_p.mean(0).unsqueeze(1))
    return (of_x @ weights).squeeze(1).clamp(min=0).to(query.dtype)


def kernel_mean_matching(
    source: Float[Tensor, "n d"],
    target: Float[Tensor, "m d"],
    y_source: Float[Tensor, "n"] | None = None,
    *,
    width: Scalar | None = None,
    bound: float = 10.0,
    tolerance: float = 0.05,
) -> Float[Tensor, "n"]:
    r"""Return weights of the source under which its mean in a kernel's feature space is that of the target.

    .. math:: \min_\beta\Big\|\frac1n\sum_i\beta_i\phi(x_i)-\frac1m\sum_j\phi(x'_j)\Big\|^2,\qquad
        0\le\beta_i\le B,\quad\Big|\frac1n\sum_i\beta_i-1\Big|\le\epsilon,

    a quadratic program. With responses, for a shift of their law, :math:`\beta=C\gamma` is a function of y, the
    conditional mean :math:`E[\gamma\mid y]` of free numbers (:func:`conditional_expectation_matrix`).

    Args:
        source: ``[n, d]`` features.
        target: ``[m, d]`` features.
        y_source: ``[n]`` responses, for weights that depend on them alone.
        width: > 0 of the Gaussian kernel, in standard deviations of the source; :math:`\sqrt d` by default.
        bound: B >= 1.
        tolerance: epsilon >= 0.

    Returns:
        ``[n]`` in 0..B.

    Raises:
        TypeError: the arguments are no floating tensors of one dtype.
        ValueError: shapes do not fit, there are fewer than two rows, a column is constant, an option is out of range.

    Example:
        >>> x = torch.linspace(0, 1, 50)[:, None]
        >>> weights = kernel_mean_matching(x, x[25:], width=0.5)
        >>> weights[:20].mean() < 0.2, weights[30:].mean() > 1.5
        (tensor(True), tensor(True))

    References:
        Huang, Smola, Gretton, Borgwardt, Schoelkopf (2006), Correcting sample selection bias by unlabeled data,
        equation 8. Zhang, Schoelkopf, Muandet, Wang (2013), Domain adaptation under target and conditional shift,
        section 3.
    """
    for name, value in (("source", source), ("target", target)):
        if check_floating(name, value).ndim != 2 or len(value) < 2:
            raise ValueError(f"{name} must have shape [rows >= 2, d], got {tuple(value.shape)}")
    check_same_dtype(source=source, target=target)
    if source.shape[1] != target.shape[1] or not source.shape[1]:
        raise ValueError(f"source and target must have as many columns, got {source.shape[1]} and {target.shape[1]}")
    check_positive("bound", bound)
    check_positive("tolerance", tolerance, zero=True)
    if bound < 1:
        raise ValueError(f"bound must be >= 1, got {bound}")
    n, m = len(source), len(target)
    wide = torch.float64
    x, z = source.to(wide), target.to(wide)
    scale = x.std(0)
    if not bool((scale > 0).all()):
        raise ValueError("source must vary in every column, one is constant")
    if width is not None:
        check_scalar("width", width)
    factor = x.shape[1] ** 0.5 if width is None else torch.as_tensor(width, dtype=wide, device=x.device)
    own, cross = (gaussian_kernel(x, other, factor * scale) for other in (x, z))
    cross = cross.sum(1)
    eye = torch.eye(n, dtype=wide, device=x.device)
    mixing = eye
    if y_source is not None:
        if check_floating("y_source", y_source).shape != (n,):
            raise ValueError(f"y_source must have shape ({n},), got {tuple(y_source.shape)}")
        y = y_source.to(wide).unsqueeze(1)
        mixing = conditional_expectation_matrix(y, bandwidth=reference_bandwidth(y))
    quadratic = mixing.mT @ own @ mixing / n + 1e-8 * eye
    mean = mixing.mean(0, keepdim=True)
    rows = torch.cat([eye, -eye, mean, -mean])
    ends = [torch.full((n,), v, dtype=wide, device=x.device) for v in (bound, 0.0)]
    mean_ends = torch.tensor([1 + tolerance, tolerance - 1], dtype=wide, device=x.device)
    limits = torch.cat([*ends, mean_ends])
    found = quadratic_program(quadratic, -(mixing.mT @ cross) / m, inequality=(rows, limits), check=True)
    return (mixing @ found.value).clamp(0, bound).to(source.dtype)
