"""One transformer that is surrogate and acquisition at once, trained by reinforcement for whole searches.

A network reads what a search has seen and says of every candidate how likely it is to be chosen next; its policy is
rewarded at each step by -log10 of what is missing to the best value, as late gains are small. Few steps find a new best
value: in random order step t does with probability 1/t, log T of T steps. So a second loss goes through the network:
predict values from a random part of a function (Maraval, Zimmer, Grosnit, Bou Ammar, NeurIPS 2023). Smaller than in the
paper: width 32, two layers, 12 steps; and the surrogate learns alone at first. HPO-B is not available offline: the
functions are errors of kernel ridge regression on real tables, over length scale and ridge, in grids without units.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from pullback import data, dynamics, uncertainty
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    tables: Annotated[int, at_least(2)] = 120
    """Parts of real tables to learn from: random rows and columns, eight grids of each at random offsets."""
    tested: Annotated[int, at_least(2)] = 40
    """Parts of the tables that training does not see."""
    starts: Annotated[int, at_least(2)] = 8
    """Searches of each tested function, from a random point among 64 (48 while training)."""
    steps: Annotated[int, at_least(2)] = 12
    """Steps of a search, after the first point."""
    width: Annotated[int, at_least(4)] = 32
    """Of the transformer (two layers of two heads), of the bars and of the acquisition."""
    warmup: Annotated[int, at_least(1)] = 300
    """Steps of the surrogate before the policy begins."""
    iterations: Annotated[int, at_least(1)] = 150
    """Batches of 16 searches, two Adam steps on each."""
    lr: Annotated[tuple[float, float, float], above(0)] = (4e-3, 4e-3, 4e-3)
    """Step size of Adam: both losses, the policy's alone, the surrogate's alone; falls after the warm-up."""
    replicates: Annotated[int, at_least(1)] = 1
    """Networks of each arm, each on searches of its own."""


CELLS, SIDE, BATCH = 30, 20, 16  # points of a landscape and of the grid that is cut from it, in both directions
SCALES = torch.logspace(-2.5, 3.5, CELLS, dtype=torch.float64)
RIDGES = torch.logspace(-7, 4, CELLS, dtype=torch.float64)


@system(
    "neural-acquisition-process",
    family="uncertainty",
    title="End-to-End Meta-Bayesian Optimisation with Transformer Neural Processes",
    paper="Maraval, Zimmer, Grosnit, Bou Ammar, NeurIPS 2023, arXiv 2305.15930",
    config=Config,
    smoke={"tables": 2, "tested": 2, "starts": 2, "steps": 4, "warmup": 3, "iterations": 2},
    full={"tables": 2000, "steps": 24, "width": 512, "iterations": 2000, "lr": (3e-5, 3e-5, 3e-5)},
    data=("digits", "letters", "wine", "fairness", "weather", "breast_cancer", "diabetes", "regression"),
    blocks=(
        *(f"uncertainty.{b}" for b in ("TransformerNeuralProcess", "BarDistribution", "NeuralAcquisition", "Matern")),
        *(f"uncertainty.{b}" for b in ("BlackBoxTasks", "GaussianProcess", "expected_improvement")),
        *("uncertainty.leave_one_out_residuals", "dynamics.ppo_loss", "dynamics.generalized_advantage"),
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Learn to search on some tables, search on others."""
    g = lab.fork("landscapes")
    train, test = _landscapes("train", config.tables, 8, g), _landscapes("test", config.tested, 1, g)
    lab.data("validation errors on parts of nine real tables, three of them for testing only", origin="real")
    ours, alone = lab.arm("both losses"), lab.arm("without auxiliary loss", baseline=True)
    bars, normal, chance = (lab.arm(n, baseline=True) for n in ("neural process + EI", "GP + EI", "random"))
    _counts(lab, config, train)
    gaps = []
    for _ in lab.replicates(config.replicates):
        policy, other = _policy(lab, config, ours, train), _policy(lab, config, alone, train)
        surrogate, process = _surrogate(lab, config, bars, train), _shared(lab, train)
        scores: dict[Arm, Any] = {
            ours: lambda s, t, p=policy: uncertainty.decide(p, s, t).logits,
            alone: lambda s, t, p=other: uncertainty.decide(p, s, t).logits,
            bars: lambda s, t, p=surrogate: p(s.seen_x, s.seen_y, s.x).expected_improvement(s.best[:, None]),
            normal: lambda s, t, p=process: _expected_by_normal(p, s),
            chance: lambda s, t: -torch.arange(s.y.shape[1]).expand_as(s.y).float(),
        }
        found = {arm: _regret(lab, config, arm, test, score) for arm, score in scores.items()}
        gaps.append(found[alone] - found[ours])
        _densities(lab, {ours: policy.process, bars: surrogate, normal: process}, test)
    _exact(lab, policy, test)
    lab.claim(
        "after 12 steps on unseen tables the regret is at most 0.7 times that of random search",
        ours["regret"] <= 0.7 * chance["regret"],
    )
    lab.claim(
        "after 3 steps it is at most 0.9 times that of random search and that of GP + EI",
        ours[early := "regret after 3 steps"] <= 0.9 * chance[early],
        ours[early] <= 0.9 * normal[early],
    )
    gap = torch.cat(gaps)
    lab.claim(
        "after 12 steps it is below that without auxiliary loss by two standard errors of the paired difference",
        lab.metric("regret, without auxiliary loss minus with", gap.mean())
        >= 2 * lab.metric("its standard error", gap.std() / len(gap) ** 0.5),
    )
    lab.claim(
        "from 1 to 5 points the network gives unseen values a higher log density, by 0.2 nats, than a Gaussian process "
        "with hyper-parameters fitted to the training functions together",
        ours["log density"] >= normal["log density"] + 0.2,
    )
    _draw(lab, config, test, policy, process)


def _landscapes(split: Any, count: int, windows: int, g: torch.Generator) -> uncertainty.BlackBoxTasks:
    """-log of the leave-one-out error over length scale and ridge, in [0, 1] on each grid."""
    found, parts = list[Tensor](), data.table_parts(split, generator=g)
    while len(found) < count * windows:
        _, x, y = next(parts)
        kernel = torch.exp(-torch.cdist(x, x).square() / (2 * SCALES[:, None, None] ** 2))
        errors = uncertainty.leave_one_out_residuals(kernel, y, RIDGES).square().mean(-1)
        if errors.min() > 0.9:
            continue  # nothing can be learned from these columns
        for _ in range(windows):
            i, j = torch.randint(CELLS - SIDE + 1, (2,), generator=g).tolist()
            values = -errors[i : i + SIDE, j : j + SIDE].log().flatten().float()
            found.append((values - values.min()) / (values.max() - values.min()))
    places = torch.cartesian_prod(*[torch.linspace(-1, 1, SIDE)] * 2)
    return uncertainty.BlackBoxTasks(places, torch.stack(found))


def _network(config: Config) -> uncertainty.NeuralAcquisition:
    process = uncertainty.TransformerNeuralProcess(2, width=config.width, layers=2, heads=2, buckets=config.width)
    return uncertainty.NeuralAcquisition(process, hidden=config.width, temperature=0.1)


def _auxiliary(process: Any, config: Config, tasks: uncertainty.BlackBoxTasks, g: torch.Generator) -> Tensor:
    """Of values at random places, from a random number of others: no trajectory of a policy."""
    which = torch.randint(len(tasks), (BATCH,), generator=g)
    search = tasks.reset(which, pool=config.steps + 32, generator=g)
    return process.loss(search.x, search.y, config.steps, generator=g)


def _surrogate(lab: Lab, config: Config, arm: Arm, tasks: uncertainty.BlackBoxTasks) -> nn.Module:
    """The auxiliary loss alone, as many steps of it as beside the policy's."""
    with arm.weights():
        process = _network(config).process
    optimizer, g = torch.optim.Adam(process.parameters(), config.lr[2]), lab.fork("surrogate")
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, 2 * config.iterations)
    for step in arm.steps(config.warmup + 2 * config.iterations, process, optimizer, falling, g, name="surrogate"):
        arm.descend(_auxiliary(process, config, tasks, g), optimizer, name="auxiliary loss", clip=0.5)
        if step >= config.warmup:
            falling.step()
    return process


def _policy(lab: Lab, config: Config, arm: Arm, tasks: uncertainty.BlackBoxTasks) -> uncertainty.NeuralAcquisition:
    """Play searches, then climb the clipped surrogate of their gains; its gradient reaches every weight."""
    with arm.weights():
        policy = _network(config)
    optimizer = torch.optim.Adam(policy.parameters(), config.lr[int(arm.baseline)])
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, config.iterations)
    others, g = lab.fork("surrogate"), lab.fork("searches")
    for _ in arm.steps(0 if arm.baseline else config.warmup, policy, optimizer, others, name="warm-up"):
        arm.descend(_auxiliary(policy.process, config, tasks, others), optimizer, name="auxiliary loss", clip=0.5)
    for _ in arm.steps(config.iterations, policy, optimizer, falling, others, g, name="policy"):
        search = tasks.reset(torch.randint(len(tasks), (BATCH,), generator=g), pool=48, generator=g)
        search.step(torch.zeros(BATCH, dtype=torch.long))
        played = uncertainty.play(policy, search, config.steps, generator=g)
        values = nn.functional.pad(played.value, (0, 1))  # nothing is gained after the end
        reward = -played.regret.clamp_min(0.01).log10() / config.steps
        gained = dynamics.generalized_advantage(reward, values, discount=0.98, trace=0.98)
        advantage = (gained.advantage - gained.advantage.mean()) / (gained.advantage.std() + 1e-6)
        for _ in range(2):
            now = uncertainty.replay(policy, search, played)
            log_prob = now.logits.log_softmax(-1).gather(-1, search.chosen[:, 1:, None])[..., 0]
            loss = dynamics.ppo_loss(log_prob, played.log_prob, advantage, now.value, gained.target, clip=0.15).total
            loss = loss if arm.baseline else loss + _auxiliary(policy.process, config, tasks, others)
            arm.descend(loss, optimizer, clip=0.5)
        falling.step()
    return policy


def _shared(lab: Lab, tasks: uncertainty.BlackBoxTasks) -> uncertainty.GaussianProcess:
    """A Gaussian process whose hyper-parameters suit the training functions together."""
    search = tasks.reset(torch.arange(0, len(tasks), len(tasks) // 60 + 1), pool=30, generator=lab.fork("shared"))
    process = uncertainty.GaussianProcess(uncertainty.Matern(2, 2.5, outputscale=0.1), noise=1e-3, mean=0.3)
    process.fit(search.x, search.y, steps=60, lr=0.1)
    return process


def _expected_by_normal(shared: uncertainty.GaussianProcess, search: uncertainty.Search) -> Tensor:
    """Expected improvement after fitting each search's hyper-parameters, with the shared ones as their prior."""
    process = shared.expanded(len(search.y))
    process.fit(search.seen_x, search.seen_y, steps=8, lr=0.1, anchor=4.0)
    law = process.predict(search.seen_x, search.seen_y, search.x)
    return uncertainty.expected_improvement(law.mean, law.variance, search.best[:, None])


@torch.no_grad()
def _regret(lab: Lab, config: Config, arm: Arm, tasks: uncertainty.BlackBoxTasks, score: Any) -> Tensor:
    """What is left of each search that always takes the best score."""
    which = torch.arange(len(tasks)).repeat_interleave(config.starts)
    search = tasks.reset(which, pool=64, generator=lab.fork("tested searches"))  # the same for all arms
    search.step(torch.zeros_like(which))
    arm.record("mean regret", search.regret.mean())
    for t in range(config.steps):
        search.step(score(search, t / config.steps).masked_fill(~search.available, -torch.inf).argmax(-1))
        arm.record("mean regret", search.regret.mean())
        if t + 1 in (3, config.steps):
            arm.metric("regret after 3 steps" if t == 2 else "regret", search.regret.mean(), better="lower")
    return search.regret


@torch.no_grad()
def _densities(lab: Lab, models: dict[Arm, Any], tasks: uncertainty.BlackBoxTasks) -> None:
    """Mean log density of unseen values, given 1 to 5 points of a function of an unseen table."""
    search = tasks.reset(torch.arange(len(tasks)).repeat_interleave(20), pool=64, generator=lab.fork("densities"))
    for arm, model in models.items():
        found = []
        for n in range(1, 6):
            given = search.x[:, :n], search.y[:, :n], search.x[:, 5:]
            if normal := isinstance(model, uncertainty.GaussianProcess):
                mean, variance, *_ = model.predict(*given)
            law = torch.distributions.Normal(mean, (variance + model.noise).sqrt()) if normal else model(*given)
            found.append(law.log_prob(search.y[:, 5:]).mean())
        arm.metric("log density", torch.stack(found).mean(), better="higher", unit="nats")


@torch.no_grad()
def _exact(lab: Lab, policy: uncertainty.NeuralAcquisition, tasks: uncertainty.BlackBoxTasks) -> None:
    """Closed forms of trained bars against sums over a fine grid, what may not depend on an order, and a peer."""
    from sklearn import gaussian_process as peer

    search = tasks.reset(torch.zeros(1, dtype=torch.long), pool=20, generator=lab.fork("exact"))
    x, y, new = search.x[:, :5].double(), search.y[:, :5].double(), search.x[:, 5:].double()
    policy, state = copy.deepcopy(policy).double(), torch.zeros(1, 2, dtype=torch.float64)
    law, cells = policy.process(x, y, new[:, :1]), 100_000
    grid = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    mass = law.log_prob(grid).exp() / cells
    off = [abs(mass.sum() - 1)]
    for best in torch.linspace(0, 1, 11, dtype=torch.float64):
        found = law.expected_improvement(best) - (mass * (grid - best).clamp_min(0)).sum()
        off += [abs(found).max(), abs(law.cdf(best) - mass[:, grid < best].sum()).max()]
    logits = policy(x, y, new, state).logits
    turned = policy(x.flip(1), y.flip(1), new.flip(1), state).logits.flip(1)
    lab.claim(
        "mass, expected improvement and distribution function of the bars are those of 100 000 points to 1e-5; logits "
        "do not depend on the order of context and candidates to 1e-5",
        lab.metric("bars, largest difference", max(off)) <= 1e-5,
        lab.metric("logits, largest difference", abs(logits - turned).max()) <= 1e-5,
        scale="smoke",
    )
    process, kernel = uncertainty.GaussianProcess(uncertainty.Matern(2)).double(), peer.kernels.Matern(1.0, nu=2.5)
    theirs = peer.GaussianProcessRegressor(kernel, alpha=float(process.noise), optimizer=None).fit(x[0], y[0])
    mean, deviation = (torch.from_numpy(part) for part in theirs.predict(new[0], return_std=True))
    found = process.predict(x[0], y[0], new[0])
    evidence = process.log_marginal(x[0], y[0]) - theirs.log_marginal_likelihood_value_
    off = max(abs(part).max() for part in (evidence, found.mean - mean, found.variance - deviation**2))
    lab.claim(
        "log marginal, mean and variance of the Gaussian process are scikit-learn's to 1e-6",
        lab.metric("scikit-learn, largest difference", off) <= 1e-6,
        scale="smoke",
    )


def _counts(lab: Lab, config: Config, tasks: uncertainty.BlackBoxTasks) -> None:
    """How often the first points in random order are new best ones."""
    order = torch.rand(tasks.y.shape, generator=lab.fork("orders")).argsort(-1)[:, : config.steps]
    first = tasks.y.argsort(-1).argsort(-1).gather(-1, order)  # ranks: no ties
    records = (first == first.cummax(-1).values).sum(-1).double()
    expected = float((1 / torch.arange(1, config.steps + 1)).sum())
    lab.claim(
        "few rewards are informative: in random order the best value of a real function rises 1 + 1/2 + ... + 1/T "
        "times in T steps, to three standard errors",
        abs(lab.metric("new best values", records.mean()) - expected) <= 3 * float(records.std() / len(records) ** 0.5),
        expected=expected,
    )


@torch.no_grad()
def _draw(lab: Lab, config: Config, tasks: Any, policy: Any, shared: uncertainty.GaussianProcess) -> None:
    lab.curves("mean regret", xlabel="steps after the first point", caption="On functions of unseen tables.")
    lab.bars("regret after 3 steps", "regret", "log density")
    (search := tasks.reset(torch.zeros(1, dtype=torch.long))).step(torch.tensor([SIDE * SIDE // 3]))
    for t in range(6):
        search.step((decision := uncertainty.decide(policy, search, t / config.steps)).logits.argmax(-1))
    shown = {
        "-log error, in [0, 1]": tasks.y[0],
        "network: mean": decision.prediction.mean,
        "policy (logarithm)": decision.logits.log_softmax(-1).clamp_min(-15),
        "Gaussian process: EI": _expected_by_normal(shared, search),
    }
    figure, grid = lab.subplots(1, len(shown), figsize=(12, 4.2), sharex=True, sharey=True)
    for axes, (title, values) in zip(grid, shown.items(), strict=True):
        axes.imshow(values.view(SIDE, SIDE), origin="lower", cmap="viridis")
        axes.plot(search.chosen[0] % SIDE, search.chosen[0] // SIDE, "o", color="white", mec="black", markersize=4)
        axes.set(title=title, xlabel="ridge", ylabel="length scale" if axes is grid[0] else "")
        axes.grid(False)
    lab.figure("acquisition", figure, "An unseen table and the policy's points: the network before the last.")
