"""The front door for users of scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import sklearn.base
import torch

from pullback import causal


def _samples(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    graph = causal.random_dag(5, 6, generator=g)
    weights = causal.random_weights(graph, generator=g).double()
    return graph != 0, causal.LinearSCM(weights).rsample(2000, generator=g)


@pytest.mark.parametrize("method", ["swaps", "dagma", "notears", "cosmo"])
def test_every_method_finds_a_planted_graph_from_arrays_and_tensors(method: str) -> None:
    graph, x = _samples()
    options: dict[str, object] = {"cosmo": {"iterations": 1000, "lr": 3e-2}, "notears": {"penalty": 0.01}}.get(
        method, {}
    )
    if method in ("swaps", "cosmo"):
        options["generator"] = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        fitted = causal.StructureEstimator(method, **options).fit(x.numpy())
    assert np.array_equal(fitted.adjacency_, graph.numpy())
    place = fitted.order_.argsort()
    assert all(place[i] < place[j] for i, j in np.argwhere(fitted.adjacency_))
    assert fitted.n_features_in_ == 5


def test_integers_are_numbers_in_tensors_as_in_arrays() -> None:
    counts = torch.randint(9, (60, 3), generator=torch.Generator().manual_seed(0))
    one, other = (causal.StructureEstimator("order", order=torch.arange(3)).fit(x) for x in (counts, counts.numpy()))
    assert np.array_equal(one.weights_, other.weights_)


def test_an_order_that_the_variances_give_away_is_warned_of() -> None:
    chain = torch.diag(torch.full((3,), 2.0, dtype=torch.float64), 1)
    x = causal.LinearSCM(chain).rsample(500, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"100% of the paths .* standardise=True"):
        fitted = causal.StructureEstimator().fit(x)
    assert fitted.varsortability_ == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = causal.StructureEstimator(standardise=True).fit(x)
    assert fitted.varsortability_ == 0.5


def test_it_is_cloned_and_changed_as_estimators_are() -> None:
    one = causal.StructureEstimator("dagma", threshold=0.2, penalty=0.01)
    other = sklearn.base.clone(one)
    assert other is not one
    assert other.get_params() == {"method": "dagma", "threshold": 0.2, "standardise": False, "penalty": 0.01}
    assert other.set_params(penalty=0.5, threshold=0.1).options == {"penalty": 0.5}
    assert one.options == {"penalty": 0.01}
    assert repr(other) == "StructureEstimator(method='dagma', threshold=0.1, standardise=False, penalty=0.5)"


def test_bad_arguments_are_refused_when_fitted() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.raises(ValueError, match="did you mean 'dagma'"):
        causal.StructureEstimator("dagmma").fit(x)
    with pytest.raises(ValueError, match="threshold must be >= 0"):
        causal.StructureEstimator(threshold=-1.0).fit(x)
    with pytest.raises(ValueError, match=r"X must have shape \(n, d\), got \(2, 20, 3\)"):
        causal.StructureEstimator().fit(np.stack([x, x]))
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        causal.StructureEstimator().fit(x)
