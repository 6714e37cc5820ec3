"""Contracts of ``pullback.causal``: what experiments tell, and policies that choose them."""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import causal
from tests.contracts.contract import Bad, Call, Contract, Exempt, Module

_WEIGHTS = torch.tensor(
    [[[0.0, 1.3, 0.4], [0.0, 0.0, -0.8], [0.0, 0.0, 0.0]], [[0.0] * 3, [0.7, 0.0, 0.0], [0.5, 0.2, 0]]]
)
_NOISE = torch.tensor([[1.0, 0.8, 0.9], [0.6, 1.1, 1.2]])
_SHARES = torch.tensor([0.3, 0.7]).double().log()
_TARGETS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])


def _posterior(like: Tensor) -> causal.ModelPosterior:
    return causal.ModelPosterior(*(t.to(like.device, like.dtype) for t in (_WEIGHTS, _NOISE, _SHARES)))


def _gain(estimator: str, targets: Tensor, values: Tensor) -> Tensor:
    stream = torch.Generator().manual_seed(0)
    return causal.expected_information_gain(
        _posterior(values), targets, values, samples=2, estimator=estimator, generator=stream
    )


def _designs(generator: torch.Generator) -> list[Call]:
    soft = 0.8 * torch.rand(2, 3, generator=generator, dtype=torch.float64) + 0.1
    return [Call((soft, torch.randn(2, 3, generator=generator, dtype=torch.float64)))]


def _sampled(exclude: bool, weighted: bool) -> object:
    """Model by model and intervention by intervention, from structural equations in causal order."""

    def reference(targets: Tensor, values: Tensor) -> Tensor:
        p = _posterior(values)
        draws = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(values)
        weights = p.log_weights.exp()
        total = torch.zeros((), dtype=values.dtype)
        for model in range(2):
            order = causal.topological_order(p.weights[model]).tolist()
            for sample in range(2):
                joint = [torch.zeros((), dtype=values.dtype) for _ in range(2)]
                for target, value in zip(targets, values, strict=True):
                    x = torch.zeros(3, dtype=values.dtype)
                    for j in order:
                        natural = x @ p.weights[model][:, j] + p.noise[model, j] * draws[model, sample, j]
                        mixed = (1 - target[j]) * natural + target[j] * value[j]
                        x = torch.cat([x[:j], mixed[None], x[j + 1 :]])
                    for other in range(2):
                        normal = torch.distributions.Normal(x @ p.weights[other], p.noise[other])
                        joint[other] = joint[other] + ((1 - target) * normal.log_prob(x)).sum()
                own = joint[model]
                if exclude:
                    mixture = joint[1 - model]
                else:
                    shares = weights if weighted else torch.full_like(weights, 0.5)
                    mixture = torch.stack([joint[k] + shares[k].log() for k in range(2)]).logsumexp(0)
                total = total + weights[model] * (own - mixture) / 2
        return total

    return reference


def _entropy_of_the_gaussian(targets: Tensor, values: Tensor) -> Tensor:
    """Covariances of structural equations by the inverse of the whole system, set nodes of unit variance."""
    p = _posterior(values)
    weights, means, blocks = p.log_weights.exp(), [], []
    for model in range(2):
        mean, block = [], []
        for target, value in zip(targets, values, strict=True):
            free = torch.diag(1 - target)
            effects = torch.linalg.inv(torch.eye(3, dtype=values.dtype) - p.weights[model] @ free)
            mean.append((target * value) @ effects @ free)
            spread = effects.T @ free @ torch.diag(p.noise[model].square()) @ free @ effects
            block.append(free @ spread @ free + torch.diag(target))
        means.append(torch.cat(mean))
        blocks.append(torch.block_diag(*block))
    centre = sum(w * m for w, m in zip(weights, means, strict=True))
    total = sum(w * (b + torch.outer(m - centre, m - centre)) for w, b, m in zip(weights, blocks, means, strict=True))
    return 0.5 * (torch.logdet(total) - sum(w * torch.logdet(b) for w, b in zip(weights, blocks, strict=True)))


_WHY = "a posterior in half precision has no normalised weights; products of large values overflow; it draws"
_PLAIN = {"batched": False, "half": False, "large": (), "why": _WHY}

CONTRACTS = [
    Contract(
        "causal.expected_information_gain[exact-finite]",
        lambda t, v: _gain("exact-finite", t, v),
        _designs,
        vmap=False,
        reference=_sampled(exclude=False, weighted=True),
        bad=[
            Bad((torch.ones(2, 2), torch.ones(2, 2)), {}, ValueError, "targets must have shape"),
            Bad((torch.ones(2, 3), torch.ones(1, 3)), {}, ValueError, "values must have the shape of targets"),
            Bad((2 * torch.ones(2, 3), torch.ones(2, 3)), {}, ValueError, r"targets must be in \[0, 1\]"),
            Bad((torch.ones(2, 3).double(), torch.ones(2, 3)), {}, TypeError, "the posterior's dtype"),
        ],
        **_PLAIN,
    ),
    Contract(
        "causal.expected_information_gain[nmc]",
        lambda t, v: _gain("nmc", t, v),
        _designs,
        vmap=False,
        reference=_sampled(exclude=True, weighted=False),
        **_PLAIN,
    ),
    Contract(
        "causal.expected_information_gain[pce]",
        lambda t, v: _gain("pce", t, v),
        _designs,
        vmap=False,
        reference=_sampled(exclude=False, weighted=False),
        **_PLAIN,
    ),
    Contract(
        "causal.expected_information_gain[covariance]",
        lambda t, v: _gain("covariance", t, v),
        _designs,
        reference=_entropy_of_the_gaussian,
        vmap=False,
        **_PLAIN,
    ),
    Module(
        "causal.InterventionPolicy",
        lambda policy, scale: (policy.values * scale, policy.logits.sigmoid() * scale),
        lambda g: [Call((torch.rand(2, 3, generator=g, dtype=torch.float64),))],
        build=lambda g: causal.InterventionPolicy(3, 2, generator=g),
        reference=None,
        batched=False,
        half_tolerance=6e-2,
        large=(),
        why="it has no input: what it draws is in causal/test_design.py",
    ),
    Exempt("causal.ModelPosterior", "a record that checks itself; its draws and densities", "causal/test_design.py"),
    Exempt("causal.bootstrap_posterior", "a set of searches, which have entries", "causal/test_design.py"),
    Exempt("causal.optimize_design", "an optimisation of the gain, which has entries", "causal/test_design.py"),
    Exempt("causal.random_design", "draws", "causal/test_design.py"),
    Exempt("causal.greedy_design", "a search over a grid", "causal/test_design.py"),
    Exempt("causal.bayesian_value_search", "a search", "causal/test_design.py"),
]
