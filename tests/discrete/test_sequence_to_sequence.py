"""What a decoder writes, against enumeration, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from pullback.discrete import SequenceDecoder, SequenceToSequence


def _decoder() -> SequenceDecoder:
    generator = torch.Generator().manual_seed(3)
    decoder = SequenceDecoder(4, 8, 2, 2, positions=6, generator=generator)
    with torch.no_grad():
        decoder.readout.weight.mul_(2)  # answers that differ in probability
    return decoder


def _memory() -> Tensor:
    return torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(4))


def _log_prob(decoder: SequenceDecoder, memory: Tensor, answer: tuple[int, ...]) -> Tensor:
    """Of an answer to each memory, read as a whole, without a cache."""
    tokens = torch.tensor(answer).expand(len(memory), -1)
    before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], 1)
    steps = decoder(before, memory).logits.log_softmax(-1)
    return steps.gather(-1, tokens[..., None])[..., 0].sum(-1)


@torch.no_grad()
def test_a_full_beam_finds_the_likeliest_answer() -> None:
    decoder, memory = _decoder(), _memory()
    answers = {a[: a.index(1) + 1] if 1 in a else a for a in product(range(4), repeat=3)}
    likelihood = torch.stack([_log_prob(decoder, memory, a) for a in sorted(answers)])
    best, chosen = likelihood.max(0)
    found = SequenceDecoder.generate(decoder, memory, start=0, stop=1, max_tokens=3, beam=4)
    # one answer of each memory is at most 16 continuations wide: a beam of 4 holds the best of these three tokens
    wanted = [sorted(answers)[i] for i in chosen.tolist()]
    for row, answer in zip(found.tokens.tolist(), wanted, strict=True):
        assert tuple(row[: len(answer)]) == answer
        assert all(token == 1 for token in row[len(answer) :])
    torch.testing.assert_close(found.log_prob, best)


@torch.no_grad()
def test_greedy_takes_the_likeliest_token_each_time_and_the_cache_changes_nothing() -> None:
    decoder, memory = _decoder(), _memory()
    found = decoder.generate(memory, start=0, stop=1, max_tokens=6)
    for row in range(len(memory)):
        tokens = [0]
        while len(tokens) < 7 and (len(tokens) == 1 or tokens[-1] != 1):
            logits = decoder(torch.tensor([tokens]), memory[row : row + 1]).logits
            tokens.append(int(logits[0, -1].argmax()))
        written = found.tokens[row].tolist()
        assert written[: len(tokens) - 1] == tokens[1:]
        assert set(written[len(tokens) - 1 :]) <= {1}
        answer = _log_prob(decoder, memory[row : row + 1], tuple(tokens[1:]))
        torch.testing.assert_close(found.log_prob[row : row + 1], answer)


@torch.no_grad()
def test_a_token_sees_none_after_it_and_a_mask_hides_a_row() -> None:
    decoder, memory = _decoder(), _memory()
    tokens = torch.randint(4, (5, 4), generator=torch.Generator().manual_seed(5))
    mask = torch.tensor([True, True, False]).expand(5, 3)
    logits = decoder(tokens, memory, mask=mask).logits
    later, elsewhere = tokens.clone(), memory.clone()
    later[:, 3] = (later[:, 3] + 1) % 4
    elsewhere[:, 2] += 5
    changed = decoder(later, elsewhere, mask=mask).logits
    torch.testing.assert_close(changed[:, :3], logits[:, :3])
    assert not torch.allclose(changed[:, 3], logits[:, 3])
    two = decoder.generate(memory[:, :2], start=0, stop=1, max_tokens=4, beam=2)
    hidden = decoder.generate(elsewhere, start=0, stop=1, max_tokens=4, beam=2, mask=mask)
    assert torch.equal(two.tokens, hidden.tokens)


def test_it_learns_to_turn_words_around() -> None:
    generator = torch.Generator().manual_seed(0)
    model = SequenceToSequence(6, 16, 2, 1, positions=4, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    words = torch.cartesian_prod(*[torch.arange(2, 6)] * 3)
    order = torch.randperm(len(words), generator=generator)
    train, test = words[order[:52]], words[order[52:]]

    def answers(words: Tensor) -> Tensor:
        return torch.cat([words.flip(-1), torch.ones_like(words[:, :1])], -1)

    for _ in range(150):
        optimizer.zero_grad()
        model.loss(model.embedding(train), answers(train)).backward()
        optimizer.step()
    right = (model.generate(model.embedding(test), 4).tokens == answers(test)).all(-1)
    assert right.sum() >= 8  # of 12; a guess is right once in 64


_REFUSED: list[tuple[Callable[[], object], type[Exception], str]] = [
    (lambda: SequenceDecoder(0), ValueError, "vocabulary must be an integer >= 1, got 0"),
    (lambda: SequenceDecoder(4, 6, 4), ValueError, "width must be a multiple of heads, got 6 and 4"),
    (lambda: SequenceDecoder(4, 8, embedding=torch.nn.Embedding(4, 6)), ValueError, r"embedding must be \[4, 8\]"),
    (lambda: SequenceToSequence(4, 8, stop=4), ValueError, "stop must be in 0..3, got 4"),
    (lambda: _decoder()(torch.tensor([[4]]), _memory()[:1]), ValueError, r"tokens must be in 0\.\.3, got 4\.\.4"),
    (lambda: _decoder()(torch.zeros(5, 7, dtype=torch.long), _memory()), ValueError, "tokens must be at most 6"),
    (
        lambda: _decoder()(torch.zeros(5, 1, dtype=torch.long), _memory(), mask=torch.zeros(5, 3, dtype=torch.bool)),
        ValueError,
        "mask must leave at least one row in each sample",
    ),
    (lambda: _decoder().generate(_memory(), start=0, stop=9, max_tokens=2), ValueError, r"stop must be in 0\.\.3"),
    (lambda: _decoder().generate(_memory(), start=0, stop=1, max_tokens=7), ValueError, r"max_tokens must be in 1\.\."),
    (lambda: _decoder().generate(_memory(), start=0, stop=1, max_tokens=2, beam=5), ValueError, r"beam must be in"),
]


@pytest.mark.parametrize(("call", "error", "match"), _REFUSED)
def test_refusals(call: Callable[[], object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
