"""Control of a frozen network: what it begins with, what is run, who learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pullback import discrete


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.seen = nn.Conv2d(4, 4, 3, padding=1), 0

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        self.seen += len(h)
        return h + torch.tanh(self.mix(h)) * time[:, :1, None, None]


class _Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)
        self.blocks = nn.ModuleList([_Block() for _ in range(3)])

    def embed(self, time: Tensor) -> Tensor:
        return torch.stack([1 + time, time.cos()], 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h, self.embed(time))
        result: Tensor = self.head(h)
        return result


def _controlled(**options: Any) -> tuple[Any, Tensor, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = discrete.ControlledNet(_Base(), nn.Conv2d(1, 4, 3, padding=1), 4, 2, **options)
        return net, torch.randn(8, 1, 5, 5), torch.randn(8, 1, 5, 5), torch.rand(8)


def test_control_begins_as_the_frozen_network_and_everybody_but_the_copies_learns() -> None:
    net, x, condition, time = _controlled()
    found = net(x, condition, time, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.output, net.base(x, time))
    (found.output.square().mean() + found.gates.mean()).backward()
    assert all(p.grad is None for p in net.base.parameters())
    for control in net.controls:
        assert control.zero.weight.grad.abs().sum() > 0
        assert control.router.logit.weight.grad.abs().sum() > 0


def test_in_evaluation_a_copy_is_run_for_the_samples_whose_logit_is_positive() -> None:
    net, x, condition, time = _controlled()
    for number, control in enumerate(net.controls):
        control.zero.weight.data.copy_(torch.randn(4, 4, generator=torch.Generator().manual_seed(number)))
        control.router.logit.bias.data.fill_((0.0, 5.0, -5.0)[number])
        control.copy.seen = 0
    middle = net(x, condition, time).logits[:, 0].detach().sort().values[3:5].mean()
    net.controls[0].router.logit.bias.data.sub_(middle)
    net.eval()
    net.controls[0].copy.seen = net.controls[1].copy.seen = net.controls[2].copy.seen = 0
    found = net(x, condition, time)
    assert torch.equal(found.gates, (found.logits > 0).float())
    assert [control.copy.seen for control in net.controls] == found.gates.sum(0).tolist()
    assert found.gates.sum(0).tolist() == [4.0, 8.0, 0.0]
    same = net(x, condition, time, gates=found.gates)
    torch.testing.assert_close(same.output, found.output)
    assert same.logits is None
    alone = [net(x[n : n + 1], condition[n : n + 1], time[n : n + 1]).output for n in range(8)]
    torch.testing.assert_close(torch.cat(alone), found.output)


def test_what_a_copy_costs_and_what_is_refused() -> None:
    net, x, condition, time = _controlled(routed=False)
    assert net.costs(x[:1], time[:1]).tolist() == [4 * 4 * 9 * 25.0] * 3
    with pytest.raises(ValueError, match="gates must be given"):
        net(x, condition, time)
    with pytest.raises(ValueError, match=r"gates must have shape \(8, 3\), got \(8, 2\)"):
        net(x, condition, time, gates=torch.ones(8, 2))
    with pytest.raises(ValueError, match="condition must have the size of the image"):
        net(x, condition[..., 1:], time, gates=torch.ones(8, 3))
    with pytest.raises(TypeError, match="base must have stem, embed, blocks and head, Linear lacks stem"):
        discrete.ControlledNet(nn.Linear(1, 1), nn.Identity(), 1, 1)


def test_rates_of_opening_are_means_by_span_of_time() -> None:
    generator = torch.Generator().manual_seed(0)
    gates, times = torch.randint(2, (50, 3), generator=generator).double(), torch.rand(50, generator=generator)
    rates = discrete.opening_rates(gates, times, 4, largest=2.0)
    for span in range(4):
        inside = (times >= span / 2) & (times < (span + 1) / 2)
        torch.testing.assert_close(rates[span], gates[inside].mean(0), equal_nan=True)
    assert rates[2:].isnan().all()
    with pytest.raises(ValueError, match=r"times must be in \[0, 0.1\]"):
        discrete.opening_rates(gates, times, largest=0.1)
    with pytest.raises(ValueError, match="gates must be in"):
        discrete.opening_rates(gates - 2, times)
    with pytest.raises(ValueError, match="times must have shape"):
        discrete.opening_rates(gates, times[1:])
