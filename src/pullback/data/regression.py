"""Eight real tables with a quantity to predict, for studies over data sets."""

from __future__ import annotations

import math

import torch

from pullback.core.shapes import Tensor
from pullback.data.networks import sachs
from pullback.data.tables import Columns, Table, autompg, boston, diabetes, fairness, survival, weather

__all__ = ["regression_tables"]

_LEFT_OUT = ("communityname", "fold", "ViolentCrimesPerPop", ">0.06black", "high_crime")
_BASELINE = "age wtkg hemo homo drugs karnof oprior z30 zprior preanti race gender str2 symptom treat cd40 cd80 arms"


def regression_tables() -> dict[str, Table]:
    """Return eight tables in float64, by name, nothing standardised:

    ``"diabetes"`` (442 rows: progression), ``"cars"`` (392: miles per gallon), ``"homes"`` (506: value), ``"crime"`` (1
    993 communities: violent crimes), ``"wind"`` (Sand Point: its speed three hours later), ``"temperature"``
    (Greensboro: 24 hours later), ``"CD4 cells"`` (2 139 patients of trial ACTG 175: their count after 20 weeks),
    ``"Akt"`` (7 466 cells: log phosphorylated Akt from ten other proteins). The two of weather have a row an hour, of
    which neighbours are alike.

    Raises:
        DataMissingError: a set was not fetched.

    Example:
        >>> {name: len(table.target) for name, table in regression_tables().items()}["cars"]
        392
    """
    found = {
        "diabetes": diabetes(dtype=torch.float64),
        "cars": autompg(dtype=torch.float64),
        "homes": boston(dtype=torch.float64),
    }
    crime = fairness("crime")
    known = [name for name in crime.names if name not in _LEFT_OUT and not name.startswith("state_")]
    found["crime"] = _table(crime, known, "ViolentCrimesPerPop")
    found["wind"] = _forecast(weather("sand_point"), "wind speed", 3)
    found["temperature"] = _forecast(weather("greensboro"), "temperature", 24)
    found["CD4 cells"] = _table(survival("ACTG175"), _BASELINE.split(), "cd420")
    proteins = sachs()
    columns = Columns(proteins.observations.double().log(), proteins.names, {})
    found["Akt"] = _table(columns, [name for name in proteins.names if name != "Akt"], "Akt")
    return found


def _table(columns: Columns, known: list[str], target: str) -> Table:
    features = torch.stack([columns.column(name) for name in known], -1)
    return Table(features, columns.column(target), tuple(known), (target,))


def _forecast(year: Columns, target: str, ahead: int) -> Table:
    """Return the weather now and six hours ago, and a quantity some hours later."""
    columns: dict[str, Tensor] = {}
    for name, period in {"hour": 24.0, "month": 12.0, "wind direction": 360.0}.items():
        angle = year.column(name) * 2 * math.pi / period
        columns |= {f"sin {name}": angle.sin(), f"cos {name}": angle.cos()}
    for name in ("temperature", "dew point", "humidity", "pressure", "wind speed", "irradiance"):
        columns[name] = year.column(name)
    now = torch.stack(list(columns.values()), -1)
    features = torch.cat([now[6:-ahead], now[: -6 - ahead]], -1)
    names = (*columns, *(f"{name} six hours ago" for name in columns))
    return Table(features, year.column(target)[6 + ahead :], names, (f"{target} in {ahead} h",))
