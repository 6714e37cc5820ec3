"""Filters that learn while they run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from pullback.uncertainty import OnlineFilter, ParticleFiltered, online_adapt, particle_filter


class _Walk(nn.Module):
    """A line along which a state keeps the part ``a`` of itself."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a))

    def initial(self) -> Independent:
        return Independent(Normal(torch.zeros(1), 1.0), 1)

    def transition(self, x: Tensor) -> Independent:
        return Independent(Normal(self.a * x, 0.5), 1)

    def observation(self, x: Tensor) -> Independent:
        return Independent(Normal(x, 0.3), 1)


def _stream(a: float, count: int) -> Tensor:
    g, x, seen = torch.Generator().manual_seed(0), torch.zeros(1), []
    for _ in range(count):
        x = a * x + 0.5 * torch.randn(1, generator=g)
        seen.append(x + 0.3 * torch.randn(1, generator=g))
    return torch.stack(seen)


def _online(walk: _Walk, lr: float = 0.03, **options: object) -> OnlineFilter:
    optimizer = torch.optim.Adam(walk.parameters(), lr=lr)
    return OnlineFilter(walk, optimizer, generator=torch.Generator().manual_seed(0), **options)


def test_a_parameter_is_found_without_any_state() -> None:
    walk, stream = _Walk(0.2), _stream(0.9, 500)
    optimizer = torch.optim.Adam(walk.parameters(), lr=0.03)
    steps = list(online_adapt(walk, stream, optimizer, block=10, generator=torch.Generator().manual_seed(0)))
    assert abs(float(walk.a.detach()) - 0.9) < 0.08
    frozen = list(online_adapt(_Walk(0.2), stream, None, block=10, generator=torch.Generator().manual_seed(0)))
    gain = torch.cat([s.increments for s in steps[20:]]).mean() - torch.cat([s.increments for s in frozen[20:]]).mean()
    assert gain > 0.05
    assert all(step.loss != step.loss for step in frozen)


def test_what_is_said_of_a_block_was_known_before_its_step() -> None:
    walk, stream = _Walk(0.2), _stream(0.9, 10)
    told = _online(walk, lr=0.5, steps=3).update(stream)
    before = particle_filter(_Walk(0.2), stream, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(told.means, before.means.detach())
    assert float(walk.a.detach()) != pytest.approx(0.2)


def test_a_loss_of_states_and_a_stream_that_is_an_iterator() -> None:
    def loss(found: ParticleFiltered, y: Tensor) -> Tensor:
        return (found.means - y).square().sum()

    walk = _Walk(0.2)
    optimizer = torch.optim.SGD(walk.parameters(), lr=1e-9)
    sizes = [len(step.means) for step in online_adapt(walk, iter(_stream(0.9, 7)), optimizer, block=3, loss=loss)]
    assert sizes == [3, 3, 1]
    assert walk.a.grad is not None


def test_a_state_goes_on_to_the_bit() -> None:
    stream, walk = _stream(0.9, 40), _Walk(0.2)
    online = _online(walk)
    online.update(stream[:20])
    kept = {k: v.clone() for k, v in online.state_dict().items()}
    weights, generator = float(walk.a.detach()), online._options["generator"].get_state()
    told = online.update(stream[20:])
    again = _Walk(weights)
    other = OnlineFilter(again, None, generator=torch.Generator().manual_seed(0))
    other.load_state_dict(kept)
    other._options["generator"].set_state(generator)
    assert torch.equal(other.update(stream[20:]).means, told.means)


def test_a_stream_keeps_its_shape() -> None:
    online = _online(_Walk(0.2))
    online.update(torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"must keep their shape \(1,\), got \(3,\)"):
        online.update(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"must keep their shape \(1,\), got \(2,\)"):
        list(online_adapt(_Walk(0.2), [torch.zeros(1), torch.zeros(2)], None))
    with pytest.raises(ValueError, match="loss must be 'evidence' or a function, got 'elbo'"):
        _online(_Walk(0.2), loss="elbo")
