"""Contracts of learned models of a task: their perceptrons by hand, the consistency loss term by term."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pullback import dynamics
from pullback.dynamics import LatentWorldModel, RecurrentStateSpaceModel
from tests.contracts.contract import Bad, Call, Contract, Exempt, HigherOrder, Module
from tests.contracts.dynamics.models import RANGE, seeded

_SEEN = torch.linspace(-1, 1, 4, dtype=torch.float64).sin().view(1, 2, 2)
_EARNED = torch.tensor([[0.5]], dtype=torch.float64)


def _model(**words: Any) -> nn.Module:
    """With last layers that are not zero."""
    model = LatentWorldModel(2, 1, latent=2, hidden=2, **words)
    for p in model.parameters():
        nn.init.uniform_(p, -0.7, 0.7)
    return model


def _normal(*shapes: tuple[int, ...]) -> Any:
    return lambda g: [Call(tuple(torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes))]


def _everything(model: LatentWorldModel, s: Tensor, a: Tensor) -> tuple[Tensor, ...]:
    z = model.encode(s)
    return (*model.step(z, a), model.state_value(z))


def _loss(model: LatentWorldModel, first: Tensor, actions: Tensor, **words: Any) -> tuple[Tensor, Tensor]:
    """What no gradient flows into is held fixed."""
    observations = torch.cat([first[:, None], _SEEN.to(first)[:, 1:]], 1)
    found = dynamics.latent_consistency_loss(
        model, model, observations, actions, _EARNED.to(first), **{"discount": 0.9, **words}
    )
    return found.each, found.latents


def _bad(change: dict[str, Any], match: str) -> Bad:
    return Bad((torch.zeros(1, 2), torch.zeros(1, 1, 1)), change, ValueError, match)


def _space() -> nn.Module:
    return RecurrentStateSpaceModel(3, 1, deterministic=2, stochastic=2, hidden=3)


def _beliefs(
    model: RecurrentStateSpaceModel, s: Tensor, a: Tensor, rewards: Tensor | None = None, free_nats: float = 0.0
) -> tuple[Tensor, ...]:
    draws, rewards = torch.Generator().manual_seed(0), torch.full_like(a[..., 0], 0.3) if rewards is None else rewards
    found = model.losses(s, a, rewards, free_nats=free_nats, generator=draws)
    z = model.update(model.initial(len(s)), a[:, 0], s[:, 0])
    return (
        found.total,
        found.observation,
        found.divergence,
        *model.step(z, a[:, 0]),
        model.imagine(z, a.movedim(1, 0)),
    )


def _linear(z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    after = 0.9 * z + 0.5 * a
    return after, -after.square().sum(-1)


def _imagined(step: Any, z: Tensor, **words: Any) -> tuple[Tensor, Tensor]:
    """The value loss holds the states fixed, so that only the returns are differentiated."""
    found = dynamics.imagination_policy_loss(
        step,
        lambda s: -0.3 * s,
        lambda s: -s.square().sum(-1),
        z,
        **{"horizon": 2, "discount": 0.5, "trace": 0.25, **words},
    )
    return z + 0 * found.policy.detach(), found.returns.detach()


def _imagined_by_hand(z: Tensor) -> tuple[Tensor, Tensor]:
    one, two = 0.75 * z, 0.75**2 * z
    last = -two.square().sum(-1) * 1.5
    first = -one.square().sum(-1) + 0.5 * (-0.75 * one.square().sum(-1) + 0.25 * last)
    return z, torch.stack([first, last])


CONTRACTS = [
    Module(
        "dynamics.LatentWorldModel",
        _everything,
        _normal((2, 2), (2, 1)),
        build=seeded(_model),
        batched=False,
        large_limit=100.0,
        why=f"observation and action have one batch: the law enlarges the first alone; {RANGE}",
        bad=[
            Bad((torch.zeros(2, 3), torch.zeros(2, 1)), {}, ValueError, "observation must have shape"),
            Bad((torch.zeros(2, 2), torch.zeros(2, 2)), {}, ValueError, "action must have shape"),
        ],
    ),
    Module(
        "dynamics.LatentWorldModel[replicates]",
        _everything,
        _normal((1, 2, 2), (1, 2, 1)),
        build=seeded(lambda: _model(replicates=2)),
        batched=False,
        large_limit=100.0,
        why=f"observation and action have one batch: the law enlarges the first alone; {RANGE}",
        bad=[Bad((torch.zeros(2, 3, 2), torch.zeros(2, 3, 1)), {}, ValueError, "observation must have shape")],
    ),
    Module(
        "dynamics.latent_consistency_loss",
        _loss,
        _normal((1, 2), (1, 1, 1)),
        build=seeded(_model),
        idle=[f"policy.{place}.{kind}" for place in (0, 2, 4) for kind in ("weight", "bias")],
        batched=False,
        large_limit=100.0,
        half=False,
        why=f"a mean over sequences; {RANGE}, and targets of several networks round differently",
        bad=[
            _bad({"decay": 0.0}, "decay must be > 0"),
            _bad({"discount": 1.5}, "discount must be in"),
            _bad({"noise": -1.0}, "noise must be >= 0"),
            _bad({"weights": (1.0, -1.0, 0.0)}, "weights must be >= 0"),
            _bad({"importance": torch.ones(3)}, r"importance must have shape \(1,\)"),
            Bad((torch.zeros(1, 2), torch.zeros(1, 3, 1)), {}, ValueError, "actions must have shape"),
        ],
    ),
    Module(
        "dynamics.latent_policy_loss",
        lambda model, z, **words: z + 0 * z.detach() + dynamics.latent_policy_loss(model, z, **words)[..., None] * 1.0,
        _normal((3, 2, 2)),
        build=seeded(_model),
        idle=[name for name, _ in _model().named_parameters() if not name.startswith("policy")],
        batched=False,
        gradcheck=False,
        gradgradcheck=False,
        forward_mode=False,
        large_limit=100.0,
        why=f"the latent states are held fixed; {RANGE}",
        bad=[
            Bad((torch.zeros(3, 2, 2),), {"decay": 2.0}, ValueError, "decay must be in"),
            Bad((torch.zeros(0, 2, 2),), {}, ValueError, "latents must have shape"),
        ],
    ),
    Contract(
        "dynamics.truncated_normal",
        lambda mean, std=0.2, **words: dynamics.truncated_normal(
            mean, std, **words, generator=torch.Generator().manual_seed(2)
        ),
        lambda g: [Call((0.3 * torch.rand(2, 3, generator=g, dtype=torch.float64),))],
        reference=lambda mean: (
            mean + (0.2 * torch.randn(2, 3, generator=torch.Generator().manual_seed(2)).double()).clamp(-0.3, 0.3)
        ).clamp(-1, 1),
        batched=False,
        vmap=False,
        compile=False,
        large=(),
        why="draws, as many as the mean has entries; the gradient of the bounds is left out (tested beside)",
        bad=[
            Bad((torch.zeros(2), -1.0), {}, ValueError, "std must be >= 0"),
            Bad((torch.zeros(2),), {"clip": 0.0}, ValueError, "clip must be > 0"),
            Bad((torch.zeros(2),), {"limit": 0.0}, ValueError, "limit must be > 0"),
        ],
    ),
    Module(
        "dynamics.RecurrentStateSpaceModel",
        _beliefs,
        _normal((1, 2, 3), (1, 1, 1)),
        build=seeded(_space),
        batched=False,
        vmap=False,
        compile=False,
        large_limit=100.0,
        half=False,
        why=f"draws, which neither vmap nor a compiled graph takes from a generator; sums over a sequence; {RANGE}",
        bad=[
            Bad((torch.zeros(2, 3, 4), torch.zeros(2, 2, 1)), {}, ValueError, "observations must have shape"),
            Bad((torch.zeros(2, 3, 3), torch.zeros(2, 3, 1)), {}, ValueError, "actions must have shape"),
            Bad(
                (torch.zeros(2, 3, 3), torch.zeros(2, 2, 1), torch.zeros(2, 3)),
                {},
                ValueError,
                "rewards must have shape",
            ),
            Bad(
                (torch.zeros(2, 3, 3), torch.zeros(2, 2, 1)), {"free_nats": -1.0}, ValueError, "free_nats must be >= 0"
            ),
        ],
    ),
    HigherOrder(
        "dynamics.imagination_policy_loss",
        _imagined,
        _normal((2, 1)),
        given=_linear,
        argument="step",
        reference=_imagined_by_hand,
        bad=[
            Bad((torch.zeros(2, 1),), {"horizon": 0}, ValueError, "horizon must be"),
            Bad((torch.zeros(2, 1),), {"trace": 2.0}, ValueError, "trace must be in"),
            Bad((torch.zeros(2, 1),), {"discount": -1.0}, ValueError, "discount must be in"),
        ],
        outputs=lambda found: found,
        batched=False,
        gradcheck=False,
        gradgradcheck=False,
        forward_mode=False,
        large_limit=1e3,
        half=False,
        why="its gradient is that of the policy's parameters, tested beside; squares leave the range",
    ),
    Exempt("dynamics.ReplayBuffer", "a memory; what it draws is tested", "dynamics/test_world_models.py"),
    Exempt("dynamics.update_average", "changes a module in place", "dynamics/test_world_models.py"),
]
