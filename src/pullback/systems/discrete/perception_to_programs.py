"""Reading digits and writing programs, learned together by gradient descent from nothing but the answers.

A network turns each image into a distribution over symbols, and straight-line programs of relaxed lines compute with
the symbols; nobody says which digit an image shows, nor what the programs are. Many tasks share one reader, programs
have more lines than they need, a penalty shortens what is not used, and a network that has seen other tasks proposes
where the search for a program begins (Tang, Ellis, ICML 2023). Afterwards the likeliest program is checked.

Smaller than in the paper: integers, five operators, digits of 14 x 14 pixels (MNIST, real), eight tasks, and unseen
ones of two lines. The penalty grows linearly. Registers count as independent, so that a search can end in max(r, r),
which makes a larger one of an uncertain value. With a tuned step size a + b alone is read as well as all together.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback import data, discrete
from pullback.data import LabelledImages
from pullback.discrete import ProgramLogits, RelaxedProgram
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    steps: Annotated[int, at_least(1)] = 280
    """Adam steps of six tasks together, and of each alone."""
    easy_steps: Annotated[int, at_least(1)] = 150
    """The same for four tasks of one line."""
    synthesizer_steps: Annotated[int, at_least(1)] = 300
    """Adam steps of the network that proposes programs."""
    search_steps: Annotated[int, at_least(4)] = 60
    """Adam steps for the programs of unseen tasks, from proposed and from random logits."""
    examples: Annotated[int, at_least(1)] = 16
    """Of each task a step."""
    lines: Annotated[int, at_least(2)] = 4
    """Of a program; no task needs more than two."""
    penalty: Annotated[float, at_least(0)] = 0.1
    """Weight of the expected length at the end."""
    lr: Annotated[float, above(0)] = 8e-3
    """Step size of Adam for the reader, ten times that for logits; of 0.001, 0.002, 0.004, 0.008 and 0.016 the best
    both together and for each task alone, which is read much worse with less."""
    replicates: Annotated[int, at_least(1)] = 2
    """Initialisations and streams of digits."""


SIZE = 28  # the largest sum of three digits is 27
UNSEEN = 45  # functions of two lines that the synthesizer does not see
OPERATORS = discrete.integer_operators(SIZE)
TASKS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "a + b": (2, lambda a, b: a + b),
    "|a - b|": (2, lambda a, b: (a - b).abs()),
    "max(a, b)": (2, torch.maximum),
    "min(a, b)": (2, torch.minimum),
    "a + b + c": (3, lambda a, b, c: a + b + c),
    "max(a, b, c)": (3, lambda a, b, c: torch.maximum(a, torch.maximum(b, c))),
    "|a - b| + c": (3, lambda a, b, c: (a - b).abs() + c),
    "a + max(b, c)": (3, lambda a, b, c: a + torch.maximum(b, c)),
}
EASY, HARD, SIX = tuple(TASKS)[:4], tuple(TASKS)[4:], (*tuple(TASKS)[:2], *tuple(TASKS)[4:])
TRIPLES = torch.cartesian_prod(*[torch.arange(10)] * 3)


class Synthesis(nn.Module):
    """A reader, and a batch of programs for the tasks of two digits and for those of three."""

    def __init__(self, tasks: Sequence[str], lines: int) -> None:
        super().__init__()
        convolutions = (nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten())
        self.reader = nn.Sequential(*convolutions, nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))
        self.names = [names for n in (2, 3) if (names := [task for task in tasks if TASKS[task][0] == n])]
        self.programs = nn.ModuleList(
            RelaxedProgram(TASKS[names[0]][0], lines, OPERATORS, batch=(len(names),)) for names in self.names
        )

    def groups(self) -> list[tuple[list[str], RelaxedProgram]]:
        """The tasks of as many inputs, and their programs."""
        return [(names, cast(RelaxedProgram, p)) for names, p in zip(self.names, self.programs, strict=True)]

    def read(self, images: Tensor) -> Tensor:
        """The distribution over all symbols; only those of digits are possible."""
        return F.pad(torch.softmax(self.reader(images), -1), (0, SIZE + 1 - 10))

    def log_likelihood(self, digits: LabelledImages, examples: int, draw: torch.Generator) -> Tensor:
        """The mean over random examples of each task."""
        found = []
        for names, program in self.groups():
            places = torch.randint(len(digits.labels), (len(names), examples, program.inputs), generator=draw)
            shown, images = digits.labels[places], digits.images[places.flatten()]
            answers = torch.stack([TASKS[task][1](*shown[i].unbind(-1)) for i, task in enumerate(names)])
            found.append(program.log_likelihood(self.read(images).view(*places.shape, -1), answers).mean(-1))
        return torch.cat(found)

    def expected_length(self) -> Tensor:
        """Of the program of each task."""
        return torch.cat([program.expected_length() for _, program in self.groups()])

    def found(self) -> dict[str, tuple[str, bool]]:
        """The likeliest program of each task, and whether it is right on all inputs."""
        programs = {}
        for names, relaxed in self.groups():
            inputs = torch.cartesian_prod(*[torch.arange(10)] * relaxed.inputs)
            for task, program in zip(names, relaxed.harden(), strict=True):
                right = bool((program(inputs) == TASKS[task][1](*inputs.unbind(-1))).all())
                programs[task] = (program.to_source("abc"[: relaxed.inputs]) + " (wrong)" * (not right), right)
        return programs


@system(
    "perception-to-programs",
    family="discrete",
    title="From Perception to Programs: Regularize, Overparameterize, and Amortize",
    paper="Tang, Ellis, ICML 2023, arXiv 2206.05922",
    config=Config,
    smoke={"steps": 2, "easy_steps": 2, "synthesizer_steps": 2, "search_steps": 4, "examples": 2, "replicates": 1},
    full={"steps": 5_000, "easy_steps": 2_000, "synthesizer_steps": 20_000, "replicates": 5},
    data=("mnist",),
    blocks=tuple(f"discrete.{b}" for b in ("RelaxedProgram", "AmortizedSynthesizer", "enumerate_programs")),
)
def run(lab: Lab, config: Config) -> None:
    """Check the relaxation, learn tasks together and alone, shorten programs, propose them for unseen tasks."""
    _exact(lab)
    lab.data("MNIST digits, 14 x 14", origin="real")
    stored = data.mnist("train"), data.mnist("test")
    train, test = (LabelledImages(F.avg_pool2d(x[:, None], 2).to(lab.device), y.to(lab.device)) for x, y in stored)
    ours, short = lab.arm("together"), lab.arm("length penalty")
    alone, narrow = (lab.arm(name, baseline=True) for name in ("one at a time", "two lines"))
    lengths, functions = {ours: config.lines, short: config.lines, narrow: 2}, _two_lines()
    for _ in lab.replicates(config.replicates):
        for arm, tasks in ((ours, EASY), (alone, EASY[:1])):
            model = _learn(lab, config, arm, train, tasks, 1)
            arm.metric("digits read, one line", 100 - 100 * _read(model, test).error, better="higher", unit="%")
            arm.metric("programs found, one line", sum(right for _, right in model.found().values()), better="higher")
        shared = {arm: [_learn(lab, config, arm, train, SIX, n)] for arm, n in lengths.items()}
        models = shared | {alone: [_learn(lab, config, alone, train, [task], config.lines) for task in HARD]}
        found = {arm: dict(pair for m in some for pair in m.found().items()) for arm, some in models.items()}
        for arm, some in models.items():
            arm.metric("hard programs found of four", sum(found[arm][task][1] for task in HARD), better="higher")
            wrong = sum(_read(model, test).error for model in some) / len(some)
            arm.metric("digits read", 100 - 100 * wrong, better="higher", unit="%")
            if arm in shared:
                arm.metric("programs found of six", sum(found[arm][task][1] for task in SIX), better="higher")
                arm.metric("expected length", some[0].expected_length().sum(), unit="lines", better="lower")
        _propose(lab, config, models[ours][0], train, functions)
    _judge(lab)
    rows = [[task, *(some[task][0] if task in some else None for some in found.values())] for task in SIX]
    lab.table("programs", ["task", *(arm.name for arm in models)], rows, "The likeliest ones, last replicate.")
    lab.curves("digits read", "expected length", caption="While six tasks are learned; 200 training digits.")
    lab.curves("unseen programs found", caption="Share of tasks whose likeliest program is right.")
    shown = _read(models[ours][0], test).confusion.cpu().T
    figure, axis = lab.subplots(figsize=(4, 3.6))
    axis.imshow(shown / shown.sum(1, keepdim=True), cmap="Blues", vmin=0, vmax=1)
    axis.set(xticks=range(10), yticks=range(10), xlabel="symbol of the reader", ylabel="digit")
    lab.figure("confusion", figure, "What the reader of six tasks, never told a digit, makes of each, last replicate.")


def _learn(lab: Lab, config: Config, arm: Arm, train: LabelledImages, tasks: Sequence[str], lines: int) -> Synthesis:
    """The reader and the programs of some tasks."""
    name = ", ".join(tasks)
    with arm.weights(name):
        model = Synthesis(tasks, lines).to(lab.device)
    logits: dict[str, Any] = {"params": model.programs.parameters(), "lr": 10 * config.lr}
    optimizer = torch.optim.Adam([{"params": model.reader.parameters()}, logits], lr=config.lr, fused=True)
    draw = lab.fork(f"digits, {name}")
    steps, of_all = (config.easy_steps, EASY) if lines == 1 else (config.steps, SIX)
    # Alone, a task gets as many images a step as all tasks together.
    examples = config.examples * sum(TASKS[task][0] for task in of_all) // sum(TASKS[task][0] for task in tasks)
    for step in arm.steps(steps, model, optimizer, draw, name=name):
        loss = -model.log_likelihood(train, examples, draw).mean()
        if arm.name == "length penalty":
            loss = loss + config.penalty * step / steps * model.expected_length().mean()
        if tasks == SIX and step % 10 == 0:
            arm.record("digits read", 100 - 100 * _read(model, train, 200).error)
            arm.record("expected length", model.expected_length().sum())
        arm.descend(loss, optimizer, name=f"loss, {name}")
    return model


@torch.no_grad()
def _read(model: Synthesis, digits: LabelledImages, count: int | None = None) -> discrete.Matching:
    """What the reader makes of the first digits, symbols named as they fit best."""
    return discrete.match_clusters(model.reader(digits.images[:count]).argmax(-1), digits.labels[:count])


def _two_lines() -> Tensor:
    """Answers for all triples of the functions of two lines, without those that overflow often or hardly compute."""
    programs = discrete.enumerate_programs(3, 2, OPERATORS)
    functions = torch.stack([program(TRIPLES) for program in programs]).unique(dim=0)
    copies = (functions[..., None] == TRIPLES).sum(1).amax(-1)
    varied = torch.stack([answers.bincount().amax() for answers in functions]) <= 500
    return functions[(copies <= 800) & varied & ((functions == SIZE).sum(-1) <= 400)]


def _propose(lab: Lab, config: Config, model: Synthesis, train: LabelledImages, functions: Tensor) -> None:
    """Learn to propose programs for tasks, then search for those of unseen tasks from there, or from anywhere."""
    with torch.no_grad():
        symbols = model.read(train.images)
    tasks = lab.fork("tasks")
    functions = functions[torch.randperm(len(functions), generator=tasks)]
    unseen, seen = functions[:UNSEEN], functions[UNSEEN:]

    def examples(answers: Tensor, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        places = torch.randint(len(symbols), (len(answers), count, 3), generator=draw)
        numbers = train.labels.cpu()[places] @ torch.tensor([100, 10, 1])
        return symbols[places.to(symbols.device)], answers.gather(1, numbers).to(symbols.device)

    ours, base = lab.arm("amortised start"), lab.arm("random start", baseline=True)
    with ours.weights():
        program = RelaxedProgram(3, 2, OPERATORS, batch=(UNSEEN,)).to(lab.device)
        synthesizer = discrete.AmortizedSynthesizer(program, 128).to(lab.device)
    optimizer = torch.optim.Adam(synthesizer.parameters(), lr=3e-3, fused=True)
    for _ in ours.steps(config.synthesizer_steps, synthesizer, optimizer, tasks, name="synthesizer"):
        values, answers = examples(seen[torch.randint(len(seen), (64,), generator=tasks)], 16, tasks)
        loss = -program.log_likelihood(values, answers, synthesizer(values, answers)).mean()
        ours.descend(loss, optimizer, name="loss of the synthesizer")
    with torch.no_grad():
        # Half of the logits: what is proposed is likely at first, not certain.
        proposed = [0.5 * logits for logits in synthesizer(*examples(unseen, 16, tasks))]
    for arm, start in ((ours, proposed), (base, [logits.detach().clone() for logits in program.logits])):
        for parameter, logits in zip(program.logits, start, strict=True):
            parameter.data.copy_(logits)
        optimizer, draw = torch.optim.Adam(program.parameters(), lr=0.2, fused=True), lab.fork("search")
        for _ in arm.steps(config.search_steps, program, optimizer, draw, name="search"):
            arm.descend(-program.log_likelihood(*examples(unseen, config.examples, draw)).mean(), optimizer)
            right = [bool((p(TRIPLES) == y).all()) for p, y in zip(program.harden(), unseen, strict=True)]
            arm.record("unseen programs found", 100 * sum(right) / len(right))
        found = arm.series("unseen programs found")
        arm.metric("unseen programs found in a quarter", found[len(found) // 4], better="higher", unit="%")
        arm.metric("unseen programs found", found[-1], better="higher", unit="%")


def _judge(lab: Lab) -> None:
    ours, alone, short = (lab.arms[name] for name in ("together", "one at a time", "length penalty"))
    start, anywhere = lab.arms["amortised start"], lab.arms["random start"]
    lab.claim(
        "one line: together at least 3.5 of 4 programs are found and 80 % of the digits read",
        ours["programs found, one line"] >= 3.5,
        ours["digits read, one line"] >= 80,
    )
    lab.claim(
        "two lines: together at least 3 of 4 hard programs are found and 90 % of the digits read, 5 points more than "
        "one at a time, each of which sees as many images as all together",
        ours["hard programs found of four"] >= 3,
        ours["digits read"] >= 90,
        ours["digits read"] >= alone["digits read"] + 5,
    )
    lab.claim(
        "the penalty shortens six programs by at least 0.5 lines and costs at most one of them",
        short["expected length"] <= ours["expected length"] - 0.5,
        short["programs found of six"] >= ours["programs found of six"] - 1,
    )
    lab.claim(
        "in a quarter of the search at least 10 points more of the unseen programs are found from proposed logits than "
        "from random ones",
        start["unseen programs found in a quarter"] >= anywhere["unseen programs found in a quarter"] + 10,
    )


def _exact(lab: Lab) -> None:
    """Certain programs on certain inputs against Python, 1 000 of them."""
    stream, size, right, long = lab.fork("exact"), 9, 0, 0
    own: dict[str, Callable[[int, int], int]] = {"max": max, "min": min, "add": operator.add, "sub": operator.sub}
    own["absdiff"] = lambda x, y: abs(x - y)
    for lines in range(1, 6):
        relaxed = RelaxedProgram(3, lines, discrete.integer_operators(size), batch=(200,))
        logits = ProgramLogits(*(1e6 * torch.rand(p.shape, generator=stream).argsort(-1) for p in relaxed.logits))
        inputs = torch.randint(size, (200, 1, 3), generator=stream)
        outputs = relaxed(F.one_hot(inputs, size + 1).float(), logits)[:, 0]
        lengths = relaxed.expected_length(logits).tolist()
        for k, program in enumerate(relaxed.harden(logits)):
            values = inputs[k, 0].tolist()
            for name, i, j in program.lines:
                result = values[i] if name == "pass" else own[name](values[i], values[j])
                inside = name == "pass" or (0 <= result < size and max(values[i], values[j]) < size)
                values.append(result if inside else size)
            right += outputs[k].tolist() == F.one_hot(torch.tensor(values[-1]), size + 1).tolist()
            long += lengths[k] == program.length
    small = RelaxedProgram(2, 2, discrete.integer_operators(2)).double()
    leaves = [torch.randn(p.shape, generator=stream, dtype=p.dtype, requires_grad=True) for p in small.logits]
    seen = torch.softmax(torch.randn(3, 2, 3, generator=stream, dtype=torch.float64), -1)
    lab.claim(
        "1 000 certain programs on certain inputs give what Python gives, and their expected length is the number of "
        "lines on which the output depends; values and lengths pass gradcheck",
        right == long == 1000,
        torch.autograd.gradcheck(lambda *given: small(seen, ProgramLogits(*given)), leaves),
        torch.autograd.gradcheck(lambda *given: small.expected_length(ProgramLogits(*given)), leaves),
        scale="smoke",
        right=right,
    )
