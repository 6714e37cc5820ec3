"""Experimental design against quadrature, exhaustive search and planted models."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern
from torch import Tensor
from torch.distributions import Normal

from pullback import causal
from pullback.causal import design_search

_FORWARD = torch.tensor([[0.0, 1.3], [0.0, 0.0]]).double()
_BACKWARD = torch.tensor([[0.0, 0.0], [0.7, 0.0]]).double()


def _two() -> causal.ModelPosterior:
    noise = torch.tensor([[1.0, 0.8], [0.6, 1.1]]).double()
    return causal.ModelPosterior(torch.stack([_FORWARD, _BACKWARD]), noise, torch.tensor([0.3, 0.7]).double().log())


@pytest.mark.parametrize("value", [-4.0, 0.5, 2.0])
def test_gain_of_two_models_is_that_of_quadrature(value: float) -> None:
    y = torch.linspace(-40, 40, 100_001).double()
    width = y[1] - y[0]
    forward, backward = Normal(1.3 * value, 0.8).log_prob(y).exp(), Normal(0.0, 1.1).log_prob(y).exp()

    def entropy(p: Tensor) -> float:
        return -(torch.special.xlogy(p, p).sum() * width).item()

    exact = entropy(0.3 * forward + 0.7 * backward) - 0.3 * entropy(forward) - 0.7 * entropy(backward)
    targets, values = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[value, 0.0]]).double()

    def estimate(name: str, samples: int = 20_000) -> float:
        stream = torch.Generator().manual_seed(0)
        gain = causal.expected_information_gain(
            _two(), targets, values, samples=samples, estimator=name, generator=stream
        )
        return gain.item()

    assert estimate("exact-finite") == pytest.approx(exact, abs=0.015)
    assert estimate("nmc") > exact + 0.1
    assert estimate("covariance") >= exact


def test_gain_never_exceeds_the_entropy_of_the_models_and_vanishes_where_all_is_set() -> None:
    targets, values = torch.ones(1, 2).double(), torch.ones(1, 2).double()
    stream = torch.Generator().manual_seed(0)
    assert causal.expected_information_gain(_two(), targets, values, generator=stream).abs() < 1e-12
    targets, values = torch.tensor([[1.0, 0.0]] * 5).double(), 9 * torch.ones(5, 2).double()
    entropy = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    gain = causal.expected_information_gain(_two(), targets, values, samples=500, generator=stream)
    assert gain.item() == pytest.approx(entropy, abs=0.05)


def test_draws_follow_the_structural_equations_and_interventions() -> None:
    targets, values = torch.tensor([0.0, 1.0]).double(), torch.tensor([0.0, 2.0]).double()
    x = _two().rsample(20_000, targets, values, generator=torch.Generator().manual_seed(0))
    assert x.shape == (2, 20_000, 2)
    assert (x[..., 1] == 2).all()
    assert x[0, :, 0].mean() == pytest.approx(0.0, abs=0.03)  # nothing causes it
    assert x[0, :, 0].std() == pytest.approx(1.0, abs=0.03)
    assert x[1, :, 0].mean() == pytest.approx(1.4, abs=0.03)  # 0.7 times 2
    density = _two().log_prob(x[1, :3], targets)
    expected = torch.stack([Normal(0.0, 1.0).log_prob(x[1, :3, 0]), Normal(1.4, 0.6).log_prob(x[1, :3, 0])], -1)
    torch.testing.assert_close(density, expected)


def test_reweighting_is_the_theorem_of_bayes() -> None:
    x = torch.tensor([[0.5, 1.0], [2.0, 2.0]]).double()
    targets = torch.tensor([[False, False], [True, False]])
    after = _two().reweight(x, targets)
    forward = Normal(0.0, 1.0).log_prob(x[0, 0]) + Normal(1.3 * x[:, 0], 0.8).log_prob(x[:, 1]).sum()
    backward = Normal(0.7 * x[0, 1], 0.6).log_prob(x[0, 0]) + Normal(0.0, 1.1).log_prob(x[:, 1]).sum()
    expected = torch.stack([0.3 * forward.exp(), 0.7 * backward.exp()])
    torch.testing.assert_close(after.log_weights.exp(), expected / expected.sum())


def test_policies_draw_what_they_promise_with_gradients() -> None:
    g = torch.Generator().manual_seed(0)
    free = causal.InterventionPolicy(4, 2, value_range=(-1.0, 3.0), generator=g)
    targets, values = free.sample(1.0, 2000, generator=g)
    assert set(targets.unique().tolist()) == {0.0, 1.0}
    assert targets.mean().item() == pytest.approx(0.5, abs=0.02)
    assert values.min() >= -1
    assert values.max() <= 3
    two = causal.InterventionPolicy(4, 2, targets=2, generator=g)
    targets, values = two.sample(1.0, 100, generator=g)
    assert (targets.sum(-1) == 2).all()
    of_logits, of_values = torch.autograd.grad(
        (targets * torch.arange(4.0) + values).sum(), (two.logits, two.raw_values)
    )
    assert (of_logits != 0).all()
    torch.testing.assert_close(of_values, torch.full((2, 4), 100 * 20 / 6))
    with pytest.raises(ValueError, match=r"targets must be in 1\.\.4"):
        causal.InterventionPolicy(4, 2, targets=5)
    with pytest.raises(ValueError, match="low < high"):
        causal.InterventionPolicy(4, 2, value_range=(1.0, 1.0))


@pytest.mark.parametrize("q", [None, 1, 3])
def test_probabilities_of_targets_sum_to_one_and_are_those_of_draws(q: int | None) -> None:
    g = torch.Generator().manual_seed(0)
    policy = causal.InterventionPolicy(4, 1, targets=q, generator=g).double()
    with torch.no_grad():
        policy.logits += torch.tensor([-1.0, 0.0, 0.5, 1.0])
    sets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).double().unsqueeze(1)
    sets = sets if q is None else sets[sets.sum((1, 2)) == q]
    probability = policy.log_prob(sets).exp()
    assert probability.sum().item() == pytest.approx(1.0)
    drawn = policy.sample(1.0, 20_000, generator=g)[0]
    share = (drawn.unsqueeze(1) == sets).all(-1).all(-1).double().mean(0)
    assert (share - probability).abs().max() < 0.015  # 4 standard errors
    twice = causal.InterventionPolicy(4, 2, targets=q).double()
    assert twice.log_prob(sets[[0, 1]].movedim(0, 1)).shape == (1,)
    if q is not None:
        with pytest.raises(ValueError, match=f"{q} ones an intervention"):
            policy.log_prob(torch.zeros(1, 4).double())


def test_targets_that_say_what_is_scored_have_no_mean_effect() -> None:
    # The reason why the straight-through gradient leaves them out: own and mixed models are exchangeable given y.
    g, targets = torch.Generator().manual_seed(0), torch.tensor([[0.0, 1.0, 0.0]]).double()
    y = _three().rsample(20_000, targets, torch.full((1, 3), 1.5).double(), generator=g)
    scored = targets.clone().requires_grad_()
    density = _three().log_prob(y.flatten(-3, -2), scored).unflatten(-2, y.shape[-3:-1]).sum(-4)
    gain = (density.diagonal(dim1=-3, dim2=-1).mT - density.logsumexp(-1)).mean(0)
    each = torch.stack([torch.autograd.grad(part.mean(), scored, retain_graph=True)[0][0] for part in gain.split(500)])
    error = each.std(0) / math.sqrt(len(each))
    assert (each.mean(0).abs() <= 4 * error).all()


def test_the_score_function_finds_single_targets() -> None:
    g = torch.Generator().manual_seed(2)
    gains = []
    for target in torch.eye(3).double():
        for value in (-2.0, 2.0):
            stream = torch.Generator().manual_seed(9)
            values = torch.full((1, 3), value).double()
            gains.append(
                causal.expected_information_gain(_three(), target[None], values, samples=500, generator=stream)
            )
    policy = causal.InterventionPolicy(3, 1, targets=1, value_range=(-2.0, 2.0), generator=g)
    design = causal.optimize_design(_three(), policy=policy, gradient="score", steps=60, generator=g)
    stream = torch.Generator().manual_seed(9)
    gain = causal.expected_information_gain(_three(), design.targets, design.values, samples=500, generator=stream)
    assert gain >= 0.9 * max(gains)  # two targets are that close, the third has half
    assert design.history[-10:].mean() >= 0.9 * max(gains)  # the policy itself, not only the best of its draws
    assert policy.raw_values.abs().max() <= 3
    with pytest.raises(ValueError, match="count must be an integer >= 2"):
        causal.optimize_design(_three(), policy=policy, gradient="score", count=1)
    with pytest.raises(ValueError, match="gradient must be"):
        causal.optimize_design(_three(), policy=policy, gradient="finite")


def test_draws_of_a_long_chain_are_those_of_its_model() -> None:
    weights = 1.5 * torch.ones(7).diag_embed(1).double()
    posterior = causal.ModelPosterior(weights[None], torch.full((1, 8), 0.5).double(), torch.zeros(1).double())
    targets = torch.nn.functional.one_hot(torch.tensor(3), 8).double()
    x = posterior.rsample(5, targets, 2 * targets, generator=torch.Generator().manual_seed(0))
    truth = causal.LinearSCM(weights, 0.5)
    expected = truth.rsample(5, interventions={3: 2.0}, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(x[0], expected)
    held = targets.bool().expand(5, 8)
    torch.testing.assert_close(posterior.log_prob(x[0], targets)[:, 0], truth.log_prob(expected, targets=held))


def test_random_designs_set_half_of_the_nodes_in_the_range() -> None:
    g = torch.Generator().manual_seed(0)
    design = causal.random_design(50, 40, value_range=(2.0, 4.0), generator=g)
    assert design.targets.mean().item() == pytest.approx(0.5, abs=0.05)
    assert design.values.mean().item() == pytest.approx(3.0, abs=0.05)
    assert design.values.min() >= 2
    assert causal.random_design(5, 3, targets=2, generator=g).targets.sum(-1).tolist() == [2.0, 2.0, 2.0]


def _three() -> causal.ModelPosterior:
    g = torch.Generator().manual_seed(3)
    graphs = causal.random_dag(3, 2, batch=(6,), generator=g)
    weights = causal.random_weights(graphs, generator=g).double()
    shares = torch.full((6,), 1 / 6, dtype=torch.float64).log()
    return causal.ModelPosterior(weights, torch.ones(6, 3, dtype=torch.float64), shares)


def test_an_optimised_design_is_nearly_the_best_of_all() -> None:
    grid = []
    for chosen in itertools.product((0.0, 1.0), repeat=3):
        for value in torch.linspace(-2, 2, 9).tolist():
            targets = torch.tensor([chosen]).double()
            stream = torch.Generator().manual_seed(9)
            values = torch.full((1, 3), value).double()
            grid.append(causal.expected_information_gain(_three(), targets, values, samples=500, generator=stream))
    g = torch.Generator().manual_seed(0)
    policy = causal.InterventionPolicy(3, 1, value_range=(-2.0, 2.0), generator=g)
    design = causal.optimize_design(_three(), policy=policy, lr=0.2, generator=g)
    stream = torch.Generator().manual_seed(9)
    gain = causal.expected_information_gain(_three(), design.targets, design.values, samples=500, generator=stream)
    assert gain >= 0.97 * max(grid)
    closed = causal.InterventionPolicy(3, 1, value_range=(-2.0, 2.0), generator=g)
    risen = causal.optimize_design(_three(), policy=closed, lr=0.2, estimator="covariance", generator=g).history
    assert risen[-20:].mean() > risen[:20].mean() + 0.2
    assert design.gain.item() == pytest.approx(gain.item(), abs=0.1)
    greedy = causal.greedy_design(_three(), batch=1, value_grid=(-2.0, 2.0), single=False, generator=g)
    assert greedy.gain >= 0.9 * max(grid)
    assert causal.greedy_design(_three(), batch=2, generator=g).targets.sum(-1).tolist() == [1.0, 1.0]


def test_bayesian_search_finds_the_best_single_target_and_its_value() -> None:
    targets = torch.eye(3).double().repeat_interleave(41, 0).unsqueeze(1)
    values = torch.linspace(-2, 2, 41).double().repeat(3)[:, None, None] * targets
    stream = torch.Generator().manual_seed(9)
    grid = causal.expected_information_gain(_three(), targets, values, samples=500, generator=stream)
    design = causal.bayesian_value_search(_three(), batch=1, value_range=(-2.0, 2.0), samples=100, generator=stream)
    stream.manual_seed(9)
    gain = causal.expected_information_gain(_three(), design.targets, design.values, samples=500, generator=stream)
    assert gain >= 0.97 * grid.max()
    assert design.targets.sum() == 1
    assert design.values[design.targets == 0].tolist() == [0.0, 0.0]
    assert (design.history.diff() >= 0).all()
    pair = causal.bayesian_value_search(_three(), batch=2, value_range=(-2.0, 2.0), generator=stream)
    assert pair.targets.sum(-1).tolist() == [1.0, 1.0]
    assert pair.gain > design.gain
    with pytest.raises(ValueError, match=r"exploration must be in 2\.\.4, got 5"):
        causal.bayesian_value_search(_three(), batch=1, evaluations=4)
    with pytest.raises(ValueError, match="low < high"):
        causal.bayesian_value_search(_three(), batch=1, value_range=(1.0, 1.0))


def test_bounds_of_the_search_are_those_of_a_gaussian_process() -> None:
    g = torch.Generator().manual_seed(0)
    tried, places = torch.rand(2, 6, generator=g).double(), torch.linspace(0, 1, 7).double()
    seen = torch.stack([(6 * tried[0]).sin() + 3, 0.1 * torch.randn(6, generator=g).double()])
    found = design_search._upper_bound(tried, seen, places, 2.5)
    for row in range(2):
        y = ((seen[row] - seen[row].mean()) / seen[row].std()).numpy()
        fits = [
            GaussianProcessRegressor(Matern(length, nu=2.5), alpha=noise, optimizer=None).fit(tried[row][:, None], y)
            for length in (0.1, 0.2, 0.4, 0.8)
            for noise in (1e-3, 1e-2, 1e-1)
        ]
        best = max(fits, key=lambda fit: fit.log_marginal_likelihood_value_)
        mean, deviation = best.predict(places[:, None].numpy(), return_std=True)
        expected = seen[row].mean() + seen[row].std() * torch.from_numpy(mean + 2.5 * deviation)
        torch.testing.assert_close(found[row], expected, atol=1e-6, rtol=1e-6)


def test_bootstraps_of_a_planted_model_agree_on_its_arcs() -> None:
    g = torch.Generator().manual_seed(1)
    graph = causal.random_dag(4, 4, generator=g)
    model = causal.LinearSCM(causal.random_weights(graph, low=1.0, generator=g).double(), 0.5)
    x = model.rsample(300, generator=g)
    posterior = causal.bootstrap_posterior(x, models=8, generator=g)
    probability = posterior.graphs.edge_probabilities()
    assert probability[graph != 0].min() > 0.6
    assert probability[(graph == 0)].max() < 0.4
    assert posterior.noise.mean() == pytest.approx(0.5, abs=0.1)
    again = causal.bootstrap_posterior(
        x, torch.zeros(x.shape, dtype=torch.bool), models=4, start=posterior, generator=g
    )
    assert causal.expected_shd(again.graphs, graph) < 2


def test_bad_posteriors_are_refused() -> None:
    noise, share = torch.ones(1, 2), torch.zeros(1)
    cyclic = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    with pytest.raises(ValueError, match="without cycles, got 1 with one"):
        causal.ModelPosterior(cyclic, noise, share)
    with pytest.raises(ValueError, match=r"weights that sum to 2\.718"):
        causal.ModelPosterior(cyclic.triu(), noise, share + 1)
    with pytest.raises(ValueError, match="noise must be > 0"):
        causal.ModelPosterior(cyclic.triu(), 0 * noise, share)
    one = causal.ModelPosterior(cyclic.triu(), noise, share)
    with pytest.raises(ValueError, match="nmc"):
        causal.expected_information_gain(one, torch.zeros(1, 2), torch.zeros(1, 2), estimator="nmc")
    with pytest.raises(ValueError, match="must be for 2 nodes, got 3"):
        causal.optimize_design(_two(), policy=causal.InterventionPolicy(3, 1))
    with pytest.raises(ValueError, match="value_grid must have at least one"):
        causal.greedy_design(_two(), batch=1, value_grid=())
