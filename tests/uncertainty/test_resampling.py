"""Resampling: what is unbiased, what is not, and where nothing is left to draw."""

from __future__ import annotations

import pytest
import torch

from pullback.uncertainty import DegenerateWeights, resample

_ROWS = 20_000
_WEIGHTS = torch.tensor([0.5, 0.0, 0.15, 0.35], dtype=torch.float64)
_POINTS = torch.tensor([[1.0], [5.0], [-2.0], [3.0]], dtype=torch.float64)


def _rows(**options: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    log_weights = (3 * _WEIGHTS).log().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    found = resample(_POINTS.expand(_ROWS, 4, 1), log_weights.expand(_ROWS, 4), generator=generator, **options)
    return log_weights, found.points[..., 0], found.log_weights


@pytest.mark.parametrize("count", [3, 4, 9])
@pytest.mark.parametrize("method", ["systematic", "stratified", "multinomial", "soft", "stop-gradient"])
def test_sums_are_unbiased(method: str, count: int) -> None:
    _, points, log_weights = _rows(method=method, count=count)
    for value, weight in zip(_POINTS[:, 0], 3 * _WEIGHTS, strict=True):
        sums = (log_weights.exp() * (points == value)).sum(-1)
        error = sums.std() / _ROWS**0.5
        assert abs(sums.mean() - weight) <= 4 * error + 1e-12


@pytest.mark.parametrize("scheme", ["systematic", "stratified", "multinomial"])
def test_the_derivative_of_stop_gradient_is_that_of_the_expectation(scheme: str) -> None:
    log_weights, points, kept = _rows(method="stop-gradient", scheme=scheme)
    (slope,) = torch.autograd.grad((kept.exp() * points**2).sum() / _ROWS, log_weights)
    exact = 3 * _WEIGHTS * _POINTS[:, 0] ** 2
    torch.testing.assert_close(slope, exact, rtol=0.02, atol=0.02)


def test_plain_draws_know_nothing_of_the_weights_but_their_sum() -> None:
    log_weights, points, kept = _rows()
    (slope,) = torch.autograd.grad((kept.exp() * points**2).sum() / _ROWS, log_weights)
    mean = (_WEIGHTS * _POINTS[:, 0] ** 2).sum()
    torch.testing.assert_close(slope, 3 * _WEIGHTS * mean, rtol=0.02, atol=0.02)


def test_systematic_draws_have_the_nearest_counts() -> None:
    _, points, _ = _rows(count=20)
    for value, weight in zip(_POINTS[:, 0], _WEIGHTS, strict=True):
        counts = (points == value).sum(-1)
        assert counts.min() >= (20 * weight - 1e-9).floor()
        assert counts.max() <= (20 * weight + 1e-9).ceil()


def test_soft_at_its_ends_is_a_plain_and_an_even_draw() -> None:
    _, _, plain = _rows(method="soft", mixture=1.0)
    torch.testing.assert_close(plain.exp(), torch.full_like(plain, 3 / 4))
    _, points, even = _rows(method="soft", mixture=0.0)
    torch.testing.assert_close(points, _POINTS[:, 0].expand(_ROWS, 4))  # systematic: each once
    torch.testing.assert_close(even.exp(), 3 * _WEIGHTS.expand(_ROWS, 4))


def test_transport_keeps_the_mean_and_tends_to_an_assignment() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3, 40, 2, generator=generator).double()
    log_weights = torch.randn(3, 40, generator=generator).double()
    found = resample(points, log_weights, method="transport", epsilon=0.05)
    mean = (log_weights.softmax(-1).unsqueeze(-1) * points).sum(-2)
    torch.testing.assert_close(found.points.mean(-2), mean)
    assert found.indices is None
    few = points[:, :8]
    same = resample(few, torch.zeros_like(few[..., 0]), method="transport", epsilon=1e-3)
    torch.testing.assert_close(same.points, few, rtol=0, atol=1e-3)


def test_points_that_agree_and_tiny_or_huge_clouds_are_transported() -> None:
    log_weights = torch.tensor([0.0, -1.0, -30.0])
    cloud = torch.tensor([[0.1, 0.2], [1.0, -0.3], [0.4, 0.7]])
    unit = resample(cloud, log_weights, method="transport", epsilon=0.3).points
    for size in (1e-30, 1e30):
        found = resample(size * cloud, log_weights, method="transport", epsilon=0.3).points
        torch.testing.assert_close(found / size, unit)
    one = torch.full((3, 2), 0.7, requires_grad=True)
    found = resample(one, log_weights, method="transport").points
    torch.testing.assert_close(found, one.detach())
    (slope,) = torch.autograd.grad(found.sum(), one)
    torch.testing.assert_close(slope.sum(), torch.tensor(6.0))


def test_rows_without_weight_are_named() -> None:
    log_weights = torch.zeros(2, 3, 4)
    log_weights[1, 2] = -torch.inf
    with pytest.raises(DegenerateWeights, match=r"in row \(1, 2\)"):
        resample(torch.zeros(2, 3, 4, 1), log_weights)
