"""Bayesian networks and data whose causal graph is known."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.causal import BayesianNetwork
from pullback.core.checks import check_choice, check_integer
from pullback.core.shapes import Bool, Float, Tensor
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
    """

    observations: Float[Tensor, "cells proteins"]
    names: tuple[str, ...]
    adjacency: Bool[Tensor, "proteins proteins"]


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
    """Return the protein-signalling data of Sachs et al. (Science 2005) with the consensus graph.

    Raises:
        DataMissingError: the set was not fetched.
    """
    stored = load("sachs")
    return Sachs(
        torch.from_numpy(stored["observations"]),
        tuple(str(name) for name in stored["names"]),
        torch.from_numpy(stored["adjacency"]),
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
