"""The gallery: pages from the results store, as a static site (:func:`build`) or rendered by the local server."""

from __future__ import annotations

from pullback.lab.gallery.pages import Pages
from pullback.lab.gallery.site import build
from pullback.lab.gallery.store import Entry, Store

__all__ = ["Entry", "Pages", "Store", "build"]
