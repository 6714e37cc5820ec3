"""Maps between clouds: training step by step, its state, and what the gap does to a map that fits without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pullback import transport


def _clouds() -> tuple[Tensor, Tensor]:
    x = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
    return x, x @ torch.tensor([[2.0, 0.5], [0.5, 1.0]]) + 1


def _turned(angle: float) -> nn.Linear:
    """A map that begins as a rotation: it can fit by turning on, or by the symmetric way."""
    turn = torch.tensor(angle)
    line = nn.Linear(2, 2)
    with torch.no_grad():
        line.weight.copy_(torch.stack([torch.stack([turn.cos(), -turn.sin()]), torch.stack([turn.sin(), turn.cos()])]))
        line.bias.zero_()
    return line


@pytest.mark.parametrize("batch", [None, 8])
def test_a_training_goes_on_from_its_state_to_the_same_numbers(batch: int | None) -> None:
    x, y = _clouds()
    fits = [
        transport.TransportMapFit(_turned(0.3), x, y, steps=6, batch=batch, generator=torch.Generator().manual_seed(s))
        for s in (1, 2)
    ]
    for _ in range(3):
        fits[0].step()
    fits[1].load_state_dict(fits[0].state_dict())
    for fit in fits:
        while not fit.finished:
            fit.step()
    assert torch.equal(fits[0].result().fitting, fits[1].result().fitting)
    assert torch.equal(fits[0].map.weight, fits[1].map.weight)
    assert len(fits[0].result().gap) == 6


def test_the_gap_makes_a_map_that_fits_an_optimal_one() -> None:
    x, y = _clouds()
    gaps = []
    for weight in (0.0, 1.0):
        found = transport.fit_transport_map(_turned(1.2), x, y, regularization=weight, steps=100, lr=0.1)
        assert found.fitting[-1] < 0.1 * found.fitting[0]
        with torch.no_grad():
            gaps.append(float(transport.monge_gap(x, found.map(x), epsilon=0).value))
    assert gaps[1] < 0.1 * gaps[0]


def test_bad_options_are_refused_by_name() -> None:
    x, y = _clouds()
    with pytest.raises(ValueError, match=r"map must return the shape of the reference, \(24, 2\), got \(1, 2\)"):
        transport.unexplained_variance(lambda x: x[:1], lambda x: x, x)
    with pytest.raises(ValueError, match=r"batch must be in 1..24, got 25"):
        transport.TransportMapFit(_turned(0.0), x, y, batch=25)
    with pytest.raises(ValueError, match="regularization must be"):
        transport.TransportMapFit(_turned(0.0), x, y, regularization=-1.0)
