"""Contracts of belief propagation: against inverses of matrices, and messages summed one by one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pullback import uncertainty
from pullback.uncertainty import kernel_density
from tests.contracts.contract import Bad, Call, Contract, Exempt, HigherOrder, Module
from tests.contracts.law import seeded

_TREE = [(0, 1), (2, 1), (1, 3)]
_EYE, _H = torch.eye(4), torch.zeros(4)


def _trees(generator: torch.Generator) -> list[Call]:
    couplings = torch.randn(3, generator=generator, dtype=torch.float64)
    return [Call((couplings, torch.randn(4, generator=generator, dtype=torch.float64)))]


def _precision(couplings: Tensor) -> Tensor:
    """Return a matrix with these couplings, made positive definite by its diagonal."""
    rows = []
    for (a, b), c in zip(_TREE, couplings.unbind(-1), strict=True):
        one = torch.zeros(4, 4, dtype=couplings.dtype, device=couplings.device)
        pair, diagonal = one.clone(), one.clone()
        pair[a, b] = pair[b, a] = 1.0
        diagonal[a, a] = diagonal[b, b] = 1.0
        rows.append(c[..., None, None] * pair + (1 + c.square())[..., None, None] * diagonal)
    return torch.stack(rows).sum(0)


def _propagated(couplings: Tensor, potential: Tensor, *more: Any, **options: Any) -> Any:
    if more:  # a call that is refused
        return uncertainty.gaussian_belief_propagation(couplings, potential, more[0], **options)
    found = uncertainty.gaussian_belief_propagation(_precision(couplings), potential, _TREE, **options)
    return found.means, found.variances


def _inverted(couplings: Tensor, potential: Tensor) -> tuple[Tensor, Tensor]:
    inverse = torch.linalg.inv(_precision(couplings))
    return (inverse @ potential[..., None])[..., 0], inverse.diagonal(dim1=-2, dim2=-1)


class _Spring:
    def __init__(self, size: float) -> None:
        self.size = size

    def log_prob(self, difference: Tensor) -> Tensor:
        return -(difference / self.size).square().sum(-1) / 2

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        return self.size * torch.randn(*shape, 1, generator=generator)


def _unary(node: int, x: Tensor) -> Tensor:
    return -(x[..., 0] - 0.5 * node).square()


def _nonparametric(unary: Any, points: Tensor, log_weights: Tensor, *edges: Any, **options: Any) -> Any:
    words = {
        "pairwise": _Spring(0.7),
        "graph": edges[0] if edges else [(0, 1), (2, 1)],
        "generator": seeded(1),
    } | options
    pairwise, graph = words.pop("pairwise"), words.pop("graph")
    start = uncertainty.Beliefs(points, log_weights)
    return uncertainty.nonparametric_belief_propagation(unary, pairwise, graph, start, **{"iterations": 2} | words)


def _starts(generator: torch.Generator) -> list[Call]:
    points = torch.randn(3, 6, 1, generator=generator, dtype=torch.float64)
    return [Call((points, torch.randn(3, 6, generator=generator, dtype=torch.float64).log_softmax(-1)))]


def _one_by_one(points: Tensor, log_weights: Tensor) -> Tensor:
    """Two iterations on the chain 0 - 1 - 2 at the points that the block draws, with sums over pairs of points."""
    draws = [_nonparametric(_unary, points, log_weights, iterations=i) for i in (1, 2)]
    around, spring = [[1], [0, 2], [1]], _Spring(0.7)
    last, before = (points, log_weights), None
    for found in draws:
        totals, told = [], []
        for s in range(3):
            p, w, x = last[0][s], last[1][s], found.points[s]
            middle = (w.exp()[:, None] * p).sum(0)
            h = 0.1 * (w.exp()[:, None] * (p - middle) ** 2).sum(0).sqrt()
            low, high = p.amin(0), p.amax(0)
            inside = ((x >= low) & (x <= high)).all(-1)
            q = 0.1 * inside / (high - low).prod() + 0.9 * kernel_density(p, w, x, bandwidth=h[None]).exp()
            total, say = _unary(s, x) - q.log(), {}
            if before is not None:
                for t in around[s]:
                    y, known, heard = before[0][t], before[1][t], before[2][t]
                    weights = (known - heard[s] if s in heard else known).softmax(0)
                    pairs = torch.stack([spring.log_prob(x[i] - y).exp() @ weights for i in range(len(x))])
                    say[t] = pairs.log()
                    total = total + say[t]
            totals.append(total)
            told.append(say)
        before = (found.points, totals, told)
        last = (found.points, torch.stack([t.log_softmax(0) for t in totals]))
    return last[1]


def _pulled(unary: Any, points: Tensor, *into: Tensor, **options: Any) -> Any:
    words: dict[str, Any] = {"pairwise": _Rest(), "graph": [(0, 1), (2, 1)], "generator": seeded(1)} | options
    pairwise, graph = words.pop("pairwise"), words.pop("graph")
    if into:
        places, weights = into
        if places.ndim == 2 and weights.ndim == 1:  # those of the middle, which alone has something to hand on
            places, weights = places.expand(3, -1, -1), weights.expand(3, -1)
        words["into"] = uncertainty.Beliefs(places, weights)
    found = uncertainty.pull_messages(unary, pairwise, graph, points, **words)
    return found.log_weights, found.log_unary, found.log_sender, found.log_neighbours


class _Rest(_Spring):
    """Draws are at the middle: what is said of a point is a smooth function of it."""

    def __init__(self) -> None:
        super().__init__(0.7)

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        return torch.zeros(*shape, 1)


def _told(generator: torch.Generator) -> list[Call]:
    points, into = (torch.randn(*nodes, 3, 1, generator=generator, dtype=torch.float64) for nodes in ((3,), ()))
    return [Call((points, into, torch.randn(3, generator=generator, dtype=torch.float64).log_softmax(-1)))]


def _pulled_by_pairs(points: Tensor, into: Tensor, log_weights: Tensor) -> tuple[Tensor, ...]:
    """The chain 0 - 1 - 2: each end hears of the other by what it told the middle."""
    x, y = points[..., 0], into[..., 0]
    own = torch.stack([_unary(s, points[s]) for s in range(3)])
    first, last = slice(0, 2), slice(2, 3)
    middle = torch.cat([_unary(0, points[1, first]), _unary(2, points[1, last])])
    sent = torch.stack([_unary(1, points[0]), middle, _unary(1, points[2])])
    rows = []
    for s, part in ((0, last), (2, first)):
        pairs = (-((x[s][:, None] - y[part]) / 0.7).square() / 2).exp()
        rows.append((pairs @ log_weights[part].softmax(0)).log())
    said = torch.stack([rows[0], torch.zeros_like(rows[0]), rows[1]])

    def normal(w: Tensor) -> Tensor:
        halves = [w[1, part].log_softmax(0) - math.log(2) for part in (first, last)]
        return torch.stack([w[0].log_softmax(0), torch.cat(halves), w[2].log_softmax(0)])

    return normal(own + sent + said), normal(own), normal(sent), normal(said)


def _proposed(move: Any, points: Tensor, log_weights: Tensor, **options: Any) -> Any:
    box = {"low": torch.zeros(1, dtype=points.dtype), "high": torch.ones(1, dtype=points.dtype)}
    words: dict[str, Any] = {"kept": 0.5, **box, "generator": seeded(1)} | options
    return uncertainty.propose_points(uncertainty.Beliefs(points, log_weights), move, **words).points


def _moved(x: Tensor) -> Tensor:
    return x + 10


def _certain(generator: torch.Generator) -> list[Call]:
    """One point has all the weight."""
    points = torch.randn(3, 6, 1, generator=generator, dtype=torch.float64)
    sure = torch.full((3, 6), -math.inf, dtype=torch.float64)
    sure[:, 2] = 0.0
    return [Call((points, sure))]


def _drawn(*sizes: tuple[int, ...]) -> Any:
    return lambda g: [Call(tuple(torch.randn(*size, generator=g, dtype=torch.float64) for size in sizes))]


_SAMPLER = [f"sampler.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")]
_P, _W = torch.zeros(3, 6, 1), torch.full((3, 6), -math.log(6))

CONTRACTS = [
    Contract(
        "uncertainty.gaussian_belief_propagation",
        _propagated,
        _trees,
        reference=_inverted,
        bad=[
            Bad((_EYE.long(), _H, []), {}, TypeError, "precision must be a floating tensor"),
            Bad((_EYE[:3], _H, []), {}, ValueError, r"precision must have shape \[\*batch, n, n\]"),
            Bad((_EYE, _H[:3], []), {}, ValueError, "potential must have shape"),
            Bad((_EYE, _H.double(), []), {}, TypeError, "dtype"),
            Bad((_EYE, _H, [(0, 4)]), {}, ValueError, r"graph must join nodes in 0\.\.3, got \(0, 4\)"),
            Bad((_EYE, _H, [(0, 1), (1, 0)]), {}, ValueError, "graph must name an edge once"),
            Bad((_EYE, _H, [(0.0, 1)]), {}, TypeError, "graph must hold integers"),
            Bad((_EYE + 1, _H, [(0, 1)]), {}, ValueError, "graph has no edge"),
            Bad((-_EYE, _H, [(0, 1)]), {}, ValueError, "precision must be positive definite"),
            Bad((_EYE, _H, [(0, 1)]), {"iterations": 0}, ValueError, "iterations must be an integer >= 1"),
        ],
        large=(1,),
        large_limit=100.0,
        why="squares of couplings leave the range of half precision",
    ),
    HigherOrder(
        "uncertainty.nonparametric_belief_propagation",
        _nonparametric,
        _starts,
        given=_unary,
        argument="unary",
        reference=_one_by_one,
        tolerance=1e-6,
        outputs=lambda found: found.log_weights,
        bad=[
            Bad((_P.long(), _W), {}, TypeError, "points must be a floating tensor"),
            Bad((_P[:, :1], _W[:, :1]), {}, ValueError, "M >= 2"),
            Bad((_P, _W[:2]), {}, ValueError, "log_weights must have shape"),
            Bad((_P, _W, [(0, 3)]), {}, ValueError, "graph must join nodes in"),
            Bad((_P, _W), {"pairwise": [_Spring(1.0)]}, ValueError, "a factor for each of 2 edges, got 1"),
            Bad((_P, _W), {"pairwise": 3}, TypeError, "pairwise must have a method log_prob"),
            Bad((_P, _W), {"method": "push"}, ValueError, "method must be"),
            Bad((_P, _W), {"samples": 0}, ValueError, "samples must be an integer >= 1"),
            Bad((_P, _W), {"explore": 2.0}, ValueError, "explore must be in"),
            Bad((_P, _W), {"bandwidth": 0.0}, ValueError, "bandwidth must be > 0"),
        ],
        gradcheck=False,
        gradgradcheck=False,
        forward_mode=False,
        batched=False,
        vmap=False,
        compile=False,
        half=False,
        large=(),
        why="points are drawn, and constant: potentials are differentiated (tests/uncertainty)",
    ),
    HigherOrder(
        "uncertainty.pull_messages",
        _pulled,
        _told,
        given=_unary,
        argument="unary",
        reference=_pulled_by_pairs,
        bad=[
            Bad((_P.long(),), {}, TypeError, "points must be a floating tensor"),
            Bad((_P[0],), {}, ValueError, r"points must have shape \[\*batch, nodes, M, d\]"),
            Bad((_P[:, :1],), {}, ValueError, "points must have M >= 2, one for each neighbour"),
            Bad((_P, _P, _W[:2]), {}, ValueError, "log_weights of into must have shape"),
            Bad((_P, _P[:, :1], _W[:, :1]), {}, ValueError, "points of into must have"),
            Bad((_P, _P, _W), {"truth": _P[:, 0]}, ValueError, "into and truth must not both be given"),
            Bad((_P,), {"truth": _P}, ValueError, "truth must have shape"),
            Bad((_P,), {"graph": [(0, 3)]}, ValueError, "graph must join nodes in"),
            Bad((_P,), {"pairwise": [_Spring(1.0)]}, ValueError, "a factor for each of 2 edges, got 1"),
            Bad((_P,), {"pairwise": 3}, TypeError, "pairwise must have a method log_prob"),
            Bad((_P,), {"samples": 0}, ValueError, "samples must be an integer >= 1"),
            Bad((_P,), {"sender": 3}, TypeError, "sender must be callable"),
        ],
        batched=False,
        half=False,
        large=(),
        why="nodes are a dimension of their own, and unary factors tell them apart by number",
    ),
    HigherOrder(
        "uncertainty.propose_points",
        _proposed,
        _certain,
        given=_moved,
        argument="move",
        outputs=lambda found: found,
        bad=[
            Bad((_P.long(), _W), {}, TypeError, "points must be a floating tensor"),
            Bad((_P, _W[:2]), {}, ValueError, "log_weights must have shape"),
            Bad((_P, _W), {"kept": 1.5}, ValueError, "kept must be in"),
            Bad((_P, _W), {"low": torch.zeros(2)}, ValueError, "low must broadcast against"),
            Bad((_P, _W), {"high": -torch.ones(1)}, ValueError, "low must be at most high"),
            Bad((_P, _W), {"count": 1}, ValueError, "count must be an integer >= 2"),
        ],
        gradcheck=False,
        gradgradcheck=False,
        forward_mode=False,
        batched=False,
        vmap=False,
        compile=False,
        half=False,
        large=(),
        why="points are drawn, and constant: only the motion is differentiated (tests/uncertainty/test_proposals.py)",
    ),
    Module(
        "uncertainty.PairwiseFactor",
        lambda module, x: module.log_prob(x),
        _drawn((5, 2)),
        build=lambda g: uncertainty.PairwiseFactor(2, hidden=8, noise=4, generator=g),
        idle=_SAMPLER,
        bad=[Bad((torch.zeros(5, 3),), {}, ValueError, r"difference must have shape \[\*batch, 2\], got \(5, 3\)")],
    ),
    Module(
        "uncertainty.UnaryFactor",
        lambda module, x, seen: module(x, seen),
        _drawn((4, 2), (3,)),
        build=lambda g: uncertainty.UnaryFactor(2, 3, hidden=8, generator=g),
        bad=[
            Bad((torch.zeros(4, 3), torch.zeros(3)), {}, ValueError, r"x must have shape \[\*batch, points, 2\]"),
            Bad((torch.zeros(4, 2), torch.zeros(2)), {}, ValueError, r"features must have shape \[\*batch, 3\]"),
            Bad((torch.zeros(4, 2), torch.zeros(3).long()), {}, TypeError, "features must be a floating tensor"),
        ],
    ),
    Exempt("uncertainty.Beliefs", "a result", "uncertainty/test_belief_propagation.py"),
    Exempt("uncertainty.PulledMessages", "a result", "uncertainty/test_messages.py"),
    Exempt("uncertainty.BeliefTracker", "a state from frame to frame", "uncertainty/test_belief_tracker.py"),
    Exempt("uncertainty.DistancePotential", "a density and draws", "uncertainty/test_potentials.py"),
    Exempt("uncertainty.NormalPotential", "a density and draws", "uncertainty/test_potentials.py"),
    Exempt("uncertainty.ImageFactors", "returns potentials, read by points", "uncertainty/test_unary_maps.py"),
    Exempt("uncertainty.UnaryMaps", "potentials, read by points", "uncertainty/test_unary_maps.py"),
    Exempt("uncertainty.EdgePotential", "a protocol", "uncertainty/test_belief_propagation.py"),
]
