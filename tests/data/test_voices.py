"""Moving voices: silence where nobody speaks, delays of the array's size, two splits that share nothing."""

from __future__ import annotations

import pytest
import torch

from pullback import audio, data


def _clips(split: str = "test", **words: object) -> data.MovingVoices:
    return data.moving_voices(split, 6, frames=16, generator=torch.Generator().manual_seed(0), **words)


def test_a_clip_is_silent_before_its_voices_begin_and_loud_between() -> None:
    clips = _clips(noise=0.0)
    loud = clips.signals.unflatten(-1, (16, -1)).square().mean((1, 3)).sqrt()
    anybody = clips.active.any(-1)
    apart = torch.nn.functional.max_pool1d(anybody[:, None].float(), 3, 1, 1)[:, 0] == 0  # not beside a voice either
    assert apart.any()
    assert loud[apart].max() < 1e-3
    assert loud[anybody].median() > 0.3
    torch.testing.assert_close(clips.directions.square().sum(-1), torch.ones(6, 16, 2))


def test_one_voice_alone_is_where_it_is_said_to_be() -> None:
    clips = _clips(voices=1, speed=0.0, noise=0.0, radius=0.3)
    found = audio.gcc_phat(clips.signals, frame=800, lags=16)[:, :, 1].argmax(-1) - 16  # microphones at +x and -x
    expected = -2 * 0.3 * clips.directions[..., 0, 0] / 343 * clips.rate
    speaks = clips.active[..., 0]
    assert ((found - expected).abs()[speaks] < 1).float().mean() > 0.8


def test_splits_differ_and_arguments_are_refused() -> None:
    assert not torch.equal(_clips("train").signals, _clips("test").signals)
    with pytest.raises(ValueError, match="split must be one of 'train', 'test'"):
        _clips("all")
    with pytest.raises(ValueError, match="frames must be at most"):
        data.moving_voices("test", 1, frames=10**6, generator=torch.Generator())
