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
