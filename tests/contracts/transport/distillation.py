"""Contracts of transport between features: against sums over pairs, plans of scipy's assignment, numpy's norms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import rel_entr, softmax
from torch import Tensor, nn

from pullback import transport
from tests.contracts.contract import Bad, Call, Contract, Exempt, HigherOrder, Module


def _points(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _critic(generator: torch.Generator) -> transport.WassersteinCritic:
    critic = transport.WassersteinCritic(2, 4, generator=generator)
    return _shifted(critic, generator)


def _distance(generator: torch.Generator) -> transport.WassersteinCritic:
    return _shifted(transport.WassersteinCritic(2, 3, form="distance", generator=generator), generator)


def _shifted(critic: transport.WassersteinCritic, generator: torch.Generator) -> transport.WassersteinCritic:
    for name, parameter in critic.named_parameters():
        if "biases" in name:
            nn.init.uniform_(parameter, -1, 1, generator=generator)
    return critic


def _by_numpy(t: Tensor, s: Tensor) -> Tensor:
    critic = _critic(torch.Generator().manual_seed(0)).double()
    x = np.concatenate(np.broadcast_arrays(t.numpy(), s.numpy()), -1)
    return torch.from_numpy(_layers(critic.networks[0], x)[..., 0])


def _distance_by_numpy(t: Tensor, s: Tensor) -> Tensor:
    first, second = _distance(torch.Generator().manual_seed(0)).double().networks
    return torch.as_tensor(-np.linalg.norm(_layers(first, t.numpy()) - _layers(second, s.numpy()), axis=-1) / 2**0.5)


def _layers(network: Any, x: Any) -> Any:
    for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        w = weight.detach().numpy()
        x = np.where(x > 0, x, 0.2 * x) if i else x
        x = x @ (w / np.linalg.svd(w)[1][0]).T + bias.detach().numpy()
    return x


def _similarity(t: Tensor, s: Tensor) -> Tensor:
    return (t * s).sum(-1) - 0.1 * (t - s).square().sum(-1)


def _pair_by_pair(t: Tensor, s: Tensor, negatives: Tensor | None = None) -> Tensor:
    n = len(t)
    joint = sum(_similarity(t[i], s[i]) for i in range(n)) / n
    if negatives is None:
        return joint - sum(_similarity(t[i], s[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    rows = negatives.expand(n, *negatives.shape[-2:])
    return joint - sum(_similarity(t[i], x) for i in range(n) for x in rows[i]) / rows[..., 0].numel()


def _cheapest(t: Tensor, s: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    x, y = (z.numpy() / np.linalg.norm(z.numpy(), axis=1, keepdims=True) for z in (t, s))
    cost = 1 - x @ y.T
    rows, columns = linear_sum_assignment(cost)
    plan = np.zeros_like(cost)
    plan[rows, columns] = 1 / len(cost)
    return torch.tensor((plan * cost).sum()), torch.from_numpy(plan)


def _divergence(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    p, q = (softmax(z.numpy() / temperature, -1) for z in (teacher, student))
    return torch.as_tensor(temperature**2 * rel_entr(p, q).sum(-1))


_TWO = torch.eye(2)
_PAIRS = [
    Bad((torch.zeros(2), torch.zeros(2, 2)), {}, ValueError, r"t must have shape \(n, d\)"),
    Bad((_TWO, torch.zeros(3, 2)), {}, ValueError, "t and s must hold the same samples, got 2 and 3"),
    Bad((torch.zeros(1, 2), torch.zeros(1, 2)), {}, ValueError, "t and s must hold at least 2 samples, got 1"),
]

CONTRACTS = [
    Module(
        "transport.WassersteinCritic",
        lambda critic, t, s: critic(t, s),
        lambda g: [Call((_points(g, 3, 2), _points(g, 3, 2))), Call((_points(g, 2, 1, 2), _points(g, 3, 2)))],
        build=_critic,
        reference=_by_numpy,
        large_limit=1e8,
        large=(0, 1),
        why="a sum of the largest numbers overflows",
        bad=[
            Bad((torch.zeros(2, 3), torch.zeros(2, 2)), {}, ValueError, r"t must have shape \(..., 2\), got \(2, 3\)"),
            Bad((torch.zeros(2, 2), torch.zeros(3, 2)), {}, ValueError, "broadcast"),
        ],
    ),
    Module(
        "transport.WassersteinCritic[distance]",
        lambda critic, t, s: critic(t, s),
        lambda g: [Call((_points(g, 3, 2), _points(g, 3, 2))), Call((_points(g, 2, 1, 2), _points(g, 3, 2)))],
        build=_distance,
        reference=_distance_by_numpy,
        large_limit=1e8,
        large=(0, 1),
        compile=False,
        why="a sum of the largest numbers overflows; layers are compiled in the other form",
    ),
    HigherOrder(
        "transport.wasserstein_mutual_information",
        transport.wasserstein_mutual_information,
        lambda g: [
            Call((_points(g, 3, 2), _points(g, 3, 2))),
            Call((_points(g, 3, 2), _points(g, 3, 2), _points(g, 4, 2))),
            Call((_points(g, 2, 2), _points(g, 2, 2), _points(g, 2, 3, 2))),
        ],
        given=_similarity,
        argument="critic",
        reference=_pair_by_pair,
        batched=False,
        vmap=False,
        compile=False,
        large_limit=1e2,
        why="one set of samples; the critic is a function of the caller, here a square",
        bad=[
            *_PAIRS,
            Bad((_TWO, _TWO, torch.zeros(3, 3)), {}, ValueError, r"negatives must have shape \(\[n, \]m, 2\)"),
            Bad((_TWO, _TWO, torch.zeros(3, 1, 2)), {}, ValueError, "negatives must be given for each of the 2"),
        ],
    ),
    Contract(
        "transport.local_transport_loss",
        lambda t, s, **options: transport.local_transport_loss(t, s, **({"steps": 60, "epsilon": 0.02} | options)),
        lambda g: [Call((_points(g, 3, 2), _points(g, 3, 2)))],
        reference=_cheapest,
        tolerance=1e-6,
        outputs=lambda found: (found.value, found.plan),
        large=(),
        batched=False,
        vmap=False,
        compile=False,
        half=False,
        gradgradcheck=False,
        why="one batch; the plan is constant, so derivatives are of first order; of halves another plan may be the "
        "cheapest, of large ones only directions count",
        bad=[
            *_PAIRS,
            Bad((_TWO, torch.zeros(2, 3)), {}, ValueError, "t and s must have features of one dimension, got 2 and 3"),
            Bad((_TWO * math.nan, _TWO), {}, ValueError, "t must be finite"),
            Bad((_TWO, _TWO.double()), {}, TypeError, "t and s must have the same dtype"),
            Bad((_TWO, _TWO), {"method": "ipto"}, ValueError, "method must be one of .*did you mean 'ipot'"),
            Bad((_TWO, _TWO), {"epsilon": 0.0}, ValueError, "epsilon must be > 0"),
            Bad((_TWO, _TWO), {"steps": 0}, ValueError, "steps must be an integer >= 1"),
        ],
    ),
    Contract(
        "transport.distillation_loss",
        transport.distillation_loss,
        lambda g: [
            Call((_points(g, 2, 3), _points(g, 2, 3)), {"temperature": 4.0}),
            Call((_points(g, 4), _points(g, 4)), {"temperature": 1.5}),
        ],
        reference=_divergence,
        scalars={"temperature": 2.0},
        large=(0, 1),
        large_limit=1e4,
        why="at the largest numbers the product of temperature and difference overflows",
        bad=[
            Bad((torch.tensor(1.0), torch.tensor(1.0)), {}, ValueError, "student_logits must have shape"),
            Bad(
                (_TWO, torch.zeros(2, 3)),
                {},
                ValueError,
                "student_logits and teacher_logits must have as many classes, got 2 and 3",
            ),
            Bad((_TWO, _TWO * math.nan), {}, ValueError, "teacher_logits must be finite"),
            Bad((_TWO, _TWO.double()), {}, TypeError, "student_logits and teacher_logits must have the same dtype"),
            Bad((_TWO, _TWO), {"temperature": 0.0}, ValueError, "temperature must be > 0"),
        ],
    ),
    Exempt("transport.LayerFeatures", "derivatives are the network's own", "transport/test_distillation.py"),
    Exempt("transport.FeatureBank", "a store of rows, without derivatives", "transport/test_distillation.py"),
]
