"""Letters that get lost, come twice or become others: what a reader of text should survive."""

from __future__ import annotations

import string

import torch

from pullback.core.checks import check_range

__all__ = ["character_noise"]


def character_noise(text: str, rate: float, *, generator: torch.Generator) -> str:
    """Return a text in which letters were dropped, repeated or replaced by another letter, a third each.

    Args:
        text: any; what is no letter of the Latin alphabet stays.
        rate: probability that a letter is changed, in [0, 1].
        generator: draws which, and how.

    Returns:
        The text, of another length.

    Raises:
        TypeError: ``rate`` is no number.
        ValueError: ``rate`` is outside [0, 1].

    Example:
        >>> noisy = character_noise("in the beginning", 0.3, generator=torch.Generator().manual_seed(2))
        >>> noisy != "in the beginning", character_noise("in", 0.0, generator=torch.Generator())
        (True, 'in')
    """
    check_range("rate", rate, 0, 1)
    changes = (torch.rand(len(text), generator=generator) < rate).tolist()
    kinds = torch.randint(3, (len(text),), generator=generator).tolist()
    letters = torch.randint(25, (len(text),), generator=generator).tolist()
    result = []
    for character, change, kind, letter in zip(text, changes, kinds, letters, strict=True):
        if not change or character not in string.ascii_letters:
            result.append(character)
        elif kind == 1:
            result.append(2 * character)
        elif kind == 2:
            alphabet = string.ascii_lowercase if character.islower() else string.ascii_uppercase
            result.append(alphabet.replace(character, "")[letter])
    return "".join(result)
