"""Every system ships a reference run, so that a gallery shows something before anything was run."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pullback.lab.gallery.references import LARGEST, pictures, references
from pullback.lab.registry import load, slugs


def test_there_is_one_of_every_system_and_of_nothing_else() -> None:
    shipped = {slug for slug in slugs() if load(slug).run.__module__.startswith("pullback.systems.")}
    assert set(references()) == shipped, "make reference keeps a run of default scale"


@pytest.mark.parametrize("slug", references())
def test_it_is_a_whole_run_with_a_picture(slug: str) -> None:
    kept = references()[slug]
    assert (kept.slug, kept.scale) == (slug, "default")
    assert kept.verdicts["held"] > 0
    assert kept.verdicts["not judged"] == 0, "a default run judges every claim"
    content = pictures()[kept.file]
    assert len(content) <= LARGEST
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "WEBP"
        assert min(image.size) >= 80
        assert np.asarray(image.convert("L")).std() > 5, "the picture is blank"
