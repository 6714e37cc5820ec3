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
from pullback.lab import Arm, Lab, above, at_least, system


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
    lr: Annotated[tuple[float, float], above(0)] = (3e-3, 1e-2)
    """Step sizes of Adam in LifeGate: of 1e-3, 3e-3, 6e-3, 1e-2 and 2e-2 the best with clipping, and without."""
    every: Annotated[int, at_least(1)] = 100
    """Steps between two copies: of 30, 100 and 250 the best with clipping and without."""
    folds: Annotated[int, at_least(2)] = 5
    """Of patients."""
    hidden: Annotated[int, at_least(1)] = 24
    """Size of the state of a patient."""
    encoder_steps: Annotated[int, at_least(1)] = 150
    """Adam steps of each encoder, and of each recurrent classifier."""
    value_steps: Annotated[int, at_least(1)] = 1000
    """Adam steps of the values of patients, in each fold."""


BLOCKS = "life_gate empirical_process DeadEndValues avoid_dead_ends security_gap double_q_target HistoryEncoder"
PLAIN = "albumin platelets ascites hepatomegaly spiders histologic age sex year"
AREA = "area under the curve"


@system(
    "medical-dead-ends",
    family="dynamics",
    title="Medical Dead-ends and Learning to Identify High-risk States and Treatments",
    paper="Fatemi, Killian, Subramanian, Ghassemi, NeurIPS 2021, arXiv 2110.04186",
    config=Config,
    smoke={"episodes": 50, "replicates": 2, "steps": 3, "batch": 8, "folds": 2, "encoder_steps": 2, "value_steps": 2},
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
    start, policies = (alive & ~gate.dead_end).double(), _policies(gate)
    ours, table = lab.arm("clipped"), lab.arm("table", baseline=True)
    same, base = (lab.arm(name, baseline=True) for name in ("not clipped", "not clipped, tuned"))
    plain, avoiding = lab.arm("policy as it is", baseline=True), lab.arm("policy with avoidance")
    states = torch.cat([one_hot(gate.cells[:, 0], 10), one_hot(gate.cells[:, 1], 10)], -1).float()
    maps = {"exact": death.values - gate.died.double()}

    def judge(arm: Arm, found: Tensor) -> None:
        error = (found - death.action_values)[alive].abs()
        arm.metric("largest error of Q_D", error.max(), better="lower")
        arm.metric("mean error of Q_D", error.mean(), better="lower")

    for _ in lab.replicates(config.replicates):
        stream = lab.fork("record")
        record = gate.death.sample(policies["random"], config.episodes, steps=100, start=start, generator=stream)
        state, action, _, following, done = record
        lost = -gate.died[following].double()
        model = dynamics.empirical_process(Transitions(state, action, lost, following, done), len(states), 5)
        judge(table, model.optimal().action_values)
        reward = torch.stack([lost.float(), gate.recovered[following].float()], -1)
        for arm in (ours, same, base):
            draws, values = lab.fork("batches"), DeadEndValues(20, 5, clip=arm is ours, generator=lab.fork("weights"))
            optimizer = torch.optim.Adam(values.networks.parameters(), lr=config.lr[arm is base])
            slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, config.steps)
            for step in arm.steps(config.steps, values, optimizer, slower, draws, name="values"):
                i = torch.randint(len(state), (config.batch,), generator=draws)
                seen = Transitions(states[state[i]], action[i], reward[i], states[following[i]], done[i])
                arm.descend(values.loss(seen), optimizer)
                slower.step()
                if step % config.every == 0:
                    values.update_copies()
            with torch.no_grad():  # the thresholds of the paper mark all states of some risk
                q, flagged = values.q_death(states).double(), values.flags(states, death=-0.85, recovery=0.15) & alive
            judge(arm, q)
            right = (flagged & gate.dead_end).sum()
            arm.metric("dead-ends that are flagged", right / 20, better="higher")
            arm.metric("flags that are dead-ends", right / flagged.sum().clamp_min(1), better="higher")
            maps[arm.name] = torch.where(alive, q.amax(-1), -gate.died.double())
            if arm is ours:
                for name, policy in policies.items():
                    for kind, law in ((plain, policy), (avoiding, dynamics.avoid_dead_ends(policy, q))):
                        died = -(start * gate.death.evaluate(law)).sum() / start.sum()
                        kind.metric(f"deaths, {name} policy", died, better="lower")
                        gap = dynamics.security_gap(law, death.action_values).gap[alive].mean()
                        kind.metric(f"security gap, {name} policy", gap, better="lower")
    lab.claim(
        "networks with clipped targets flag 0.95 of the dead-ends, 0.9 of the flags being right; their largest error "
        "is at most 0.1 above that of the exact solution of the same record",
        ours["dead-ends that are flagged"] >= 0.95,
        ours["flags that are dead-ends"] >= 0.9,
        ours["largest error of Q_D"] <= table["largest error of Q_D"] + 0.1,
    )
    lab.claim(
        "their mean error is at most 0.6 of that without clipping, all else equal, and at most that with the step size "
        "that is best without",
        ours["mean error of Q_D"] <= 0.6 * same["mean error of Q_D"],
        ours["mean error of Q_D"] <= base["mean error of Q_D"],
    )
    deaths = [[arm[f"deaths, {name} policy"] for arm in (avoiding, plain)] for name in policies]
    lab.claim(
        "to avoid what learned values call deadly brings deaths to at most 0.6 of those of the random policy, to 0.8 "
        "of those of the noisy best and of the shortest way",
        *(safe <= factor * bold for (safe, bold), factor in zip(deaths, (0.6, 0.8, 0.8), strict=True)),
    )
    lab.bars(*(f"deaths, {name} policy" for name in policies), arms=[plain, avoiding])
    shown = [torch.zeros(10, 10).index_put((*gate.cells.T.flip(0),), -values.float()) for values in maps.values()]
    words = "Least probability of death: white 1, black 0 and walls; learned from the last record of a random policy"
    lab.images([shown], titles=list(maps), name="risk", limits=(0, 1), caption=words)


def _policies(gate: dynamics.LifeGate) -> dict[str, Tensor]:
    """Any treatment; the best for recovery with three in ten at random; the shortest way, blind to risk."""
    anything = torch.full_like(gate.death.reward, 0.2)
    noisy = 0.3 * anything + 0.7 * one_hot(gate.recovery.optimal().policy, 5)
    calm = dynamics.life_gate(drag=0.0, pull=None).recovery
    shortest = dynamics.MarkovDecisionProcess(calm.transition, calm.reward, 0.9).optimal().policy
    return {"random": anything, "noisy": noisy, "shortest": one_hot(shortest, 5).double()}


class Patients(NamedTuple):
    """Visits of patients, padded: what was found (NaN where not taken), how many visits, how it ended, the drug."""

    found: Tensor
    visits: Tensor
    lost: Tensor
    drug: Tensor


def _load() -> Patients:
    table = data.liver()
    columns = [table.column(n).log() for n in ("serBilir", "serChol", "alkaline", "SGOT", "prothrombin")]
    columns += map(table.column, PLAIN.split())
    columns.append(torch.tensor([0.0, 1.0, 0.5]).double()[table.column("edema").long()])  # none, despite drugs, else
    rows = torch.stack(columns, -1).float()
    visits = torch.bincount(table.column("id").long())[1:]
    first = visits.cumsum(0) - visits
    found = nn.utils.rnn.pad_sequence(list(rows.split(visits.tolist())), batch_first=True, padding_value=torch.nan)
    lost = table.column("status")[first] != table.words["status"].index("alive")
    return Patients(found, visits, lost, table.column("drug")[first].long())


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
    flagged = torch.zeros(count, times)
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
            ours.descend(encoder.loss(found[i], drug[i], ~patients.found[i].isnan()), optimizer, name="prediction")
        states = encoder(found, drug).detach()
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
            flagged[test] = values.flags(states[test]).float()
        classifier = LogisticRegression(C=0.1, max_iter=500).fit(found[who, when].numpy(), patients.lost[who].numpy())
        told = classifier.predict_proba(found[test].flatten(0, 1).numpy())[:, 1]
        risk[plain.name][test] = torch.from_numpy(told).float().view(-1, times)
        with recurrent.weights(f"fold {number}"):
            network = nn.ModuleList([nn.GRU(size, config.hidden, batch_first=True), nn.Linear(config.hidden, 1)])
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3, weight_decay=3e-2)
        for _ in recurrent.steps(config.encoder_steps, network, optimizer, draws, name=f"classifier {number}"):
            i = train[torch.randint(len(train), (64,), generator=draws)]
            logits, wanted = network[1](network[0](found[i])[0])[..., 0], patients.lost[i, None].float()
            losses = binary_cross_entropy_with_logits(logits, wanted.expand_as(logits), reduction="none")
            recurrent.descend(losses[there[i]].mean(), optimizer)
        risk[recurrent.name][test] = network[1](network[0](found[test])[0])[..., 0].sigmoid().detach()
    _judge(lab, patients, risk, flagged)


def _judge(lab: Lab, patients: Patients, risk: dict[str, Tensor], flagged: Tensor) -> None:
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
        "patients that were held out: at the last visit but one the area under the curve of the risk is at least 0.8, "
        "and at most 0.05 below that of logistic regression",
        ours[AREA] >= 0.8,
        ours[AREA] >= plain[AREA] - 0.05,
        **{"low_end_of_95_percent": float(low), "high_end_of_95_percent": float(high)},
    )
    lab.claim(
        "over the last three visits the risk of those who are lost rises by 0.05 more than that of others, with two "
        "standard errors taken off",
        ours["rise of risk over the last 3 visits, less that of survivors"] >= 0.05 + 2 * ours["its standard error"],
    )
    figure, (before, calibration) = lab.subplots(1, 2, figsize=(11, 4))
    for name, group in (("lost", lost), ("alive", ~lost)):
        seen = [(rows[had], visits[had] - 1 - k) for k in range(6) for had in [group & (visits > k)]]
        for values, style, what in ((risk[ours.name], "o-", "risk"), (flagged, "s:", "part that is flagged")):
            means = [values[at].mean() for at in seen]
            before.plot(range(6), means, style, color=lab.colour(name), label=f"{name}, {what}")
    for name, guess in told.items():
        points = [(guess[i].mean(), ended[i].mean()) for i in np.array_split(guess.argsort(), 6)]
        calibration.plot(*np.array(points).T, "o-", color=lab.arm(name).colour, label=name)
    before.set(xlabel="visits before the last one", xlim=(5.2, -0.2), ylim=(0, 1.35), ylabel="mean")
    calibration.plot([0, 1], [0, 1], "k:")
    calibration.set(xlabel="risk at the last visit but one, in six groups", ylabel="part that is lost")
    for panel in (before, calibration):
        panel.legend(fontsize="small")
    lab.figure(
        "visits", figure, "Patients that were held out. Flags are the red ones: values of -0.25 and 0.75 or less."
    )
