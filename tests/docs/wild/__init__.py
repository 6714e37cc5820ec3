"""The defects of docs/defects.md, each as a program of a few lines with its mended twin."""

from tests.docs.wild import cuts, quantisers, singular
from tests.docs.wild.defect import Defect

DEFECTS: tuple[Defect, ...] = (*cuts.DEFECTS, *quantisers.DEFECTS, *singular.DEFECTS)
