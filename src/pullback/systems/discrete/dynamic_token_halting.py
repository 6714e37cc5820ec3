"""A detector whose tokens stop when they have said what they can, learned through a step that has no gradient.

Before each layer of a transformer a score decides which tokens go on. What is gathered away teaches nothing, so to
learn all stay: a halted one is no key and is not updated, values are those of the gathered pass to rounding, but the
gradient of its score tells what it would have been worth. Halted tokens come back for the head (recycling), and a
sparsity loss spares tokens near objects (Ye, Meyer, Chai, Liu, ICCV 2023; no public code: masks as factors in attention
are our form of its equivalent differentiable forward pass).

Smaller than in the paper: no lidar but scenes composed of real digits 0 to 3, halved to 14 x 14 pixels, 1 to 3 on a
canvas of 60 x 60 among fragments of strokes; tokens are its cells of 5 x 5 pixels that hold ink and see 11 x 11, and
only attention mixes them. One detector is trained without halting, from which every arm goes on; without recycling a
halted token counts as background. So small scenes hardly need deep layers: with recycling the first alone is as good as
all, and what a rule is worth shows without it. Scores need smaller steps, or all close at once: that costs 2 points.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from pullback import data, discrete
from pullback.data import OccupiedCells, Scenes
from pullback.discrete import HaltingOutput
from pullback.lab import Arm, Lab, Measured, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    base_steps: Annotated[int, at_least(1)] = 350
    """Steps of the detector without halting, from which all arms start."""
    steps: Annotated[int, at_least(4)] = 90
    """Steps of each arm; sparsity counts after the first quarter."""
    batch: Annotated[int, at_least(1)] = 32
    """Scenes a step."""
    width: Annotated[int, at_least(4)] = 48
    """Of the tokens, a multiple of 4."""
    layers: Annotated[int, at_least(2)] = 4
    """Of the transformer."""
    base_lr: Annotated[float, above(0)] = 5e-3
    """Largest step size of the detector without halting."""
    lr: Annotated[float, above(0)] = 1e-3
    """First step size where scores learn (4e-3 halts all at once), twice that at the lowest budget; falls to 0."""
    rule_lr: Annotated[float, above(0)] = 4e-3
    """The same of the arms that halt by a rule, the best of 1e-3, 2e-3, 4e-3 (and 8e-3 by ink) for each of them."""
    sparsity: Annotated[float, at_least(0)] = 0.15
    """Weight of the sparsity loss."""
    hard_sparsity: Annotated[float, at_least(0)] = 1.0
    """The same at the lowest budget."""
    valid: Annotated[int, at_least(1)] = 300
    """Scenes on which the threshold of the detections is chosen and the budget of the baselines is read."""
    test: Annotated[int, at_least(1)] = 800
    """Scenes of unseen digits."""


RADIUS = 6.0  # pixels from a detection to its object
LIVE, NEAR = "live tokens, deeper layers", "near objects, last layer"
Rule = Callable[[OccupiedCells, torch.Generator], Tensor | None]  # who is alive in each layer; None: the scores decide
Halts = tuple[float, float, Rule]  # with the step size and the weight of the sparsity loss
Draw = Callable[[str, int, torch.Generator], Scenes]


class Detector(nn.Module):
    """Each token's view, the transformer, and the classes of the object to whose centre it is nearest."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(121, config.width), nn.GELU(), nn.Linear(config.width, config.width))
        bias = discrete.RelativePositionBias(4, reach=4)
        self.body = discrete.HaltingTransformer(config.width, 4, config.layers, bias=bias)
        last = nn.Linear(config.width, 4)
        nn.init.constant_(last.bias, -3.0)  # objects are rare
        self.head = nn.Sequential(nn.LayerNorm(config.width), last)

    def forward(self, tokens: OccupiedCells, **how: Tensor | bool | None) -> tuple[Tensor, HaltingOutput]:
        """Return the logits of all tokens and who lived how long."""
        output = self.body(self.embed(tokens.views), tokens.cells, tokens.mask, **how)
        return self.head(output.features), output


@system(
    "dynamic-token-halting",
    family="discrete",
    title="Efficient Transformer-based 3D Object Detection with Dynamic Token Halting",
    paper="Ye, Meyer, Chai, Liu, ICCV 2023, arXiv 2303.05078",
    config=Config,
    smoke={"base_steps": 2, "steps": 4, "batch": 4, "valid": 8, "test": 8},
    full={"base_steps": 5000, "steps": 2000, "width": 128, "layers": 6, "test": 5000},
    data=("mnist",),
    blocks=(
        *("discrete.halting_gate", "discrete.masked_attention", "discrete.HaltingTransformer"),
        *("discrete.RelativePositionBias", "discrete.sparsity_loss", "discrete.transformer_macs"),
        *("discrete.center_heatmap_loss", "discrete.find_centers", "discrete.detection_scores"),
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Train a detector, let its tokens halt by several rules, compare what they find and what they cost."""
    lab.data("scenes composed of MNIST digits and pieces of them", origin="real")
    images, labels = data.mnist("train")
    cut = 4 * len(labels) // 5
    parts = {"train": (images[:cut], labels[:cut]), "valid": (images[cut:], labels[cut:]), "test": data.mnist("test")}
    small = {name: (nn.functional.avg_pool2d(x[y < 4][:, None], 2)[:, 0], y[y < 4]) for name, (x, y) in parts.items()}

    def draw(part: str, count: int, stream: torch.Generator) -> Scenes:
        return data.digit_scenes(*small[part], count, fragments=8, generator=stream)

    scenes = {part: draw(part, n, lab.fork(part)) for part, n in (("valid", config.valid), ("test", config.test))}
    everyone, first = _ranked([1.0] * config.layers), _ranked([1.0] + [0.0] * (config.layers - 1))
    with lab.arm("no halting", baseline=True).weights():
        base = Detector(config)
    _fit(lab, config, lab.arm("no halting"), base, draw, (config.base_lr, 0, everyone), "base")

    def go_on(name: str, lr: float, sparsity: float, rule: Rule) -> tuple[Detector, list[float]]:
        arm, network = lab.arm(name, baseline=rule is not _by_scores), copy.deepcopy(base)
        network.body.recycle = "not recycled" not in name
        _fit(lab, config, arm, network, draw, (lr, sparsity, rule), "halting")
        return network, _look(config, arm, network, scenes, rule, lab.fork("order of the test"))

    go_on("no halting", config.rule_lr, 0, everyone)
    go_on("first layer", config.rule_lr, 0, first)
    network, _ = go_on("learned", config.lr, config.sparsity, _by_scores)
    _, shares = go_on("learned, not recycled", config.lr, config.sparsity, _by_scores)
    go_on("by ink, not recycled", config.rule_lr, 0, _ranked(shares))
    go_on("random, not recycled", config.rule_lr, 0, _ranked(shares, by_ink=False))
    hard, _ = go_on("hard", 2 * config.lr, config.hard_sparsity, _by_scores)
    go_on("hard, not recycled", 2 * config.lr, config.hard_sparsity, _by_scores)
    cells = _tokens(scenes["test"])
    _judge(lab, lab.metric("near objects, all", 100 * _near(cells, scenes["test"]).sum() / cells.mask.sum(), unit="%"))
    _exact(lab, network, Scenes(*(part[:64] for part in scenes["test"])))
    if lab.scale != "smoke":
        _cost(lab, network, hard, _tokens(draw("test", 96, lab.fork("cost"))))
    _draw(lab, config, network, Scenes(*(part[:4] for part in scenes["test"])))


def _tokens(scenes: Scenes) -> OccupiedCells:
    return data.occupied_cells(scenes.images, 5, view=11)


def _near(tokens: OccupiedCells, scenes: Scenes) -> Tensor:
    """Whether a token's cell touches a digit."""
    away = (tokens.positions[:, :, None] - scenes.centers[:, None]).abs().amax(-1)
    return ((away < 9.5) & (scenes.labels >= 0)[:, None]).any(-1) & tokens.mask


def _by_scores(tokens: OccupiedCells, stream: torch.Generator) -> None:
    """The network decides who is alive."""


def _ranked(shares: list[float], *, by_ink: bool = True) -> Rule:
    """These shares of a scene's tokens live in each layer, at least one: the brightest, or at random."""

    def rule(tokens: OccupiedCells, stream: torch.Generator) -> Tensor:
        value = tokens.brightness if by_ink else torch.rand(tokens.mask.shape, generator=stream)
        rank = torch.where(tokens.mask, value, -1).argsort(dim=1, descending=True).argsort(1)
        counts = [(tokens.mask.sum(1, keepdim=True) * share).round().clamp(min=1) for share in shares]
        return torch.stack([(rank < count) & tokens.mask for count in counts], 1)

    return rule


def _loss(logits: Tensor, tokens: OccupiedCells, scenes: Scenes) -> Tensor:
    centers, labels = scenes.centers, scenes.labels
    return discrete.center_heatmap_loss(logits, tokens.positions, centers, labels, radius=4.0, mask=tokens.mask).mean()


def _fit(lab: Lab, config: Config, arm: Arm, network: Detector, draw: Draw, halts: Halts, of: str) -> None:
    lr, sparsity, rule = halts
    steps, rise = (config.base_steps, 40) if of == "base" else (config.steps, 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min((t + 1) / rise, 1 - t / steps))
    batches, order = lab.fork(f"batches, {of}"), lab.fork(f"order, {of}")
    for step in arm.steps(steps, network, optimizer, schedule, batches, order, name=of):
        scenes = draw("train", config.batch, batches)
        tokens = _tokens(scenes)
        logits, output = network(tokens, alive=rule(tokens, order))
        loss = _loss(logits, tokens, scenes)
        if sparsity and step >= steps // 4:
            weights = torch.where(_near(tokens, scenes), 0.2, 1.0)
            loss = loss + sparsity * discrete.sparsity_loss(output.alive[:, 1:], weights, mask=tokens.mask).mean()
        arm.descend(loss, optimizer, name=f"loss, {of}", clip=1.0)
        schedule.step()


@torch.no_grad()
def _look(
    config: Config, arm: Arm, network: Detector, scenes: dict[str, Scenes], rule: Rule, order: torch.Generator
) -> list[float]:
    """What is found in unseen scenes, and by how many; returns the shares that live in the layers on the others."""
    f1, lived, tokens = {}, {}, {}
    for part, (_, centers, labels) in scenes.items():
        tokens[part] = cells = _tokens(scenes[part])
        logits, output = network(cells, alive=rule(cells, order))
        lived[part] = output.alive > 0
        seen = cells.mask if network.body.recycle else lived[part][:, -1]
        found = discrete.find_centers(logits, cells.positions, radius=RADIUS + 1, mask=seen)
        score = partial(discrete.detection_scores, found, centers, labels, radius=RADIUS)
        f1[part] = [score(threshold=t / 20).f1 for t in range(1, 19)]
    best = max(range(18), key=lambda t: f1["valid"][t])
    arm.metric("F1", 100 * f1["test"][best], better="higher", unit="%")
    counts, full = lived["test"].sum(-1), tokens["test"].mask.sum(-1, keepdim=True).expand(-1, config.layers)
    arm.metric(LIVE, 100 * counts[:, 1:].sum() / full[:, 1:].sum(), better="lower", unit="%")
    cost, most = (discrete.transformer_macs(n.float(), config.width).sum() for n in (counts, full))
    arm.metric("multiply-adds", 100 * cost / most, better="lower", unit="%")
    near, last = _near(tokens["test"], scenes["test"]), lived["test"][:, -1]
    arm.metric(NEAR, 100 * (near & last).sum() / last.sum(), better="higher", unit="%")
    return [float(s) for s in lived["valid"].sum((0, 2)) / tokens["valid"].mask.sum()]


def _judge(lab: Lab, everywhere: Measured) -> None:
    none, ours, hard = (lab.arms[name] for name in ("no halting", "learned", "hard"))
    left, lost, ink, chance = (lab.arms[f"{n}, not recycled"] for n in ("learned", "hard", "by ink", "random"))
    lab.claim(
        "recycled or not, learned halting keeps F1 within 3 points at 45 % or less of the tokens after the first layer",
        *(arm["F1"] >= none["F1"] - 3 for arm in (ours, left)),
        *(arm[LIVE] <= 45 for arm in (ours, left)),
    )
    lab.claim(
        "without recycling, at equal shares, learned is 4 points above most ink at least, that 16 above random tokens",
        left["F1"] >= ink["F1"] + 4,
        ink["F1"] >= chance["F1"] + 16,
        abs(left[LIVE] - ink[LIVE]) <= 3,
    )
    lab.claim("at the lowest budget recycling is worth at least 5 points", hard["F1"] >= lost["F1"] + 5)
    lab.claim(
        "of the tokens that are live in the last layer at least 70 % are near objects, 1.6 times the share of all",
        ours[NEAR] >= 70,
        ours[NEAR] >= 1.6 * everywhere,
    )
    lab.bars("F1", LIVE, caption="What is found in unseen scenes, and how many tokens live after the first layer.")


def _exact(lab: Lab, network: Detector, scenes: Scenes) -> None:
    """Both paths, and what reaches the scores."""
    tokens = _tokens(scenes)
    logits, output = network(tokens)
    gathered, again = network(tokens, gather=True)
    off = float((logits - gathered)[tokens.mask].detach().abs().max())
    lab.claim(
        "the path that learns and the one that gathers live tokens agree to 1e-5, and on who lives",
        off <= 1e-5,
        torch.equal(output.alive, again.alive),
        scale="smoke",
        largest_difference=off,
    )
    weights = list(network.body.score.parameters())

    def reaching(loss: Tensor) -> float:
        found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        return sum(float(g.abs().sum()) for g in found if g is not None)

    cut, _ = network(tokens, alive=output.alive > 0)
    detection, sparsity = _loss(logits, tokens, scenes), discrete.sparsity_loss(output.alive).mean()
    lab.claim(
        "the losses of detection and of sparsity have a gradient for the scores; with a gate cut off it is exactly 0",
        reaching(detection) > 0,
        reaching(sparsity) > 0,
        reaching(_loss(cut, tokens, scenes)) == 0,
        scale="smoke",
    )


@torch.no_grad()
def _cost(lab: Lab, network: Detector, hard: Detector, tokens: OccupiedCells) -> None:
    everyone = tokens.mask[:, None].expand(-1, len(network.body.layers), -1)
    ways = {"learned": lambda: network(tokens, gather=True), "hard": lambda: hard(tokens, gather=True)}
    ways |= {"masked": lambda: hard(tokens), "all tokens": lambda: hard(tokens, alive=everyone, gather=True)}
    race = lab.race(ways)
    lab.claim(
        "gathering the live is faster than masking, and than computing all tokens without scores; at the lowest budget "
        "at least 1.8 times (96 scenes, one thread)",
        *(race.ratio(other, "learned") > 1 for other in ("all tokens", "masked")),
        *(race.ratio(other, "hard") >= 1.8 for other in ("all tokens", "masked")),
        live=lab.arms["hard"][LIVE],
    )


@torch.no_grad()
def _draw(lab: Lab, config: Config, network: Detector, scenes: Scenes) -> None:
    figure, axes = lab.subplots(1, len(scenes.labels), figsize=(10, 2.8), squeeze=False, layout="constrained")
    tokens = _tokens(scenes)
    lived = network(tokens)[1].alive.sum(1)
    for number, axis in enumerate(axes[0]):
        depth, there = torch.full((12, 12), torch.nan), tokens.mask[number]
        depth[tuple(tokens.cells[number, there].T)] = lived[number, there]
        axis.imshow(scenes.images[number], cmap="gray", extent=(0, 60, 60, 0))
        shown = axis.imshow(depth, extent=(0, 60, 60, 0), alpha=0.6, vmin=1, vmax=config.layers)
        for y, x in scenes.centers[number, scenes.labels[number] >= 0].tolist():
            axis.add_patch(Rectangle((x - 7, y - 7), 14, 14, fill=False, color="white"))
        axis.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=axes, ticks=range(1, config.layers + 1), label="layers that update it")
    lab.figure("layers", figure, "How many layers update each token of four unseen scenes; digits are framed in white.")
