"""What scores of transfer operators promise beyond their contracts."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.sparse.linalg
import torch
from tests.contracts.law import seeded

from pullback import dynamics


def test_the_relaxed_score_is_a_lower_bound_with_equality_after_whitening() -> None:
    g = seeded()
    x, y = (torch.randn(200, 20, 4, generator=g, dtype=torch.float64) for _ in "xy")
    c = dynamics.covariances(x, y)
    assert bool((dynamics.relaxed_score(*c) <= dynamics.projection_score(*c) + 1e-9).all())
    white = [torch.linalg.qr(z).Q * 3 for z in (x, y)]
    c = dynamics.covariances(*white)
    torch.testing.assert_close(dynamics.relaxed_score(*c), dynamics.projection_score(*c))


def test_only_the_gradient_of_the_projection_score_grows_as_two_features_meet() -> None:
    g = seeded()
    base, other, y = (torch.randn(50, n, generator=g, dtype=torch.float64) for n in (2, 1, 3))
    norms: dict[str, list[float]] = {"relaxed": [], "projection": []}
    for eps in (1e-2, 1e-4, 1e-6):
        x = torch.cat([base, base[:, :1] + eps * other], 1).requires_grad_()
        for name, score in (("relaxed", dynamics.relaxed_score), ("projection", dynamics.projection_score)):
            norms[name].append(float(torch.autograd.grad(score(*dynamics.covariances(x, y)), x)[0].norm()))
    assert max(norms["relaxed"]) <= 1.1 * min(norms["relaxed"])
    torch.testing.assert_close(norms["projection"][2] / norms["projection"][1], 100.0, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("matrices", "error", "words"),
    [
        ((torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3)), ValueError, r"cx must have shape \(..., r, r\)"),
        ((torch.eye(2), torch.eye(3), torch.eye(2)), ValueError, r"cy must have shape \(..., 2, 2\)"),
        ((torch.eye(2), torch.eye(2), torch.eye(2) * torch.inf), ValueError, "cxy must be finite"),
        ((torch.eye(2), torch.zeros(2, 2), torch.eye(2)), ValueError, "cy must be positive definite"),
    ],
)
def test_matrices_that_are_no_covariances_are_refused(
    matrices: tuple[torch.Tensor, ...], error: type[Exception], words: str, without_shape_checks: None
) -> None:
    with pytest.raises(error, match=words):
        dynamics.projection_score(*matrices)


def test_an_operator_on_indicators_is_the_matrix_of_counts() -> None:
    states = torch.randint(3, (2, 400), generator=seeded())
    counts = torch.zeros(3, 3, dtype=torch.float64)
    for now, later in states.T.tolist():
        counts[now, later] += 1
    counts /= counts.sum(1, keepdim=True)
    rewards = torch.tensor([1.0, -2.0, 5.0], dtype=torch.float64)
    operator = dynamics.TransferOperator(lambda s: torch.eye(3)[s], ridge=0.0)
    with pytest.raises(RuntimeError, match="fit must be called first"):
        operator.eig()
    operator.fit(states[0], states[1], rewards[states[1]][:, None])
    found = operator.eig()
    torch.testing.assert_close(found.values[0], torch.ones((), dtype=torch.complex128))
    matrix = counts.to(torch.complex128)
    torch.testing.assert_close(matrix @ found.right, found.right * found.values)
    torch.testing.assert_close(found.left.mH @ matrix, found.values[:, None] * found.left.mH)
    expected = torch.linalg.matrix_power(counts, 4) @ rewards
    torch.testing.assert_close(operator.forecast(torch.arange(3), 4)[:, 0], expected)
    one = operator.eigenfunctions(torch.arange(3))[:, 0]
    torch.testing.assert_close(one / one[0], torch.ones(3, dtype=torch.complex128))


def test_reduced_rank_has_the_least_loss_of_its_rank() -> None:
    g = seeded()
    x, y = (torch.randn(30, 4, generator=g, dtype=torch.float64) for _ in "xy")
    operator = dynamics.TransferOperator(lambda z: z, ridge=0.0, rank=2, method="reduced_rank").fit(x, y)
    assert int(torch.linalg.matrix_rank(operator.matrix)) == 2
    full = torch.linalg.lstsq(x, y).solution
    fitted = x @ full  # by Eckart-Young on the fitted values
    u, s, v = torch.linalg.svd(fitted, full_matrices=False)
    torch.testing.assert_close(x @ operator.matrix, u[:, :2] * s[:2] @ v[:2])
    with pytest.raises(ValueError, match="rank must be at most the 4 features"):
        dynamics.TransferOperator(lambda z: z, rank=5, method="reduced_rank").fit(x, y)
    with pytest.raises(ValueError, match="rank must be given for"):
        dynamics.TransferOperator(lambda z: z, rank=5)


def test_singular_values_are_those_of_the_whitened_features() -> None:
    g = seeded()
    x, y = (torch.randn(60, 4, generator=g, dtype=torch.float64) for _ in "xy")
    y = y + x @ torch.randn(4, 4, generator=g, dtype=torch.float64)
    operator = dynamics.TransferOperator(lambda z: z, ridge=0.0).fit(x, y)
    found = operator.svd()
    angles = scipy.linalg.subspace_angles(x.numpy(), y.numpy())
    torch.testing.assert_close(found.values, torch.from_numpy(np.sort(np.cos(angles))[::-1].copy()))
    score = dynamics.projection_score(*dynamics.covariances(x, y))
    torch.testing.assert_close(found.values.square().sum(), score)
    torch.testing.assert_close(operator.matrix @ found.right, found.left * found.values)
    for states, functions in ((x, found.left), (y, found.right)):
        torch.testing.assert_close((states @ functions).mT @ (states @ functions) / 60, torch.eye(4).double())
    leading = dynamics.TransferOperator(lambda z: z, ridge=0.5, rank=2, method="reduced_rank").fit(x, y)
    part = leading.svd()
    assert part.left.shape == (4, 2)
    torch.testing.assert_close(leading.matrix @ part.right, part.left * part.values)
    with pytest.raises(ValueError, match="features must be independent on the states one step later"):
        dynamics.TransferOperator(lambda z: z, ridge=0.0).fit(x, y[:, :1].expand(-1, 4)).svd()
    with pytest.raises(RuntimeError, match="fit must be called first"):
        dynamics.TransferOperator(lambda z: z).svd()


def _density(x: float, y: float) -> float:
    """Of the noise itself, normalised by quadrature."""
    mass = scipy.integrate.quad(lambda u: np.cos(np.pi * u) ** 20, -0.5, 0.5)[0]
    return float(np.cos(np.pi * (y - 4 * x * (1 - x))) ** 20 / mass)


def test_the_noisy_map_agrees_with_its_kernel_on_a_grid() -> None:
    chain = dynamics.NoisyLogisticMap()
    for x, y in ((0.1, 0.3), (0.5, 0.98), (0.77, 0.02)):
        got = chain.density(torch.tensor(x).double(), torch.tensor(y).double())
        torch.testing.assert_close(float(got), _density(x, y))
    x = (torch.arange(2000).double() + 0.5) / 2000
    kernel = chain.density(x[:, None], x) / 2000
    law = chain.stationary(x)
    torch.testing.assert_close(law @ kernel, law, rtol=1e-4, atol=0)
    torch.testing.assert_close(law.mean(), torch.ones(()).double(), rtol=1e-6, atol=0)
    values = scipy.sparse.linalg.eigs(kernel.numpy(), 4, return_eigenvectors=False)
    values = values[np.argsort(-np.abs(values))]
    np.testing.assert_allclose(np.abs(values), chain.eigenvalues()[:4].abs().numpy(), atol=1e-4)
    np.testing.assert_allclose(values[1].real, chain.eigenvalues()[1].real.item(), atol=1e-4)
    scaled = law.sqrt()[:, None] * kernel / law.sqrt()
    singular = scipy.sparse.linalg.svds(scaled.numpy(), 4, return_singular_vectors=False)
    np.testing.assert_allclose(np.sort(singular)[::-1], chain.singular_values()[:4].numpy(), atol=1e-4)


def test_a_path_of_the_noisy_map_has_its_law_and_its_moments() -> None:
    chain = dynamics.NoisyLogisticMap(6)
    path = chain.sample(torch.rand(2000, generator=seeded()).double(), 60, generator=seeded())
    assert path.shape == (61, 2000)
    assert bool(((path >= 0) & (path < 1)).all())
    x, y = path[20:-1].flatten(), path[21:].flatten()

    def features(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.ones_like(x), x, (5 * x).cos()], 1)

    seen = dynamics.covariances(features(x[:, None]), features(y[:, None]))
    for got, wanted in zip(seen, chain.covariances(features), strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=8e-3)
    whole = dynamics.NoisyLogisticMap(4)  # all its functions: nothing is lost
    cx, _, cxy = whole.covariances(lambda x: whole.before(x[:, 0]))
    found = torch.linalg.eigvals(torch.linalg.solve(cx, cxy))
    torch.testing.assert_close(found.abs().sort().values, whole.eigenvalues().abs().sort().values, atol=1e-8, rtol=1e-6)


def test_the_noisy_map_refuses_what_it_cannot_take() -> None:
    with pytest.raises(ValueError, match="order must be even, got 5"):
        dynamics.NoisyLogisticMap(5)
    chain = dynamics.NoisyLogisticMap(4)
    with pytest.raises(ValueError, match=r"start must be in \[0, 1\), got 1.0"):
        chain.sample(torch.ones(2), 3)
    with pytest.raises(ValueError, match="steps must be"):
        chain.sample(torch.zeros(2), 0)
    with pytest.raises(ValueError, match=r"later must map \(64, 1\) to \(64, r\)"):
        chain.covariances(lambda x: x, lambda x: x[:, 0], nodes=64)


def test_the_generator_on_cells_has_the_spectrum_of_the_oscillator() -> None:
    x = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    found = dynamics.langevin_generator(x**2 / 2, spacing=0.01, temperature=0.7)
    law = torch.softmax(-(x**2) / 1.4, 0)
    assert float((law @ found).abs().max()) <= 1e-12 * float(found.abs().max())
    steep = dynamics.langevin_generator(torch.tensor([0.0, 1e5, 1e5 + 1e-9], dtype=torch.float64), spacing=0.5)
    torch.testing.assert_close(steep[0], torch.zeros(3).double())  # nothing climbs this
    torch.testing.assert_close(steep[1], torch.tensor([4e5, -4e5 - 4, 4]).double())
    same = dynamics.langevin_generator(x**2 / 2, spacing=0.01, temperature=0.7, symmetric=True)
    values = scipy.linalg.eigvalsh_tridiagonal(same.diagonal(), same.diagonal(1), "i", (1197, 1200))
    np.testing.assert_allclose(values, [-3, -2, -1, 0], atol=1e-3)  # dX = -X dt + ...: Hermite polynomials


def test_features_of_the_oscillator_are_moved_by_its_generator() -> None:
    x = (0.7**0.5 * torch.randn(200_000, 1, generator=seeded(), dtype=torch.float64)).requires_grad_()

    def hermite(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.ones_like(x), x, x**2 - 0.7], 1)

    moved = dynamics.generator_covariance(hermite, x, -x, torch.full((len(x), 1, 1), 1.4**0.5).double())
    c = dynamics.covariances(hermite(x), hermite(x)).cx
    values = torch.linalg.eigvals(torch.linalg.solve(c, moved)).real.sort().values
    torch.testing.assert_close(
        values, torch.tensor([-2.0, -1.0, 0.0]).double(), atol=1e-8, rtol=0
    )  # exact on any sample
    wide = torch.full((len(x), 1, 1), 1.4**0.5).double()
    even = dynamics.generator_covariance(hermite, x, None, wide, reversible=True)
    torch.testing.assert_close(even, moved, atol=0.02, rtol=0)
