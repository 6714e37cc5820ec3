"""Tables: features and a target, from scikit-learn; fairness and survival tables column by column."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from pullback.core.checks import check_choice
from pullback.core.shapes import Float, Shaped, Tensor
from pullback.data.cache import DataMissingError, load

__all__ = [
    "Columns",
    "Table",
    "autompg",
    "boston",
    "breast_cancer",
    "diabetes",
    "fairness",
    "letters",
    "liver",
    "survival",
    "virtual_patients",
    "weather",
    "wine",
]


class Table(NamedTuple):
    """Rows of measurements and what is to be predicted.

    Attributes:
        features: ``[n, d]`` in their own units, not standardised.
        target: ``[n]`` int64 classes, or a floating quantity.
        feature_names: names of the ``d`` columns.
        target_names: names of the classes; the name of the quantity for a regression.
    """

    features: Float[Tensor, "n d"]
    target: Shaped[Tensor, "n"]
    feature_names: tuple[str, ...]
    target_names: tuple[str, ...]


def wine(*, dtype: torch.dtype = torch.float32) -> Table:
    """Return UCI wine: 178 wines, 13 chemical measurements, 3 cultivars.

    Args:
        dtype: floating type of the features.

    Raises:
        DataMissingError: scikit-learn is not installed.
    """
    raw = _sklearn("wine")
    names = tuple(str(name) for name in raw.target_names)
    return _classes(raw, names, dtype)


def breast_cancer(*, dtype: torch.dtype = torch.float32) -> Table:
    """Return Wisconsin breast cancer: 569 tumours, 30 measurements of their cell nuclei, 0 malignant and 1 benign.

    Args:
        dtype: floating type of the features.

    Raises:
        DataMissingError: scikit-learn is not installed.
    """
    raw = _sklearn("breast_cancer")
    names = tuple(str(name) for name in raw.target_names)
    return _classes(raw, names, dtype)


def diabetes(*, dtype: torch.dtype = torch.float32) -> Table:
    """Return diabetes progression: 442 patients, 10 baseline measurements, disease progression after one year.

    The features are scikit-learn's: centred, each column with sum of squares 1. The target is 25 to 346, no unit.

    Args:
        dtype: floating type of the features and the target.

    Raises:
        DataMissingError: scikit-learn is not installed.
    """
    raw = _sklearn("diabetes")
    names = tuple(str(name) for name in raw.feature_names)
    target = torch.from_numpy(raw.target).to(dtype)
    return Table(torch.from_numpy(raw.data).to(dtype), target, names, ("disease progression",))


def autompg(*, dtype: torch.dtype = torch.float32) -> Table:
    """Return Auto MPG: 392 cars of 1970 to 1982, 7 properties, miles per gallon.

    Args:
        dtype: floating type of the features and the target.

    Raises:
        DataMissingError: the set was not fetched.

    References:
        Quinlan (1993), Combining instance-based and model-based learning.
    """
    names = "cylinders displacement horsepower weight acceleration year origin"
    return _quantities("autompg", tuple(names.split()), "miles per gallon", dtype)


def boston(*, dtype: torch.dtype = torch.float32) -> Table:
    """Return Boston housing: 506 tracts of 1970, 13 properties, the median value of a home in 1 000 dollars.

    The values are cut off at 50. One column, ``B``, was made from the share of black inhabitants on an assumption
    that its authors never tested: use the table to compare methods, not to learn about homes.

    Args:
        dtype: floating type of the features and the target.

    Raises:
        DataMissingError: the set was not fetched.

    References:
        Harrison, Rubinfeld (1978), Hedonic housing prices and the demand for clean air.
    """
    names = "CRIM ZN INDUS CHAS NOX RM AGE DIS RAD TAX PTRATIO B LSTAT"
    return _quantities("boston", tuple(names.split()), "median value", dtype)


def letters(*, dtype: torch.dtype = torch.float32) -> Table:
    """Return UCI letter recognition: 20 000 printed capitals, 16 measurements of their pixels, 26 classes.

    The measurements are whole numbers from 0 to 15: box, pixels in it, their means, moments and
    edges. The last 4 000 rows are the customary test set.

    Args:
        dtype: floating type of the features.

    Raises:
        DataMissingError: the set was not fetched.

    References:
        Frey, Slate (1991), Letter recognition using Holland-style adaptive classifiers.
    """
    stored = load("letters")
    names = "x-box y-box width high onpix x-bar y-bar x2bar y2bar xybar x2ybr xy2br x-ege xegvy y-ege yegvx"
    target = torch.from_numpy(stored["labels"]).long()
    classes = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    return Table(torch.from_numpy(stored["features"]).to(dtype), target, tuple(names.split()), classes)


class Columns(NamedTuple):
    """A table as it is in its file.

    Attributes:
        values: ``[n, d]`` float64; NaN where a cell is empty; a column of words holds their index in ``words``.
        names: of the ``d`` columns.
        words: column name to its words, for columns of words.
    """

    values: Float[Tensor, "n d"]
    names: tuple[str, ...]
    words: dict[str, tuple[str, ...]]

    def column(self, name: str) -> Float[Tensor, "n"]:
        """Return one column.

        Raises:
            ValueError: no column has that name.
        """
        check_choice("name", name, self.names)
        return self.values[:, self.names.index(name)]


def fairness(name: str) -> Columns:
    """Return ``"adult"`` (48 842 x 106 one-hot), ``"compas"`` (6 167 rows) or ``"crime"`` (1 993 rows).

    Raises:
        DataMissingError: the set was not fetched.
        ValueError: ``name`` is unknown.
    """
    return _columns("fairness", name)


def survival(name: str) -> Columns:
    """Return a survival table: ``"rossi"``, ``"gbsg2"``, ``"lung"``, ``"ACTG175"``, ``"stanford_heart"`` or
    ``"kidney_transplant"``.

    Raises:
        DataMissingError: the set was not fetched.
        ValueError: ``name`` is unknown.
    """
    return _columns("survival", name)


def liver() -> Columns:
    """Return the visits of 312 patients with primary biliary cirrhosis, a line a visit, in order of time (pbc2).

    Half of them were given D-penicillamine by lot (``drug``), which does not help. ``id`` numbers patients, ``years``
    is the time to the end of observation and ``status`` what ended it (alive, dead, transplanted), ``year`` the time
    of the visit since the first; then what was found: ``ascites``, ``hepatomegaly``, ``spiders``, ``edema`` and
    ``histologic`` (stage 1 to 4), ``serBilir``, ``serChol``, ``albumin``, ``alkaline``, ``SGOT``, ``platelets``,
    ``prothrombin``, with NaN where it was not taken.

    Raises:
        DataMissingError: the set was not fetched.

    References:
        Murtaugh et al. (1994), Primary biliary cirrhosis: prediction of short-term survival, Hepatology 20.
    """
    return _columns("liver", "visits")


def virtual_patients() -> Columns:
    """Return the 30 virtual patients with type 1 diabetes of the UVA/Padova simulator of 2008, a line a patient.

    ``Name`` is their name (``adolescent#001``, ``adult#...``, ``child#...``), ``BW`` the weight (kg), ``Gb`` and ``Ib``
    basal glucose (mg/dl) and insulin (pmol/l), ``u2ss`` the infusion that keeps them (pmol/kg/min), ``Vg`` the volume
    of glucose (dl/kg), the others constants of the simulator's 13 equations under its names.

    Raises:
        DataMissingError: the set was not fetched.

    References:
        Dalla Man, Rizza, Cobelli (2007), Meal simulation model of the glucose-insulin system, IEEE TBME 54.
    """
    return _columns("glucose", "patients")


def weather(station: str = "sand_point") -> Columns:
    """Return the 8 760 hours of a typical meteorological year at ``"sand_point"`` (Alaska) or ``"greensboro"``.

    Each month is that of a real year which was typical for the station. Columns: ``month``, ``day``, ``hour`` (1 to
    24), ``temperature`` and ``dew point`` (degrees Celsius), ``humidity`` (%), ``pressure`` (mbar), ``wind direction``
    (degrees from north), ``wind speed`` (m/s), ``irradiance`` (W/m^2), and ``wind measured``: 0 where the wind was
    interpolated between measurements (a third of the hours at Sand Point).

    Raises:
        DataMissingError: the set was not fetched.
        ValueError: ``station`` is unknown.

    References:
        Wilcox, Marion (2008), Users manual for TMY3 data sets.
    """
    return _columns("weather", station)


def _columns(source: str, name: str) -> Columns:
    stored = load(source)
    check_choice("name", name, sorted({key.partition("/")[0] for key in stored}))
    words = {
        key.removeprefix(f"{name}/words "): tuple(str(word) for word in value)
        for key, value in stored.items()
        if key.startswith(f"{name}/words ")
    }
    return Columns(torch.from_numpy(stored[f"{name}/values"]), tuple(str(c) for c in stored[f"{name}/columns"]), words)


def _quantities(name: str, columns: tuple[str, ...], target: str, dtype: torch.dtype) -> Table:
    values = torch.from_numpy(load("regression")[name]).to(dtype)
    return Table(values[:, :-1], values[:, -1], columns, (target,))


def _sklearn(name: str) -> Any:
    try:
        from sklearn import datasets
    except ModuleNotFoundError:
        raise DataMissingError(name, "pip install 'pullback[lab]'") from None
    return getattr(datasets, f"load_{name}")()


def _classes(raw: Any, names: tuple[str, ...], dtype: torch.dtype) -> Table:
    features = tuple(str(name) for name in raw.feature_names)
    return Table(torch.from_numpy(raw.data).to(dtype), torch.from_numpy(raw.target).long(), features, names)
