"""Gaussian processes: kernels, evidence of their hyper-parameters, predictions; a factor that says its jitter."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import (
    check_broadcast,
    check_floating,
    check_integer,
    check_positive,
    check_range,
    check_same_dtype,
    check_shape,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look, transform_running
from pullback.uncertainty.process_evidence import evidence, squared_distances

__all__ = ["RBF", "Cholesky", "GaussianProcess", "Kernel", "Matern", "Periodic", "Prediction", "cholesky"]

_LARGEST = 1e-2
"""Jitter beyond this share of the diagonal would change the model."""


class Cholesky(NamedTuple):
    """A factor and what it took.

    Attributes:
        factor: ``[*batch, n, n]`` lower triangular L with L L^T = matrix + jitter I.
        jitter: ``[*batch]`` what was added to the diagonal: 0 where nothing was needed; without gradient.
    """

    factor: Float[Tensor, "*batch n n"]
    jitter: Float[Tensor, "*batch"]


def cholesky(matrix: Float[Tensor, "*batch n n"]) -> Cholesky:
    """Factor symmetric matrices, adding as little to the diagonal as it takes, and say how much.

    Where a matrix is not positive definite to rounding, ``10 n eps`` of its mean diagonal is added, and ten times more
    until it is. The other matrices of a batch stay as they are.

    Args:
        matrix: ``[*batch, n, n]`` symmetric; the lower triangle counts.

    Returns:
        The factors and the jitter. float16 and bfloat16 are computed in float32.

    Raises:
        TypeError: ``matrix`` is not floating.
        ValueError: it is not square; it is not positive definite with 1e-2 of the mean diagonal added: the first such
            matrix of the batch is named (under transforms, which cannot look, its factor is NaN).

    Example:
        >>> twice = torch.ones(2, 2, dtype=torch.float64)  # two equal rows
        >>> found = cholesky(twice)
        >>> found.jitter
        tensor(4.4409e-15, dtype=torch.float64)
        >>> torch.allclose(found.factor @ found.factor.mT, twice)
        True
    """
    if check_floating("matrix", matrix).ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"matrix must have shape [*batch, n, n], got {tuple(matrix.shape)}")
    wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    factor, info = torch.linalg.cholesky_ex(wide)
    failed, look = info > 0, can_look(info)
    if look and not bool(failed.any()):
        return Cholesky(factor.to(matrix.dtype), matrix.new_zeros(matrix.shape[:-2]))
    eye = torch.eye(matrix.shape[-1], dtype=wide.dtype, device=wide.device)
    with torch.no_grad():
        scale = wide.diagonal(dim1=-2, dim2=-1).abs().mean(-1)
        level, jitter = 10 * matrix.shape[-1] * torch.finfo(wide.dtype).eps, torch.zeros_like(scale)
        while level < _LARGEST and not (look and not bool(failed.any())):
            jitter = torch.where(failed, level * scale, jitter)
            failed = torch.linalg.cholesky_ex(wide + jitter[..., None, None] * eye).info > 0
            level *= 10
    if look and bool(failed.any()):
        index = tuple(int(i) for i in failed.nonzero()[0])
        bad = wide[index]
        why = "is not positive definite" if bool(bad.isfinite().all()) else "is not finite"
        raise ValueError(f"matrix {why} at index {index}, also with {_LARGEST} of its mean diagonal added")
    factor = torch.linalg.cholesky_ex(wide + jitter[..., None, None] * eye).L
    return Cholesky(torch.where(failed[..., None, None], torch.nan, factor).to(matrix.dtype), jitter.to(matrix.dtype))


class Kernel(nn.Module):
    """A stationary covariance with a length scale for each dimension, all positive and learned by their logarithms.

    Args:
        dims: of a point.
        lengthscale: of every dimension at the start, in the unit of x.
        outputscale: variance of the function at the start, in the squared unit of y.
        batch: shape of a batch of hyper-parameters: one process for each problem.

    Raises:
        TypeError, ValueError: ``dims`` is no integer >= 1, or a scale is not > 0.
    """

    def __init__(
        self, dims: int, *, lengthscale: float = 1.0, outputscale: float = 1.0, batch: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.dims = check_integer("dims", dims, 1)
        check_positive("lengthscale", lengthscale)
        check_positive("outputscale", outputscale)
        self.log_lengthscale = nn.Parameter(torch.full((*batch, dims), math.log(lengthscale)))
        self.log_outputscale = nn.Parameter(torch.full(batch, math.log(outputscale)))

    def forward(self, x: Float[Tensor, "*#batch n d"], y: Float[Tensor, "*#batch m d"]) -> Float[Tensor, "*batch n m"]:
        """Return the covariances of all pairs.

        Args:
            x: ``[*batch, n, dims]``.
            y: ``[*batch, m, dims]``.
        """
        for name, points in (("x", x), ("y", y)):
            check_shape(name, check_floating(name, points), (None, self.dims))
        check_same_dtype(x=x, y=y)
        batch = tuple(self.log_outputscale.shape)
        check_broadcast(x=tuple(x.shape[:-2]), y=tuple(y.shape[:-2]), hyperparameters=batch)
        return self.log_outputscale.exp()[..., None, None] * self._correlations(x, y)

    def diagonal(self, x: Float[Tensor, "*#batch n d"]) -> Float[Tensor, "*batch n"]:
        """Return the variance at each point.

        Args:
            x: ``[*batch, n, dims]``.
        """
        scale = self.log_outputscale.exp()[..., None]
        return scale.expand(torch.broadcast_shapes(scale.shape, x.shape[:-1]))

    def _correlations(self, x: Tensor, y: Tensor) -> Tensor:
        return self._correlation(x[..., :, None, :] - y[..., None, :, :])

    def _squares(self, x: Tensor, y: Tensor) -> Tensor:
        """Squared distances of all pairs in length scales, as far as there are kernels with a value."""
        plain = can_look(x) and not transform_running() and x.dtype in (torch.float32, torch.float64)
        if plain and x.numel() and y.numel():
            scale = (-self.log_lengthscale).exp()[..., None, :]
            near, far = x * scale, y * scale
            # beyond, differences of points in length scales would lose more than half of the digits
            if max(float(z.detach().abs().max()) for z in (near, far)) < 0.25 * torch.finfo(x.dtype).eps ** -0.5:
                return squared_distances(near, far)
        return self._scaled(x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)

    def _scaled(self, difference: Tensor) -> Tensor:
        """In length scales, within a bound beyond which no kernel has a value, so that no square overflows."""
        scaled = difference * (-self.log_lengthscale).exp()[..., None, None, :]
        most = torch.finfo(scaled.dtype).max ** 0.25
        return scaled.clamp(-most, most)

    def _correlation(self, difference: Tensor) -> Tensor:
        raise NotImplementedError


class RBF(Kernel):
    r"""The Gaussian kernel :math:`s \exp(-\frac12 \sum_k (x_k - y_k)^2 / \ell_k^2)`; its functions are analytic.

    Arguments, shapes and errors as for :class:`Kernel`.

    Example:
        >>> RBF(1, lengthscale=2.0)(torch.zeros(1, 1), torch.tensor([[0.0], [2.0]])).detach()
        tensor([[1.0000, 0.6065]])
    """

    def _correlations(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._squares(x, y))


class Matern(Kernel):
    r"""Matern kernels of smoothness 1/2, 3/2, 5/2, whose functions have 0, 1, 2 derivatives.

    .. math:: s e^{-r}, \quad s (1 + \sqrt3 r) e^{-\sqrt3 r}, \quad s (1 + \sqrt5 r + \tfrac53 r^2) e^{-\sqrt5 r},
        \qquad r^2 = \sum_k (x_k - y_k)^2 / \ell_k^2

    Where two different points coincide, derivatives are taken as 0: right for the first one of 3/2 and 5/2.

    Args:
        dims: of a point.
        nu: 0.5, 1.5 or 2.5.
        lengthscale, outputscale, batch: as for :class:`Kernel`.

    Raises:
        TypeError, ValueError: as :class:`Kernel`, or for another ``nu``.

    Example:
        >>> Matern(1, nu=0.5)(torch.zeros(1, 1), torch.ones(1, 1)).item()
        0.3678...

    References:
        Rasmussen, Williams (2006), Gaussian processes for machine learning, equations 4.14 and 4.17.
    """

    def __init__(
        self,
        dims: int,
        nu: float = 2.5,
        *,
        lengthscale: float = 1.0,
        outputscale: float = 1.0,
        batch: tuple[int, ...] = (),
    ) -> None:
        super().__init__(dims, lengthscale=lengthscale, outputscale=outputscale, batch=batch)
        if nu not in (0.5, 1.5, 2.5):
            raise ValueError(f"nu must be 0.5, 1.5 or 2.5, got {nu}")
        self.nu = nu

    def _correlations(self, x: Tensor, y: Tensor) -> Tensor:
        squared = self._squares(x, y)
        apart = squared > 0
        r = math.sqrt(2 * self.nu) * torch.where(apart, squared, 1).sqrt()  # safe: no slope of a root at 0
        factor = {0.5: 1 + 0 * r, 1.5: 1 + r, 2.5: 1 + r + r.square() / 3}[self.nu]
        return torch.where(apart, factor * torch.exp(-r), 1)


class Periodic(Kernel):
    r"""The kernel :math:`s \exp(-2 \sum_k \sin^2(\pi (x_k - y_k) / p_k) / \ell_k^2)` of functions that repeat.

    Args:
        dims: of a point.
        period: p > 0 of every dimension at the start, in the unit of x.
        lengthscale: without unit.
        outputscale, batch: as for :class:`Kernel`.

    Raises:
        TypeError, ValueError: as :class:`Kernel`, or for a period that is not > 0.

    Example:
        >>> Periodic(1, period=3.0)(torch.zeros(1, 1), torch.full((1, 1), 6.0)).item()
        1.0

    References:
        MacKay (1998), Introduction to Gaussian processes, equation 47.
    """

    def __init__(
        self,
        dims: int,
        *,
        period: float = 1.0,
        lengthscale: float = 1.0,
        outputscale: float = 1.0,
        batch: tuple[int, ...] = (),
    ) -> None:
        super().__init__(dims, lengthscale=lengthscale, outputscale=outputscale, batch=batch)
        check_positive("period", period)
        self.log_period = nn.Parameter(torch.full((*batch, dims), math.log(period)))

    def _correlation(self, difference: Tensor) -> Tensor:
        turns = difference * (-self.log_period).exp()[..., None, None, :]
        return torch.exp(-2 * self._scaled(torch.sin(math.pi * turns)).square().sum(-1))


class Prediction(NamedTuple):
    """What a process says about new points.

    Attributes:
        mean: ``[*batch, m]``.
        variance: ``[*batch, m]`` of the function (add the noise for that of an observation); with ``full`` its
            covariances ``[*batch, m, m]``.
        jitter: ``[*batch]`` what had to be added to the diagonal of the data's covariance.
        clipped: ``[*batch]`` by how much rounding had made a variance negative; it is 0 in ``variance``.
    """

    mean: Float[Tensor, "*batch m"]
    variance: Float[Tensor, "*batch *m"]
    jitter: Float[Tensor, "*batch"]
    clipped: Float[Tensor, "*batch"]


class GaussianProcess(nn.Module):
    r"""A prior over functions, and what data makes of it.

    .. math::
        f \sim \mathcal{GP}(c, k), \quad y_i = f(x_i) + \epsilon_i, \quad \epsilon_i \sim N(0, \sigma^2)

    Everything is differentiable, twice too, in data and hyper-parameters; leading dimensions are problems of their own.

    Args:
        kernel: a :class:`Kernel`: :class:`RBF`, :class:`Matern`, :class:`Periodic`, or your own.
        noise: variance of an observation at the start, > 0, in the squared unit of y.
        mean: c at the start, in the unit of y.
        batch: shape of a batch of hyper-parameters, as the kernel's.

    Raises:
        TypeError, ValueError: the kernel is none, or the noise is not > 0.

    Example:
        >>> process = GaussianProcess(RBF(1), noise=0.1)
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([1.0, -1.0])
        >>> process.log_marginal(x, y).item()
        -3.7784...
        >>> process.predict(x, y, torch.tensor([[0.0], [9.0]])).variance.detach()
        tensor([0.0869, 1.0000])

    References:
        Rasmussen, Williams (2006), Gaussian processes for machine learning, algorithm 2.1.
    """

    def __init__(self, kernel: Kernel, *, noise: float = 1e-2, mean: float = 0.0, batch: tuple[int, ...] = ()) -> None:
        super().__init__()
        if not isinstance(kernel, Kernel):
            raise TypeError(f"kernel must be a Kernel, got {type(kernel).__name__}")
        check_positive("noise", noise)
        self.kernel = kernel
        self.log_noise = nn.Parameter(torch.full(batch, math.log(noise)))
        self.mean = nn.Parameter(torch.full(batch, float(mean)))

    @property
    def noise(self) -> Float[Tensor, "*batch"]:
        """Variance of an observation."""
        return self.log_noise.exp()

    def log_marginal(self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
        """Return the log density of the data, by which hyper-parameters are chosen.

        Args:
            x: ``[*batch, n, dims]``.
            y: ``[*batch, n]``.

        Returns:
            ``[*batch]``.

        Raises:
            TypeError, ValueError: the tensors do not fit, there is no point, or :func:`cholesky` fails.
        """
        if can_look(x) and not transform_running():
            wide, residual = self._residual(x, y)
            covariance, noise = self.kernel(x, x).to(wide), self.noise.to(wide)
            return evidence(lambda matrix: cholesky(matrix).factor, covariance, noise, residual).to(x.dtype)
        factor, _, residual = self._factor(x, y)
        white = torch.linalg.solve_triangular(factor, residual[..., None], upper=False)[..., 0]
        logs = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (-0.5 * white.square().sum(-1) - logs - 0.5 * x.shape[-2] * math.log(2 * math.pi)).to(x.dtype)

    def predict(
        self,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch n"],
        new: Float[Tensor, "*batch m d"],
        *,
        full: bool = False,
    ) -> Prediction:
        """Return the law of the function at new points, given data.

        Args:
            x: ``[*batch, n, dims]``.
            y: ``[*batch, n]``.
            new: ``[*batch, m, dims]``.
            full: covariances instead of variances.

        Raises:
            TypeError, ValueError: as :meth:`log_marginal`.
        """
        factor, jitter, residual = self._factor(x, y)
        across = torch.linalg.solve_triangular(factor, self.kernel(x, new).to(factor.dtype), upper=False)
        white = torch.linalg.solve_triangular(factor, residual[..., None], upper=False)
        mean = self.mean[..., None] + (across.mT @ white)[..., 0]
        variance = self.kernel.diagonal(new) - across.square().sum(-2)
        below = (-variance.detach()).clamp_min(0)
        clipped = below.amax(-1) if new.shape[-2] else torch.zeros_like(jitter)
        law = self.kernel(new, new) - across.mT @ across if full else variance.clamp_min(0)
        return Prediction(*(part.to(x.dtype) for part in (mean, law, jitter, clipped)))

    def rsample(
        self,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch n"],
        new: Float[Tensor, "*batch m d"],
        *,
        count: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "count *batch m"]:
        """Draw functions at new points, given data; the largest of a draw is Thompson's choice.

        Args:
            x: ``[*batch, n, dims]``.
            y: ``[*batch, n]``.
            new: ``[*batch, m, dims]``.
            count: functions of each problem.
            generator: source of the draws.

        Returns:
            ``[count, *batch, m]`` with a gradient.

        Raises:
            TypeError, ValueError: as :meth:`log_marginal`.
        """
        check_integer("count", count, 1)
        found = self.predict(x, y, new, full=True)
        factor = cholesky(found.variance).factor
        draws = torch.randn(
            (count, *found.mean.shape), dtype=torch.float64, device=drawing_device(generator, x), generator=generator
        )
        return found.mean + (factor @ draws.to(found.mean)[..., None])[..., 0]

    def fit(
        self,
        x: Float[Tensor, "*batch n d"],
        y: Float[Tensor, "*batch n"],
        *,
        steps: int = 100,
        lr: float = 0.1,
        anchor: float = 0.0,
    ) -> Float[Tensor, "steps"]:
        """Choose hyper-parameters in place: climb the log marginal by Adam.

        Hyper-parameters without a batch are chosen for all problems together; with one, each problem has its own.

        Args:
            x: ``[*batch, n, dims]``.
            y: ``[*batch, n]``.
            steps: of Adam.
            lr: of Adam, on logarithms.
            anchor: precision of a normal prior of each parameter around its value at the start.

        Returns:
            What was maximised before each step, ``[steps]``.

        Raises:
            TypeError, ValueError: as :meth:`log_marginal`, or an option is out of range.
        """
        check_integer("steps", steps, 1)
        check_positive("lr", lr)
        check_range("anchor", anchor, 0, math.inf)
        parameters = [p for p in self.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in parameters]
        optimizer = torch.optim.Adam(parameters, lr=lr)
        found = []
        with torch.enable_grad():
            for _ in range(steps):
                away = [(p - p0).square().sum() for p, p0 in zip(parameters, start, strict=True)]
                value = self.log_marginal(x, y).sum() - 0.5 * anchor * torch.stack(away).sum()
                optimizer.zero_grad()
                (-value).backward()
                optimizer.step()
                found.append(value.detach())
        optimizer.zero_grad()
        return torch.stack(found)

    def expanded(self, *batch: int) -> GaussianProcess:
        """Return a copy in which each of a batch of problems has its own hyper-parameters, equal to these at first.

        Args:
            batch: its shape, put before that of the hyper-parameters.
        """
        copied = copy.deepcopy(self)
        for parameter in copied.parameters():
            parameter.data = parameter.data.expand(*batch, *parameter.shape).clone()
        return copied

    def _factor(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the data's covariance, its jitter, and the data without the mean."""
        wide, residual = self._residual(x, y)
        eye = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
        covariance = self.kernel(x, x) + self.noise[..., None, None] * eye
        factor, jitter = cholesky(covariance.to(wide))
        return factor, jitter, residual

    def _residual(self, x: Tensor, y: Tensor) -> tuple[torch.dtype, Tensor]:
        """The dtype to compute in, and the data without the mean."""
        check_same_dtype(x=check_floating("x", x), y=check_floating("y", y))
        if x.ndim < 2 or y.shape != x.shape[:-1] or not x.shape[-2]:
            raise ValueError(
                f"y must have one value for each of at least one point, got {tuple(y.shape)} and x {tuple(x.shape)}"
            )
        wide = torch.promote_types(x.dtype, torch.float32)
        return wide, (y - self.mean[..., None]).to(wide)
