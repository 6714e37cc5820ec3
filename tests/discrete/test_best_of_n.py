"""Best-of-n: what the paper says of it, on random laws, and its sampler against its law."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from pullback import discrete


def _law(seed: int, outcomes: int, peak: float) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = peak * torch.randn(outcomes, generator=draw, dtype=torch.float64)
    return torch.log_softmax(logits, -1), torch.randint(outcomes, (outcomes,), generator=draw).double()


@given(
    st.integers(0, 10**6),
    st.integers(2, 40),
    st.floats(0, 5),
    st.integers(1, 2000),
    st.sampled_from(["order", "split"]),
)
def test_the_estimate_lies_between_the_exact_divergence_and_the_bound(
    seed: int, outcomes: int, peak: float, n: int, ties: str
) -> None:
    log_p, reward = _law(seed, outcomes, peak)
    exact = discrete.best_of_n_kl(log_p, n, method="exact", reward=reward, ties=ties).value
    bound = discrete.best_of_n_kl(log_p, n, method="bound").value
    each = discrete.best_of_n_kl(log_p.unsqueeze(-1), n).value
    expected = (discrete.best_of_n_log_prob(log_p, reward, n, ties=ties).exp() * each).sum()
    assert exact - 1e-9 <= expected <= bound + 1e-9
    assert discrete.win_rate(log_p, log_p, reward, n=n) <= n / (n + 1) + 1e-12


def test_draws_follow_the_law() -> None:
    log_p, _ = _law(0, 6, 1.0)
    reward = torch.tensor([0.0, 1.0, 1.0, -1.0, 2.0, 2.0], dtype=torch.float64)

    def sampler(n: int, generator: torch.Generator | None) -> Tensor:
        return torch.multinomial(log_p.exp(), n * 20_000, True, generator=generator).view(n, 20_000)

    chosen = discrete.best_of_n(sampler, lambda y: reward[y], 3, generator=torch.Generator().manual_seed(1))
    expected = 20_000 * discrete.best_of_n_log_prob(log_p, reward, 3).exp()
    assert stats.chisquare(chosen.sample.bincount(minlength=6), expected).pvalue > 1e-3
    assert torch.equal(chosen.reward, reward[chosen.candidates].amax(0))
    assert torch.equal(chosen.candidates.gather(0, chosen.index[None])[0], chosen.sample)


def test_one_draw_is_the_law_itself_with_its_gradient() -> None:
    log_p, reward = _law(3, 5, 1.0)
    x = log_p.clone().requires_grad_()
    law = discrete.best_of_n_log_prob(x, reward, 1)
    torch.testing.assert_close(law, log_p)
    (law * torch.arange(5)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0.1


def test_rare_and_impossible_outcomes() -> None:
    log_p = torch.tensor([-torch.inf, -2000.0, 0.0, -800.0], dtype=torch.float64, requires_grad=True)
    law = discrete.best_of_n_log_prob(log_p, torch.arange(4.0, dtype=torch.float64), 1000)
    expected = [-math.inf, -2e6, 0.0, math.log(1000) - 800]
    torch.testing.assert_close(law.tolist(), expected, rtol=1e-12, atol=1e-12)
    law[1:].sum().backward()
    assert log_p.grad is not None
    assert log_p.grad.isfinite().all()
    assert log_p.grad[0] == 0


def test_a_single_winner_has_no_standard_error_and_more_have_the_usual_one() -> None:
    log_p = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64)
    each = discrete.best_of_n_kl(log_p.unsqueeze(-1), 5)
    assert each.standard_error.isinf().all()
    found = discrete.best_of_n_kl(log_p, 5).standard_error
    torch.testing.assert_close(found, each.value.std() / math.sqrt(3))


def test_no_threshold_reached_returns_the_last_draw() -> None:
    log_p, reward = _law(4, 5, 1.0)
    torch.testing.assert_close(discrete.rewind_and_repeat_log_prob(log_p, reward, 99.0, 7), log_p)
    kept = discrete.rewind_and_repeat_log_prob(log_p, reward, float(reward.max()), 10**6)
    best = reward == reward.max()
    torch.testing.assert_close(kept[best].logsumexp(0).item(), 0.0)


@pytest.mark.parametrize(
    ("sampler", "reward", "match"),
    [
        (lambda n, g: torch.zeros(n + 1), lambda y: y, "sampler must return 2 draws, got shape"),
        (lambda n, g: torch.zeros(n), lambda y: y.sum(), "reward must return one number a draw"),
        (lambda n, g: torch.zeros(n), lambda y: y / 0, "reward must not be NaN"),
    ],
)
def test_unfit_samplers_and_rewards_are_refused(sampler, reward, match) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=match):
        discrete.best_of_n(sampler, reward, 2)
