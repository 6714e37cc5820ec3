r"""Arrays of microphones in a free field: what they hear of distant sources, and the delays between them."""

from __future__ import annotations

import torch

from pullback.core.checks import (
    check_broadcast,
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_shape,
)
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["gcc_phat", "simulate_array"]


def simulate_array(
    signals: Float[Tensor, "*#batch sources t"],
    directions: Float[Tensor, "*#batch sources frames 3"],
    positions: Float[Tensor, "mics 3"],
    rate: float,
    *,
    speed: float = 343.0,
    block: int = 512,
) -> Float[Tensor, "*batch mics t"]:
    r"""Return what microphones hear of distant sources: :math:`y_m(t) = \sum_s x_s(t + p_m \cdot u_s(t) / c)`.

    The wave front of a source in direction u reaches a microphone at p earlier than the origin by p . u / c. Delays are
    fractions of a sample: overlapping Hann windows of the signal are delayed by their phases, each with the direction
    at its middle. For a direction that does not change that is the band-limited delay of the whole signal; for one that
    does, the windows cross-fade. Differentiable in signals, directions, positions.

    Args:
        signals: ``[*batch, sources, t]``, as the origin hears them.
        directions: ``[*batch, sources, frames, 3]`` towards the sources, not 0 (normalised here). Frames divide the
            signal evenly; between their middles directions are interpolated. One frame: they do not move.
        positions: ``[mics, 3]`` of the microphones, metres, at most ``block / 4`` samples of travel from the origin.
        rate: samples a second, > 0.
        speed: of sound, metres a second, > 0.
        block: samples of a window, even, >= 8.

    Returns:
        ``[*batch, mics, t]``.

    Raises:
        TypeError: an argument is no floating tensor, or dtypes differ.
        ValueError: shapes do not fit, a number is not finite or out of range, a direction is 0, a position too far.

    Example:
        >>> x = torch.sin(torch.arange(64) / 4.0).unsqueeze(0)
        >>> towards = torch.tensor([[[1.0, 0.0, 0.0]]])
        >>> positions = torch.tensor([[0.0, 0.0, 0.0], [343 / 8000, 0.0, 0.0]])  # one sample of travel
        >>> heard = simulate_array(x, towards, positions, 8000.0)
        >>> torch.allclose(heard[0], x[0], atol=1e-5), torch.allclose(heard[1, 8:56], x[0, 9:57], atol=0.02)
        (True, True)

    References:
        Allen, Berkley (1979), Image method for efficiently simulating small-room acoustics (its direct path). Adavanne,
        Politis, Virtanen (2021), Differentiable tracking-based training of deep learning sound source localizers.
    """
    _check_scene(signals, directions, positions)
    check_positive("rate", rate)
    check_positive("speed", speed)
    if check_integer("block", block, 8) % 2:
        raise ValueError(f"block must be even, got {block}")
    hop, margin = block // 2, block // 4
    x, u, p = (v.to(torch.promote_types(v.dtype, torch.float32)) for v in (signals, directions, positions))
    if can_look(p) and bool((p.square().sum(-1).sqrt() * rate / speed > margin).any()):
        raise ValueError(f"positions must be at most block / 4 = {margin} samples of travel from the origin")
    length = x.shape[-1]
    count = -(-length // hop) + 1  # windows: every sample is in two
    x = torch.nn.functional.pad(x, (hop, (count + 1) * hop - hop - length))
    windows = x.unfold(-1, block, hop) * torch.hann_window(block, dtype=x.dtype, device=x.device)
    spectra = torch.fft.rfft(torch.nn.functional.pad(windows, (margin, margin)))  # [*, sources, count, bins]
    u = u / u.abs().amax(-1, keepdim=True)
    u = _at_windows(u / torch.linalg.vector_norm(u, dim=-1, keepdim=True), count, hop, length)
    early = u @ p.mT * (rate / speed)  # [*, sources, count, mics], in samples
    size = block + 2 * margin
    turn = torch.arange(spectra.shape[-1], dtype=x.dtype, device=x.device) * (2 * torch.pi / size)
    phase = early.unsqueeze(-1) * turn
    heard = (spectra.unsqueeze(-2) * torch.complex(phase.cos(), phase.sin())).sum(-4)  # [*, count, mics, bins]
    parts = torch.fft.irfft(heard, size).movedim(-3, -1)  # [*, mics, size, count]
    flat = parts.reshape(-1, size, count)
    total = (count - 1) * hop + size
    added = torch.nn.functional.fold(flat, (1, total), (1, size), stride=(1, hop)).reshape(*parts.shape[:-2], total)
    return added[..., margin + hop : margin + hop + length].to(signals.dtype)


def _check_scene(signals: Tensor, directions: Tensor, positions: Tensor) -> None:
    for name, value, least in (("signals", signals, 2), ("directions", directions, 3), ("positions", positions, 2)):
        if check_floating(name, value).ndim < least:
            raise ValueError(f"{name} must have at least {least} dimensions, got shape {tuple(value.shape)}")
    check_same_dtype(signals=signals, directions=directions, positions=positions)
    check_shape("directions", directions, (signals.shape[-2], None, 3))
    check_broadcast(signals=tuple(signals.shape[:-2]), directions=tuple(directions.shape[:-3]))
    if positions.ndim != 2 or positions.shape[-1] != 3:
        raise ValueError(f"positions must have shape (mics, 3), got {tuple(positions.shape)}")
    if not signals.shape[-1] or not directions.shape[-2]:
        raise ValueError("signals and directions must have at least one sample and one frame")
    for name, value in (("signals", signals), ("directions", directions), ("positions", positions)):
        if can_look(value):
            check_finite(name, value)
    if can_look(directions) and bool((directions == 0).all(-1).any()):
        raise ValueError("directions must not be of length 0")


def _at_windows(u: Tensor, count: int, hop: int, length: int) -> Tensor:
    """Directions at the middles of the windows, interpolated between the middles of the frames."""
    frames = u.shape[-2]
    middle = torch.arange(count, dtype=u.dtype, device=u.device) * hop
    place = (middle * (frames / length) - 0.5).clamp(0, frames - 1)
    before = place.floor().long().clamp(max=max(frames - 2, 0))
    after = (before + 1).clamp(max=frames - 1)
    share = (place - before).unsqueeze(-1)
    return torch.lerp(u.index_select(-2, before), u.index_select(-2, after), share)


def gcc_phat(
    signals: Float[Tensor, "*batch mics t"], *, frame: int, lags: int, hop: int | None = None
) -> Float[Tensor, "*batch frames pairs delays"]:
    r"""Return the correlations of all pairs of microphones, every frequency of equal weight (phase transform).

    .. math:: g_{ij}(\ell) = \frac{1}{F} \sum_f \mathrm{Re}\Bigl(
        \frac{X_i(f) \overline{X_j(f)}}{|X_i(f) X_j(f)|} e^{2\pi i f \ell / F}\Bigr)

    Its peak says how many samples later a sound reaches microphone i than j.

    Args:
        signals: ``[*batch, mics, t]``, mics >= 2, t >= ``frame``.
        frame: samples of a frame, >= 2, which a Hann window weighs.
        lags: the largest delay, >= 0 and < ``frame``.
        hop: from one frame to the next, >= 1; the frames touch by default.

    Returns:
        ``[*batch, frames, pairs, 2 lags + 1]`` in [-1, 1]: pairs (0, 1), (0, 2), .., (1, 2), ..; delays -lags .. lags.
        A frequency at which a microphone hears nothing has no part.

    Raises:
        TypeError: ``signals`` is no floating tensor, or a count no integer.
        ValueError: a count is out of range, there are fewer than two microphones or no whole frame.

    Example:
        >>> x = torch.randn(200, generator=torch.Generator().manual_seed(0))
        >>> pair = torch.stack([x[:128], x[3:131]])  # the first is 3 samples late
        >>> int(gcc_phat(pair, frame=128, lags=5)[0, 0].argmax()) - 5
        3

    References:
        Knapp, Carter (1976), The generalized correlation method for estimation of time delay.
    """
    if check_floating("signals", signals).ndim < 2 or signals.shape[-2] < 2:
        raise ValueError(f"signals must have shape (..., mics, t) with mics >= 2, got {tuple(signals.shape)}")
    check_integer("frame", frame, 2)
    check_integer("lags", lags, 0, frame - 1)
    hop = frame if hop is None else check_integer("hop", hop, 1)
    if signals.shape[-1] < frame:
        raise ValueError(f"signals must have at least one frame of {frame} samples, got {signals.shape[-1]}")
    x = signals.to(torch.promote_types(signals.dtype, torch.float32))
    if not x.numel():
        count = (x.shape[-1] - frame) // hop + 1
        pairs = x.shape[-2] * (x.shape[-2] - 1) // 2
        return signals.new_zeros((*x.shape[:-2], count, pairs, 2 * lags + 1))
    x = x.unfold(-1, frame, hop) * torch.hann_window(frame, dtype=x.dtype, device=x.device)
    size = 2 * frame  # no delay wraps around
    spectra = torch.fft.rfft(x, size).movedim(-3, -2)  # [*batch, frames, mics, bins]
    spectra = spectra / torch.where(spectra == 0, 1, spectra).abs()
    first, second = torch.triu_indices(x.shape[-3], x.shape[-3], 1, device=x.device)
    cross = spectra.index_select(-2, first) * spectra.index_select(-2, second).conj()
    bins = torch.arange(frame + 1, dtype=x.dtype, device=x.device)
    delays = torch.arange(-lags, lags + 1, dtype=x.dtype, device=x.device)
    angle = bins.unsqueeze(-1) * delays * (2 * torch.pi / size)
    weight = torch.where((bins == 0) | (bins == frame), 1, 2).to(x).unsqueeze(-1) / size
    correlation = cross.real @ (weight * angle.cos()) - cross.imag @ (weight * angle.sin())
    return correlation.to(signals.dtype)
