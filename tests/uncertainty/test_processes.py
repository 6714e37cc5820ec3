"""Processes, bar distributions and searches: against scikit-learn, scipy and enumeration."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import gaussian_process as theirs
from torch import Tensor

from pullback.uncertainty import (
    RBF,
    BarDistribution,
    BlackBoxTasks,
    GaussianProcess,
    Kernel,
    Matern,
    NeuralAcquisition,
    Periodic,
    Search,
    TransformerNeuralProcess,
    cholesky,
    decide,
    play,
    replay,
)

_BORDERS = [-1.0, 0.5, 1.0, 4.0]
_TAILS = ("bounded", "half-normal")


def _g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _law(tails: str) -> BarDistribution:
    return BarDistribution(torch.tensor([0.4, 1.0, -0.2], dtype=torch.float64), _BORDERS, tails=tails)


@pytest.mark.parametrize("tails", _TAILS)
def test_draws_have_the_law_of_the_bars(tails: str) -> None:
    law = _law(tails)
    drawn = law.rsample(4000, generator=_g())
    assert stats.kstest(drawn.numpy(), lambda y: law.cdf(torch.from_numpy(np.asarray(y))).numpy()).pvalue > 0.01
    torch.testing.assert_close(law.icdf(law.cdf(drawn)), drawn)


@pytest.mark.parametrize("tails", _TAILS)
def test_draws_have_the_gradient_of_the_mean(tails: str) -> None:
    logits = torch.tensor([0.4, 1.0, -0.2], dtype=torch.float64, requires_grad=True)
    law = BarDistribution(logits, _BORDERS, tails=tails)
    (exact,) = torch.autograd.grad(law.mean, logits)
    (drawn,) = torch.autograd.grad(law.rsample(20_000, generator=_g()).mean(), logits)
    torch.testing.assert_close(drawn, exact, atol=0.03, rtol=0.03)


def test_bounded_bars_hold_nothing_outside_and_half_normal_ones_do() -> None:
    far = torch.tensor([-3.0, 9.0], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"y must be in the range of the bars, \[-1.0, 4.0\], got -3.0"):
        _law("bounded").log_prob(far)
    assert _law("bounded").cdf(far).tolist() == [0.0, 1.0]
    assert bool(_law("half-normal").log_prob(far).isfinite().all())
    assert _law("half-normal").cdf(far)[1] < 1


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((torch.zeros(2), [0.0, 1.0]), {}, "borders must be one more than the 2 buckets"),
        ((torch.zeros(2), [0.0, 1.0, 1.0]), {}, "borders must increase strictly"),
        ((torch.zeros(1), [0.0, 1.0]), {"tails": "half-normal"}, "logits must have at least 2 buckets"),
        ((torch.zeros(1), [0.0, 1.0]), {"tails": "fat"}, "tails must be"),
    ],
)
def test_bars_refuse_what_is_no_histogram(args: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BarDistribution(*args, **options)


_KERNELS = [
    (RBF(2, lengthscale=0.7, outputscale=1.3), theirs.kernels.RBF(0.7)),
    *((Matern(2, nu, lengthscale=0.7, outputscale=1.3), theirs.kernels.Matern(0.7, nu=nu)) for nu in (0.5, 1.5, 2.5)),
    (Periodic(1, period=1.5, lengthscale=0.7, outputscale=1.3), theirs.kernels.ExpSineSquared(0.7, 1.5)),
]


@pytest.mark.parametrize(("kernel", "peer"), _KERNELS)
def test_the_process_is_that_of_scikit_learn(kernel: Kernel, peer: Any) -> None:
    x, new = (torch.randn(n, kernel.dims, generator=_g(n), dtype=torch.float64) for n in (12, 7))
    y = x.sum(-1).sin()
    ours = GaussianProcess(kernel.double(), noise=0.05).double()
    other = theirs.GaussianProcessRegressor(1.3 * peer, alpha=0.05, optimizer=None).fit(x.numpy(), y.numpy())
    mean, covariance = other.predict(new.numpy(), return_cov=True)
    found = ours.predict(x, y, new, full=True)
    # float32 starts of the logarithms round at 1e-7
    assert ours.log_marginal(x, y).item() == pytest.approx(other.log_marginal_likelihood_value_, abs=1e-5)
    np.testing.assert_allclose(found.mean.detach(), mean, atol=1e-6)
    np.testing.assert_allclose(found.variance.detach(), covariance, atol=1e-6)
    torch.testing.assert_close(ours.predict(x, y, new).variance, found.variance.diagonal())


def test_fitting_finds_the_length_scale_of_what_was_drawn() -> None:
    x = torch.linspace(0, 10, 60, dtype=torch.float64)[:, None].expand(2, 60, 1)
    truth = Matern(1, 2.5, lengthscale=1.0).double()
    truth.log_lengthscale = torch.nn.Parameter(torch.tensor([[0.5], [2.0]], dtype=torch.float64).log())
    factor = cholesky(truth(x, x) + 1e-3 * torch.eye(60)).factor
    y = (factor @ torch.randn(2, 60, 1, generator=_g(), dtype=torch.float64))[..., 0].detach()
    process = GaussianProcess(Matern(1, 2.5, batch=(2,)), noise=1e-2, batch=(2,)).double()
    trace = process.fit(x, y, steps=150)
    assert trace[-1] > trace[0]
    found = process.kernel.log_lengthscale.exp()[:, 0]
    assert 0.3 < found[0] < 0.9 < found[1] < 3.5
    # Each problem of a batch is fitted as if it were alone.
    alone = GaussianProcess(Matern(1, 2.5), noise=1e-2).double()
    alone.fit(x[1], y[1], steps=150)
    torch.testing.assert_close(alone.kernel.log_lengthscale.exp()[0], found[1])


def test_an_anchor_keeps_hyper_parameters_where_they_began() -> None:
    x = torch.linspace(0, 1, 8)[:, None]
    process = GaussianProcess(RBF(1, lengthscale=0.3), noise=0.1)
    process.fit(x, torch.zeros(8), steps=50, anchor=1e4)
    assert process.kernel.log_lengthscale.exp().item() == pytest.approx(0.3, rel=0.02)


def test_draws_of_functions_have_the_predicted_covariance() -> None:
    x, new = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[0.5], [1.5], [3.0]]).double()
    process = GaussianProcess(RBF(1), noise=0.01).double()
    y = torch.tensor([1.0, -1.0]).double()
    with torch.no_grad():
        drawn = process.rsample(x, y, new, count=20_000, generator=_g())
        found = process.predict(x, y, new, full=True)
    torch.testing.assert_close(drawn.mean(0), found.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), found.variance, atol=0.03, rtol=0)


def test_jitter_is_reported_for_the_matrix_that_needs_it() -> None:
    singular = torch.ones(3, 3, dtype=torch.float64)
    found = cholesky(torch.stack([torch.eye(3, dtype=torch.float64), singular]))
    assert found.jitter[0] == 0 < found.jitter[1] < 1e-12
    x = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    twice = GaussianProcess(RBF(1), noise=1e-20).double()
    prediction = twice.predict(x, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), x)
    assert prediction.jitter > 0
    assert prediction.mean[0].item() == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match=r"matrix is not positive definite at index \(1,\)"):
        cholesky(torch.stack([torch.eye(2), -torch.eye(2)]))


def _neural() -> tuple[TransformerNeuralProcess, tuple[Tensor, Tensor, Tensor]]:
    process = TransformerNeuralProcess(2, width=16, layers=2, heads=4, buckets=8, generator=_g()).double()
    g = _g(1)
    x, targets = torch.rand(2, 3, 5, 2, generator=g, dtype=torch.float64)
    return process, (x, torch.rand(3, 5, generator=g, dtype=torch.float64), targets)


def test_context_has_no_order_and_targets_do_not_see_each_other() -> None:
    process, (x, y, targets) = _neural()
    whole = process(x, y, targets).logits
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(process(x[:, order], y[:, order], targets).logits, whole)
    torch.testing.assert_close(process(x, y, targets[:, order]).logits, whole[:, order])
    torch.testing.assert_close(process(x, y, targets[:, :1]).logits, whole[:, :1])


def test_a_mask_makes_context_shorter() -> None:
    process, (x, y, targets) = _neural()
    for kept in (0, 3):
        mask = torch.arange(5).expand(3, 5) < kept
        short = process(x[:, :kept], y[:, :kept], targets).logits
        torch.testing.assert_close(process(x, torch.where(mask, y, 0), targets, mask=mask).logits, short)
    blind = TransformerNeuralProcess(2, width=8, layers=1, heads=2, buckets=4, prior=False)
    with pytest.raises(ValueError, match="context must hold at least one point where there is no prior token"):
        blind(torch.zeros(0, 2), torch.zeros(0), torch.zeros(3, 2))


def test_the_surrogate_learns_from_the_policy_only_end_to_end() -> None:
    process, (x, y, candidates) = _neural()
    state = torch.zeros(3, 2, dtype=torch.float64)
    for end_to_end in (True, False):
        policy = NeuralAcquisition(process, hidden=32, end_to_end=end_to_end, generator=_g()).double()
        process.zero_grad()
        policy.choose(policy(x, y, candidates, state), generator=_g()).log_prob.sum().backward()
        reached = [p.grad is not None and bool((p.grad != 0).any()) for p in process.layers.parameters()]
        assert any(reached) is end_to_end


def test_choices_follow_the_policy_among_what_is_available() -> None:
    process, (x, y, candidates) = _neural()
    policy = NeuralAcquisition(process, hidden=4, temperature=0.1, generator=_g()).double()
    args = (x[:1].expand(4000, -1, -1), y[:1].expand(4000, -1), candidates[:1].expand(4000, -1, -1))
    available = torch.tensor([True, True, False, True, True]).expand(4000, -1)
    decision = policy(*args, torch.zeros(4000, 2, dtype=torch.float64), available=available)
    choice = policy.choose(decision, generator=_g())
    share = torch.bincount(choice.chosen, minlength=5) / 4000
    torch.testing.assert_close(share.double(), decision.logits[0].softmax(-1), atol=0.03, rtol=0)
    assert share[2] == 0
    torch.testing.assert_close(choice.log_prob, decision.logits.log_softmax(-1)[range(4000), choice.chosen])


def test_a_search_counts_what_it_looked_at() -> None:
    y = torch.tensor([[1.0, 5.0, 3.0], [4.0, 4.0, 4.0]])
    tasks = BlackBoxTasks(torch.arange(3.0)[:, None], y)
    search = tasks.reset(torch.tensor([0, 0, 1]))
    assert search.step(torch.tensor([0, 2, 0])).tolist() == [1, 3, 4]
    assert search.regret.tolist() == [1.0, 0.5, 0.0]
    assert search.step(torch.tensor([2, 0, 2])).tolist() == [2, 0, 0]
    assert search.available.tolist() == [[False, True, False], [False, True, False], [False, True, False]]
    assert search.seen_x[..., 0].tolist() == [[0, 2], [2, 0], [0, 2]]
    with pytest.raises(ValueError, match="choice must be a point that has not been looked at"):
        search.step(torch.tensor([1, 2, 1]))
    with pytest.raises(ValueError, match=r"choice must be in 0..2, got 1 to 3"):
        search.step(torch.tensor([1, 3, 1]))
    with pytest.raises(ValueError, match=r"tasks must be in 0..1, got 0 to 2"):
        tasks.reset(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="y must be finite"):
        BlackBoxTasks(torch.zeros(2, 1), torch.tensor([[0.0, torch.nan]]))


def test_pools_are_parts_of_the_grid_without_repetition() -> None:
    tasks = BlackBoxTasks(torch.arange(6.0)[:, None], torch.arange(6.0)[None])
    pools = tasks.reset(torch.zeros(600, dtype=torch.long), pool=2, generator=_g()).x[..., 0].sort(-1).values
    found, counts = pools.unique(dim=0, return_counts=True)
    assert [tuple(pair) for pair in found.tolist()] == list(itertools.combinations(range(6), 2))
    assert stats.chisquare(counts.numpy()).pvalue > 0.01


def _begun(*choice: int) -> tuple[NeuralAcquisition, Any]:
    process = TransformerNeuralProcess(2, width=8, layers=1, heads=2, buckets=4, generator=_g()).double()
    policy = NeuralAcquisition(process, hidden=8, generator=_g()).double()
    table = torch.rand(9, 2, generator=_g(), dtype=torch.float64), torch.rand(3, 9, generator=_g(), dtype=torch.float64)
    search = BlackBoxTasks(*table).reset(torch.arange(len(choice)))
    if choice:
        search.step(torch.tensor(choice))
    return policy, search


def test_decisions_come_again_at_every_step_of_a_search() -> None:
    policy, search = _begun(0, 4, 2)
    before = [decide(policy, search, 0.0)]
    assert isinstance(search, Search)
    played = play(policy, search, 4, top=3, generator=_g())
    assert played.allowed.sum(-1).unique().tolist() == [3]
    assert bool(played.allowed.gather(-1, search.chosen[:, 1:, None]).all())
    torch.testing.assert_close(played.reward.sum(-1), search.best - search.y[range(3), search.chosen[:, 0]])
    best, span = search.seen_y.cummax(-1).values[:, 1:], search.y.amax(-1) - search.y.amin(-1)
    torch.testing.assert_close(played.regret, (search.y.amax(-1)[:, None] - best) / span[:, None])
    again = replay(policy, search, played)
    log_prob = again.logits.log_softmax(-1).gather(-1, search.chosen[:, 1:, None])[..., 0]
    torch.testing.assert_close(log_prob, played.log_prob)
    torch.testing.assert_close(again.value, played.value)
    allowed = played.allowed[:, 0]
    torch.testing.assert_close(again.logits[:, 0][allowed], before[0].logits[allowed])
    assert log_prob.requires_grad
    assert not played.log_prob.requires_grad


def test_the_likeliest_of_one_is_no_draw() -> None:
    policy, search = _begun(1)
    played = play(policy, search, 3, top=1)
    assert played.log_prob.tolist() == [[0, 0, 0]]
    policy, fresh = _begun()
    with pytest.raises(ValueError, match="search must have looked at a point"):
        decide(policy, fresh, 0.0)


def test_the_training_loss_is_the_mean_over_sizes_of_context() -> None:
    process = TransformerNeuralProcess(2, width=8, layers=1, heads=2, buckets=4, generator=_g()).double()
    x, y = torch.rand(1, 5, 2, generator=_g(), dtype=torch.float64), torch.rand(1, 5, generator=_g()).double()
    exact = [-process(x[:, :m], y[:, :m], x[:, 2:]).log_prob(y[:, 2:]).mean() for m in range(3)]
    many = process.loss(x.expand(6000, -1, -1), y.expand(6000, -1), 2, generator=_g())
    torch.testing.assert_close(many, torch.stack(exact).mean(), atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match=r"most must be in 1..4, got 5"):
        process.loss(x, y, 5)


def test_an_expanded_process_begins_equal_and_is_fitted_apart() -> None:
    process = GaussianProcess(Matern(1), noise=0.1)
    many = process.expanded(2)
    x, y = torch.rand(2, 6, 1, generator=_g()), torch.rand(2, 6, generator=_g())
    torch.testing.assert_close(many.log_marginal(x, y), process.log_marginal(x, y))
    many.fit(x, y, steps=3)
    assert many.noise[0] != many.noise[1]
    assert process.noise.item() == pytest.approx(0.1)
