"""Functionals at their best witness are what they are called; an implicit step of a normal law is the known one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor, nn

from pullback import transport


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _log_normal(x: Tensor, mean: float, deviation: float) -> Tensor:
    return -((x[:, 0] - mean) ** 2) / (2 * deviation**2) - math.log(deviation * math.sqrt(2 * math.pi))


def _ratio(x: Tensor) -> Tensor:
    """The logarithm of N(0, 1) over N(1, 0.8)."""
    return _log_normal(x, 0, 1) - _log_normal(x, 1, 0.8)


def test_the_best_witness_gives_the_functional_and_others_less() -> None:
    x = torch.randn(100_000, 1, generator=_generator())
    other = 1 + 0.8 * torch.randn(100_000, 1, generator=_generator(1))
    divergence = math.log(0.8) + (1 + 1) / (2 * 0.8**2) - 0.5  # of N(0, 1) from N(1, 0.8)

    def half(x: float, p: Any, m: Any) -> float:
        return float(p.pdf(x) * math.log(p.pdf(x) / (m(x))) / 2)

    laws = norm(0, 1), norm(1, 0.8)
    shannon = sum(quad(half, -6, 6, args=(p, lambda x: (laws[0].pdf(x) + laws[1].pdf(x)) / 2))[0] for p in laws)
    box = torch.tensor([-6.0]), torch.tensor([6.0])
    cubes = quad(lambda x: norm.pdf(x) ** 3, -6, 6)[0] / 2
    for functional, best, value, tolerance in (
        (transport.RelativeEntropy(samples=other), _ratio, divergence, 0.05),
        (transport.RelativeEntropy(lambda x: _log_normal(x, 1, 0.8)), lambda x: 0 * x[:, 0], divergence, 0.02),
        (transport.JensenShannon(other), _ratio, shannon, 0.01),
        (transport.GeneralizedEntropy(3.0, *box), lambda x: 12 * _log_normal(x, 0, 1).exp(), cubes, 0.002),
    ):
        found = functional.estimate(x.clamp(-5.9, 5.9), best, count=400_000, generator=_generator(2))
        assert found == pytest.approx(value, abs=tolerance)
        for slope, shift in ((0.3, 0.0), (0.0, 0.5)):

            def worse(x: Tensor, best: Any = best, slope: float = slope, shift: float = shift) -> Tensor:
                found: Tensor = best(x) + slope * x[:, 0] + shift
                return found

            assert functional.estimate(x.clamp(-5.9, 5.9), worse, count=400_000, generator=_generator(2)) < found


def test_reference_laws_have_the_moments_and_the_density_they_say() -> None:
    points = torch.randn(50, 3, generator=_generator()) @ torch.tensor(
        [[1.0, 0.5, 0.0], [0.0, 1.0, 2.0], [1.0, 0.0, 1.0]]
    )
    law = transport.RelativeEntropy(lambda x: x[:, 0]).reference(points)
    truth = torch.distributions.MultivariateNormal(points.mean(0), torch.cov(points.mT, correction=0))
    torch.testing.assert_close(law.log_prob(points), truth.log_prob(points), rtol=1e-3, atol=1e-3)
    z = law.sample(40_000, _generator(1))
    torch.testing.assert_close(z.mean(0), truth.loc, atol=0.05, rtol=0)
    torch.testing.assert_close(torch.cov(z.mT), truth.covariance_matrix, atol=0.15, rtol=0)
    box = transport.GeneralizedEntropy(2.0, torch.tensor([0.0, -1.0]), torch.tensor([2.0, 1.0]))
    law = box.reference(torch.zeros(1, 2))
    assert law.log_prob(torch.tensor([[1.0, 0.0], [3.0, 0.0]])).exp().tolist() == [0.25, 0.0]
    z = law.sample(1000, _generator())
    assert z.min(0).values.tolist() == pytest.approx([0, -1], abs=0.02)
    assert z.max(0).values.tolist() == pytest.approx([2, 1], abs=0.02)


def _linear(dim: int) -> nn.Module:
    line = nn.Linear(dim, dim)
    nn.init.eye_(line.weight)
    nn.init.zeros_(line.bias)
    return line


def _witness(dim: int) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(dim, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
    nn.init.zeros_(net[2].weight)
    nn.init.zeros_(net[2].bias)
    return net


def _flow(seed: int = 0, **options: Any) -> transport.WassersteinGradientFlow:
    x = 0.5 * torch.randn(1000, 2, generator=_generator())
    target = transport.RelativeEntropy(lambda x: -(x - torch.tensor([1.0, 2.0])).square().sum(-1) / 2)
    options = {"step": 0.5, "updates": 60, "lr": 0.03, "refit": 5, "generator": _generator(seed)} | options
    return transport.WassersteinGradientFlow(_linear(2), _witness(2), x, target, **options)


def test_implicit_steps_of_a_normal_law_are_the_exact_ones() -> None:
    flow = _flow()
    mean, deviation = flow.particles.mean(0), float(flow.particles.var(0).mean().sqrt())
    for _ in range(3):
        flow.step()
        mean = (mean / 0.5 + torch.tensor([1.0, 2.0])) / 3
        deviation = (deviation / 0.5 + math.sqrt((deviation / 0.5) ** 2 + 12)) / 6
        assert (flow.particles.mean(0) - mean).norm() < 0.05 * mean.norm()
        assert float(flow.particles.var(0).mean().sqrt()) == pytest.approx(deviation, rel=0.05)
    assert flow.values[0] > flow.values[1] > flow.values[2]
    assert flow.moved[0] > flow.moved[2]


def test_a_flow_goes_on_from_its_state_to_the_same_numbers() -> None:
    first, second = (_flow(seed, updates=3) for seed in (0, 1))
    first.step()
    second.load_state_dict(first.state_dict())
    for flow in (first, second):
        flow.step()
    assert torch.equal(first.particles, second.particles)
    assert (first.values, first.moved, first.taken) == (second.values, second.moved, second.taken)


def test_samples_alone_lead_to_their_law() -> None:
    x = torch.randn(400, 1, generator=_generator())
    there = 2 + torch.randn(400, 1, generator=_generator(1))
    options: dict[str, Any] = {"updates": 80, "lr": 0.1, "witness_lr": 0.03, "generator": _generator(2)}
    found = transport.jko_step(_linear(1), _witness(1), x, transport.JensenShannon(there), step=500.0, **options)
    assert abs(found.particles.mean() - 2) < 0.5
    assert found.value < 0.1 < transport.JensenShannon(there).estimate(x, lambda x: 2 * (1 - x[:, 0]))


class _Energy(transport.VariationalFunctional):
    """A functional of a user without a witness: the mean of a potential."""

    def reference(self, points: Tensor) -> transport.ReferenceLaw:
        return _Point()

    def gain(self, x: Tensor, witness: Any, reference: transport.ReferenceLaw) -> Tensor:
        return 0 * witness(x)

    def known(self, x: Tensor, reference: transport.ReferenceLaw) -> Tensor:
        return x[:, 0].square() / 2

    def cost(self, z: Tensor, witness: Any, reference: transport.ReferenceLaw) -> Tensor:
        return 0 * witness(z)


class _Point(transport.ReferenceLaw):
    """All mass at 0."""

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.zeros(count, 1)

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x))


def test_a_functional_of_ones_own() -> None:
    x = torch.randn(300, 1, generator=_generator())
    found = transport.jko_step(
        _linear(1), _witness(1), x, _Energy(), step=1.0, updates=150, lr=0.05, generator=_generator()
    )
    torch.testing.assert_close(found.particles, x / 2, atol=0.05, rtol=0)  # x' (1 + 1 / step) = x / step
    assert found.value == pytest.approx(float(found.particles.square().mean() / 2), rel=1e-5)


@pytest.mark.parametrize(("dim", "power"), [(1, 2.0), (2, 3.0), (3, 1.5)])
def test_the_profile_of_barenblatt_solves_the_porous_medium(dim: int, power: float) -> None:
    x = 0.2 * torch.randn(dim, generator=_generator(), dtype=torch.float64)
    t = torch.tensor(0.8, dtype=torch.float64)
    powered = torch.func.hessian(lambda x: transport.barenblatt(x, t, power=power) ** power)(x)
    rate = torch.func.grad(lambda t: transport.barenblatt(x, t, power=power))(t)
    torch.testing.assert_close(rate, powered.trace())


def test_bad_options_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="log_density or samples must be given, and not both"):
        transport.RelativeEntropy()
    with pytest.raises(ValueError, match=r"power must be > 1, got 1\.0"):
        transport.GeneralizedEntropy(1.0, torch.zeros(1), torch.ones(1))
    with pytest.raises(ValueError, match="high must be above low in each coordinate"):
        transport.GeneralizedEntropy(2.0, torch.zeros(1), torch.zeros(1))
    box = transport.GeneralizedEntropy(2.0, torch.zeros(1), torch.ones(1))
    with pytest.raises(ValueError, match="x must lie in the box of the functional, 2 points do not"):
        transport.jko_step(_linear(1), _witness(1), torch.tensor([[0.5], [2.0], [-1.0]]), box, step=1.0)
    with pytest.raises(ValueError, match="step must be > 0"):
        _flow(step=0.0)
    with pytest.raises(ValueError, match="refit must be an integer >= 1"):
        _flow(refit=0).step()
    wrong = transport.RelativeEntropy(lambda x: x)
    with pytest.raises(ValueError, match=r"log_density must return a tensor of shape \(256,\), got \(256, 1\)"):
        transport.jko_step(_linear(1), _witness(1), torch.zeros(5, 1) + torch.arange(5.0)[:, None], wrong, step=1.0)
    with pytest.raises(ValueError, match="covariance must be positive definite"):
        transport.symmetric_kl_gaussian(torch.zeros(2), -torch.eye(2), torch.zeros(2), torch.eye(2))
