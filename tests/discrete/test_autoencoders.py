"""Networks with a categorical code: their bounds against sums over all codes, and temperatures that fall."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from pullback import discrete


def _likelihood(logits: Tensor, y: Tensor) -> Tensor:
    return torch.distributions.Bernoulli(logits=logits).log_prob(y).sum(-1)


def _codes(variables: int, classes: int) -> list[Tensor]:
    return [torch.eye(classes)[list(c)] for c in itertools.product(range(classes), repeat=variables)]


def test_exact_bound_is_the_sum_over_all_codes() -> None:
    torch.manual_seed(0)
    model = discrete.DiscreteVAE(5, 2, 3, (4,), estimator="exact")
    x = torch.rand(3, 5).round()
    q = model.logits(x).softmax(-1)
    expected = torch.zeros(3)
    for d in _codes(2, 3):
        weight = (q * d).sum(-1).prod(-1)
        log_p = _likelihood(model.decoder(d.flatten()), x) - 2 * math.log(3)
        expected -= weight * (log_p - weight.log())
    torch.testing.assert_close(model.negative_elbo(x), expected)
    torch.testing.assert_close(
        model.divergence(model.logits(x)),
        torch.distributions.kl_divergence(
            torch.distributions.Categorical(q), torch.distributions.Categorical(torch.full_like(q, 1 / 3))
        ).sum(-1),
    )


def test_evaluation_draws_exactly_and_bounds_tighten_to_the_likelihood() -> None:
    torch.manual_seed(1)
    network = discrete.CategoricalBottleneck(4, 2, 3, 5, (6,), estimator="gumbel_softmax", temperature=50.0)
    for layer in (network.encoder, network.decoder):
        for module in layer:
            if isinstance(module, nn.Linear):
                module.weight.data *= 3
    x, y = torch.rand(2, 4), torch.rand(2, 5).round()
    q = network.logits(x).softmax(-1)
    weights = torch.stack([(q * d).sum(-1).prod(-1) for d in _codes(2, 3)])
    values = torch.stack([-_likelihood(network.decoder(d.flatten()), y) for d in _codes(2, 3)])
    stream = torch.Generator().manual_seed(0)
    network.eval()
    drawn = network.loss(x, y, samples=20_000, generator=stream)
    torch.testing.assert_close(drawn, (weights * values).sum(0), rtol=0.01, atol=0)
    network.train()
    relaxed = network.loss(x, y, samples=20_000, generator=stream)
    assert (relaxed - drawn).abs().max() > 0.1  # at this temperature the codes are nearly uniform
    exact = -torch.log((weights * (-values).exp()).sum(0))
    many = network.bound(x, y, samples=20_000, generator=stream)
    torch.testing.assert_close(many, exact, rtol=0.01, atol=0)
    single = torch.stack([network.bound(x, y, samples=1, generator=stream) for _ in range(2000)])
    torch.testing.assert_close(single.mean(0), (weights * values).sum(0), rtol=0.03, atol=0)
    assert torch.equal(
        network(x), torch.stack([torch.sigmoid(network.decoder(torch.eye(3)[row].flatten())) for row in q.argmax(-1)])
    )


def test_any_function_with_the_signature_of_expectation_is_an_estimator() -> None:
    seen = []

    def estimator(f: object, logits: Tensor, *, samples: int, generator: object) -> Tensor:
        seen.append(samples)
        return discrete.expectation(f, logits, samples=samples, generator=generator)  # type: ignore[arg-type]

    model = discrete.DiscreteVAE(5, 2, 3, estimator=estimator)
    model.negative_elbo(torch.rand(4, 5), samples=3).sum().backward()
    assert seen == [3]
    assert model.encoder[0].weight.grad.abs().sum() > 0


def test_marginal_label_is_the_mean_over_all_labels_plus_entropy() -> None:
    torch.manual_seed(2)
    model = discrete.SemiSupervisedVAE(6, 4, 2, (5,), estimator="exact")
    x = torch.rand(3, 6)
    bounds = torch.stack(
        [model.elbo(x, torch.full((3,), k), generator=torch.Generator().manual_seed(3)) for k in range(4)], -1
    )
    q = model.classify(x).softmax(-1)
    expected = (q * (bounds - q.log())).sum(-1)
    torch.testing.assert_close(model.elbo(x, generator=torch.Generator().manual_seed(3)), expected)
    model.estimator, model.temperature = "gumbel_softmax", 0.01
    many = model.elbo(x.repeat(5000, 1), generator=torch.Generator().manual_seed(4)).view(5000, 3).mean(0)
    torch.testing.assert_close(many, expected, rtol=0.05, atol=0)


def test_bound_of_a_labelled_image_is_likelihood_less_divergence() -> None:
    torch.manual_seed(3)
    model = discrete.SemiSupervisedVAE(6, 4, 2, (5,))
    x, y = torch.rand(3, 6), torch.tensor([0, 3, 1])
    found = model.elbo(x, y, generator=torch.Generator().manual_seed(5))
    onehot = torch.eye(4)[y]
    mean, log_deviation = model.encoder(torch.cat([x, onehot], -1)).chunk(2, -1)
    normal = torch.distributions.Normal(mean, log_deviation.exp())
    z = mean + log_deviation.exp() * torch.randn(3, 2, generator=torch.Generator().manual_seed(5))
    divergence = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    log_p = -nn.functional.binary_cross_entropy_with_logits(model.decode(onehot, z), x, reduction="none").sum(-1)
    torch.testing.assert_close(found, log_p - divergence - math.log(4))


def test_wrong_use_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="estimator must be one of 'gumbel'"):
        discrete.DiscreteVAE(4, 2, 3, estimator="reinforce")
    with pytest.raises(ValueError, match="classes must be an integer >= 1, got 0"):
        discrete.CategoricalBottleneck(4, 2, 0, 4)
    with pytest.raises(ValueError, match="hidden must be an integer >= 1, got 0"):
        discrete.SemiSupervisedVAE(4, 2, 2, (0,))


def test_temperature_falls_in_stairs_to_a_floor() -> None:
    temperature = discrete.temperature_schedule(2.0, 0.5, 1e-3, every=100)
    assert temperature(0) == temperature(99) == 2.0
    assert temperature(250) == pytest.approx(2.0 * math.exp(-0.2))
    assert temperature(10_000) == 0.5
    assert discrete.temperature_schedule(1.0, 1.0, 0.0)(10**9) == 1.0
    for bad, message in (
        ((0.0, 0.0, 1.0), "start must be > 0"),
        ((1.0, 2.0, 1.0), r"end must be at most start, 1\.0, got 2\.0"),
        ((1.0, 0.5, -1.0), "rate must be >= 0"),
        ((1.0, 0.5, 1.0, 0), "every must be an integer >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            discrete.temperature_schedule(*bad)
    with pytest.raises(ValueError, match="step must be an integer >= 0, got -1"):
        temperature(-1)
