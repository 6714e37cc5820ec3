"""Written English."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from pullback.core.checks import check_integer
from pullback.core.shapes import Int, Tensor
from pullback.data.cache import load
from pullback.data.text_formats import split_strings

__all__ = ["Review", "Verse", "Vocabulary", "bible", "characters", "film_reviews", "sentiment_words", "words"]


class Verse(NamedTuple):
    """One verse.

    Attributes:
        book: short name, such as ``"Ge"`` or ``"1Co"``.
        chapter: from 1.
        verse: from 1.
        text: the words.
    """

    book: str
    chapter: int
    verse: int
    text: str


class Review(NamedTuple):
    """A sentence or two of a critic about a film.

    Attributes:
        text: the words.
        favourable: whether the review recommends the film ("fresh", not "rotten").
        film: its name, of lower-case words joined by ``_``.
    """

    text: str
    favourable: bool
    film: str


def bible() -> list[Verse]:
    """Return the 31 102 verses of the King James Bible, in order.

    Raises:
        DataMissingError: the set was not fetched.
    """
    verses = []
    for line in split_strings(load("bible"), "verses"):
        found = re.fullmatch(r"(\w+?)(\d+):(\d+) (.*)", line)
        if found is None:
            raise ValueError(f"not a verse: {line[:40]!r}")
        verses.append(Verse(found[1], int(found[2]), int(found[3]), found[4]))
    return verses


def film_reviews() -> list[Review]:
    """Return 12 808 snippets of Rotten Tomatoes, film by film: 7 403 favourable, 5 405 not.

    Raises:
        DataMissingError: the set was not fetched.
    """
    stored = load("film_reviews")
    texts, films = split_strings(stored, "text"), split_strings(stored, "movie_name")
    return [Review(*row) for row in zip(texts, stored["favourable"].tolist(), films, strict=True)]


def sentiment_words() -> dict[str, float]:
    """Return the sentiment of 7 506 words and emoticons: the mean of ten ratings, from -4 (worst) to 4 (best).

    Raises:
        DataMissingError: the set was not fetched.
    """
    stored = load("sentiment_words")
    return dict(zip(split_strings(stored, "word"), stored["rating"].tolist(), strict=True))


def characters(text: str, alphabet: str = " abcdefghijklmnopqrstuvwxyz") -> Int[Tensor, "n"]:
    """Return the place in an alphabet of every character of a text in lower case.

    Args:
        text: any length.
        alphabet: different characters; the first one stands for every run of others.

    Returns:
        ``[n]`` int64.

    Raises:
        ValueError: ``alphabet`` is empty or repeats a character.

    Example:
        >>> characters("In the be-").tolist()
        [9, 14, 0, 20, 8, 5, 0, 2, 5, 0]
    """
    if not alphabet or len(set(alphabet)) != len(alphabet):
        raise ValueError(f"alphabet must have different characters, got {alphabet!r}")
    other = f"[^{re.escape(alphabet[1:])}]+" if len(alphabet) > 1 else ".+"
    reduced = re.sub(other, lambda run: alphabet[0], text.lower(), flags=re.DOTALL)
    codes, known = (np.frombuffer(s.encode("utf-32-le"), dtype=np.uint32) for s in (reduced, alphabet))
    order = known.argsort()
    return torch.from_numpy(order[np.searchsorted(known[order], codes)].astype(np.int64))


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, with numbers, and exclamation and question marks.

    Example:
        >>> words("Isn't it -- 100% fun?")
        ["isn't", 'it', '100', 'fun', '?']
    """
    return re.findall(r"[a-z0-9']+|[!?]", text.lower())


class Vocabulary:
    """The words of texts as numbers: 0 is no word, 1 any that is not in it; the others stand in alphabetic order.

    Args:
        texts: words of each text.
        at_least: how often a word must be there, >= 1.

    Raises:
        ValueError: ``at_least`` is below 1.

    Example:
        >>> vocabulary = Vocabulary([["so", "so", "fine"], ["fine"]], at_least=2)
        >>> vocabulary.words, vocabulary.encode([["so", "very"]], length=3).tolist()
        (('', '...', 'fine', 'so'), [[3, 1, 0]])
    """

    def __init__(self, texts: Iterable[Sequence[str]], at_least: int = 1) -> None:
        check_integer("at_least", at_least, 1)
        counts = Counter(word for text in texts for word in text)
        self.words = ("", "...", *sorted(word for word, count in counts.items() if count >= at_least))
        self._numbers = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        """Return how many numbers there are."""
        return len(self.words)

    def encode(self, texts: Sequence[Sequence[str]], length: int) -> Int[Tensor, "n length"]:
        """Return the first ``length`` words of each text as numbers, filled up with 0."""
        encoded = torch.zeros(len(texts), check_integer("length", length, 1), dtype=torch.long)
        for row, text in enumerate(texts):
            numbers = [self._numbers.get(word, 1) for word in text[:length]]
            encoded[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.long)
        return encoded
