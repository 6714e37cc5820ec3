"""Which variable to intervene on next: the one about whose intervention the hypothesised graphs disagree most."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch

from pullback.causal.beliefs import sample_dags_from_beliefs
from pullback.causal.graphs import check_square
from pullback.core.checks import check_choice, check_floating, check_integer, check_positive, check_tensor
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Int, Shaped, Tensor

__all__ = ["Discrepancy", "TargetChoice", "intervention_discrepancy", "next_target"]


class Discrepancy(NamedTuple):
    """How far graphs disagree about an intervention.

    Attributes:
        ratio: ``[*batch]`` between over within; 0 where both are 0.
        between: ``[*batch]`` sum over graphs of the squared distance of their mean from the mean of all.
        within: ``[*batch]`` sum over graphs and draws of the squared distance from the graph's mean.
    """

    ratio: Float[Tensor, "*batch"]
    between: Float[Tensor, "*batch"]
    within: Float[Tensor, "*batch"]


class TargetChoice(NamedTuple):
    """The next target.

    Attributes:
        target: ``[*batch]`` number of a node.
        scores: ``[*batch, d]`` the discrepancy ratio of every node.
    """

    target: Int[Tensor, "*batch"]
    scores: Float[Tensor, "*batch d"]


@runtime_checkable
class Mechanisms(Protocol):
    """What :func:`next_target` asks of a model: draws under interventions, as ``CategoricalMechanisms`` makes them."""

    def sample(
        self,
        adjacency: Shaped[Tensor, "*graphs d d"],
        n: int,
        *,
        targets: Bool[Tensor, "*graphs d"],
        generator: torch.Generator | None = None,
    ) -> Shaped[Tensor, "*graphs n d"]:
        """Draw ``[*graphs, n, d]``: numbers, or integers for unordered classes; ``targets`` are set."""


def intervention_discrepancy(
    samples: Float[Tensor, "..."], target: int | Int[Tensor, "*batch"], *, mask: bool = True, one_hot: bool = False
) -> Discrepancy:
    r"""Compare what graphs predict under an intervention, as an F-test compares groups.

    .. math:: D = \frac{\sum_i \|\mu_i - \mu\|^2}{\sum_i \sum_s \|x_{is} - \mu_i\|^2}

    with :math:`x_{is}` draw ``s`` of graph ``i``, :math:`\mu_i` the mean of the graph's draws and :math:`\mu` the mean
    of all.

    Args:
        samples: ``[*batch, graphs, draws, d]``, or ``[*batch, graphs, draws, d, classes]`` with ``one_hot``; at least
            two graphs and two draws.
        target: the node that is set, 0 to ``d - 1``; one for all of the batch, or ``[*batch]``.
        mask: leave the target itself out: its values were set.
        one_hot: the last dimension is a one-hot code of unordered classes.

    Returns:
        :class:`Discrepancy`, each ``[*batch]`` and differentiable in the samples.

    Raises:
        ValueError: fewer than two graphs or draws, a target out of range.

    Example:
        >>> x = torch.tensor([[[0.0, 1.0], [0.0, 3.0]], [[0.0, 5.0], [0.0, 7.0]]])  # two graphs, two draws, two nodes
        >>> intervention_discrepancy(x, 0)
        Discrepancy(ratio=tensor(2.), between=tensor(8.), within=tensor(4.))

    References:
        Scherrer et al. (2021), Learning Neural Causal Models with Active Interventions, equations 3 to 5.
    """
    rank = 4 if one_hot else 3
    if check_floating("samples", samples).ndim < rank:
        wanted = "(..., graphs, draws, d, classes)" if one_hot else "(..., graphs, draws, d)"
        raise ValueError(f"samples must have shape {wanted}, got {tuple(samples.shape)}")
    x = samples if one_hot else samples.unsqueeze(-1)
    graphs, draws, nodes = x.shape[-4:-1]
    check_integer("the number of graphs in samples", graphs, 2)
    check_integer("the number of draws in samples", draws, 2)
    if isinstance(target, Tensor):
        if target.shape not in (x.shape[:-4], ()):
            raise ValueError(f"target must be a node or have shape {tuple(x.shape[:-4])}, got {tuple(target.shape)}")
        if bool(((target < 0) | (target >= nodes)).any()):
            raise ValueError(f"target must be in 0..{nodes - 1}, got {target.min().item()} to {target.max().item()}")
    else:
        check_integer("target", target, 0, nodes - 1)
    if mask:
        held = torch.arange(nodes, device=x.device) == torch.as_tensor(target, device=x.device).unsqueeze(-1)
        x = x.masked_fill(held[..., None, None, :, None], 0.0)
    mean = x.mean(-3, keepdim=True)
    between = (mean - mean.mean(-4, keepdim=True)).square().sum((-4, -3, -2, -1))
    within = (x - mean).square().sum((-4, -3, -2, -1))
    nothing = (between == 0) & (within == 0)
    ratio = torch.where(nothing, torch.zeros_like(between), between / torch.where(nothing, 1.0, within))
    return Discrepancy(ratio, between, within)


def next_target(
    beliefs: Float[Tensor, "*batch d d"],
    mechanisms: Mechanisms,
    *,
    graphs: int = 10,
    draws: int = 32,
    policy: str = "argmax",
    temperature: float = 1.0,
    order_temperature: float = 0.1,
    exclude: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
) -> TargetChoice:
    r"""Choose the next node to intervene on by what hypothesised graphs predict; the world is not asked.

    Graphs are drawn by :func:`sample_dags_from_beliefs`. With each, ``mechanisms`` draws samples under an intervention
    on each node, and :func:`intervention_discrepancy` compares the graphs.

    Args:
        beliefs: ``[*batch, d, d]`` probabilities of arcs.
        mechanisms: draws samples for ``[d, graphs, *batch]`` graphs and targets at once;
            integers are unordered classes.
        graphs: drawn from each belief, >= 2.
        draws: samples of each graph and target, >= 2.
        policy: ``"argmax"`` of the ratio, or a draw from its ``"softmax"`` divided by ``temperature``.
        temperature: of the softmax, > 0.
        order_temperature: of the graphs' orders, > 0.
        exclude: nodes that cannot be set.
        generator: source of graphs and samples.

    Returns:
        :class:`TargetChoice`.

    Raises:
        ValueError: options out of range, an unknown policy, no node left.

    Example:
        >>> from pullback.causal import CategoricalMechanisms
        >>> g = torch.Generator().manual_seed(0)
        >>> mechanisms = CategoricalMechanisms(3, 2, generator=g)
        >>> beliefs = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])  # open: does 0 cause 1?
        >>> next_target(beliefs, mechanisms, exclude=(2,), generator=g).scores.shape
        torch.Size([3])

    References:
        Scherrer et al. (2021), Learning Neural Causal Models with Active Interventions, algorithm 1.
    """
    nodes = check_square("beliefs", check_floating("beliefs", beliefs))
    check_integer("graphs", graphs, 2)
    check_integer("draws", draws, 2)
    check_choice("policy", policy, ("argmax", "softmax"))
    check_positive("temperature", temperature)
    for node in exclude:
        check_integer("a node of exclude", node, 0, nodes - 1)
    if len(set(exclude)) == nodes:
        raise ValueError(f"exclude must leave a node, got all {nodes}")
    batch = beliefs.shape[:-2]
    sampled = sample_dags_from_beliefs(beliefs, graphs, temperature=order_temperature, generator=generator)
    every = torch.eye(nodes, dtype=torch.bool, device=beliefs.device)
    targets = every.view(nodes, *[1] * (1 + len(batch)), nodes).expand(nodes, graphs, *batch, nodes)
    with torch.no_grad():
        arcs = sampled.expand(nodes, *sampled.shape)
        samples = check_tensor(
            "samples of mechanisms", mechanisms.sample(arcs, draws, targets=targets, generator=generator)
        )
    if categorical := not samples.is_floating_point():
        samples = torch.nn.functional.one_hot(samples.long()).to(beliefs.dtype)
    samples = samples.movedim(1, 1 + len(batch))  # [d, *batch, graphs, draws, d(, classes)]
    index = torch.arange(nodes, device=beliefs.device).view(nodes, *[1] * len(batch)).expand(nodes, *batch)
    scores = intervention_discrepancy(samples, index, one_hot=categorical).ratio.movedim(0, -1)
    allowed = torch.ones(nodes, dtype=torch.bool, device=beliefs.device)
    allowed[list(exclude)] = False
    if policy == "argmax":
        return TargetChoice(scores.masked_fill(~allowed, -1.0).argmax(-1), scores)
    uniform = torch.rand(scores.shape, generator=generator, device=drawing_device(generator, scores)).to(scores)
    gumbel = -(-uniform.clamp_min(torch.finfo(scores.dtype).tiny).log()).log()
    perturbed = (scores.clamp_max(torch.finfo(scores.dtype).max) / temperature + gumbel).masked_fill(
        ~allowed, -torch.inf
    )
    return TargetChoice(perturbed.argmax(-1), scores)
