"""Adapters in a frozen teacher: identity at first, a teacher that never changes, repair of a shifted input."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pullback.dynamics import Adapter, FrozenBackbone, action_kl, feature_alignment_loss


def teacher() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {
        "first": nn.Sequential(nn.Conv2d(2, 8, 3, stride=2, padding=1), nn.ReLU()),
        "second": nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12).eval(), nn.ReLU()),
        "vector": nn.Sequential(nn.Flatten(), nn.Linear(12 * 16, 6), nn.Tanh()),
    }


def adapters() -> nn.ModuleDict:
    return nn.ModuleDict({"first": Adapter(8, 2), "second": Adapter(12, 2), "vector": Adapter(6, 2, kind="mlp")})


@pytest.fixture(autouse=True)
def _seed() -> object:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_new_adapters_reproduce_the_teacher_exactly() -> None:
    backbone, g = FrozenBackbone(teacher()), torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 16, 16, generator=g)
    plain = nn.Sequential(*teacher().values()).eval()(x)
    side = torch.randn(3, 2, 20, 12, generator=g)
    features = backbone(x, adapters(), side)
    assert torch.equal(features["vector"], plain)
    assert list(features) == ["first", "second", "vector"]
    for name, feature in backbone(x).items():
        assert torch.equal(feature, features[name])


def test_adapters_repair_a_shifted_input_and_leave_the_teacher_bit_for_bit() -> None:
    backbone, parts, g = FrozenBackbone(teacher()).train(), adapters(), torch.Generator().manual_seed(0)
    before = copy.deepcopy(backbone.state_dict())
    optimizer = torch.optim.Adam([*parts.parameters(), *backbone.parameters()], lr=1e-2)
    weights = {"first": 1.0, "second": 1.0, "vector": 1.0}

    def loss(count: int, adapted: bool = True) -> Tensor:
        x = torch.randn(count, 2, 16, 16, generator=g)
        found = backbone(0.5 * x.flip(1) + 0.3, parts if adapted else None, x)
        return feature_alignment_loss(found, backbone(x), weights=weights)

    with torch.no_grad():
        start = loss(64, adapted=False)
    for _ in range(120):
        optimizer.zero_grad()
        loss(16).backward()
        optimizer.step()
    with torch.no_grad():
        assert loss(64) < 0.6 * start
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module.training for module in backbone.stages.modules())


def test_gradients_reach_the_input_through_frozen_stages() -> None:
    backbone = FrozenBackbone(teacher())
    x = torch.randn(1, 2, 16, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    backbone(x)["vector"].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None for p in backbone.parameters())


def test_masked_samples_do_not_count() -> None:
    x = {"a": torch.tensor([[0.5], [7.0]], requires_grad=True)}
    y = {"a": torch.zeros(2, 1)}
    feature_alignment_loss(x, y, weights={"a": 1.0}, mask=torch.tensor([True, False])).backward()
    assert x["a"].grad is not None
    assert x["a"].grad.tolist() == [[0.5], [0.0]]
    none = feature_alignment_loss(x, y, weights={"a": 1.0}, mask=torch.tensor([False, False]))
    assert none.item() == 0


def test_the_divergence_of_actions_is_torchs_and_is_weighed() -> None:
    g = torch.Generator().manual_seed(0)
    a, b, c, d = 0.05 + 20 * torch.rand(4, 30, 2, generator=g, dtype=torch.float64) ** 3
    wanted = torch.distributions.kl_divergence(torch.distributions.Beta(a, b), torch.distributions.Beta(c, d)).mean(-1)
    assert torch.allclose(action_kl(a, b, c, d), wanted, rtol=1e-6, atol=1e-9)
    weight = torch.linspace(0, 4, 30, dtype=torch.float64)
    assert torch.allclose(action_kl(a, b, c, d, weight=weight), weight * wanted, rtol=1e-6, atol=1e-9)
    assert action_kl(a, b, a, b).abs().max() < 1e-10
    large = torch.tensor([1e6]).double()
    assert action_kl(large, large, large, 1.001 * large).item() == pytest.approx(0.25, rel=0.01)


def test_bad_input_is_refused_by_name() -> None:
    stages = teacher()
    stages["second"].train()
    with pytest.raises(ValueError, match="stage second has a batch normalisation in training mode"):
        FrozenBackbone(stages)
    backbone, x = FrozenBackbone(teacher()), torch.zeros(1, 2, 16, 16)
    with pytest.raises(ValueError, match=r"named after stages .* got third"):
        backbone(x, {"third": nn.Identity()}, x)
    with pytest.raises(ValueError, match="side must be given"):
        backbone(x, adapters())

    class Narrow(nn.Module):
        def forward(self, x: Tensor, side: Tensor) -> Tensor:
            return x[..., :1]

    with pytest.raises(ValueError, match=r"adapter of first gave shape \(1, 8, 8, 1\)"):
        backbone(x, {"first": Narrow()}, x)
    with pytest.raises(ValueError, match="kind must be"):
        Adapter(3, 2, kind="rnn")  # type: ignore[arg-type]
    one = {"a": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match="a must have one shape"):
        feature_alignment_loss(one, {"a": torch.zeros(2, 2)}, weights={"a": 1.0})
    with pytest.raises(ValueError, match="must have the layer b"):
        feature_alignment_loss(one, one, weights={"b": 1.0})
    with pytest.raises(ValueError, match="weight of a must be"):
        feature_alignment_loss(one, one, weights={"a": -1.0})
    ones = torch.ones(1)
    with pytest.raises(ValueError, match="beta_q must be"):
        action_kl(ones, ones, ones, 0 * ones)
