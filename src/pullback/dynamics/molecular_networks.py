"""Networks from the graph of a molecule to the parameters of its force field."""

from __future__ import annotations

import itertools
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from pullback.core.checks import check_choice, check_floating, check_integer, check_positive, check_shape, check_tensor
from pullback.core.shapes import Float, Int
from pullback.core.transforms import can_look
from pullback.dynamics.force_field import Harmonic, equilibrate_charges, mixture_to_harmonic
from pullback.dynamics.molecular_graph import Topology

__all__ = ["ForceFieldNetwork", "GraphSage", "JanossyPooling", "MoleculeParameters"]

_ORDERS = {
    "atom": ((0,),),
    "bond": ((0, 1), (1, 0)),
    "angle": ((0, 1, 2), (2, 1, 0)),
    "proper": ((0, 1, 2, 3), (3, 2, 1, 0)),
    "improper": tuple((0, *order) for order in itertools.permutations((1, 2, 3))),
}


class MoleculeParameters(NamedTuple):
    """The parameters of every term of a :class:`~pullback.dynamics.Topology`, in the order of its lists.

    Attributes:
        bonds: springs of the bonds.
        angles: springs of the angles.
        propers: ``[n, periods]`` amplitudes of the torsions, of period 1 and up.
        impropers: ``[n, periods]`` the same of the impropers.
        charges: ``[atoms]``, in elementary charges.
    """

    bonds: Harmonic
    angles: Harmonic
    propers: Float[Tensor, "propers periods"]
    impropers: Float[Tensor, "impropers periods2"]
    charges: Float[Tensor, "atoms"]


class GraphSage(nn.Module):
    r"""Embed the nodes of a graph by what they are and what is around them.

    .. math::
        h_v' = \mathrm{SiLU}\Big( W h_v + V \frac{1}{|N(v)|} \sum_{u \in N(v)} h_u + b \Big)

    A node without neighbours has a mean of 0. The embedding of a node depends on what lies at most ``layers`` edges
    away, and not on the numbering of nodes.

    Args:
        features: of a node, >= 1.
        hidden: width of all layers, >= 1.
        layers: >= 1.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError: a size is no integer; features that are not floating, edges that are no integers.
        ValueError: a size is < 1, a shape is another, an edge is out of range.

    Example:
        >>> GraphSage(2, 8, 3)(torch.eye(2), torch.tensor([[0, 1]])).shape
        torch.Size([2, 8])

    References:
        Hamilton, Ying, Leskovec (2017), Inductive representation learning on large graphs, algorithm 1 (mean).
    """

    def __init__(self, features: int, hidden: int, layers: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        for name, value in (("features", features), ("hidden", hidden), ("layers", layers)):
            check_integer(name, value, 1)
        self.features = features
        widths = (features, *[hidden] * (layers - 1))
        self.own = nn.ModuleList(_linear(width, hidden, 2 * width, generator) for width in widths)
        self.around = nn.ModuleList(_linear(width, hidden, 2 * width, generator, bias=False) for width in widths)

    def forward(
        self, x: Float[Tensor, "*batch nodes features"], edges: Int[Tensor, "edges 2"]
    ) -> Float[Tensor, "*batch nodes hidden"]:
        """Return the embedding of each node, from features and undirected edges, each listed once."""
        check_shape("x", check_floating("x", x), (None, self.features))
        edges = _indices("edges", edges, 2, x.shape[-2])
        target, source = torch.cat([edges, edges.flip(1)]).unbind(1)
        degree = x.new_zeros(x.shape[-2]).index_add(0, target, torch.ones_like(target, dtype=x.dtype))
        share = 1 / degree.clamp(min=1)[:, None]
        for own, around in zip(self.own, self.around, strict=True):
            near = around(x).index_select(-2, source)
            near = near.new_zeros(*near.shape[:-2], x.shape[-2], near.shape[-1]).index_add(-2, target, near)
            x = silu(own(x) + share * near)
        return x


class JanossyPooling(nn.Module):
    r"""Numbers for the terms of a molecule that do not depend on the order in which their atoms are named.

    .. math::
        y_t = b + W \sum_{\pi} f\big(h_{\pi(1)}, \dots, h_{\pi(m)}\big)

    over the orders that name the same term: both directions of a bond, an angle or a torsion, and all six orders of the
    neighbours of an improper's centre. :math:`f` is a small network that ends in SiLU. (Three cyclic orders of the
    neighbours, as in the paper, would leave two results, by which way round they are listed.)

    Args:
        features: of an atom, >= 1.
        hidden: width of the network, >= 1.
        out: numbers a term, >= 1.
        term: ``"atom"``, ``"bond"``, ``"angle"``, ``"proper"`` or ``"improper"`` (its centre first).
        layers: hidden layers, >= 1.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError: a size is no integer; embeddings that are not floating, indices that are no integers.
        ValueError: a size is < 1, ``term`` is unknown, a shape is another, an index is out of range.

    Example:
        >>> pool = JanossyPooling(4, 8, 2, "bond")
        >>> h = torch.rand(3, 4)
        >>> torch.equal(pool(h, torch.tensor([[0, 2]])), pool(h, torch.tensor([[2, 0]])))
        True

    References:
        Murphy, Srinivasan, Rao, Ribeiro (2019), Janossy pooling. Wang et al. (2022), End-to-end differentiable
        construction of molecular mechanics force fields, section 2.2.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        out: int,
        term: Literal["atom", "bond", "angle", "proper", "improper"],
        *,
        layers: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("features", features), ("hidden", hidden), ("out", out), ("layers", layers)):
            check_integer(name, value, 1)
        check_choice("term", term, tuple(_ORDERS))
        self.term, self.features, self.hidden = term, features, hidden
        self.arity = len(_ORDERS[term][0])
        # The first layer of a term is a sum over its atoms: each atom passes it once, for every place it may have.
        self.first = _linear(features, self.arity * hidden, self.arity * features, generator, bias=False)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.inner = nn.ModuleList(_linear(hidden, hidden, hidden, generator) for _ in range(layers - 1))
        self.last = _linear(hidden, out, hidden, generator, gain=1.0)

    def forward(
        self, h: Float[Tensor, "*batch atoms features"], terms: Int[Tensor, "n arity"]
    ) -> Float[Tensor, "*batch n out"]:
        """Return the numbers of each term from the embeddings of all atoms and the indices of those of the terms."""
        check_shape("h", check_floating("h", h), (None, self.features))
        terms = _indices("terms", terms, self.arity, h.shape[-2])
        places = self.first(h).unflatten(-1, (self.arity, self.hidden)).unbind(-2)
        orders = [
            sum((place.index_select(-2, terms[:, atom]) for place, atom in zip(places, order, strict=True)), self.bias)
            for order in _ORDERS[self.term]
        ]
        x = silu(torch.stack(orders))
        for layer in self.inner:
            x = silu(layer(x))
        result: Tensor = self.last(x.sum(0))
        return result


class ForceFieldNetwork(nn.Module):
    r"""A force field from nothing but the graph of a molecule.

    Atoms are embedded by :class:`GraphSage`; every term reads its parameters from the embeddings of its atoms by
    :class:`JanossyPooling`; charges are those of least energy for electronegativities and hardnesses that are read from
    each atom. Springs come as a mixture of two with fixed centres (``mixture_to_harmonic``), or directly,
    :math:`k = e^{a}`, :math:`r_0 = c + b`. Torsions about a bond with a linear end have amplitude 0.

    Parameters depend on the graph alone: on no conformation and on no numbering of atoms.

    Args:
        features: of an atom, >= 1.
        hidden: width of all layers, >= 1.
        layers: rounds of embedding, >= 1.
        springs: ``"mixture"`` or ``"direct"``.
        bond: stiffness and rest length of a bond for outputs of 0; the unit of energies and lengths is theirs.
        angle: stiffness and rest angle of an angle for outputs of 0.
        bond_centres: of the mixture, ascending; the paper's are 1.5 and 6 bohr, 0.794 and 3.175 Angstrom.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size, stiffness or rest is out of range, ``springs`` is unknown; features so large that a
            stiffness or a hardness, an exponential, is not finite.

    Example:
        >>> from pullback.dynamics import molecular_topology
        >>> elements, bonds = torch.tensor([8, 1, 1]), torch.tensor([[0, 1], [0, 2]])
        >>> water = molecular_topology(elements, bonds, features=torch.eye(2)[[0, 1, 1]])
        >>> network = ForceFieldNetwork(2, 16, 2, generator=torch.Generator().manual_seed(0))
        >>> found = network(water)
        >>> found.bonds.stiffness.shape, bool(found.charges.sum().abs() < 1e-6)
        (torch.Size([2]), True)

    References:
        Wang et al. (2022), End-to-end differentiable construction of molecular mechanics force fields. Takaba et al.
        (2024), Machine-learned molecular mechanics force fields from large-scale quantum chemical data.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        layers: int,
        *,
        springs: Literal["mixture", "direct"] = "mixture",
        bond: tuple[float, float] = (300.0, 1.3),
        angle: tuple[float, float] = (50.0, 1.95),
        bond_centres: tuple[float, float] = (0.794, 3.175),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_choice("springs", springs, ("mixture", "direct"))
        self.springs = springs
        self.bond_centres: Tensor
        self.angle_centres: Tensor
        self.bond_start: Tensor
        self.angle_start: Tensor
        for name, start, centres in (("bond", bond, bond_centres), ("angle", angle, (0.0, math.pi))):
            check_positive(f"{name}[0]", start[0])
            if not centres[0] < start[1] < centres[1]:
                raise ValueError(f"{name}[1] must lie between the centres {centres}, got {start[1]}")
            weight = (start[1] - centres[0]) / (centres[1] - centres[0])
            mixture = [math.log(start[0] * (1 - weight)), math.log(start[0] * weight)]
            direct = [math.log(start[0]), start[1]]
            self.register_buffer(f"{name}_centres", torch.tensor(centres))
            self.register_buffer(f"{name}_start", torch.tensor(mixture if springs == "mixture" else direct))
        self.embed = GraphSage(features, hidden, layers, generator=generator)
        outs = {"atom": 2, "bond": 2, "angle": 2, "proper": 6, "improper": 2}
        self.heads = nn.ModuleDict(
            {term: JanossyPooling(hidden, hidden, out, term, generator=generator) for term, out in outs.items()}  # type: ignore[arg-type]
        )

    def forward(self, topology: Topology) -> MoleculeParameters:
        """Return the parameters of all terms."""
        features = topology.features.to(self.bond_start.dtype)
        h = self.embed(features, topology.bonds)
        atoms = torch.arange(len(h), device=h.device)[:, None]
        electronegativity, hardness = self.heads["atom"](h, atoms).unbind(-1)
        charges = equilibrate_charges(
            electronegativity, hardness.exp(), topology.charge.to(h.dtype), molecule=topology.molecule
        )
        return MoleculeParameters(
            bonds=self._spring(self.heads["bond"](h, topology.bonds) + self.bond_start, self.bond_centres),
            angles=self._spring(self.heads["angle"](h, topology.angles) + self.angle_start, self.angle_centres),
            propers=self.heads["proper"](h, topology.propers).masked_fill(topology.linear[:, None], 0.0),
            impropers=self.heads["improper"](h, topology.impropers),
            charges=charges,
        )

    def _spring(self, read: Tensor, centres: Tensor) -> Harmonic:
        if self.springs == "mixture":
            return mixture_to_harmonic(read, centres)
        return Harmonic(mixture_to_harmonic(read[..., :1], centres[:1]).stiffness, read[..., 1])


def _linear(
    inputs: int, out: int, fan_in: int, generator: torch.Generator | None, *, bias: bool = True, gain: float = 6.0
) -> nn.Linear:
    """A layer with weights uniform in ``+-(gain / fan_in)^1/2``, which keeps magnitudes for 6, and biases of 0."""
    layer = nn.Linear(inputs, out, bias=bias)
    bound = (gain / fan_in) ** 0.5
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def _indices(name: str, indices: Tensor, arity: int, count: int) -> Tensor:
    check_tensor(name, indices)
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"{name} must hold integers, got {indices.dtype}")
    if indices.ndim != 2 or indices.shape[1] != arity:
        raise ValueError(f"{name} must have shape (n, {arity}), got {tuple(indices.shape)}")
    if indices.numel() and can_look(indices) and not bool(((indices >= 0) & (indices < count)).all()):
        raise ValueError(f"{name} must be in 0..{count - 1}, got {int(indices.min())}..{int(indices.max())}")
    return indices.long()
