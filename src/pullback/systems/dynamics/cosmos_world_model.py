"""Symbols that choose which rule moves which object, so that a world model works for objects it has never seen.

Every object of a scene becomes a slot, a vector that a decoder can draw, and four words: shape, colour, row, column.
The words alone choose which object is updated, by which learned rule and with a look at which other one; the slots
alone are computed with (Sehgal, Grayeli, Sun, Chaudhuri, ICLR 2024). An action moves all objects of a colour; models
learn from some combinations of shape and colour and are judged on the others. Smaller than in the paper: scenes of 32 x
32 simulated pixels, four objects whose masks are known; for CLIP a network trained on single objects before other
backgrounds and in tints without a name; slots learned first, then transitions by the error of slots, updates side by
side. Greedy plans, which miss a quarter of the goals even with the world itself, hardly gain on slots that choose.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from pullback import discrete
from pullback.dynamics import AlignedTransition, BlockState, BlockView, BlockWorld, GraphTransition
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    triples: Annotated[int, at_least(10)] = 4000
    """Scenes with an action and the scene after it, to learn from; a quarter as many to be judged on."""
    seeing: Annotated[tuple[int, int], at_least(2)] = (200, 400)
    """Adam steps of the network that names attributes, and of the autoencoder."""
    steps: Annotated[int, at_least(2)] = 400
    """Adam steps of each transition."""
    lr: Annotated[float, above(0)] = 1e-2
    """Largest step size of Adam: the best of 3e-3, 1e-2 and 2e-2 for each of the baselines."""
    image_weight: Annotated[float, at_least(0)] = 0.0
    """Of the squared error of the decoded next picture in the loss, beside that of the slots."""
    goals: Annotated[int, at_least(1)] = 100
    """To be planned for, in each replicate."""
    replicates: Annotated[int, at_least(1)] = 2
    """Weights, batches and goals of the transitions."""


BLOCKS = """dynamics.BlockWorld dynamics.GraphTransition dynamics.AlignedTransition discrete.RuleTransition
discrete.SymbolicAttributes discrete.ObjectScorer discrete.SlotAutoencoder discrete.match_actions discrete.assign_slots
discrete.retrieval_metrics"""
NAMES, TRAINED, UNSEEN = "shape colour row column".split(), "error, trained combinations", "error, unseen combinations"
GOALS, WORLD, BELONG = "goals reached", "the world itself", "chosen objects of the team, or pushed"


class Seen(NamedTuple):
    """Scenes and what follows an action: as they are, and as a model sees them."""

    before: BlockState
    after: BlockState
    acted: Tensor
    team: Tensor
    moved: Tensor
    slots: Tensor
    symbols: Tensor
    actions: Tensor
    following: Tensor


@system(
    "cosmos-world-model",
    family="dynamics",
    title="Neurosymbolic Grounding for Compositional World Models",
    paper="Sehgal, Grayeli, Sun, Chaudhuri, ICLR 2024, arXiv 2310.12690",
    config=Config,
    smoke={"triples": 20, "seeing": (2, 2), "steps": 2, "goals": 1, "replicates": 1, "image_weight": 0.1},
    full={"triples": 50_000, "seeing": (5000, 20_000), "steps": 50_000, "image_weight": 1.0},
    blocks=tuple(BLOCKS.split()),
)
def run(lab: Lab, config: Config) -> None:
    """Learn to see, then four transitions on some combinations of shape and colour, judged on the others."""
    lab.data("blocks of 5 shapes and 7 colours, of which an action moves all of a colour", origin="simulated")
    world, apart = BlockWorld(4, rules="team"), (torch.arange(5)[:, None] - torch.arange(7)) % 5
    unseen = (apart == 0) | (apart == 2)  # two shapes of each colour, each shape in two to four colours
    eyes = _learn_to_see(lab, config, world, unseen)
    train = eyes.look(world, *_tried(world, config.triples, ~unseen, lab.fork("train")))
    test = eyes.look(world, *_tried(world, config.triples // 4, unseen, lab.fork("test")))
    named = torch.stack([part.argmax(-1) for part in test.symbols.split(eyes.symbols.sizes, -1)], -1)
    right = (named == world.attributes(test.before)).double().mean((0, 1))
    accuracy = [lab.arm("perception").metric(f"accuracy of {n}", r) for n, r in zip(NAMES, right, strict=True)]
    lab.claim("words for objects of unseen combinations are right, 0.95 or more of each kind",
              *(a >= 0.95 for a in accuracy))  # fmt: skip
    if lab.scale != "smoke" and min(accuracy) < 0.95:
        lab.note("the labeller does not know the unseen combinations: nothing else is tried")
        return
    _learn(lab, config, world, unseen, eyes, (train, test))


class _Eyes(nn.Module):
    """What is learned before the transitions, then frozen: words, slots, and which action is for which slot."""

    def __init__(self, world: BlockWorld, slot: int) -> None:
        super().__init__()
        values = (world.SHAPES, world.COLOURS, "01234", "01234")
        scorer = discrete.ObjectScorer((5, 7), (5, 5), size=world.size)
        self.symbols = discrete.SymbolicAttributes(NAMES, values, scorer)
        self.slots = discrete.SlotAutoencoder(3, world.objects, slot, size=world.size, width=16, flat=True)
        self.key = nn.Linear(slot, 16)
        self.query = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 16))
        self.units = nn.Buffer(torch.tensor([[0.0], [1.0]]).repeat(1, slot))  # mean and scale of codes

    def match(self, slots: Tensor, actions: Tensor, hard: bool) -> discrete.MatchedActions:
        keys, queries = self.key(slots * self.units[1] + self.units[0]), self.query(actions[..., :2])
        return discrete.match_actions(keys, queries, actions[..., 2:], hard=hard)  # where it is for; the move

    def encode(self, view: BlockView) -> Tensor:
        return (self.slots.encode(view.images, view.masks) - self.units[0]) / self.units[1]

    def decode(self, slots: Tensor) -> Tensor:
        return self.slots.decode(slots * self.units[1] + self.units[0]).image

    def look(self, world: BlockWorld, before: BlockState, target: Tensor, move: Tensor) -> Seen:
        after, view = world.step(before, target, move), world.render(before)
        slots, acted = self.encode(view), nn.functional.one_hot(target, world.objects).bool()
        actions = self.match(slots, world.actions(before, target, move), True).actions
        parts = zip(*(x.split(500) for x in view), strict=True)
        symbols = torch.cat([self.symbols(BlockView(*part).objects(), hard=True) for part in parts])
        known = (acted, world.group(before, target), (before.cells != after.cells).any(-1))
        return Seen(before, after, *known, slots, symbols, actions, self.encode(world.render(after)))


def _tried(world: BlockWorld, count: int, atoms: Tensor, draws: torch.Generator) -> tuple[BlockState, Tensor, Tensor]:
    state = world.sample(count, atoms=atoms, generator=draws)
    target, move = (torch.randint(top, (count,), generator=draws) for top in (world.objects, 4))
    return state, target, move


def _learn_to_see(lab: Lab, config: Config, world: BlockWorld, unseen: Tensor) -> _Eyes:
    """Words from single objects before other backgrounds; slots and whose action it is from scenes."""
    arm, alone = lab.arm("perception"), BlockWorld(1)
    with arm.weights():
        eyes = _Eyes(world, 16)
    optimizer, draws = torch.optim.Adam(eyes.symbols.parameters()), lab.fork("single objects")
    schedule = OneCycleLR(optimizer, 1e-2, total_steps=config.seeing[0])
    for _ in arm.steps(config.seeing[0], eyes.symbols, optimizer, schedule, draws, name="words"):
        state = alone.sample(96, atoms=~unseen, generator=draws)
        (images, masks), truth = alone.render(state), alone.attributes(state)
        tints = torch.rand(48, 3, generator=draws)  # of half of them: between the colours that have a name
        tints[torch.arange(48), torch.randint(3, (48,), generator=draws)] = 0.3 + 0.4 * torch.rand(48, generator=draws)
        images[:48], truth[:48, :, 1] = masks[:48] * tints[..., None, None], -1
        behind = 0.5 * torch.rand(96, 3, 1, 1, generator=draws) + 0.1 * torch.randn(images.shape, generator=draws)
        view = BlockView(images + (1 - masks) * behind, masks)
        arm.descend(eyes.symbols.loss(view.objects(), truth), optimizer, name="nats of words")
        schedule.step()
    parts = [p for module in (eyes.slots, eyes.key, eyes.query) for p in module.parameters()]
    optimizer, draws = torch.optim.Adam(parts), lab.fork("scenes")
    schedule = OneCycleLR(optimizer, 6e-3, total_steps=config.seeing[1])
    for _ in arm.steps(config.seeing[1], eyes, optimizer, schedule, draws, name="slots"):
        state, target, move = _tried(world, 32, ~unseen, draws)
        images, masks = world.render(state)
        codes = eyes.slots.encode(images, masks)
        own = eyes.match(codes, world.actions(state, target, move), False).weights.diagonal(dim1=-2, dim2=-1)
        error = (eyes.slots.decode(codes).image - images).square().mean()
        arm.descend(error - 3e-3 * own.clamp_min(1e-9).log().mean(), optimizer, name="loss of slots")
        schedule.step()
    eyes.requires_grad_(False)
    codes = eyes.slots.encode(*world.render(_tried(world, 500, ~unseen, lab.fork("views"))[0]))
    eyes.units.copy_(torch.stack([codes.mean((0, 1)), codes.std((0, 1)).clamp_min(1e-6)]))
    return eyes


def _next(name: str, model: Any, seen: Seen) -> Tensor:
    """The next slots by a transition of this name."""
    if name == "graph network":
        return model(seen.slots, seen.actions)
    if name == "aligned network":  # in the order of colours, then shapes, as the words say
        order = (5 * seen.symbols[..., 5:12].argmax(-1) + seen.symbols[..., :5].argmax(-1)).argsort(-1)
        return model(seen.slots, seen.actions, order)
    return model(seen.slots, seen.symbols if name == "symbols choose" else seen.slots, seen.actions).slots


def _learn(lab: Lab, config: Config, world: BlockWorld, unseen: Tensor, eyes: _Eyes, seen: tuple[Seen, Seen]) -> None:
    """Four transitions of as many parameters learn from the same triples, by as many steps, and plan."""
    words, train = seen[0].symbols.shape[-1], seen[0]
    build = {
        "symbols choose": lambda: discrete.RuleTransition(16, words, 4),
        "slots choose": lambda: discrete.RuleTransition(16, 16, 4),
        "graph network": lambda: GraphTransition(16, 4, 97),
        "aligned network": lambda: AlignedTransition(4, 16, 4, 104),
    }
    arms = [lab.arm(name, baseline=name != "symbols choose") for name in build]
    models: dict[str, Any] = {}
    some = Seen(*train[:2], *(x[: config.triples // 4] for x in train[2:]))
    for _ in lab.replicates(config.replicates):
        for arm in arms:
            with arm.weights():
                model = models[arm.name] = build[arm.name]()
            optimizer, draws = torch.optim.Adam(model.parameters()), lab.fork("batches")
            schedule = OneCycleLR(optimizer, config.lr, total_steps=config.steps, pct_start=0.2)
            for _ in arm.steps(config.steps, model, optimizer, schedule, draws):
                rows = torch.randint(config.triples, (64,), generator=draws)
                part = Seen(*train[:2], *(x[rows] for x in train[2:]))
                after = _next(arm.name, model, part)
                loss = (after - part.following).square().mean()
                if config.image_weight:
                    shown = eyes.decode(after) - eyes.decode(part.following)
                    loss = loss + config.image_weight * shown.square().mean()
                arm.descend(loss, optimizer)
                schedule.step()
            with torch.no_grad():
                _judge(arm, model, (some, seen[1]), lab.fork("other symbols"))
                arm.metric(GOALS, _planned(arm.name, model, lab, config, world, unseen, eyes), better="higher")
        lab.arm(WORLD).metric(GOALS, _planned(WORLD, None, lab, config, world, unseen, eyes), better="higher")
    ours, loose, _, aligned = arms
    lab.claim(
        "on unseen combinations its error is at most 0.8 of that of rules that slots choose, of the graph network and "
        "of the aligned network; from the combinations of training it has grown by less than with slots and aligned",
        *(ours[UNSEEN] <= 0.8 * arm[UNSEEN] for arm in arms[1:]),
        *(ours[UNSEEN] - ours[TRAINED] <= arm[UNSEEN] - arm[TRAINED] for arm in (loose, aligned)),
    )
    lab.claim(
        "0.9 of the objects that move are chosen; of those chosen 0.05 more are of the team or pushed than where slots "
        "choose; with symbols of other scenes its error at least doubles",
        ours["moved objects that are chosen"] >= 0.9,
        ours[BELONG] >= loose[BELONG] + 0.05,
        ours["error with symbols of other scenes"] >= 2 * ours[UNSEEN],
    )
    lab.claim("objects permuted with symbols and actions: predictions permuted, to 1e-5; choices are 0 or 1",
              ours["largest difference when permuted"] <= 1e-5, ours["largest p (1 - p) of a choice"] <= 0)  # fmt: skip
    lab.claim("plans by its predictions reach 0.1 more of the goals than those of the aligned network",
              ours[GOALS] >= aligned[GOALS] + 0.1)  # fmt: skip
    below = "Errors: shares of those of a model in which nothing moves. Goals: the aligned network alone is far below."
    lab.bars(TRAINED, UNSEEN, GOALS, caption=below)
    _draw(lab, eyes, world, seen[1], models)


def _judge(arm: Arm, model: Any, seen: tuple[Seen, Seen], generator: torch.Generator) -> None:
    """Errors on combinations of training and on unseen ones; what was chosen, and what symbols matter."""
    after, test = [_next(arm.name, model, x) for x in seen], seen[1]
    still = [(x.slots - x.following).square().mean() for x in seen]
    errors = [(a - x.following).square().mean() / moving for a, x, moving in zip(after, seen, still, strict=True)]
    for name, error in zip((TRAINED, UNSEEN), errors, strict=True):
        arm.metric(name, error, better="lower")
    arm.metric("error, unseen to trained", errors[1] / errors[0], better="lower")
    arm.metric("scenes ranked first", discrete.retrieval_metrics(after[1], test.following).hits, better="higher")
    if isinstance(model, discrete.RuleTransition):
        words = test.symbols if arm.name == "symbols choose" else test.slots
        update = model(test.slots, words, test.actions)
        chosen, belong = update.primary.sum(-2) > 0.5, test.team | test.moved
        found, right = (chosen & test.moved).sum() / test.moved.sum(), (belong & chosen).sum() / chosen.sum()
        arm.metric("moved objects that are chosen", found.nan_to_num(0.0), better="higher")
        arm.metric(BELONG, right.nan_to_num(0.0), better="higher")
        mixed = model(test.slots, words[torch.randperm(len(words), generator=generator)], test.actions).slots
        arm.metric("error with symbols of other scenes", (mixed - test.following).square().mean() / still[1])
        order, exact = torch.randperm(4, generator=generator), copy.deepcopy(model).double()
        same, other = (exact(*(x[:, o].double() for x in (test.slots, words, test.actions))) for o in (range(4), order))
        arm.metric("largest difference when permuted", (other.slots - same.slots[:, order]).abs().max(), better="lower")
        arm.metric("largest p (1 - p) of a choice", max((x * (1 - x)).abs().max() for x in update[1:]), better="lower")


def _planned(name: str, model: Any, lab: Lab, config: Config, world: BlockWorld, unseen: Tensor, eyes: _Eyes) -> float:
    """Share of goals, four random actions away, that four greedy ones reach, to the slots nearest to its own."""
    draws = lab.fork("goals")
    state = goal = _tried(world, config.goals, unseen, draws)[0]
    for _ in range(4):
        goal = world.step(goal, *_tried(world, config.goals, unseen, draws)[1:])
    wanted, none = eyes.encode(world.render(goal)), torch.zeros(2, config.goals, dtype=torch.int64)
    tries = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    for _ in range(4):
        seen, moves = eyes.look(world, state, *none), tries.repeat(config.goals, 1).T
        many = BlockState(*(x.repeat_interleave(16, 0) for x in state))
        slots, symbols = (x.repeat_interleave(16, 0) for x in (seen.slots, seen.symbols))
        if name == WORLD:
            after = eyes.encode(world.render(world.step(many, *moves)))
        else:
            actions = eyes.match(slots, world.actions(many, *moves), True).actions
            after = _next(name, model, seen._replace(slots=slots, symbols=symbols, actions=actions))
        least, best = discrete.assign_slots(wanted[:, None], after.unflatten(0, (-1, 16))).distance.min(-1)
        closer = least < discrete.assign_slots(wanted, seen.slots).distance
        cells = world.step(state, *tries[best].T).cells
        state = state._replace(cells=torch.where(closer[:, None, None], cells, state.cells))
    return float((state.cells == goal.cells).flatten(1).all(1).double().mean())


def _draw(lab: Lab, eyes: _Eyes, world: BlockWorld, test: Seen, models: dict[str, Any]) -> None:
    """Predicted pictures, and what each rule is for."""
    (acted, team, moved), some = test[2:5], torch.topk(test.moved.sum(-1) % 4, 5).indices
    part = Seen(*test[:2], *(x[some] for x in test[2:]))
    pictures = [world.render(BlockState(*(x[some] for x in state))).images for state in test[:2]]
    with torch.no_grad():
        slots = [part.following, *(_next(name, model, part) for name, model in models.items())]
        pictures += [eyes.decode(x).clamp(0, 1) for x in slots]
        update = models["symbols choose"](test.slots, test.symbols, test.actions)
    rows = zip(["before", "after", "after, decoded", *models], (list(x.movedim(1, -1)) for x in pictures), strict=True)
    words = "Three of four objects move, of unseen combinations: pictures, then true and predicted slots decoded."
    lab.images(dict(rows), name="predictions", caption=words)
    kinds = {"acted on": acted, "same colour": team & ~acted, "pushed": moved & ~team, "others": ~(moved | team)}
    chosen = torch.einsum("btk,btr->bkr", update.primary, update.rule)
    table = [[name, *(f"{x:.2f}" for x in chosen[of].sum(0) / of.sum().clamp_min(1))] for name, of in kinds.items()]
    words = "Share of the objects of unseen combinations that each rule updates, by what they truly do."
    lab.table("rules", ["objects", *(f"rule {rule + 1}" for rule in range(chosen.shape[-1]))], table, words)
