"""Bayesian networks and data whose causal graph is known."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.causal import BayesianNetwork
from pullback.core.checks import check_choice, check_integer
from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.data.cache import load
from pullback.data.text_formats import split_strings

__all__ = ["GaussianNetwork", "GeneNetwork", "Sachs", "bayesian_network", "dream4", "ecoli70", "sachs"]


class Sachs(NamedTuple):
    """Flow cytometry of signalling proteins and the graph that biologists agree on.

    Attributes:
        observations: ``[7466, 11]`` float64 fluorescence, all experiments together in the order of the publication;
            skewed and positive, so usually taken in logarithms.
        names: of the 11 proteins.
        adjacency: ``[11, 11]`` true at ``[parent, child]``: the 17 arcs of the consensus network.
        conditions: ``[7466]`` int64, which of the nine experiments a cell is from.
        reagents: of the nine: what was given besides the general stimuli, which alone make the first two.
        targets: ``[7466, 11]`` true at the protein that the reagent of a cell acts on; none in the first two
            experiments. Inhibitors block what a protein does, not always the amount that is measured (that of Mek rises
            under U0126), so that the interventions are ideal by convention only.
    """

    observations: Float[Tensor, "cells proteins"]
    names: tuple[str, ...]
    adjacency: Bool[Tensor, "proteins proteins"]
    conditions: Int[Tensor, " cells"]
    reagents: tuple[str, ...]
    targets: Bool[Tensor, "cells proteins"]


_SACHS = (
    ("none", None, 853),
    ("ICAM-2", None, 902),
    ("Akt inhibitor", "Akt", 911),
    ("G06976", "PKC", 723),
    ("psitectorigenin", "PIP2", 810),
    ("U0126", "Mek", 799),
    ("LY294002", "PIP3", 848),
    ("PMA", "PKC", 913),
    ("beta2cAMP", "PKA", 707),
)
"""Reagent, protein it acts on, and cells of the experiments, in the order of the rows."""


class GaussianNetwork(NamedTuple):
    """A linear structural model ``x_j = intercept_j + sum_i weights_ij x_i + scale_j e_j``, ``e_j ~ N(0, 1)``.

    Attributes:
        names: of the variables.
        adjacency: ``[d, d]`` true at ``[parent, child]``.
        weights: ``[d, d]`` float64 coefficient of the parent (row) in the child (column).
        intercepts: ``[d]`` float64.
        scales: ``[d]`` float64 standard deviations of the noise.
    """

    names: tuple[str, ...]
    adjacency: Bool[Tensor, "d d"]
    weights: Float[Tensor, "d d"]
    intercepts: Float[Tensor, "d"]
    scales: Float[Tensor, "d"]

    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n d"]:
        """Return ``n`` independent draws ``[n, d]`` in float64."""
        noise = torch.randn(n, len(self.names), generator=generator, dtype=torch.float64)
        identity = torch.eye(len(self.names), dtype=torch.float64)
        return torch.linalg.solve(identity - self.weights, self.intercepts + self.scales * noise, left=False)


class GeneNetwork(NamedTuple):
    """Which genes regulate which, cycles included.

    Attributes:
        names: of the genes.
        adjacency: ``[d, d]`` true at ``[regulator, target]``.
    """

    names: tuple[str, ...]
    adjacency: Bool[Tensor, "d d"]

    def acyclic_part(self, nodes: int, *, generator: torch.Generator) -> Bool[Tensor, "nodes nodes"]:
        """Cut out a connected part without cycles: from a random gene on, random neighbours of what there is.

        Args:
            nodes: genes of the part, 1 to half of all.
            generator: source of the choices.

        Returns:
            ``[nodes, nodes]`` with all arcs of the network between the chosen genes.

        Raises:
            ValueError: ``nodes`` out of range.
        """
        check_integer("nodes", nodes, 1, len(self.names) // 2)
        touching = self.adjacency | self.adjacency.T
        while True:
            chosen = [int(torch.randint(len(self.names), (1,), generator=generator))]
            while len(chosen) < nodes:
                beside = touching[chosen].any(0)
                beside[chosen] = False
                if not bool(beside.any()):
                    break
                chosen.append(int(torch.multinomial(beside.double(), 1, generator=generator)))
            part = self.adjacency[chosen][:, chosen]
            acyclic = not bool(torch.linalg.matrix_power(part.double(), nodes).any())  # no walk of that many arcs
            if len(chosen) == nodes and acyclic:
                return part


def sachs() -> Sachs:
    """Return the protein-signalling data of Sachs et al. (Science 2005) with experiments and consensus graph.

    The file has no column of the experiments; its rows are theirs one after the other, as the numbers of cells in the
    supplement say, and jump where one ends.

    Raises:
        DataMissingError: the set was not fetched.
    """
    stored = load("sachs")
    names = tuple(str(name) for name in stored["names"])
    conditions = torch.repeat_interleave(torch.tensor([cells for *_, cells in _SACHS]))
    acted_on = torch.tensor([[name == protein for name in names] for _, protein, _ in _SACHS])
    return Sachs(
        torch.from_numpy(stored["observations"]),
        names,
        torch.from_numpy(stored["adjacency"]),
        conditions,
        tuple(reagent for reagent, *_ in _SACHS),
        acted_on[conditions],
    )


def dream4(number: int) -> GeneNetwork:
    """Return a gold standard of the DREAM4 challenge (Marbach et al., PNAS 2010): 100 genes of E. coli or yeast.

    Args:
        number: 1 to 5, as the challenge numbers them.

    Raises:
        DataMissingError: the set was not fetched.
        ValueError: there is no such number.
    """
    check_integer("number", number, 1, 5)
    adjacency = torch.from_numpy(load("dream4")[f"network_{number}"])
    return GeneNetwork(tuple(f"G{k + 1}" for k in range(len(adjacency))), adjacency)


def ecoli70() -> GaussianNetwork:
    """Return the E. coli gene network of Schaefer and Strimmer (2005): 46 genes, 70 arcs, published coefficients.

    Raises:
        DataMissingError: the set was not fetched.
    """
    stored = load("ecoli70")
    return GaussianNetwork(
        tuple(str(name) for name in stored["names"]),
        torch.from_numpy(stored["adjacency"]),
        torch.from_numpy(stored["weights"]),
        torch.from_numpy(stored["intercepts"]),
        torch.from_numpy(stored["scales"]),
    )


def bayesian_network(name: str) -> BayesianNetwork:
    """Return a discrete Bayesian network of the bnlearn repository with its conditional tables.

    Args:
        name: ``"alarm"``, ``"asia"``, ``"cancer"``, ``"child"``, ``"earthquake"``, ``"hailfinder"``, ``"insurance"``,
            ``"sachs"``, ``"survey"`` or ``"win95pts"``.

    Raises:
        DataMissingError: the set ``bayesian_networks`` was not fetched.
        ValueError: ``name`` is unknown.
    """
    stored = load("bayesian_networks")
    names = [str(known) for known in stored["names"]]
    check_choice("name", name, names)
    return BayesianNetwork.from_bif(split_strings(stored, "bif")[names.index(name)])
