"""A tokenizer that is learned with the model that reads it, and does not fall apart when letters change.

Pieces of words are cut before anything is trained: one wrong letter, and a word is pieces that nobody knows. Here a
window of attention says of each byte how probably it opens a block; the number of borders up to a byte has a law, close
to a Gaussian, that says in which block it lies, softly; a block is the mean of its weighted bytes. All is trained by
the loss of the model behind (Godey, Castagne, de la Clergerie, Sagot, Findings of EMNLP 2022).

Smaller than in the paper: verses of the King James Bible (real), 128 bytes each; borders are looked at after 120 steps
of span corruption, robustness after 200 steps of telling the part of the Bible that a verse is from (paper: pretraining
with T5 sizes, then GLUE). Test verses are of chapters that no training verse is from; letters change at test time only.
Blocks are means, the paper's second choice: maxima need more steps. The law's variance is that of the paper's text; its
code divides by another, measured here too. Borders after so few steps lie where chance put them, and frontiers that
stay alike (even blocks) do as well: nothing is claimed of borders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from pullback import data, discrete
from pullback.data import BytePairs
from pullback.discrete import GradientTokenizer, SequenceToSequence, Tokenized, soft_segment
from pullback.lab import Arm, Lab, above, at_least, system


@dataclass(frozen=True)
class Config:
    """Options of the run."""

    steps: Annotated[int, at_least(1)] = 200
    """Steps of each classifier."""
    batch: Annotated[int, at_least(2)] = 32
    """Verses of each, half as many for span corruption."""
    span_steps: Annotated[int, at_least(1)] = 120
    """Steps of span corruption."""
    length: Annotated[int, at_least(32)] = 128
    """Bytes of a verse, a multiple of 4."""
    width: Annotated[int, at_least(8)] = 64
    """Of the models, a multiple of 8."""
    layers: Annotated[int, at_least(1)] = 2
    """Of encoder and decoder."""
    pieces: Annotated[int, at_least(256)] = 2000
    """Of the byte pairs."""
    lr: Annotated[float, above(0)] = 4e-3
    """Largest step size of the classifiers, twice that of span corruption; it falls to 0 linearly."""
    test: Annotated[int, at_least(5)] = 1000
    """Test verses, a fifth from each part."""


LAST = ("Est", "SSol", "Mal", "Acts", "Rev")  # books of history, poetry, prophets, gospels and acts, letters
NOISE = (0, 10, 20)  # percent
ACCURACY = "accuracy, {} % noise"
SPAN, SENTINEL = 20, 2  # bytes that are cut out, and what stands for them; 0 and 1 are start and stop


class Reader(nn.Module):
    """A front that makes vectors of tokens, a transformer, the mean, a linear layer."""

    def __init__(self, front: nn.Module, vectors: int, config: Config) -> None:
        super().__init__()
        self.front, self.norm = front, nn.LayerNorm(config.width)
        self.positions = nn.Parameter(0.02 * torch.randn(vectors, config.width))
        layer = nn.TransformerEncoderLayer(config.width, 4, 4 * config.width, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.classes = nn.Linear(config.width, len(LAST))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of the parts."""
        vectors = self.front(tokens)
        vectors = vectors.blocks if isinstance(vectors, Tokenized) else vectors
        logits: Tensor = self.classes(self.encoder(self.norm(vectors) + self.positions).mean(-2))
        return logits


@system(
    "manta",
    family="discrete",
    title="MANTa: Efficient Gradient-Based Tokenization for Robust End-to-End Language Modeling",
    paper="Godey, Castagne, de la Clergerie, Sagot, Findings of EMNLP 2022, arXiv 2212.07284",
    config=Config,
    smoke={"steps": 2, "batch": 5, "span_steps": 2, "length": 32, "pieces": 270, "test": 10},
    full={"steps": 20_000, "span_steps": 100_000, "width": 512, "layers": 6, "length": 256, "pieces": 32_000},
    data=("bible",),
    blocks=(
        *("discrete.soft_segment", "discrete.pool_blocks", "discrete.FrontierPredictor", "discrete.local_attention"),
        *("discrete.GradientTokenizer", "discrete.segmentation_f1", "discrete.SequenceToSequence"),
    ),
)
def run(lab: Lab, config: Config) -> None:
    """Check the law of blocks, learn borders from span corruption, then read verses whose letters change."""
    verses = data.bible()
    lab.data("King James Bible, 31 102 verses", origin="real")
    books = list(dict.fromkeys(verse.book for verse in verses))
    groups: dict[bool, list[list[str]]] = {held: [[] for _ in range(len(LAST))] for held in (False, True)}
    for verse in verses:
        part = sum(books.index(verse.book) > books.index(last) for last in LAST)
        groups[verse.chapter % 5 == 3][part].append(verse.text)
    _laws(lab)
    _borders(lab, config, groups)
    _robustness(lab, config, groups)
    if lab.scale != "smoke":
        _speed(lab, config)


def _padded(rows: Sequence[Sequence[int]], length: int, filler: int) -> Tensor:
    return torch.tensor([[*row[:length], *[filler] * (length - len(row))] for row in rows])


def _bytes(texts: Sequence[str], length: int) -> Tensor:
    return _padded([text.encode() for text in texts], length, 0)


def _pieces(pairs: BytePairs, texts: Sequence[str], length: int) -> Tensor:
    """Of the same bytes; half as many hold even noisy text. The number after the last piece fills up."""
    return _padded([pairs.encode(text[:length]) for text in texts], length // 2, len(pairs))


def _tokenizer(config: Config, *, even: bool = False) -> GradientTokenizer:
    tokenizer = GradientTokenizer(config.width, config.width // 2, pooling="mean")
    if even:  # frontiers stay alike
        nn.init.zeros_(tokenizer.frontiers.open.weight)
        tokenizer.frontiers.requires_grad_(False)
    return tokenizer


def _fours(config: Config) -> nn.Module:
    """Four bytes side by side, after each other."""
    embed, join = nn.Embedding(256, config.width // 4), nn.Linear(config.width, config.width)
    return nn.Sequential(embed, nn.Unflatten(1, (config.length // 4, 4)), nn.Flatten(2), join)


def _adam(model: nn.Module, lr: float, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]:
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min((t + 1) / 20, 1 - t / steps))


def _laws(lab: Lab) -> None:
    """The Gaussian against the law itself, for four kinds of frontiers."""
    stream, n = lab.fork("law"), 256
    uniform = torch.rand(4, n, generator=stream, dtype=torch.float64)
    kinds = {"uniform": uniform, "sparse": 0.3 * uniform**2, "constant": torch.full((1, n), 0.25, dtype=torch.float64)}
    kinds["nearly decided"] = torch.where(uniform < 0.25, 0.98, 0.02)
    off: dict[str, dict[str, float]] = {"gaussian": {}, "gaussian_sharp": {}}
    for kind, p in kinds.items():
        exact = soft_segment(p, blocks=n, method="exact")
        for method, distances in off.items():
            distances[kind] = float((soft_segment(p, blocks=n, method=method) - exact).abs().sum(-1).mean() / 2)
    short, opens = uniform[0, :10], torch.cartesian_prod(*[torch.tensor([0, 1])] * 9)
    chance = torch.where(opens > 0, short[1:], 1 - short[1:]).prod(-1)
    block = nn.functional.pad(opens, (1, 0)).cumsum(-1)
    counted = torch.stack([(chance[:, None] * (block == k)).sum(0) for k in range(10)], -1)
    error = float((soft_segment(short, blocks=10, method="exact") - counted).abs().max())
    hard, sums = (uniform < 0.3).double(), soft_segment(uniform.float(), blocks=n).sum(-1)
    lab.claim(
        "the law of blocks is that of all patterns of frontiers to 1e-12; 0 and 1 give hard blocks; rows sum to 1",
        error <= 1e-12,
        all(bool((soft_segment(hard, blocks=n, method=m).amax(-1) == 1).all()) for m in ("gaussian", "exact")),
        bool(((sums - 1).abs() <= 1e-6).all()),
        scale="smoke",
        largest_error=error,
    )
    lab.claim(
        "over 256 bytes the Gaussian is off by a total variation of at most 0.1, the one of the authors' code by more",
        max(off["gaussian"].values()) <= 0.1,
        min(off["gaussian_sharp"].values()) > 0.1,
        scale="smoke",
        **{f"{method}, {kind}": value for method, found in off.items() for kind, value in found.items()},
    )


def _borders(lab: Lab, config: Config, groups: dict[bool, list[list[str]]]) -> None:
    """Span corruption: bytes with a hole in, the bytes of the hole out; then borders against words."""
    arm = lab.arm("MANTa")
    whole = {held: [t for part in groups[held] for t in part if len(t) >= config.length][::4] for held in groups}
    train, held = (_bytes(whole[held], config.length) for held in (False, True))
    with arm.weights("span corruption"):
        tokenizer = _tokenizer(config)
        model = SequenceToSequence(128, config.width, 4, config.layers, positions=config.length)
    both = nn.ModuleList([tokenizer, model])
    optimizer, schedule = _adam(both, config.lr / 2, config.span_steps)
    batches = lab.fork("spans")
    for _ in arm.steps(config.span_steps, both, optimizer, schedule, batches, name="span corruption"):
        rows = train[torch.randint(len(train), (config.batch // 2,), generator=batches)]
        first = torch.randint(config.length - SPAN, (config.batch // 2, 1), generator=batches)
        targets = torch.cat([rows.gather(1, first + torch.arange(SPAN)), torch.ones_like(first)], 1)
        kept = torch.arange(config.length - SPAN + 1).expand(config.batch // 2, -1)
        inputs = rows.gather(1, torch.where(kept > first, kept + SPAN - 1, kept)).scatter(1, first, SENTINEL)
        arm.descend(model.loss(tokenizer(inputs).blocks, targets), optimizer, name="loss of the span", clip=1.0)
        schedule.step()
    _compare(lab, arm, tokenizer, held[:300], "after spans")


@torch.no_grad()
def _compare(lab: Lab, arm: Arm, tokenizer: GradientTokenizer, rows: Tensor, when: str) -> None:
    """Borders that nobody taught, beside the gaps between words, random borders of the same rate, and every fourth."""
    found = tokenizer(rows)
    starts, p = (rows[:, 1:] != 32) & (rows[:, :-1] == 32), found.frontiers[:, 1:]
    hard = found.assignment.argmax(-1).diff(dim=-1) != 0
    chance = torch.rand(hard.shape, generator=lab.fork("random borders")) < hard.float().mean()
    fours = (torch.arange(1, rows.shape[1]) % 4 == 0).expand_as(hard)
    for kind, borders in (("learned", hard), ("random", chance), ("of 4", fours)):
        score = 100 * discrete.segmentation_f1(borders.flatten(), starts.flatten())
        arm.metric(f"F1 of borders, {kind}, {when}", score, better="higher", unit="%")
    arm.metric(f"AUC of frontiers, {when}", roc_auc_score(starts.flatten(), p.flatten()), better="higher")
    arm.metric(f"bytes dropped, {when}", 100 * found.dropped.mean(), better="lower", unit="%")


def _robustness(lab: Lab, config: Config, groups: dict[bool, list[list[str]]]) -> None:
    """Classifiers with several fronts read clean verses to learn, and ever worse ones in the test."""
    train, each = groups[False], config.test // 5
    held = [part[i * len(part) // each] for part in groups[True] for i in range(each)]  # of all books
    labels = torch.arange(len(LAST)).repeat_interleave(each)
    pairs = BytePairs.learn([text for part in train for text in part], config.pieces)
    as_bytes, as_pieces = partial(_bytes, length=config.length), partial(_pieces, pairs, length=config.length)
    fronts: dict[str, tuple[Callable[[Sequence[str]], Tensor], Callable[[], nn.Module], int]] = {
        "MANTa": (as_bytes, lambda: _tokenizer(config), config.length // 4),
        "even blocks": (as_bytes, lambda: _tokenizer(config, even=True), config.length // 4),
        "bytes": (as_bytes, lambda: nn.Embedding(256, config.width), config.length),
        "blocks of 4": (as_bytes, lambda: _fours(config), config.length // 4),
        "byte pairs": (as_pieces, lambda: nn.Embedding(len(pairs) + 1, config.width), config.length // 2),
    }
    readers: dict[str, Reader] = {}
    for name, (encode, front, vectors) in fronts.items():
        arm = lab.arm(name, baseline=name != "MANTa")
        with arm.weights():
            reader = Reader(front(), vectors, config)
        optimizer, schedule = _adam(reader, config.lr, config.steps)
        batches = lab.fork("verses")
        for _ in arm.steps(config.steps, reader, optimizer, schedule, batches, name="reading"):
            parts = torch.randint(len(train), (config.batch,), generator=batches)
            places = torch.rand(config.batch, generator=batches).tolist()
            texts = [train[part][int(u * len(train[part]))] for part, u in zip(parts.tolist(), places, strict=True)]
            arm.descend(nn.functional.cross_entropy(reader(encode(texts)), parts), optimizer, clip=1.0)
            schedule.step()
        with torch.no_grad():
            for percent in NOISE:
                stream = lab.fork("noise")
                tokens = encode([data.character_noise(text, percent / 100, generator=stream) for text in held])
                found = torch.cat([reader(rows).argmax(-1) for rows in tokens.split(100)])
                arm.metric(ACCURACY.format(percent), 100 * (found == labels).float().mean(), better="higher", unit="%")
        readers[name] = reader
    ours, _, plain, fours, merged = (lab.arms[name] for name in fronts)
    rows = as_bytes([text for text in held if len(text) >= config.length])
    _compare(lab, ours, readers["MANTa"].front, rows, "after reading")  # type: ignore[arg-type]
    clean, some, worst = map(ACCURACY.format, NOISE)
    lab.claim(
        "where every tenth or fifth letter is wrong it loses at most a third of the share of accuracy that byte pairs "
        "lose; at the latter it is at least 2 points above them and above blocks of 4",
        *(1 - ours[noisy] / ours[clean] <= (1 - merged[noisy] / merged[clean]) / 3 for noisy in (some, worst)),
        *(ours[worst] >= other[worst] + 2 for other in (merged, fours)),
    )
    lab.claim(
        "on clean text it is within 3 points of bytes and of blocks of 4 after as many steps",
        *(ours[clean] >= other[clean] - 3 for other in (plain, fours)),
    )
    lab.bars(*map(ACCURACY.format, NOISE), caption="Verses whose part of the Bible is told right, with wrong letters.")
    if lab.scale != "smoke":
        _draw(lab, readers["MANTa"].front, rows[:1])  # type: ignore[arg-type]


@torch.no_grad()
def _draw(lab: Lab, tokenizer: GradientTokenizer, row: Tensor) -> None:
    found, text = tokenizer(row), bytes(row[0].tolist()).decode(errors="replace")
    figure, (top, below) = lab.subplots(2, 1, figsize=(11, 4), sharex=True, layout="constrained")
    top.bar(range(len(text)), found.frontiers[0].tolist(), width=1, color=lab.arm("MANTa").colour)
    top.set_ylabel("opens a block")
    for at in (found.assignment[0].argmax(-1).diff() != 0).nonzero().flatten().tolist():
        top.axvline(at + 0.5, color="black", linewidth=0.5)
    below.imshow(found.assignment[0].T.numpy(), aspect="auto", cmap="Blues", origin="lower")
    below.set(ylabel="block", xticks=range(len(text)))
    below.set_xticklabels(list(text), fontsize=6)
    lab.figure("blocks", figure, "Frontiers of an unseen verse with hard borders (lines), and the law of its blocks.")


def _speed(lab: Lab, config: Config) -> None:
    """Forward and backward of four layers, on longer text."""
    deeper, ratios = replace(config, layers=4), []
    for length in (512, 1024):
        tokens = torch.randint(256, (2, length), generator=lab.fork("bytes"))
        fronts = {"means": (_tokenizer(config), 4), "bytes": (nn.Embedding(256, config.width), 1)}
        fronts["maxima"] = GradientTokenizer(config.width, config.width // 2, seen=48), 4
        readers = {name: Reader(front, length // ratio, deeper) for name, (front, ratio) in fronts.items()}
        race = lab.race({name: partial(_step, reader, tokens) for name, reader in readers.items()}, rounds=7)
        ratios += [race.ratio(name, "bytes") for name in ("means", "maxima")]
    lab.claim(
        "a step with means, or maxima over 48 bytes, takes at most half of one on 512 and 1 024 bytes, one thread",
        *(ratio <= 0.5 for ratio in ratios),
    )


def _step(reader: Reader, tokens: Tensor) -> None:
    reader(tokens).sum().backward()
