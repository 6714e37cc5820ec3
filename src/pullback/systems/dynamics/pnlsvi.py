"""Policies from records alone, by lower bounds of values that weigh each observation by its noise.

Value iteration on records believes what it has seen too rarely. A bound that takes the doubt of the regression off
(its D^2-divergence: by how much two functions of the class may differ here and yet agree on the data) avoids that, and
a regression weighted by the variance of its targets, estimated on one half of the episodes, needs fewer of them where
noise is uneven (Di, Zhao, He, Gu, ICLR 2024). The paper is theory; here its bounds are watched in decision processes
whose values are known: 64 actions whose rewards and transitions are linear in six bits, half of them noisy; and doses
whose benefit saturates, for a class of sigmoids. There the class helps and weights do not: with sigmoids, unweighted
regressions of all records lose less than PNLSVI at both lengths, and a table of all doses about as much. All data is
simulated. Constants: the variance is at least 0.05, the terms of the paper that vanish as episodes grow are 0, and each
method has the best of five weights of its doubt; sigmoids have weight 2, weighted or not, a variance of at least 0.02,
and are compared with classes that have their best weight.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from pullback import dynamics
from pullback.dynamics import MarkovDecisionProcess, PessimisticValues, Transitions
from pullback.lab import Lab, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    episodes: Annotated[tuple[int, ...], at_least(4)] = (50, 100, 200, 400, 800, 1600)
    """Lengths of the records of the linear process."""
    records: Annotated[int, at_least(2)] = 60
    """Records of each length."""
    doses: Annotated[tuple[int, ...], at_least(4)] = (100, 1600)
    """Lengths of the records of doses."""
    stages: Annotated[int, at_least(1)] = 3
    """Doses of a patient."""
    patients: Annotated[int, at_least(2)] = 20
    """Records of each length, of doses."""
    betas: Annotated[tuple[float, ...], at_least(0)] = (0.0, 0.5, 1.0, 2.0, 4.0)
    """Weights of the doubt; each method is judged by its best one."""
    classes: Annotated[int, at_least(1)] = 20
    """Random classes and data on which ways to find the doubt are compared."""


class Problem(NamedTuple):
    """A process, its features, the deviation of the noise of rewards, the law of who acted, and the true variances."""

    process: MarkovDecisionProcess
    features: Tensor
    noise: Tensor
    behaviour: Tensor
    variance: Tensor
    horizon: int


PLAIN, EVEN, OURS, TRUE = "no pessimism", "pessimistic, unweighted", "PNLSVI", "true variances"
HORIZON, GAP, BOUND = 5, "suboptimality", "lower bounds that hold"
BLOCKS = "d2_divergence weighted_regression pessimistic_value_iteration suboptimality MarkovDecisionProcess"
CASES = ("loud actions pay less", "loud actions pay more", "equal noise", "rare bits")


@system(
    "pnlsvi",
    family="dynamics",
    title="Pessimistic Nonlinear Least-Squares Value Iteration for Offline Reinforcement Learning",
    paper="Di, Zhao, He, Gu, ICLR 2024, arXiv 2310.01380",
    config=Config,
    smoke={
        "episodes": (50,),
        "records": 2,
        "doses": (20_000,),
        "stages": 1,
        "patients": 2,
        "betas": (0.0, 2),
        "classes": 1,
    },
    full={"episodes": (50, 100, 200, 400, 800, 1600, 6400), "records": 400, "doses": (100, 400, 1600), "patients": 100},
    blocks=tuple(f"dynamics.{name}" for name in BLOCKS.split()),
)
def run(lab: Lab, config: Config) -> None:
    """Measure doubt, then plan from records of a linear process and of doses."""
    lab.data("records of 2 states and 64 actions, and of doses, with known values", origin="simulated")
    _doubt(lab, config)
    _linear(lab, config)
    _doses(lab, config)


def _doubt(lab: Lab, config: Config) -> None:
    """The largest disagreement, exactly, from gradients and by search; linear functions, then sigmoids."""
    g, linear = lab.fork("classes"), lambda theta, x: x @ theta
    gaps, ratios, bent = [], [], []
    for _ in range(config.classes):
        points, data, center = (torch.randn(*n, generator=g, dtype=torch.float64) for n in ((6, 4), (30, 4), (4,)))
        noise = 0.5 + torch.rand(30, generator=g, dtype=torch.float64)
        exact = dynamics.d2_divergence(points, data, variance=noise)
        words: dict[str, Any] = {"params": center, "variance": noise}
        found = {
            (name, method): dynamics.d2_divergence(points, data, function=function, method=method, **words)
            for name, function in (("linear", linear), ("sigmoid", lambda theta, x: torch.sigmoid(x @ theta)))
            for method in ("gradient", "search")
        }
        gaps.append((found["linear", "gradient"] - exact).abs().max())
        ratios.append(found["linear", "search"] / exact)
        bent.append(found["sigmoid", "search"] / found["sigmoid", "gradient"])
    search, gradient = lab.arm("search"), lab.arm("gradients")
    gradient.metric("distance from the exact doubt", torch.stack(gaps).max(), better="lower")
    search.metric("least part of the exact doubt", torch.stack(ratios).min(), better="higher")
    search.metric("largest part of the exact doubt", torch.stack(ratios).max())
    search.metric("doubt of sigmoids, to that of their gradients", torch.stack(bent).max())
    lab.claim(
        "doubt of linear functions: gradients give the exact one to 1e-8, a search at least 0.99 of it and never more",
        gradient["distance from the exact doubt"] <= 1e-8,
        search["least part of the exact doubt"] >= 0.99,
        search["largest part of the exact doubt"] <= 1 + 1e-9,
        scale="smoke",
    )


def _judge(problem: Problem, found: PessimisticValues) -> tuple[Tensor, Tensor]:
    """What each policy loses, and whether no value of its first step is above its true value."""
    truth = dynamics.suboptimality(problem.process, found.policy, problem.horizon)
    return truth.gap.mean(-1), (found.values[..., 0, :] <= truth.values[..., 0, :]).all(-1).double()


def _record(problem: Problem, records: int, episodes: int, stream: torch.Generator) -> Transitions:
    seen = problem.process.sample(problem.behaviour, records * episodes, steps=problem.horizon, generator=stream)
    seen = Transitions(*(x.view(-1, records, episodes).permute(1, 2, 0) for x in seen))
    drawn = torch.randn(seen.reward.shape, generator=stream, dtype=torch.float64)
    return seen._replace(reward=seen.reward + problem.noise[seen.state, seen.action] * drawn)


def _spread(transition: Tensor, after: Tensor) -> Tensor:
    """Variance of what follows, ``[horizon, states, actions]``, of values ``[horizon, states]``."""
    mean, square = (torch.einsum("sat,ht->hsa", transition, x) for x in (after, after.square()))
    return square - mean.square()


def _bits(case: str) -> Problem:
    """Rewards and transitions that are linear in six bits of the action; the first one is loud."""
    bits = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6)), dtype=torch.float64)
    side = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None, None].expand(2, 64, 1)
    features = torch.cat([torch.ones(2, 64, 1, dtype=torch.float64), side, bits.expand(2, 64, 6)], -1)
    first = 0.03 if case == "loud actions pay more" else -0.03
    pay = torch.tensor([0.5, 0.1, first, 0.15, 0.1, 0.06, 0.04, 0.02], dtype=torch.float64)
    move = torch.tensor([0.5, 0.1, 0.0, 0.0, -0.1, 0.1, -0.05, 0.05], dtype=torch.float64)
    up = features @ move
    process = MarkovDecisionProcess(torch.stack([1 - up, up], -1), features @ pay, 1.0)
    noise = torch.where(bits[:, 0] > 0, 1.5, 0.1).double().expand(2, 64)
    behaviour = torch.full((2, 64), 1 / 64, dtype=torch.float64)
    if case == "equal noise":
        noise = torch.ones_like(noise)
    if case == "rare bits":  # as the best action in four bits, but for one time in fifty
        off = torch.tensor([0.5, 0.02, 0.02, 0.5, 0.02, 0.02], dtype=torch.float64)
        behaviour = torch.where(bits == pay[2:].sign(), 1 - off, off).prod(-1).expand(2, 64)
    anything = torch.zeros(HORIZON, 2, dtype=torch.int64)
    best = dynamics.suboptimality(process, anything, HORIZON).optimal
    after = torch.cat([best[1:], torch.zeros(1, 2, dtype=torch.float64)])
    return Problem(process, features, noise, behaviour, _spread(process.transition, after) + noise.square(), HORIZON)


def _linear(lab: Lab, config: Config) -> None:
    """Suboptimality by the number of episodes, in four cases; claims at two of the lengths."""
    figure, panels = lab.subplots(2, 2, figsize=(10, 7))
    arms = {name: lab.arm(name, baseline=name in (PLAIN, EVEN)) for name in (PLAIN, EVEN, OURS, TRUE)}
    few, many = config.episodes[0], config.episodes[min(3, len(config.episodes) - 1)]
    for case, panel in zip(CASES, panels.flat, strict=True):
        problem, stream = _bits(case), lab.fork(case)
        lost: dict[str, list[Tensor]] = {name: [] for name in arms}
        for episodes in config.episodes:
            seen = _record(problem, config.records, episodes, stream)
            for name, arm in arms.items():
                gaps, bounds = {}, {}
                words: dict[str, Any] = {"variance": {OURS: None, TRUE: problem.variance}.get(name, 1.0)}
                for beta in config.betas if name != PLAIN else (0.0,):
                    found = dynamics.pessimistic_value_iteration(seen, problem.features, beta=beta, **words)
                    gaps[beta], bounds[beta] = _judge(problem, found)
                best = min(gaps.values(), key=lambda gap: float(gap.mean()))
                lost[name].append(best)
                if episodes in (few, many):
                    where = f"{case}, {episodes} episodes"
                    arm.metric(f"{GAP}, {where}", best, better="lower", replicated=True)
                    if name != PLAIN:
                        arm.metric(f"{GAP} without doubt, {where}", gaps[config.betas[0]], replicated=True)
                    if case == CASES[0] and name in (PLAIN, EVEN, OURS):
                        holds = bounds[max(b for b in bounds if b <= 2)]
                        arm.metric(f"{BOUND}, {where}", holds.mean(), better="higher")
        for name, arm in arms.items():
            mean, error = zip(*((gap.mean(), gap.std() / len(gap) ** 0.5) for gap in lost[name]), strict=True)
            panel.errorbar(config.episodes, mean, error, fmt="o-", color=arm.colour, label=name, capsize=2)
        panel.set(xscale="log", title=case, xlabel="episodes", ylabel=GAP, ylim=(0, None))
    panels[0, 0].legend()
    said = "What policies earn less than the best (4.5): mean and standard error of records. With equal noise true "
    lab.figure("episodes", figure, said + "variances and none give the same line.")
    plain, even, ours, true = arms.values()
    at = {(case, count): f"{GAP}, {case}, {count} episodes" for case in CASES for count in (few, many)}
    less, more, equal, rare = (at[case, many] for case in CASES)
    first, second = (at[case, few] for case in CASES[:2])
    lab.claim(
        "uneven noise, 400 episodes: PNLSVI loses at most 0.4 of what the unweighted method does if loud actions pay "
        "less, 0.75 if they pay more, though it regresses on half of them; with 50 the half costs what weights gain: "
        "in both cases together it loses 0.8 to 1.25 times as much",
        ours[less] <= 0.4 * even[less],
        ours[more] <= 0.75 * even[more],
        ours[first] + ours[second] >= 0.8 * (even[first] + even[second]),
        ours[first] + ours[second] <= 1.25 * (even[first] + even[second]),
    )
    lab.claim(
        "equal noise: true variances change the loss by at most 0.02 of 4.5; with estimated ones, on half the records, "
        "PNLSVI loses at least 1.3 times as much: weights are no free lunch",
        abs(true[equal] - even[equal]) <= 0.02 * 4.5,
        ours[equal] >= 1.3 * even[equal],
    )
    lab.claim(
        "rare bits, 400 episodes: pessimism brings the loss to at most 0.35 of that without, weighted or not; weights "
        "to at most 0.6 of what is left",
        even[rare] <= 0.35 * plain[rare],
        ours[rare] <= 0.35 * ours[rare.replace(GAP, f"{GAP} without doubt")],
        ours[rare] <= 0.6 * even[rare],
    )
    held = f"{BOUND}, {CASES[0]}, "
    lab.claim(
        "400 episodes, two parts of doubt taken off: values are lower bounds in 0.9 of the records, weighted or not; "
        "without doubt in at most 0.2; with 50 those of PNLSVI hold in at most 0.5: half of them is too few",
        *(arm[f"{held}{many} episodes"] >= 0.9 for arm in (even, ours)),
        plain[f"{held}{many} episodes"] <= 0.2,
        ours[f"{held}{few} episodes"] <= 0.5,
    )


DOSES = torch.linspace(0, 1, 9, dtype=torch.float64)
COST = 0.5


def _benefit(theta: Tensor, x: Tensor) -> Tensor:
    """Of inputs (1, state, dose): a class that holds the values, cost of the dose included, and their squares."""
    dose = x[:, 2]
    return theta[0] + dose * (theta[1] + dose * theta[2]) + (theta[3] + dose * theta[4]) * (x @ theta[5:]).sigmoid()


def _doses(lab: Lab, config: Config) -> None:
    """A patient is ill or well; higher doses help, up to a point, and cost; the record has few of them."""
    side = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None].expand(2, 9)
    features = torch.stack([torch.ones_like(side), side, DOSES.expand(2, 9)], -1)
    well = torch.sigmoid(features @ torch.tensor([-3.0, 0.8, 7.0], dtype=torch.float64))
    process = MarkovDecisionProcess(torch.stack([1 - well, well], -1), well - COST * DOSES, 1.0)
    best = dynamics.suboptimality(process, torch.zeros(config.stages, 2, dtype=torch.int64), config.stages).optimal
    after = torch.cat([best[1:], torch.zeros(1, 2, dtype=torch.float64)])
    given = (0.7 ** torch.arange(9)).double()
    spread = _spread(process.transition, after + torch.tensor([0.0, 1.0]).double()).clamp_min(0.02)
    behaviour = (given / given.sum()).expand(2, 9)
    problem = Problem(process, features, torch.zeros(2, 9).double(), behaviour, spread, config.stages)
    start = torch.tensor([0.0, 0, 0, 1, 0, 0, 0, 2]).double()
    square = torch.cat([features, features[..., 2:].square()], -1)
    classes = {"linear class": features, "quadratic class": square, "table": torch.eye(18).double().view(2, 9, 18)}
    figure, panels = lab.subplots(1, len(config.doses), figsize=(10, 4.5), squeeze=False)
    arms = {name: lab.arm(name, baseline=name in (PLAIN, EVEN)) for name in (PLAIN, EVEN, OURS, TRUE)}
    for episodes, panel in zip(config.doses, panels[0], strict=True):
        seen = _record(problem, config.patients, episodes, lab.fork(f"doses {episodes}"))
        seen = seen._replace(reward=seen.next_state - COST * DOSES[seen.action])  # who gets well earns 1
        where = f"doses, {episodes} episodes"
        panel.plot(DOSES, process.action_values(after[0])[0], "k--", label="true")
        for name, inputs in classes.items():
            words: dict[str, Any] = {"variance": 0.25, "ridge": 0.1}
            tried = [dynamics.pessimistic_value_iteration(seen, inputs, beta=b, **words) for b in config.betas]
            gap, found = min(((_judge(problem, f)[0], f) for f in tried), key=lambda pair: float(pair[0].mean()))
            arm = lab.arm(name, baseline=True)
            arm.metric(f"{GAP}, {where}", gap, better="lower", replicated=True)
            panel.plot(DOSES, found.action_values[:, 0, 0].mean(0), "-", color=arm.colour, label=f"{name}, best weight")
        for name, arm in arms.items():
            words = {"beta": 0.0 if name == PLAIN else 2.0, "variance": {OURS: None, TRUE: spread}.get(name, 0.25)}
            found = dynamics.pessimistic_value_iteration(
                seen, features, **words, ridge=0.1, floor=0.02, function=_benefit, params=start
            )
            gap, holds = _judge(problem, found)
            arm.metric(f"{GAP}, {where}", gap, better="lower", replicated=True)
            arm.metric(f"{BOUND}, {where}", holds.mean(), better="higher")
            arm.metric(f"records whose regressions converged, {where}", found.converged.double().mean())
            panel.plot(DOSES, found.action_values[:, 0, 0].mean(0), "o-", ms=3, color=arm.colour, label=name)
        panel.set(title=f"{episodes} episodes", xlabel="first dose of an ill patient", ylabel="value", ylim=(0, 2.8))
        panel.bar(DOSES, behaviour[0], width=0.06, color="0.85", zorder=0)
        losses = (f"{name} {lab.arm(name)[f'{GAP}, {where}']:.3f}" for name in (*classes, *arms))
        lab.note(f"Doses, {episodes} episodes, {GAP}: {', '.join(losses)}.")
    panels[0, 0].legend(fontsize="small", ncols=2, loc="upper left")
    lab.figure("doses", figure, "Values that are believed, mean of records; bars: how often each dose was given.")
    loss, bound = (f"{what}, doses, {config.doses[-1]} episodes" for what in (GAP, BOUND))
    lab.claim(
        "doses, 1 600 episodes: with sigmoids PNLSVI loses at most 0.5 of what linear and quadratic classes lose with "
        "their best weight of doubt, and has lower bounds in 0.9 of the records, without doubt in at most 0.3; but "
        "unweighted sigmoids lose no more than it does, with lower bounds as often: the class gains here, not weights",
        *(arms[OURS][loss] <= 0.5 * lab.arm(name)[loss] for name in ("linear class", "quadratic class")),
        arms[PLAIN][bound] <= 0.3,
        *(arms[name][bound] >= 0.9 for name in (OURS, EVEN)),
        arms[EVEN][loss] <= arms[OURS][loss],
    )
