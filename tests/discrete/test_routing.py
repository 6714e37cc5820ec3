"""Routing: what is chosen, who is run, what it costs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pullback.discrete import Router, Trellis, dispatch, expected_macs, information_gain


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("k", [1, 2])
def test_weights_of_information_gain_are_even_and_have_no_gradient(k: int) -> None:
    routing = Router(2, 3, k=k, generator=_seeded())(torch.randn(5, 2, generator=_seeded(1)))
    assert routing.weights.tolist() == [[1 / k] * k] * 5
    assert not routing.weights.requires_grad
    assert routing.index.equal(routing.probabilities.argsort(-1, descending=True)[:, :k])


def test_the_subjective_choice_is_the_smallest_loss_and_never_nan() -> None:
    losses = torch.tensor([[0.3, math.nan, 0.1], [math.inf, 2.0, 3.0]], requires_grad=True)
    router = Router(None, 3, method="subjective")
    routing = router(losses)
    assert routing.index.tolist() == [[2], [1]]
    assert routing.probabilities.tolist() == [[0, 0, 1], [0, 1, 0]]
    assert not routing.weights.requires_grad
    soft = router(losses, temperature=0.5)
    expected = torch.softmax(torch.tensor([[-0.6, -math.inf, -0.2], [-math.inf, -4.0, -6.0]]), -1)
    torch.testing.assert_close(soft.probabilities, expected)


@pytest.mark.parametrize("method", ["gumbel", "reinmax"])
def test_samples_follow_the_softmax_in_training_and_the_mode_otherwise(method: str) -> None:
    router = Router(1, 3, method=method, generator=_seeded(3))
    x = torch.ones(20_000, 1)
    routing = router(x, generator=_seeded())
    counts = routing.index.flatten().bincount(minlength=3)
    expected = 20_000 * routing.probabilities[0].detach()
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # p = .001 of two degrees of freedom
    router.eval()
    assert (router(x[:5]).index == routing.probabilities[0].argmax()).all()


@pytest.mark.parametrize("method", ["gumbel", "reinmax", "softmax"])
def test_scores_learn_from_the_task_through_the_chosen_expert(method: str) -> None:
    """Of two experts that return constants the better one is chosen in the end."""
    router = Router(1, 2, method=method, generator=_seeded(1))
    optimizer = torch.optim.SGD(router.parameters(), lr=0.3)
    generator, x = _seeded(), torch.ones(64, 1)
    values = torch.tensor([1.0, -1.0])
    for _ in range(100):
        routing = router(x, generator=generator)
        loss = (routing.weights * values[routing.index]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert router(x).probabilities[0, 1] > (0.6 if method == "gumbel" else 0.9)


def test_a_random_share_goes_anywhere_that_is_allowed() -> None:
    router = Router(1, 4, generator=_seeded())
    x, allowed = torch.ones(40_000, 1), torch.tensor([True, True, False, True])
    scores = router.score(x[0]).masked_fill(~allowed, -math.inf)
    routing = router(x, random=0.3, allowed=allowed, generator=_seeded())
    share = routing.index.flatten().bincount(minlength=4) / 40_000
    expected = torch.full((4,), 0.1) * allowed
    expected[scores.argmax()] += 0.7
    assert (share - expected).abs().max() < 0.01
    assert routing.probabilities[:, 2].abs().max() == 0


def test_router_refuses_by_name() -> None:
    with pytest.raises(ValueError, match="inputs must be None"):
        Router(2, 3, method="subjective")
    with pytest.raises(ValueError, match="inputs must be None"):
        Router(None, 3)
    with pytest.raises(ValueError, match='k must be 1 for "reinmax"'):
        Router(2, 3, k=2, method="reinmax")
    with pytest.raises(ValueError, match="method must be one of"):
        Router(2, 3, method="hash")
    with pytest.warns(UserWarning, match="nothing to route"):
        Router(2, 1)
    with pytest.raises(ValueError, match=r"features\(x\) must have shape \(\.\.\., 2\)"):
        Router(2, 3, features=nn.Linear(2, 5))(torch.ones(1, 2))


def test_an_expert_sees_its_own_samples_in_order_and_an_idle_one_is_not_called() -> None:
    seen: dict[int, list[float]] = {}

    def expert(number: int) -> object:
        def call(x: Tensor) -> Tensor:
            seen[number] = x.flatten().tolist()
            return x * (number + 1)

        return call

    x = torch.arange(5.0).unsqueeze(-1)
    result = dispatch(x, torch.tensor([2, 0, 2, 2, 0]), [expert(n) for n in range(3)])
    assert seen == {0: [1, 4], 2: [0, 2, 3]}
    assert result.flatten().tolist() == [0, 1, 6, 9, 4]


def test_dispatch_without_weights_keeps_the_outputs_apart_and_refuses_unlike_experts() -> None:
    x, index = torch.ones(2, 3), torch.tensor([[0, 1], [1, 0]])
    apart = dispatch(x, index, [lambda t: t[:, :2], lambda t: -t[:, :2]])
    assert apart[:, :, 0].tolist() == [[1, -1], [-1, 1]]
    assert apart.shape == (2, 2, 2)
    with pytest.raises(ValueError, match=r"experts must return one shape, got \(3,\) and \(2,\)"):
        dispatch(x, index, [lambda t: t, lambda t: t[:, :2]])
    with pytest.raises(ValueError, match="experts must be at least one"):
        dispatch(x, index, [])


def test_what_is_no_expert_and_no_features_is_refused_by_name(without_shape_checks: None) -> None:
    with pytest.raises(TypeError, match=r"experts\[1\] must be callable, got int"):
        dispatch(torch.ones(1, 2), torch.tensor([0]), [torch.sin, 3])
    with pytest.raises(TypeError, match=r"features must be an nn\.Module"):
        Router(2, 3, features=torch.tanh)
    with pytest.raises(TypeError, match=r"routers\[0\] must be a Router, got Linear"):
        Trellis(nn.Identity(), [[nn.Identity()]], [nn.Linear(2, 2)], nn.Identity())


def test_macs_are_those_of_the_executed_path() -> None:
    levels = [[nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 50), nn.Linear(50, 2))]]
    trellis = Trellis(nn.Identity(), levels, [Router(2, 2)], nn.Linear(2, 3))
    with torch.no_grad():
        trellis.routers[0].score.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        trellis.routers[0].score.bias.zero_()
    cheap, dear = 4 + 4 + 6, 4 + 200 + 6
    macs = expected_macs(trellis, torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [-1.0, 0.0]]))
    assert macs == ((3 * cheap + dear) / 4, dear)
    assert trellis.training
    with pytest.raises(ValueError, match="x must have at least one sample"):
        expected_macs(trellis, torch.zeros(0, 2))


def test_a_tree_is_a_trellis_with_links(without_shape_checks: None) -> None:
    links = [torch.ones(1, 2).bool(), torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]).bool()]
    levels = [[nn.Linear(2, 2) for _ in range(count)] for count in (2, 4)]
    tree = Trellis(nn.Identity(), levels, [Router(2, 2), Router(2, 4)], nn.Identity(), links=links)
    first, second = tree(torch.randn(200, 2, generator=_seeded()), random=0.5, generator=_seeded()).routings
    assert (second.index // 2).equal(first.index)
    with pytest.raises(ValueError, match=r"links\[1\] must have shape \(2, 4\)"):
        Trellis(nn.Identity(), levels, [Router(2, 2), Router(2, 4)], nn.Identity(), links=links[:1] * 2)
    with pytest.raises(ValueError, match="levels, routers and links must be as many"):
        Trellis(nn.Identity(), levels, [Router(2, 2)], nn.Identity())
    with pytest.raises(ValueError, match=r"routers\[0\] must have 2 experts, got 3"):
        Trellis(nn.Identity(), levels[:1], [Router(2, 3)], nn.Identity())


def test_an_unsure_sample_follows_two_experts_and_its_logits_are_averaged() -> None:
    """One level: at threshold 0 every sample follows both, at log 2 none does."""
    experts = [nn.Linear(2, 3), nn.Linear(2, 3)]
    trellis = Trellis(nn.Identity(), [experts], [Router(2, 2)], nn.Identity())
    x = torch.randn(6, 2, generator=_seeded())
    both = trellis(x, threshold=0.0).logits
    torch.testing.assert_close(both, (experts[0](x) + experts[1](x)) / 2)
    assert trellis(x, threshold=math.log(2)).logits.equal(trellis(x).logits)


def test_the_gain_prefers_what_tells_classes_apart_and_balance_prefers_even_use() -> None:
    labels = torch.arange(6) % 3
    telling, blind = torch.eye(3)[labels], torch.eye(3)[torch.tensor([0, 0, 0, 1, 1, 1])]
    assert information_gain(telling, labels, 3).item() == pytest.approx(math.log(3))
    assert information_gain(blind, labels, 3).item() == pytest.approx(0, abs=1e-6)
    scores = torch.zeros(6, 3, requires_grad=True)
    start = scores.detach() + torch.randn(6, 3, generator=_seeded()) * 0.01
    scores.data.copy_(start)
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(200):
        loss = -information_gain(torch.softmax(scores, -1), labels, 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert -loss.item() > 0.95 * math.log(3)
    even, uneven = torch.full((6, 2), 0.5), torch.tensor([[0.9, 0.1]] * 6)
    gains = [information_gain(p, labels, 3, balance=2.0).item() for p in (even, uneven)]
    assert gains[0] == pytest.approx(math.log(2), abs=1e-6)
    assert gains[0] > gains[1] + 0.3
