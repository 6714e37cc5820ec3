"""Markets with a gradient: auctions and bids that learn their equilibrium; items, prices, choices and congestion."""

from __future__ import annotations

from pullback.markets.auction_game import (
    AuctionGame,
    BestResponseGap,
    BidNetwork,
    best_response_gap,
    first_price_equilibrium,
)
from pullback.markets.auctions import Outcome, first_price, second_price, smooth_allocation, uniform_price
from pullback.markets.choice_model import ChoiceModel
from pullback.markets.matching import Market, congestion, equilibrium_prices, welfare_proxy
from pullback.markets.self_play import SelfPlay

__all__ = [
    "AuctionGame",
    "BestResponseGap",
    "BidNetwork",
    "ChoiceModel",
    "Market",
    "Outcome",
    "SelfPlay",
    "best_response_gap",
    "congestion",
    "equilibrium_prices",
    "first_price",
    "first_price_equilibrium",
    "second_price",
    "smooth_allocation",
    "uniform_price",
    "welfare_proxy",
]
