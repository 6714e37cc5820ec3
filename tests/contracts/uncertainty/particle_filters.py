"""Contracts of particle filters: without resampling, a product of weights written out."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from pullback import uncertainty
from tests.contracts.contract import Bad, Call, Contract, Exempt
from tests.contracts.law import seeded

_Y = torch.zeros(3, 1)


class _Walk:
    """States that keep the part ``a`` of themselves and are seen with noise of size ``r``."""

    def __init__(self, a: Tensor, r: Tensor) -> None:
        self.a, self.r = a, r

    def initial(self) -> Independent:
        return Independent(Normal(torch.zeros_like(self.a[..., None]), 1.0, validate_args=False), 1)

    def transition(self, x: Tensor) -> Independent:
        return Independent(Normal(self.a * x, 0.5, validate_args=False), 1)

    def observation(self, x: Tensor) -> Independent:
        return Independent(Normal(x, self.r.exp(), validate_args=False), 1, validate_args=False)


def _run(y: Tensor, model: object = None, **options: object) -> uncertainty.ParticleFiltered:
    model = _Walk(*torch.tensor([0.5, 0.1]).to(y)) if model is None else model
    words = {"particles": 5, "threshold": 0.0, "generator": seeded(2)} | options
    return uncertainty.particle_filter(model, y, **words)  # type: ignore[arg-type]


def _by_hand(y: Tensor) -> tuple[Tensor, Tensor]:
    """The same draws, in a loop over particles."""
    a, r = torch.tensor([0.5, 0.1]).to(y)
    state = torch.get_rng_state()
    torch.manual_seed(int(torch.randint(2**62, (), generator=seeded(2))))
    noise = [torch.randn(5, 1, 1, dtype=y.dtype) if t == 0 else torch.randn(5, 1, dtype=y.dtype) for t in range(len(y))]
    torch.set_rng_state(state)
    paths, weights = [], []
    for i in range(5):
        x, path, log_weight = torch.zeros(1, dtype=y.dtype), [], -math.log(5)
        for t, seen in enumerate(y):
            x = noise[t][i].view(1) + 0 * a if t == 0 else a * x + 0.5 * noise[t][i]
            log_weight = log_weight - ((seen - x) / r.exp()).square().sum() / 2 - r - math.log(2 * math.pi) / 2
            path.append((x, log_weight))
        paths.append(torch.stack([x for x, _ in path]))
        weights.append(torch.stack([w for _, w in path]))
    total, points = torch.stack(weights), torch.stack(paths)
    return (total.softmax(0)[..., None] * points).sum(0), total[:, -1].logsumexp(0)


CONTRACTS = [
    Contract(
        "uncertainty.particle_filter",
        _run,
        lambda g: [Call((torch.randn(3, 1, generator=g).double(),))],
        reference=_by_hand,
        outputs=lambda found: (found.means, found.log_evidence),
        bad=[
            Bad((_Y, 3), {}, TypeError, "model must have a method initial"),
            Bad((_Y.long(),), {}, TypeError, "y must be a floating tensor"),
            Bad((_Y[:0],), {}, ValueError, "T >= 1"),
            Bad((_Y,), {"particles": 1}, ValueError, "particles must be an integer >= 2"),
            Bad((_Y,), {"threshold": 1.5}, ValueError, "threshold must be in"),
            Bad((_Y,), {"resampling": "sistematic", "threshold": 1.0}, ValueError, "systematic"),
            Bad((_Y,), {"degenerate": "ignore"}, ValueError, "degenerate must be"),
            Bad((_Y,), {"start": (torch.zeros(4, 1), torch.zeros(4))}, ValueError, "start must have points of shape"),
            Bad((_Y / 0,), {}, ValueError, "y must be finite"),
        ],
        batched=False,
        vmap=False,
        compile=False,
        large_limit=20.0,
        half=False,
        why="each series draws its own particles, other ones in half precision; the generator of torch is seeded",
    ),
    *[
        Exempt(f"uncertainty.{name}", why, f"uncertainty/{file}.py")
        for name, why, file in (
            ("StateSpaceModel", "a protocol", "test_particle_filters"),
            ("OnlineFilter", "a loop that changes the parameters of a model", "test_online"),
            ("online_adapt", "a loop that changes the parameters of a model", "test_online"),
        )
    ],
]
