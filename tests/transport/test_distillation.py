"""A critic bounds the exact distance from below; plans say which samples go together; a bank keeps last features."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from pullback import transport


@pytest.mark.parametrize(("form", "slope"), [("network", 0.2), ("network", -1.0), ("distance", 0.2)])
def test_a_critic_changes_by_at_most_the_distance_of_its_input(form: str, slope: float) -> None:
    g = torch.Generator().manual_seed(0)
    critic = transport.WassersteinCritic(4, 16, layers=3, form=form, slope=slope, generator=g).double()
    x, y = torch.randn(2, 2000, 8, generator=g, dtype=torch.float64)
    y[1000:] = x[1000:] + 1e-3 * y[1000:]
    with torch.no_grad():
        change = (critic(*x.split(4, -1)) - critic(*y.split(4, -1))).abs()
    ratio = change / (x - y).norm(dim=-1)
    assert 0.05 <= ratio.max() <= 1 + 1e-9


def test_a_critic_may_change_as_much_as_its_input_moves() -> None:
    g = torch.Generator().manual_seed(0)
    line = transport.WassersteinCritic(4, layers=1, generator=g).double()
    weight = line.networks[0].weights[0].detach()
    way = weight / weight.norm()
    assert (line(*way.split(4, -1)) - line(*(0 * way).split(4, -1))).item() == pytest.approx(1)
    apart = transport.WassersteinCritic(1, layers=0, form="distance").double()
    x, y = torch.tensor([[2.0], [3.0]], dtype=torch.float64), torch.tensor([[1.0], [4.0]], dtype=torch.float64)
    change = apart(x[:1], y[:1]) - apart(x[1:] + 1, y[1:] - 4)  # from 1 apart to 4 apart, both move by a root of 8
    assert change.item() == pytest.approx((4 - 1) / 2**0.5)
    place = x[:1].clone().requires_grad_()
    assert torch.autograd.grad(apart(place, x[:1]).sum(), place)[0].item() == 0
    wide = transport.WassersteinCritic(3, 5, layers=1, form="distance", generator=g).double()
    t, s = torch.randn(2, 6, 3, generator=g, dtype=torch.float64)
    torch.testing.assert_close(wide(t, s), -(t - s).norm(dim=-1) / 2**0.5, rtol=1e-5, atol=0)


def test_the_estimate_grows_and_stays_below_the_exact_distance() -> None:
    g = torch.Generator().manual_seed(1)
    t = torch.randn(24, 2, generator=g)
    s = t + 0.1 * torch.randn(24, 2, generator=g)
    best = {}
    for slope in (0.2, -1.0):
        critic = transport.WassersteinCritic(2, 32, slope=slope, generator=g)
        optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
        estimates = []
        for _ in range(150):
            estimate = transport.wasserstein_mutual_information(critic, t, s)
            optimizer.zero_grad()
            (-estimate).backward()
            optimizer.step()
            estimates.append(estimate.item())
        best[slope] = max(estimates)
        assert estimates[0] <= 0.6 * best[slope]
    i, j = (~torch.eye(24, dtype=torch.bool)).nonzero().mT
    cost = transport.pairwise_cost(torch.cat([t[i], s[i]], 1), torch.cat([t[i], s[j]], 1), "euclidean").numpy()
    exact = cost[linear_sum_assignment(cost)].mean()
    assert 0.3 * exact <= best[0.2] <= best[-1.0] / 1.5 <= exact / 1.5


@pytest.mark.parametrize("method", ["ipot", "sinkhorn"])
def test_a_plan_finds_which_samples_belong_together(method: str) -> None:
    g = torch.Generator().manual_seed(0)
    t = torch.randn(6, 8, generator=g)
    order = torch.randperm(6, generator=g)
    s = (t + 0.1 * torch.randn(6, 8, generator=g))[order].requires_grad_()
    found = transport.local_transport_loss(t, s, method=method, epsilon=0.05)
    assert torch.equal(found.plan.argmax(0), order)
    assert found.plan.sum().item() == pytest.approx(1, rel=1e-5)
    assert not found.plan.requires_grad
    (slope,) = torch.autograd.grad(found.value, s)
    closer = transport.local_transport_loss(t, (s - slope).detach(), method=method, epsilon=0.05)
    assert closer.value < found.value


def test_proximal_steps_are_sharper_than_one_entropic_problem() -> None:
    t, s = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(2))
    proximal, entropic = (transport.local_transport_loss(t, s, method=m, epsilon=0.2) for m in ("ipot", "sinkhorn"))
    assert proximal.value < entropic.value
    assert (proximal.plan.max(1).values > entropic.plan.max(1).values).all()


def test_a_bank_holds_averages_of_unit_length_and_never_draws_the_sample_itself() -> None:
    g = torch.Generator().manual_seed(0)
    bank = transport.FeatureBank(5, 3, momentum=0.25, generator=g)
    before = bank.features.clone()
    x = torch.randn(2, 3, generator=g)
    bank.update(torch.tensor([4, 0]), x)
    mixed = 0.25 * before[[4, 0]] + 0.75 * x / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(bank.features[[4, 0]], mixed / mixed.norm(dim=1, keepdim=True))
    assert torch.equal(bank.features[1:4], before[1:4])
    index = torch.tensor([2, 0])
    drawn = bank.draw(index, 400, generator=g)
    which = (drawn.unsqueeze(-2) == bank.features).all(-1).float().mean(1)  # [n, size]: the share of each sample
    assert which[0, 2] == 0
    assert which[1, 0] == 0
    others = torch.ones(2, 5).scatter(1, index[:, None], 0)
    assert (which[others.bool()] > 0.15).all()


def test_a_bank_refuses_what_it_has_no_place_for() -> None:
    bank = transport.FeatureBank(3, 2)
    with pytest.raises(ValueError, match=r"index must be in 0\.\.2, got 1\.\.3"):
        bank.update(torch.tensor([1, 3]), torch.zeros(2, 2))
    with pytest.raises(ValueError, match="x must have shape"):
        bank.update(torch.tensor([1]), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="count must be an integer >= 1"):
        bank.draw(torch.tensor([1]), 0)
    with pytest.raises(ValueError, match="size must be an integer >= 2"):
        transport.FeatureBank(1, 2)
    with pytest.raises(ValueError, match="momentum must be in"):
        transport.FeatureBank(3, 2, momentum=1.5)


def test_features_of_named_layers_carry_the_gradients_of_the_network() -> None:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 6), nn.Tanh())
    network = nn.Sequential(OrderedDict(body=body, head=nn.Linear(6, 3)))
    x = torch.randn(5, 4, requires_grad=True)
    found = transport.LayerFeatures(network, ["body.1", "head"])(x)
    assert list(found.features) == ["body.1", "head"]
    assert torch.equal(found.output, network(x))
    assert torch.equal(found.features["head"], found.output)
    assert torch.equal(found.features["body.1"], body(x))
    slopes = [torch.autograd.grad(t.square().sum(), x)[0] for t in (found.features["body.1"], body(x))]
    assert torch.equal(*slopes)
    assert not any(layer._forward_hooks for layer in network.modules())


def test_a_layer_that_is_not_there_is_told_from_those_that_are() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.LSTM(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)[0]

    network, x = Odd(), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="layers must be of 'used', 'idle', got 'ide'"):
        transport.LayerFeatures(network, ["ide"])
    with pytest.raises(ValueError, match="layers must be called by the network, but 'idle' was not"):
        transport.LayerFeatures(network, ["idle"])(x)
    with pytest.raises(TypeError, match="layers must return a tensor, but 'used' returned tuple"):
        transport.LayerFeatures(network, ["used"])(x)
    with pytest.raises(ValueError, match="at least one name, and each once"):
        transport.LayerFeatures(network, ["used", "used"])
    with pytest.raises(TypeError, match="layers must be a sequence of names"):
        transport.LayerFeatures(network, "used")
    with pytest.raises(TypeError, match="module must be a module of torch, got function"):
        transport.LayerFeatures(lambda x: x, ["used"])
