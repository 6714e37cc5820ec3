"""Contracts of ``pullback.causal``: particles, latent graphs, and posteriors learned by them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from pullback import causal
from tests.contracts.contract import Bad, Call, Contract, Exempt, HigherOrder, Learner, Measurement

_NOISE = torch.tensor([[0.3, -1.2, 0.4], [0.8, 0.1, -0.6], [-0.2, 1.5, 0.7]]).double()
_X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
_WHERE = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])


def _latents(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(2, 3, 2, generator=generator, dtype=torch.float64),))]


def _targets(generator: torch.Generator) -> list[Call]:
    return [Call((torch.randn(3, 3, generator=generator, dtype=torch.float64),))]


def _edges(z: Tensor, alpha: float = 0.7) -> Tensor:
    rows = [[1 / (1 + (-alpha * (z[0, i] * z[1, j]).sum()).exp()) for j in range(3)] for i in range(3)]
    return torch.stack([torch.stack([p if i != j else 0 * p for j, p in enumerate(row)]) for i, row in enumerate(rows)])


def _graph(z: Tensor, tau: float = 1.0) -> Tensor:
    soft = torch.stack([torch.stack([(z[0, i] * z[1, j]).sum() for j in range(3)]) for i in range(3)])
    return (1 / (1 + (-tau * (_NOISE + 0.7 * soft)).exp())).fill_diagonal_(0)


def _model(like: Tensor) -> causal.InterventionalGaussian:
    scales = {"noise": 0.5, "intervention_noise": 0.8, "weight_scale": 1.5, "intervention_scale": 3.0}
    return causal.InterventionalGaussian(_X.to(like.device, like.dtype), _WHERE.to(like.device), **scales)


def _joint(graph: Tensor, weights: Tensor, targets: Tensor, means: Tensor) -> Tensor:
    """Sample by sample and node by node."""
    total = (graph * Normal(0.0, 1.5).log_prob(weights)).sum() + (targets * Normal(0.0, 3.0).log_prob(means)).sum()
    for row, environment in zip(_X, _WHERE.tolist(), strict=True):
        for j in range(3):
            natural = Normal((row * graph[:, j] * weights[:, j]).sum(), 0.5).log_prob(row[j])
            if environment == 0:
                total = total + natural
            else:
                shifted = Normal(means[environment - 1, j], 0.8).log_prob(row[j])
                share = targets[environment - 1, j]
                total = total + (1 - share) * natural + share * shifted
    return total


def _evidence(graph: Tensor, targets: Tensor) -> Tensor:
    """All samples of a node as one normal vector; a soft target tempers the rows of its environment."""
    total = torch.zeros((), dtype=torch.float64)
    for j in range(3):
        kept = torch.cat([torch.ones(1).double(), 1 - targets[:, j]])[_WHERE]
        columns = _X * graph[:, j]
        spread = torch.diag(0.25 / kept) + 1.5**2 * columns @ columns.T
        total = total + MultivariateNormal(torch.zeros(8).double(), spread).log_prob(_X[:, j])
        total = total + ((1 - kept) * math.log(2 * math.pi * 0.25) - kept.log()).sum() / 2
        for environment in (1, 2):
            values = _X[environment == _WHERE, j]
            spread = 0.64 * torch.eye(len(values)).double() + 9.0
            shifted = MultivariateNormal(torch.zeros(len(values)).double(), spread).log_prob(values)
            total = total + targets[environment - 1, j] * shifted
    return total


def _parameters(generator: torch.Generator) -> list[Call]:
    soft = [torch.rand(size, 3, generator=generator, dtype=torch.float64) for size in (3, 2)]
    plain = [torch.randn(size, 3, generator=generator, dtype=torch.float64) for size in (3, 2)]
    return [Call((soft[0], plain[0], soft[1], plain[1]))]


def _planted(generator: torch.Generator) -> tuple[Any, Any]:
    """A chain with equal noise, of which the second and the third node are set in an environment each."""
    weights = torch.tensor([[0.0, 1.5, 0.0], [0.0, 0.0, -1.2], [0.0, 0.0, 0.0]])
    scm = causal.LinearSCM(weights, 0.5)
    rows = [scm.rsample(60, generator=generator)]
    rows += [scm.rsample(30, interventions={node: 4.0}, generator=generator) for node in (1, 2)]
    return torch.cat(rows), weights != 0


def _rows(x: Tensor) -> Tensor:
    """Environments of a set of any size: half of it is observational."""
    half = len(x) // 2
    quarter = (len(x) - half) // 2
    return torch.tensor([0] * half + [1] * quarter + [2] * (len(x) - half - quarter))


_FAST: dict[str, Any] = {"particles": 2, "samples": 4, "acyclicity_samples": 4, "noise": 0.5, "lr": 0.1}


_MARGINAL: dict[str, Any] = {"marginal": True, "particles": 4, "samples": 8, "sparsity": 10.0, "alpha": 40.0}


def _fast(data: Tensor) -> dict[str, Any]:
    """Enough steps to find what is planted, few where the answer only has to be finite."""
    return {"steps": 80 if len(data) == 120 else 3, **_FAST}


def _bacadi(data: Tensor, generator: torch.Generator, **options: Any) -> causal.GraphPosterior:
    """With as many particles as find what is planted on every seed tried: two may both end in a wrong graph."""
    particles = {"particles": 16} if len(data) == 120 else {}
    return causal.bacadi(data, _rows(data), **{**_fast(data), **particles, "generator": generator, **options})


def _dibs(data: Tensor, generator: torch.Generator, **options: Any) -> causal.GraphPosterior:
    return causal.dibs(data, **{**_fast(data), "generator": generator, **options})


def _known(data: Tensor, generator: torch.Generator, **options: Any) -> causal.GraphPosterior:
    targets = torch.eye(3, dtype=torch.bool)[1:] if data.shape[-1] == 3 else torch.zeros(2, data.shape[-1]).bool()
    options = {"environments": _rows(data), "targets": targets, **options}
    return causal.dibs(data, **{**_fast(data), "generator": generator, **options})


def _sets(generator: torch.Generator) -> list[Tensor]:
    x = _planted(generator)[0]
    return [x[::4].double(), 1e3 * x[::4], torch.cat([x[:8], x[:8, :1]], 1), x[:8, :1], 0 * x[:8]]


def _finds(arcs: Tensor, truth: Tensor) -> bool:
    return torch.equal(arcs.cpu() > 0.5, truth)


_G = torch.Generator().manual_seed(0)
_SMALL = torch.randn(12, 3, generator=_G)
_NAN = _SMALL.clone()
_NAN[2, 1] = torch.nan
_LEARNERS: dict[str, Any] = {
    "answer": lambda posterior: posterior.edge_probabilities(),
    "planted": _planted,
    "recovers": _finds,
    "sets": _sets,
    "permute": None,
    "why": "an environment is a block of rows here; sums in another order move particles that diverge",
}
_BAD = [
    Bad((_NAN, _G), {}, ValueError, "x must be finite, got nan"),
    Bad((_SMALL.long(), _G), {}, TypeError, "x must be a floating tensor"),
    Bad((_SMALL, _G), {"particles": 0}, ValueError, "particles must be an integer >= 1"),
    Bad((_SMALL, _G), {"samples": 0}, ValueError, "samples must be an integer >= 1"),
    Bad((_SMALL, _G), {"steps": -1}, ValueError, "steps must be an integer >= 0"),
    Bad((_SMALL, _G), {"alpha": -1.0}, ValueError, "alpha must be > 0"),
    Bad((_SMALL, _G), {"noise": 0.0}, ValueError, "noise must be > 0"),
    Bad((_SMALL, _G), {"graph_prior": "erdos"}, ValueError, "graph_prior must be"),
    Bad((_SMALL, _G), {"edge_probability": 1.0}, ValueError, "edge_probability must be in"),
]

CONTRACTS = [
    Contract(
        "causal.edge_probabilities",
        lambda z, **options: causal.edge_probabilities(z, **{"alpha": 0.7, **options}),
        _latents,
        reference=_edges,
        scalars={"alpha": 0.7},
        bad=[
            Bad((torch.ones(3, 3),), {}, ValueError, "z must have shape"),
            Bad((torch.ones(2, 3, 3),), {"alpha": -1.0}, ValueError, "alpha must be >= 0"),
        ],
        large=(),
        why="scores are products of two latents, which overflow",
    ),
    Contract(
        "causal.latent_graph",
        lambda z, **options: causal.latent_graph(z, **{"noise": _NOISE.to(z), "alpha": 0.7, **options}),
        _latents,
        reference=_graph,
        hard=lambda z: causal.latent_graph(z, noise=_NOISE.to(z), alpha=0.7, hard=True),
        soft={"tau": 1e8},
        scalars={"alpha": 0.7, "tau": 1.3},
        bad=[
            Bad((torch.ones(2, 3, 3),), {"noise": torch.ones(2, 2)}, ValueError, "noise must have shape"),
            Bad((torch.ones(2, 3, 3),), {"tau": 0.0}, ValueError, "tau must be > 0"),
            Bad((torch.ones(2, 3, 3),), {"noise": torch.ones(3, 3).double()}, TypeError, "must have the same dtype"),
        ],
        large=(),
        why="scores are products of two latents, which overflow",
    ),
    Contract(
        "causal.latent_targets",
        lambda gamma, **options: causal.latent_targets(gamma, **{"noise": _NOISE.to(gamma), "alpha": 0.7, **options}),
        _targets,
        reference=lambda gamma: 1 / (1 + (-(_NOISE + 0.35 * gamma)).exp()),
        hard=lambda gamma: (_NOISE.to(gamma) + 0.35 * gamma > 0).to(gamma),
        soft={"tau": 1e8},
        scalars={"alpha": 0.7, "tau": 1.3},
        bad=[
            Bad((torch.ones(3),), {}, ValueError, "gamma must have shape"),
            Bad((torch.ones(3, 3),), {"tau": -1.0}, ValueError, "tau must be > 0"),
        ],
    ),
    Contract(
        "causal.InterventionalGaussian",
        lambda *parameters: _model(parameters[0]).log_joint(*parameters),
        _parameters,
        reference=_joint,
        bad=[
            Bad((torch.ones(2, 2), *[torch.ones(3, 3)] * 3), {}, ValueError, "graph must have shape"),
            Bad((*[torch.ones(3, 3)] * 2, *[torch.ones(3, 3)] * 2), {}, ValueError, "targets must have shape"),
            Bad((torch.ones(3, 3), torch.ones(3, 3), None, torch.ones(2, 3)), {}, ValueError, "means need targets"),
            Bad((torch.ones(3, 3), torch.ones(3, 3).double()), {}, TypeError, "must have the same dtype"),
        ],
        batched=False,
        vmap=False,
        half=False,
        compile=False,
        large=(),
        why="the samples lead the batch, and are made in the block; squares of large numbers overflow",
    ),
    Contract(
        "causal.InterventionalGaussian[evidence]",
        lambda *parameters: _model(parameters[0]).log_evidence(*parameters),
        lambda generator: [Call(_parameters(generator)[0].args[::2])],
        reference=_evidence,
        bad=[
            Bad((torch.ones(2, 2), torch.ones(2, 3)), {}, ValueError, "graph must have shape"),
            Bad((torch.ones(3, 3), torch.ones(3, 3)), {}, ValueError, "targets must have shape"),
            Bad((torch.ones(3, 3), torch.ones(2, 3).double()), {}, TypeError, "must have the same dtype"),
            Bad((2 * torch.ones(3, 3), torch.ones(2, 3)), {}, ValueError, r"graph must be in \[0, 1\]"),
        ],
        batched=False,
        vmap=False,
        half=False,
        compile=False,
        large=(),
        why="the samples lead the batch, and are made in the block; squares of large numbers overflow",
    ),
    HigherOrder(
        "causal.score_ratio_gradient",
        lambda given, z: causal.score_ratio_gradient(given, z, _NOISE.to(z)),
        _targets,
        given=lambda z, noise: -(z.unsqueeze(-2) - noise).square().sum(-1),
        argument="log_joint",
        reference=lambda z: causal.ScoreRatio(*_ratio(z)),
        large=(),
        batched=False,
        why="one sample of the noise has all the weight where values are large; the noise has no batch",
    ),
    HigherOrder(
        "causal.svgd",
        lambda given, x: causal.svgd(given, x, steps=2, lr=0.1, kernel=causal.SquaredExponential(2.0)).particles,
        lambda g: [Call((torch.randn(4, 2, generator=g, dtype=torch.float64),))],
        given=lambda x, step: (2.0 + step) - x,
        argument="score",
        reference=lambda x: _two_steps(x),
        tolerance=1e-6,
        gradcheck=False,
        gradgradcheck=False,
        forward_mode=False,
        vmap=False,
        compile=False,
        half=False,
        batched=False,
        large=(),
        why="a sampler that moves copies of its particles in place: it is not differentiated",
    ),
    Measurement(
        "causal.SquaredExponential",
        lambda x: causal.SquaredExponential(1.5)(x, 0),
        lambda g: [Call((torch.randn(4, 2, generator=g, dtype=torch.float64),))],
        reference=lambda x: _kernel(x),
    ),
    Exempt("causal.logistic_noise", "draws", "causal/test_particles.py"),
    Exempt("causal.SVGD", "causal.svgd runs it to its end", "causal/test_particles.py"),
    Exempt("causal.BaCaDI", "causal.bacadi and causal.dibs run it to its end", "causal/test_particles.py"),
    Learner(
        "causal.bacadi",
        _bacadi,
        bad=[*_BAD, Bad((_SMALL[:3], _G), {}, ValueError, "at least two rows")],
        **_LEARNERS,
    ),
    Learner(
        "causal.bacadi[marginal]",
        lambda data, generator, **options: _bacadi(
            data, generator, **{**_MARGINAL, "steps": _fast(data)["steps"] * 3 // 4, **options}
        ),
        bad=_BAD,
        **_LEARNERS,
    ),
    Learner("causal.dibs", _dibs, bad=_BAD, **_LEARNERS | {"recovers": lambda arcs, _: bool(arcs.isfinite().all())}),
    Learner(
        "causal.dibs[known targets]",
        _known,
        bad=[
            Bad((_SMALL, _G), {"targets": None}, ValueError, "environments and targets must be given together"),
            Bad((_SMALL, _G), {"targets": torch.zeros(3, 3).bool()}, ValueError, "targets must have shape"),
        ],
        **_LEARNERS,
    ),
]


def _ratio(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Closed form of ``log_joint[r, m] = -|z_r - noise_m|^2``."""
    apart = z.unsqueeze(-2) - _NOISE.to(z)
    logs = -apart.square().sum(-1)
    weights = logs.exp() / logs.exp().sum(-1, keepdim=True)
    return -2 * (weights.unsqueeze(-1) * apart).sum(-2), logs.exp().mean(-1).log(), 1 / weights.square().sum(-1)


def _kernel(x: Tensor, width: float = 1.5) -> tuple[Tensor, Tensor]:
    """Pair by pair."""
    values, repulsion = torch.zeros(len(x), len(x)).to(x), torch.zeros_like(x)
    for i, own in enumerate(x):
        for j, other in enumerate(x):
            values[i, j] = torch.exp(-(own - other).square().sum() / width)
            repulsion[i] += -2 / width * (other - own) * values[i, j]
    return values, repulsion


def _two_steps(x: Tensor) -> Tensor:
    """Two steps of the sum over pairs, scaled by RMSprop."""
    average = torch.zeros_like(x)
    for step in range(2):
        values, repulsion = _kernel(x, 2.0)
        phi = (values @ ((2.0 + step) - x) + repulsion) / len(x)
        average = 0.9 * average + 0.1 * phi.square()
        x = x + 0.1 * phi / (average.sqrt() + 1e-8)
    return x
