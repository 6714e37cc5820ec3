"""Estimators of a categorical gradient against enumeration, closed forms and conditional laws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor

from pullback import discrete
from pullback.discrete import estimator_statistics
from pullback.lab.bench import load_tables

UNBIASED = ("score_function", "muprop", "leave_one_out")


def _double(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _network(seed: int, n: int = 4, scale: float = 1.0) -> Callable[[Tensor], Tensor]:
    w, v = _double(6, n, seed=seed), _double(6, seed=seed + 1)
    return lambda d: torch.tanh(scale * d @ w.T + 0.5) @ v


def _by_hand(f: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """The gradient of E f(D) over all draws of some variables: one term after the other, by autograd."""
    logits = logits.detach().requires_grad_()
    p = logits.softmax(-1)
    total = torch.zeros((), dtype=logits.dtype)
    for classes in itertools.product(range(logits.shape[-1]), repeat=len(logits)):
        d = torch.eye(logits.shape[-1], dtype=logits.dtype)[list(classes)]
        total = total + (p * d).sum(-1).prod() * f(d).detach()
    return torch.autograd.grad(total, logits)[0]


def test_exact_gradient_of_several_variables_is_the_sum_over_their_outcomes() -> None:
    logits, w = _double(3, 2, seed=0), _double(3, 2, seed=1)
    f = lambda d: ((d * w).sum((-2, -1)) + d[..., 0, 1] * d[..., 2, 0]).exp()  # noqa: E731
    exact = _by_hand(f, logits)
    torch.testing.assert_close(discrete.exact_categorical_gradient(f, logits), exact)
    x = logits.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(discrete.expectation(f, x, method="exact"), x)[0], exact)
    # Two laws at once: the batch is what f leaves.
    two = torch.stack([logits, 2 * logits])
    both = discrete.exact_categorical_gradient(f, two)
    torch.testing.assert_close(both[1], _by_hand(f, 2 * logits))


def test_what_cannot_happen_counts_nothing() -> None:
    logits = torch.tensor([0.3, -torch.inf, 0.0])
    f = lambda d: 1 / (1 - d[..., 1]) + d[..., 2]  # noqa: E731
    assert discrete.expectation(f, logits, method="exact").isfinite()
    assert discrete.exact_categorical_gradient(f, logits)[1] == 0
    for method in ("score_function", "reinmax"):
        error = estimator_statistics(method, lambda d: d[..., 2], logits)
        assert error.draws == 2
        assert error.relative_bias < 1e-10


@pytest.mark.parametrize("method", UNBIASED)
def test_score_functions_are_unbiased_whatever_the_function(method: str) -> None:
    logits = _double(2, 3, seed=3)
    f = lambda d: torch.sin(5 * d[..., 0, 0] + 2 * d[..., 1, 1] * d[..., 0, 2])  # noqa: E731
    draws = 2 if method == "leave_one_out" else 1
    error = estimator_statistics(method, f, logits, draws=draws)
    assert error.draws == 3 ** (2 * draws)
    assert error.relative_bias < 1e-20
    assert error.mean_cosine == pytest.approx(1)


def test_a_baseline_takes_variance_and_the_mean_of_its_own_draws_shrinks() -> None:
    logits, f = _double(4, seed=5), lambda d: 10 + _network(6)(d)
    plain = estimator_statistics("score_function", f, logits)
    known = estimator_statistics(partial(discrete.expectation, method="score_function", control=10.0), f, logits)
    assert known.relative_bias < 1e-20
    assert known.variance < plain.variance / 10

    def own_mean(f: Callable[[Tensor], Tensor], logits: Tensor, *, outcome: Tensor, **_: object) -> Tensor:
        d = torch.nn.functional.one_hot(outcome, 4).double()
        log_prob = (d * logits.log_softmax(-1)).sum(-1)
        return discrete.score_function(log_prob, f(d), baseline="mean").mean(0)

    exact = discrete.exact_categorical_gradient(f, logits)
    torch.testing.assert_close(estimator_statistics(own_mean, f, logits, draws=2).bias, -exact / 2)


def test_muprop_has_no_variance_on_linear_functions() -> None:
    logits, w = _double(2, 3, seed=7), _double(2, 3, seed=8)
    error = estimator_statistics("muprop", lambda d: (d * w).sum((-2, -1)), logits)
    assert error.relative_bias < 1e-20
    assert error.relative_variance < 1e-20
    flat = estimator_statistics("muprop", lambda d: (d * w).sum((-2, -1)).detach(), logits)  # no derivative: a baseline
    assert flat.relative_bias < 1e-20
    assert flat.relative_variance > 0.1


@pytest.mark.parametrize("method", discrete.CATEGORICAL_METHODS)
def test_the_given_outcome_is_the_sample(method: str) -> None:
    logits = _double(7, 5, seed=9)
    outcome = torch.arange(7) % 5
    expected = torch.nn.functional.one_hot(outcome, 5).double()
    assert torch.equal(discrete.categorical(logits, method=method, outcome=outcome), expected)
    assert torch.equal(discrete.categorical(logits.T, method=method, dim=0, outcome=outcome), expected.T)


def test_noise_given_the_outcome_is_gumbel_noise_over_all_outcomes() -> None:
    """Drawing the outcome first and the noise given it is drawing the noise."""
    logits = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64).expand(20_000, 3)
    stream = torch.Generator().manual_seed(10)
    outcome = torch.distributions.Categorical(logits=logits[0]).sample((20_000,))
    onehot = torch.nn.functional.one_hot(outcome, 3).double()
    noise = discrete.sampling.noise_given(logits, onehot, -1, stream)
    assert torch.equal((logits + noise).argmax(-1), outcome)
    for column in noise.unbind(-1):
        assert stats.kstest(column.numpy(), stats.gumbel_r.cdf).pvalue > 1e-4
    off = torch.corrcoef(noise.T) - torch.eye(3)
    assert off.abs().max() < 4 / math.sqrt(20_000)
    # Given the outcome, an exponential with the outcome's probability as rate is the least of three.
    given = discrete.sampling.noise_given(logits, torch.eye(3).double()[2].expand(20_000, 3), -1, stream)
    least = torch.exp(-(logits + given)[:, 2] + logits.logsumexp(-1))
    assert stats.kstest(least.numpy(), stats.expon.cdf).pvalue > 1e-4


def test_averaging_over_the_noise_of_one_outcome_takes_variance_and_no_bias() -> None:
    logits, f = _double(4, seed=11), _network(12)

    def averaged(
        f: Callable[[Tensor], Tensor], logits: Tensor, *, generator: torch.Generator, noises: int, **_: object
    ) -> Tensor:
        index = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).squeeze(-1)
        many = logits.expand(noises, *logits.shape)
        hard = discrete.gumbel_softmax(
            many, temperature=0.5, hard=True, outcome=index.expand(noises, -1), generator=generator
        )
        return f(hard.mean(0))

    stream = torch.Generator().manual_seed(0)
    one, many = (
        estimator_statistics(partial(averaged, noises=k), f, logits, samples=4000, generator=stream) for k in (1, 20)
    )
    assert many.variance < 0.7 * one.variance
    difference = (many.bias - one.bias) / (many.standard_error**2 + one.standard_error**2).sqrt()
    assert difference.abs().max() < 4


@pytest.mark.parametrize(
    ("method", "temperature", "f", "unbiased"),
    [
        ("straight_through", 1.0, "linear", True),
        ("straight_through", 2.0, "linear", False),
        ("straight_through", 1.0, "quadratic", False),
        ("reinmax", 1.0, "quadratic", True),
        ("reinmax", 2.0, "quadratic", False),
    ],
)
def test_what_is_unbiased_for_which_function(method: str, temperature: float, f: str, unbiased: bool) -> None:
    biases = []
    for seed in range(20):
        a, b, logits = _double(5, 5, seed=3 * seed), _double(5, seed=3 * seed + 1), _double(5, seed=3 * seed + 2)
        g = {"linear": lambda d, b=b: d @ b, "quadratic": lambda d, a=a, b=b: ((d @ a) * d).sum(-1) + d @ b}[f]
        biases.append(estimator_statistics(method, g, logits, temperature=temperature).relative_bias)
    assert (max(biases) < 1e-20) if unbiased else (sorted(biases)[10] > 0.02)


def test_order_of_reinmax_and_straight_through() -> None:
    """The relative bias for f(eps D) falls like eps for straight-through and like eps^2 for ReinMax."""
    for method, order, within in (("straight_through", 1, 0.15), ("reinmax", 2, 0.2)):
        slopes = []
        for seed in range(10):
            logits = _double(4, seed=40 + seed)
            bias = [
                math.sqrt(estimator_statistics(method, _network(seed, scale=e), logits).relative_bias)
                for e in (1 / 16, 1 / 32)
            ]
            slopes.append(math.log2(bias[0] / bias[1]))
        assert sorted(slopes)[5] == pytest.approx(order, abs=within)


def test_perturbed_maximum_is_unbiased_for_linear_functions_and_given_the_outcome_the_score_function() -> None:
    logits, w = _double(4, seed=13), _double(4, seed=14)
    stream = torch.Generator().manual_seed(1)
    error = estimator_statistics("perturbed", lambda d: d @ w, logits, samples=20_000, generator=stream)
    assert error.largest_z < 4
    # E[1 - exp(-z) | D] = D - p: what its noise adds has mean zero.
    many = logits.expand(50_000, 4).clone().requires_grad_()
    outcome = torch.full((50_000,), 2)
    sample = discrete.categorical(many, method="perturbed", outcome=outcome, generator=stream)
    mean = torch.autograd.grad(sample @ w, many, torch.ones(50_000, dtype=torch.float64))[0].mean(0)
    expected = w[2] * (torch.eye(4)[2] - logits.softmax(-1))
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.03)


def test_implicit_gradient_is_the_difference_of_two_maxima() -> None:
    x = torch.tensor([[0.0, 1.0, 5.0]], dtype=torch.float64, requires_grad=True)
    sample = discrete.categorical(x, method="imle", temperature=100.0, outcome=torch.tensor([2]))
    g = torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64)
    assert torch.autograd.grad(sample, x, g)[0].tolist() == [[-0.01, 0.0, 0.01]]  # pushed to class 0
    w = _double(3, seed=15)
    stream = torch.Generator().manual_seed(2)
    biases = [
        estimator_statistics(
            "imle", lambda d: d @ w, x.detach()[0] / 3, samples=40_000, temperature=t, generator=stream
        )
        for t in (0.1, 3.0)
    ]
    assert biases[0].largest_z < 4
    assert biases[1].relative_bias > 0.1
    assert biases[1].variance < biases[0].variance / 10


def test_decoupled_temperatures() -> None:
    logits = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(50_000, 2).clone().requires_grad_()
    stream = torch.Generator().manual_seed(3)
    sample = discrete.straight_through_softmax(logits, temperature=0.5, draw_temperature=3.0, generator=stream)
    p = 1 / (1 + math.exp(-1 / 3))
    assert sample[:, 0].mean().item() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 50_000))
    gradient = torch.autograd.grad(sample[0, 0], logits)[0][0, 0].item()
    q = 1 / (1 + math.exp(-2))
    assert gradient == pytest.approx(q * (1 - q) / 0.5)


def test_parameters_of_the_function_get_their_gradient_in_every_method() -> None:
    logits, scale = _double(2, 3, seed=16), torch.ones((), dtype=torch.float64, requires_grad=True)
    f = lambda d: scale * (d[..., 0, :] * d[..., 1, :]).sum(-1)  # noqa: E731
    probability = (logits.softmax(-1)[0] * logits.softmax(-1)[1]).sum().item()
    for method in discrete.ESTIMATORS:
        temperature, stream = 0.05 if method == "gumbel_softmax" else 1.0, torch.Generator().manual_seed(4)
        value = discrete.expectation(
            f, logits, method=method, samples=20_000, temperature=temperature, generator=stream
        )
        assert value.item() == pytest.approx(probability, abs=0.02)
        assert torch.autograd.grad(value, scale)[0].item() == pytest.approx(probability, abs=0.02)


def test_enumeration_refuses_estimators_that_draw_although_the_outcome_is_given() -> None:
    for method in ("gumbel", "gumbel_softmax", "perturbed", "imle"):
        with pytest.raises(ValueError, match=f"samples must be given for '{method}': it draws"):
            estimator_statistics(method, lambda d: d[..., 0], torch.zeros(3))


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_reinmax_gradient_is_the_formula_of_the_paper(temperature: float) -> None:
    logits = _double(3, 5, seed=0).requires_grad_()
    g = _double(3, 5, seed=1)

    def block(x: Tensor) -> Tensor:
        return discrete.reinmax(x, temperature=temperature, outcome=torch.tensor([0, 3, 2])).onehot

    def paper(x: Tensor) -> Tensor:  # algorithm 2: a straight-through object
        onehot = block(x).detach()
        middle = (onehot + (x / temperature).softmax(-1)) / 2
        first = ((middle.log() - x).detach() + x).softmax(-1)
        second = 2 * first - x.softmax(-1) / 2
        return second - second.detach() + onehot

    got = torch.autograd.grad(block(logits), logits, g, create_graph=True)[0]
    torch.testing.assert_close(got, torch.autograd.grad(paper(logits), logits, g)[0])
    torch.testing.assert_close(got.sum(-1), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.func.jvp(block, (logits.detach(),), (g,))[1], got.detach())
    assert torch.isfinite(torch.autograd.grad(got.square().sum(), logits)[0]).all()


def test_functions_that_do_not_fit_are_refused() -> None:
    logits = torch.zeros(2, 3)
    for block in (discrete.exact_categorical_gradient, discrete.expectation):
        with pytest.raises(ValueError, match=r"f must return one value per draw: .* \(1, 2, 3\), got \(\)"):
            block(lambda d: d.sum(), logits)
        with pytest.raises(TypeError, match=r"result of f must be a floating tensor, got torch\.int64"):
            block(lambda d: d[..., 0, 0].long(), logits)
    with pytest.raises(ValueError, match=r"at most 100000 outcomes to enumerate, got 3\^20"):
        discrete.exact_categorical_gradient(lambda d: d[..., 0, 0], torch.zeros(20, 3))
    with pytest.raises(ValueError, match="outcome must be None for method 'exact'"):
        discrete.expectation(lambda d: d[..., 0, 0], logits, method="exact", outcome=torch.zeros(1, 2).long())


def test_table_of_estimators() -> None:
    """What `pullback bench estimators` prints, of fewer samples: what is exact there is told exactly."""
    (table,) = load_tables(Path(__file__).parents[2] / "benchmarks" / "estimators.py")
    for options in table.rows.__globals__["ESTIMATORS"].values():
        options["samples"] = options["samples"] and 50
    rows = {(row[0], row[1]): row[2:] for row in table.rows()}
    assert rows["linear, 6 classes", "straight-through"] == ("0.000", "0.000", "1.000")
    assert rows["quadratic, 6 classes", "ReinMax"][0] == "0.000"
    assert float(rows["quadratic, 6 classes", "straight-through"][0]) > 0.3
    assert all(rows[f, "score function"][0] == "0.000" for f, name in rows if name == "MuProp")


def test_a_running_baseline_is_unbiased_and_saved_with_its_network() -> None:
    logits, f = _double(4, seed=20), lambda d: 10 + _network(21)(d)
    estimator = discrete.RunningBaseline(momentum=0.5)
    first = estimator(f, logits, outcome=torch.tensor([1])).item()
    second = estimator(f, logits, outcome=torch.tensor([2])).item()
    assert estimator.mean.item() == pytest.approx(first / 4 + second / 2)
    estimator.eval()
    kept = estimator.mean.item()
    error = estimator_statistics(estimator, f, logits)
    assert estimator.mean.item() == kept
    assert error.relative_bias < 1e-12
    assert error.variance < estimator_statistics("score_function", f, logits).variance / 2
    model = discrete.DiscreteVAE(4, 2, 3, estimator=discrete.RunningBaseline(7.0))
    assert model.state_dict()["estimator.mean"].item() == 7
    for bad in ({"momentum": 1.0}, {"momentum": -0.1}, {"start": math.inf}):
        with pytest.raises(ValueError, match=r"momentum|start"):
            discrete.RunningBaseline(**bad)


def test_bernoulli_given_its_outcome() -> None:
    """The mixture over outcomes is the law of the relaxation: a logistic number over the temperature."""
    p, n = 0.3, 40_000
    outcome = torch.rand(n, generator=torch.Generator().manual_seed(0)) < p
    x = torch.full((n,), p, dtype=torch.float64, requires_grad=True)
    stream = torch.Generator().manual_seed(1)
    soft = discrete.bernoulli(x, outcome=outcome, generator=stream)
    assert torch.equal(soft > 0.5, outcome)
    logistic = stats.logistic(loc=math.log(p / (1 - p)) / 0.5, scale=1 / 0.5)
    assert stats.kstest(torch.logit(soft.detach()).numpy(), logistic.cdf).pvalue > 1e-4
    for method in ("concrete", "straight_through"):
        hard = discrete.bernoulli(x, method=method, hard=True, outcome=outcome.long(), generator=stream)
        assert torch.equal(hard, outcome.double())
        assert torch.autograd.grad(hard.sum(), x)[0].min() > 0
