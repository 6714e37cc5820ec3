"""Blocks of uncertainty against torch's own operations, gpytorch and pypose."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from pullback.lab.bench import Case, Table
from pullback.uncertainty import (
    RBF,
    GaussianProcess,
    LinearGaussian,
    cholesky,
    kalman_evidence,
    log_einsum_exp,
    particle_filter,
)


def _logarithms() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    weights, x = (torch.randn(32, *shape, generator=g) for shape in ((32, 32), (256, 32)))
    return weights.log_softmax(-1).requires_grad_(), x.requires_grad_()


def _ours(given: tuple[Tensor, Tensor]) -> None:
    log_einsum_exp(*given).sum().backward()


def _all_terms(given: tuple[Tensor, Tensor]) -> None:
    weights, x = given
    torch.logsumexp(x.unsqueeze(-2) + weights.unsqueeze(-3), -1).sum().backward()


def _series() -> tuple[LinearGaussian, Tensor]:
    g = torch.Generator().manual_seed(0)
    eye = torch.eye(4)
    fields = (0.3 * torch.randn(4, 4, generator=g), torch.randn(2, 4, generator=g), eye, torch.eye(2), eye[0], eye)
    return LinearGaussian(*(f.clone().requires_grad_() for f in fields)), torch.randn(64, 100, 2, generator=g)


def _evidence(given: tuple[LinearGaussian, Tensor]) -> None:
    kalman_evidence(*given).sum().backward()


def _through_covariances(given: tuple[LinearGaussian, Tensor]) -> None:
    """Kalman's filter as in textbooks, differentiated step by step."""
    model, y = given
    a, c, m, p, total = model.dynamics, model.emission, model.mean, model.covariance, torch.zeros(64)
    for seen in y.unbind(-2):
        factor = torch.linalg.cholesky(c @ p @ c.mT + model.observation_noise)
        gap = (seen - m @ c.mT).unsqueeze(-1)
        white = torch.linalg.solve_triangular(factor, gap, upper=False)
        spread = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + math.log(2 * math.pi)
        total = total - white.square().sum((-2, -1)) / 2 - spread
        gain = torch.cholesky_solve(c @ p, factor).mT
        m, p = (m + (gain @ gap).squeeze(-1)) @ a.mT, a @ (p - gain @ c @ p) @ a.mT + model.process_noise
    total.sum().backward()


def _tracked(times: int) -> tuple[LinearGaussian, Tensor]:
    g = torch.Generator().manual_seed(0)
    eye = torch.eye(4)
    a, c = 0.5 * eye + 0.3 * torch.randn(4, 4, generator=g), torch.randn(2, 4, generator=g)
    model = LinearGaussian(a.requires_grad_(), c.requires_grad_(), eye, torch.eye(2), torch.zeros(4), eye)
    return model, torch.randn(times, 2, generator=g)


def _particles(given: tuple[LinearGaussian, Tensor], count: int) -> None:
    """Resamples at every time, as the peer does."""
    g = torch.Generator().manual_seed(0)
    particle_filter(*given, particles=count, threshold=1.0, generator=g).means.square().sum().backward()


def _pypose(given: tuple[LinearGaussian, Tensor], count: int) -> None:
    from pypose.module import NLS, PF

    model, y = given

    class System(NLS):
        def state_transition(self, state: Tensor, input: Tensor, t: Any = None) -> Tensor:
            return state @ model.dynamics.mT

        def observation(self, state: Tensor, input: Tensor, t: Any = None) -> Tensor:
            return state @ model.emission.mT

    peer = PF(System(), model.process_noise, model.observation_noise, particles=count)
    mean, covariance, nothing, means = model.mean, model.covariance, torch.zeros(4), []
    for seen in y:
        mean, covariance = peer(mean, seen, nothing, covariance)
        means.append(mean)
    torch.stack(means).square().sum().backward()


class _Regression:
    """Noisy waves in the square and a process with a prior that fits them, ours and gpytorch's of the same numbers."""

    def __init__(self, points: int, batch: tuple[int, ...] = ()) -> None:
        g = torch.Generator().manual_seed(0)
        self.batch, self.x = batch, torch.rand(*batch, points, 2, generator=g)
        self.y = torch.sin(6 * self.x.sum(-1)) + 0.1 * torch.randn(*batch, points, generator=g)
        self.ours = GaussianProcess(RBF(2, lengthscale=0.3, batch=batch), noise=0.01, batch=batch)

    @cache  # noqa: B019
    def theirs(self) -> Any:
        import gpytorch

        shape = torch.Size(self.batch)
        likelihood = gpytorch.likelihoods.GaussianLikelihood(batch_shape=shape)
        kernel = gpytorch.kernels.RBFKernel(ard_num_dims=2, batch_shape=shape)

        class Model(gpytorch.models.ExactGP):
            def __init__(self, x: Tensor, y: Tensor) -> None:
                super().__init__(x, y, likelihood)
                self.mean_module = gpytorch.means.ConstantMean(batch_shape=shape)
                self.covar_module = gpytorch.kernels.ScaleKernel(kernel, batch_shape=shape)

            def forward(self, x: Tensor) -> Any:
                return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

        model = Model(self.x, self.y)
        kernel.lengthscale, model.covar_module.outputscale, likelihood.noise = 0.3, 1.0, 0.01
        return gpytorch.mlls.ExactMarginalLogLikelihood(likelihood.train(), model.train())


def _marginal(given: _Regression) -> None:
    given.ours.log_marginal(given.x, given.y).sum().backward()


def _gpytorch(given: _Regression, *, exact: bool) -> None:
    import gpytorch

    score = given.theirs()
    with gpytorch.settings.fast_computations(not exact, not exact, not exact):
        score(score.model(given.x), given.y).sum().backward()


def _jitter() -> list[tuple[str, float, float]]:
    """What the factor of the data's covariance took."""
    rows = []
    for name, given in (("n = 1000", _Regression(1000)), ("64 of n = 50", _Regression(50, (64,)))):
        with torch.no_grad():
            covariance = given.ours.kernel(given.x, given.x)
            eye = torch.eye(covariance.shape[-1])
            noisy = covariance + given.ours.noise[..., None, None] * eye
            rows.append((name, float(cholesky(noisy).jitter.max()), float(cholesky(covariance).jitter.max())))
    return rows


TABLES = [
    Table(
        "jitter that the factor of a process needs in single precision: with its noise of 0.01, and without any",
        ("data", ">with noise", ">without"),
        _jitter,
    )
]

CASES = [
    Case(
        "evidence of 64 linear Gaussian series of 100 steps, 4 states, forward + backward",
        _series,
        _evidence,
        {"torch, through covariances": _through_covariances},
    ),
    Case(
        "matrix product of logarithms, forward + backward, 32 latents of 32 states, batch 256",
        _logarithms,
        _ours,
        {"torch, all terms": _all_terms},
    ),
    Case(
        "particle filter forward + backward, 50 times, 1000 particles of 4 numbers",
        partial(_tracked, 50),
        partial(_particles, count=1000),
        {"pypose": partial(_pypose, count=1000)},
    ),
    *(
        Case(
            f"marginal likelihood of a Gaussian process forward + backward, {name}",
            partial(_Regression, *shape),
            _marginal,
            {"gpytorch": partial(_gpytorch, exact=False), "gpytorch, exact": partial(_gpytorch, exact=True)},
        )
        for name, shape in (("n = 1000", (1000,)), ("64 of n = 50", (50, (64,))))
    ),
]
