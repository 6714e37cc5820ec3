"""Markets of single items against linear programmes, drawn lots and enumeration."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.optimize import linear_sum_assignment, linprog
from torch import Tensor

from pullback import markets


def _drawn(generator: torch.Generator, *batch: int) -> markets.Market:
    features = torch.rand(5, 4, generator=generator, dtype=torch.float64)
    preferences = torch.rand(*batch, 6, 4, generator=generator, dtype=torch.float64) ** 3
    return markets.Market(features, markets.equilibrium_prices(preferences @ features.T), preferences)


@pytest.mark.parametrize(("consumers", "items"), [(4, 4), (5, 3), (3, 5)])
def test_prices_are_the_ends_of_the_duals_of_the_assignment(
    generator: torch.Generator, consumers: int, items: int
) -> None:
    values = torch.rand(consumers, items, generator=generator, dtype=torch.float64)
    rows, columns = linear_sum_assignment(values.numpy(), maximize=True)
    total = float(values.numpy()[rows, columns].sum())
    # min or max of the sum of prices p, over gains u with u_i + p_j >= v_ij, all >= 0, and the total of the primal
    pairs = [
        [float(k in (i, consumers + j)) for k in range(consumers + items)]
        for i in range(consumers)
        for j in range(items)
    ]
    for sign, position in ((1, 0.0), (-1, 1.0)):
        solved = linprog(
            [0.0] * consumers + [float(sign)] * items,
            A_ub=[[-x for x in row] for row in pairs],
            b_ub=(-values.flatten()).tolist(),
            A_eq=[[1.0] * (consumers + items)],
            b_eq=[total],
        )
        found = markets.equilibrium_prices(values, position=position)
        torch.testing.assert_close(found, torch.tensor(solved.x[consumers:]), atol=1e-8, rtol=0)


@pytest.mark.parametrize(("consumers", "items"), [(6, 6), (7, 4), (4, 7)])
def test_nobody_wants_another_item_at_equilibrium_prices(
    generator: torch.Generator, consumers: int, items: int
) -> None:
    values = torch.rand(20, consumers, items, generator=generator, dtype=torch.float64)
    for position in (0.0, 0.3, 0.5, 0.8, 1.0):
        prices = markets.equilibrium_prices(values, position=position)
        gains = (values - prices[:, None]).clamp(min=0).amax(-1)
        for table, gain, price in zip(values, gains, prices, strict=True):
            rows, columns = linear_sum_assignment(table.numpy(), maximize=True)
            expected = torch.zeros(consumers, dtype=torch.float64)
            expected[rows] = table[rows, columns] - price[columns]
            torch.testing.assert_close(expected, gain)
            assert float(price.sum() - price[columns].sum()) < 1e-12


def test_at_central_prices_everybody_who_chooses_freely_gets_it(generator: torch.Generator) -> None:
    preferences = torch.rand(30, 8, 4, generator=generator, dtype=torch.float64) ** 3
    features = torch.rand(8, 4, generator=generator, dtype=torch.float64)
    market = markets.Market(features, markets.equilibrium_prices(preferences @ features.T), preferences)
    torch.testing.assert_close(market.welfare(), market.optimum())
    assert float(markets.congestion(market.choices()).sum()) == 0


def test_choices_under_masks_are_those_of_a_loop(generator: torch.Generator) -> None:
    market = _drawn(generator, 3)
    masks = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64)
    choices, welfare = market.choices(masks[:, None]), market.welfare(masks[:, None])
    assert choices.shape == (16, 3, 6, 6)
    for z, mask in enumerate(masks):
        for b in range(3):
            wanted: dict[int, list[float]] = {}
            for i in range(6):
                seen = (market.preferences[b, i] * mask * market.features).sum(-1) - market.prices[b]
                best = int(seen.argmax()) if float(seen.max()) > 0 else 5
                assert int(choices[z, b, i].argmax()) == best
                if best < 5:
                    wanted.setdefault(best, []).append(float(market.preferences[b, i] @ market.features[best]))
            expected = sum(sum(worths) / len(worths) for worths in wanted.values())
            assert abs(float(welfare[z, b]) - expected) < 1e-12
            surplus = sum(len(worths) - 1 for worths in wanted.values())
            assert float(markets.congestion(choices[z, b]).sum()) == surplus


def test_lots_bring_the_expected_welfare(generator: torch.Generator) -> None:
    market = _drawn(generator)
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    choices = market.choices(mask)
    values = torch.cat([market.values(), torch.zeros(6, 1, dtype=torch.float64)], -1)
    drawn = market.allocate(choices.expand(4000, 6, 6), generator)
    assert bool((drawn[(drawn >= 0).any(-1)].amax(-1) < 5).all())
    for item in range(5):
        assert int((drawn == item).sum(-1).max()) == int(choices[:, item].sum() > 0)
    welfare = torch.gather(values.expand(4000, 6, 6), -1, drawn.remainder(6).unsqueeze(-1)).sum((-2, -1))
    error = float(welfare.std()) / 4000**0.5
    assert abs(float(welfare.mean() - market.welfare(mask))) <= 4 * error + 1e-12


def test_soft_choices_tend_to_the_choice(generator: torch.Generator) -> None:
    market = _drawn(generator, 2)
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(market.choices(mask, temperature=1e-6), market.choices(mask))


def _planted(generator: torch.Generator) -> tuple[markets.ChoiceModel, Tensor, Tensor, Tensor, Tensor]:
    market = _drawn(generator, 40)
    consumers = torch.rand(40, 6, 2, generator=generator, dtype=torch.float64)
    tastes = torch.rand(2, 4, generator=generator, dtype=torch.float64)
    masks = (torch.rand(40, 4, generator=generator, dtype=torch.float64) < 0.7).double()
    prices = 0.5 * market.prices
    chosen = markets.Market(market.features, prices, consumers @ tastes).choices(masks).argmax(-1)
    model = markets.ChoiceModel(market.features, 2, temperature=0.02, generator=generator)
    return model, consumers, prices, masks, chosen


def test_a_model_learns_what_is_chosen(generator: torch.Generator) -> None:
    model, *log = _planted(generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(200):
        optimizer.zero_grad()
        model.loss(*log).backward()
        optimizer.step()
    consumers, prices, masks, chosen = log
    assert float((model(consumers, prices, masks).argmax(-1) == chosen).double().mean()) > 0.9
    learned = model.market(consumers, prices).choices(masks).argmax(-1)
    assert torch.equal(learned, model(consumers, prices, masks).argmax(-1))


@pytest.mark.usefixtures("without_shape_checks")
def test_arguments_are_refused_by_name(generator: torch.Generator) -> None:
    features, prices, preferences = torch.rand(3, 2), torch.rand(4, 3), torch.rand(4, 5, 2)
    with pytest.raises(ValueError, match="prices must be >= 0"):
        markets.Market(features, -prices, preferences)
    with pytest.raises(ValueError, match=r"prices must have shape \(..., 3\), got \(4, 2\)"):
        markets.Market(features, prices[:, :2], preferences)
    with pytest.raises(ValueError, match=r"preferences must have shape \(..., consumers, 2\)"):
        markets.Market(features, prices, preferences[..., :1])
    with pytest.raises(ValueError, match=r"mask must have shape \(..., 2\)"):
        markets.Market(features, prices, preferences).welfare(torch.ones(3))
    model, *log = _planted(generator)
    with pytest.raises(ValueError, match=r"chosen must be in 0..5 \(5 for none\), got 0..6"):
        model.loss(*log[:3], log[3].clamp(max=5).index_fill(1, torch.tensor([0]), 6))
    with pytest.raises(TypeError, match="chosen must hold integers"):
        model.loss(*log[:3], log[3].double())
