from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from pullback.data import BytePairs, character_noise

TEXTS = ["the cat sat on the mat", "that hat", "a  théâtre"]


def _naive(texts: list[str], pieces: int) -> list[tuple[int, int]]:
    """All pairs counted anew before each merge."""
    words = []
    for text in texts:
        start = 0
        for at in range(1, len(text) + 1):
            if at == len(text) or (text[at] == " " and text[at - 1] != " "):
                words.append(text[start:at])
                start = at
    split = [list(w.encode()) for word in words for w in ([" ", word[1:]] if word.startswith("  ") else [word])]
    merges: list[tuple[int, int]] = []
    while len(merges) < pieces - 256:
        counts = Counter(pair for word in split for pair in itertools.pairwise(word))
        if not counts:
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for number, word in enumerate(split):
            joined: list[int] = []
            for piece in word:
                if joined and (joined[-1], piece) == best:
                    joined[-1] = 255 + len(merges)
                else:
                    joined.append(piece)
            split[number] = joined
    return merges


def test_merges_are_the_most_frequent_pairs() -> None:
    texts = TEXTS[:2] * 3 + ["tatters that scatter the theatre"]
    assert list(BytePairs.learn(texts, 280).merges) == _naive(texts, 280)


def test_pieces_join_to_the_text() -> None:
    pairs = BytePairs.learn(TEXTS, 275)
    for text in (*TEXTS, "never seen: zürich"):
        assert b"".join(pairs.piece(i) for i in pairs.encode(text)).decode() == text
    assert len(pairs.encode(TEXTS[0])) < len(TEXTS[0])
    assert len(pairs) == 275
    assert BytePairs([]).encode("hat") == list(b"hat")


def test_wrong_merges_are_refused() -> None:
    with pytest.raises(ValueError, match="merges must join pieces that are there"):
        BytePairs([(97, 300)])
    with pytest.raises(ValueError, match="pieces must be"):
        BytePairs.learn(TEXTS, 255)


def test_noise_changes_letters_at_its_rate(generator: torch.Generator) -> None:
    text = "Ab c, " * 5000
    noisy = character_noise(text, 0.3, generator=generator)
    assert [c for c in noisy if not c.isalpha()] == [c for c in text if not c.isalpha()]
    assert abs(len(noisy) - len(text)) < 400  # drops and repeats balance: standard deviation 55
    same = sum(c in "Abc" for c in noisy) / 15000
    assert abs(same - (1 - 0.3 + 0.1 * 2 + 0.1 / 25)) < 0.03  # kept, repeated, and a few drawn by chance
    assert character_noise(text, 0.0, generator=generator) == text
    with pytest.raises(ValueError, match="rate must be in"):
        character_noise(text, 1.5, generator=generator)
