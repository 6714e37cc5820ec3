"""Embedded data sets: loaders with typed results; :func:`fetch` brings what is not there, a loader never downloads."""

from __future__ import annotations

from pullback.data.archives import DataFetchError
from pullback.data.cache import DataMissingError, cache_root, is_present, load, missing, origin
from pullback.data.fetching import Entry, catalogue, fetch
from pullback.data.images import LabelledImages, digits, mnist
from pullback.data.networks import GaussianNetwork, Sachs, ecoli70, sachs
from pullback.data.numbers import Numbers, digit_numbers
from pullback.data.sources import SOURCES, Member, Package, Source
from pullback.data.stereo import StereoPair, motorcycle
from pullback.data.tables import Table, breast_cancer, diabetes, wine

__all__ = [
    "SOURCES",
    "DataFetchError",
    "DataMissingError",
    "Entry",
    "GaussianNetwork",
    "LabelledImages",
    "Member",
    "Numbers",
    "Package",
    "Sachs",
    "Source",
    "StereoPair",
    "Table",
    "breast_cancer",
    "cache_root",
    "catalogue",
    "diabetes",
    "digit_numbers",
    "digits",
    "ecoli70",
    "fetch",
    "is_present",
    "load",
    "missing",
    "mnist",
    "motorcycle",
    "origin",
    "sachs",
    "wine",
]
