"""Pruning to an exact budget by a transport problem that gets sharper with every batch, without a schedule.

Units of a network are shipped to "kept" or "dropped"; how much of a unit is kept is its factor, and the factors sum to
the budget in every step. Each batch takes one proximal step from the last plan, so scores add up: the choice is open at
first and hard in the end (Li, van Gemert, Hoefler, Moons, Eleftheriou, Verhoef, ICCV 2023). Compared with what is
pruned by size, at once or little by little, at random, by a mask at one temperature or a falling one, and by gates that
pay for being open; all get as many steps, step sizes were chosen for each on images to train.

Smaller than in the paper: digits of 8 x 8 pixels, a network of two convolutions and one of three matrices. The digits
are real. Scores begin with the sizes of the weights. What is not as in the paper: with step sizes as well tuned, what
is cut at once loses nothing at a quarter of the filters; gates with a tuned price and a tuned falling temperature
choose filters as well or better; weights dropped little by little that may grow again are as good as chosen ones or up
to two points better. Masks get hard within some twenty steps, not monotonically: to exchange two filters they get soft.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pullback import data, transport
from pullback.discrete import GatedModel, attach_gates, prune_closed, unit_importance
from pullback.lab import Arm, Lab, above, at_least, at_most, system
from pullback.topology import GradualMagnitudePruner
from pullback.transport import MaskedModel, TransportMask, attach_masks


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    pretrain: Annotated[int, at_least(1)] = 180
    """Adam steps of each network that is pruned."""
    choosing: Annotated[int, at_least(2)] = 240
    """Steps in which filters are chosen, with the weights as they were."""
    steps: Annotated[int, at_least(5)] = 400
    """Steps of pruning and tuning together, of all ways to prune."""
    batch: Annotated[int, at_least(1)] = 64
    """Images a step."""
    filters: Annotated[tuple[float, ...], above(0), at_most(1)] = (0.25,)
    """Shares of the filters of each convolution that stay; the first one is judged."""
    weights: Annotated[tuple[float, ...], above(0), at_most(1)] = (0.03,)
    """Shares of the weights of the other network that stay; the last one is judged."""
    epsilon: tuple[Annotated[float, above(0)], Annotated[float, above(0)]] = (0.5, 1.0)
    """Of masks of filters, and of single weights: the smaller, the sooner they are hard."""
    temperature: Annotated[float, above(0)] = 0.3
    """Of the mask at one temperature, the best of 0.03, 0.1, 0.3 and 1; the falling one goes from 1 to 0.01."""
    score_lr: Annotated[float, above(0)] = 0.02
    """Step size of Adam for scores."""
    lr: Annotated[float, above(0)] = 0.01
    """The same for weights in pretraining and while masks are learned; all step sizes fall to 0."""
    tuning_lr: Annotated[float, above(0)] = 0.03
    """The same for what was pruned."""
    price: Annotated[float, above(0)] = 1.1
    """Of open gates, for which about a quarter stays open; they take steps of 0.1."""
    replicates: Annotated[int, at_least(1)] = 3
    """Initialisations and batches, each the same for all arms."""


OURS, CONSTANT, FALLING, PRICED = "transport", "one temperature", "falling temperature", "priced gates"
SIZE, GRADUAL, RANDOM = "smallest at once", "smallest, gradually", "random"
KEPT, CHANGE = "accuracy, weights as they were", "change of accuracy when made hard"
SOFT, CHOOSING = "softness at the end", "choosing filters"
CONVOLUTIONS, MATRICES = ("0", "3"), ("1", "3", "5")
digits = cache(data.digits)
Masked = tuple[GatedModel | MaskedModel, list[TransportMask]]


@system(
    "differentiable-transportation-pruning",
    family="transport",
    title="Differentiable Transportation Pruning",
    paper="Li, van Gemert, Hoefler, Moons, Eleftheriou, Verhoef, ICCV 2023, arXiv 2307.08483",
    config=Config,
    smoke={"pretrain": 2, "choosing": 3, "steps": 10, "replicates": 1},
    full={"pretrain": 3000, "choosing": 2000, "steps": 6000, "weights": (0.3, 0.1, 0.03), "replicates": 5},
    data=("digits",),
    blocks=(
        "transport.proximal_sinkhorn",
        "transport.TransportMask",
        "transport.attach_masks",
        "discrete.attach_gates",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Count what a mask keeps; choose filters and weights in several ways, and tune what is left."""
    _budget(lab)
    lab.data("UCI digits, 1 797 images of 8 x 8", origin="real")
    names, shown = (OURS, CONSTANT, FALLING, PRICED, SIZE, GRADUAL, RANDOM), dict[str, Tensor | None]()
    arms, whole = {name: lab.arm(name, baseline=name != OURS) for name in names}, lab.arm("whole", baseline=True)
    for _ in lab.replicates(config.replicates):
        with whole.weights("filters"):
            first, second, last = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1), nn.Linear(256, 10)
            layers = [first, nn.ReLU(), nn.MaxPool2d(2), second, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), last]
            filters = nn.Sequential(*layers).to(lab.device)
        with whole.weights("weights"):
            layers = [nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)]
            weights = nn.Sequential(*layers).to(lab.device)
        tasks = {"filters": (filters, config.filters, FALLING), "weights": (weights, config.weights, GRADUAL)}
        for name, (network, _, _) in tasks.items():
            groups = [{"params": network.parameters(), "lr": config.lr}]
            _train(lab, config, whole, network, groups, config.pretrain, f"pretraining, {name}")
            whole.metric(f"accuracy, {name}", _accuracy(lab, network), better="higher", unit="%")
        for arm in (arms[name] for name in names if name != GRADUAL):
            shown.setdefault(arm.name, _choose(lab, config, arm, copy.deepcopy(filters)))
        for kind, (network, shares, rival) in tasks.items():
            for share in shares:
                for name in (OURS, rival, SIZE, RANDOM):
                    _prune(lab, config, arms[name], copy.deepcopy(network), share, kind)
    _judge(lab, config, arms)
    _draw(lab, config, {name: masks for name, masks in shown.items() if masks is not None})


def _budget(lab: Lab) -> None:
    """Of 256 entries 64 are wanted: how many are above 1/2 after 200 steps, where g is kept and where it is not."""
    scores = torch.randn(4, 256, generator=lab.fork("scores"), dtype=torch.float64)
    cost, target = torch.stack([-scores, 0 * scores], -1), torch.tensor([0.25, 0.75], dtype=torch.float64)
    counts = []
    for kept in (1, 0):
        state = transport.proximal_sinkhorn(cost, b=target, epsilon=1.0)
        for _ in range(200):
            state = transport.proximal_sinkhorn(cost, state._replace(g=kept * state.g), b=target, epsilon=1.0)
        counts.append((256 * state.log_plan[..., 0].exp() > 0.5).sum(-1))
    lab.claim(
        "64 of 256 entries wanted, masks keep 62 to 66 where the potential goes on from step to step, 71 or more where "
        "it begins at 0 in each; for 4 rows of scores",
        all(62 <= count <= 66 for count in counts[0].tolist()),
        all(count >= 71 for count in counts[1].tolist()),
        scale="smoke",
        **{f"kept, {how}": float(c.double().mean()) for how, c in zip(("going on", "from 0"), counts, strict=True)},
    )


def _train(
    lab: Lab,
    config: Config,
    arm: Arm,
    network: nn.Module,
    groups: list[dict[str, Any]],
    steps: int,
    name: str,
    *changed: Any,
    before: Callable[[int], object] = int,
    price: Callable[[], Tensor | float] = float,
    pruner: GradualMagnitudePruner | None = None,
) -> None:
    """Adam on images to train, its step sizes falling to 0; ``before`` is called before each step."""
    known, optimizer = digits("train"), torch.optim.Adam(groups)
    images, labels = known.images[:, None].to(lab.device), known.labels.to(lab.device)
    schedule, batches = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-2, steps), lab.fork(f"batches, {name}")
    for step in arm.steps(steps, network.train(), optimizer, schedule, batches, *changed, pruner or {}, name=name):
        before(step)
        chosen = torch.randint(len(images), (config.batch,), generator=batches).to(lab.device)
        arm.descend(cross_entropy(network(images[chosen]), labels[chosen]) + price(), optimizer, name=f"loss, {name}")
        schedule.step()
        if pruner is not None:
            pruner.step()


@torch.no_grad()
def _accuracy(lab: Lab, network: nn.Module) -> Tensor:
    unseen = digits("test")
    found = network.eval()(unseen.images[:, None].to(lab.device)).argmax(-1)
    return 100 * (found == unseen.labels.to(lab.device)).float().mean()


def _masked(lab: Lab, config: Config, arm: Arm, network: nn.Module, share: float, kind: str) -> Masked:
    """Mask filters or, under one budget, all weights; scores begin with their sizes, standardised."""
    model: GatedModel | MaskedModel
    if kind == "weights":
        model = attach_masks(network, MATRICES, share, epsilon=config.epsilon[1])
        sizes = [torch.cat([network.get_parameter(f"{n}.weight").detach().abs().flatten() for n in MATRICES])]
    else:
        epsilon = {CONSTANT: config.temperature, FALLING: 1.0}.get(arm.name, config.epsilon[0])
        gate = partial(TransportMask, keep=share, epsilon=epsilon, memory=arm.name not in (CONSTANT, FALLING))
        model = attach_gates(network, CONVOLUTIONS, gate=gate)
        sizes = list(unit_importance(model, "filters", ranks=False).values())
    masks = [mask for mask in model.modules() if isinstance(mask, TransportMask)]
    drawn = lab.fork("random scores")
    for size, mask in zip(sizes, masks, strict=True):
        scores = torch.randn(len(size), generator=drawn) if arm.name == RANDOM else (size - size.mean()) / size.std()
        mask.scores.data.copy_(scores)
        if arm.name in (SIZE, RANDOM):
            mask.harden(mask.scores.detach())
    return model, masks


def _learn(lab: Lab, config: Config, arm: Arm, masked: Masked, steps: int, name: str) -> Tensor:
    """Train scores, and the weights that may change; return the masks before each step, ``[steps, n]``."""
    network, masks = masked
    history = torch.zeros(steps, sum(len(mask.scores) for mask in masks))
    weights = [p for n, p in network.named_parameters() if p.requires_grad and not n.endswith("scores")]
    groups = [{"params": [mask.scores for mask in masks], "lr": config.score_lr}, {"params": weights, "lr": config.lr}]

    def before(step: int) -> None:
        history[step] = m = torch.cat([mask.expected() for mask in masks]).clamp(0, 1)  # one sweep leaves some above 1
        arm.record(f"softness, {name}", (m * (1 - m)).mean())
        for mask in masks if arm.name == FALLING else ():
            mask.epsilon = 0.01 ** (step / steps)

    _train(lab, config, arm, network, groups, steps, name, history, before=before)
    return history


def _choose(lab: Lab, config: Config, arm: Arm, network: nn.Module) -> Tensor | None:
    """Choose filters for the weights as they are, and look at the network before and after the choice is hard."""
    gated, masks = _masked(lab, config, arm, network.requires_grad_(False), config.filters[0], "filters")
    history = None
    if arm.name == PRICED:
        gated = attach_gates(network, CONVOLUTIONS, method="gumbel", initial=2.0)
        gates, gated.generator = list(gated.gates.values()), lab.fork("noise")
        groups = [{"params": gated.gate_list.parameters(), "lr": 0.1}]
        _train(
            *(lab, config, arm, gated, groups, config.choosing, CHOOSING, gated.generator),
            price=lambda: config.price * torch.cat([gate.expected() for gate in gates]).mean(),
        )
        arm.metric("open filters", 100 * torch.cat([gate.open for gate in gates]).float().mean(), unit="%")
    elif arm.name not in (SIZE, RANDOM):
        history = _learn(lab, config, arm, (gated, masks), config.choosing, CHOOSING)
        before = _accuracy(lab, gated)
        arm.metric(SOFT, (history * (1 - history))[-1].mean(), better="lower")
        gated.harden()
        arm.metric(CHANGE, abs(_accuracy(lab, gated) - before), better="lower", unit="%")
    arm.metric(KEPT, _accuracy(lab, gated), better="higher", unit="%")
    return history


def _prune(lab: Lab, config: Config, arm: Arm, network: nn.Module, share: float, kind: str) -> None:
    """Choose what stays while the weights are tuned, or at once, and tune the rest."""
    name, steps, pruner = f"{100 * share:g} % of {kind}", config.steps, None
    if arm.name == GRADUAL:
        matrices, end = [network.get_parameter(f"{n}.weight") for n in MATRICES], steps * 3 // 5
        pruner = GradualMagnitudePruner(matrices, initial=0.0, final=1 - share, start=0, end=end, every=5)
    else:
        masked, masks = _masked(lab, config, arm, network, share, kind)
        if arm.name not in (SIZE, RANDOM):
            _learn(lab, config, arm, (masked, masks), steps * 7 // 10, f"masks, {name}")
            masked.harden()
            steps -= steps * 7 // 10
        network = prune_closed(masked, torch.zeros(1, 1, 8, 8)) if isinstance(masked, GatedModel) else masked
    groups = [{"params": network.parameters(), "lr": config.tuning_lr}]
    _train(lab, config, arm, network, groups, steps, f"tuning, {name}", pruner=pruner)
    arm.metric(f"accuracy, {name}", _accuracy(lab, network), better="higher", unit="%")


def _judge(lab: Lab, config: Config, arms: dict[str, Arm]) -> None:
    ours, constant = arms[OURS], arms[CONSTANT]
    filters = f"accuracy, {100 * config.filters[0]:g} % of filters"
    weights = f"accuracy, {100 * config.weights[-1]:g} % of weights"
    lab.claim(
        "without a schedule masks of filters get hard: the mean of m (1 - m) ends at 0.01 or less; the best constant "
        "temperature leaves 0.02 or more",
        ours[SOFT] <= 0.01,
        constant[SOFT] >= 0.02,
    )
    lab.claim(
        "so making them 0 or 1 changes the accuracy by at most 0.5 points, and by 1 or more at a constant temperature",
        ours[CHANGE] <= 0.5,
        constant[CHANGE] >= 1,
    )
    lab.claim(
        "weights as they were, chosen filters are 3 points better than the largest and than random ones",
        *(ours[KEPT] >= arms[name][KEPT] + 3 for name in (SIZE, RANDOM)),
    )
    lab.claim(
        "tuned, they are at most 1.5 points behind any other way to choose filters",
        *(ours[filters] >= arms[name][filters] - 1.5 for name in (FALLING, SIZE, RANDOM)),
    )
    lab.claim(
        f"{100 * config.weights[-1]:g} % of the weights, chosen and tuned, are 2 points better than the largest at "
        "once, 30 better than random ones, and at most 4 behind what is left where the smallest go little by little",
        ours[weights] >= arms[SIZE][weights] + 2,
        ours[weights] >= arms[RANDOM][weights] + 30,
        ours[weights] >= arms[GRADUAL][weights] - 4,
    )


def _draw(lab: Lab, config: Config, shown: dict[str, Tensor]) -> None:
    figure, axes = lab.subplots(1, len(shown), figsize=(11, 3.6), sharey=True)
    for axis, (name, history) in zip(axes, shown.items(), strict=True):
        history = history[:, 32:]
        axis.imshow(history[:, history[-1].argsort()].T, vmin=0, vmax=1, cmap="magma", aspect="auto", origin="lower")
        axis.set(title=name, xlabel="step")
    axes[0].set_ylabel("filter of 64, by its last mask")
    lab.figure(
        "masks", figure, "Masks of the second convolution, dark 0, bright 1; weights as they were, the first replicate."
    )
    lab.curves(f"softness, {CHOOSING}", log=False, xlabel="step", caption="Mean of m (1 - m) over both layers.")
    tuned = [f"accuracy, {100 * s:g} % of {k}" for k in ("filters", "weights") for s in getattr(config, k)]
    lab.bars(*tuned, caption="Of unseen digits; all ways take as many steps.")
    lab.bars(KEPT, caption="A quarter of the filters (of priced gates: about), without tuning.")
