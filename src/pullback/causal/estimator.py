"""The structure learners behind ``fit(X)`` and ``adjacency_``, for arrays, data frames and tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch

from pullback.causal.cosmo import cosmo
from pullback.causal.dagma import dagma
from pullback.causal.distances import varsortability
from pullback.causal.least_squares import second_moments
from pullback.causal.notears import notears
from pullback.causal.order_search import order_search
from pullback.causal.structure import StructureResult
from pullback.causal.swaps import topological_swaps
from pullback.core.checks import check_choice, check_scalar
from pullback.core.shapes import Tensor

__all__ = ["StructureEstimator"]

METHODS: dict[str, Callable[..., StructureResult]] = {
    "swaps": topological_swaps,
    "order": order_search,
    "dagma": dagma,
    "notears": notears,
    "cosmo": cosmo,
}

READ_OFF = 0.95
"""Varsortability from which sorting by variance alone would order nearly all causes before their effects."""


class StructureEstimator:
    """Learn a causal graph as scikit-learn estimators are fitted.

    Args:
        method: ``"swaps"`` (:func:`topological_swaps`), ``"order"`` (:func:`order_search`, the fastest),
            ``"dagma"``, ``"notears"`` or ``"cosmo"``.
        threshold: ``|weight|`` above it is an arc, >= 0, in the unit of the weights.
        standardise: whether to divide every column by its standard deviation. As a check: what the learner still finds
            then was not read off the variances.
        options: of the method.

    Attributes:
        adjacency_: ``[d, d]`` booleans, ``[i, j]`` the arc ``i -> j``.
        weights_: ``[d, d]`` float64.
        order_: ``[d]`` nodes, causes first.
        varsortability_: of the data and the learned graph, in [0, 1]; NaN without an arc.
        result_: the method's :class:`StructureResult`.
        n_features_in_: number of columns.
        feature_names_in_: names of the columns, of a data frame.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> cause = rng.normal(size=500)
        >>> x = np.stack([0.5 * cause + 0.5 * rng.normal(size=500), cause], 1)
        >>> StructureEstimator("swaps", standardise=True, restarts=2).fit(x).adjacency_.sum()
        np.int64(1)

    References:
        Reisach, Seiler, Weichwald (2021), Beware of the Simulated DAG!, for the check of the variances.
    """

    def __init__(
        self, method: str = "swaps", *, threshold: float = 0.3, standardise: bool = False, **options: Any
    ) -> None:
        self.method = method
        self.threshold = threshold
        self.standardise = standardise
        self.options = options

    def fit(self, X: Any, y: None = None) -> Self:
        """Learn the graph of samples ``[n, d]``: an array, a data frame or a tensor of numbers.

        Raises:
            ValueError: an unknown method, bad data (see :func:`second_moments`), bad options.
            ConvergenceError: the thresholded graph has a cycle (it is named).

        Warns:
            UserWarning: sorting the columns by variance would give the same order, so that the answer holds for the
                scale of the data alone; fit again with ``standardise=True``.
        """
        check_choice("method", self.method, METHODS)
        check_scalar("threshold", self.threshold, zero=True)
        data = X.detach() if isinstance(X, Tensor) else torch.from_numpy(np.array(X, dtype=np.float64))
        data = data.double()
        if data.ndim != 2:
            raise ValueError(f"X must have shape (n, d), got {tuple(data.shape)}")
        moments = second_moments(data)
        if self.standardise:
            data = (data - data.mean(0)) / moments.diagonal().sqrt()
            moments = second_moments(data)
        self.result_ = METHODS[self.method](data, **self.options)
        graph = self.result_.graph(self.threshold)
        self.adjacency_ = graph.numpy(force=True)
        self.weights_ = self.result_.weights.numpy(force=True)
        self.order_ = self.result_.order.numpy(force=True)
        self.varsortability_ = varsortability(moments, graph).item()
        self.n_features_in_ = data.shape[-1]
        if hasattr(X, "columns"):
            self.feature_names_in_ = np.asarray(X.columns, dtype=object)
        if self.varsortability_ >= READ_OFF:
            warnings.warn(
                f"the variances grow along {self.varsortability_:.0%} of the paths of the learned graph: sorting the "
                "columns by variance would give nearly the same order; fit again with standardise=True",
                UserWarning,
                stacklevel=2,
            )
        return self

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the arguments, as scikit-learn asks for them."""
        return {
            "method": self.method,
            "threshold": self.threshold,
            "standardise": self.standardise,
            **self.options,
        }

    def set_params(self, **params: Any) -> Self:
        """Change arguments."""
        for name, value in params.items():
            if name in ("method", "threshold", "standardise"):
                setattr(self, name, value)
            else:
                self.options[name] = value
        return self

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"StructureEstimator({given})"
