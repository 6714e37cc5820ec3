"""Learning from a teacher's features by optimal transport, in its dual and its primal form.

A student and its teacher look at the same images. A critic that changes no faster than its input tells pairs of
features of one image from pairs of two; what it tells is a lower bound of the Wasserstein distance between both laws,
which the student raises (global). Inside a batch the student's features are shipped to the teacher's, and the price of
the plan is lowered (local) (Chen, Wang, Gan, Liu, Henao, Carin, CVPR 2021). Compared with labels alone, with softened
outputs of the teacher (Hinton et al. 2015), and with the contrast of logarithms that is replaced (Tian et al. 2020).

Smaller than in the paper: digits of 8 x 8 pixels, labels for 50 of them, a student of 16 units; also one that sees
4 x 4 pixels; negatives are the others of a batch. The digits are real. The critic compares by distance what two
spectrally normalised layers make of both features; in one arm it is a network of both at once, which may pair features
that are not alike. The teacher's features are centred and projected at random, which keeps the student at what the
teacher tells most apart; in one arm that projection is learned as in the paper, and both agree on what is easy to see.
Not as in the paper: softened outputs, which know the classes, teach best, and transport adds nothing to them; the
contrast with a tuned weight and temperature teaches about as much as transport.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, normalize

from pullback import data, discrete, transport
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run; weights and step sizes were chosen on images to train."""

    teacher_steps: Annotated[int, at_least(1)] = 300
    """Adam steps of the teacher, which knows all labels."""
    steps: Annotated[int, at_least(1)] = 250
    """Adam steps of each student."""
    batch: Annotated[int, at_least(2)] = 64
    """Images a step: of those with labels, and of all."""
    labels: Annotated[int, at_least(1)] = 50
    """Images whose labels students know."""
    hidden: Annotated[int, at_least(1)] = 16
    """Units of a student; the teacher has two layers of 256."""
    dim: Annotated[int, at_least(1)] = 32
    """Dimensions to which the features of both are projected."""
    lr: Annotated[float, above(0)] = 0.03
    """Step size of Adam for students, which falls to 0."""
    critic_lr: tuple[Annotated[float, above(0)], Annotated[float, above(0)]] = (0.003, 0.03)
    """The same for critics that compare by distance, and for the network."""
    label_lr: tuple[Annotated[float, above(0)], Annotated[float, above(0)]] = (0.01, 0.02)
    """The same for labels alone, on 8 x 8 and 4 x 4 pixels: the best of 0.003 to 0.06."""
    softened: Annotated[float, at_least(0)] = 1.0
    """Weight of the teacher's softened outputs, where they are used."""
    contrast: Annotated[float, at_least(0)] = 3.0
    """Weight of the contrast of logarithms, at the temperature 0.3; 0.1 and 1 and smaller weights are worse."""
    dual: Annotated[float, at_least(0)] = 2.0
    """Weight of the global term."""
    primal: Annotated[float, at_least(0)] = 1.0
    """Weight of the local term."""
    negatives: Annotated[int, at_least(0)] = 0
    """Of each image in the global term, from a bank of the last features of all; 0: the others of the batch."""
    proximal: Annotated[int, at_least(1)] = 6
    """Proximal steps of a plan."""
    replicates: Annotated[int, at_least(1)] = 4
    """Teachers, images with labels, initialisations and batches, each the same for all arms."""


LABELS, SOFTENED, CONTRAST, LOCAL = "labels alone", "softened outputs", "contrast", "local"
GLOBAL, NETWORK, BOTH, ALL = "global", "global, by a network", "global and local", "both, softened outputs"
FREE = "both, all learned"
NAMES = (BOTH, ALL, FREE, GLOBAL, NETWORK, LOCAL, CONTRAST, SOFTENED, LABELS)
FINE, COARSE = "8 x 8", "4 x 4"
digits = cache(data.digits)
ESTIMATE, PAIRS, EXACT, RATIO = "estimate of the critic", "estimate, unseen pairs", "exact distance", "largest ratio"


class Teacher(NamedTuple):
    """What students may look up: features of any images, features and outputs of those to train."""

    features: Callable[[Tensor], Tensor]
    known: Tensor
    outputs: Tensor


class Student(nn.Module):
    """A hidden layer, and what compares it with the teacher's: projections to the unit sphere, and a critic."""

    def __init__(self, pixels: int, config: Config, name: str) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(pixels, config.hidden), nn.ReLU())
        self.head = nn.Linear(config.hidden, 10)
        self.of_student = nn.Linear(config.hidden, config.dim)
        self.of_teacher = nn.Linear(256, config.dim).requires_grad_(name == FREE)
        if name == NETWORK:
            self.critic = transport.WassersteinCritic(config.dim, 64, slope=-1)
        else:
            self.critic = transport.WassersteinCritic(config.dim, config.dim, layers=1, form="distance")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images."""
        logits: Tensor = self.head(self.hidden(x))
        return logits

    def compared(self, x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the teacher's features and its own of the same images, projected, of length 1."""
        return normalize(self.of_teacher(features), dim=-1), normalize(self.of_student(self.hidden(x)), dim=-1)


@system(
    "wcord-distillation",
    family="transport",
    title="Wasserstein Contrastive Representation Distillation",
    paper="Chen, Wang, Gan, Liu, Henao, Carin, CVPR 2021, arXiv 2012.08674",
    config=Config,
    smoke={"teacher_steps": 2, "steps": 2, "batch": 8, "replicates": 1},
    full={"teacher_steps": 5000, "steps": 10_000, "batch": 256, "hidden": 64, "dim": 128, "negatives": 1024},
    data=("digits",),
    blocks=(
        *(f"transport.{b}" for b in ("WassersteinCritic", "wasserstein_mutual_information", "local_transport_loss")),
        *(f"transport.{b}" for b in ("distillation_loss", "exact_transport", "FeatureBank", "LayerFeatures")),
        "discrete.info_nce",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Train a teacher, then students of two kinds in several ways, and look at what critic and plan say."""
    lab.data("UCI digits, 1 797 images of 8 x 8", origin="real")
    arms = {name: lab.arm(name, baseline=name not in (BOTH, ALL, FREE)) for name in NAMES}
    plans: list[Tensor] = []
    for _ in lab.replicates(config.replicates):
        teacher = _teacher(lab, config)
        for task in (FINE, COARSE):
            for arm in arms.values():
                if task == FINE or arm.name not in (GLOBAL, NETWORK, LOCAL):
                    plans += _student(lab, config, arm, teacher, task)
    _judge(lab, arms, config.replicates)
    caption = "Of unseen digits, by what the student sees; the first three are those of the paper."
    lab.bars(f"accuracy, {FINE}", f"accuracy, {COARSE}", arms=list(arms.values()), caption=caption)
    figure, axes = lab.subplots(1, 2, figsize=(8, 4.2))
    for axis, plan, title in zip(axes, plans, ("before training", "after it"), strict=False):
        axis.imshow(plan * len(plan), vmin=0, vmax=1, cmap="magma")
        axis.set(title=title, xlabel="image, by the student", ylabel="image, by the teacher")
    lab.figure("plans", figure, "Plans between features of 64 unseen images; mass on the diagonal is of one image.")
    lab.curves(f"{ESTIMATE}, {FINE}", log=False, xlabel="step", caption="In batches of images to train.")


def _images(lab: Lab, split: Literal["train", "test"], task: str = FINE) -> tuple[Tensor, Tensor]:
    found = digits(split)
    images = found.images if task == FINE else avg_pool2d(found.images[:, None], 2)[:, 0]
    return images.to(lab.device), found.labels.to(lab.device)


@torch.no_grad()
def _accuracy(lab: Lab, arm: Arm, network: nn.Module, task: str) -> None:
    images, labels = _images(lab, "test", task)
    right = (network(images).argmax(-1) == labels).float().mean()
    arm.metric(f"accuracy, {task}", 100 * right, better="higher", unit="%")


def _teacher(lab: Lab, config: Config) -> Teacher:
    """Two layers of 256; their last features are centred, and scaled by one number."""
    arm, (images, labels) = lab.arm("teacher", baseline=True), _images(lab, "train")
    with arm.weights():
        layers = [nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
        network = nn.Sequential(*layers).to(lab.device)
    optimizer, batches = torch.optim.Adam(network.parameters(), 1e-3), lab.fork("batches of the teacher")
    for _ in arm.steps(config.teacher_steps, network, optimizer, batches):
        chosen = torch.randint(len(images), (128,), generator=batches).to(lab.device)
        arm.descend(cross_entropy(network(images[chosen]), labels[chosen]), optimizer)
    _accuracy(lab, arm, network, FINE)
    watched = transport.LayerFeatures(network, ["4"])
    with torch.no_grad():
        outputs, found = watched(images)
    raw = found["4"]
    centre, scale = raw.mean(0), raw.std()
    return Teacher(lambda x: (watched(x).features["4"] - centre) / scale, (raw - centre) / scale, outputs)


def _student(lab: Lab, config: Config, arm: Arm, teacher: Teacher, task: str) -> list[Tensor]:
    """Train on few labels and, as the arm says, on what the teacher makes of all images; return plans of others."""
    images, labels = _images(lab, "train", task)
    with arm.weights(task):
        student = Student(images[0].numel(), config, arm.name).to(lab.device)
    lr = config.label_lr[task == COARSE] if arm.name == LABELS else config.lr
    critic = {"params": student.critic.parameters(), "lr": config.critic_lr[arm.name == NETWORK]}
    others = {"params": [p for name, p in student.named_parameters() if not name.startswith("critic")], "lr": lr}
    optimizer, batches = torch.optim.Adam([others, critic]), lab.fork(f"batches, {task}")
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-2, config.steps)
    labelled = torch.randperm(len(images), generator=lab.fork("images with labels"))[: config.labels]
    bank = transport.FeatureBank(len(images), config.dim, generator=lab.fork("bank")).to(lab.device)
    before = _plan(lab, student, teacher, task)
    for _ in arm.steps(config.steps, student, optimizer, schedule, batches, bank, name=task):
        known = labelled[torch.randint(len(labelled), (config.batch,), generator=batches)].to(lab.device)
        chosen = torch.randperm(len(images), generator=batches)[: config.batch].to(lab.device)
        loss = cross_entropy(student(images[known]), labels[known])
        if arm.name in (SOFTENED, ALL):
            softened = transport.distillation_loss(student(images[chosen]), teacher.outputs[chosen])
            loss = loss + config.softened * softened.mean()
        if arm.name not in (SOFTENED, LABELS):
            t, s = student.compared(images[chosen], teacher.known[chosen])
        if arm.name == CONTRAST:
            loss = loss + config.contrast * _contrast(t, s)
        if arm.name in (GLOBAL, NETWORK, BOTH, ALL, FREE):
            drawn = bank.draw(chosen, config.negatives, generator=batches) if config.negatives else None
            estimate = transport.wasserstein_mutual_information(student.critic, t, s, drawn)
            bank.update(chosen, s.detach())
            loss = loss - config.dual * estimate
            arm.record(f"{ESTIMATE}, {task}", estimate)
        if arm.name in (LOCAL, BOTH, ALL, FREE):
            loss = loss + config.primal * transport.local_transport_loss(t, s, steps=config.proximal).value
        arm.descend(loss, optimizer, name=f"loss, {task}")
        schedule.step()
    _accuracy(lab, arm, student, task)
    if task == FINE and arm.name in (BOTH, NETWORK):
        _bound(lab, arm, student, teacher)
    if task == COARSE or arm.name != BOTH:
        return []
    plans = [before, _plan(lab, student, teacher, task)]
    for plan, when in zip(plans, ("before", "after"), strict=True):
        arm.metric(f"mass of pairs {when}", plan.diagonal().sum(), better="higher")
    return plans


def _contrast(t: Tensor, s: Tensor) -> Tensor:
    """Pick the other feature of an image among those of a batch, both ways."""
    cosines, losses = t @ s.mT, []
    others = ~torch.eye(len(t), dtype=torch.bool, device=t.device)
    for rows in (cosines, cosines.mT):
        positives, negatives = rows.diagonal().unsqueeze(-1), rows[others].view(len(t), -1)
        losses.append(discrete.info_nce(positives, negatives, temperature=0.3))
    return torch.stack(losses).mean()


@torch.no_grad()
def _plan(lab: Lab, student: Student, teacher: Teacher, task: str) -> Tensor:
    """Of 64 unseen images."""
    seen, whole = (_images(lab, "test", kind)[0][:64] for kind in (task, FINE))
    return transport.local_transport_loss(*student.compared(seen, teacher.features(whole)), steps=100).plan


@torch.no_grad()
def _bound(lab: Lab, arm: Arm, student: Student, teacher: Teacher) -> None:
    """Compare the critic with the exact distance of 128 pairs from as many of two images; move its input about."""
    images, g = _images(lab, "test")[0][:128], lab.fork("moves")
    t, s = student.compared(images, teacher.features(images))
    other = s.roll(1, 0)
    estimate = transport.wasserstein_mutual_information(student.critic, t, s, other[:, None])
    cost = transport.pairwise_cost(torch.cat([t, s], 1), torch.cat([t, other], 1), "euclidean")
    arm.metric(PAIRS, estimate, better="higher")
    arm.metric(EXACT, transport.exact_transport(cost).value)
    x, y = torch.randn(2, 10_000, 2 * t.shape[1], generator=g).to(lab.device)
    moved = student.critic(*x.chunk(2, -1)) - student.critic(*y.chunk(2, -1))
    arm.metric(RATIO, (moved.abs() / (x - y).norm(dim=-1)).max(), better="lower")


def _judge(lab: Lab, arms: dict[str, Arm], count: int) -> None:
    ours, plain, fine, coarse = arms[BOTH], arms[LABELS], f"accuracy, {FINE}", f"accuracy, {COARSE}"
    lab.claim(
        "both critics change by at most 1.001 times what their input moves, and find at most the exact distance",
        *(arms[name][RATIO] <= 1.001 for name in (BOTH, NETWORK)),
        *(arms[name][PAIRS] <= arms[name][EXACT] for name in (BOTH, NETWORK)),
        scale="smoke",
    )
    lab.claim(
        "after training both find at least 0.5 of the exact distance",
        *(arms[name][PAIRS] >= 0.5 * arms[name][EXACT] for name in (BOTH, NETWORK)),
    )
    lab.claim(
        "the plan puts at most 1 / 16 of its mass on pairs of one of 64 unseen images before training, 0.9 after it",
        ours["mass of pairs before"] <= 1 / 16,
        ours["mass of pairs after"] >= 0.9,
    )
    gains = [ours[task] - plain[task] for task in (fine, coarse)]
    lab.claim(
        "a student of all 64 pixels is at least 1 point, and 2 standard errors of the differences, better than with "
        "labels alone",
        gains[0] >= 1,
        gains[0] >= 2 * (gains[0].spread or 0.0) / count**0.5,
    )
    lab.claim("a student of 16 averaged pixels is at least 1 point better than with labels alone", gains[1] >= 1)
    lab.claim(
        "a student of 64 pixels is at least 1 point better also where the teacher's projection is learned",
        arms[FREE][fine] >= plain[fine] + 1,
    )
    lab.claim(
        "the global term is what teaches: with it a student of 64 pixels is at least 3 points better than with the "
        "local one alone",
        ours[fine] >= arms[LOCAL][fine] + 3,
    )
    lab.claim(
        "with softened outputs too it is at most 1.5 points behind softened outputs alone, on both kinds of pixels",
        *(arms[ALL][task] >= arms[SOFTENED][task] - 1.5 for task in (fine, coarse)),
    )
