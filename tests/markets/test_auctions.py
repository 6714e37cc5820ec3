"""Auctions against closed forms: equilibria, gains of deviations, gradients of expected utilities, learned bids."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

from pullback import markets
from pullback.gradients import estimator_error


def _uniform(bidders: int) -> markets.AuctionGame:
    return markets.AuctionGame(
        lambda count, generator: torch.rand(count, bidders, generator=generator, dtype=torch.float64), bidders=bidders
    )


class _Linear(nn.Module):
    """Bids that are a share of the value."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share, dtype=torch.float64))

    def forward(self, values: Tensor) -> Tensor:
        return self.share * values


def test_equal_highest_bids_share_the_item() -> None:
    bids = torch.tensor([[0.4, 0.4, 0.1], [0.0, 0.0, 0.0]])
    outcome = markets.first_price(bids)
    torch.testing.assert_close(outcome.allocation, torch.tensor([[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]]))
    torch.testing.assert_close(outcome.payment, torch.tensor([[0.2, 0.2, 0.0], [0.0, 0.0, 0.0]]))


def test_smoothing_gives_up_at_most_temperature_times_log_n(generator: torch.Generator) -> None:
    bids = torch.rand(1000, 5, generator=generator, dtype=torch.float64)
    for temperature in (0.01, 0.1, 1.0):
        kept = (markets.smooth_allocation(bids, temperature=temperature) * bids).sum(-1)
        assert bool((kept >= bids.amax(-1) - temperature * torch.tensor(5.0).log()).all())


@pytest.mark.parametrize("bidders", [2, 4])
def test_equilibrium_of_a_beta_prior_is_that_of_scipy(bidders: int) -> None:
    def cdf(v: Tensor) -> Tensor:
        return v * v * (3 - 2 * v)

    values = torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=torch.float64)
    found = markets.first_price_equilibrium(cdf, values, bidders)
    assert found[0] == 0
    for v, bid in zip(values[1:].tolist(), found[1:].tolist(), strict=True):
        area, _ = quad(lambda t: (t * t * (3 - 2 * t)) ** (bidders - 1), 0, v)
        assert abs(bid - (v - area / (v * v * (3 - 2 * v)) ** (bidders - 1))) < 1e-5


def test_gap_is_that_of_the_best_answer(generator: torch.Generator) -> None:
    game = _uniform(3)
    found = markets.best_response_gap(game, lambda v: 0.5 * v, samples=20_000, grid=200, generator=generator)
    # Against two bids of U[0, 1/2], a bid b wins with probability 4 b^2: best is 2 v / 3, at most 1/2.
    v = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    best = torch.minimum(2 * v / 3, torch.tensor(0.5))
    expected = ((v - best) * 4 * best**2 - (v - v / 2) * v**2).mean()
    assert abs(found.gap - float(expected)) < 0.01
    inside = found.values < 0.7
    assert float((found.best - 2 * found.values / 3)[inside].abs().mean()) < 0.02
    fair = markets.best_response_gap(game, lambda v: 2 * v / 3, samples=20_000, grid=200, generator=generator)
    assert fair.gap < 0.003


def test_truth_is_the_best_answer_where_the_second_price_is_paid(generator: torch.Generator) -> None:
    game = markets.AuctionGame(_uniform(4).prior, markets.second_price, 4)
    others = [lambda v: v] + [lambda v: v**2] * 3
    assert markets.best_response_gap(game, others, samples=5000, grid=100, generator=generator).gap == 0
    several = markets.AuctionGame(_uniform(4).prior, partial(markets.uniform_price, units=2), 4)
    assert markets.best_response_gap(several, others, samples=5000, grid=100, generator=generator).gap == 0


def _estimates(gradient: str, generator: torch.Generator, draws: int, **options: float) -> Tensor:
    own, other = _Linear(0.4), _Linear(0.5)
    play = markets.SelfPlay(_uniform(2), [own, other], gradient=gradient, batch=512, generator=generator, **options)
    found = []
    for _ in range(draws):
        play.ascend(0)
        found.append(own.share.grad.clone())
    return torch.stack(found)


def test_gradients_are_those_of_the_expected_utility(generator: torch.Generator) -> None:
    # A bid s v against w/2 wins with probability 2 s v: utility 2 s (1 - s) / 3.
    slope = torch.tensor(-(2 - 4 * 0.4) / 3, dtype=torch.float64)
    for gradient, options in (("evolution", {"noise": 0.01, "population": 32}), ("reinforce", {"noise": 0.01})):
        error = estimator_error(_estimates(gradient, generator, 200, **options), slope)
        assert error.largest_z < 4, gradient
    smoothed = _estimates("smoothed", generator, 400, temperature=0.01)
    assert abs(float(smoothed.mean() - slope)) < 0.015
    # Through the hard allocation nothing but the price is seen: d/ds of the payment, E v x = 0.8 / 3.
    hard = estimator_error(_estimates("hard", generator, 100), torch.tensor(0.8 / 3, dtype=torch.float64))
    assert hard.largest_z < 4


def test_bidders_learn_different_equilibria(generator: torch.Generator) -> None:
    """Values of U[0, 1] and U[0, 1/2]: the strong one bids less of a value than the weak one (Krishna, section 4.3)."""
    high = torch.tensor([1.0, 0.5], dtype=torch.float64)
    game = markets.AuctionGame(lambda count, draw: high * torch.rand(count, 2, generator=draw, dtype=torch.float64))
    nets = [markets.BidNetwork(generator=generator).double() for _ in range(2)]
    fast = partial(torch.optim.Adam, lr=0.01)
    play = markets.SelfPlay(game, nets, batch=512, temperature=0.03, optimizer=fast, generator=generator)
    assert play.learners == [0, 1]
    for _ in range(600):
        play.step()
    v = torch.linspace(0.2, 0.45, 10, dtype=torch.float64)
    strong, weak = (net(v).detach() for net in nets)
    assert bool((strong < weak).all())
    k = torch.tensor(1 - 4.0, dtype=torch.float64)  # 1 / w1^2 - 1 / w2^2, of the closed form
    for net, sign in ((nets[0], 1), (nets[1], -1)):
        exact = ((1 - sign * k * v**2).sqrt() - 1) / (-sign * k * v)
        assert float((net(v).detach() - exact).abs().max()) < 0.04


def test_a_saved_state_goes_on_to_the_same_bids() -> None:
    def new() -> tuple[markets.BidNetwork, markets.SelfPlay, torch.Generator]:
        draw = torch.Generator().manual_seed(1)
        net = markets.BidNetwork(generator=draw).double()
        return net, markets.SelfPlay(_uniform(2), net, batch=64, generator=draw), draw

    net, play, draw = new()
    play.step()
    saved, state = copy.deepcopy(play.state_dict()), draw.get_state()
    play.step()
    again, other, draw = new()
    other.load_state_dict(saved)
    draw.set_state(state)
    other.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


@pytest.mark.usefixtures("without_shape_checks")
def test_arguments_are_refused_by_name(generator: torch.Generator) -> None:
    game, net = _uniform(2), _Linear(0.5)
    with pytest.raises(ValueError, match="bidders must be an integer >= 1"):
        markets.AuctionGame(game.prior, bidders=0)
    with pytest.raises(TypeError, match="prior must be callable"):
        markets.AuctionGame(torch.rand(3, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"prior must return shape \(5, 3\), got \(5, 2\)"):
        markets.AuctionGame(game.prior, bidders=3).sample(5, generator)
    with pytest.raises(ValueError, match=r"values must have shape \(..., 2\)"):
        game.utilities(net, torch.rand(3))
    with pytest.raises(ValueError, match="strategies must be one or 2, got 3"):
        game.utilities([net] * 3, torch.rand(4, 2))
    with pytest.raises(ValueError, match="bids must be >= 0"):
        game.utilities(lambda v: -v, torch.rand(4, 2))
    with pytest.raises(ValueError, match="grid must be an integer >= 2"):
        markets.best_response_gap(game, net, grid=1, generator=generator)
    play = partial(markets.SelfPlay, game, net, generator=generator)
    with pytest.raises(ValueError, match="gradient must be one of"):
        play(gradient="exact")
    with pytest.raises(ValueError, match="temperature must be > 0"):
        play(temperature=0.0)
    with pytest.raises(ValueError, match="population must be even and divide batch, got 10 of 64"):
        play(gradient="evolution", batch=64, population=10)
    with pytest.raises(TypeError, match="strategies must be modules"):
        markets.SelfPlay(game, lambda v: v, generator=generator)  # type: ignore[arg-type]
