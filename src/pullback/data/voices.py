"""Voices that move around an array of microphones: real speech in a simulated field."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pullback.audio import simulate_array
from pullback.core.checks import check_choice, check_integer, check_positive
from pullback.core.shapes import Bool, Float, Tensor
from pullback.data.speech import prompts

__all__ = ["MovingVoices", "moving_voices"]

_FRAME = 0.1  # seconds


class MovingVoices(NamedTuple):
    """Recordings of an array, and who speaks from where.

    Attributes:
        signals: ``[count, mics, t]`` what the microphones hear; a voice has a mean square of 1 where it speaks.
        directions: ``[count, frames, voices, 3]`` unit vectors towards the voices, at the middles of the frames.
        active: ``[count, frames, voices]`` who speaks.
        rate: samples a second; a frame is a tenth of a second.
    """

    signals: Float[Tensor, "count mics t"]
    directions: Float[Tensor, "count frames voices 3"]
    active: Bool[Tensor, "count frames voices"]
    rate: int


def moving_voices(
    split: str,
    count: int,
    *,
    frames: int = 40,
    voices: int = 2,
    radius: float = 0.2,
    speed: float = 40.0,
    noise: float = 0.1,
    generator: torch.Generator,
) -> MovingVoices:
    """Return clips of voices that circle four microphones in the free field; each begins and ends at random.

    What is said are the telephone prompts without their pauses: four of five in the training set, the fifth in the test
    set. A voice begins within the first three eighths of a clip, ends within the last three, and moves along the
    horizon from a random azimuth, at a random speed to the left or right.

    Args:
        split: ``"train"`` or ``"test"``.
        count: clips, >= 1.
        frames: of a tenth of a second, >= 1.
        voices: in a clip, >= 1.
        radius: metres from the middle to the microphones, which stand on the x and y axes; > 0.
        speed: the largest, degrees a second, >= 0.
        noise: standard deviation of the white noise of each microphone, >= 0.
        generator: of the draws.

    Returns:
        :class:`MovingVoices`.

    Raises:
        TypeError: a count is no integer.
        ValueError: an argument is out of range.
        DataMissingError: the prompts were not fetched.

    Example:
        >>> clips = moving_voices("test", 2, frames=8, generator=torch.Generator().manual_seed(0))
        >>> clips.signals.shape, clips.directions.shape
        (torch.Size([2, 4, 6400]), torch.Size([2, 8, 2, 3]))
    """
    check_choice("split", split, ("train", "test"))
    for name, value in (("count", count), ("frames", frames), ("voices", voices)):
        check_integer(name, value, 1)
    check_positive("radius", radius)
    check_positive("speed", speed, zero=True)
    check_positive("noise", noise, zero=True)
    said, rate = _without_pauses(split)
    samples = round(_FRAME * rate)
    length = frames * samples
    if length > len(said):
        raise ValueError(f"frames must be at most {len(said) // samples}, all that is said, got {frames}")

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    starts = torch.randint(len(said) - length + 1, (count, voices, 1), generator=generator)
    begin, end = (3 / 8 * frames * uniform(2, count, voices, 1)).floor()
    frame = torch.arange(frames)
    active = (frame >= begin) & (frame < frames - end)
    turn = math.radians(speed) * _FRAME * (2 * uniform(count, voices, 1) - 1)
    azimuth = 2 * math.pi * uniform(count, voices, 1) + turn * (frame + 0.5)
    directions = torch.stack([azimuth.cos(), azimuth.sin(), torch.zeros_like(azimuth)], -1)
    positions = radius * torch.tensor([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]])
    heard = torch.empty(count, len(positions), length)
    for clips in torch.arange(count).split(20):  # the spectra of all clips at once would not fit
        speech = said[starts[clips] + torch.arange(length)]
        speech = speech / speech.square().mean(-1, keepdim=True).sqrt()
        speech = speech * active[clips].repeat_interleave(samples, -1)
        heard[clips] = simulate_array(speech, directions[clips], positions, float(rate))
    heard += noise * torch.randn(heard.shape, generator=generator)
    return MovingVoices(heard, directions.transpose(1, 2).contiguous(), active.transpose(1, 2).contiguous(), rate)


def _without_pauses(split: str) -> tuple[Tensor, int]:
    """All prompts of the split in a row, without pieces of a twentieth of a second in which nothing is heard."""
    everything = prompts()
    chosen = everything[::5] if split == "test" else [p for i, p in enumerate(everything) if i % 5]
    said, rate = torch.cat([p.samples for p in chosen]), chosen[0].rate
    piece = rate // 20
    pieces = said[: len(said) // piece * piece].view(-1, piece)
    return pieces[pieces.square().mean(-1).sqrt() > 0.01].flatten(), rate
