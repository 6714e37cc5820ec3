"""Pieces of words by merging the most frequent pairs: the tokenizer that learned ones are compared with."""

from __future__ import annotations

import heapq
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from pullback.core.checks import check_integer

__all__ = ["BytePairs"]

Pair = tuple[int, int]


class BytePairs:
    """Byte-pair encoding: 256 bytes, and one piece for each merge, within words that keep the space before them.

    Args:
        merges: pairs of pieces, the first made first; piece ``256 + i`` is what merge i joins.

    Raises:
        ValueError: a merge joins pieces that are not there yet.

    Example:
        >>> pairs = BytePairs.learn(["low lower lowest", "low"], pieces=259)
        >>> [pairs.piece(i) for i in pairs.encode("lowest low")]
        [b'low', b'e', b's', b't', b' low']

    References:
        Sennrich, Haddow, Birch (2016), Neural machine translation of rare words with subword units.
    """

    def __init__(self, merges: Sequence[Pair]) -> None:
        self.merges = tuple(merges)
        self.ranks: dict[Pair, int] = {pair: number for number, pair in enumerate(self.merges)}
        self._pieces = [bytes([i]) for i in range(256)]
        for number, (left, right) in enumerate(self.merges):
            if not 0 <= min(left, right) <= max(left, right) < 256 + number:
                raise ValueError(f"merges must join pieces that are there, number {number} is {(left, right)}")
            self._pieces.append(self._pieces[left] + self._pieces[right])
        self._known: dict[str, tuple[int, ...]] = {}

    @classmethod
    def learn(cls, texts: Iterable[str], pieces: int) -> BytePairs:
        """Merge the pair that is most frequent, of equals the smallest, until there are so many pieces.

        Args:
            texts: in UTF-8.
            pieces: >= 256, the bytes included; fewer come out where no pair is left.

        Raises:
            TypeError: ``pieces`` is no integer.
            ValueError: ``pieces`` < 256.
        """
        check_integer("pieces", pieces, 256)
        counts = Counter(word for text in texts for word in _words(text))
        words = [list(word.encode()) for word in counts]
        weights = list(counts.values())
        totals: Counter[Pair] = Counter()
        where: defaultdict[Pair, set[int]] = defaultdict(set)
        for number, (word, weight) in enumerate(zip(words, weights, strict=True)):
            for pair in itertools.pairwise(word):
                totals[pair] += weight
                where[pair].add(number)
        waiting = [(-total, pair) for pair, total in totals.items()]
        heapq.heapify(waiting)
        merges: list[Pair] = []
        while waiting and len(merges) < pieces - 256:
            total, best = heapq.heappop(waiting)
            if totals[best] != -total:  # said before its count changed
                continue
            changed = set()
            for number in where.pop(best):
                word, weight = words[number], weights[number]
                for pair in itertools.pairwise(word):
                    totals[pair] -= weight
                    changed.add(pair)
                words[number] = word = _merged(word, best, 256 + len(merges))
                for pair in itertools.pairwise(word):
                    totals[pair] += weight
                    where[pair].add(number)
                    changed.add(pair)
            for pair in changed:
                if totals[pair] > 0 and pair != best:
                    heapq.heappush(waiting, (-totals[pair], pair))
            merges.append(best)
        return cls(merges)

    def encode(self, text: str) -> list[int]:
        """Return the pieces of a text, 256 + the number of the merge, or a byte."""
        found: list[int] = []
        for word in _words(text):
            if word not in self._known:
                self._known[word] = self._split(word)
            found += self._known[word]
        return found

    def piece(self, number: int) -> bytes:
        """Return the bytes of a piece."""
        return self._pieces[number]

    def __len__(self) -> int:
        return len(self._pieces)

    def _split(self, word: str) -> tuple[int, ...]:
        pieces = list(word.encode())
        while len(pieces) > 1:
            first = min(itertools.pairwise(pieces), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if first not in self.ranks:
                break
            pieces = _merged(pieces, first, 256 + self.ranks[first])
        return tuple(pieces)


def _words(text: str) -> list[str]:
    return re.findall(r" ?[^ ]+| +", text)


def _merged(pieces: list[int], pair: Pair, made: int) -> list[int]:
    result: list[int] = []
    at = 0
    while at < len(pieces):
        if at + 1 < len(pieces) and (pieces[at], pieces[at + 1]) == pair:
            result.append(made)
            at += 2
        else:
            result.append(pieces[at])
            at += 1
    return result
