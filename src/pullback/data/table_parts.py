"""Many small regression problems, cut from real tables: for methods that learn from tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch

from pullback.core.checks import check_choice, check_integer
from pullback.core.shapes import Float, Tensor
from pullback.data.images import digits
from pullback.data.tables import autompg, boston, breast_cancer, diabetes, fairness, letters, weather, wine

__all__ = ["TablePart", "table_parts"]

_TARGETS = {
    "crime": ("high_crime", "householdsize", "racepctblack", "population"),
    "weather": ("temperature", "humidity", "wind speed", "irradiance"),
}


class TablePart(NamedTuple):
    """A small table.

    Attributes:
        name: of the table and the target.
        features: ``[n, d]`` float64, columns with mean 0 and standard deviation 1.
        target: ``[n]`` likewise.
    """

    name: str
    features: Float[Tensor, "n d"]
    target: Float[Tensor, "n"]


def table_parts(
    split: Literal["train", "test"], *, rows: tuple[int, int] = (40, 100), generator: torch.Generator
) -> Iterator[TablePart]:
    """Yield random rows and columns of real tables, one table after the other, without end.

    For training: digits, one against the others, and letters, one against its neighbour; the crime and weather tables,
    four columns of each as targets; the consumption of cars, the price of homes. For testing: wines, one cultivar
    against the others, tumours, diabetes.

    Args:
        split: ``"train"`` or ``"test"``; no table is in both.
        rows: smallest and largest number of rows; at least three columns are taken where there are as many.
        generator: of the choices.

    Raises:
        DataMissingError: a table was not fetched.
        ValueError: ``split`` is unknown, or ``rows`` is no range.
    """
    check_choice("split", split, ("train", "test"))
    fewest = check_integer("rows[0]", rows[0], 3)
    most = check_integer("rows[1]", rows[1], fewest)
    tables = _known() if split == "train" else _unseen()
    while True:
        for name, (features, target) in tables.items():
            n = int(torch.randint(fewest, most + 1, (), generator=generator))
            chosen = torch.randperm(len(target), generator=generator)[:n]
            x, y = features[chosen].double(), target[chosen].double()
            x = x[:, x.std(0) > 0]
            d = int(torch.randint(min(3, x.shape[1]), x.shape[1] + 1, (), generator=generator))
            x = x[:, torch.randperm(x.shape[1], generator=generator)[:d]]
            if d and y.std() > 0:
                yield TablePart(name, (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std())


def _known() -> dict[str, tuple[Tensor, Tensor]]:
    images, capitals = digits(), letters()
    found = {f"digit {c}": (images.images.flatten(1), images.labels == c) for c in range(0, 10, 2)}
    for c in range(0, 25, 5):
        rows = (capitals.target == c) | (capitals.target == c + 1)
        found[f"letter {chr(65 + c)}"] = (capitals.features[rows], capitals.target[rows] == c)
    for name, table in (("crime", fairness("crime")), ("weather", weather("sand_point"))):
        complete = ~table.values.isnan().any(0)
        for target in _TARGETS[name]:
            kept = complete & torch.tensor([column != target for column in table.names])
            found[f"{name}: {target}"] = (table.values[:, kept], table.column(target))
    return found | {name: (table.features, table.target) for name, table in (("cars", autompg()), ("homes", boston()))}


def _unseen() -> dict[str, tuple[Tensor, Tensor]]:
    wines, tumours, patients = wine(), breast_cancer(), diabetes()
    found = {f"wine {c}": (wines.features, wines.target == c) for c in range(3)}
    others = {"tumours": tumours, "diabetes": patients}
    return found | {name: (table.features, table.target) for name, table in others.items()}
