"""Attributions against quadrature and enumeration, pairs against what they promise, tests against scikit-learn."""

from __future__ import annotations

import pytest
import torch
from scipy.integrate import quad
from sklearn.metrics import roc_curve
from torch import Tensor, nn

from pullback.gradients import (
    adversarial_pair,
    hypothesis_test_curve,
    integrated_gradients,
    local_behaviour,
    shapley_values,
)


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _network(features: int = 4, width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
    return nn.Sequential(*layers).double()


def test_integrated_gradients_equal_adaptive_quadrature_of_a_smooth_network() -> None:
    network = nn.Sequential(*(nn.GELU() if isinstance(m, nn.ReLU) else m for m in _network()))
    x, baseline = torch.randn(2, 4, generator=_seeded(), dtype=torch.float64)
    found = integrated_gradients(network, x, baseline, steps=30, target=2)

    def slope(along: float, j: int) -> float:
        point = (baseline + along * (x - baseline)).requires_grad_()
        return float(torch.autograd.grad(network(point)[2], point)[0][j])

    expected = [float(x[j] - baseline[j]) * quad(slope, 0, 1, args=(j,))[0] for j in range(4)]
    assert found.values.tolist() == pytest.approx(expected, abs=1e-7)
    assert found.evaluations == 30


def test_bisection_completes_what_a_fixed_rule_leaves_open() -> None:
    x = torch.randn(5, 4, generator=_seeded(), dtype=torch.float64)
    fixed, exact = (
        integrated_gradients(_network(), x, torch.zeros(4).double(), steps=20, target=0, tolerance=t)
        for t in (None, 1e-9)
    )
    assert float(exact.residual.abs().max()) < 1e-7 < 1e-4 < float(fixed.residual.abs().max())


@pytest.mark.parametrize("most", [1 << 10, 1 << 12])
def test_bisection_spends_no_more_than_it_may_and_what_it_has_on_the_jumps(most: int) -> None:
    x = torch.randn(5, 4, generator=_seeded(), dtype=torch.float64)
    words = {"steps": 20, "target": 0, "tolerance": 1e-15}
    few, many = (
        integrated_gradients(_network(), x, torch.zeros(4).double(), max_evaluations=m, **words) for m in (241, most)
    )
    assert 5 * 240 <= few.evaluations <= 5 * 241 < many.evaluations <= 5 * most
    assert float(many.residual.abs().max()) < 0.2 * float(few.residual.abs().max())


def test_bisection_ends_where_rounding_is_above_the_tolerance() -> None:
    x = 1e4 * torch.randn(2, 3, generator=_seeded(), dtype=torch.float64)
    found = integrated_gradients(lambda r: r.pow(3).sum(-1), x, x[0] * 0, steps=3, tolerance=1e-10)
    torch.testing.assert_close(found.values, x.pow(3), rtol=1e-13, atol=0)
    assert found.evaluations < 200


def test_attributions_are_differentiable_in_parameters() -> None:
    network, x = _network(), torch.ones(2, 4).double()
    integrated_gradients(network, x, x[0] * 0, target=1, create_graph=True).values.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for n, p in network.named_parameters() if "weight" in n)
    assert not integrated_gradients(network, x, x[0] * 0, target=1).values.requires_grad


def test_sampled_orders_tend_to_the_exact_values_and_are_complete() -> None:
    generator = _seeded(3)
    x, background = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (2, 5))
    exact = shapley_values(_network(), x, background, target=1)
    found = shapley_values(_network(), x, background, target=1, samples=8000, generator=generator)
    assert float(exact.residual.detach().abs().max()) < 1e-12
    assert float(found.residual.detach().abs().max()) < 1e-12
    torch.testing.assert_close(found.values, exact.values, atol=0.01, rtol=0)
    assert (exact.evaluations, found.evaluations) == (2 * 16 * 5, 2 * 8000 * 5)


@pytest.mark.parametrize("value", [None, -3.0, 4.0])
def test_pairs_have_the_attribution_that_was_asked_for(value: float | None) -> None:
    def first(rows: Tensor) -> Tensor:
        return _network()(rows)[:, 0]

    x = torch.randn(4, generator=_seeded(1), dtype=torch.float64)
    background = torch.randn(6, 4, generator=_seeded(2), dtype=torch.float64)
    kinds = {
        "integrated gradients": (
            lambda f, x, r: integrated_gradients(f, x, r[0], tolerance=1e-9).values,
            background[:1],
        ),
        "Shapley values": (lambda f, x, r: shapley_values(f, x, r).values, background),
    }
    for attribution, reference in kinds.values():
        pair = adversarial_pair(
            first, x, 2, reference=reference, delta=0.2, effect=2.0, attribution=attribution, value=value
        )
        expected = attribution(first, x, reference).detach()
        for model, sign in zip(pair, (1, -1), strict=True):
            found = attribution(model, x, reference).detach()
            assert float(found[2]) == pytest.approx(float(expected[2]) if value is None else value, abs=1e-7)
            torch.testing.assert_close(found[[0, 1, 3]], expected[[0, 1, 3]], atol=1e-7, rtol=0)
            line = x.repeat(50, 1)
            line[:, 2] += torch.linspace(-0.2, 0.2, 50).double()
            change = sign * model(line).diff()
            assert float(change.min()) > 0
            assert float(change.sum()) >= 2


def test_asking_the_model_decides_what_attributions_cannot() -> None:
    x, zero = torch.tensor([1.0, -2.0, 0.5]), torch.zeros(1, 3)
    pair = adversarial_pair(lambda r: r.sin().sum(-1), x, 1, reference=zero, delta=0.1)
    found = [local_behaviour(m, x, 1, delta=0.1, queries=10, generator=_seeded()) for m in pair]
    assert [float(f.effect.sign()) for f in found] == [1, -1]
    assert all(float(f.confidence) > 0.999 for f in found)
    assert all(0 < float(f.displacement.min()) <= float(f.displacement.max()) <= 0.1 for f in found)


def test_queries_follow_the_feature_of_each_point() -> None:
    x = torch.randn(50, 3, generator=_seeded(), dtype=torch.float64)
    feature = torch.arange(50) % 3
    weights = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    found = local_behaviour(lambda r: r @ weights, x, feature, delta=0.5, queries=4, generator=_seeded(1))
    torch.testing.assert_close(found.effect, 2 * found.displacement.mean(-1) * weights[feature])
    assert found.confidence[feature == 2].tolist() == pytest.approx([0.5] * 16)


def test_confidence_in_a_sign_is_right_as_often_as_it_says() -> None:
    noise = _seeded(5)

    def noisy(rows: Tensor) -> Tensor:
        return 0.3 * rows[:, 0] + torch.randn(len(rows), generator=noise)

    found = local_behaviour(noisy, torch.zeros(4000, 1), 0, delta=1.0, queries=40, generator=_seeded(6))
    assert float(found.confidence.mean()) == pytest.approx(float((found.effect > 0).float().mean()), abs=0.05)


def test_curve_is_that_of_scikit_learn() -> None:
    scores = torch.randint(0, 8, (60,), generator=_seeded()).double()
    truth = torch.rand(60, generator=_seeded(1)) < 0.3
    fall_out, sensitivity, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    curve = hypothesis_test_curve(scores, truth)
    assert curve.sensitivity.tolist() == pytest.approx(sensitivity.tolist())
    assert (1 - curve.specificity).tolist() == pytest.approx(fall_out.tolist())
    assert curve.thresholds.tolist() == pytest.approx(thresholds.tolist())
