"""Bayesian networks against enumeration of all values, and the files of real ones."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pullback import causal, data

_BIF = """network unknown { }
variable A { type discrete [ 2 ] { no, yes }; }
variable B { type discrete [ 3 ] { low, mid, high }; }
probability ( A ) { table 0.25, 0.75; }
probability ( B | A ) { (no) 0.2, 0.3, 0.5; (yes) 1.0, 0.0, 0.0; }"""


def _everything(network: causal.BayesianNetwork) -> Tensor:
    return torch.tensor(list(itertools.product(*(range(len(values)) for values in network.states.values()))))


def _shares(x: Tensor, everything: Tensor) -> Tensor:
    return (x.unsqueeze(1) == everything).all(-1).double().mean(0)


def test_files_are_read_and_incomplete_ones_refused() -> None:
    network = causal.BayesianNetwork.from_bif(_BIF)
    assert network.parents == {"A": [], "B": ["A"]}
    assert network.names == ("A", "B")
    assert network.tables["B"].tolist() == [[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]
    assert network.adjacency.tolist() == [[False, True], [False, False]]
    for old, new, message in (
        ("(yes) 1.0, 0.0, 0.0;", "", "table of B is incomplete"),
        ("0.25, 0.75", "0.25, 0.7", "table of A is incomplete or does not sum to 1"),
        ("( B | A )", "( B | C )", r"not declared: \['C'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            causal.BayesianNetwork.from_bif(_BIF.replace(old, new))


def test_bad_networks_are_refused_by_name() -> None:
    states, half = {"A": "01", "B": "01"}, torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match=r"table of B must have rows that sum to 1, got one that is 0\.1 off"):
        causal.BayesianNetwork(states, {"A": [], "B": []}, {"A": half, "B": torch.tensor([0.5, 0.6])})
    with pytest.raises(ValueError, match=r"table of B must have shape \(2, 2\)"):
        causal.BayesianNetwork(states, {"A": [], "B": ["A"]}, {"A": half, "B": half})
    with pytest.raises(ValueError, match="table of B must be >= 0"):
        causal.BayesianNetwork(states, {"A": [], "B": []}, {"A": half, "B": torch.tensor([1.5, -0.5])})
    with pytest.raises(ValueError, match=r"parents of B must be variables, got \['C'\]"):
        causal.BayesianNetwork(states, {"A": [], "B": ["C"]}, {"A": half, "B": half})
    with pytest.raises(ValueError, match=r"only one of the two has \['B'\]"):
        causal.BayesianNetwork(states, {"A": [], "B": []}, {"A": half})
    with pytest.raises(ValueError, match="cycle"):
        causal.BayesianNetwork(states, {"A": ["B"], "B": ["A"]}, {"A": half.expand(2, 2), "B": half.expand(2, 2)})
    network = causal.BayesianNetwork.from_bif(_BIF)
    with pytest.raises(ValueError, match=r"interventions\[1\] must be in 0\.\.2"):
        network.sample(3, interventions={1: 3})
    with pytest.raises(ValueError, match=r"a node of interventions must be in 0\.\.1"):
        network.sample(3, interventions={2: 0})
    with pytest.raises(ValueError, match=r"x of A must be in 0\.\.1"):
        network.log_prob(torch.tensor([2, 0]))


def test_samples_have_the_law_of_the_tables_also_under_interventions() -> None:
    g = torch.Generator().manual_seed(0)
    network = causal.random_bayesian_network(causal.random_dag(4, 5, generator=g), classes=3, generator=g)
    everything = _everything(network)
    law = network.log_prob(everything).exp()
    assert law.sum().item() == pytest.approx(1.0)
    x = network.sample(40_000, generator=g)
    assert (_shares(x, everything) - law).abs().max() < 4 * (0.25 / 40_000) ** 0.5
    values = torch.randint(3, (40_000,), generator=g)
    held = network.sample(40_000, interventions={1: values}, generator=g)
    assert torch.equal(held[:, 1], values)
    targets = torch.tensor([False, True, False, False])
    cut = network.log_prob(everything, targets=targets).exp() / 3  # the set node is uniform
    assert cut.sum().item() == pytest.approx(1.0)
    assert (_shares(held, everything) - cut).abs().max() < 4 * (0.25 / 40_000) ** 0.5
    assert network.sample(5, interventions={0: 2}, generator=g)[:, 0].tolist() == [2] * 5


def test_random_tables_depend_on_every_parent_and_on_nothing_else() -> None:
    g = torch.Generator().manual_seed(1)
    graph = torch.tensor([[0, 0, 1], [0, 0, 1], [0, 0, 0]])
    network = causal.random_bayesian_network(graph, generator=g)
    assert torch.equal(network.adjacency, graph.bool())
    table = network.tables["2"]
    assert (table[0] - table[1]).abs().max() > 0.02
    assert (table[:, 0] - table[:, 1]).abs().max() > 0.02
    logits = table.log().flatten(0, 1)
    contrast = logits - logits.mean(-1, keepdim=True)  # what a softmax keeps of them
    assert (contrast - contrast.mean(0)).square().mean().sqrt() <= 1.5
    assert all((t > 0.005).all() for t in network.tables.values())
    with pytest.raises(ValueError, match="cycle"):
        causal.random_bayesian_network(torch.ones(2, 2))


def test_asia_is_the_published_network() -> None:
    asia = data.bayesian_network("asia")
    assert set(asia.names) == {"asia", "tub", "smoke", "lung", "bronc", "either", "xray", "dysp"}
    assert int(asia.adjacency.sum()) == 8
    everything = _everything(asia)
    law = asia.log_prob(everything).exp()
    assert law.sum().item() == pytest.approx(1.0)
    lung = everything[:, asia.names.index("lung")] == list(asia.states["lung"]).index("yes")
    assert law[lung].sum().item() == pytest.approx(0.5 * 0.1 + 0.5 * 0.01)  # Lauritzen, Spiegelhalter (1988)
