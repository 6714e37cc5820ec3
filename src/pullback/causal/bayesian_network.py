"""Bayesian networks of discrete variables with their conditional tables: exact worlds to intervene on."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from pullback.causal.graphs import check_square, topological_order
from pullback.core.checks import check_floating, check_integer, check_positive, check_shape, check_tensor
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Int, Shaped, Tensor
from pullback.core.transforms import kept_property

__all__ = ["BayesianNetwork", "random_bayesian_network"]

HIDDEN = 16
"""Units of the networks that make random tables."""


@dataclass(frozen=True)
class BayesianNetwork:
    r"""A law over discrete variables: :math:`P(x) = \prod_j P(x_j | x_{\mathrm{pa}(j)})` with a table for each factor.

    Variables and their values are numbered in the order of ``states``.

    Attributes:
        states: the names of the values of each variable.
        parents: the parents of each variable, in the order of its table's leading axes.
        tables: ``[values of parent 1, ..., values of parent k, values of the variable]`` probabilities.

    Raises:
        ValueError: a table of another shape, with negative entries or rows that do not sum to 1 (the variable is
            named); a parent that is no variable; a cycle.

    Example:
        >>> rain, wet = torch.tensor([0.8, 0.2]), torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> network = BayesianNetwork(
        ...     {"rain": ["no", "yes"], "wet": ["no", "yes"]}, {"rain": [], "wet": ["rain"]}, {"rain": rain, "wet": wet}
        ... )
        >>> round(network.log_prob(torch.tensor([1, 1])).exp().item(), 4)
        0.16
        >>> g = torch.Generator().manual_seed(0)
        >>> dried = network.sample(10_000, interventions={1: 0}, generator=g)
        >>> round(dried[:, 0].double().mean().item(), 1)  # as often rain as before
        0.2
    """

    states: Mapping[str, Sequence[str]]
    parents: Mapping[str, Sequence[str]]
    tables: Mapping[str, Float[Tensor, "..."]]

    def __post_init__(self) -> None:
        for field in ("parents", "tables"):
            if set(getattr(self, field)) != set(self.states):
                odd = sorted(set(getattr(self, field)) ^ set(self.states))
                raise ValueError(f"{field} must be those of the variables of states; only one of the two has {odd}")
        for name, table in self.tables.items():
            strange = [parent for parent in self.parents[name] if parent not in self.states]
            if strange:
                raise ValueError(f"parents of {name} must be variables, got {strange}")
            shape = tuple(len(self.states[variable]) for variable in (*self.parents[name], name))
            if check_floating(f"the table of {name}", table).shape != shape:
                raise ValueError(f"the table of {name} must have shape {shape}, got {tuple(table.shape)}")
            check_positive(f"the table of {name}", table, zero=True)
            worst = (table.sum(-1) - 1).abs().max().item()
            if not worst <= 1e-3:
                raise ValueError(f"the table of {name} must have rows that sum to 1, got one that is {worst:.3g} off")
        topological_order(self.adjacency)

    @staticmethod
    def from_bif(text: str) -> BayesianNetwork:
        """Read a network in the BIF format, in the subset that the bnlearn repository uses.

        Args:
            text: of the file.

        Returns:
            The network, its tables in float64 with rows that sum to 1 exactly.

        Raises:
            ValueError: a table that is incomplete or whose rows do not sum to 1 (the variable is named).

        Example:
            >>> text = '''variable coin { type discrete [ 2 ] { head, tail }; }
            ... probability ( coin ) { table 0.4, 0.6; }'''
            >>> BayesianNetwork.from_bif(text).tables["coin"].tolist()
            [0.4, 0.6]
        """
        number = r"[-+0-9.eE]+"
        pattern = r"variable\s+(\S+)\s*\{\s*type\s+discrete\s*\[\s*\d+\s*\]\s*\{([^}]*)\}"
        states = {name: [value.strip() for value in values.split(",")] for name, values in re.findall(pattern, text)}
        parents: dict[str, list[str]] = {}
        tables: dict[str, Tensor] = {}
        for head, body in re.findall(r"probability\s*\(([^)]*)\)\s*\{(.*?)\}", text, flags=re.DOTALL):
            child, _, given = (part.strip() for part in head.partition("|"))
            parents[child] = [name.strip() for name in given.split(",")] if given else []
            missing = [name for name in (*parents[child], child) if name not in states]
            if missing:
                raise ValueError(f"BIF: the table of {child} names variables that are not declared: {missing}")
            shape = [len(states[name]) for name in (*parents[child], child)]
            table = torch.full(shape, torch.nan, dtype=torch.float64)
            rows = re.findall(r"\(([^)]*)\)\s*([^;]*);", body)
            whole = re.search(r"table\s+([^;]*);", body)
            if not parents[child] and whole is not None:
                rows = [("", whole.group(1))]
            for values, row in rows:
                chosen = [v.strip() for v in values.split(",")] if values else []
                place = tuple(states[p].index(v) for p, v in zip(parents[child], chosen, strict=True))
                table[place] = torch.tensor([float(v) for v in re.findall(number, row)], dtype=torch.float64)
            total = table.sum(-1, keepdim=True)
            if not bool(((total - 1).abs() <= 1e-3).all()):  # NaN where a row is missing
                raise ValueError(f"BIF: the table of {child} is incomplete or does not sum to 1")
            tables[child] = table / total
        return BayesianNetwork(states, parents, tables)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the variables, in the order of samples."""
        return tuple(self.states)

    @kept_property
    def adjacency(self) -> Bool[Tensor, "d d"]:
        """``[d, d]`` true at ``[parent, child]``."""
        arcs = torch.zeros(len(self.states), len(self.states), dtype=torch.bool)
        for child, parents in self.parents.items():
            for parent in parents:
                arcs[self.names.index(parent), self.names.index(child)] = True
        return arcs

    def sample(
        self,
        n: int,
        *,
        interventions: Mapping[int, int | Int[Tensor, "n"]] | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "n d"]:
        """Draw ``n`` samples ``[n, d]`` of the numbers of values, variable by variable, causes first.

        Args:
            n: samples, >= 1.
            interventions: variables, by number, that are set: to one value, or to one for every sample.
            generator: source of the draws.

        Raises:
            ValueError: a variable or a value that does not exist.
        """
        check_integer("n", n, 1)
        interventions = interventions or {}
        for node in interventions:
            check_integer("a node of interventions", node, 0, len(self.names) - 1)
        place = next(iter(self.tables.values())).device
        x = torch.zeros(n, len(self.names), dtype=torch.int64, device=place)
        device = drawing_device(generator, place)
        for node in topological_order(self.adjacency).tolist():
            name = self.names[node]
            if node in interventions:
                values = torch.as_tensor(interventions[node])
                _check_values(f"interventions[{node}]", values, len(self.states[name]))
                x[:, node] = values
                continue
            rows = self.tables[name][tuple(x[:, self.names.index(parent)] for parent in self.parents[name])]
            uniform = torch.rand(n, 1, generator=generator, device=device, dtype=torch.float64).to(place)
            x[:, node] = (uniform > rows.double().cumsum(-1)[..., :-1]).sum(-1)
        return x

    def log_prob(
        self, x: Int[Tensor, "*batch d"], *, targets: Bool[Tensor, "*#batch d"] | None = None
    ) -> Float[Tensor, "*batch"]:
        """Return the log-probability of samples; variables that were set (``targets``) contribute nothing.

        Args:
            x: ``[*batch, d]`` numbers of values.
            targets: ``[*batch, d]``.
        """
        check_shape("x", check_tensor("x", x), (len(self.names),))
        total = torch.zeros(x.shape[:-1], dtype=torch.float64, device=x.device)
        for node, name in enumerate(self.names):
            _check_values(f"x of {name}", x[..., node], len(self.states[name]))
            place = tuple(x[..., self.names.index(variable)] for variable in (*self.parents[name], name))
            density = self.tables[name].double()[place].log()
            total = total + (density if targets is None else torch.where(targets[..., node], 0.0, density))
        return total


def random_bayesian_network(
    adjacency: Shaped[Tensor, "d d"],
    *,
    classes: int = 2,
    strength: float = 1.5,
    generator: torch.Generator | None = None,
) -> BayesianNetwork:
    """Give every variable of a graph a random table: the softmax of a network of one hidden layer.

    Its input is the one-hot code of the parents' values, its weights are standard normal. Its logits are centred over
    the rows of the table and scaled to the standard deviation ``strength``, so that no variable is almost constant and
    none ignores its parents, and get an offset for each class within +-1/2.

    Args:
        adjacency: ``[d, d]`` a DAG.
        classes: values of every variable, >= 2.
        strength: > 0, how much the parents decide.
        generator: source of the weights.

    Returns:
        :class:`BayesianNetwork` with variables ``"0"``, ``"1"``, ... The table of a variable has ``classes`` to the
        number of its parents rows.

    Raises:
        ValueError: a cycle, options out of range, more than 20 parents of one variable.

    Example:
        >>> network = random_bayesian_network(torch.ones(3, 3).triu(1), generator=torch.Generator().manual_seed(0))
        >>> network.tables["2"].shape
        torch.Size([2, 2, 2])

    References:
        Ke et al. (2019), Learning Neural Causal Models from Unknown Interventions, whose generator it follows but for
        the scaling.
    """
    check_integer("classes", classes, 2)
    check_positive("strength", strength)
    nodes = check_square("adjacency", adjacency, batch=False)
    arcs = check_tensor("adjacency", adjacency) != 0
    states, parents, tables = {}, {}, {}
    for node in range(nodes):
        above = arcs[:, node].nonzero().flatten().tolist()
        check_integer(f"the number of parents of node {node}", len(above), 0, 20)
        offset = _normal((classes,), generator).sigmoid() - 0.5
        logits = offset.expand(1, classes)
        if above:
            given = torch.tensor(list(itertools.product(range(classes), repeat=len(above))))
            coded = torch.nn.functional.one_hot(given, classes).flatten(1).double()
            hidden = coded @ _normal((coded.shape[-1], HIDDEN), generator) + _normal((HIDDEN,), generator)
            raw = torch.relu(hidden) @ _normal((HIDDEN, classes), generator)
            centred = raw - raw.mean(0)
            logits = offset + strength * centred / centred.square().mean().sqrt()
        states[str(node)] = [str(value) for value in range(classes)]
        parents[str(node)] = [str(parent) for parent in above]
        tables[str(node)] = logits.softmax(-1).reshape([classes] * (len(above) + 1))
    return BayesianNetwork(states, parents, tables)


def _normal(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    device = None if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float64).cpu()


def _check_values(name: str, values: Tensor, count: int) -> None:
    if values.is_floating_point() or values.is_complex():
        raise TypeError(f"{name} must be integers, got {values.dtype}")
    if bool(((values < 0) | (values >= count)).any()):
        raise ValueError(f"{name} must be in 0..{count - 1}, got {values.min().item()} to {values.max().item()}")
