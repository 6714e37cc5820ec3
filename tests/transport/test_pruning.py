"""Proximal steps reach the exact plan; masks keep their budget, get hard by themselves and can be cut out."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from pullback import discrete, transport


def test_proximal_steps_reach_the_exact_plan_at_a_large_epsilon() -> None:
    cost = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = None
    for _ in range(600):
        state = transport.proximal_sinkhorn(cost, state, epsilon=1.0)
    assert state is not None
    rows, columns = linear_sum_assignment(cost.numpy())
    exact = torch.zeros_like(cost)
    exact[rows, columns] = 1 / 6
    torch.testing.assert_close(state.log_plan.exp(), exact, atol=1e-3, rtol=0)


def test_steps_with_one_cost_are_one_entropic_problem_at_a_smaller_epsilon() -> None:
    g = torch.Generator().manual_seed(1)
    cost = torch.rand(3, 4, generator=g, dtype=torch.float64)
    state = None
    for _ in range(5):
        state = transport.proximal_sinkhorn(cost, state, epsilon=1.0, sweeps=200)
    assert state is not None
    torch.testing.assert_close(state.log_plan.exp(), transport.sinkhorn(cost, epsilon=0.2, tolerance=1e-12).plan)


def _run(scores: Tensor, keep: int, steps: int, forget: bool = False) -> transport.TransportMask:
    mask = transport.TransportMask(len(scores), keep, scores=scores)
    for _ in range(steps):
        if forget:
            mask.g.zero_()
        mask()
    return mask


def test_the_budget_is_met_only_if_the_potential_is_kept() -> None:
    scores = torch.randn(256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    best = torch.zeros(256, dtype=torch.bool).scatter(0, scores.topk(64).indices, True)
    kept, forgotten = (_run(scores, 64, 400, forget) for forget in (False, True))
    assert torch.equal(kept.expected() > 0.5, best)
    assert kept.softness <= 2e-3
    assert int((forgotten.expected() > 0.5).sum()) >= 70
    assert forgotten.expected().sum().item() == pytest.approx(64)  # which is no sign of anything


def test_a_mask_sums_to_its_budget_and_its_gradient_to_nothing() -> None:
    mask = transport.TransportMask(7, 3, generator=torch.Generator().manual_seed(0))
    for _ in range(4):
        m = mask()
        assert m.sum().item() == pytest.approx(3, rel=1e-6)
    (slope,) = torch.autograd.grad(m[2], mask.scores)
    assert slope[2] > 0
    assert abs(slope.sum()) < 1e-6  # scores are standardised


def test_without_memory_a_mask_is_the_soft_top_k_of_its_scores() -> None:
    scores = torch.randn(9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mask = transport.TransportMask(9, 4, scores=scores, epsilon=0.3, memory=False)
    for epsilon in (0.3, 0.3, 0.05):
        mask.epsilon = epsilon
        m = mask()
        torch.testing.assert_close(m, discrete.soft_topk(scores, 4, temperature=epsilon), rtol=1e-5, atol=1e-7)
    (slope,) = torch.autograd.grad(m[2], mask.scores)
    live = scores.clone().requires_grad_()
    (expected,) = torch.autograd.grad(discrete.soft_topk(live, 4, temperature=0.05)[2], live)
    torch.testing.assert_close(slope, expected - expected.mean(), rtol=1e-4, atol=1e-6)


def test_evaluation_keeps_the_mask_and_hardening_the_largest() -> None:
    mask = transport.TransportMask(5, 0.4, scores=torch.tensor([0.1, 3.0, -1.0, 2.0, 0.0]))
    last = mask().detach()
    assert torch.equal(mask.eval()(), last)
    mask.train().harden()
    assert mask().tolist() == [0.0, 1.0, 0.0, 1.0, 0.0]
    mask.harden(torch.tensor([3.0, 1.0, 1.5, -4.0, 2.0]))
    assert mask().tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="scores"):
        mask.harden(torch.ones(4))
    copy = transport.TransportMask(5, 2)
    copy.load_state_dict(mask.state_dict())
    assert copy().tolist() == mask().tolist()


def test_keeping_all_changes_nothing() -> None:
    mask = transport.TransportMask(3, 1.0)
    assert mask().tolist() == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("n", "keep", "match"),
    [
        (8, 0, "keep must be in 1..8"),
        (8, 9, "keep must be in 1..8"),
        (8, -0.5, "keep must be in 1..8"),
        (8, 1.5, "keep must be in 1..8"),
        (8, 0.3, "keep must be a whole number of 8 entries, got the share 0.3: 2.4 of them"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused(n: int, keep: float, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        transport.TransportMask(n, keep)


def test_other_arguments_of_a_mask_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="epsilon must be > 0"):
        transport.TransportMask(4, 2, epsilon=0.0)
    with pytest.raises(ValueError, match="scores must be finite"):
        transport.TransportMask(2, 1, scores=torch.tensor([0.0, torch.inf]))
    with pytest.raises(ValueError, match="scores"):
        transport.TransportMask(2, 1, scores=torch.zeros(3))


def _network() -> nn.Sequential:
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4))
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -1, 1, generator=g)
    return model


def test_filters_are_masked_by_gates_and_cut_out() -> None:
    x = torch.randn(3, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    gated = discrete.attach_gates(_network(), ["0"], gate=partial(transport.TransportMask, keep=0.25, epsilon=2.0))
    gated(x).square().sum().backward()
    mask = gated.gates["0"]
    assert isinstance(mask, transport.TransportMask)
    assert mask.scores.grad is not None
    assert mask.scores.grad.any()
    cost = discrete.NetworkCost(gated, x)
    assert float(cost()) == pytest.approx(cost.full / 4, rel=1e-6)  # soft, and yet what will be left
    gated.harden()
    small = discrete.prune_closed(gated.eval(), x)
    assert small.get_submodule("0").weight.shape[0] == 2
    torch.testing.assert_close(small(x), gated(x), rtol=1e-5, atol=1e-5)


def test_single_weights_share_a_budget_and_are_written_into_the_network() -> None:
    model, x = _network(), torch.ones(1, 1, 5, 5)
    masked = transport.attach_masks(model, ["0", "3"], 36, generator=torch.Generator().manual_seed(2))
    masked(x).square().sum().backward()
    (mask,) = masked.masks
    assert isinstance(mask, transport.TransportMask)
    assert mask.scores.grad is not None
    assert mask.scores.grad.any()
    sizes = torch.cat([model[i].weight.detach().flatten().abs() for i in (0, 3)])  # type: ignore[operator]
    masked.harden(sizes)
    wanted = masked.eval()(x)
    assert torch.equal(masked.cut()(x), wanted)
    left = torch.cat([model[i].weight.detach().flatten().abs() for i in (0, 3)])  # type: ignore[operator]
    assert torch.equal(left, torch.where(sizes >= sizes.topk(36).values[-1], sizes, 0))


def test_each_layer_may_have_its_own_budget() -> None:
    masked = transport.attach_masks(_network(), ["0", "3"], 0.25, budget="layer")
    assert [mask.keep for mask in masked.masks] == [18, 72]
    masked.harden()
    model = masked.cut()
    assert [int(torch.count_nonzero(model.get_parameter(f"{n}.weight"))) for n in ("0", "3")] == [18, 72]


def test_layers_that_cannot_be_masked_are_refused_by_name() -> None:
    for layers, match in ((["4"], "got '4'"), ([], "at least one layer"), (["1"], "layer '1' must have a weight")):
        with pytest.raises(ValueError, match=match):
            transport.attach_masks(_network(), layers, 0.5)
    with pytest.raises(ValueError, match="budget must be"):
        transport.attach_masks(_network(), ["0"], 0.5, budget="filter")
    with pytest.raises(TypeError, match="gate must be"):
        discrete.attach_gates(_network(), ["0"], gate=3)  # type: ignore[arg-type]
