"""What scores of transfer operators promise beyond their contracts."""

from __future__ import annotations

import pytest
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
