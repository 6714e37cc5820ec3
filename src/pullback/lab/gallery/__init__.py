"""The gallery: pages from the results store, as a static site (:func:`build`) or rendered by the local server."""

from __future__ import annotations

from pullback.lab.gallery.pages import Pages, assets
from pullback.lab.gallery.site import build
from pullback.lab.gallery.store import Entry, Store, artifact_files

__all__ = ["Entry", "Pages", "Store", "artifact_files", "assets", "build"]
