"""Choosing a batch of interventions, targets and values at once, by the gradient of what they would tell.

After some data a set of models is left, here one a bootstrap. The expected information gain (EIG) of a batch is how
well its outcomes would tell these models apart; it is differentiable in the values that nodes are set to and, through a
policy that draws targets, in the logits of the targets: Adam raises both (Annadani, Tigas, Ivanova, Jesson, Gal,
Foster, Bauer, ICML 2023). The batch is run, and the models are fitted again.

The gradient of the values is exact, that of the logits is not. The paper takes the derivative at hard targets, which on
pilots hardly correlated with the gradient of the policy's mean gain; it finds targets by the best of many draws, which
at ten nodes tell less than the best single ones. The score function, with the other designs of the step as baseline, is
unbiased (cosine .4 to .5). On three nodes both are caught in local maxima now and then, at .6 to .8 of the best gain.

Single targets already tell twenty bootstraps apart, nearly: their EIG is at its ceiling log 20, which ranks no design
above them. Yet they learn less than random designs of many targets that miss a third of that EIG: ahead of single
targets is whatever sets many nodes, and what the EIG adds shows against random ones.

Smaller than in the paper: 20 bootstraps (30), eight models (30), five rounds (10), eight designs of two outcomes a step
(32), 30 steps (100), and least-squares order search for GIES, which takes noise of equal variance for granted, as it is
here. A design takes 1 112 outcomes of each bootstrap, 632 of them to choose among those seen; a greedy one 1 280,
Bayesian optimisation 3 840. The noise is 1 and values are within +-2 (.1 and +-10): there every random design already
tells all models apart. Half of the graphs are random, half are ten genes of the DREAM4 gold standards, real networks of
a hundred (the paper: those of ten); mechanisms are simulated. Range, steps and gradients were chosen on seeds 0 to 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from scipy import stats
from torch import Tensor
from torch.distributions import Normal

from pullback import causal, data
from pullback.lab import Arm, Lab, above, at_least, at_most, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    nodes: Annotated[int, at_least(3), at_most(50)] = 10
    """Nodes of the simulated models."""
    degree: Annotated[int, at_least(1)] = 2
    """Arcs a node of the random graphs."""
    truths: Annotated[int, at_least(2)] = 8
    """Simulated models, each to be found by all arms from the same observations."""
    observations: Annotated[int, at_least(30)] = 60
    """Samples without intervention."""
    models: Annotated[int, at_least(2)] = 20
    """Bootstraps of a posterior."""
    batch: Annotated[int, at_least(1)] = 2
    """Interventions of a round, one sample each."""
    rounds: Annotated[int, at_least(1)] = 5
    """Rounds of design, experiment and fit."""
    reach: Annotated[float, above(0)] = 2.0
    """Values are within plus and minus this."""
    steps: Annotated[int, at_least(1)] = 30
    """Adam steps of a design, of the authors' step size; the gains of their 100 steps were no larger on pilots."""
    designs: Annotated[int, at_least(2)] = 8
    """Designs drawn a step."""
    trios: Annotated[int, at_least(1)] = 8
    """Posteriors over three nodes, on which designs are compared with all of a grid."""


@system(
    "diffcbed",
    family="causal",
    title="Differentiable Multi-Target Causal Bayesian Experimental Design",
    paper="Annadani, Tigas, Ivanova, Jesson, Gal, Foster, Bauer, ICML 2023, arXiv 2302.10607",
    config=Config,
    smoke={"nodes": 4, "degree": 1, "truths": 2, "models": 4, "rounds": 1, "steps": 5, "trios": 1},
    full={"nodes": 20, "truths": 30, "models": 30, "rounds": 10, "steps": 100, "designs": 32},
    data=("dream4",),
    blocks=(
        "causal.expected_information_gain",
        "causal.InterventionPolicy",
        "causal.optimize_design",
        "causal.greedy_design",
        "causal.bayesian_value_search",
        "causal.random_design",
        "causal.ModelPosterior",
        "causal.bootstrap_posterior",
        "causal.expected_shd",
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Hold the gain against quadrature, designs against a grid, and experiments against random and greedy ones."""
    lab.data("linear Gaussian models, weights N(2, 1), on random graphs and on parts of DREAM4's", origin="simulated")
    lab.data("which gene regulates which: parts of the five DREAM4 gold standards", origin="real")
    _quadrature(lab)
    _three_nodes(lab, config)

    paper, score, one = (lab.arm(f"DiffCBED, {name}") for name in ("straight-through", "score function", "one target"))
    baselines = ("greedy grid, one target", "Bayesian optimisation, one target", "random", "random, fixed value")
    greedy, search, multi, fixed = (lab.arm(name, baseline=True) for name in baselines)
    arms, starts = (paper, score, one, greedy, search, multi, fixed), list[float]()
    for number in lab.replicates(config.truths):
        stream = lab.fork("truth")
        arcs = int(config.nodes * min(config.degree, (config.nodes - 1) / 2))
        graph = causal.random_dag(config.nodes, arcs, generator=stream)
        if number % 2:
            graph = data.dream4(number // 2 % 5 + 1).acyclic_part(config.nodes, generator=stream)
        truth = _mechanisms(graph, stream)
        observed = truth.rsample(config.observations, generator=stream)
        prior = causal.bootstrap_posterior(observed, models=config.models, generator=lab.fork("first fit"))
        starts.append(causal.expected_shd(prior.graphs, graph).item())
        chosen = {arm.name: _experiment(lab, config, arm, truth, observed, prior) for arm in arms}
        gains = [_gain(lab, prior, *_design(config, multi.name, prior, stream)[:2]) for _ in range(20)]
        multi.metric("EIG, mean of 20 designs, first round", torch.stack(gains).mean(), better="higher")

    chance, ceiling, singles = multi["EIG, mean of 20 designs, first round"], math.log(config.models), (greedy, search)
    before, after = "EIG, first round", f"expected SHD after {config.rounds} rounds"
    lab.claim(
        "the mean EIG of the first round is at least 1.2 times that of random designs (at most .8 log L) with both "
        "gradients, above that of random ones of a fixed value by more than the standard error of the paired "
        "difference, and with the score function at least that of single targets less such an error",
        chance <= 0.8 * ceiling,
        min(paper[before], score[before]) >= 1.2 * chance,
        *(arm[before] > fixed[before] + _standard_error(arm, fixed, before) for arm in (paper, score)),
        *(score[before] >= other[before] - _standard_error(score, other, before) for other in singles),
        share_of_log_L=score[before] / ceiling,
    )
    for arm in (paper, score):
        errors = {other.name: _standard_error(arm, other, after) for other in (multi, fixed, *singles)}
        lab.claim(
            f"{arm.name}: after {config.rounds} rounds the mean expected SHD is below both random multi-target ones by "
            "more than the standard error of the paired difference, and above neither single-target baseline by that",
            *(arm[after] < other[after] - errors[other.name] for other in (multi, fixed)),
            *(arm[after] <= other[after] + errors[other.name] for other in singles),
            **{f"standard error, {name}": error for name, error in errors.items()},
        )
    _draw(lab, config, arms, graph, chosen[score.name], starts)


def _mechanisms(graph: Tensor, stream: torch.Generator) -> causal.LinearSCM:
    return causal.LinearSCM(graph * (2 + torch.randn(graph.shape, generator=stream, dtype=torch.float64)))


def _standard_error(arm: Arm, other: Arm, metric: str) -> float:
    difference = torch.tensor(arm[metric].values) - torch.tensor(other[metric].values)
    return (difference.std() / math.sqrt(len(difference))).item()


def _gain(lab: Lab, posterior: causal.ModelPosterior, targets: Tensor, values: Tensor, **options: Any) -> Tensor:
    """Estimate the gain of designs with samples that none of them was chosen by, the same for all."""
    options = dict[str, Any](samples=100, generator=lab.fork("fresh samples")) | options
    with torch.no_grad():
        return causal.expected_information_gain(posterior, targets.double(), values.double(), **options)


def _design(config: Config, name: str, posterior: causal.ModelPosterior, stream: torch.Generator) -> causal.Design:
    if name.startswith("DiffCBED"):
        gradient = "straight-through" if name.endswith("straight-through") else "score"
        return _optimise(config, posterior, config.batch, gradient, stream, 1 if name.endswith("one target") else None)
    if name.startswith("greedy"):
        grid = (-config.reach, -config.reach / 2, config.reach / 2, config.reach)
        return causal.greedy_design(posterior, batch=config.batch, value_grid=grid, generator=stream)
    bounds = (-config.reach, config.reach)
    if name.startswith("Bayesian"):
        return causal.bayesian_value_search(posterior, batch=config.batch, value_range=bounds, generator=stream)
    design = causal.random_design(config.nodes, config.batch, value_range=bounds, generator=stream)
    return design._replace(values=torch.full_like(design.values, config.reach)) if "fixed" in name else design


def _optimise(
    config: Config, posterior: causal.ModelPosterior, batch: int, gradient: str, stream: torch.Generator, q: int | None
) -> causal.Design:
    nodes, bounds = posterior.noise.shape[-1], (-config.reach, config.reach)
    policy = causal.InterventionPolicy(nodes, batch, targets=q, value_range=bounds, generator=stream)
    options: dict[str, Any] = {"steps": config.steps, "lr": 0.5, "count": config.designs, "samples": 2}
    return causal.optimize_design(posterior, policy=policy, gradient=gradient, generator=stream, **options)


def _experiment(
    lab: Lab, config: Config, arm: Arm, truth: causal.LinearSCM, observed: Tensor, prior: causal.ModelPosterior
) -> tuple[Tensor, Tensor]:
    """Design, experiment and fit, round by round: what was set, and what was seen."""
    x = torch.cat([observed, observed.new_zeros(config.rounds * config.batch, config.nodes)])
    held = torch.zeros(x.shape, dtype=torch.bool)
    weights, noise = prior.weights.clone(), prior.noise.clone()
    designs, *paired = (lab.fork(name) for name in ("designs", "outcomes", "fits"))  # the last two alike in all arms
    for turn in arm.steps(config.rounds, x, held, weights, noise, designs, paired, name="rounds"):
        posterior = causal.ModelPosterior(weights.clone(), noise.clone(), prior.log_weights)
        with arm.cpu_time("cpu seconds of designs"):
            design = _design(config, arm.name, posterior, designs)
        arm.record("EIG", _gain(lab, posterior, design.targets, design.values))
        for value in design.history if turn == 0 else ():
            arm.record("EIG while optimising", value)
        seen = len(observed) + (turn + 1) * config.batch
        for row, chosen, values in zip(range(seen - config.batch, seen), design.targets, design.values, strict=True):
            held[row] = chosen.bool()
            setting = {int(j): float(values[j]) for j in chosen.nonzero()}
            x[row] = truth.rsample(1, interventions=setting, generator=paired[0])[0]
        options: dict[str, Any] = {"models": config.models, "start": posterior, "generator": paired[1]}
        fitted = causal.bootstrap_posterior(x[:seen], held[:seen], **options)
        weights.copy_(fitted.weights)
        noise.copy_(fitted.noise)
        arm.record("expected SHD", causal.expected_shd(fitted.graphs, truth.weights != 0))
    arm.metric("EIG, first round", arm.series("EIG")[0], better="higher")
    arm.metric(f"expected SHD after {config.rounds} rounds", arm.last("expected SHD"), better="lower")
    arm.metric("interventions that set every node", held[len(observed) :].all(1).sum().double())
    return held[len(observed) :], x[len(observed) :]


def _quadrature(lab: Lab) -> None:
    """Two models, X -> Y and Y -> X: setting one node leaves the other, whose density is a mixture of two normals."""
    weights = torch.tensor([[[0.0, 1.3], [0.0, 0.0]], [[0.0, 0.0], [0.7, 0.0]]]).double()
    noise, shares = torch.tensor([[1.0, 0.8], [0.6, 1.1]]).double(), torch.tensor([0.3, 0.7]).double()
    posterior = causal.ModelPosterior(weights, noise, shares.log())
    targets = torch.eye(2, dtype=torch.float64).repeat_interleave(10, 0).unsqueeze(1)
    designs = targets, targets * torch.linspace(-4, 4, 10, dtype=torch.float64).repeat(2)[:, None, None]
    y = torch.linspace(-40, 40, 10_001, dtype=torch.float64)
    exact = []
    for target, value in zip(designs[0][:, 0].argmax(1), designs[1].sum((1, 2)), strict=True):
        means, scales = weights[:, target, 1 - target] * value, noise[:, 1 - target]
        density = Normal(means[:, None], scales[:, None]).log_prob(y).exp()
        every = torch.cat([density, (shares @ density)[None]])
        entropy = -torch.trapezoid(torch.special.xlogy(every, every), y)
        exact.append(entropy[2] - shares @ entropy[:2])
    streams = [lab.fork(f"quadrature {k}") for k in range(100)]
    own, nested = (
        torch.stack([_gain(lab, posterior, *designs, samples=100, estimator=name, generator=g) for g in streams])
        for name in ("exact-finite", "nmc")
    )
    mean, error = own.mean(0), own.std(0) / math.sqrt(100)
    off, above = (mean - torch.stack(exact)) / error, nested.mean(0) - mean
    # Chance alone takes one of the 20 beyond this in at most 2 of 1 000 runs (Student's t, Bonferroni's bound).
    limit = stats.t.ppf(1 - 0.002 / (2 * len(off)), len(streams) - 1)
    lab.claim(
        f"two models X -> Y and Y -> X: the estimated EIG of 20 designs is within {limit:.2f} standard errors of "
        "quadrature and of log 2 from above, and nested Monte Carlo without the own model exceeds it",
        bool((off.abs() <= limit).all() & (mean <= math.log(2) + limit * error).all() & (above > 0).all()),
        scale="smoke",
        largest_deviation=off.abs().max(),
        **{"smallest excess of nested": above.min(), "largest gain": mean.max()},
    )


def _three_nodes(lab: Lab, config: Config) -> None:
    """One intervention on three nodes: 1 or 2 targets with 9 values each are 270 designs (to set all tells nothing)."""
    levels = torch.cartesian_prod(*[torch.linspace(-config.reach, config.reach, 9).double()] * 3)
    sets = (torch.arange(1, 7)[:, None] >> torch.arange(3) & 1).double()
    every = torch.stack([sets.repeat_interleave(len(levels), 0), torch.cat([levels * each for each in sets])], 1)
    every = every.unique(dim=0).unsqueeze(-2)  # [270, targets and values, 1, 3]
    reached, slopes = {"straight-through": list[float](), "score": list[float]()}, list[Tensor]()
    for trio in range(config.trios):
        stream = lab.fork(f"trio {trio}")
        x = _mechanisms(causal.random_dag(3, 2, generator=stream), stream).rsample(10, generator=stream)
        posterior = causal.bootstrap_posterior(x, models=config.models, generator=stream)
        rough = torch.cat([_gain(lab, posterior, *part.unbind(1), samples=50) for part in every.split(45)])
        best = _gain(lab, posterior, *every[rough.topk(16).indices].unbind(1), samples=500).max()
        for gradient, shares in reached.items():
            design = _optimise(config, posterior, 1, gradient, stream, None)
            shares.append((_gain(lab, posterior, design.targets, design.values, samples=500) / best).item())
        policy = causal.InterventionPolicy(3, 1, generator=stream).double()
        gain = causal.expected_information_gain(posterior, *policy.sample(1.0, 32, generator=stream), generator=stream)
        slopes += [g.norm() for g in torch.autograd.grad(gain.mean(), (policy.logits, policy.raw_values))]
    sizes = torch.stack(slopes)
    statement = "gradients at hard targets are finite and not zero, for logits and for values"
    lab.claim(statement, bool((sizes.isfinite() & (sizes > 0)).all()), scale="smoke", smallest=sizes.min())
    for gradient, shares in reached.items():
        mean = sum(shares) / len(shares)
        statement = f"{gradient}: on average at least 85 % of the best EIG of 270 designs on three nodes are reached"
        lab.claim(statement, mean >= 0.85, mean=mean, lowest=min(shares))


def _draw(
    lab: Lab, config: Config, arms: tuple[Arm, ...], graph: Tensor, chosen: tuple[Tensor, Tensor], starts: list[float]
) -> None:
    (figure, axes), last = lab.subplots(2, 2, figsize=(11, 8)), config.truths - 1
    for arm in arms:
        if arm.name.startswith("DiffCBED"):
            axes[0, 0].plot(arm.series("EIG while optimising", replicate=last), color=arm.colour, label=arm.name)
        else:
            axes[0, 0].axhline(arm["EIG, first round"].values[last], color=arm.colour, ls="--", label=arm.name)
        paths = torch.tensor([[start, *arm.series("expected SHD", replicate=k)] for k, start in enumerate(starts)])
        mean, error = paths.mean(0), paths.std(0) / math.sqrt(config.truths)
        axes[0, 1].plot(mean, color=arm.colour, label=arm.name)
        axes[0, 1].fill_between(range(len(mean)), mean - error, mean + error, color=arm.colour, alpha=0.12, lw=0)
    axes[0, 0].axhline(math.log(config.models), color="grey", lw=0.8)
    axes[0, 0].set(title="one model, first round", xlabel="Adam step", ylabel="mean EIG of the step's designs, nats")
    axes[0, 1].set(title="all models", xlabel="round", ylabel="expected SHD, mean and standard error")
    axes[0, 1].legend(fontsize=7)
    angles = torch.arange(config.nodes) * 2 * math.pi / config.nodes
    places = torch.stack([angles.cos(), angles.sin()], -1).tolist()
    arrow, first = {"arrowstyle": "->", "shrinkA": 11, "shrinkB": 11, "color": "grey"}, slice(config.batch)
    for number, (panel, held, value) in enumerate(zip(axes[1], *(each[first] for each in chosen), strict=False)):
        for i, j in graph.nonzero().tolist():
            panel.annotate("", places[j], places[i], arrowprops=arrow)
        for node, place in enumerate(places):
            text, colour = (f"{value[node]:.1f}", lab.colour("set")) if held[node] else ("", "white")
            panel.plot(*place, "o", ms=22, mec="grey", mfc=(colour, 0.35))
            panel.text(*place, text, ha="center", va="center", fontsize=8, color="black")
        panel.set_axis_off()
        panel.set_title(f"score function: intervention {number + 1} of the first round")
    lab.figure("experiments", figure, "EIG on the way (grey: log L; dashed: baselines), expected SHD, and what is set.")
