"""The flow of TD learning: its theorems, its loss for networks, and random rewards."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.integrate
import torch
from tests.contracts.law import seeded

from pullback import dynamics
from pullback.core.errors import ConvergenceError
from pullback.dynamics import MarkovChain, RandomRewards


def _chain(g: torch.Generator, reversible: bool = True) -> MarkovChain:
    weights = torch.rand(6, 6, generator=g, dtype=torch.float64)
    weights = weights + weights.T if reversible else weights**3
    return MarkovChain(weights / weights.sum(-1, keepdim=True), 0.9)


def test_td_descends_the_energy_of_a_reversible_chain_alone() -> None:
    g = seeded()
    for reversible in (True, False):
        chain = _chain(g, reversible)
        rewards, phi, w = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((6, 2), (6, 3), (3, 2)))
        phi, w = phi.requires_grad_(), w.requires_grad_()
        slopes = torch.autograd.grad(dynamics.lyapunov_value_error(chain, rewards, phi, w), (phi, w))
        field = dynamics.td_field(chain, rewards, phi, w)
        off = max(float((f + s).detach().abs().max() / s.abs().max()) for f, s in zip(field, slopes, strict=True))
        assert (off < 1e-12) == reversible


def test_the_expected_loss_of_transitions_has_the_field_as_its_slope() -> None:
    g = seeded(1)
    chain = _chain(g, False)
    rewards, phi, w = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((6, 2), (6, 3), (3, 2)))
    phi, w = phi.requires_grad_(), w.requires_grad_()
    law, total = chain.stationary(), torch.zeros(()).double()
    for here in range(6):
        for there in range(6):
            values = phi @ w
            loss = dynamics.td_loss(values[here], rewards[here], values[there], discount=0.9)
            total = total + 2 * law[here] * chain.transition[here, there] * loss  # the loss is a mean over two tasks
    field = dynamics.td_field(chain, rewards, phi, w)
    for slope, way in zip(torch.autograd.grad(total, (phi, w)), field, strict=True):
        torch.testing.assert_close(-slope, way)


def test_fast_weights_keep_the_gram_matrix_and_end_at_the_optimum(without_shape_checks: None) -> None:
    g = seeded(2)
    chain = _chain(g)
    rewards = torch.randn(6, 4, generator=g, dtype=torch.float64)
    start = torch.linalg.qr(torch.randn(6, 2, generator=g, dtype=torch.float64)).Q
    flow = dynamics.td_flow(chain, rewards, start, t=torch.tensor([0.0, 5.0, 200.0]), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(flow.features.mT @ flow.features, torch.eye(2).double().expand(3, 2, 2))
    assert bool((flow.energy.diff() <= 0).all())
    best = dynamics.optimal_features(chain, rewards, 2)
    assert dynamics.subspace_alignment(flow.features[-1], best).min() > 0.999
    weights = dynamics.linear_td(chain, rewards, best)
    least = dynamics.lyapunov_value_error(chain, rewards, best, weights)
    torch.testing.assert_close(flow.energy[-1], least, rtol=1e-4, atol=0)


def test_features_and_weights_move_as_scipy_solves_it_and_are_differentiable() -> None:
    g = seeded(5)
    chain = _chain(g, False)
    r, phi, w = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((6, 1), (6, 2), (2, 1)))
    d, a = torch.diag(chain.stationary()).numpy(), torch.eye(6).numpy() - 0.9 * chain.transition.numpy()

    def field(_: float, y: np.ndarray) -> np.ndarray:
        phi, w = y[:12].reshape(6, 2), y[12:].reshape(2, 1)
        delta = d @ (r.numpy() - a @ phi @ w)
        return np.concatenate([(delta @ w.T).ravel(), (phi.T @ delta).ravel()])

    start = torch.cat([phi.flatten(), w.flatten()]).numpy()
    end = scipy.integrate.solve_ivp(field, (0, 3), start, rtol=1e-10, atol=1e-12).y[:, -1]
    t = torch.tensor([0.0, 3.0], dtype=torch.float64)
    flow = dynamics.td_flow(chain, r, phi, weights=w, fast=False, t=t, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(flow.features[-1].flatten(), end[:12], atol=1e-6)
    np.testing.assert_allclose(flow.weights[-1].flatten(), end[12:], atol=1e-6)
    gap = chain.values(r) - flow.features[-1] @ flow.weights[-1]
    torch.testing.assert_close(flow.error[-1], (chain.stationary()[:, None] * gap.square()).sum())

    def short(phi: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return dynamics.td_flow(chain, r, phi, weights=w, fast=False, t=t, method="rk4", step=1.5).energy[-1]

    assert torch.autograd.gradcheck(short, (phi.requires_grad_(), w.requires_grad_()))


def test_many_uncorrelated_rewards_lead_to_the_eigenvectors() -> None:
    chain = dynamics.metropolis_walk(_chain(seeded(3)).transition + _chain(seeded(3)).transition.T, 0.8)
    leading = torch.linalg.eigh(chain.transition).eigenvectors[:, -2:]
    found = dynamics.optimal_features(chain, torch.eye(6, dtype=torch.float64), 2)
    torch.testing.assert_close(dynamics.subspace_alignment(found, leading), torch.ones(2).double())
    with pytest.raises(ConvergenceError, match="not determined"):
        dynamics.optimal_features(chain, torch.zeros(6, 3).double(), 2)
    with pytest.raises(ValueError, match="chain must be reversible"):
        dynamics.optimal_features(_chain(seeded(4), False), torch.eye(6).double(), 2)


def test_weights_of_fast_flows_are_refused() -> None:
    chain, rewards, phi = _chain(seeded()), torch.ones(6, 1).double(), torch.eye(6).double()[:, :2]
    t = torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match="weights must be None where fast=True"):
        dynamics.td_flow(chain, rewards, phi, weights=torch.ones(2, 1).double(), t=t)


def test_the_loss_of_td_is_differentiated_for_the_value_left_alone(without_shape_checks: None) -> None:
    v, r, after = (torch.randn(5, generator=seeded(), dtype=torch.float64).requires_grad_() for _ in range(3))
    loss = dynamics.td_loss(v, r, after, discount=0.5)
    slope, *others = torch.autograd.grad(loss, (v, r, after), allow_unused=True)
    torch.testing.assert_close(slope, (v - r - 0.5 * after).detach() / 5)
    assert others == [None, None]
    with pytest.raises(TypeError, match=r"done must be a tensor of torch\.bool"):
        dynamics.td_loss(v, r, after, done=torch.ones(5))
    with pytest.raises(ValueError, match="next_values must have entries and the shape of values"):
        dynamics.td_loss(v, r, after[:4])


def test_hashed_rewards_are_independent_normal_numbers_of_the_observation() -> None:
    rewards = RandomRewards(4, generator=seeded())
    drawn = rewards(torch.arange(50_000))
    assert drawn.mean(0).abs().max() < 0.02
    assert (drawn.std(0) - 1).abs().max() < 0.02
    assert (torch.corrcoef(drawn.T) - torch.eye(4)).abs().max() < 0.02
    assert torch.corrcoef(torch.stack([drawn[:-1, 0], drawn[1:, 0]]))[0, 1].abs() < 0.02  # of neighbours too
    again = RandomRewards(4, generator=seeded())
    assert torch.equal(again(torch.arange(9)), drawn[:9])
    assert not torch.equal(RandomRewards(4, generator=seeded(1))(torch.arange(9)), drawn[:9])
    images = torch.rand(10, 3, 3, generator=seeded())
    seen = RandomRewards(2, event_ndim=2, generator=seeded())
    assert torch.equal(seen(images)[3], seen(images[3]))
    assert len(seen(images).unique(dim=0)) == 10
    assert not torch.equal(seen(images), seen(images.mT))  # the order of pixels counts
    zeros = torch.zeros(2, 3, 3) * torch.tensor([1.0, -1.0])[:, None, None]
    assert torch.equal(*seen(zeros))  # -0 is 0
    with pytest.raises(ValueError, match='inputs and event_ndim >= 1 must be given for kind="network"'):
        RandomRewards(2, kind="network")


def test_auxiliary_heads_add_the_loss_of_td_of_their_rewards() -> None:
    heads = dynamics.AuxiliaryValueHeads(3, RandomRewards(2, generator=seeded()), discount=0.5, generator=seeded())
    phi, after, states = torch.randn(4, 3), torch.randn(4, 3), torch.arange(4)
    done = torch.tensor([False, True, False, False])
    target = heads.rewards(states) + 0.5 * (after @ heads.weight) * ~done[:, None]
    expected = (phi @ heads.weight - target).square().mean() / 2
    torch.testing.assert_close(heads(states, phi, after, done), expected)
    with pytest.raises(ValueError, match=r"features must have shape \(\.\.\., 3\)"):
        heads.values(torch.ones(2, 2))


def test_given_weights_need_no_solution_of_linear_td() -> None:
    """Features that depend on each other, or are zero, have no single one; the flow from given weights exists."""
    chain = dynamics.MarkovChain(torch.full((2, 2), 0.5, dtype=torch.float64), 0.5)
    rewards, t = torch.tensor([[1.0], [3.0]], dtype=torch.float64), torch.tensor([0.0, 0.01]).double()
    for features in (torch.zeros(2, 1), torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.zeros(3, 2, 1)):
        phi, weights = features.double(), torch.ones(features.shape[-1], 1, dtype=torch.float64)
        flow = dynamics.td_flow(chain, rewards, phi, weights=weights, fast=False, t=t)
        step = dynamics.td_field(chain, rewards, phi, weights)
        torch.testing.assert_close(flow.features[1], phi + 0.01 * step.features, rtol=0, atol=1e-3)
        torch.testing.assert_close(
            flow.weights[1] - weights, (0.01 * step.weights).expand_as(flow.weights[1]), rtol=0, atol=1e-3
        )
        assert bool((flow.energy[1] < flow.energy[0]).all())
