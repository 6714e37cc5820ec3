"""Bayesian networks and data whose causal graph is known."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_choice
from pullback.core.shapes import Bool, Float, Tensor
from pullback.data.cache import load
from pullback.data.formats import DiscreteNetwork, bif
from pullback.data.text_formats import split_strings

__all__ = ["GaussianNetwork", "Sachs", "bayesian_network", "ecoli70", "sachs"]


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


def bayesian_network(name: str) -> DiscreteNetwork:
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
    return bif(split_strings(stored, "bif")[names.index(name)].encode("utf-8"))
