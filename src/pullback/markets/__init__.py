"""Markets with a gradient: auctions, bid functions that learn their equilibrium, exploitability."""

from __future__ import annotations

from pullback.markets.auction_game import (
    AuctionGame,
    BestResponseGap,
    BidNetwork,
    best_response_gap,
    first_price_equilibrium,
)
from pullback.markets.auctions import Outcome, first_price, second_price, smooth_allocation, uniform_price
from pullback.markets.self_play import SelfPlay

__all__ = [
    "AuctionGame",
    "BestResponseGap",
    "BidNetwork",
    "Outcome",
    "SelfPlay",
    "best_response_gap",
    "first_price",
    "first_price_equilibrium",
    "second_price",
    "smooth_allocation",
    "uniform_price",
]
