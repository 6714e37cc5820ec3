"""Recognising states from which no treatment leads out, from records of treatments.

Two values are learned from the same records: the least probability of the bad end after a treatment and the best
probability of the good one. Where both say so for all treatments, a state is a dead-end; to keep away from treatments
that come near to it lowers the risk of any policy (Fatemi, Killian, Subramanian, Ghassemi, NeurIPS 2021). On LifeGate,
whose truth is known, from 50 000 transitions of a random policy; then on real visits of patients with liver disease,
whose states are made by a recurrent encoder, with patients held out. Smaller than in the paper: no records of intensive
care (MIMIC-III); the drug that patients got by lot is known not to help, so that values tell their risk rather than
what to do. LifeGate is simulated, the patients are real.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from pullback import data, dynamics
from pullback.dynamics import DeadEndValues, Transitions
from pullback.lab import Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    episodes: Annotated[int, at_least(10)] = 4200
    """Of a random policy in LifeGate: about 50 000 transitions."""
    replicates: Annotated[int, at_least(1)] = 3
    """Records and networks in LifeGate."""
    steps: Annotated[int, at_least(1)] = 4000
    """Adam steps of each network in LifeGate."""
    batch: Annotated[int, at_least(1)] = 256
    """Transitions a step; half of it for patients."""
    lr: Annotated[float, above(0)] = 3e-3
    """Step size of Adam in LifeGate; of 1e-3 and 3e-3 the best without clipping."""
    every: Annotated[tuple[int, int], at_least(1)] = (30, 100)
    """Steps between two copies, with clipping and without: of 30, 100 and 250 the best for each."""
    folds: Annotated[int, at_least(2)] = 5
    """Of patients."""
    hidden: Annotated[int, at_least(1)] = 24
    """Size of the state of a patient."""
    encoder_steps: Annotated[int, at_least(1)] = 150
    """Adam steps of each encoder, and of each recurrent classifier."""
    value_steps: Annotated[int, at_least(1)] = 1000
    """Adam steps of the values of patients, in each fold."""


BLOCKS = "life_gate empirical_process DeadEndValues avoid_dead_ends security_gap double_q_target HistoryEncoder"

STEPS = ("encoder_steps", "value_steps")


@system(
    "medical-dead-ends",
    family="dynamics",
    title="Medical Dead-ends and Learning to Identify High-risk States and Treatments",
    paper="Fatemi, Killian, Subramanian, Ghassemi, NeurIPS 2021, arXiv 2110.04186",
    config=Config,
    smoke={"episodes": 50, "replicates": 2, "steps": 3, "batch": 8, "folds": 2} | dict.fromkeys(STEPS, 2),
    full={"episodes": 84_000, "steps": 100_000, "hidden": 64, "encoder_steps": 1000, "value_steps": 20_000},
    data=("liver",),
    blocks=tuple(f"dynamics.{name}" for name in BLOCKS.split()),
)
def run(lab: Lab, config: Config) -> None:
    """Solve LifeGate, learn it from records, keep away from dead-ends; then find patients at risk."""
    lab.data("LifeGate, 91 cells", origin="simulated")
    lab.data("1 945 visits of 312 patients with primary biliary cirrhosis", origin="real")
    _life_gate(lab, config)
    _patients(lab, config)


def _life_gate(lab: Lab, config: Config) -> None:
    """Values of a world whose truth is known."""
    gate = dynamics.life_gate()
    alive = ~(gate.died | gate.recovered)
    death, recovery = gate.death.optimal(), gate.recovery.optimal()
    near = gate.death.transition[..., gate.dead_end | gate.died].sum(-1)
    lab.claim(
        "exactly: values are -1 and 0 in the 20 dead-ends, above -0.7 in the other 57 cells; no treatment is more "
        "deadly than it fails to help, or leads to dead-ends and death more often than its value says",
        bool((death.values[gate.dead_end] <= -1 + 1e-9).all() and (recovery.values[gate.dead_end] <= 1e-9).all()),
        bool((death.values[alive & ~gate.dead_end] > -0.7).all()),
        bool((-death.action_values <= 1 - recovery.action_values + 1e-9)[alive].all()),
        bool((near <= -death.action_values + 1e-9)[alive].all()),
        scale="smoke",
    )
    start = (alive & ~gate.dead_end).double()
    policies = _policies(gate)
    ours, base, table = (lab.arm(name, baseline=name != "clipped") for name in ("clipped", "not clipped", "table"))
    plain, avoiding = lab.arm("policy as it is", baseline=True), lab.arm("policy with avoidance")
    states = torch.cat([one_hot(gate.cells[:, 0], 10), one_hot(gate.cells[:, 1], 10)], -1).float()
    maps = {"exact": death.values}
    for _ in lab.replicates(config.replicates):
        stream = lab.fork("record")
        record = gate.death.sample(policies["random"], config.episodes, steps=100, start=start, generator=stream)
        state, action, _, following, done = record
        reward = torch.stack([-gate.died[following].float(), gate.recovered[following].float()], -1)
        for arm in (ours, base):
            draws, values = lab.fork("batches"), DeadEndValues(20, 5, clip=arm is ours, generator=lab.fork("weights"))
            optimizer = torch.optim.Adam(values.networks.parameters(), lr=config.lr)
            slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, config.steps)
            for step in arm.steps(config.steps, values, optimizer, slower, draws, name="values"):
                i = torch.randint(len(state), (config.batch,), generator=draws)
                seen = Transitions(states[state[i]], action[i], reward[i], states[following[i]], done[i])
                arm.descend(values.loss(seen), optimizer)
                slower.step()
                if step % config.every[arm.baseline] == 0:
                    values.update_copies()
            with torch.no_grad():
                q, flagged = values.q_death(states).double(), values.flags(states, death=-0.85, recovery=0.15) & alive
            error = (q - death.action_values)[alive].abs()
            arm.metric("largest error of Q_D", error.max(), better="lower")
            arm.metric("mean error of Q_D", error.mean(), better="lower")
            right = flagged & gate.dead_end
            arm.metric("dead-ends that are flagged", right.sum() / 20, better="higher")
            arm.metric("flags that are dead-ends", right.sum() / flagged.sum().clamp_min(1), better="higher")
            maps[arm.name] = torch.where(alive, q.amax(-1), 0.0)
            if arm is ours:
                for name, policy in policies.items():
                    safe = dynamics.avoid_dead_ends(policy, q)
                    for kind, law in ((plain, policy), (avoiding, safe)):
                        deaths = -(start * gate.death.evaluate(law)).sum() / start.sum()
                        kind.metric(f"deaths, {name} policy", deaths, better="lower")
                        gap = dynamics.security_gap(law, death.action_values).gap[alive].mean()
                        kind.metric(f"security gap, {name} policy", gap, better="lower")
        died = -gate.died[following].double()
        model = dynamics.empirical_process(Transitions(state, action, died, following, done), len(states), 5)
        off = (model.optimal().action_values - death.action_values)[alive].abs().max()
        table.metric("largest error of Q_D", off, better="lower")
    lab.claim(
        "networks with clipped targets flag 0.95 of the dead-ends, 0.9 of the flags being right; no value is off by "
        "more than 0.15 on average over records; the mean error is at most 0.6 of that without clipping",
        ours["dead-ends that are flagged"] >= 0.95,
        ours["flags that are dead-ends"] >= 0.9,
        ours["largest error of Q_D"] <= 0.15,
        ours["mean error of Q_D"] <= 0.6 * base["mean error of Q_D"],
    )
    factors = {"random": 0.6, "noisy": 0.8, "shortest": 0.8}
    lab.claim(
        "to avoid what learned values call deadly brings deaths to at most 0.6 of those of the random policy, to 0.8 "
        "of those of the noisy best and of the shortest way",
        *(avoiding[f"deaths, {n} policy"] <= f * plain[f"deaths, {n} policy"] for n, f in factors.items()),
    )
    lab.bars(*(f"deaths, {name} policy" for name in policies), arms=[plain, avoiding])
    shown = [torch.zeros(10, 10).index_put((*gate.cells.T.flip(0),), -values.float()) for values in maps.values()]
    words = (
        "Least probability of death: white 1, black 0 and walls. Last record; networks know it from a random policy."
    )
    lab.images([shown], titles=list(maps), name="risk", limits=(0, 1), caption=words)


def _policies(gate: dynamics.LifeGate) -> dict[str, Tensor]:
    """Any treatment; the best for recovery with three in ten at random; the shortest way, blind to risk."""
    anything = torch.full_like(gate.death.reward, 0.2)
    noisy = 0.3 * anything + 0.7 * one_hot(gate.recovery.optimal().policy, 5)
    calm = dynamics.life_gate(drag=0.0, pull=None).recovery
    shortest = dynamics.MarkovDecisionProcess(calm.transition, calm.reward, 0.9).optimal().policy
    return {"random": anything, "noisy": noisy, "shortest": one_hot(shortest, 5).double()}


class Patients(NamedTuple):
    """Visits of patients, padded: what was found, which of it was taken, how many visits, how it ended, the drug."""

    found: Tensor
    known: Tensor
    visits: Tensor
    lost: Tensor
    drug: Tensor


def _load() -> Patients:
    table = data.liver()
    columns = [table.column(n).log() for n in ("serBilir", "serChol", "alkaline", "SGOT", "prothrombin")]
    plain = ("albumin", "platelets", "ascites", "hepatomegaly", "spiders", "histologic", "age", "sex", "year")
    columns += [table.column(n) for n in plain]
    columns.append(
        torch.tensor([0.0, 1.0, 0.5]).double()[table.column("edema").long()]
    )  # none, in spite of drugs, else
    rows = torch.stack(columns, -1).float()
    alive = table.words["status"].index("alive")
    visits = torch.bincount(table.column("id").long())[1:]
    first = visits.cumsum(0) - visits
    found = nn.utils.rnn.pad_sequence(list(rows.split(visits.tolist())), batch_first=True, padding_value=torch.nan)
    lost, drug = table.column("status")[first] != alive, table.column("drug")[first].long()
    return Patients(found, ~found.isnan(), visits, lost, drug)


def _standardised(found: Tensor, train: Tensor) -> Tensor:
    """In units of the patients to learn from; what is missing is as it was before, or their mean."""
    mean = found[train].nanmean((0, 1))
    scaled = (found - mean) / (found[train] - mean).square().nanmean((0, 1)).sqrt()
    for t in range(1, scaled.shape[1]):
        scaled[:, t] = torch.where(scaled[:, t].isnan(), scaled[:, t - 1], scaled[:, t])
    return scaled.nan_to_num(0.0)


def _patients(lab: Lab, config: Config) -> None:
    """Risk of patients that were held out, by values and by classifiers."""
    patients = _load()
    count, times, size = patients.found.shape
    ours, plain = lab.arm("dead-end values"), lab.arm("logistic regression", baseline=True)
    recurrent = lab.arm("recurrent classifier", baseline=True)
    risk = {arm.name: torch.zeros(count, times) for arm in (ours, plain, recurrent)}
    fold = torch.randperm(count, generator=lab.fork("folds")) % config.folds
    drug = patients.drug[:, None].expand(-1, times)
    there = torch.arange(times) < patients.visits[:, None]
    for number in range(config.folds):
        train, test = (fold != number).nonzero()[:, 0], (fold == number).nonzero()[:, 0]
        found = _standardised(patients.found, train)
        who, when = (there & (fold != number)[:, None]).nonzero().T
        encoder = dynamics.HistoryEncoder(size, 2, config.hidden, generator=lab.fork(f"encoder {number}"))
        optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
        draws = lab.fork(f"batches {number}")
        for _ in ours.steps(config.encoder_steps, encoder, optimizer, draws, name=f"encoder {number}"):
            i = train[torch.randint(len(train), (64,), generator=draws)]
            ours.descend(encoder.loss(found[i], drug[i], patients.known[i]), optimizer, name="prediction")
        with torch.no_grad():
            states = encoder(found, drug)
        last, lost = when == patients.visits[who] - 1, patients.lost[who]
        reward = torch.stack([-(last & lost).float(), (last & ~lost).float()], -1)
        values = DeadEndValues(config.hidden, 2, generator=lab.fork(f"values {number}"))
        optimizer = torch.optim.Adam(values.networks.parameters(), lr=1e-3)
        for step in ours.steps(config.value_steps, values, optimizer, draws, name=f"values {number}"):
            i = torch.randint(len(who), (config.batch // 2,), generator=draws)
            after = states[who[i], (when[i] + 1).clamp_max(times - 1)]
            seen = Transitions(states[who[i], when[i]], drug[who[i], when[i]], reward[i], after, last[i])
            ours.descend(values.loss(seen), optimizer)
            if step % 50 == 49:
                values.update_copies()
        with torch.no_grad():
            risk[ours.name][test] = -values.q_death(states[test]).mean(-1)
        classifier = LogisticRegression(C=0.1, max_iter=500).fit(found[who, when].numpy(), patients.lost[who].numpy())
        told = classifier.decision_function(found[test].flatten(0, 1).numpy())
        risk[plain.name][test] = torch.from_numpy(told).float().view(-1, times)
        with recurrent.weights(f"fold {number}"):
            network = nn.ModuleList([nn.GRU(size, config.hidden, batch_first=True), nn.Linear(config.hidden, 1)])
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, weight_decay=1e-3)
        for _ in recurrent.steps(config.encoder_steps, network, optimizer, draws, name=f"classifier {number}"):
            i = train[torch.randint(len(train), (64,), generator=draws)]
            logits, wanted = network[1](network[0](found[i])[0])[..., 0], patients.lost[i, None].float()
            losses = binary_cross_entropy_with_logits(logits, wanted.expand_as(logits), reduction="none")
            recurrent.descend(losses[there[i]].mean(), optimizer)
        with torch.no_grad():
            risk[recurrent.name][test] = network[1](network[0](found[test])[0])[..., 0]
    _judge(lab, patients, risk)


def _judge(lab: Lab, patients: Patients, risk: dict[str, Tensor]) -> None:
    """How well risks at the last visit but one tell the end, and how they change before it."""
    rows, lost, visits = torch.arange(len(patients.lost)), patients.lost, patients.visits
    twice, thrice = visits >= 2, visits >= 3
    ended = lost[twice].numpy()
    told = {name: values[rows, (visits - 2).clamp_min(0)][twice].numpy() for name, values in risk.items()}
    for name in told:
        lab.arm(name).metric(AREA, roc_auc_score(ended, told[name]), better="higher")
    ours, plain, draws = lab.arm("dead-end values"), lab.arm("logistic regression"), lab.fork("bootstrap")
    again = torch.randint(len(ended), (200, len(ended)), generator=draws).numpy()
    low, high = np.quantile([roc_auc_score(ended[i], told[ours.name][i]) for i in again], [0.025, 0.975])
    rise = risk[ours.name][rows, visits - 1] - risk[ours.name][rows, (visits - 3).clamp_min(0)]
    groups = [rise[thrice & lost], rise[thrice & ~lost]]
    error = torch.stack([group.var() / len(group) for group in groups]).sum().sqrt()
    ours.metric("rise of risk over the last 3 visits, less that of survivors", groups[0].mean() - groups[1].mean())
    ours.metric("its standard error", error, better="lower")
    lab.claim(
        "patients that were held out: at the last visit but one the area under the curve of the risk is at least 0.7, "
        "and at most 0.05 below that of logistic regression",
        ours[AREA] >= 0.7,
        ours[AREA] >= plain[AREA] - 0.05,
        low_end_of_95_percent=float(low),
        high_end_of_95_percent=float(high),
    )
    lab.claim(
        "over the last three visits the risk of those who are lost rises more than that of others, by more than two "
        "standard errors",
        ours["rise of risk over the last 3 visits, less that of survivors"] > 2 * ours["its standard error"],
    )
    figure, panel = lab.subplots()
    for name, group in (("lost", lost), ("alive", ~lost)):
        before = [risk[ours.name][rows, visits - 1 - k][group & (visits > k)] for k in range(6)]
        mean, spread = (torch.stack([f(b) for b in before]) for f in (torch.mean, torch.std))
        panel.plot(range(6), mean, "o-", color=lab.colour(name), label=name)
        panel.fill_between(range(6), mean - spread, mean + spread, color=lab.colour(name), alpha=0.2)
    panel.set(xlabel="visits before the last one", ylabel="risk", ylim=(-0.05, 1.05))
    panel.invert_xaxis()
    panel.legend()
    lab.figure(
        "visits", figure, "Risk of patients that were held out, mean and standard deviation, up to the last visit."
    )


AREA = "area under the curve"
