"""Learned factors: what they are potentials for, what each network learns from, what is refused."""

from __future__ import annotations

import math

import pytest
import torch

from pullback.uncertainty import (
    Beliefs,
    EdgePotential,
    PairwiseFactor,
    UnaryFactor,
    nonparametric_belief_propagation,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_pairwise_factor_is_an_edge_potential_and_messages_reach_all_its_weights() -> None:
    factor, unary = PairwiseFactor(2, hidden=8, generator=seeded()), UnaryFactor(2, 3, hidden=8, generator=seeded(1))
    potential: EdgePotential = factor
    start = Beliefs(torch.rand(3, 20, 2, generator=seeded(2)), torch.full((3, 20), -math.log(20)))
    found = nonparametric_belief_propagation(
        lambda node, x: unary(x, torch.ones(3)),
        potential,
        [(0, 1), (1, 2)],
        start,
        iterations=2,
        method="pull",
        generator=seeded(3),
    )
    found.means.sum().backward()
    for name, parameter in (*factor.named_parameters(), *unary.named_parameters()):
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name


def test_densities_stay_above_the_floor_and_below_one() -> None:
    factor, far = PairwiseFactor(2, floor=0.01, generator=seeded()), 1e6 * torch.randn(100, 2, generator=seeded(1))
    found = factor.log_prob(far).detach()
    assert float(found.min()) >= math.log(0.01) - 1e-6
    assert float(found.max()) <= 0
    logit = factor.density(far)[..., 0].detach()
    torch.testing.assert_close(found.exp(), 0.01 + 0.99 * logit.sigmoid())


def test_the_detail_is_the_unit_of_the_density_alone() -> None:
    coarse, fine = (PairwiseFactor(2, scale=0.5, detail=d, generator=seeded()) for d in (None, 0.1))
    x = torch.randn(7, 2, generator=seeded(1))
    torch.testing.assert_close(fine.log_prob(0.2 * x), coarse.log_prob(x))
    assert torch.equal(fine.sample((7,), seeded(2)), coarse.sample((7,), seeded(2)))
    with pytest.raises(ValueError, match="detail must be"):
        PairwiseFactor(2, detail=0.0)


def test_density_and_sampler_share_no_weight() -> None:
    factor = PairwiseFactor(1, hidden=4, generator=seeded())
    factor.log_prob(torch.ones(3, 1)).sum().backward()
    assert all(p.grad is None for p in factor.sampler.parameters())
    factor.zero_grad()
    factor.sample((3,), generator=seeded(1)).sum().backward()
    assert all(p.grad is None for p in factor.density.parameters())


def test_a_sampler_and_a_density_learn_a_ring() -> None:
    """Differences of length one, of any direction: as the links of a pendulum."""
    g, factor = seeded(), PairwiseFactor(2, hidden=32, noise=8, generator=seeded(1))
    optimizer = torch.optim.Adam(factor.parameters(), lr=1e-2)
    for _ in range(150):
        angle = 2 * math.pi * torch.rand(128, generator=g)
        true, drawn = torch.stack([angle.cos(), angle.sin()], -1), factor.sample((128,), generator=g)
        near = -torch.cdist(true, drawn).square() / (2 * 0.2**2)
        other = 4 * torch.rand(128, 2, generator=g) - 2
        told = factor.log_prob(true).mean() - factor.log_prob(other).exp().mean()
        loss = -(torch.logsumexp(near, 1).mean() + told)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn = factor.sample((2000,), generator=g).detach()
    assert float(drawn.norm(dim=-1).mean()) == pytest.approx(1.0, abs=0.15)
    assert float(drawn.mean(0).norm()) < 0.2  # all around
    on, off = (factor.log_prob(torch.tensor(p)) for p in ([[1.0, 0.0], [0.0, -1.0]], [[0.0, 0.0], [1.8, 1.8]]))
    assert float((on.mean() - off.mean()).detach()) > 1.0


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"floor must be in \(0, 1\), got 1.5"):
        PairwiseFactor(2, floor=1.5)
    with pytest.raises(ValueError, match="scale must be"):
        UnaryFactor(2, 3, scale=0.0)
    with pytest.raises(ValueError, match="noise must be an integer >= 1"):
        PairwiseFactor(2, noise=0)
