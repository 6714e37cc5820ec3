"""Contracts of gradient flows: functionals at samples against sums, closed forms against torch and quadrature."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor

from pullback import transport
from tests.contracts.contract import Bad, Call, Contract, Exempt, HigherOrder
from tests.contracts.law import seeded


def _points(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


_SAMPLES = torch.tensor([[0.5, -1.0], [1.0, 0.25], [-0.5, 2.0]], dtype=torch.float64)
_NORMAL = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0], [2.0, 2.0]], dtype=torch.float64)


def _bent(x: Tensor) -> Tensor:
    """A witness: any function of points."""
    return torch.sin(x[:, 0]) + x[:, 1] / 4


def _estimate(kind: str, witness: Any, x: Tensor) -> Tensor:
    functional: transport.VariationalFunctional
    if kind == "shannon":
        functional = transport.JensenShannon(_SAMPLES.to(x))
    elif kind == "samples":
        functional = transport.RelativeEntropy(samples=_SAMPLES.to(x))
    elif kind == "density":
        functional = transport.RelativeEntropy(lambda x: -x.square().sum(-1) / 2)
        return functional.estimate(x, witness, reference=functional.reference(_NORMAL.to(x)), generator=seeded())
    else:
        low, high = torch.tensor([-30.0, -20.0]).to(x), torch.tensor([30.0, 20.0]).to(x)
        functional = transport.GeneralizedEntropy(3.0, low, high)
    return functional.estimate(x, witness, generator=seeded())


def _by_hand(kind: str, x: Tensor) -> Tensor:
    there, count, g = _bent(x).numpy(), len(x), seeded()
    if kind in ("shannon", "samples"):
        z = _bent(_SAMPLES[torch.randint(3, (count,), generator=g)]).numpy()
        if kind == "shannon":
            value = np.log(expit(there)).mean() / 2 + np.log(expit(-z)).mean() / 2 + math.log(2)
        else:
            value = there.mean() - np.exp(z).mean() + 1
    elif kind == "density":
        law = torch.distributions.MultivariateNormal(_NORMAL.mean(0), torch.cov(_NORMAL.mT, correction=0))
        z = law.loc + torch.randn(count, 2, generator=g, dtype=x.dtype) @ law.scale_tril.mT
        value = there.mean() - np.exp(_bent(z).numpy()).mean() + 1
        value += (law.log_prob(x) + x.square().sum(-1) / 2).mean().item()
    else:
        unit = torch.rand(count, 2, generator=g, dtype=x.dtype)
        z = _bent((unit - 0.5) * torch.tensor([60.0, 40.0])).numpy()
        q = 1 / 2400
        value = (1.5 * q**2 * np.sign(there) * there**2).mean() - (q**2 * np.abs(z) ** 3).mean()
    return torch.tensor(value, dtype=torch.float64)


def _spread(x: Tensor, t: float, power: float = 2.0, mass: float = 1.0) -> Tensor:
    """The profile, its height from the mass of a numerical integral over the radius."""
    d, n = x.shape[-1], 1 / (power - 1)
    beta = 1 / (d * (power - 1) + 2)
    k = beta * (power - 1) / (2 * power)
    surface = {1: 2.0, 2: 2 * math.pi, 3: 4 * math.pi}[d]
    radius = np.linspace(0, 1, 200_001)
    unit = surface * np.trapezoid((1 - radius**2) ** n * radius ** (d - 1), radius) * k ** (-d / 2)
    height = (mass / unit) ** (1 / (n + d / 2))
    inside = np.clip(height - k * (x.numpy() ** 2).sum(-1) * t ** (-2 * beta), 0, None)
    return torch.from_numpy(np.asarray(t ** (-d * beta) * inside**n))


def _symmetric(mean: Tensor, root: Tensor, other: Tensor, other_root: Tensor) -> Tensor:
    covariances = [r @ r.mT + torch.eye(r.shape[-1]).to(r) for r in (root, other_root)]
    return transport.symmetric_kl_gaussian(mean, covariances[0], other, covariances[1])


def _both_ways(mean: Tensor, root: Tensor, other: Tensor, other_root: Tensor) -> Tensor:
    normal = torch.distributions.MultivariateNormal
    laws = [normal(m, r @ r.mT + torch.eye(2).to(r)) for m, r in ((mean, root), (other, other_root))]
    return torch.distributions.kl_divergence(*laws) + torch.distributions.kl_divergence(*reversed(laws))


def _by_roots(mean: Tensor, deviation: Tensor, *, target_mean: Tensor, **words: float) -> tuple[Tensor, Tensor]:
    """The equation of the deviation solved as a polynomial."""
    a, s = words["step"], words.get("target_deviation", 1.0)
    roots = [max(np.roots([1 / a + 1 / s**2, -float(v) / a, -1])) for v in deviation.reshape(-1)]
    return (mean / a + target_mean / s**2) / (1 / a + 1 / s**2), torch.tensor(roots).double().view(deviation.shape)


_ONE = torch.zeros(3, 2)
_EYE = torch.eye(2)
_TARGET = torch.tensor([1.0, -2.0])
_NAMES = {"shannon": "JensenShannon", "samples": "RelativeEntropy[samples]", "density": "RelativeEntropy"}

CONTRACTS = [
    *[
        HigherOrder(
            f"transport.{_NAMES.get(kind, 'GeneralizedEntropy')}",
            partial(_estimate, kind),
            lambda g: [Call((_points(g, 5, 2),))],
            given=_bent,
            argument="witness",
            reference=partial(_by_hand, kind),
            tolerance=1e-7,
            batched=False,
            vmap=False,
            compile=False,
            large=(),
            why="one law, and a box, a time; its samples are drawn inside; torch does not compile transforms of a "
            "caller's function",
            bad=[
                Bad((torch.zeros(3),), {}, ValueError, r"x must have shape \(n, d\) with n >= 1, got \(3,\)"),
                Bad((_ONE.long(),), {}, TypeError, "must be a floating tensor, got torch.int64"),
            ],
        )
        for kind in ("density", "samples", "shannon", "porous")
    ],
    Contract(
        "transport.barenblatt",
        transport.barenblatt,
        lambda g: [
            Call((_points(g, 2, 4, 1),), {"t": 0.5, "power": 2.0}),
            Call((_points(g, 3, 3) / 2,), {"t": 0.7, "power": 1.5, "mass": 2.0}),
            Call((_points(g, 2),), {"t": 3.0, "power": 2.0}),
        ],
        reference=_spread,
        tolerance=1e-6,
        scalars={"t": 0.6},
        bad=[
            Bad((torch.tensor(1.0), 1.0), {"power": 2.0}, ValueError, r"x must have shape \(..., d\) with d >= 1, got"),
            Bad((_ONE, 0.0), {"power": 2.0}, ValueError, "t must be > 0, got 0.0"),
            Bad((_ONE, 1.0), {"power": 1.0}, ValueError, "power must be > 1, got 1.0"),
            Bad((_ONE, 1.0), {"power": 2.0, "mass": 0.0}, ValueError, "mass must be > 0"),
        ],
    ),
    Contract(
        "transport.gaussian_jko_step",
        lambda mean, deviation, b=_TARGET, **words: transport.gaussian_jko_step(
            mean, deviation, **({"target_mean": b.to(mean), "step": 0.5} | words)
        ),
        lambda g: [
            Call((_points(g, 3, 2), _points(g, 3).exp()), {"step": 0.5}),
            Call((_points(g, 1, 2), _points(g, 1).exp()), {"step": 2.0, "target_deviation": 0.7}),
        ],
        reference=partial(_by_roots, target_mean=_TARGET.double()),
        outputs=lambda found: tuple(found),
        scalars={"step": 0.5, "target_deviation": 2.0},
        large=(0,),
        bad=[
            Bad((torch.tensor(1.0), torch.tensor(1.0)), {}, ValueError, r"mean must have shape \(..., d\), got \(\)"),
            Bad((_ONE, torch.ones(2)), {}, ValueError, "mean and deviation must have shapes that broadcast"),
            Bad(
                (_ONE, torch.ones(3), torch.ones(3)), {}, ValueError, r"target_mean must have shape \(2,\), got \(3,\)"
            ),
            Bad((_ONE, torch.ones(3)), {"step": 0.0}, ValueError, r"step must be > 0, got 0\.0"),
        ],
    ),
    Contract(
        "transport.symmetric_kl_gaussian",
        _symmetric,
        lambda g: [Call(tuple(_points(g, *s) for s in ((3, 2), (3, 2, 2), (2,), (2, 2))))],
        reference=_both_ways,
        large=(0,),
        large_limit=1e2,
        compile=False,
        why="squares of large numbers; triangular solves are compiled in the laws of others",
        bad=[
            Bad((torch.zeros(2), _EYE, torch.zeros(3), _EYE), {}, ValueError, r"other_mean must have shape \(..., 2\)"),
            Bad(
                (torch.full((2,), math.nan), _EYE, torch.zeros(2), _EYE), {}, ValueError, "mean must be finite, got nan"
            ),
        ],
    ),
    Exempt(
        "transport.jko_step", "a training; against the exact step of a normal law", "transport/test_gradient_flow.py"
    ),
    Exempt("transport.WassersteinGradientFlow", "the same, step by step", "transport/test_gradient_flow.py"),
    Exempt("transport.VariationalFunctional", "an interface; a new one is tried", "transport/test_gradient_flow.py"),
    Exempt("transport.ReferenceLaw", "an interface; a new one is tried", "transport/test_gradient_flow.py"),
]
