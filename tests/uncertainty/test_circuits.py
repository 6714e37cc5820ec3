"""Circuits on trees: enumeration, exact normal laws, flows, samples; rules of integration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.integrate
import torch
from tests.contracts.law import seeded
from torch import Tensor

from pullback.uncertainty import CircuitWeights, IntegralCircuit, TreeCircuit, circuit_em_step, quadrature

_PARENTS = [3, 3, 1, -1, 3, 4]


def _states(variables: int, values: int = 2) -> Tensor:
    return torch.tensor(list(itertools.product(range(values), repeat=variables)), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["free", "normalised rows", "raw"])
@pytest.mark.parametrize("own", [False, True])
def test_probabilities_sum_to_one_and_marginals_are_sums(kind: str, own: bool) -> None:
    if kind == "free":
        circuit = TreeCircuit(_PARENTS, width=3, own_latents=own, generator=seeded()).double()
    else:
        model = IntegralCircuit(_PARENTS, units=4, own_latents=own, generator=seeded()).double()
        rule = quadrature("gauss-legendre", 5, log=True, dtype=torch.float64)
        circuit = model.materialize(*rule, normalize=kind != "raw")
    states = _states(6)
    log_probs = circuit.log_prob(states)
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert kind == "raw" or circuit.log_normalizer().item() == pytest.approx(0, abs=1e-12)
    for observed in (_states(6)[5] > 0, _states(6)[50] > 0):
        found = circuit.log_prob(states, observed).exp()
        agree = ((states[:, None] == states) | ~observed).all(-1)
        torch.testing.assert_close(found, (agree.double() @ log_probs.exp()))


def test_categorical_leaves_sum_to_one() -> None:
    circuit = TreeCircuit([1, -1, 1], "categorical", categories=3, width=2, generator=seeded()).double()
    assert circuit.log_prob(_states(3, 3)).exp().sum().item() == pytest.approx(1, abs=1e-12)
    with pytest.raises(ValueError, match=r"x must be an integer in 0\.\.2"):
        circuit.log_prob(torch.tensor([0, 1, 3]))


def test_conditionals_expectations_and_samples_are_those_of_the_joint_law() -> None:
    circuit = TreeCircuit(_PARENTS, width=3, generator=seeded()).double()
    states = _states(6)
    joint = circuit.log_prob(states).exp().detach()
    evidence = torch.tensor([True, False, False, False, True, False])
    x = torch.tensor([1.0, 9, 9, 9, 0, 9], dtype=torch.float64)
    known = ((states == x) | ~evidence).all(1)
    law = joint * known / (joint * known).sum()
    torch.testing.assert_close(circuit.expectation(x, evidence), law @ states)
    query = torch.tensor([False, True, True, False, False, True])
    chosen = states[known & (states[:, 3] == 1)]
    for row in chosen:
        wanted = law[((states == row) | ~query).all(1)].sum().log()
        torch.testing.assert_close(circuit.conditional(row, query, evidence).detach(), wanted)
    drawn = circuit.sample(x=x.expand(4000, 6), observed=evidence, generator=seeded(1))
    assert (drawn[:, evidence] == x[evidence]).all()
    index = (drawn @ (2.0 ** torch.arange(5, -1, -1, dtype=torch.float64))).long()
    counts = torch.bincount(index, minlength=64) / 4000
    assert (counts - law).abs().max() < 4 * 0.5 / 4000**0.5
    free = circuit.sample(4000, generator=seeded(2))
    assert (free.mean(0) - joint @ states).abs().max() < 4 * 0.5 / 4000**0.5
    with pytest.raises(ValueError, match="query and evidence must not share"):
        circuit.conditional(x, query, ~query | query)


def test_a_latent_normal_tree_has_its_exact_density() -> None:
    """Each latent 0.8 times its parent plus noise, each variable its latent plus noise."""
    parents, n = [1, -1, 1, 2], 48
    mixing, latent_scale, scale = 0.8, 0.6, 0.5
    z, log_w = quadrature("trapezoid", n, low=-8, high=8, log=True, dtype=torch.float64)
    log_normal = torch.distributions.Normal(mixing * z[:, None], latent_scale).log_prob(z)
    root = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    leaves = torch.stack([z, torch.full_like(z, np.log(scale))], -1).expand(4, n, 2)
    circuit = TreeCircuit(
        parents, "gaussian", weights=CircuitWeights(root + log_w, (log_normal + log_w).expand(3, n, n), leaves)
    )
    into = torch.zeros(4, 4, dtype=torch.float64)  # latents from their own noises, in the order of variables
    into[1, 1] = 1
    for child, parent in ((0, 1), (2, 1), (3, 2)):
        into[child] = mixing * into[parent]
        into[child, child] = latent_scale
    covariance = into @ into.T + scale**2 * torch.eye(4).double()
    exact = torch.distributions.MultivariateNormal(torch.zeros(4).double(), covariance)
    x = torch.randn(50, 4, generator=seeded(), dtype=torch.float64) @ exact.scale_tril.T
    assert (circuit(x) - exact.log_prob(x)).abs().max() < 1e-8
    seen = torch.tensor([True, False, False, True])
    part = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance[[0, 3]][:, [0, 3]])
    assert (circuit(x, seen) - part.log_prob(x[:, [0, 3]])).abs().max() < 1e-8


@pytest.mark.parametrize("leaf", ["bernoulli", "categorical", "gaussian"])
def test_expectation_maximisation_never_lowers_the_likelihood(leaf: str) -> None:
    circuit = TreeCircuit(
        _PARENTS, leaf, categories=3 if leaf == "categorical" else None, width=3, generator=seeded()
    ).double()
    x = torch.randint(2, (60, 6), generator=seeded(1)).double()
    x[:, 1] = x[:, 3]
    if leaf == "gaussian":
        x = x + 0.3 * torch.randn(60, 6, generator=seeded(2), dtype=torch.float64)
    found = torch.stack([circuit_em_step(circuit, x, smoothing=0.0) for _ in range(30)])
    assert (found.diff() > -1e-9).all()
    assert found[-1] > found[0] + 0.3
    for rows in circuit.weights()[:2]:
        torch.testing.assert_close(rows.exp().sum(-1), torch.ones_like(rows[..., 0]))


def test_flows_are_expected_counts() -> None:
    """One row, no smoothing: the root's new weights are the posterior of its state."""
    circuit = TreeCircuit([1, -1, 1], width=2, generator=seeded()).double()
    x = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    weights = circuit.weights()
    law = torch.distributions.Bernoulli(logits=weights.leaves).log_prob(x[0, :, None])
    posterior = (weights.root + law.sum(0)).softmax(0).detach()
    circuit_em_step(circuit, x, smoothing=0.0)
    torch.testing.assert_close(circuit.weights().root.exp().detach(), posterior)


def test_structures_that_are_no_trees_are_refused() -> None:
    for parents, message in (([-1, 2, 1], "got a cycle: 2"), ([-1, -1], "one root"), ([0, 0], "one root")):
        with pytest.raises(ValueError, match=message):
            TreeCircuit(parents, width=2)
    with pytest.raises(ValueError, match=r"parents must be in -1\.\.1"):
        TreeCircuit([-1, 5], width=2)
    with pytest.raises(ValueError, match="width or weights"):
        TreeCircuit([-1])
    with pytest.raises(ValueError, match="categories must be given"):
        TreeCircuit([-1], "categorical", width=2)
    circuit = TreeCircuit([-1, 0], width=2)
    with pytest.raises(ValueError, match="x must be 0 or 1"):
        circuit.log_prob(torch.tensor([0.5, 1.0]))
    with pytest.raises(ValueError, match="count, or x with observed"):
        circuit.sample()
    with pytest.raises(ValueError, match="units must be even"):
        IntegralCircuit([-1, 0], units=3)
    model = IntegralCircuit([-1, 0], units=4)
    with pytest.raises(ValueError, match=r"points must have shape \[N >= 2\]"):
        model.materialize(torch.zeros(1), torch.zeros(1))
    given = model.materialize(*quadrature("trapezoid", 4, log=True))
    with pytest.raises(ValueError, match="circuit must have free weights"):
        circuit_em_step(given, torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"step must be in \[0.0, 1.0\]"):
        circuit_em_step(circuit, torch.zeros(2, 2), step=2.0)


@pytest.mark.parametrize("rule", ["trapezoid", "midpoint", "simpson", "gauss-legendre"])
def test_rules_integrate(rule: str) -> None:
    exact = scipy.integrate.quad(lambda z: np.exp(np.sin(z)), -1, 2)[0]
    errors = []
    for n in (9, 17):
        points, weights = quadrature(rule, n, low=-1, high=2, dtype=torch.float64)
        errors.append(abs((weights * points.sin().exp()).sum().item() - exact))
        assert weights.sum().item() == pytest.approx(3, abs=1e-12)
    assert errors[1] < max(errors[0] / {"simpson": 10, "gauss-legendre": 10}.get(rule, 3.4), 1e-13)
    logs = quadrature(rule, 9, low=-1, high=2, log=True, dtype=torch.float64).weights
    torch.testing.assert_close(logs.exp().sum().item(), 3.0)


def test_the_line_has_its_own_rule() -> None:
    points, weights = quadrature("gauss-hermite", 5, dtype=torch.float64)
    assert (weights * points**4).sum().item() == pytest.approx(0.75 * np.pi**0.5)
    for words, message in (({"low": 0.0}, "left out"), ({"rule": "simpson", "count": 4}, "count must be odd")):
        with pytest.raises(ValueError, match=message):
            quadrature(**{"rule": "gauss-hermite", "count": 3} | words)
    with pytest.raises(ValueError, match="low < high"):
        quadrature("midpoint", 3, low=1.0, high=1.0)
    with pytest.raises(ValueError, match="count must be an integer >= 2"):
        quadrature("midpoint", 1)
