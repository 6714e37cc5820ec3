"""Best of n: what the policy that keeps the best of n draws is, how far it is from the model, and what it gains.

Draw n answers and keep the one of largest reward. The law of the winner is a smooth function of the model's law, so its
divergence from the model can be computed: the formula in use, log n - (n - 1) / n, is only a bound, far too large where
answers are few; an estimate from the probabilities of winners alone is almost exact (Beirami, Agarwal, Berant, D'Amour,
Eisenstein, Nagpal, Suresh, ICML 2025). As it is smooth, the law can also be taught to a policy that draws once.

Smaller than in the paper: the model is a GRU over characters, an answer the three letters that follow, so all 17 576
answers are enumerated and every number is exact. The texts are real: the model reads the Old Testament, the rewards
come from a second text, telephone prompts of today, and the answers are to prefixes from the New Testament.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from pullback import data, discrete
from pullback.lab import Lab, above, at_least, system

DOUBLINGS = tuple(2**k for k in range(1, 10))
DRAWS = 100_000  # real best-of-n draws that are compared with their law
PROMPTS = 8  # prefixes a step of a policy that learns
TRIES = (4, 6, 8, 12, 16, 24, 32, 64, 10**6)  # at most, of rewind-and-repeat
WINNERS = 500  # from which the divergence is estimated


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    steps: Annotated[int, at_least(1)] = 300
    """Adam steps of the model."""
    prefixes: Annotated[int, at_least(2)] = 20
    """Unseen prefixes."""
    teaching_steps: Annotated[int, at_least(1)] = 120
    """Adam steps of the policies that learn to draw once."""
    temperatures: tuple[Annotated[float, above(0)], ...] = (0.3, 1.0, 1.5, 3.0)
    """At which the model is drawn from, for the divergences; the lowest first."""
    lr: Annotated[float, above(0)] = 1e-2
    """Step size of the policy that is taught the law (best of 1e-3, 3e-3, 1e-2)."""
    drawing_lr: Annotated[float, above(0)] = 3e-3
    """Step size of those that learn from draws (best of 1e-3, 3e-3, 1e-2, 3e-2 for the score function)."""
    price: Annotated[float, above(0)] = 0.11
    """Of a nat, for the score function, in win probability: its best policy is then as far as the best of 8."""
    replicates: Annotated[int, at_least(1)] = 2
    """Streams of prefixes and draws, each the same for all these policies."""


class CharacterModel(nn.Module):
    """A GRU that predicts the next of the 26 letters and the space."""

    def __init__(self, units: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(27, units)
        self.gru = nn.GRU(units, units, batch_first=True)
        self.output = nn.Linear(units, 27)

    def forward(self, text: Tensor) -> Tensor:
        """Logits of the next character, ``[batch, length, 27]``."""
        logits: Tensor = self.output(self.gru(self.embedding(text))[0])
        return logits

    def continuations(self, prefix: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities ``[prefixes, 26^3]`` of three letters after each prefix."""
        states, state = self.gru(self.embedding(prefix))
        total, letters = torch.zeros(len(prefix), 1), self.embedding.weight[1:]
        for place in range(3):
            if place:
                every = letters.repeat(state.shape[1], 1).unsqueeze(1)
                states, state = self.gru(every, state.repeat_interleave(26, 1))
            step = torch.log_softmax(self.output(states[:, -1])[:, 1:] / temperature, -1)
            total = (total.view(-1, 1) + step).view(len(prefix), -1)
        return total


@system(
    "best-of-n-guarantees",
    family="discrete",
    title="Theoretical guarantees on the best-of-n alignment policy",
    paper="Beirami, Agarwal, Berant, D'Amour, Eisenstein, Nagpal, Suresh, ICML 2025, arXiv 2401.01879",
    config=Config,
    smoke={"steps": 3, "prefixes": 2, "temperatures": (0.3,), "teaching_steps": 2, "replicates": 1},
    full={"steps": 20_000, "prefixes": 500, "teaching_steps": 5000, "replicates": 5},
    data=("bible", "prompts"),
    blocks=("discrete.best_of_n", "discrete.best_of_n_log_prob", "discrete.best_of_n_kl", "discrete.win_rate"),
)
def run(lab: Lab, config: Config) -> None:
    """Check the law, compare divergence, bound and estimate on a language model, teach the law to one draw."""
    _law(lab)
    verses = data.bible()
    gospel = next(k for k, verse in enumerate(verses) if verse.book == "Mat")
    old, new = (data.characters(" ".join(v.text for v in part)) for part in (verses[:gospel], verses[gospel:]))
    modern = data.characters(" ".join(prompt.text for prompt in data.prompts()))
    lab.data("King James Bible, text of telephone prompts", origin="real")
    model, rewards = _read(lab, config, old), _rewards(old, modern)
    familiar, others = (part[part[:, -1] == 0] for part in (old.unfold(0, 24, 1), new.unfold(0, 24, 1)))
    unseen = others[torch.randint(len(others), (config.prefixes,), generator=lab.fork("unseen prefixes"))]
    _divergences(lab, config, model, unseen, rewards)
    _trade_off(lab, model, unseen[:10], rewards["modern"])
    _teach(lab, config, model, familiar, unseen, rewards["modern"])


def _law(lab: Lab) -> None:
    stream = lab.fork("small law")
    log_p = torch.rand(6, generator=stream, dtype=torch.float64).log().log_softmax(-1)
    reward = torch.tensor([0.0, 1.0, 1.0, 2.0, 2.0, 3.0], dtype=torch.float64)
    errors = []
    for n in range(1, 6):
        draws = torch.cartesian_prod(*[torch.arange(6)] * n).view(-1, n)
        winner = draws.gather(1, reward[draws].argmax(1, keepdim=True)).flatten()
        wins = torch.zeros_like(log_p).index_add(0, winner, log_p[draws].sum(1).exp())
        errors.append(float((discrete.best_of_n_log_prob(log_p, reward, n).exp() - wins).abs().max()))
    many = _sampler(log_p.expand(DRAWS, -1))
    drawn = discrete.best_of_n(many, reward.__getitem__, 4, generator=stream).sample.bincount(minlength=6)
    p_value = stats.chisquare(drawn, DRAWS * discrete.best_of_n_log_prob(log_p, reward, 4).exp()).pvalue
    coin, top = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.0, 1.0])
    both = (("exact", top), ("bound", None))
    exact, bound = (float(discrete.best_of_n_kl(coin, 512, method=m, reward=r).value) for m, r in both)
    lab.claim(
        "the winner's law is that of all tuples of up to 5 draws to 1e-12, and real draws follow it; the best of 512 "
        "coins is at most log 2 nats away, the bound says more than 5",
        *(max(errors) <= 1e-12, p_value > 1e-3, exact <= math.log(2) + 1e-6, bound > 5),
        scale="smoke",
        **{"largest error": max(errors), "p of chi square": p_value, "coin, exact": exact, "coin, bound": bound},
    )


def _read(lab: Lab, config: Config, text: Tensor) -> CharacterModel:
    arm, places = lab.arm("model"), lab.fork("text")
    with arm.weights():
        model = CharacterModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for _ in arm.steps(config.steps, model, optimizer, schedule, places):
        piece = text[torch.randint(len(text) - 65, (48, 1), generator=places) + torch.arange(65)]
        loss = nn.functional.cross_entropy(model(piece[:, :-1]).transpose(1, 2), piece[:, 1:])
        arm.descend(loss, optimizer, clip=1.0)
        schedule.step()
    arm.metric("nats a character, last batch", arm.last("loss"), better="lower")
    return model


def _rewards(old: Tensor, modern: Tensor) -> dict[str, Tensor]:
    """Rewards ``[26^3]``: two have many ties, the third tells the two texts apart by pairs of letters."""

    def pairs(text: Tensor) -> Tensor:
        counts = (text[:-1] * 27 + text[1:]).bincount(minlength=27**2) + 1.0
        return (counts / counts.sum()).log().double().view(27, 27)

    letters = torch.cartesian_prod(*[torch.arange(1, 27)] * 3)
    frequency, ratio = modern.bincount(minlength=27).double(), pairs(modern) - pairs(old)
    before = torch.cat([torch.zeros_like(letters[:, :1]), letters[:, :-1]], 1)
    vowels = torch.tensor([0.0] + [float(c in "aeiou") for c in "abcdefghijklmnopqrstuvwxyz"]).double()
    return {
        "frequent letters": (frequency / frequency.sum()).log()[letters].sum(-1).round(decimals=6),  # anagrams are tied
        "vowels": vowels[letters].sum(-1),
        "modern": ratio[before, letters].sum(-1),
    }


def _divergences(lab: Lab, config: Config, model: CharacterModel, prefixes: Tensor, rewards: dict[str, Tensor]) -> None:
    winners, cases = lab.fork("winners"), []
    for temperature, reward in itertools.product(config.temperatures, rewards.values()):
        log_p, values = _answers(model, prefixes, temperature), reward.unique(return_inverse=True)[1]
        for n in DOUBLINGS:
            law = discrete.best_of_n_log_prob(log_p, reward, n, ties="order")
            chosen = torch.multinomial(law.exp(), WINNERS, True, generator=winners)
            drawn = discrete.best_of_n_kl(log_p.gather(-1, chosen), n)
            expected = (law.exp() * discrete.best_of_n_kl(log_p.unsqueeze(-1), n).value).sum(-1)
            atom = torch.zeros_like(log_p).index_add(-1, values, log_p.exp()).amax(-1)  # the likeliest reward
            exact, rate = (law.exp() * (law - log_p)).sum(-1), discrete.win_rate(law, log_p, reward)
            cases.append(torch.stack([exact, expected, *drawn, rate, atom]))
    shape = (len(config.temperatures), len(rewards), len(DOUBLINGS), -1, len(prefixes))
    exact, expected, estimate, error, rate, atom = torch.stack(cases).view(shape).unbind(3)
    n = torch.tensor(DOUBLINGS, dtype=torch.float64).unsqueeze(-1)
    bound = (n.log() - (n - 1) / n).expand_as(exact)
    cold = float((bound - exact > 0.5)[0].double().mean())
    lab.claim(
        "the bound is never below the exact divergence, and above it by more than half a nat in at least 10 % of the "
        "cases at the lowest temperature",
        *(bool((bound >= exact - 1e-9).all()), cold >= 0.1),
        **{"cases": exact.numel(), "share at the lowest temperature": cold, "largest": float((bound - exact).max())},
    )
    ours, theirs, loose = expected - exact, bound - exact, bound - exact > 0.1
    mean, most = float(ours.mean() / theirs.mean()), float(ours[loose].median() / theirs[loose].median())
    lab.claim(
        "in every case the estimate from winners has an expectation between exact divergence and bound; its mean error "
        "is at most a tenth of the bound's, its median where the bound is off by more than 0.1 nat a twentieth",
        *(bool((ours >= -1e-9).all()), bool((expected <= bound + 1e-9).all()), mean <= 0.1, most <= 0.05),
        **{"ratio of means": mean, "of medians there": most, "share of such cases": float(loose.double().mean())},
        **{"median of all errors": float(ours.median()), "that of the bound": float(theirs.median())},
    )
    fine = atom <= 1 / (20 * n)
    farthest = float((1 - rate * (n + 1) / n)[fine].amax()) if fine.any() else math.nan
    lab.claim(
        "the win rate never exceeds n / (n + 1), and is within 1 % of it where no reward has a probability above "
        "1 / (20 n)",
        *(bool((rate <= n / (n + 1) + 1e-9).all()), farthest <= 0.01),
        **{"such cases": int(fine.sum()), "farthest": farthest},
    )
    figure, axes = lab.subplots(figsize=(6, 4))
    axes.plot(DOUBLINGS, bound[0, 0, :, 0], "k--", label="bound")
    for k, name in enumerate(rewards):
        axes.plot(DOUBLINGS, exact[0, k].mean(-1), color=lab.colour(name), label=f"exact, {name}")
        axes.errorbar(DOUBLINGS, estimate[0, k].mean(-1), error[0, k].mean(-1), fmt=".", color=lab.colour(name))
    axes.set(xscale="log", xlabel="n", ylabel="nats from the model")
    axes.legend(fontsize="small")
    caption = f"Temperature {config.temperatures[0]:g}, mean over prefixes; dots: estimates from {WINNERS} winners"
    lab.figure("divergence", figure, caption + ", with the standard error of one prefix.")


def _trade_off(lab: Lab, model: CharacterModel, prefixes: Tensor, reward: Tensor) -> None:
    log_p, ns = _answers(model, prefixes), (2, 3, 4, 6, 8, 12, 16, 32, 64)
    calibrated = discrete.win_probability(log_p, reward)  # tilted by it, the law of largest win rate at its divergence
    thresholds, tilts = torch.linspace(0.02, 0.98, 25).tolist(), torch.logspace(0.5, -2, 40).tolist()
    families: dict[str, list[dict[str, Any]]] = {"best of n": [{"ns": ns}], "tilted": [{"betas": tilts}]}
    families["rewind and repeat"] = [{"thresholds": thresholds, "tries": tries} for tries in TRIES]
    key, at = "win rate at the divergence of best-of-n, n = 4 to 16", slice(ns.index(4), ns.index(16) + 1)
    figure, axes = lab.subplots(figsize=(6, 4))
    same: list[Tensor] = []
    for name, options in families.items():
        arm, rates = lab.arm(name, baseline=name != "best of n"), []
        for k, option in enumerate(options):
            curve = discrete.alignment_curve(log_p, calibrated, **option)
            same = same or list(curve.kl[:, at])
            rising = int(curve.kl.mean(0).argmax()) + 1  # few tries do not reach a high threshold
            kl, rate = curve.kl[:, :rising], curve.win_rate[:, :rising]
            axes.plot(kl.mean(0), rate.mean(0), marker=".", color=arm.colour, label=None if k else name)
            rows = zip(same, kl, rate, strict=True)  # curves begin at the model itself, which wins half of the time
            rates.append([np.interp(x, [0.0, *nats], [0.5, *wins], right=0.0) for x, nats, wins in rows])
        arm.metric(key, np.max(rates, 0).mean(), better="higher")  # with the best number of tries at each divergence
    axes.set(xlabel="nats from the model", ylabel="win rate", xlim=(0, 5))
    axes.legend()
    lab.figure("trade-off", figure, f"Mean of prefixes; tilted by the calibrated reward; at most {TRIES} repetitions.")
    best, top, rewind = (lab.arms[name][key] for name in families)
    lab.claim(
        "at equal divergence best-of-n wins at least 0.02 more often than rewind-and-repeat with its best number of "
        "tries, and less often than the tilted law, the best there is, by at most 0.002",
        *(best >= rewind + 0.02, best <= top, best >= top - 0.002),
    )


def _teach(lab: Lab, config: Config, model: CharacterModel, text: Tensor, prefixes: Tensor, reward: Tensor) -> None:
    """Teach best-of-n to policies that draw once, and see what they do after prefixes of another book."""
    n, rate, nats = 8, "win rate of a policy", "nats from the model"
    unseen, teacher = _answers(model, prefixes), lab.arm("best of n")
    law = discrete.best_of_n_log_prob(unseen, reward, n)
    teacher.metric(rate, discrete.win_rate(law, unseen, reward).mean(), better="higher")
    teacher.metric(nats, (law.exp() * (law - unseen)).sum(-1).mean(), better="lower")
    taught, winners = lab.arm("taught the law"), lab.arm("taught winners")
    for _ in lab.replicates(config.replicates):
        for arm in (taught, winners, lab.arm("score function", baseline=True)):
            policy = copy.deepcopy(model)
            optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr if arm is taught else config.drawing_lr)
            stream = lab.fork("teaching")
            for _ in arm.steps(config.teaching_steps, policy, optimizer, stream, name="teach"):
                seen = text[torch.randint(len(text), (PROMPTS,), generator=stream)]
                log_q = policy.continuations(seen)
                with torch.no_grad():
                    log_p = model.continuations(seen)
                if arm is taught:
                    loss = -(discrete.best_of_n_log_prob(log_p, reward, n).exp() * log_q).sum(-1).mean()
                elif arm is winners:
                    chosen = discrete.best_of_n(_sampler(log_p), reward.__getitem__, n, generator=stream)
                    loss = -log_q.gather(-1, chosen.sample[:, None]).mean()
                else:
                    drawn = _sampler(log_q.detach())(n, stream).T
                    ours, wins = log_q.gather(-1, drawn), discrete.win_probability(log_p, reward).gather(-1, drawn)
                    gain = wins / config.price - ours.detach() + log_p.gather(-1, drawn)  # wins: exactly
                    loss = -discrete.score_function(ours, gain, baseline="leave_one_out", dim=-1).mean()
                arm.descend(loss, optimizer, clip=1.0)
            log_q = _answers(policy, prefixes)
            arm.metric(rate, discrete.win_rate(log_q, unseen, reward).mean(), better="higher")
            arm.metric(nats, (log_q.exp() * (log_q - unseen)).sum(-1).mean(), better="lower")
    lab.claim(
        f"taught the law of the best of {n}, one draw wins at least 0.95 times as often, at no more than its "
        "divergence + 0.1, after prefixes of another book",
        *(taught[rate] >= 0.95 * teacher[rate], taught[nats] <= teacher[nats] + 0.1),
    )
    lab.bars(rate, nats, caption=f"One draw, and the best of {n}; winners, score function: from {n} draws a prefix.")


def _answers(model: CharacterModel, prefixes: Tensor, temperature: float = 1.0) -> Tensor:
    with torch.no_grad():
        return model.continuations(prefixes, temperature).double().log_softmax(-1)


def _sampler(log_prob: Tensor) -> Callable[[int, torch.Generator | None], Tensor]:
    return lambda n, generator: torch.multinomial(log_prob.exp(), n, True, generator=generator).T
