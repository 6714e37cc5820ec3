"""Gates that open and close parts of a trained network, learned by the derivative that a step can be given.

A step plus a fine sawtooth times a shape is as near to the step as one likes, while its true derivative is near the
shape: so 0-1 choices are trained by gradient (Kim, Park, Jung, Choe, AAAI 2020). A gate is multiplied to each channel
or head of a trained network, gates and weights are tuned on the loss of the task plus the squared distance of the exact
cost from a budget, and what is closed in the end is cut out.

Smaller than in the paper: three convolutions on garments (Fashion-MNIST; paper: ResNet-56, CIFAR-10), a denoiser of
photographs, a transformer on characters of the King James Bible (paper: style transfer, optical flow, translation); all
real. The budget falls in 60 % of the steps for gates, which end when it is met; then the network is cut and tuned.
Baselines cut first and tune for all steps: channels of the smallest slopes of the loss (Molchanov et al. 2019), scales
(Liu et al. 2017), filters (Li et al. 2017), random ones; or learn hard concrete gates (Louizos et al. 2018). Settings
were chosen on images to train. Tuning makes random ones nearly as good as any, as Liu et al. (2019) found.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from pullback import data, discrete, topology
from pullback.discrete import BudgetPressure, NetworkCost, attach_gates, close_smallest, prune_closed, unit_importance
from pullback.lab import Arm, Lab, above, at_least, at_most, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    pretrain: Annotated[int, at_least(1)] = 300
    """Adam steps of each network that is made smaller."""
    steps: Annotated[int, at_least(10)] = 120
    """Steps that make it smaller: up to half of them for gates and weights, the rest for what is left."""
    batch: Annotated[int, at_least(1)] = 64
    """Images a step."""
    width: Annotated[int, at_least(2)] = 16
    """Channels of the first convolution; the others have twice and four times as many."""
    lr: Annotated[float, above(0)] = 5e-3
    """Step size of Adam for weights, which falls to 0 where no gate is learned."""
    gate_lr: Annotated[float, above(0)] = 2e-2
    """Step size of Adam for gates."""
    concrete_lr: Annotated[float, above(0)] = 0.3
    """The same for hard concrete gates."""
    price: Annotated[float, above(0)] = 10.0
    """Weight of the squared distance of the cost from its budget, up to 11 times that where it stays missed."""
    budgets: Annotated[tuple[float, ...], above(0), at_most(1)] = (0.25, 0.1)
    """Shares of the multiply-adds of the network of garments that may be left."""
    replicates: Annotated[int, at_least(1)] = 2
    """Initialisations and streams of batches, each the same for all arms; the first alone for the other two tasks."""


class Task(NamedTuple):
    """A network to be made smaller: its data, which layers get gates, what it is trained for and measured by."""

    name: str
    network: nn.Module
    layers: list[str]
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    batch: int
    criterion: Callable[[Tensor, Tensor], Tensor]


GATED: dict[str, dict[str, Any]] = {"gates": {}, "gates, bump": {"shaping": "sigmoid"}}
GATED["hard concrete"] = {"method": "hard_concrete", "initial": 2.0}
CUT = ("smallest slopes", "smallest scales", "smallest filters", "random")
KEPT = "accuracy, weights as they were"
BLOCKS = "trainable_gate gate attach_gates NetworkCost BudgetPressure unit_importance close_smallest prune_closed"


@system(
    "plug-in-trainable-gate",
    family="discrete",
    title="Plug-in, Trainable Gate for Streamlining Arbitrary Neural Networks",
    paper="Kim, Park, Jung, Choe, AAAI 2020, arXiv 1904.10921",
    config=Config,
    smoke={"pretrain": 2, "steps": 10, "gate_lr": 8e-3, "batch": 4, "width": 4, "budgets": (0.5,), "replicates": 1},
    full={"pretrain": 10_000, "steps": 10_000, "width": 64, "budgets": (0.5, 0.25, 0.1), "replicates": 3},
    data=("fashion_mnist", "photos", "bible"),
    blocks=(*(f"discrete.{b}" for b in BLOCKS.split()), "topology.HeadAttention"),
)
def run(lab: Lab, config: Config) -> None:
    """Check the derivative, make a network of garments smaller in several ways, then two others in the same lines."""
    _exact(lab)
    lab.data("Fashion-MNIST, photographs of OpenCV's examples, King James Bible", origin="real")
    whole, arms = lab.arm("whole", baseline=True), {n: lab.arm(n, baseline=n != "gates") for n in (*GATED, *CUT)}
    for _ in lab.replicates(config.replicates):
        garments = _garments(lab, config, whole)
        _tune(lab, config, whole, garments, garments.network, config.pretrain, "training")
        whole.metric("accuracy", _accuracy(garments, garments.network), better="higher", unit="%")
        for name, arm in arms.items():
            for budget in config.budgets:
                at = f"at {100 * budget:g} %"
                small, settled = _smaller(lab, config, arm, garments, budget, config.steps // 2, f"garments {at}")
                _tune(lab, config, arm, garments, small, config.steps - settled, at)
                arm.metric(f"accuracy {at}", _accuracy(garments, small), better="higher", unit="%")
            if name in ("gates", *CUT):
                small, _ = _smaller(lab, config, arm, garments, config.budgets[0], config.steps, KEPT, tuned=False)
                arm.metric(KEPT, _accuracy(garments, small), better="higher", unit="%")
    for task in (_denoiser(lab, whole), _reader(lab, whole)):
        steps = 5 * config.steps // 3  # fewer units, of which each costs more
        _tune(lab, config, whole, task, task.network, steps, "training")
        small, settled = _smaller(lab, config, arms["gates"], task, 0.5, steps // 2, task.name)
        for arm, network, left in ((arms["gates"], small, steps - settled), (whole, task.network, steps)):
            _tune(lab, config, arm, task, network, left, "tuning")
            arm.metric(task.name, task.criterion(network(task.test[0]), task.test[1]).detach(), better="lower")
    _judge(lab, config, arms, whole)
    _draw(lab, config, arms, whole)


def _tune(lab: Lab, config: Config, arm: Arm, task: Task, network: nn.Module, steps: int, name: str) -> None:
    """Adam on the weights, its step size falling to 0."""
    optimizer = torch.optim.Adam(network.train().parameters(), config.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-2, steps)
    batches = lab.fork(f"batches, {task.name}, {name}")
    for _ in arm.steps(steps, network, optimizer, schedule, batches, name=f"{task.name}, {name}"):
        arm.descend(_loss(task, network, batches), optimizer, name=f"loss of {task.name}, {name}")
        schedule.step()
    network.eval()


def _smaller(
    lab: Lab, config: Config, arm: Arm, task: Task, budget: float, steps: int, name: str, tuned: bool = True
) -> tuple[nn.Module, int]:
    """Cut a network down to a budget; also say how many steps it took to find out what stays."""
    network = copy.deepcopy(task.network).requires_grad_(tuned)  # in evaluation: normalisations keep their statistics
    gated, example = attach_gates(network, task.layers, **GATED.get(arm.name, {})), task.train[0][:32]
    cost = NetworkCost(gated, example[:1])
    pressure, batches = BudgetPressure(cost, budget, steps, price=config.price), lab.fork(f"batches, {name}")
    if arm.name in GATED:
        gated.gate_list.train()
        gated.generator = lab.fork(f"noise, {name}")
        rate = config.concrete_lr if arm.name == "hard concrete" else config.gate_lr
        optimizer = torch.optim.Adam([{"params": gated.gate_list.parameters(), "lr": rate}], config.lr)
        optimizer.add_param_group({"params": network.parameters()})
        for _ in arm.steps(steps, gated, pressure, optimizer, batches, gated.generator, name=f"gates, {name}"):
            arm.record(f"share, {name}", pressure.share)
            if pressure.met:
                break
            arm.descend(_loss(task, gated, batches) + pressure(), optimizer, name=f"loss with gates, {name}")
    else:
        losses = (_loss(task, gated, batches) for _ in range(config.steps // 3))  # of which slopes alone draw
        scores = unit_importance(gated, arm.name.removeprefix("smallest "), losses=losses, generator=batches)
        close_smallest(gated, scores, cost, budget)
    small = prune_closed(gated.eval(), example).requires_grad_(True)
    with torch.no_grad():
        wanted, found = gated(example), small(example)
        left = lab.operations(lambda: small(example[:1])) / 2
        arm.metric(f"difference of results, {name}", (found - wanted).abs().max() / wanted.abs().max(), better="lower")
        arm.metric(f"difference of counts, {name}", abs(float(cost()) - left), better="lower")
        arm.metric(f"multiply-adds, {name}", 100 * left / cost.full, better="lower", unit="%")
    return small, pressure.taken


def _loss(task: Task, network: nn.Module, batches: Generator) -> Tensor:
    chosen = torch.randint(len(task.train[0]), (task.batch,), generator=batches).to(task.train[0].device)
    return task.criterion(network(task.train[0][chosen]), task.train[1][chosen])


@torch.no_grad()
def _accuracy(task: Task, network: nn.Module) -> Tensor:
    return 100 * (network(task.test[0]).argmax(-1) == task.test[1]).float().mean()


def _garments(lab: Lab, config: Config, whole: Arm) -> Task:
    layers, width = list[nn.Module](), config.width
    train, test = data.fashion_mnist("train"), data.fashion_mnist("test")
    with whole.weights("garments"):
        for before, after, stride in ((1, width, 2), (width, 2 * width, 1), (2 * width, 4 * width, 1)):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if stride == 1 else []
        network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(36 * width, 10)).to(lab.device)
    known = train.images[:10_000, None].to(lab.device), train.labels[:10_000].to(lab.device)
    unseen = test.images[: 50 * config.batch, None].to(lab.device), test.labels[: 50 * config.batch].to(lab.device)
    return Task("garments", network, ["1", "4", "8"], known, unseen, config.batch, cross_entropy)


def _denoiser(lab: Lab, whole: Arm) -> Task:
    """Says which noise of 20 dB was added; its mean square error is what is left of it."""
    sets = []
    for names in (("apple", "building", "fruits", "orange"), ("home", "messi5")):
        grey = [data.photo(name).mean(-1).unfold(0, 24, 24).unfold(1, 24, 24).flatten(0, 1) for name in names]
        clean = torch.cat(grey)[:, None]
        noise = torch.randn(clean.shape, generator=lab.fork(f"noise, {names[0]}"))
        sets.append(((clean + 0.1 * noise).to(lab.device), noise.to(lab.device)))
    with whole.weights("denoiser"):
        first, middle, last = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((1, 16), (16, 16), (16, 1)))
        network = nn.Sequential(first, nn.ReLU(), middle, nn.ReLU(), last).to(lab.device)
    return Task("denoiser", network, ["0", "2"], sets[0], sets[1], 32, mse_loss)


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _reader(lab: Lab, whole: Arm) -> Task:
    lines = data.characters(" ".join(verse.text for verse in data.bible()[:8_000])).unfold(0, 33, 33).to(lab.device)
    with whole.weights("transformer"):
        layers: list[nn.Module] = [nn.Embedding(27, 32)]
        for _ in range(2):
            layers += [_Residual(nn.LayerNorm(32), topology.HeadAttention(32, 4, causal=True))]
            layers += [_Residual(nn.LayerNorm(32), nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 32))]
        network = nn.Sequential(*layers, nn.LayerNorm(32), nn.Linear(32, 27)).to(lab.device)

    def surprise(logits: Tensor, characters: Tensor) -> Tensor:
        return cross_entropy(logits.flatten(0, 1), characters.flatten())

    sets = [(part[:, :-1], part[:, 1:]) for part in (lines[600:], lines[:600])]
    return Task("transformer", network, ["1.1", "2.1", "3.1", "4.1"], sets[0], sets[1], 24, surprise)


def _exact(lab: Lab) -> None:
    """Autograd of the gate against its formula; of six closed gates, which open for a target made of three."""
    w = (8 * torch.rand(100_000, generator=lab.fork("weights"), dtype=torch.float64) - 4).requires_grad_(True)
    off = teeth = 0.0
    for slope in (50.0, 1e5):
        gates = discrete.trainable_gate(w, slope=slope, shaping="sigmoid", hard=False)
        tooth = (w - (slope * w).floor() / slope).detach()
        wanted = (1 - tooth * torch.tanh(w / 2)) / torch.cosh(w / 2) ** 2
        off = max(off, float((torch.autograd.grad(gates.sum(), w)[0] - wanted).detach().abs().max()))
        teeth = max(teeth, slope * float((gates - (w > 0).double()).detach().abs().max()))
    lab.claim(
        "autograd of the soft gate is g + s g' to 1e-12, its distance from the step at most sup g / M: M of 50 and 1e5",
        off <= 1e-12,
        teeth <= 1,
        scale="smoke",
    )
    weight, stream = torch.full((2, 6), -0.2, requires_grad=True), lab.fork("inputs")
    optimizer = torch.optim.Adam([weight], 1e-2)
    for _ in range(200):
        x = torch.randn(32, 6, generator=stream)
        opened = torch.stack([discrete.trainable_gate(weight[0]), torch.relu(weight[1])])
        loss = (x @ opened.T - x[:, :3].sum(1, keepdim=True)).square().mean(0) + 0.1 * opened.mean(1)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    lab.claim(
        "of six closed gates the three that are needed open within 200 steps, and only they; with relu(w) none does",
        (weight > 0).tolist() == [[True] * 3 + [False] * 3, [False] * 6],
        scale="smoke",
    )


def _judge(lab: Lab, config: Config, arms: dict[str, Arm], whole: Arm) -> None:
    ours, budgets = arms["gates"], (*config.budgets, config.budgets[0], 0.5, 0.5)
    right = [f"accuracy at {100 * b:g} %" for b in config.budgets]
    names = [*(f"garments at {100 * b:g} %" for b in config.budgets), KEPT, "denoiser", "transformer"]
    lab.claim(
        "a cut changes no result by more than 1e-5 of the largest and leaves as many multiply-adds as gates counted",
        *(ours[f"difference of results, {name}"] <= 1e-5 for name in names),
        *(ours[f"difference of counts, {name}"] <= 0 for name in names),
        scale="smoke",
    )
    lab.claim(
        "gates keep every budget to 2 points of the whole network's multiply-adds",
        *(abs(ours[f"multiply-adds, {n}"] - 100 * b) <= 2 for n, b in zip(names, budgets, strict=True)),
    )
    lab.claim(
        "weights as they were, channels that gates learn are 10 points better than any score's, and better each time",
        *(ours[KEPT] >= arms[name][KEPT] + 10 for name in CUT),
        *(min((ours[KEPT] - arms[name][KEPT]).values, default=0.0) > 0 for name in CUT),
    )
    lab.claim(
        "tuned for as many steps in all, they are at most 1 point behind the best other way at every budget",
        *(ours[a] >= arm[a] - 1 for a in right for arm in arms.values() if arm != ours),
    )
    lab.claim(
        "so tuned they are at least as accurate as the largest filters and 3 points more than random ones, everywhere",
        *(ours[a] >= arms[n][a] + d for a in right for n, d in (("smallest filters", 0), ("random", 3))),
    )
    lab.claim(
        "at half of its multiply-adds a denoiser loses at most 0.5 dB, a transformer at most 0.1 nats",
        ours["denoiser"] / whole["denoiser"] <= 10**0.05,
        ours["transformer"] <= whole["transformer"] + 0.1,
    )


def _draw(lab: Lab, config: Config, arms: dict[str, Arm], whole: Arm) -> None:
    figure, (function, result) = lab.subplots(1, 2, figsize=(10, 4.4))
    w = torch.linspace(-0.5, 0.5, 2001)[:, None] + 1e-5  # off the steps
    function.plot(w, torch.cat([discrete.trainable_gate(w, slope=m, hard=False) for m in (5.0, 50.0)], 1), color="0.4")
    function.set(xlabel="weight", title="gates of slope 1, M = 5 and 50")
    at = [f"at {100 * budget:g} %" for budget in config.budgets]
    for name, arm in arms.items():
        shares, right = ([arm[f"{of} {a}"] for a in at] for of in ("multiply-adds, garments", "accuracy"))
        result.plot(shares, right, "o-", color=arm.colour, label=name)
    result.axhline(whole["accuracy"], color=whole.colour, label="whole, not tuned")
    result.set(xlabel="% of the multiply-adds", title="% of unseen garments right")
    figure.legend(*result.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    lab.figure("gates", figure, "A gate that is not hard; networks of garments that were cut and tuned.")
    lab.curves(f"share, garments {at[-1]}", caption="What is open; where two shapes agree, one hides the other.")
    lab.bars(KEPT, caption="Channels chosen at the first budget, with the weights that the network had.")
