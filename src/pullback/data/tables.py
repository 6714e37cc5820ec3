"""Tables: features and a target, from scikit-learn."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from pullback.core.shapes import Float, Shaped, Tensor
from pullback.data.cache import DataMissingError

__all__ = ["Table", "breast_cancer", "diabetes", "wine"]


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


def _sklearn(name: str) -> Any:
    try:
        from sklearn import datasets
    except ModuleNotFoundError:
        raise DataMissingError(name, "pip install 'pullback[lab]'") from None
    return getattr(datasets, f"load_{name}")()


def _classes(raw: Any, names: tuple[str, ...], dtype: torch.dtype) -> Table:
    features = tuple(str(name) for name in raw.feature_names)
    return Table(torch.from_numpy(raw.data).to(dtype), torch.from_numpy(raw.target).long(), features, names)
