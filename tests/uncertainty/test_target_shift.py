"""Weights for a shifted law of responses: exact laws of few atoms, regularisation, warnings."""

from __future__ import annotations

import pytest
import torch
from tests.contracts.law import seeded
from torch import Tensor

from pullback.uncertainty import density_ratio, kernel_mean_matching, target_shift_weights, tikhonov_solve


def _atoms() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator E_s[. | x], its adjoint E_s[. | y], the ratio of the laws of x minus 1, that of y."""
    channel = torch.rand(4, 6, generator=seeded(), dtype=torch.float64) + 0.1
    channel = channel / channel.sum(1, keepdim=True)
    source, target = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    x_source, x_target = source @ channel, target @ channel
    return (source[:, None] * channel / x_source).T, channel, x_target / x_source - 1, target / source


def test_few_atoms_have_their_exact_ratio() -> None:
    operator, adjoint, right, ratio = _atoms()
    found = tikhonov_solve(operator, adjoint, right, alpha=1e-10)
    torch.testing.assert_close(found.value + 1, ratio, atol=1e-5, rtol=0)
    assert found.residual < 1e-8


def test_iterating_lowers_the_bias_and_the_discrepancy_is_met() -> None:
    operator, adjoint, right, ratio = _atoms()
    errors = [
        (tikhonov_solve(operator, adjoint, right, alpha=0.01, iterated=k).value + 1 - ratio).norm() for k in (1, 4, 16)
    ]
    assert errors[2] < errors[1] < errors[0]
    found = tikhonov_solve(operator, adjoint, right, alpha=None, noise=1e-2)
    before = tikhonov_solve(operator, adjoint, right, alpha=2 * found.alpha)
    assert found.residual <= 1e-2 < before.residual
    with pytest.raises(ValueError, match="noise must be reached"):
        tikhonov_solve(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2), alpha=None, noise=0.1)


def _shifted(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = seeded(seed)
    y, z = torch.randn(n, generator=g), 0.8 + 0.7 * torch.randn(n, generator=g)
    x, other = (t[:, None] + 0.5 * torch.randn(n, 1, generator=g) for t in (y, z))
    laws = (torch.distributions.Normal(0.8, 0.7), torch.distributions.Normal(0.0, 1.0))
    return x, y, other, (laws[0].log_prob(y) - laws[1].log_prob(y)).exp()


def test_alpha_is_chosen_well_and_weights_beat_those_of_other_methods() -> None:
    x, y, other, exact = _shifted(400, 0)
    found = target_shift_weights(x, y, other)
    error = (found.values - exact).square().mean()
    assert error < 0.35 * (1 - exact).square().mean()
    assert error < (density_ratio(other, x, method="ulsif") - exact).square().mean()
    assert 1 < found.effective < 400
    assert found.outside < 0.05
    through = target_shift_weights(torch.cat([x, x], 1), y, torch.cat([other, other], 1), black_box=lambda t: t[:, 0])
    torch.testing.assert_close(through.values, found.values)


def test_many_rows_are_solved_by_products() -> None:
    x, y, other, _ = (t.double() if t.ndim else t for t in _shifted(900, 1))
    found = target_shift_weights(x, y, other, alpha=0.1)
    from pullback.uncertainty import target_shift

    limit, target_shift._DENSE = target_shift._DENSE, 1000
    try:
        dense = target_shift_weights(x, y, other, alpha=0.1)
    finally:
        target_shift._DENSE = limit
    torch.testing.assert_close(found.values, dense.values, atol=1e-6, rtol=1e-6)


def test_a_target_outside_of_the_source_is_reported() -> None:
    x, y, other, _ = _shifted(200, 2)
    with pytest.warns(UserWarning, match="of the target is where the source has no rows"):
        found = target_shift_weights(x, y, other + 6, alpha=1e-3)
    assert found.outside > 0.9


def test_matched_means_agree_and_weights_of_responses_are_smooth() -> None:
    x, y, other, exact = _shifted(100, 3)
    free = kernel_mean_matching(x, other)
    smooth = kernel_mean_matching(x, other, y)
    for weights in (free, smooth):
        assert abs(float((weights[:, None] * x).mean() - other.mean())) < 0.2
        assert weights.min() >= 0
        assert abs(float(weights.mean()) - 1) <= 0.051
    assert (smooth - exact).square().mean() < (free - exact).square().mean()
    with pytest.raises(ValueError, match="bound must be >= 1"):
        kernel_mean_matching(x, other, bound=0.5)
    with pytest.raises(ValueError, match="source must vary"):
        kernel_mean_matching(torch.zeros(5, 1), other)
