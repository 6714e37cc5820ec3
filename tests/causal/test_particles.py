"""Particles against closed forms, scores against enumeration, and posteriors over graphs against the exact one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from pullback import causal
from pullback.core.errors import ConvergenceError


def test_particles_take_the_moments_of_a_normal_and_batches_do_not_mix() -> None:
    g = torch.Generator().manual_seed(0)
    factor = torch.tensor([[1.0, 0.0], [0.8, 0.6]]).double()
    precision = torch.linalg.inv(factor @ factor.T)
    centres = torch.tensor([[2.0, -1.0], [0.0, 3.0]]).double().unsqueeze(1)
    start = torch.randn(2, 60, 2, generator=g).double()

    def score(x: Tensor, step: int) -> Tensor:
        return -(x - centres) @ precision

    found = causal.svgd(score, start, batch_ndim=1, lr=0.1, steps=150, optimizer="adam").particles
    torch.testing.assert_close(found.mean(1), centres.squeeze(1), atol=0.05, rtol=0)
    torch.testing.assert_close(found[0].T.cov(), factor @ factor.T, atol=0.15, rtol=0)
    alone = causal.svgd(
        lambda x, step: -(x - centres[1]) @ precision, start[1], lr=0.1, steps=150, optimizer="adam"
    ).particles
    torch.testing.assert_close(found[1], alone)


@pytest.mark.parametrize("product", [False, True])
def test_kernels_of_two_particles_move_them_like_the_kernel_in_closed_form(product: bool) -> None:
    g = torch.Generator().manual_seed(1)
    start = {"a": torch.randn(2, 5, 3, generator=g).double(), "b": torch.randn(2, 5, generator=g).double()}

    def kernel(x: dict[str, Tensor], y: dict[str, Tensor]) -> Tensor:
        parts = [torch.exp(-(x[name] - y[name]).square().sum() / width) for name, width in (("a", 2.0), ("b", 1.0))]
        return parts[0] * parts[1] if product else parts[0] + parts[1]

    def score(x: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        return {"a": step - x["a"], "b": x["a"].sum(-1) - x["b"]}

    closed = causal.SquaredExponential({"a": 2.0, "b": 1.0}, product=product)
    options = {"batch_ndim": 1, "steps": 4, "lr": 0.1}
    one, two = (causal.svgd(score, start, kernel=k, **options).particles for k in (closed, kernel))
    torch.testing.assert_close(one, two)


def test_one_particle_climbs_to_the_mode() -> None:
    found = causal.svgd(lambda x, step: 3 - x, torch.zeros(1, 2), lr=0.1, steps=400, optimizer="sgd").particles
    torch.testing.assert_close(found, torch.full((1, 2), 3.0))


def test_saved_particles_go_on_bit_for_bit() -> None:
    start = torch.randn(4, 2, generator=torch.Generator().manual_seed(2))
    whole = causal.SVGD(lambda x, step: step - x, start, steps=7)
    half = causal.SVGD(lambda x, step: step - x, start, steps=7)
    for _ in range(3):
        half.step()
    rest = causal.SVGD(lambda x, step: step - x, torch.zeros_like(start), steps=7)
    rest.load_state_dict(half.state_dict())
    expected, found = whole.run(), rest.run()
    assert torch.equal(expected.particles, found.particles)
    assert torch.equal(expected.history["update"], found.history["update"])
    with pytest.raises(ValueError, match="state must be of particles"):
        causal.SVGD(lambda x, step: x, torch.zeros(5, 2)).load_state_dict(half.state_dict())


def test_bad_particles_scores_and_options_are_refused() -> None:
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match="same 1 leading dimensions"):
        causal.SVGD(lambda x, step: x, {"a": x, "b": torch.zeros(2)})
    with pytest.raises(TypeError, match="particles must be a floating tensor"):
        causal.SVGD(lambda x, step: x, x.long())
    with pytest.raises(ValueError, match="number of particles must be an integer >= 1"):
        causal.SVGD(lambda x, step: x, x[:0])
    with pytest.raises(ValueError, match="lr must be one number or one for each of 1 parts, got 2"):
        causal.SVGD(lambda x, step: x, x, lr=[0.1, 0.2])
    with pytest.raises(ValueError, match="bandwidth must be > 0"):
        causal.SquaredExponential(0.0)
    with pytest.raises(ValueError, match="bandwidth must be one number or one for each of 1 parts, got 2"):
        causal.svgd(lambda x, step: x, x, kernel=causal.SquaredExponential([1.0, 2.0]), steps=1)
    with pytest.raises(ValueError, match="score must return tensors of shapes"):
        causal.svgd(lambda x, step: x[0], x, steps=1)
    with pytest.raises(ConvergenceError, match="not finite at step 0"):
        causal.svgd(lambda x, step: x / 0, x, steps=1)


def test_logistic_noise_has_the_logistic_distribution() -> None:
    noise = causal.logistic_noise((20_000,), like=torch.zeros(1).double(), generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([-2.0, -0.5, 0.0, 1.0, 3.0]).double()
    below = (noise.unsqueeze(-1) < levels).double().mean(0)
    torch.testing.assert_close(below, levels.sigmoid(), atol=0.012, rtol=0)


def _all_graphs() -> Tensor:
    """Every 0/1 matrix of three nodes with an empty diagonal, cyclic ones too."""
    patterns = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6))).double()
    graphs = torch.zeros(64, 3, 3).double()
    graphs[:, ~torch.eye(3, dtype=torch.bool)] = patterns
    return graphs


def test_score_of_soft_graphs_is_the_slope_of_the_log_mean() -> None:
    """The estimator is exact for the noise it is given: central differences of the logarithm of the mean."""
    g = torch.Generator().manual_seed(3)
    model = causal.InterventionalGaussian(torch.randn(6, 3, generator=g).double(), noise=1.5)
    weights = torch.randn(3, 3, generator=g).double()
    z = torch.randn(2, 3, 3, generator=g).double()
    noise = causal.logistic_noise((40, 3, 3), like=z, generator=g)

    def log_joint(latent: Tensor, draws: Tensor) -> Tensor:
        return model.log_joint(causal.latent_graph(latent, noise=draws, alpha=2.0), weights.expand(40, 3, 3))

    estimate = causal.score_ratio_gradient(log_joint, z, noise)

    def log_mean(latent: Tensor) -> float:
        return math.log(sum(math.exp(float(log_joint(latent, noise)[k])) for k in range(40)) / 40)

    for place in itertools.product(range(2), range(3), range(3)):
        step = torch.zeros_like(z)
        step[place] = 1e-5
        slope = (log_mean(z + step) - log_mean(z - step)) / 2e-5
        assert estimate.gradient[place].item() == pytest.approx(slope, abs=1e-5)
    assert estimate.log_mean.item() == pytest.approx(log_mean(z), rel=1e-10)


def test_score_of_hard_graphs_tends_to_that_of_all_graphs() -> None:
    """With parameters as latents and hard samples the sum over all 64 graphs is known, and samples tend to it."""
    g = torch.Generator().manual_seed(4)
    model = causal.InterventionalGaussian(torch.randn(5, 3, generator=g).double(), noise=2.0)
    weights, z = torch.randn(3, 3, generator=g).double(), torch.randn(2, 3, 3, generator=g).double()
    graphs, edges = _all_graphs(), causal.edge_probabilities(z, 0.8)
    off = ~torch.eye(3, dtype=torch.bool)
    odds = torch.where(graphs > 0, edges, 1 - edges)[:, off].log().sum(-1)

    def log_joint(w: Tensor, drawn: Tensor) -> Tensor:
        return model.log_joint(drawn, w.expand(drawn.shape))

    leaf = weights.clone().requires_grad_()
    exact = torch.autograd.grad((log_joint(leaf, graphs) + odds).logsumexp(0), leaf)[0]
    noise = causal.logistic_noise((40_000, 3, 3), like=z, generator=g)
    found = causal.score_ratio_gradient(log_joint, weights, causal.latent_graph(z, noise=noise, alpha=0.8, hard=True))
    torch.testing.assert_close(found.gradient, exact, atol=0.05, rtol=0.05)
    assert 1 <= found.effective_samples.item() <= 40_000


def test_mechanisms_that_are_linear_are_the_weights() -> None:
    g = torch.Generator().manual_seed(5)
    x, environments = torch.randn(2, 7, 3, generator=g).double(), torch.tensor([0, 0, 1, 1, 1, 2, 2])
    model = causal.InterventionalGaussian(x, environments, noise=0.7)
    graph, weights = torch.rand(2, 4, 3, 3, generator=g).double(), torch.randn(2, 4, 3, 3, generator=g).double()
    targets, means = torch.rand(2, 4, 2, 3, generator=g).double(), torch.randn(2, 4, 2, 3, generator=g).double()
    direct = model.log_likelihood(graph, lambda x, graph: x @ (graph * weights), targets, means)
    torch.testing.assert_close(direct, model.log_likelihood(graph, weights, targets, means))
    alone = causal.InterventionalGaussian(x[1], environments, noise=0.7)
    torch.testing.assert_close(direct[1], alone.log_likelihood(graph[1], weights[1], targets[1], means[1]))


def test_evidence_is_the_mean_of_the_likelihood_under_the_priors() -> None:
    """The joint density and the exact posterior are of one model: Monte Carlo over parameters gives its evidence."""
    g = torch.Generator().manual_seed(6)
    x, environments = 0.5 * torch.randn(4, 2, generator=g).double(), torch.tensor([0, 0, 1, 1])
    scales = {"noise": 1.2, "weight_scale": 0.6, "intervention_noise": 1.4, "intervention_scale": 0.8}
    model = causal.InterventionalGaussian(x, environments, **scales)
    exact = causal.exact_graph_posterior(x, environments, edge_probability=0.4, target_probability=0.3, **scales)
    count, evidence = 60_000, []
    for graph in exact.graphs:
        weights = 0.6 * torch.randn(count, 2, 2, generator=g).double()
        means = 0.8 * torch.randn(count, 1, 2, generator=g).double()
        targets = (torch.rand(count, 1, 2, generator=g) < 0.3).double()
        likelihood = model.log_likelihood(graph.double().expand(count, 2, 2), weights, targets, means)
        evidence.append(likelihood.logsumexp(0) - math.log(count) + graph.sum() * math.log(0.4 / 0.6))
    torch.testing.assert_close(torch.stack(evidence).log_softmax(0), exact.log_weights, atol=0.03, rtol=0)


def test_evidence_in_closed_form_is_that_of_the_exact_posterior() -> None:
    """All sets of targets enter by their prior; the batch of problems leads, and graphs follow."""
    g = torch.Generator().manual_seed(7)
    x, environments = torch.randn(2, 9, 2, generator=g).double(), torch.tensor([0] * 3 + [1] * 6)
    scales = {"noise": 1.2, "weight_scale": 0.6, "intervention_noise": 1.4, "intervention_scale": 0.8}
    model = causal.InterventionalGaussian(x, environments, **scales)
    exact = [
        causal.exact_graph_posterior(one, environments, edge_probability=0.4, target_probability=0.3, **scales)
        for one in x
    ]
    graphs = exact[0].graphs.double()
    sets = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2))).double().unsqueeze(-2)
    pairs = (2, len(graphs), len(sets))
    evidence = model.log_evidence(
        graphs[None, :, None].expand(*pairs, 2, 2), sets[None, None].expand(*pairs, 1, 2), per_node=True
    )
    odds = (sets.sum((-2, -1)) * math.log(0.3 / 0.7)).expand(pairs)
    log_joint = (evidence.sum(-1) + odds).logsumexp(-1) + graphs.sum((-2, -1)) * math.log(0.4 / 0.6)
    torch.testing.assert_close(log_joint.log_softmax(-1), torch.stack([one.log_weights for one in exact]))


def _chain(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    weights = torch.tensor([[0.0, 1.5, 0.0], [0.0, 0.0, -1.2], [0.0, 0.0, 0.0]])
    scm = causal.LinearSCM(weights)
    rows = [scm.rsample(30, generator=generator)]
    rows += [scm.rsample(15, interventions={node: 3.0}, generator=generator) for node in (1, 2)]
    return torch.cat(rows), torch.tensor([0] * 30 + [1] * 15 + [2] * 15)


_FAST = {"particles": 8, "steps": 120, "samples": 16, "acyclicity_samples": 8, "lr": 0.06, "edge_probability": 0.5}


@pytest.mark.parametrize("marginal", [False, True])
def test_marginals_of_particles_are_near_those_of_the_exact_posterior(marginal: bool) -> None:
    g = torch.Generator().manual_seed(0)
    x, environments = _chain(g)
    found = causal.bacadi(x, environments, generator=g, marginal=marginal, **_FAST)
    exact = causal.exact_graph_posterior(x, environments, edge_probability=0.5, target_probability=1 / 3)
    off = ~torch.eye(3, dtype=torch.bool)
    assert (found.edge_probabilities() - exact.edge_probabilities())[off].abs().mean() < 0.12
    assert (found.target_probabilities() - exact.target_probabilities()).abs().mean() < 0.12
    assert found.cyclic is not None
    assert not found.cyclic.all()


@pytest.mark.parametrize("marginal", [False, True])
def test_a_batch_of_problems_is_one_run_and_its_state_goes_on(marginal: bool) -> None:
    x, environments = _chain(torch.Generator().manual_seed(1))
    options = {**_FAST, "steps": 6, "mixture": False, "marginal": marginal}
    batch = torch.stack([x, x.flip(-1)])

    def learner(seed: int) -> causal.BaCaDI:
        return causal.BaCaDI(batch, environments, generator=torch.Generator().manual_seed(seed), **options)

    whole, half, rest = learner(0), learner(0), learner(3)
    while not whole.finished:
        whole.step()
    for _ in range(2):
        half.step()
    rest.load_state_dict(half.state_dict())
    while not rest.finished:
        rest.step()
    assert all(torch.equal(whole.latents[name], rest.latents[name]) for name in whole.latents)
    assert whole.latents["z"].shape == (2, 8, 2, 3, 3)
    assert set(whole.latents) == {"z", "gamma"} | ({"parameters"} if not marginal else set())
    assert whole.history["update"].shape == whole.history["effective samples of graphs"].shape == (6, 2)


def test_cyclic_particles_are_named_and_weigh_nothing() -> None:
    x, _ = _chain(torch.Generator().manual_seed(2))
    learner = causal.BaCaDI(x, particles=3, steps=1, generator=torch.Generator().manual_seed(0))
    state = learner.state_dict()
    state["svgd"]["particles"][0][:] = -torch.ones(1, 3, 2, 3, 3)
    state["svgd"]["particles"][0][:, :, 1] = 1  # u.v < 0: no arcs
    state["svgd"]["particles"][0][:, 1, 0] = 1  # u.v > 0 everywhere: all arcs
    learner.load_state_dict(state)
    found = learner.result()
    assert found.cyclic is not None
    assert found.cyclic.tolist() == [False, True, False]
    assert found.log_weights[1] == -math.inf
    assert not found.edge_probabilities().any()
    state["svgd"]["particles"][0][:, :, 0] = 1
    learner.load_state_dict(state)
    with pytest.raises(ConvergenceError, match="all 3 particles of problem 0 have cycles"):
        learner.result()


def test_a_scale_free_prior_is_another_posterior() -> None:
    x, _ = _chain(torch.Generator().manual_seed(2))
    options = {**_FAST, "steps": 40}
    er, scale_free = (
        causal.dibs(x, graph_prior=prior, generator=torch.Generator().manual_seed(0), **options)
        for prior in ("er", "scale-free")
    )
    assert not torch.equal(er.log_weights, scale_free.log_weights)
