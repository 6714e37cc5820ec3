"""Choosing which features of items a platform shows, so that consumers do not all want the same one.

Prices clear a market in which everything is known. Where a page shows k of d features, many consumers choose the same
item, one gets it and the others get none. What items are worth to whom is hidden from the platform; it knows prices and
past choices. A choice model learned from these gives soft choices under any mask, and a proxy of the welfare, prices of
what is chosen less the choices that end with nothing, has a gradient in the mask (Nahum, Noti, Parkes, Rosenfeld, ICLR
2024, arXiv 2306.10606).

Smaller than in the paper: ten features, so that all 252 masks of five can be tried and the best is known; one may as
well try the proxy of each, without a gradient, which a hundred features forbid. Twenty masks drawn from untrained
weights, of which the proxy takes the best, come more than half of the way. The items are real wines; consumers, their
tastes and hence the equilibrium prices are simulated (the paper has factors of MovieLens).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Annotated

import numpy as np
import torch
from sklearn.linear_model import lasso_path
from torch import Tensor

from pullback import data
from pullback.discrete import SubsetMask
from pullback.gradients import rank_correlation
from pullback.lab import Arm, Lab, above, at_least, at_most, system
from pullback.markets import ChoiceModel, Market, congestion, equilibrium_prices, welfare_proxy

FEATURES = 10
SHARE, LEFT = "share of the way from random to best", "consumers left without an item"


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    shown: Annotated[int, at_least(1), at_most(FEATURES - 1)] = 5
    """Features of the ten that a mask shows."""
    items: Annotated[int, at_least(2), at_most(178)] = 20
    """Items of a market, and consumers; the items are the same in all markets of a replicate."""
    markets: Annotated[int, at_least(1)] = 60
    """Markets in the log of past choices, and as many unseen ones."""
    tastes: Annotated[int, at_least(1)] = 6
    """Known features of a consumer."""
    tradeoff: Annotated[float, at_least(0), at_most(1)] = 0.75
    """Weight of what ends with nothing against what is selected; 1 - k / 2d."""
    temperature: Annotated[float, above(0)] = 0.01
    """Of soft choices; values are at most 1."""
    model_steps: Annotated[int, at_least(1)] = 300
    """Adam steps of the choice model."""
    mask_steps: Annotated[int, at_least(1)] = 150
    """Adam steps of a mask."""
    masks: Annotated[int, at_least(1)] = 20
    """Relaxed masks of a step; as many hard ones are tried at the end."""
    replicates: Annotated[int, at_least(1)] = 8
    """Worlds: items, tastes, consumers."""


@system(
    "decongestion-by-representation",
    family="implicit",
    title="Decongestion by Representation: Learning to Improve Economic Welfare in Marketplaces",
    paper="Nahum, Noti, Parkes, Rosenfeld, ICLR 2024, arXiv 2306.10606",
    config=Config,
    smoke={"shown": 2, "items": 5, "markets": 3, "model_steps": 3, "mask_steps": 3, "masks": 3, "replicates": 2},
    full={"items": 50, "markets": 400, "model_steps": 1000, "mask_steps": 600, "replicates": 20},
    data=("wine",),
    blocks=(
        "markets.Market",
        "markets.equilibrium_prices",
        "markets.ChoiceModel",
        "markets.welfare_proxy",
        "markets.congestion",
        "discrete.SubsetMask",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Learn from a log what consumers choose, then what to show them; compare with every other mask."""
    lab.data("UCI wine, 10 measurements of some of 178 wines", origin="real")
    lab.data("consumers, their tastes, equilibrium prices", origin="simulated")
    ours = lab.arm("learned mask")
    names = ("selection only", "price-predictive", "choice-predictive", "proxy of all masks")
    selection, priced, chosen, tried = (lab.arm(name, baseline=True) for name in names)
    names = ("untrained weights", "random masks", "best of all masks", "all features")
    untrained, random, best, full = (lab.arm(name, baseline=True) for name in names)
    masks = torch.tensor([[float(j in shown) for j in range(FEATURES)] for shown in _all(config.shown)])
    worlds = []
    for _ in lab.replicates(config.replicates):
        world = World(lab, config)
        model = world.learn(ours)
        seen = model.market(world.consumers[0], world.markets[0].prices)
        found = {
            arm.name: world.mask(arm, seen, tradeoff, lab.fork("mask"))
            for arm, tradeoff in ((ours, config.tradeoff), (selection, 0.0))
        }
        found[priced.name] = _largest(world.price_order(), config.shown)
        found[chosen.name] = _largest(seen.preferences.mean((0, 1)), config.shown)
        proxy = _proxy(config, seen, masks, config.tradeoff)
        found[tried.name] = masks[proxy.argmax()]
        unseen = world.markets[1]
        welfare, left = unseen.welfare(masks[:, None]).mean(1), _left(unseen, masks)
        share = (welfare - welfare.mean()) / (welfare.max() - welfare.mean())
        for arm in (ours, selection, priced, chosen, tried):
            at = int((masks == found[arm.name]).all(1).nonzero())
            arm.metric("welfare", welfare[at], better="higher")
            arm.metric(SHARE, share[at], better="higher")
            arm.metric(LEFT, left[at], better="lower")
        chance = _best_drawn(proxy, config.masks)
        untrained.metric("welfare", chance @ welfare, better="higher")
        untrained.metric(SHARE, chance @ share, better="higher")
        untrained.metric(LEFT, chance @ left, better="lower")
        random.metric("welfare", welfare.mean(), better="higher")
        random.metric(LEFT, left.mean(), better="lower")
        best.metric("welfare", welfare.max(), better="higher")
        full.metric("welfare", unseen.welfare().mean(), better="higher")
        full.metric("greatest welfare of any allocation", unseen.optimum().mean(), better="higher")
        proxies = torch.stack([_proxy(config, seen, masks, a) for a in (0.5, 0.0)], 1)
        ranks = rank_correlation(proxies, welfare)
        ours.metric("rank correlation of proxy and welfare", ranks[0], better="higher")
        selection.metric("rank correlation of proxy and welfare", ranks[1], better="higher")
        worlds.append((masks, found, welfare, left, proxies))
    lab.claim(
        "the learned mask covers at least 0.6 of the way from a random mask to the best of all",
        ours[SHARE] >= 0.6,
    )
    lab.claim(
        "its welfare is above those of selection alone, of masks that predict prices or choices, and of random ones",
        *(ours["welfare"] > arm["welfare"] for arm in (selection, priced, chosen, random)),
    )
    lab.claim(
        "its welfare is above that of untrained weights, of which the proxy chooses among as many drawn masks",
        ours["welfare"] > untrained["welfare"],
    )
    lab.claim(
        "it leaves fewer consumers without an item than the price-predictive mask and than random ones",
        *(ours[LEFT] < arm[LEFT] for arm in (priced, random)),
    )
    rank = "rank correlation of proxy and welfare"
    lab.claim(
        "over all masks the proxy at a = 1/2 has a rank correlation of 0.8 or more with the welfare, at least 0.15 "
        "above that of selection alone",
        ours[rank] >= 0.8,
        ours[rank] >= selection[rank] + 0.15,
    )
    lab.claim(
        "with all features shown the prices clear the market: the welfare is the greatest of any allocation, and above "
        "that of every mask",
        full["welfare"] >= 0.999 * full["greatest welfare of any allocation"],
        full["welfare"] > best["welfare"],
    )
    _draw(lab, [ours, selection, priced, chosen], *worlds[0])
    caption = "Expected values of what is allocated, mean over unseen markets; spread over worlds."
    lab.bars("welfare", LEFT, arms=[ours, selection, priced, chosen, tried, untrained, random], caption=caption)


class World:
    """Items, consumers and prices, and a log of what was chosen under random masks."""

    def __init__(self, lab: Lab, config: Config) -> None:
        self.config, self.stream = config, lab.fork("world")
        wines = data.wine().features[:, :FEATURES]
        wines = (wines - wines.amin(0)) / (wines.amax(0) - wines.amin(0))
        items = wines[torch.randperm(len(wines), generator=self.stream)[: config.items]]
        tastes = self._exponential(config.tastes, FEATURES)
        shares = self._exponential(2, config.markets, config.items, config.tastes) ** 2
        self.consumers = shares / shares.sum(-1, keepdim=True)  # of both halves, the log and the unseen one
        preferences = self.consumers @ tastes
        preferences = preferences / (preferences @ items.T).max()
        self.markets = [Market(items, equilibrium_prices(b @ items.T), b) for b in preferences]
        logits = torch.zeros(config.markets, FEATURES)
        shown = torch.rand(logits.shape, generator=self.stream).topk(config.shown).indices
        self.shown = logits.scatter(1, shown, 1.0)
        self.log = self.markets[0].choices(self.shown).argmax(-1)

    def _exponential(self, *shape: int) -> Tensor:
        return -torch.rand(shape, generator=self.stream).clamp(min=1e-6).log()

    def learn(self, arm: Arm) -> ChoiceModel:
        """Fit a model of choices to the log."""
        market = self.markets[0]
        model = ChoiceModel(
            market.features, self.config.tastes, temperature=self.config.temperature, generator=self.stream
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in arm.steps(self.config.model_steps, model, optimizer, name="choice model"):
            arm.descend(model.loss(self.consumers[0], market.prices, self.shown, self.log), optimizer, name="surprise")
        unseen = self.markets[1]
        told = model(self.consumers[1], unseen.prices, self.shown).argmax(-1)
        right = (told == unseen.choices(self.shown).argmax(-1)).double().mean()
        arm.metric("choices that the model foretells", 100 * right, better="higher", unit="%")
        return model.requires_grad_(False)

    def mask(self, arm: Arm, seen: Market, tradeoff: float, stream: torch.Generator) -> Tensor:
        """Learn a mask by the proxy of the markets as the model sees them; return the best that is drawn at the end."""
        config = self.config
        mask = SubsetMask(FEATURES, config.shown)
        optimizer = torch.optim.Adam(mask.parameters(), lr=0.02)
        for _ in arm.steps(config.mask_steps, mask, optimizer, stream, name="mask"):
            arm.descend(-_proxy(config, seen, mask(config.masks, generator=stream), tradeoff).mean(), optimizer)
        drawn = mask.draw(config.masks, generator=stream).detach()
        return drawn[_proxy(config, seen, drawn, tradeoff).argmax()]

    def price_order(self) -> Tensor:
        """Return how early each feature enters the path of the lasso for the prices."""
        market = self.markets[0]
        rows = np.tile(market.features.numpy(), (len(market.prices), 1))
        _, path, _ = lasso_path(rows, market.prices.flatten().numpy())
        return torch.from_numpy(((path != 0).cumsum(1) > 0).sum(1))


def _all(shown: int) -> list[tuple[int, ...]]:
    return list(combinations(range(FEATURES), shown))


def _largest(scores: Tensor, shown: int) -> Tensor:
    """Return the mask of the largest scores, of equal ones the first."""
    return torch.zeros(FEATURES).scatter(0, scores.sort(descending=True, stable=True).indices[:shown], 1.0)


def _proxy(config: Config, market: Market, masks: Tensor, tradeoff: float) -> Tensor:
    """Return the proxy of each mask, mean over markets."""
    choices = market.choices(masks[:, None], temperature=config.temperature)
    return welfare_proxy(choices, market.prices, tradeoff=tradeoff).mean(1)


def _best_drawn(scores: Tensor, draws: int) -> Tensor:
    """Return the probability of each to have the highest score of as many as are drawn, all alike, with repetition."""
    ranks = scores.argsort().argsort().double()
    return (((ranks + 1) / len(scores)) ** draws - (ranks / len(scores)) ** draws).to(scores.dtype)


def _left(market: Market, masks: Tensor) -> Tensor:
    """Return how many consumers get nothing under each mask, mean over markets: too late, or nothing chosen."""
    choices = market.choices(masks[:, None])
    return (congestion(choices).sum(-1) + choices[..., -1].sum(-1)).mean(1)


def _draw(
    lab: Lab, arms: list[Arm], masks: Tensor, found: dict[str, Tensor], welfare: Tensor, left: Tensor, proxies: Tensor
) -> None:
    """Draw all masks of the first world: what they leave and bring, and what the proxies say of them."""
    figure, axes = lab.subplots(1, 3, figsize=(14, 4.2), squeeze=False)
    grey = {"color": "0.7", "s": 14}
    axes[0, 0].scatter(left, welfare, **grey, label="all 252 masks" if len(masks) == 252 else "all masks")
    for arm, marker, size in zip(arms, "osD^", (200, 70, 70, 70), strict=True):
        at, face = int((masks == found[arm.name]).all(1).nonzero()), "none" if size > 70 else arm.colour
        point = {"edgecolors": arm.colour, "facecolors": face, "linewidths": 2, "marker": marker, "s": size}
        axes[0, 0].scatter(left[at], welfare[at], **point, label=arm.name)
    axes[0, 0].set(xlabel=LEFT, ylabel="welfare")
    axes[0, 0].legend(fontsize=8, loc="upper right")
    for axis, values, title in zip(axes[0, 1:], proxies.T, ("proxy, a = 1/2", "selection alone, a = 0"), strict=True):
        axis.scatter(values, welfare, **grey)
        axis.set(xlabel=title, ylabel="welfare")
    caption = (
        "The first world: what every mask leaves and brings in unseen markets, and what the log lets one foretell."
    )
    lab.figure("masks", figure, caption)
